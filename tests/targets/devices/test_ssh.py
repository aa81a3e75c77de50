"""Boards behind real OpenSSH servers: probed, held, given files and jobs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from boards import RUNTIME, SshBoard, expected_classes, make_graph, make_images

from targets.devices.job import Job, JobEngine, ShortProcedure

Start = Callable[..., SshBoard]
SHORT = ShortProcedure(
    processes=1, queries=4, seconds=0, blocks=2, warmup_queries=3, warmup_seconds=0, warmup_limit_seconds=1
)


def test_a_board_is_probed_measured_and_pulled_from(board: Start, tmp_path: Path) -> None:
    one = board()
    one.plan(milliseconds=3)
    device = one.device()
    assert device.probe()["facts"]["architecture"]

    with device.session(who="a test", folder=tmp_path / "pulled") as session:
        source = session.push(make_graph(tmp_path / "graph"))
        images = session.push(make_images(tmp_path / "images"))
        job = Job(
            engines={"engine": JobEngine(source=source, runtime=RUNTIME, precision="fp32")},
            images=images,
            batch=1,
            answers=True,
            procedure=SHORT,
        )
        told: list[str] = []
        result = session.run(job, lambda message, share: told.append(message))

    engine = result.roles["engine"]
    assert engine.built
    assert engine.reason == "there is none yet"
    assert engine.answers is not None
    assert np.load(engine.answers).argmax(axis=1).tolist() == expected_classes()
    assert result.comparison is not None
    assert min(result.comparison.measurements["engine"].runs[0].samples) >= 3
    assert result.comparison.measurements["engine"].engine_sha256 == engine.engine_sha256
    assert result.environment["architecture"] == result.before["facts"]["architecture"]
    assert result.attempts == 1
    assert any("building" in message for message in told)
