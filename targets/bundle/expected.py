"""Expected: what a bundle's build was held against, so that it can be held against it again, on any machine.

The answers of the fp32 source and of the engine to the evaluation images, their right classes where they are known,
and the budget. No image is among it, only the digest of all of them: whoever has the same images can tell the paired
drop on a board that never saw the source.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError, model_validator

from targets.errors import InputError
from targets.profile import Budget
from targets.record import Record

FILE = "expected.json"


class Expected(Record):
    """Of one build."""

    format: Literal["vitrim.expected/1"] = "vitrim.expected/1"
    budget: Budget = Budget()
    metric: str = ""
    """top1, or agreement where the images have no labels; empty where no answers are told"""
    images_digest: str = ""
    """of content and label of every image, in their order"""
    baseline: tuple[int, ...] = ()
    """the source's class for each image"""
    engine: tuple[int, ...] = ()
    """the engine's; its graph's by ONNX Runtime where the engine did not run"""
    label: tuple[int, ...] = ()
    """the right ones; empty where there are none"""

    @model_validator(mode="after")
    def _is_of_the_same_images(self) -> "Expected":
        if len(self.baseline) != len(self.engine) or len(self.label) not in (0, len(self.engine)):
            counts = f"{len(self.baseline)}, {len(self.engine)} and {len(self.label)}"
            raise ValueError(f"answers of {counts} images: they must be of the same")
        if self.metric and not (self.baseline and self.images_digest):
            raise ValueError(f"metric {self.metric!r} without the source's answers or the digest of their images")
        return self


def read_expected(bundle: Path) -> Expected | None:
    """None: the bundle tells nothing of it, as those of older versions. Raises InputError for what cannot be read."""
    path = bundle / FILE
    if not path.is_file():
        return None
    try:
        return Expected.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise InputError(
            f"{str(path)!r} cannot be read: {where}: {first['msg']}; a newer vitrim may have written it: "
            "update vitrim, or build the bundle again"
        ) from None
