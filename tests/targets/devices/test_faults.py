"""Links that drop, hang, flip a byte or are slow; agents and jobs that are killed; disks that are full."""

import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from boards import RUNTIME, Proxy, SshBoard, make_graph, make_images

from targets.devices import scripted_runtime
from targets.devices.job import Job, JobEngine, ShortProcedure
from targets.devices.link import LocalLink
from targets.devices.spec import LocalSpec
from targets.devices.transfer import fetch, item_of, send
from targets.errors import DeviceBusyError, DeviceLostError, DeviceRefusedError, InputError, WorkerError

Start = Callable[..., SshBoard]
SHORT = ShortProcedure(
    processes=1, queries=4, seconds=0, blocks=2, warmup_queries=3, warmup_seconds=0, warmup_limit_seconds=1
)
MEGABYTE = 1 << 20


@pytest.fixture
def proxied(board: Start) -> Iterator[tuple[SshBoard, Proxy]]:
    """A board that is reached through a proxy."""
    one = board()
    proxy = Proxy(one.port)
    yield one, proxy
    proxy.close()


def random_file(path: Path, megabytes: int) -> Path:
    path.write_bytes(os.urandom(megabytes * MEGABYTE))
    return path


def make_job(session: Any, folder: Path, **changes: Any) -> Job:
    source = session.push(make_graph(folder / "graph", text=str(changes.pop("graph", "a graph"))))
    images = session.push(make_images(folder / "images"))
    engine = JobEngine(source=source, runtime=RUNTIME, precision="fp32")
    told: dict[str, Any] = {"engines": {"engine": engine}, "images": images, "batch": 1, "procedure": SHORT}
    return Job(**{**told, **changes})


def wait_for(condition: Callable[[], object], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def process_of(board: SshBoard, key: str) -> int:
    told = json.loads((board.agent_folder / "jobs" / key / "process.json").read_text())
    return int(told["pid"])


def processes_of(board: SshBoard) -> list[str]:
    """Command lines of living processes that have to do with a board's folder."""
    found = []
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = words.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(board.agent_folder) in text and "sshd_config" not in text:
            found.append(text)
    return found


# Transfers.


def test_a_transfer_that_is_cut_goes_on_where_it_was(proxied: tuple[SshBoard, Proxy], tmp_path: Path) -> None:
    board, proxy = proxied
    path = random_file(tmp_path / "weights", 12)
    with board.device(port=proxy.port).session(who="a test") as session:
        sent: list[float] = []
        proxy.cut()
        proxy.drop_after = 8 * MEGABYTE
        digest = session.push(path, lambda message, share: sent.append(share or 0))

    assert (board.agent_folder / "objects" / digest).read_bytes() == path.read_bytes()
    assert proxy.drop_after is None  # it was cut
    assert list((board.agent_folder / "objects").glob("*.part")) == []


def test_a_resumed_transfer_sends_only_what_is_left(tmp_path: Path) -> None:
    link = LocalLink("here", LocalSpec(kind="local", target="cpu", folder=str(tmp_path / "board")))
    path = random_file(tmp_path / "weights", 4)
    item = item_of(path)
    objects = tmp_path / "board" / "objects"
    objects.mkdir(parents=True)
    (objects / f"{item.digest}.part").write_bytes(path.read_bytes()[: 3 * MEGABYTE])
    steps: list[int] = []

    send(link, item, stall_seconds=30, progress=steps.append)

    assert steps[0] == 3 * MEGABYTE  # what was there
    assert sum(steps) == 4 * MEGABYTE
    assert (objects / item.digest).read_bytes() == path.read_bytes()


def test_a_transfer_that_arrives_damaged_is_not_kept(tmp_path: Path) -> None:
    link = LocalLink("here", LocalSpec(kind="local", target="cpu", folder=str(tmp_path / "board")))
    item = item_of(random_file(tmp_path / "weights", 1))
    objects = tmp_path / "board" / "objects"
    objects.mkdir(parents=True)
    (objects / f"{item.digest}.part").write_bytes(b"x" * 1000)  # a wrong beginning

    with pytest.raises(DeviceLostError, match="what arrived is not what was sent"):
        send(link, item, stall_seconds=30)
    assert list(objects.iterdir()) == []
    send(link, item, stall_seconds=30)

    assert item_of(objects / item.digest).digest == item.digest


def test_a_byte_that_was_flipped_on_the_way_does_no_harm(proxied: tuple[SshBoard, Proxy], tmp_path: Path) -> None:
    board, proxy = proxied
    path = random_file(tmp_path / "weights", 6)
    with board.device(port=proxy.port).session(who="a test") as session:
        proxy.cut()
        proxy.flip_at = 3 * MEGABYTE
        digest = session.push(path)

    assert proxy.flip_at is None
    assert (board.agent_folder / "objects" / digest).read_bytes() == path.read_bytes()


def test_a_link_that_hangs_is_given_up_and_made_again(proxied: tuple[SshBoard, Proxy], tmp_path: Path) -> None:
    board, proxy = proxied
    path = random_file(tmp_path / "weights", 6)
    device = board.device(port=proxy.port, alive_seconds=1, alive_count=2)
    with device.session(who="a test") as session:
        proxy.cut()
        proxy.hang_after = 3 * MEGABYTE
        digest = session.push(path)

    assert proxy.hang_after is None
    assert (board.agent_folder / "objects" / digest).read_bytes() == path.read_bytes()


def test_a_slow_link_is_slow_and_nothing_else(proxied: tuple[SshBoard, Proxy], tmp_path: Path) -> None:
    board, proxy = proxied
    proxy.delay_seconds = 0.01
    with board.device(port=proxy.port).session(who="a test") as session:
        result = session.run(make_job(session, tmp_path))

    assert result.attempts == 1


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    class Cramped(LocalLink):
        """No file may be larger than a megabyte."""

        def words(self, remote: Any) -> list[str]:
            code = (
                "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
                "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); os.execvp(sys.argv[1], sys.argv[1:])"
            )
            return [sys.executable, "-c", code, *remote]

    link = Cramped("here", LocalSpec(kind="local", target="cpu", folder=str(tmp_path / "board")))

    with pytest.raises(DeviceRefusedError, match=r"could not take a file of 3\.1 MB: File too large"):
        send(link, item_of(random_file(tmp_path / "weights", 3)), stall_seconds=30)
    assert list((tmp_path / "board" / "objects").iterdir()) == []


def test_a_push_that_cannot_fit_is_refused_before_it_begins(
    board: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("targets.devices.session.RESERVE_BYTES", 1 << 60)
    with (
        board().device().session(who="a test") as session,
        pytest.raises(DeviceRefusedError, match=r"device 'shelf-1': 1 MB are to be copied.*free some"),
    ):
        session.push(random_file(tmp_path / "weights", 1))


def test_what_comes_back_is_verified_and_goes_on_where_it_was(tmp_path: Path) -> None:
    link = LocalLink("here", LocalSpec(kind="local", target="cpu", folder=str(tmp_path / "board")))
    item = item_of(random_file(tmp_path / "weights", 2))
    from targets.devices.session import install

    agent = install(link, seconds=30)
    send(link, item, stall_seconds=30)
    folder = tmp_path / "pulled"
    folder.mkdir()
    content = (tmp_path / "weights").read_bytes()
    (folder / f"{item.digest}.part").write_bytes(content[:MEGABYTE])
    found = fetch(link, agent, item.digest, item.size_bytes, folder, stall_seconds=30)
    assert found.read_bytes() == content

    found.unlink()
    (folder / f"{item.digest}.part").write_bytes(b"x" + content[1:MEGABYTE])
    with pytest.raises(DeviceLostError, match="is not what the board has"):
        fetch(link, agent, item.digest, item.size_bytes, folder, stall_seconds=30)
    assert list(folder.iterdir()) == []


# Jobs.


def test_a_job_goes_on_while_its_link_is_lost_and_is_not_started_again(
    proxied: tuple[SshBoard, Proxy], tmp_path: Path
) -> None:
    board, proxy = proxied
    board.plan(build_seconds=3)
    with board.device(port=proxy.port).session(who="a test") as session:
        job = make_job(session, tmp_path)
        cut: list[int] = []

        def tell(message: str, share: float | None) -> None:
            if "building" in message and not cut:
                cut.append(process_of(board, job.key))
                board.drop_links()
                proxy.cut()

        result = session.run(job, tell)

        assert cut
        assert process_of(board, job.key) == cut[0]
        assert result.attempts == 1
        assert session.run(job).comparison == result.comparison  # it is done, and not done again


def test_a_board_that_stays_away_is_lost_and_its_job_is_found_later(
    proxied: tuple[SshBoard, Proxy], tmp_path: Path
) -> None:
    board, proxy = proxied
    board.plan(build_until=str(tmp_path / "go"))
    device = board.device(port=proxy.port, patience_seconds=1)
    with device.session(who="a test") as session:
        job = make_job(session, tmp_path)

        def tell(message: str, share: float | None) -> None:
            if "building" in message:
                proxy.refuse = True
                proxy.cut()

        with pytest.raises(DeviceLostError, match=r"device 'shelf-1': the link to 127\.0\.0\.1:\d+ is lost"):
            session.run(job, tell)
    proxy.refuse = False
    with pytest.raises(DeviceBusyError, match=f"'a test' holds it since .*, with job {job.key[:12]}"):
        device.session(who="somebody else").__enter__()
    (tmp_path / "go").touch()
    with device.session(who="a test", wait_seconds=60) as session:
        result = session.run(job)

    assert result.attempts == 1


def test_a_killed_job_is_no_lost_device_and_the_board_is_free_again(board: Start, tmp_path: Path) -> None:
    one = board()
    one.plan(build_seconds=60)
    with one.device().session(who="a test") as session:
        job = make_job(session, tmp_path)

        def tell(message: str, share: float | None) -> None:
            os.killpg(process_of(one, job.key), signal.SIGKILL)

        with pytest.raises(WorkerError, match="device 'shelf-1': the job was killed there"):
            session.run(job, tell)
        one.plan()
        assert session.run(job).attempts == 2  # and that is not hidden
    wait_for(lambda: processes_of(one) == [])


def test_an_agent_that_is_killed_is_started_again(board: Start, tmp_path: Path) -> None:
    one = board()
    one.plan(build_seconds=2)
    with one.device().session(who="a test") as session:
        job = make_job(session, tmp_path)
        killed: list[int] = []

        def tell(message: str, share: float | None) -> None:
            if not killed:
                killed.append(int(json.loads((one.agent_folder / "lock").read_text())["pid"]))
                os.kill(killed[0], signal.SIGKILL)

        assert session.run(job, tell).attempts == 1
        assert json.loads((one.agent_folder / "lock").read_text())["pid"] != killed[0]


def test_a_failure_of_the_build_is_told_with_its_reason(board: Start, tmp_path: Path) -> None:
    one = board()
    one.plan(build_fails="no kernel for this")
    with (
        one.device().session(who="a test") as session,
        pytest.raises(WorkerError, match="device 'shelf-1': build failed: no kernel for this"),
    ):
        session.run(make_job(session, tmp_path))


def test_a_job_that_takes_too_long_is_ended_with_all_it_started(board: Start, tmp_path: Path) -> None:
    one = board()
    one.plan(build_seconds=600)
    with (
        one.device().session(who="a test") as session,
        pytest.raises(WorkerError, match=r"longer than its limit of 2 s and was ended"),
    ):
        session.run(make_job(session, tmp_path, limit_seconds=2))
    wait_for(lambda: processes_of(one) == [])


def test_a_cancelled_job_is_ended_with_all_it_started(board: Start, tmp_path: Path) -> None:
    one = board()
    one.plan(build_seconds=600)
    with one.device().session(who="a test") as session:
        job = make_job(session, tmp_path)

        def tell(message: str, share: float | None) -> None:
            session.cancel(job.key)

        with pytest.raises(WorkerError, match="the job was cancelled"):
            session.run(job, tell)
    wait_for(lambda: processes_of(one) == [])


def test_an_object_that_rotted_on_the_board_is_found_and_pushed_again(board: Start, tmp_path: Path) -> None:
    one = board()
    with one.device().session(who="a test") as session:
        job = make_job(session, tmp_path)
        graph = session.push(tmp_path / "graph" / "model.onnx")
        (one.agent_folder / "objects" / graph).write_text("A graph")

        with pytest.raises(WorkerError, match=r"copy of 'model\.onnx' is damaged or gone; push it again"):
            session.run(job)
        session.push(tmp_path / "graph")
        assert session.run(job).attempts == 2


def test_images_that_are_none_are_refused_by_the_board(board: Start, tmp_path: Path) -> None:
    with board().device().session(who="a test") as session:
        job = make_job(session, tmp_path)

        with pytest.raises(InputError, match=r"a folder of \.npy files"):
            session.run(job.replace(images=job.engines["engine"].source))


# Locks.


def test_two_clients_do_not_measure_at_once(board: Start) -> None:
    device = board().device()
    with (
        device.session(who="the first"),
        pytest.raises(DeviceBusyError, match="device 'shelf-1': busy: 'the first' holds it since"),
    ):
        device.session(who="the second").__enter__()
    with device.session(who="the second"):
        pass


def test_a_client_may_wait_for_the_board(board: Start) -> None:
    from threading import Thread

    device = board().device()
    order: list[str] = []

    def second() -> None:
        with device.session(who="the second", wait_seconds=60):
            order.append("second")

    with device.session(who="the first") as session:
        thread = Thread(target=second)
        thread.start()
        time.sleep(1)
        session.push(Path(__file__))
        order.append("first")
    thread.join(60)

    assert order == ["first", "second"]


def test_boards_of_one_machine_measure_in_turn(board: Start, tmp_path: Path) -> None:
    from threading import Thread

    boards = [board(f"shelf-{index}") for index in (1, 2, 3)]
    spans: list[tuple[float, float]] = []

    def measure(one: SshBoard) -> None:
        with one.device().session(who="a test") as session:
            result = session.run(make_job(session, tmp_path / one.name))
            assert result.comparison is not None
            begin = result.comparison.started_at.timestamp()
            spans.append((begin, begin + result.comparison.seconds))

    threads = [Thread(target=measure, args=(one,)) for one in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    spans.sort()
    assert len(spans) == 3
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


# Who is there.


def test_a_board_with_another_host_key_is_refused_at_once(board: Start) -> None:
    one = board()
    one.trust("other")
    began = time.monotonic()

    with pytest.raises(DeviceRefusedError, match=r"not the one that was enrolled.*ssh-keygen -R vitrim-shelf-1 -f"):
        one.device(patience_seconds=600).probe()
    assert time.monotonic() - began < 300  # nothing is tried again


def test_a_board_that_is_not_enrolled_is_refused_with_the_remedy(board: Start) -> None:
    one = board()
    one.known_hosts.unlink()

    with pytest.raises(DeviceRefusedError, match="run `vitrim devices enrol shelf-1`"):
        one.device().probe()


def test_a_key_that_the_board_does_not_take_is_refused(board: Start, keys: Path) -> None:
    with pytest.raises(DeviceRefusedError, match=r"takes no key of ours for user .*authorized_keys"):
        board().device(identity=keys / "other").probe()


def test_a_board_that_is_switched_off_is_lost(board: Start) -> None:
    one = board()
    one.stop()

    with pytest.raises(DeviceLostError, match=r"the link to 127\.0\.0\.1:.* is lost: .*refused"):
        one.device(patience_seconds=0).probe()


def test_connecting_is_tried_again(proxied: tuple[SshBoard, Proxy]) -> None:
    from threading import Timer

    board, proxy = proxied
    proxy.refuse = True
    timer = Timer(2, lambda: setattr(proxy, "refuse", False))
    timer.start()
    assert board.device(port=proxy.port).probe()["facts"]
    timer.join()

    assert proxy.connections >= 2


def test_a_board_of_another_target_is_refused(board: Start) -> None:
    with pytest.raises(DeviceRefusedError, match="it is no Jetson, its target jetson-orin-nano is one; set `target`"):
        board().device(target="jetson-orin-nano").session(who="a test").__enter__()


def test_a_board_without_that_python_is_refused(board: Start) -> None:
    with pytest.raises(DeviceRefusedError, match=r"has no 'python-of-nowhere'; install Python 3\.10"):
        board().device(python="python-of-nowhere").probe()


def test_words_of_a_spec_are_never_read_by_a_shell(board: Start, tmp_path: Path) -> None:
    one = board()
    folder = tmp_path / "a folder; touch oops $(touch oops) 'quoted' \"twice\""

    assert one.device(folder=str(folder)).probe()["disk"]["free_bytes"] > 0
    assert (folder / "objects").is_dir()
    assert not list(tmp_path.rglob("oops"))


def test_what_a_login_shell_prints_does_no_harm(board: Start, tmp_path: Path) -> None:
    command = "echo welcome to the shelf; printf 'no newline'; eval \"$SSH_ORIGINAL_COMMAND\"; exit $?"
    one = board(noise=command)
    with one.device().session(who="a test") as session:
        assert session.run(make_job(session, tmp_path)).attempts == 1


def test_the_scripted_runtime_is_in_no_catalog() -> None:
    from targets.runtimes.catalog import CATALOG

    assert inspect.getfile(scripted_runtime) not in CATALOG.values()
    assert "scripted" not in CATALOG
