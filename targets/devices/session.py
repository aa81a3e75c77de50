"""A session, our side: connect, with patience; hold the board; push, run, pull; and come back after a lost link."""

import os
import random
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from targets.agent.state import PROTOCOL
from targets.devices.archive import agent_bytes
from targets.devices.channel import Channel, error_of
from targets.devices.device import Tell
from targets.devices.environment import environment
from targets.devices.job import Health, Job, JobResult, RoleResult
from targets.devices.link import Link
from targets.devices.reference import health_of, reference_job
from targets.devices.spec import DeviceSpec
from targets.devices.transfer import Item, fetch, item_of, items_of, send
from targets.errors import DeviceBusyError, DeviceLostError, DeviceRefusedError, InputError, WorkerError

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
PING_SECONDS = 20.0
"""without a request; the board lets go of a session that is silent for much longer"""
RESERVE_BYTES = 16 * 2**20
"""that a push leaves free on the board"""
ROUNDS = 3
"""times that one file is sent again because it arrived damaged"""

T = TypeVar("T")


def patiently(attempt: Callable[[], T], *, seconds: float) -> T:
    """Try until it works or time is over: for connecting only. Pauses grow, and differ from client to client."""
    end, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            return attempt()
        except DeviceLostError:
            wait = pause * random.uniform(0.7, 1.3)
            if time.monotonic() + wait > end:
                raise
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def install(link: Link, *, seconds: float) -> str:
    """Bring the agent onto a board where it is not there; returns its path there."""
    item = item_of(agent_bytes())
    send(link, item, stall_seconds=seconds)
    return f"{link.folder}/objects/{item.digest}"


class DeviceSession:
    """A board that we hold."""

    facts: dict[str, Any]

    def __init__(
        self,
        name: str,
        spec: DeviceSpec,
        link: Link,
        *,
        who: str,
        wait_seconds: float,
        folder: Path | None,
        options: list[str],
        check: Callable[[dict[str, Any]], None],
        revise: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._name, self._spec, self._link, self._who = name, spec, link, who
        self._wait_seconds, self._given, self._options, self._check = wait_seconds, folder, options, check
        self._token = secrets.token_hex(16)
        self._channel: Channel | None = None
        self._busy = threading.RLock()
        self._asked = time.monotonic()
        self._ended = threading.Event()
        self._revise = revise

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._link.close)
            stack.callback(self._drop)
            if self._given is None:
                self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrim-device-")))
            else:
                self._folder = self._given
                self._folder.mkdir(parents=True, exist_ok=True)
            self._patiently(lambda: self._connect(self._wait_seconds))
            self._pinging = threading.Thread(target=self._ping, name=f"ping {self._name}", daemon=True)
            self._pinging.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pinging.join()
        self._stack.close()

    def push(self, path: Path, tell: Tell = lambda message, share: None) -> str:
        """Copy a file or folder onto the board."""
        digest, items = items_of(path)
        missing = set(self._ask("missing", digests=[item.digest for item in items]))
        todo = [item for item in items if item.digest in missing]
        if not todo:
            return digest
        total = sum(item.size_bytes for item in todo)
        free = int(self._ask("probe")["disk"]["free_bytes"])
        if 2 * total + RESERVE_BYTES > free:  # an object, and its copy in a folder
            raise self._named(
                DeviceRefusedError(
                    f"{total / 1e6:.0f} MB are to be copied, which need twice the space, and {free / 1e6:.0f} MB are "
                    f"free in {self._link.folder!r} there; free some, or set `folder` to another disk"
                )
            )
        done = 0
        for item in todo:

            def progress(count: int, before: int = done) -> None:
                tell(f"copying {path.name}", min(1.0, (before + count) / max(total, 1)))

            self._send(item, progress)
            done += item.size_bytes
        return digest

    def run(self, job: Job, tell: Tell = lambda message, share: None) -> JobResult:
        """Start a job, or find it, and wait for its result."""
        told = self._start_and_follow(job, tell)
        before, after = self._revise(told["before"]), self._revise(told["after"])
        roles = {}
        for role, one in told["roles"].items():
            answers = one.pop("answers")
            path = None if answers is None else str(self._fetch(answers["digest"], answers["size_bytes"]))
            roles[role] = RoleResult(**one, answers=path)
        return JobResult(
            device=self._name,
            key=job.key,
            roles=roles,
            comparison=told["comparison"],
            environment=environment(before),
            before=before,
            after=after,
            agent=self._agent.rpartition("/")[2],
            attempts=told["attempts"],
        )

    def cancel(self, key: str) -> None:
        """End a job."""
        self._ask("cancel", key=key)

    def health(self) -> Health:
        """Time the reference graph, with the first runtime of the target that the board has."""
        with tempfile.TemporaryDirectory(prefix="vitrim-health-") as folder:
            job, reference = reference_job(Path(folder), self._runtime(), self.push, nonce=secrets.token_hex(8))
            return health_of(self.run(job), reference)

    def _runtime(self) -> str:
        from targets.profile import load_profile

        own = getattr(self._spec, "runtimes", {})
        if own:
            return str(next(iter(own)))
        wanted = [one.name for one in load_profile(self._spec.target).runtimes]
        return next((one for one in wanted if one in self.facts["runtimes"]), wanted[0])

    def _start_and_follow(self, job: Job, tell: Tell) -> dict[str, Any]:
        key, after, call = job.key, 0, secrets.token_hex(8)
        state = self._ask("run", job={**job.model_dump(mode="json"), "key": key}, call=call)
        try:
            while state in ("running", ""):
                news = self._ask("follow", key=key, after=after)
                state, after = news["state"], news["after"]
                for event in news["events"]:
                    tell(event["message"], event["share"])
        except KeyboardInterrupt:
            with suppress(Exception):
                self._ask_once("cancel", key=key)
            raise
        if state in ("died", "absent"):
            said = f"; its last words: {' | '.join(news['last_words'])}" if news.get("last_words") else ""
            if news.get("restarted"):
                raise self._named(DeviceLostError("the board was started again while the job ran; try it again"))
            raise self._named(WorkerError(f"the job was killed there, perhaps for lack of memory{said}"))
        told: dict[str, Any] = self._ask("result", key=key)
        if told["state"] == "failed":
            raise self._named(error_of(told["kind"], told["message"]))
        return told

    def _send(self, item: Item, progress: Callable[[int], None]) -> None:
        rounds = 0

        def attempt() -> None:
            nonlocal rounds
            sent = 0

            def more(count: int) -> None:
                nonlocal sent
                sent += count
                progress(sent)

            try:
                send(self._link, item, stall_seconds=self._spec.answer_seconds, progress=more)
            except DeviceLostError as error:
                rounds += "not what was sent" in str(error)
                if rounds >= ROUNDS:
                    raise DeviceRefusedError(f"{error}, {rounds} times; its disk or memory may be broken") from error
                raise

        self._patiently(attempt)

    def _fetch(self, digest: str, size_bytes: int) -> Path:
        found = self._folder / f"{digest}.npy"
        if not found.is_file():
            os.replace(
                self._patiently(
                    lambda: fetch(
                        self._link,
                        self._agent,
                        digest,
                        size_bytes,
                        self._folder,
                        stall_seconds=self._spec.answer_seconds,
                    )
                ),
                found,
            )
        return found

    def _ask(self, what: str, /, **fields: Any) -> Any:
        """Ask the board; where the link is lost, connect anew and ask again: every request may be repeated."""

        def attempt() -> Any:
            with self._busy:
                if self._channel is None:
                    self._connect(LONGEST_PAUSE_SECONDS)
                return self._ask_once(what, **fields)

        try:
            return self._patiently(attempt)
        except (InputError, WorkerError) as error:
            raise self._named(error) from error

    def _ask_once(self, what: str, /, **fields: Any) -> Any:
        with self._busy:
            if self._channel is None:
                raise DeviceLostError("there is no link")
            try:
                return self._channel.ask({"do": what, **fields}, seconds=self._spec.answer_seconds)
            except DeviceLostError:
                self._drop(at_once=True)
                raise
            finally:
                self._asked = time.monotonic()

    def _connect(self, wait_seconds: float) -> None:
        """Make the link, and take the lock through it."""
        seconds = self._spec.answer_seconds
        self._agent = install(self._link, seconds=seconds)
        words = ["session", self._link.folder, f"--who={self._who}", f"--token={self._token}", f"--wait={wait_seconds}"]
        channel = Channel(self._link, [self._link.python, self._agent, *words, *self._options])
        try:
            told = channel.line(seconds=seconds + wait_seconds)
            if "busy" in told:
                raise DeviceBusyError(busy_message(told["busy"]))
            if "error" in told:
                raise error_of(told["error"]["kind"], told["error"]["message"])
            hello = told["hello"]
            if hello["protocol"] != PROTOCOL:
                raise DeviceRefusedError(f"the agent speaks {hello['protocol']!r}, we speak {PROTOCOL!r}")
            self._check(hello["state"])
        except BaseException:
            channel.close(at_once=True)
            raise
        self.facts, self._channel = hello["state"]["facts"], channel

    def _ping(self) -> None:
        """Let the board know that we are there while nothing else is asked."""
        while not self._ended.wait(1):
            if time.monotonic() - self._asked > PING_SECONDS:
                with suppress(DeviceLostError):  # the next request connects anew
                    self._ask_once("ping")
                self._asked = time.monotonic()

    def _drop(self, *, at_once: bool = False) -> None:
        with self._busy:
            if self._channel is not None:
                self._channel.close(at_once=at_once)
            self._channel = None

    def _patiently(self, attempt: Callable[[], T]) -> T:
        try:
            return patiently(attempt, seconds=self._spec.patience_seconds)
        except (DeviceLostError, DeviceBusyError, DeviceRefusedError) as error:
            raise self._named(error) from error

    def _named(self, error: Any) -> Any:
        """The same error, saying which device it is about."""
        prefix = f"device {self._name!r}: "
        return error if str(error).startswith(prefix) else type(error)(f"{prefix}{error}")


def busy_message(holder: dict[str, Any]) -> str:
    """Who holds a board."""
    who = f"{holder.get('who', 'somebody')!r} holds it since {holder.get('since', 'some time')}"
    job = f", with job {holder['job'][:12]}" if "job" in holder else ""
    return f"busy: {who}{job}; wait, or try again later"
