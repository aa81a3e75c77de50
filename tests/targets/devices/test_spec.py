"""The devices file: what it says, and what is refused with which words."""

from pathlib import Path

import pytest

from targets.devices.spec import FakeSpec, LocalSpec, SshSpec, default_devices_file, get_device, load_devices
from targets.errors import InputError, RecipeError, UnknownNameError

SHELF = "shelf-1: {kind: ssh, target: jetson-orin-nano, host: 10.0.0.7, user: vitrim, identity: keys/id}"


def write(folder: Path, *lines: str, format: str = "vitrim.devices/1") -> Path:
    path = folder / "devices.yaml"
    path.write_text("\n".join([f"format: {format}", "devices:", *(f"  {line}" for line in lines)]) + "\n")
    return path


def test_every_kind_is_read_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "delays.yaml").write_text("{}")
    found = load_devices(
        write(
            tmp_path, SHELF, "here: {kind: local, target: cpu}", "sham: {kind: fake, target: cpu, script: delays.yaml}"
        )
    )
    shelf, here, sham = found.values()

    assert isinstance(shelf, SshSpec)
    assert (shelf.port, shelf.python, shelf.folder) == (22, "python3", ".vitrim")
    assert shelf.identity == tmp_path / "keys/id"
    assert shelf.known_hosts == tmp_path / "known_hosts"
    assert isinstance(here, LocalSpec)
    assert isinstance(sham, FakeSpec)
    assert sham.script == tmp_path / "delays.yaml"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a: {kind: ssh, target: cpu, host: -oProxyCommand=touch}", r"devices\.a\.host.*must be a text that matches"),
        ("a: {kind: ssh, target: cpu, host: 'a b'}", r"devices\.a\.host"),
        ("a: {kind: ssh, target: cpu, host: h, user: -l}", r"devices\.a\.user"),
        ("a: {kind: ssh, target: cpu, host: h, python: -c}", r"devices\.a\.python"),
        ("a: {kind: ssh, target: cpu, host: h, folder: \"x\\ny\"}", r"devices\.a\.folder"),
        ("a: {kind: ssh, target: cpu, host: h, port: 70000}", r"devices\.a\.port.*at most 65535"),
        ("a: {kind: ssh, target: cpu}", r"devices\.a\.host.*is missing"),
        ("a: {kind: local, target: cpu, hots: h}", r"devices\.a\.hots.*unknown key"),
        ("a: {kind: telnet, target: cpu}", r"kind must be 'ssh', 'local', 'fake', got 'telnet'"),
        ("-a: {kind: local, target: cpu}", r"a device is called by letters"),
        ("a: 3", r"kind must be"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_where_it_stands(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_devices(write(tmp_path, line))


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"must be 'vitrim\.devices/1', got 'vitrim\.devices/9'"):
        load_devices(write(tmp_path, SHELF, format="vitrim.devices/9"))


def test_a_file_without_devices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text("format: vitrim.devices/1\n")

    with pytest.raises(RecipeError, match="must be devices by name"):
        load_devices(path)


def test_an_unknown_device_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown device 'shelf-2'; did you mean 'shelf-1'"):
        get_device("shelf-2", write(tmp_path, SHELF))


def test_the_file_is_found_by_the_variable_then_beside_then_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VITRIM_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)
    assert default_devices_file() == tmp_path / "home/.config/vitrim/devices.yaml"
    with pytest.raises(InputError, match=r"no devices file at .*write one"):
        load_devices()

    write(tmp_path, SHELF)
    assert default_devices_file() == Path("devices.yaml")
    assert "shelf-1" in load_devices()

    monkeypatch.setenv("VITRIM_DEVICES", "/elsewhere.yaml")
    assert default_devices_file() == Path("/elsewhere.yaml")
