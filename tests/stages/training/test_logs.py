"""Losses go to TensorBoard or MLflow where they are asked for, also those of a run that was killed."""

import subprocess
import sys
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.keys import step_key
from stages.catalog import get_stage
from stages.distill.stage import DistillOptions
from stages.finetune.stage import FinetuneOptions
from stages.training.logs import LogTo, open_log
from stages.training.loop import Training, train
from stages.training.pictures import Batch
from targets.errors import InputError

PLAIN = Training(steps=30, lr=0.01)


class Line:
    """A linear regression; `fail_at` stops it like a power cut."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.module, self.fail_at = nn.Linear(3, 1, bias=False), fail_at
        nn.init.zeros_(self.module.weight)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"squares": F.mse_loss(self.module(batch.images), batch.images.sum(1, keepdim=True))}

    def data(self, start: int, stop: int) -> Generator[Batch, None, None]:
        for step in range(start, stop):
            if step == self.fail_at:
                raise KeyboardInterrupt
            yield Batch(step=step, images=torch.randn(4, 3, generator=torch.Generator().manual_seed(step)))

    def train(self, scratch: Path, log_to: LogTo) -> dict[str, Any]:
        held_out = [Batch(step=0, images=torch.eye(3))]
        return train(
            self.module,
            self.loss,
            self.data,
            PLAIN,
            scratch=scratch,
            held_out=lambda: held_out,
            checkpoint_seconds=0,
            log_to=log_to,
        )


def tensorboard_values(folder: Path) -> dict[str, dict[int, float]]:
    [run] = folder.iterdir()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run))
    read.Reload()
    return {name: {one.step: one.value for one in read.Scalars(name)} for name in read.Tags()["scalars"]}


def mlflow_values(folder: Path) -> dict[str, dict[int, float]]:
    client = pytest.importorskip("mlflow").MlflowClient(tracking_uri=folder.as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("vitrim").experiment_id])
    assert run.info.status == "FINISHED"
    return {
        name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }


@pytest.fixture(params=["tensorboard", "mlflow"])
def kind(request: pytest.FixtureRequest) -> Any:
    """Either library, which may warn of its own affairs."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed (extra dev)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield request.param


def values(kind: str, folder: Path) -> dict[str, dict[int, float]]:
    return tensorboard_values(folder) if kind == "tensorboard" else mlflow_values(folder)


def test_every_step_is_logged_also_over_a_kill(kind: str, tmp_path: Path) -> None:
    whole, cut, resumed = Line(), Line(fail_at=17), Line()
    whole.train(tmp_path / "whole", LogTo(kind=kind, folder=tmp_path / "one"))
    with pytest.raises(KeyboardInterrupt):
        cut.train(tmp_path / "cut", LogTo(kind=kind, folder=tmp_path / "two"))
    resumed.train(tmp_path / "cut", LogTo(kind=kind, folder=tmp_path / "two"))
    expected, found = values(kind, tmp_path / "one"), values(kind, tmp_path / "two")

    assert set(expected) == {"loss", "squares", "learning_rate", "images_per_second", "held_out_loss"}
    assert list(expected["loss"]) == list(range(1, 31))
    assert expected["learning_rate"][1] == pytest.approx(PLAIN.lr_at(0))
    for name in ("loss", "squares", "learning_rate", "held_out_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


def test_a_log_changes_neither_weights_nor_facts(kind: str, tmp_path: Path) -> None:
    quiet, logged = Line(), Line()
    expected = quiet.train(tmp_path / "a", LogTo())
    facts = logged.train(tmp_path / "b", LogTo(kind=kind, folder=tmp_path / "log"))

    assert torch.equal(quiet.module.weight, logged.module.weight)
    assert facts["loss_curve"] == expected["loss_curve"]
    assert not (tmp_path / "a" / "mlflow-run.txt").exists()


def test_a_folder_that_cannot_be_written_is_told(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log_to = LogTo(kind=kind, folder=tmp_path / "file")
    opening = open_log(log_to, run="x" * 64, scratch=tmp_path / "s", from_step=0)
    with pytest.raises(InputError, match=r"log_folder '.*file'") as caught:
        opening.__enter__()
    assert "\n" not in str(caught.value)


def test_nothing_is_imported_without_a_log(root: Path) -> None:
    code = (
        "import sys, stages.training.loop, stages.distill.stage; "
        "sys.exit(any(name in sys.modules for name in ('tensorboard', 'mlflow', 'accelerate')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=root)


@pytest.mark.parametrize("options", [DistillOptions, FinetuneOptions])
def test_a_log_without_a_place_or_library_is_refused(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.training.options.find_spec", lambda name: object())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for given, reason in (
        ({"log": "tensorboard"}, "log: tensorboard needs log_folder"),
        ({"log": "mlflow"}, "needs log_folder, where it is written or set MLFLOW_TRACKING_URI"),
        ({"log_folder": "x"}, "log_folder goes with log: tensorboard or mlflow"),
        ({"log": "wandb", "log_folder": "x"}, "'none', 'tensorboard' or 'mlflow'"),
    ):
        with pytest.raises(ValidationError, match=reason):
            options.model_validate(given)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert options.model_validate({"log": "mlflow"}).log_folder is None
    monkeypatch.setattr("stages.training.options.find_spec", lambda name: None)
    with pytest.raises(ValidationError, match="which is not installed; pip install tensorboard"):
        options.model_validate({"log": "tensorboard", "log_folder": "x"})


@pytest.mark.parametrize("name", ["distill", "finetune"])
def test_a_log_does_not_change_the_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.training.options.find_spec", lambda name: object())
    stage = get_stage(name)

    def key(**options: Any) -> str:
        validated = stage.options.model_validate(options)
        images = dict.fromkeys(stage.roles(validated), "x")
        return step_key(stage, validated, input_key="a", images=images, seed=0, device=None)

    assert key() == key(log="tensorboard", log_folder="/x") == key(sharded=True)
    assert key() != key(lr=1e-5)
