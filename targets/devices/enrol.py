"""Enrol a board: look at the key that it shows, let somebody compare it, and write it into the project's known_hosts.

From then on only a board with this key is spoken to, whatever its address is.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from targets.atomic import write_atomic
from targets.devices.link import alias, changed_key
from targets.devices.spec import SshSpec
from targets.errors import DeviceLostError, DeviceRefusedError, InputError

PREFERRED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "ssh-rsa")
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


@dataclass(frozen=True)
class HostKey:
    """A key that a server shows."""

    kind: str
    key: str
    fingerprint: str

    def line(self, name: str) -> str:
        """What stands in known_hosts."""
        return f"{alias(name)} {self.kind} {self.key}"


def shown_keys(spec: SshSpec) -> list[HostKey]:
    """The keys that a board shows now, the preferred one first; raises DeviceLostError where none answers."""
    words = ["ssh-keyscan", "-T", str(spec.connect_seconds), "-p", str(spec.port), "--", spec.host]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10 * spec.connect_seconds, check=False)
    except FileNotFoundError as error:
        raise DeviceRefusedError("the OpenSSH client is not installed here: there is no `ssh-keyscan`") from error
    except subprocess.TimeoutExpired as error:
        raise DeviceLostError(f"{spec.host}:{spec.port} did not answer in time") from error
    found = []
    for line in done.stdout.splitlines():
        parts = line.split()
        if len(parts) == 3 and not line.startswith("#"):
            found.append(HostKey(parts[1], parts[2], fingerprint_of(f"{parts[1]} {parts[2]}")))
    if not found:
        raise DeviceLostError(
            f"{spec.host}:{spec.port} shows no host key; is it on, and does an ssh server listen there?"
        )
    return sorted(found, key=lambda one: PREFERRED.index(one.kind) if one.kind in PREFERRED else len(PREFERRED))


def enrolled_key(name: str, spec: SshSpec) -> str | None:
    """Type and key of a device that is enrolled; None where it is not."""
    if not spec.known_hosts.is_file():
        return None
    for line in spec.known_hosts.read_text().splitlines():
        parts = line.split()
        if len(parts) >= 3 and parts[0] == alias(name):
            return f"{parts[1]} {parts[2]}"
    return None


def fingerprint_of(key: str) -> str:
    """SHA256:... of a public key, as `ssh-keygen -lf` prints it."""
    with tempfile.TemporaryDirectory(prefix="vitrim-key-") as folder:
        path = Path(folder, "key.pub")
        path.write_text(f"{key}\n")
        done = subprocess.run(["ssh-keygen", "-l", "-f", str(path)], capture_output=True, text=True, check=False)
    found = FINGERPRINT.search(done.stdout)
    if found is None:
        raise DeviceRefusedError(f"what the server shows is no key that ssh-keygen reads: {done.stderr.strip()!r}")
    return found[0]


def choose_key(name: str, spec: SshSpec, keys: list[HostKey], *, fingerprint: str | None) -> tuple[HostKey, bool]:
    """The key to enrol, and whether it is enrolled already.

    fingerprint: of the board, read on the board. Raises DeviceRefusedError where another key is enrolled, or shown.
    """
    if fingerprint is not None and not FINGERPRINT.fullmatch(fingerprint):
        raise InputError(f"a fingerprint is SHA256: and 43 letters, as `ssh-keygen -lf` prints it, got {fingerprint!r}")
    known = enrolled_key(name, spec)
    if known is not None:
        same = [one for one in keys if f"{one.kind} {one.key}" == known]
        if not same or (fingerprint is not None and same[0].fingerprint != fingerprint):
            raise changed_key(name, spec)
        return same[0], True
    if fingerprint is None:
        return keys[0], False
    matching = [one for one in keys if one.fingerprint == fingerprint]
    if not matching:
        shown = ", ".join(f"{one.fingerprint} ({one.kind})" for one in keys)
        raise DeviceRefusedError(
            f"{spec.host}:{spec.port} has not the fingerprint {fingerprint}, it shows {shown}; this is another "
            "machine, or somebody is in between"
        )
    return matching[0], False


def write_key(name: str, spec: SshSpec, key: HostKey) -> None:
    """Add a key to the project's known_hosts."""
    path = spec.known_hosts
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.is_file() else ""
    gap = "" if before in ("",) or before.endswith("\n") else "\n"
    write_atomic(path, f"{before}{gap}{key.line(name)}\n".encode())
