"""A bundle that answers images from Python: `vitrim.load(bundle)`. Its engine runs in a torch-free process of its own.

Shapes: N images, H and W of the model's input.
"""

import json
import os
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from targets.bundle.manifest import BundleManifest
from targets.bundle.package import opened
from targets.bundle.pixels import UnreadableImageError, decode, read_image
from targets.bundle.run import MANIFEST, best_classes
from targets.errors import InputError, VitrimError, WorkerError
from targets.preprocess import Preprocess, resize_and_crop
from targets.worker import Worker

if TYPE_CHECKING:
    from PIL.Image import Image

Images = Any  # what each may be is checked, and told where it is something else
"""one or several images: a file's path or content, Pillow's image, or pixels, uint8 [height, width, 3]; or all of them
preprocessed, float32 [N, 3, H, W]
"""
PORTABLE = ("onnxruntime", "openvino")
"""runtimes that run model.onnx where the engine is for another machine"""


class LoadedBundle:
    """Classifies images, or describes them by features. Close it, or use it in a `with` statement.

    Raises InputError for what is no bundle or no image, StageError for a damaged bundle, WorkerError where no runtime
    here can run it.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        with ExitStack() as stack:
            folder = stack.enter_context(opened(Path(path)))
            self.manifest = BundleManifest.model_validate_json((folder / MANIFEST).read_bytes())
            self.preprocess = Preprocess.model_validate_json((folder / "preprocessing.json").read_bytes())
            self.labels: list[str] | None = json.loads((folder / "labels.json").read_bytes())
            self._worker = stack.enter_context(Worker(threads=threads))
            self.runs, self.note = _load(self._worker, folder, self.manifest)
            self.close = weakref.finalize(self, stack.pop_all().close)
        """Give process and memory back; a second time does nothing. Left alone, it happens at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def classify(self, images: Images, *, top: int = 5) -> list[list[dict[str, Any]]]:
        """The best classes of each image, best first: class, label, probability."""
        if top < 1:
            raise InputError(f"top is a whole number from 1, got {top}")
        return [best_classes(row, self.labels, top) for row in self.logits(images).astype(np.float64)]

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Answer images: [N, classes]."""
        return self._answer(images, "logits", "features")

    def features(self, images: Images) -> NDArray[np.float32]:
        """Describe images: [N, width], for a model without head."""
        return self._answer(images, "features", "logits")

    def _answer(self, images: Images, wanted: str, other: str) -> NDArray[np.float32]:
        output = self.manifest.output
        if output.kind != wanted:
            raise InputError(f"the bundle {self.manifest.name!r} answers with {output.kind}; use .{other}(images)")
        if not self.close.alive:
            raise InputError("the bundle is closed; load it again")
        if isinstance(images, np.ndarray) and images.dtype == np.float32:
            size = (3, self.preprocess.height, self.preprocess.width)
            if images.ndim != 4 or images.shape[1:] != size:
                raise InputError(f"preprocessed images have shape [N, {', '.join(map(str, size))}], got {images.shape}")
            answers = self._worker.infer(images)
        else:
            cropped = np.stack([resize_and_crop(_read(one), self.preprocess) for one in _several(images)])
            answers = self._worker.infer(cropped, preprocess=self.preprocess)
        return np.asarray(answers[output.name], dtype=np.float32)


def _load(worker: Worker, folder: Path, manifest: BundleManifest) -> tuple[str, str]:
    """Load the engine, or else the portable graph: what runs, and why it is not the engine."""
    if manifest.engine_sha256 is None:
        reason = "the bundle has no engine yet"
    else:
        try:
            worker.load(folder / "engine")
            return "engine", ""
        except VitrimError as error:
            reason = str(error)
    for runtime in sorted(PORTABLE, key=lambda name: name != manifest.runtime):
        try:
            worker.load(folder / "model.onnx", runtime=runtime, precision="fp32")
            return f"model.onnx with {runtime}", reason
        except VitrimError as error:
            reason += f"; {error}"
    raise WorkerError(f"nothing here can run the bundle: {reason}; install onnxruntime or openvino")


def _several(images: Images) -> Sequence[Any]:
    one = isinstance(images, str | bytes | os.PathLike) or not hasattr(images, "__len__")
    if isinstance(images, np.ndarray):
        one = images.ndim == 3
    found: Sequence[Any] = [images] if one else list(images)
    if not found:
        raise InputError("no images to answer")
    return found


def _read(image: Any) -> "Image":
    """One image as upright RGB; raises InputError."""
    from PIL import Image

    try:
        if isinstance(image, Image.Image):
            return image.convert("RGB")
        if isinstance(image, bytes):
            return decode(image)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise InputError(f"pixels are uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
            return Image.fromarray(image)
        if isinstance(image, str | os.PathLike):
            return read_image(image)
    except UnreadableImageError as error:
        shown = repr(str(image)) if isinstance(image, str | os.PathLike) else "an image"
        raise InputError(f"cannot read {shown}: {error}") from error
    raise InputError(f"an image is a path, bytes, Pillow's image or pixels, got {type(image).__name__}")
