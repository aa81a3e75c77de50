"""Open a device by its spec: the only place that knows all kinds."""

import inspect
from pathlib import Path

from targets.devices.board import Board
from targets.devices.device import Device
from targets.devices.link import LocalLink, SshLink
from targets.devices.spec import DeviceSpec, FakeSpec, SshSpec


def open_device(name: str, spec: DeviceSpec) -> Device:
    """A device that can be looked at and held; nothing is connected yet."""
    if isinstance(spec, SshSpec):
        return Board(name, spec, lambda: SshLink(name, spec), dict(spec.runtimes))
    if isinstance(spec, FakeSpec):
        return _fake(name, spec)
    return Board(name, spec, lambda: LocalLink(name, spec), dict(spec.runtimes))


def _fake(name: str, spec: FakeSpec) -> Device:
    from targets.devices import scripted_runtime
    from targets.devices.fake import FakeLink, read_script
    from targets.runtimes.catalog import CATALOG

    script = read_script(spec.script)
    file = Path(inspect.getfile(scripted_runtime))
    runtimes = dict.fromkeys(CATALOG, str(file))
    return Board(
        name, spec, lambda: FakeLink(name, spec, script), runtimes, revise=lambda state: {**state, **script.state}
    )
