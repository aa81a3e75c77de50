"""The baseline's answers to `select`, which everything is compared with, and the images as each model reads them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.answers import engine_answers
from pipeline.pixels import Pixels
from stages.graph.described import Described, read_described
from targets.preprocess import Preprocess

if TYPE_CHECKING:
    from pipeline.statistics import Floats
    from stages.data.images import ImageSet


@dataclass(kw_only=True)
class Reference:
    """Some images, and the baseline's answers to them, computed when first asked for."""

    images: "ImageSet"
    baseline: Path
    """its engine's folder, or its fp32 graph"""
    key: str
    """of the step that made it"""
    spec: Described
    """of the source"""
    folder: Path
    """for decoded images"""

    @property
    def pixels(self) -> Pixels:
        """The images as the source reads them."""
        return self.pixels_as(self.spec.preprocess)

    def pixels_for(self, folder: Path) -> Pixels:
        """The images as the model or graph in this folder reads them."""
        return self.pixels_as(read_described(folder).preprocess)

    def pixels_as(self, preprocess: Preprocess) -> Pixels:
        """The images, so prepared."""
        return Pixels.of(self.images, preprocess, self.folder)

    @cached_property
    def answers(self) -> "Floats":
        """The baseline's answers, [N, C] or [N, D]."""
        return engine_answers(self.baseline, self.pixels, tell=lambda message, share: None)
