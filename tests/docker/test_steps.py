"""What cannot be built here runs as a script: the steps of the CPU image, and the entry point of a Jetson."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dockerfile import parts

ROOT = Path(__file__).resolve().parents[2]
ENTRY = ROOT / "docker" / "jetson-entrypoint.sh"
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
LIGHT = {"typer", "pyyaml", "pydantic", "rich", "numpy", "filelock", "packaging"}
"""What of vitrim's dependencies the steps install here. The heavy ones (torch, timm, runtimes) are left out."""


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_make_an_environment_whose_vitrim_runs(tmp_path: Path) -> None:
    """The RUN steps and COPYs of the build stage as they stand; but `pip install` takes light dependencies only."""
    build, final = parts(ROOT / "docker" / "cpu.Dockerfile")
    opt, source = tmp_path / "opt" / "vitrim", tmp_path / "src"
    source.mkdir()
    for copy in build.all("COPY"):
        *names, _ = copy.split()
        for name in names:
            place = source / name
            copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copied(ROOT / name, place)
    (default,) = [value.partition("=")[2] for value in build.all("ARG") if value.startswith("EXTRAS=")]
    script = (
        "\n".join(build.all("RUN"))
        .replace("/opt/vitrim", str(opt))
        .replace("python -m venv", f"{sys.executable} -m venv")
    )
    installing = r'(\S+/pip install [^&"]*)"\.\[\$\{EXTRAS\}\]"'
    assert len(re.findall(installing, script)) == 1
    wanted = [
        f"'{one}'"
        for one in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if re.split(r"[<>=\[]", one)[0] in LIGHT
    ]
    assert len(wanted) == len(LIGHT)
    script = re.sub(installing, rf"\1--quiet {' '.join(wanted)} && \1--quiet --no-deps '.'", script)
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=source,
        env={**os.environ, "EXTRAS": default},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    # The final stage takes the environment and nothing of the sources.
    assert [copy.split()[:2] for copy in final.all("COPY")] == [["--from=build", "/opt/vitrim"]]
    shutil.rmtree(source)
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    environment = {"PATH": f"{opt}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "COLUMNS": "80"}
    version = subprocess.run(["vitrim", "--version"], env=environment, **run)  # type: ignore[call-overload]
    targets = subprocess.run(["vitrim", "targets", "list"], env=environment, **run)  # type: ignore[call-overload]
    unknown = subprocess.run(["vitrim", "targets", "show", "cpuu"], env=environment, **run)  # type: ignore[call-overload]

    assert version.stdout.startswith("vitrim ")
    assert "jetson-orin-nano" in targets.stdout, targets.stderr
    assert (unknown.returncode, "did you mean 'cpu'" in unknown.stderr) == (2, True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def entry(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ENTRY), *words]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def key(folder: Path, name: str) -> Path:
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@contextmanager
def serving(folder: Path, keys: Path) -> Iterator[int]:
    """The container's entry point, answering on a free port."""
    port = free_port()
    environment = {**os.environ, "PORT": str(port), "KEYS": str(keys), "STATE": str(folder / "state")}
    # Debian's sshd run by root wants this folder; a container's runs without root.
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(["sh", str(ENTRY)], env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            if entry("check", PORT=str(port)).returncode == 0:
                break
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def login(port: int, folder: Path, identity: Path, *words: str) -> subprocess.CompletedProcess[str]:
    import getpass

    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(folder / "known_hosts"),
        "IdentitiesOnly": "yes",
        "ConnectTimeout": "30",
    }
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    command = [
        "ssh",
        "-F",
        "none",
        *flags,
        "-i",
        str(identity),
        "-p",
        str(port),
        "--",
        f"{getpass.getuser()}@127.0.0.1",
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.skipif(SSHD is None, reason="no SSH server is installed (openssh-server)")
def test_a_jetsons_container_lets_in_who_has_the_key_and_nobody_else(tmp_path: Path) -> None:
    right, wrong = key(tmp_path, "right"), key(tmp_path, "wrong")
    keys = tmp_path / "authorized_keys"
    keys.write_text((tmp_path / "right.pub").read_text())
    keys.chmod(0o666)  # as a mounted file may be
    with serving(tmp_path, keys) as port:
        host = (tmp_path / "state" / "host_key.pub").read_text()
        (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")
        inside = login(port, tmp_path, right, "echo inside; command -v python3")
        outside = login(port, tmp_path, wrong, "echo inside")
    with serving(tmp_path, keys):
        again = (tmp_path / "state" / "host_key.pub").read_text()

    assert inside.returncode == 0, inside.stderr
    assert inside.stdout.startswith("inside\n/")
    assert outside.returncode == 255
    assert "Permission denied (publickey)" in outside.stderr
    assert again == host, "the host key is kept"
    assert "host key 256 SHA256:" in (tmp_path / "log").read_text()


def test_a_port_without_an_ssh_server_is_not_healthy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        done = entry("check", PORT=str(taken.getsockname()[1]))

    assert done.returncode == 1
    assert "no SSH server on port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_container_without_keys_says_how_to_mount_them(tmp_path: Path) -> None:
    done = entry("serve", KEYS=str(tmp_path / "none"), STATE=str(tmp_path / "state"))

    assert done.returncode == 2
    assert done.stderr.startswith("vitrim-device: no authorized keys at ")
    assert "mount them: -v" in done.stderr


def test_an_unknown_command_of_the_container_is_refused() -> None:
    done = entry("sevre")

    assert (done.returncode, done.stderr) == (2, "vitrim-device: unknown command 'sevre'; known: serve, check\n")
