"""One board on loopback, and a proxy in front of it through which the link can go wrong."""

import getpass
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets.devices import scripted_runtime
from targets.devices.link import alias
from targets.devices.open import open_device
from targets.devices.spec import SshSpec

SSHD = "/usr/sbin/sshd"
RUNTIME = "onnxruntime"
"""the name that the scripted runtime goes by on these boards"""


def make_keys(folder: Path) -> Path:
    """Throw-away keys: `client`, `host`, `other`, each with its .pub; skips the test where there is no server."""
    if shutil.which("ssh") is None or not Path(SSHD).exists():
        pytest.skip(f"no OpenSSH server here: {SSHD} (apt-get install openssh-server)")
    for name in ("client", "host", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)], check=True
        )
    return folder


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class SshBoard:
    """A server, the folder of its agent, and what a client has to know of it."""

    def __init__(self, name: str, keys: Path, folder: Path, port: int, **options: Any) -> None:
        folder.mkdir(parents=True)
        self.name, self.keys, self.folder, self.port = name, keys, folder, port
        self.known_hosts = folder / "known hosts"  # with a space
        self.agent_folder = folder / "agent"
        self.script = folder / "script.json"
        self.script.write_text("{}")
        self.noise = options.pop("noise", None)
        """a command that runs in place of every other"""
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.trust("host")

    def trust(self, key: str) -> None:
        """Enrol a host key."""
        public = (self.keys / f"{key}.pub").read_text().split()
        self.known_hosts.write_text(f"{alias(self.name)} {public[0]} {public[1]}\n")

    def plan(self, **script: Any) -> None:
        """What its runtime pretends from now on."""
        self.script.write_text(json.dumps(script))

    def start(self) -> None:
        keys = self.folder / "server"
        keys.mkdir(exist_ok=True)
        host = keys / "host"
        host.write_bytes((self.keys / "host").read_bytes())
        host.chmod(0o600)
        allowed = keys / "authorized_keys"
        allowed.write_text((self.keys / "client.pub").read_text())
        allowed.chmod(0o600)
        config = keys / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {allowed}\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"MaxStartups 100\nSetEnv {scripted_runtime.VARIABLE}={self.script} OMP_NUM_THREADS=1\n"
            + (f"ForceCommand {self.noise}\n" if self.noise else "")
        )
        Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
        with open(self.folder / "sshd.log", "ab") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError((self.folder / "sshd.log").read_text())

    def stop(self) -> None:
        """End the server, its connections, and every job of the board."""
        if self._process is not None:
            end_tree(self._process.pid)
            self._process.wait()
            self._process = None
        for one in (self.agent_folder / "jobs").glob("*/process.json"):
            with suppress(ProcessLookupError, ValueError):
                os.killpg(json.loads(one.read_text())["pid"], signal.SIGKILL)

    def drop_links(self) -> None:
        """End every connection of the server, as if its network were gone for a moment."""
        assert self._process is not None
        for child in children_of(self._process.pid):
            end_tree(child)

    def spec(self, **changes: Any) -> SshSpec:
        import sys

        told: dict[str, Any] = {
            "kind": "ssh",
            "target": "cpu",
            "host": "127.0.0.1",
            "user": getpass.getuser(),
            "port": self.port,
            "identity": self.keys / "client",
            "known_hosts": self.known_hosts,
            "folder": str(self.agent_folder),
            "python": sys.executable,
            "runtimes": {RUNTIME: inspect.getfile(scripted_runtime)},
            "measuring_lock": str(self.folder.parent / "measuring.lock"),
            "patience_seconds": 60,
        }
        return SshSpec.model_validate({**told, **self.options, **changes})

    def device(self, **changes: Any) -> Any:
        return open_device(self.name, self.spec(**changes))


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def end_tree(pid: int) -> None:
    """Kill a process and its descendants, but no job of a board: those have left the tree's session."""
    children = children_of(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in children:
        if b"\0job\0" not in _words(child):
            end_tree(child)


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def make_graph(folder: Path, text: str = "a graph") -> Path:
    """A folder with what the scripted runtime takes for a model."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text(text)
    return folder


def make_images(folder: Path, count: int = 20, side: int = 16) -> Path:
    """Grey images: the scripted runtime calls each by its brightness, in ten steps."""
    folder.mkdir(parents=True)
    for shard, start in enumerate(range(0, count, 8)):
        levels = [(index * 37) % 256 for index in range(start, min(start + 8, count))]
        pixels = np.stack([np.full((side, side, 3), level, np.uint8) for level in levels])
        np.save(folder / f"{shard:04}.npy", pixels)
    (folder / "preprocess.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3}))
    return folder


def expected_classes(count: int = 20) -> list[int]:
    return [
        min(9, int((np.float32(((index * 37) % 256) / 255 - 0.5) / np.float32(0.5) + 1) / 2 * 10))
        for index in range(count)
    ]


class Proxy(threading.Thread):
    """Passes bytes to a server and back, until it is told otherwise; one thread for each connection's direction."""

    def __init__(self, to_port: int) -> None:
        super().__init__(daemon=True)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port, self._to = int(self._server.getsockname()[1]), to_port
        self.drop_after: int | None = None
        """bytes towards the server after which a connection is cut, once"""
        self.flip_at: int | None = None
        """byte towards the server that is changed, once"""
        self.hang_after: int | None = None
        """bytes towards the server after which nothing passes any more on that connection, once"""
        self.delay_seconds = 0.0
        self.refuse = False
        self.connections = 0
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            if self.refuse:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._to))
            with self._lock:
                self._open += [client, server]
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed, hanging = 0, False
        with suppress(OSError):
            while data := source.recv(16384):
                time.sleep(self.delay_seconds)
                with self._lock:
                    if up and self.flip_at is not None and passed + len(data) > self.flip_at:
                        at = max(0, self.flip_at - passed)
                        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                        self.flip_at = None
                    if up and self.drop_after is not None and passed + len(data) > self.drop_after:
                        self.drop_after = None
                        break
                    if up and self.hang_after is not None and passed + len(data) > self.hang_after:
                        self.hang_after, hanging = None, True
                if hanging:
                    continue  # swallowed
                sink.sendall(data)
                passed += len(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def cut(self) -> None:
        """Cut every connection now."""
        with self._lock:
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        self.join(10)
