"""Bundles of a tiny real classifier."""

from collections.abc import Callable
from pathlib import Path

import pytest

from targets.bundle.write import write_bundle
from tests.targets.bundle.classifier import PREPROCESS, SPEC, write_engine_folder, write_onnx


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """make_bundle(engine options, labels=..., card=...) writes a bundle and returns its folder."""

    def make(
        *,
        at: str = "out/bundle",
        labels: list[str] | None = ["red", "green", "blue"],  # noqa: B006  # never changed
        card: dict[str, object] | None = None,
        classes: int = 3,
        output: str = "logits",
        without_engine: bool = False,
        planned: dict[str, object] | None = None,
        target: dict[str, object] | None = None,
        **engine: object,
    ) -> Path:
        work = tmp_path / "work" / str(len(list(tmp_path.glob("work/*"))))
        write_bundle(
            tmp_path / at,
            engine=None if without_engine else write_engine_folder(work / "engine", output=output, **engine),
            onnx=write_onnx(work / "graph.onnx", output=output),
            spec={**SPEC, "classes": classes},
            preprocess=PREPROCESS,
            labels=labels,
            card=card or {},
            planned=planned,
            target=target,
        )
        return tmp_path / at

    return make
