"""Answers of quantized graphs against those of the fp32 graph, in ONNX Runtime on this machine's CPU."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stages.quantize.agreement import Agreement, compare
from targets.preprocess import Preprocess
from targets.worker import Worker

if TYPE_CHECKING:
    from stages.data.images import ImageSet

BATCH = 16


class Judge:
    """A worker, the images of `select`, and what fp32 says to them."""

    def __init__(self, source: Path, select: "ImageSet", preprocess: Preprocess, folder: Path) -> None:
        self._source, self._preprocess = source, preprocess
        self._pixels = select.uint8(preprocess, folder=folder)
        self._worker = Worker()
        self._reference: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._worker.__enter__()
        self._reference = self._answers(self._source, "fp32", None)
        return self

    def __exit__(self, *error: Any) -> None:
        self._worker.__exit__(*error)

    def agreement(self, graph: Path, precision: str, *, first: int | None = None) -> Agreement:
        """Agreement of a graph on all images, or on the first ones."""
        reference = {name: values[:first] for name, values in self._reference.items()}
        return compare(reference, self._answers(graph, precision, first))

    def _answers(self, graph: Path, precision: str, first: int | None) -> dict[str, Any]:
        loaded = self._worker.load(graph, runtime="onnxruntime", precision=precision)
        batch = loaded.inputs[0]["shape"][0] or BATCH
        return self._worker.infer(self._pixels[:first], batch=batch, preprocess=self._preprocess)
