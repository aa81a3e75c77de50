"""Which OpenVINO devices there are, and why one is missing: on this machine, and on ones laid out as files."""

from pathlib import Path
from typing import Any

import pytest
from tiny_graphs import save_fp32

from targets.errors import WorkerError
from targets.facts import installed_version
from targets.runtimes.intel import devices
from targets.runtimes.intel.devices import INTEL, Listed, device_missing, device_obstacle, list_devices, why_missing
from targets.runtimes.intel.options import DEVICES
from targets.worker import Worker

NVIDIA = "0x10de"
needs_openvino = pytest.mark.skipif(installed_version("openvino") is None, reason="openvino is not installed")


def add(root: Path, folder: str, name: str, kind: str, vendor: str) -> None:
    """Lay out a device file and what sysfs tells of it."""
    (root / "dev" / folder).mkdir(parents=True, exist_ok=True)
    (root / "dev" / folder / name).touch()
    device = root / "sys/class" / kind / name / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")


def look(device: str, root: Path, *, allowed: bool = True, libraries: tuple[str, ...] = ()) -> Any:
    return why_missing(
        device,
        root=root,
        may_use=lambda path: allowed,
        library=lambda name: name if name in libraries else None,
        system="linux",
    )


@needs_openvino
def test_openvino_lists_a_cpu_with_its_name_in_a_process_of_its_own() -> None:
    found = list_devices()

    assert found.has("CPU")
    assert found.names["CPU"]
    assert found.why_not == ""


def test_an_openvino_that_cannot_be_asked_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_LIST", "raise RuntimeError('no such driver')")
    list_devices.cache_clear()

    found = list_devices()
    list_devices.cache_clear()

    assert found.why_not == "RuntimeError: no such driver"
    reason = device_obstacle("openvino_gpu", listed=lambda: found)
    assert str(reason).startswith("openvino cannot list its devices (RuntimeError: no such driver)")


@needs_openvino
@pytest.mark.parametrize("runtime", ["openvino_gpu", "openvino_npu"])
def test_a_device_that_is_not_here_is_refused_in_one_line(runtime: str, tmp_path: Path) -> None:
    device = DEVICES[runtime]
    if list_devices().has(device):
        pytest.skip(f"this machine has an OpenVINO {device}")
    (tmp_path / "engine").mkdir()

    with Worker(threads=1) as worker, pytest.raises(WorkerError) as caught:
        worker.build(
            save_fp32(tmp_path / "graph.onnx"), tmp_path / "engine", runtime=runtime, precision="fp16", batch=1
        )

    said = str(caught.value)
    assert f"runtime {runtime!r} cannot be used here: openvino lists no {device}, only CPU: " in said
    assert "\n" not in said
    assert any(word in said for word in ("install", "driver", "usermod"))


def test_several_gpus_are_a_gpu() -> None:
    listed = Listed({"CPU": "a", "GPU.0": "b", "GPU.1": "c"})

    assert listed.has("GPU")
    assert not listed.has("NPU")
    assert device_obstacle("openvino_gpu", listed=lambda: listed) is None


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "tensorrt"])
def test_other_runtimes_need_no_device_and_nothing_is_asked(runtime: str) -> None:
    def fail() -> Listed:
        raise AssertionError("openvino was asked")

    assert device_missing(runtime, listed=fail) is None


def test_without_a_device_file_the_kernel_or_the_container_is_to_blame(tmp_path: Path) -> None:
    gpu, npu = look("GPU", tmp_path), look("NPU", tmp_path)

    assert (gpu.why, npu.why) == ("there is no /dev/dri", "there is no /dev/accel")
    assert "--device /dev/dri" in gpu.remedy
    assert "intel_vpu" in npu.remedy
    assert not gpu.seen
    assert not npu.seen


def test_a_card_of_another_vendor_is_no_intel_gpu(tmp_path: Path) -> None:
    add(tmp_path, "dri", "renderD128", "drm", NVIDIA)

    assert look("GPU", tmp_path).why == "no /dev/dri/renderD* is Intel's"


@pytest.mark.parametrize(
    ("device", "folder", "name", "kind"), [("GPU", "dri", "renderD129", "drm"), ("NPU", "accel", "accel0", "accel")]
)
def test_a_device_file_without_permission_names_file_and_group(
    tmp_path: Path, device: str, folder: str, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, folder, name, kind, INTEL)
    monkeypatch.setattr(Path, "group", lambda self: "render")

    found = look(device, tmp_path, allowed=False)

    assert found.why == f"this user may not read and write /dev/{folder}/{name}"
    assert found.remedy.startswith("sudo usermod -a -G render $USER, then log in again")
    assert found.seen


def test_a_gpu_without_driver_names_the_packages(tmp_path: Path) -> None:
    add(tmp_path, "dri", "renderD128", "drm", NVIDIA)
    add(tmp_path, "dri", "renderD129", "drm", INTEL)

    no_loader = look("GPU", tmp_path)
    no_driver = look("GPU", tmp_path, libraries=("OpenCL",))
    vendors = tmp_path / "etc/OpenCL/vendors"
    vendors.mkdir(parents=True)
    (vendors / "intel.icd").write_text("libigdrcl.so\n")
    too_old = look("GPU", tmp_path, libraries=("OpenCL",))

    assert [one.why for one in (no_loader, no_driver, too_old)] == [
        "libOpenCL.so.1 is not installed",
        "no OpenCL driver of Intel is installed",
        "Intel's OpenCL driver does not know it",
    ]
    assert all("intel-opencl-icd" in one.remedy and one.seen for one in (no_loader, no_driver, too_old))


def test_an_npu_without_driver_names_what_to_install(tmp_path: Path) -> None:
    add(tmp_path, "accel", "accel0", "accel", INTEL)

    found = [look("NPU", tmp_path, libraries=one) for one in ((), ("ze_loader",), ("ze_loader", "ze_intel_vpu"))]

    assert "libze_loader.so.1" in found[0].why
    assert "libze_intel_npu.so.1" in found[1].why
    assert "linux-npu-driver" in found[1].remedy
    assert found[2].why == "Intel's NPU driver does not know it"


def test_an_accelerator_of_another_vendor_is_no_npu(tmp_path: Path) -> None:
    add(tmp_path, "accel", "accel0", "accel", "0x1da3")

    assert look("NPU", tmp_path).why == "no /dev/accel/accel* is Intel's"


def test_the_gpu_of_a_windows_host_is_seen_in_wsl(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dxg").touch()

    assert look("GPU", tmp_path).why == "libOpenCL.so.1 is not installed"


def test_elsewhere_than_on_linux_the_driver_is_named(tmp_path: Path) -> None:
    assert "driver" in why_missing("GPU", root=tmp_path, system="win32").remedy
