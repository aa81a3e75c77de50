"""Board: the device of every kind. Kinds differ in their link, and in what the agent is started with."""

import getpass
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from targets.devices.channel import Channel, result_of
from targets.devices.device import Session
from targets.devices.link import Link
from targets.devices.session import DeviceSession, install, patiently
from targets.devices.spec import DeviceSpec
from targets.errors import DeviceLostError, DeviceRefusedError, VitrimError


class Board:
    """One board; see `targets.devices.device.Device`."""

    def __init__(
        self,
        name: str,
        spec: DeviceSpec,
        make_link: Callable[[], Link],
        runtimes: Mapping[str, str],
        *,
        revise: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: state,
    ) -> None:
        """revise: what a fake board says of itself in place of the truth."""
        self.name, self.spec = name, spec
        self._make_link, self._runtimes, self._revise = make_link, dict(runtimes), revise

    def probe(self) -> dict[str, Any]:
        """Look at it; holds nothing."""
        link = self._make_link()
        try:
            found = patiently(lambda: self._look(link), seconds=self.spec.patience_seconds)
        except (DeviceLostError, DeviceRefusedError) as error:
            raise type(error)(f"device {self.name!r}: {error}") from error
        finally:
            link.close()
        return self._revise(found)

    def session(
        self, *, who: str = "", wait_seconds: float = 0, folder: Path | None = None
    ) -> AbstractContextManager[Session]:
        """Hold it."""
        lock = self.spec.measuring_lock
        return DeviceSession(
            self.name,
            self.spec,
            self._make_link(),
            who=who or f"{getpass.getuser()}@{socket.gethostname()}",
            wait_seconds=wait_seconds,
            folder=folder,
            options=[
                *(f"--runtime={name}={file}" for name, file in self._runtimes.items()),
                *([f"--measuring-lock={lock}"] if lock else []),
            ],
            check=lambda state: check_board(self.spec, state),
            revise=self._revise,
        )

    def _look(self, link: Link) -> dict[str, Any]:
        agent = install(link, seconds=self.spec.answer_seconds)
        channel = Channel(link, [link.python, agent, "probe", link.folder])
        try:
            return dict(result_of(channel.line(seconds=self.spec.answer_seconds)))
        finally:
            channel.close()


def check_board(spec: DeviceSpec, state: dict[str, Any]) -> None:
    """Raise DeviceRefusedError for a board that cannot do its work, or is not of its target."""
    obstacle = board_obstacle(spec, state)
    if obstacle is not None:
        raise DeviceRefusedError(obstacle)


def board_obstacle(spec: DeviceSpec, state: dict[str, Any]) -> str | None:
    """Why a board is not to be used, with the remedy; None where nothing is in the way."""
    from targets.athand import away
    from targets.jetson import Jetson
    from targets.profile import load_profile

    if state["numpy"] is None:
        return "its Python has no numpy; install it there: python3 -m pip install numpy"
    if spec.kind == "fake":
        return None
    try:
        profile = load_profile(spec.target)
    except VitrimError as error:
        return f"its target cannot be read: {error}"
    told = state["jetson"]
    jetson = Jetson(**{**told, "compatible": tuple(told["compatible"])}) if told else None
    if profile.board.kind == "jetson" and jetson is None:
        return f"it is no Jetson, its target {spec.target} is one; set `target` to what it is"
    obstacle = away(profile, state["facts"], jetson=jetson)
    if obstacle is not None:
        return f"it is no {spec.target}: {obstacle.replace('this machine', 'it')}; set `target` to what it is"
    return None
