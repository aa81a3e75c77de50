"""Link: how words reach a board and become a process there. Local ones start it; ssh ones do by the OpenSSH client."""

import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from targets.devices.spec import FakeSpec, LocalSpec, SshSpec
from targets.errors import DeviceLostError, DeviceRefusedError, VitrimError, WorkerError

FAILED = 255
"""exit code of ssh for what is wrong with the link, and not with the remote command"""


class Link(Protocol):
    """A way to start processes on a board."""

    python: str
    folder: str
    environment: Mapping[str, str]
    """of the process here"""

    def words(self, remote: Sequence[str]) -> list[str]:
        """The process here that starts these words there; its standard streams are theirs."""
        ...

    def trouble(self, code: int, said: str) -> VitrimError:
        """What it means that such a process ended with a code and left these words on standard error."""
        ...

    def close(self) -> None:
        """Leave nothing behind here."""
        ...


class LocalLink:
    """This machine."""

    def __init__(self, name: str, spec: LocalSpec | FakeSpec, environment: Mapping[str, str] | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.python = (spec.python if isinstance(spec, LocalSpec) else None) or sys.executable
        self.folder = str(Path(spec.folder or cache / "vitrim" / "devices" / name).expanduser().absolute())
        self.environment: Mapping[str, str] = {**os.environ, **(environment or {})}

    def words(self, remote: Sequence[str]) -> list[str]:
        """The words themselves."""
        return list(remote)

    def trouble(self, code: int, said: str) -> VitrimError:
        """A process that ended is gone, as a board is that was switched off."""
        return DeviceLostError(f"its agent ended with code {code}{last_words(said)}")

    def close(self) -> None:
        """Nothing to do."""


class SshLink:
    """A board behind OpenSSH: keys only, host keys from the project's own file, nothing asked of anybody.

    Connections share one while a session lasts. ssh joins the remote words with spaces for a shell there, so they are
    quoted first.
    """

    def __init__(self, name: str, spec: SshSpec) -> None:
        self.name, self.python, self.folder, self._spec = name, spec.python, spec.folder, spec
        self.environment: Mapping[str, str] = {**os.environ, "LC_ALL": "C"}  # its messages are read
        self._sockets = tempfile.mkdtemp(prefix="vitrim-ssh-", dir="/tmp")  # names of sockets are short
        if shutil.which("ssh") is None:
            raise DeviceRefusedError("the OpenSSH client is not installed here: there is no `ssh`")

    def words(self, remote: Sequence[str]) -> list[str]:
        """Run the OpenSSH client."""
        spec = self._spec
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": _quoted(spec.known_hosts),
            "GlobalKnownHostsFile": "none",
            "HostKeyAlias": alias(self.name),
            "UpdateHostKeys": "no",
            "CheckHostIP": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "ConnectTimeout": str(spec.connect_seconds),
            "ServerAliveInterval": str(spec.alive_seconds),
            "ServerAliveCountMax": str(spec.alive_count),
            "ControlMaster": "auto",
            "ControlPath": f"{self._sockets}/s",
            "ControlPersist": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "LogLevel": "ERROR",
        }
        if spec.identity is not None:
            options |= {"IdentitiesOnly": "yes", "IdentityFile": _quoted(spec.identity)}
        command = ["ssh", "-T", "-p", str(spec.port)]
        for key, value in options.items():
            command += ["-o", f"{key}={value}"]
        command += ["-l", spec.user] if spec.user else []
        return [*command, "--", spec.host, shlex.join(remote)]

    def trouble(self, code: int, said: str) -> VitrimError:
        """Read what ssh said."""
        spec, where = self._spec, f"{self._spec.host}:{self._spec.port}"
        if code == FAILED:
            if "IDENTIFICATION HAS CHANGED" in said:
                return changed_key(self.name, spec)
            if re.search(r"No \S+ host key is known|Host key verification failed", said):
                return DeviceRefusedError(
                    f"the host key of {where} is not known to the project; run `vitrim devices enrol {self.name}`"
                )
            if "Permission denied" in said or "Too many authentication failures" in said:
                return DeviceRefusedError(
                    f"{where} takes no key of ours{f' for user {spec.user}' if spec.user else ''}; put the public key "
                    f"into ~/.ssh/authorized_keys there, and name its private key as `identity`"
                )
            if re.search(r"no such identity|bad permissions|UNPROTECTED PRIVATE KEY", said, re.IGNORECASE):
                return DeviceRefusedError(f"the private key {str(spec.identity)!r} cannot be used{last_words(said)}")
            if re.search(r"Bad configuration option|no matching .* found", said):
                return DeviceRefusedError(f"ssh cannot be used like this{last_words(said)}")
            return DeviceLostError(f"the link to {where} is lost{last_words(said)}")
        if code in (126, 127):
            return DeviceRefusedError(f"{where} has no {self.python!r}; install Python 3.10 or later, or set `python`")
        return WorkerError(f"the agent on {where} ended with code {code}{last_words(said)}")

    def close(self) -> None:
        """Remove the sockets of shared connections."""
        shutil.rmtree(self._sockets, ignore_errors=True)


def alias(name: str) -> str:
    """Name of a device in a known_hosts file: its address may change, its key may not."""
    return f"vitrim-{name}"


def changed_key(name: str, spec: SshSpec) -> DeviceRefusedError:
    """The hard error for a board that shows another host key than the enrolled one."""
    return DeviceRefusedError(
        f"the host key of {spec.host}:{spec.port} is not the one that was enrolled: this may be another machine. If "
        f"the board was installed anew, compare the fingerprint on the board itself, then remove the old key with "
        f"`ssh-keygen -R {alias(name)} -f {spec.known_hosts}` and enrol again"
    )


def last_words(said: str) -> str:
    """The end of what a program wrote to standard error, for a message."""
    lines = [line.strip() for line in said.splitlines() if line.strip()][-3:]
    return f": {' | '.join(lines)}" if lines else ""


def _quoted(path: Path) -> str:
    """A path as ssh's configuration takes it: percent signs and spaces mean something there."""
    return '"' + str(path).replace("%", "%%") + '"'
