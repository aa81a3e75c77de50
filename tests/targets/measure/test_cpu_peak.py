"""The bound of what a processor can compute: never below what one really reaches, from what its kernel tells."""

from pathlib import Path
from typing import Any

import pytest

from targets.measure.cpu_peak import FASTEST_MHZ, cpu_peaks, highest_mhz


def machine(folder: Path, *, driver: str = "", mhz: int = 0, features: str = "") -> Path:
    cpufreq = folder / "sys/devices/system/cpu/cpu0/cpufreq"
    cpufreq.mkdir(parents=True)
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text(f"processor : 0\nFeatures : {features}\n" if features else "processor : 0\n")
    if driver:
        (cpufreq / "scaling_driver").write_text(driver)
        (cpufreq / "cpuinfo_max_freq").write_text(str(mhz * 1000))
    return folder


def facts(*sets: str, architecture: str = "x86_64", cores: int = 1) -> dict[str, Any]:
    return {"architecture": architecture, "instruction_sets": list(sets), "cores": cores}


@pytest.mark.parametrize(
    ("sets", "mhz", "cores", "precision", "known"),
    [
        # Vendors' figures of whole processors, which nothing of their kind exceeds: 10^12 operations per second.
        (("avx2",), 4900, 8, "fp32", 1.25),  # 8 cores, 2 x 256 bits
        (("avx2", "avx512f", "avx512_vnni"), 3700, 28, "fp32", 6.6),  # Xeon with two units of 512 bits
        (("avx2", "avx512f", "avx512_vnni"), 3700, 28, "int8", 26.5),
        (("avx2", "avx512f", "amx_int8", "amx_bf16"), 3800, 56, "int8", 435.0),
        (("avx2", "avx512f", "amx_int8", "amx_bf16"), 3800, 56, "bf16", 217.0),
    ],
)
def test_the_bound_is_not_below_the_vendor_s_figure(
    tmp_path: Path, sets: tuple[str, ...], mhz: int, cores: int, precision: str, known: float
) -> None:
    root = machine(tmp_path, driver="intel_pstate", mhz=mhz)

    assert known * 1e12 <= cpu_peaks(facts(*sets, cores=cores), root=root)[precision] <= 2 * known * 1e12


def test_four_cores_of_a_raspberry_pi_are_below_the_bound(tmp_path: Path) -> None:
    root = machine(tmp_path, driver="cpufreq-dt", mhz=2400, features="fp asimd asimdhp asimddp")
    found = cpu_peaks(facts("asimdhp", "asimddp", architecture="aarch64", cores=4), root=root)

    assert found["fp32"] >= 0.15e12
    assert found["fp16"] >= 0.31e12
    assert found["int8"] >= 0.61e12
    assert "bf16" not in found


def test_threads_bound_it_more_closely_than_cores(tmp_path: Path) -> None:
    root = machine(tmp_path, driver="intel_pstate", mhz=3000)

    assert cpu_peaks(facts("avx2", cores=8), 2, root=root)["fp32"] == 2 * 3e9 * 32
    assert cpu_peaks(facts("avx2", cores=8), root=root)["fp32"] == 8 * 3e9 * 32


@pytest.mark.parametrize("driver", ["", "acpi-cpufreq"])
def test_a_clock_that_is_not_told_with_its_boost_is_the_highest_that_is_sold(tmp_path: Path, driver: str) -> None:
    assert highest_mhz("x86_64", machine(tmp_path, driver=driver, mhz=2000)) == FASTEST_MHZ["x86_64"]


def test_the_fastest_core_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, driver="intel_pstate", mhz=2000)
    other = root / "sys/devices/system/cpu/cpu1/cpufreq"
    other.mkdir(parents=True)
    (other / "scaling_driver").write_text("intel_pstate")
    (other / "cpuinfo_max_freq").write_text("5000000")

    assert highest_mhz("x86_64", root) == 5000


def test_a_processor_of_another_kind_has_no_bound(tmp_path: Path) -> None:
    root = machine(tmp_path, features="fp asimd sme")

    assert cpu_peaks(facts("asimddp", architecture="aarch64"), root=root) == {}
    assert cpu_peaks(facts(architecture="riscv64"), root=root) == {}
