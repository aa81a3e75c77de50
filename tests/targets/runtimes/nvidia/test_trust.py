"""An engine is code: only what vitrim built, for this machine, is deserialised."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import make_engine, open_engine
from fake_cuda import FakeCudart

from targets.errors import InputError, WorkerError
from targets.runtimes import tensorrt_gpu
from targets.runtimes.engine import ENGINE_FILE, read_engine

Install = Callable[..., Any]


def test_an_engine_is_bound_to_gpu_version_and_platform(install: Install, tmp_path: Path) -> None:
    install("10.3.0")

    bound = read_engine(make_engine(tmp_path / "engine").parent)["bound_to"]

    assert bound.pop("platform")
    assert bound == {"tensorrt": "10.3.0", "compute_capability": "8.7", "gpu": "Orin"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capability": "8.9"}, "compute_capability '8.7', here '8.9'"),
        ({"gpu": "Orin Nano"}, "gpu 'Orin', here 'Orin Nano'"),
        ({"devices": 0}, r"compute_capability '8.7', here 'no GPU \(.*no CUDA-capable device"),
        ({"version": "10.7.0"}, "tensorrt '10.3.0', here '10.7.0'"),
        ({"version": "11.4.1"}, "tensorrt '10.3.0', here '11.4.1'"),
    ],
)
def test_another_gpu_or_version_is_refused_with_both_facts_before_deserialising(
    install: Install, cudart: FakeCudart, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    install("10.3.0")
    plan = make_engine(tmp_path / "engine")
    library = install(change.pop("version", "10.3.0"))
    for name, value in change.items():
        setattr(cudart, name, value)

    with pytest.raises(InputError, match=f"the engine was built for .*{words}"):
        open_engine(plan)

    assert library.plans_loaded == 0


def test_a_version_compatible_engine_runs_on_later_versions_of_its_major_number_only(
    install: Install, tmp_path: Path
) -> None:
    library = install("10.3.0")
    plan = make_engine(tmp_path / "engine", version_compatible=True)
    assert "VERSION_COMPATIBLE" in library.said.flags

    library = install("10.9.0")
    open_engine(plan)
    assert library.host_code_allowed
    install("11.4.1")

    with pytest.raises(InputError, match="tensorrt_major '10', here '11'"):
        open_engine(plan)


def test_no_host_code_is_allowed_for_an_engine_that_needs_none(install: Install, tmp_path: Path) -> None:
    library = install("10.3.0")

    open_engine(make_engine(tmp_path / "engine"))

    assert not library.host_code_allowed


def test_a_hardware_compatible_engine_runs_on_newer_gpus(install: Install, cudart: FakeCudart, tmp_path: Path) -> None:
    cudart.capability, cudart.gpu = "8.6", "RTX 3090"
    library = install("10.9.0")
    plan = make_engine(tmp_path / "engine", hardware_compatibility="ampere_plus")
    same = make_engine(tmp_path / "same", hardware_compatibility="same_compute_capability")
    assert library.said.hardware is library.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY

    cudart.gpu = "RTX 3080"
    open_engine(same)
    cudart.capability = "8.9"
    open_engine(plan)
    with pytest.raises(InputError, match=r"compute_capability '8.6', here '8.9'"):
        open_engine(same)
    cudart.capability = "7.5"
    with pytest.raises(InputError, match="ampere_or_newer 'yes', here 'no'"):
        open_engine(plan)


def test_an_older_version_says_that_it_has_no_such_level(install: Install, tmp_path: Path) -> None:
    install("10.3.0")

    with pytest.raises(InputError, match=r"tensorrt 10.3.0 has no hardware_compatibility 'same_compute_capability'"):
        make_engine(tmp_path / "engine", hardware_compatibility="same_compute_capability")


def test_a_plan_that_engine_json_does_not_list_is_never_deserialised(install: Install, tmp_path: Path) -> None:
    library = install("10.3.0")
    plan = make_engine(tmp_path / "engine")
    before = library.plans_loaded
    changed = plan.read_bytes()
    plan.write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    foreign = plan.with_name("foreign.plan")
    foreign.write_bytes(changed)

    for path in (plan, foreign):
        with pytest.raises(InputError, match="is not the one that was built"):
            open_engine(path)
    with pytest.raises(InputError, match=r"is not an .onnx file; an engine is loaded by its folder"):
        tensorrt_gpu.load(foreign, {"threads": 1})
    (plan.parent / ENGINE_FILE).unlink()
    with pytest.raises(InputError, match="is not an engine"):
        open_engine(plan)

    assert library.plans_loaded == before


def test_a_plan_that_the_library_refuses_is_told_in_its_words(install: Install, tmp_path: Path) -> None:
    library = install("10.3.0")
    plan = make_engine(tmp_path / "engine")
    library.trouble["deserialize"] = "the plan\n has another format"

    with pytest.raises(WorkerError, match=r"tensorrt cannot load 'model.plan': the plan has another format"):
        open_engine(plan)


def test_a_damaged_engine_file_is_refused(install: Install, tmp_path: Path) -> None:
    install("10.3.0")
    plan = make_engine(tmp_path / "engine")
    (plan.parent / ENGINE_FILE).write_text(json.dumps({"format": "vitrim.engine/1"}))

    with pytest.raises(InputError, match="is damaged"):
        open_engine(plan)
