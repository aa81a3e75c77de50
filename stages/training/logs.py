"""Where losses go while a model trains: TensorBoard or MLflow. Both are imported only when asked for."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.training.options import LogKind
from targets.errors import InputError

logger = logging.getLogger("vitrim.training")

EXPERIMENT = "vitrim"
SENT_AT_ONCE, SEND_EVERY_SECONDS = 500, 2.0
"""MLflow takes at most 1,000 metrics in a message"""
RUN_FILE = "mlflow-run.txt"

Write = Callable[[int, Mapping[str, float]], None]
"""write(step, values by name)"""


@dataclass(frozen=True, kw_only=True)
class LogTo:
    """Where the log of one training goes."""

    kind: LogKind = "none"
    folder: Path | None = None
    """of TensorBoard's runs, or of MLflow's files; MLflow without one: the server of MLFLOW_TRACKING_URI"""
    name: str = "training"
    """of the run; a resumed run goes on under the same name"""


SILENT = LogTo()


@contextmanager
def open_log(log: LogTo, *, run: str, scratch: Path, from_step: int) -> Iterator[Write]:
    """Yields a function that writes values of a step; none: it does nothing. Raises InputError where it cannot write.

    run: identifies the training, so that one that was killed goes on in its log; scratch: what survives that.
    """
    if log.kind == "none":
        yield lambda step, values: None
    elif log.kind == "tensorboard":
        with _tensorboard(log, run, from_step) as write:
            yield write
    else:
        with _mlflow(log, run, scratch) as write:
            yield write


@contextmanager
def _tensorboard(log: LogTo, run: str, from_step: int) -> Iterator[Write]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("log: tensorboard needs the package tensorboard; pip install tensorboard") from error
    assert log.folder is not None  # the options check it
    try:
        folder = log.folder / f"{log.name}-{run[:8]}"
        # What was written after the checkpoint that the run goes on from is hidden.
        writer = SummaryWriter(str(folder), purge_step=from_step + 1 if from_step else None)
    except OSError as error:
        raise InputError(f"log_folder {str(log.folder)!r} cannot be written: {error.strerror or error}") from error

    def write(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def _mlflow(log: LogTo, run: str, scratch: Path) -> Iterator[Write]:
    if log.folder is not None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.17 asks for it; read when it is imported
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, RunStatus
    except ImportError as error:
        raise InputError("log: mlflow needs the package mlflow; pip install mlflow-skinny") from error
    noted = scratch / RUN_FILE
    try:
        client = MlflowClient(tracking_uri=log.folder.resolve().as_uri() if log.folder else None)
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
        if noted.is_file():
            id_ = noted.read_text().strip()
            client.update_run(id_, RunStatus.to_string(RunStatus.RUNNING))
        else:
            id_ = client.create_run(experiment, run_name=f"{log.name}-{run[:8]}").info.run_id
            scratch.mkdir(parents=True, exist_ok=True)
            noted.write_text(id_)
    except Exception as error:  # MLflow's own, and those of files and of the network below it
        reason = str(error).strip().splitlines() or [type(error).__name__]
        where = f"log_folder {str(log.folder)!r}" if log.folder else "MLFLOW_TRACKING_URI"
        raise InputError(f"MLflow cannot write to {where}: {reason[0]}") from error

    sending = _Sending(client, id_)
    status = "FAILED"
    try:
        yield lambda step, values: sending.add(
            [Metric(name, value, time.time_ns() // 1_000_000, step) for name, value in values.items()]
        )
        status = "FINISHED"
    finally:
        sending.send()
        with suppress(Exception):  # the log is no reason to lose a training
            client.set_terminated(id_, status)


class _Sending:
    """Metrics on their way to MLflow, many in a message; what cannot be sent is lost, and the training goes on."""

    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        self._warned = False

    def add(self, metrics: list[Any]) -> None:
        self._waiting += metrics
        if len(self._waiting) > SENT_AT_ONCE or time.monotonic() - self._sent > SEND_EVERY_SECONDS:
            self.send()

    def send(self) -> None:
        self._sent = time.monotonic()
        waiting, self._waiting = self._waiting, []
        try:
            if waiting:
                self._client.log_batch(self._run, metrics=waiting)
        except Exception as error:  # MLflow's own, and those of files and of the network below it
            if not self._warned:
                logger.warning("MLflow does not take metrics any more (%s); the training goes on", error)
            self._warned = True
