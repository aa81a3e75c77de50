"""Reading a Jetson from files of one."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from targets.jetson import JETPACKS, jetpack_of, read_jetson, read_jetson_now

RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
)


def machine(root: Path, *, release: str = RELEASE, part: str = "p3767-0005") -> Path:
    files = {
        "proc/device-tree/compatible": f"nvidia,p3768-0000+{part}-super\0nvidia,{part}\0nvidia,tegra234\0",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "etc/nv_tegra_release": release,
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def nvpmodel(words: Sequence[str]) -> str:
    return "NV Power Mode: MAXN_SUPER\n2\n"


def test_module_jetpack_power_mode_and_cuda_are_read(tmp_path: Path) -> None:
    found = read_jetson(machine(tmp_path), nvpmodel)

    assert found is not None
    assert found.model.startswith("NVIDIA Jetson Orin Nano")
    assert "nvidia,p3767-0005" in found.compatible
    assert (found.l4t, found.jetpack, found.cuda) == ("36.4.3", "6.2", "12.6")
    assert found.power_mode == "MAXN_SUPER"


def test_a_machine_that_is_no_jetson_is_none(tmp_path: Path) -> None:
    assert read_jetson(tmp_path, nvpmodel) is None


def test_what_a_jetson_does_not_tell_is_none(tmp_path: Path) -> None:
    found = read_jetson(machine(tmp_path, release="# R36, of somebody's own"), lambda words: None)

    assert found is not None
    assert (found.l4t, found.jetpack, found.power_mode) == (None, None, None)


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        *JETPACKS,
        ("35.6.4", "5.1"),
        ("36.4.7", "6.2.1"),
        ("36.4.0", "6.1"),
        ("39.2.1", "7.2"),
        ("36.2", None),
        ("40.1", None),
        ("28.2", None),
    ],
)
def test_jetpack_follows_from_l4t(l4t: str, jetpack: str | None) -> None:
    assert jetpack_of(l4t) == jetpack


def busy(root: Path) -> Path:
    """A board whose GPU floats, is capped by heat, and is used by process 41."""
    gpu = "sys/class/devfreq/17000000.gpu"
    files = {
        f"{gpu}/min_freq": "306000000",
        f"{gpu}/cur_freq": "612000000",
        f"{gpu}/max_freq": "1020000000",
        "sys/class/devfreq/15340000.vic/min_freq": "1",
        "sys/class/hwmon/hwmon1/oc1_event_cnt": "2",
        "sys/class/hwmon/hwmon1/oc3_event_cnt": "1",
        "sys/class/thermal/cooling_device0/type": "pwm-fan",
        "sys/class/thermal/cooling_device0/cur_state": "3",
        "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert",
        "sys/class/thermal/cooling_device1/cur_state": "1",
        "sys/class/thermal/cooling_device2/type": "cpu-throttle-alert",
        "sys/class/thermal/cooling_device2/cur_state": "0",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    for pid, opened in ((41, "/dev/nvhost-gpu"), (42, "/dev/null")):
        (root / f"proc/{pid}/fd").mkdir(parents=True)
        (root / f"proc/{pid}/fd/5").symlink_to(opened)
    return root


def test_clocks_limits_and_users_of_the_gpu_are_read(tmp_path: Path) -> None:
    found = read_jetson_now(busy(tmp_path))

    assert found.gpu_mhz == (306, 612, 1020)
    assert found.overcurrents == 3
    assert found.capped_by == ("gpu-throttle-alert",), "a fan that runs caps nothing"
    assert (found.gpu_users, found.hidden) == ((41,), 0)


def test_what_a_board_does_not_tell_now_is_none(tmp_path: Path) -> None:
    found = read_jetson_now(tmp_path)

    assert (found.gpu_mhz, found.overcurrents, found.capped_by) == (None, None, None)
    assert (found.gpu_users, found.hidden) == ((), 0)
