"""Enrolling: the key that a board shows is compared by a person, or with a fingerprint, and never changes then."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import SshBoard, free_port

from targets.devices.enrol import choose_key, enrolled_key, fingerprint_of, shown_keys, write_key
from targets.errors import DeviceLostError, DeviceRefusedError, InputError

Start = Callable[..., SshBoard]


def fingerprint(keys: Path, name: str) -> str:
    told = subprocess.run(
        ["ssh-keygen", "-lf", str(keys / f"{name}.pub")], capture_output=True, text=True, check=True
    ).stdout
    return told.split()[1]


def test_an_enrolled_board_is_spoken_to(board: Start, keys: Path) -> None:
    one = board()
    one.known_hosts.write_text("# a comment without an end")
    spec = one.spec()
    key, already = choose_key(one.name, spec, shown_keys(spec), fingerprint=fingerprint(keys, "host"))
    assert not already
    write_key(one.name, spec, key)

    assert key.fingerprint == fingerprint(keys, "host")
    assert one.known_hosts.read_text().splitlines()[0] == "# a comment without an end"
    assert one.device().probe()["facts"]
    assert choose_key(one.name, spec, shown_keys(spec), fingerprint=None) == (key, True)


def test_another_fingerprint_is_refused(board: Start, keys: Path) -> None:
    one = board()
    one.known_hosts.unlink()
    spec = one.spec()

    with pytest.raises(DeviceRefusedError, match=r"has not the fingerprint .* it shows SHA256:.*another machine"):
        choose_key(one.name, spec, shown_keys(spec), fingerprint=fingerprint(keys, "other"))
    assert enrolled_key(one.name, spec) is None


def test_a_key_that_changed_is_refused_whatever_is_said(board: Start, keys: Path) -> None:
    one = board()
    one.trust("other")
    spec = one.spec()

    for said in (None, fingerprint(keys, "host")):
        with pytest.raises(DeviceRefusedError, match=r"not the one that was enrolled.*ssh-keygen -R"):
            choose_key(one.name, spec, shown_keys(spec), fingerprint=said)


def test_what_is_no_fingerprint_is_bad_input(board: Start) -> None:
    spec = board().spec()

    with pytest.raises(InputError, match="a fingerprint is SHA256: and 43 letters"):
        choose_key("shelf-1", spec, shown_keys(spec), fingerprint="SHA256:short")


def test_a_board_that_does_not_answer_is_lost(board: Start) -> None:
    with pytest.raises(DeviceLostError, match="shows no host key; is it on"):
        shown_keys(board().spec(port=free_port()))


def test_fingerprints_are_those_of_ssh_keygen(keys: Path) -> None:
    assert fingerprint_of((keys / "client.pub").read_text().strip()) == fingerprint(keys, "client")
