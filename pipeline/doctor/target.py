"""What a target needs of this machine: processor, runtimes, GPU and its driver, Jetson and its JetPack."""

from typing import Any

from pipeline.doctor.finding import Finding, fix, good, in_range, warning
from pipeline.doctor.jetson import examine_jetson
from pipeline.doctor.sources import Sources
from targets.agent.cores import spans
from targets.nvidia import GpuNow, Reading, is_called
from targets.profile import TargetProfile, usable_runtimes
from targets.runtimes.intel.devices import Missing, device_missing
from targets.runtimes.intel.options import DEVICES
from targets.runtimes.nvidia.options import PROVIDERS

_EXTRAS = {
    "onnxruntime": "cpu",
    "onnxruntime_cuda": "cuda",
    "onnxruntime_tensorrt": "cuda",
    **dict.fromkeys(DEVICES, "openvino"),
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
}

MEMORY_SHARE = 0.9
"""of the memory on the data sheet that a card has to show"""


def examine_target(profile: TargetProfile, sources: Sources) -> list[Finding]:
    """Name every mismatch between a target and this machine."""
    if profile.status == "unsupported":
        return [fix(profile.name, "not supported", profile.reason or "")]
    facts = sources.probe()
    found = [*_processor(profile, facts), *_cores(profile, sources), *_runtimes(profile, facts, sources)]
    if profile.board.kind == "gpu":
        found += _discrete(profile, sources.gpus(), sources)
    if profile.board.kind == "jetson":
        found += examine_jetson(profile, facts, sources)
    return found


def _processor(profile: TargetProfile, facts: dict[str, Any]) -> list[Finding]:
    board, found = profile.board, []
    if board.architecture != "any":
        here = facts["architecture"]
        if here == board.architecture:
            found.append(good("architecture", here))
        else:
            text = f"{here}, the target is {board.architecture}"
            found.append(fix("architecture", text, "run vitrim on such a machine"))
    lacking = [one for one in board.instruction_sets if one not in facts["instruction_sets"]]
    if lacking:
        text = f"{facts['cpu_model']} lacks {', '.join(lacking)}"
        remedy = "choose another target, or switch them on in the firmware or hypervisor"
        found.append(fix("instruction sets", text, remedy))
    elif board.instruction_sets:
        found.append(good("instruction sets", ", ".join(board.instruction_sets)))
    return found


def _cores(profile: TargetProfile, sources: Sources) -> list[Finding]:
    """Whether this process may use the processors that engines are pinned to."""
    if not profile.cores:
        return []
    allowed, wanted = sources.allowed(), set(profile.cores)
    text = f"engines run on {spans(wanted)}"
    if wanted <= allowed:
        return [good("cores", text)]
    here = spans(allowed) if allowed else "none, as far as the system tells"
    remedy = "change `cores` of the target, or what the container or taskset allows"
    return [fix("cores", f"{text}; this process may use {here}", remedy)]


def _runtimes(profile: TargetProfile, facts: dict[str, Any], sources: Sources) -> list[Finding]:
    """One line for each runtime; what none of them can do stands in the way."""
    missing: dict[str, Missing] = {}

    def device(runtime: str) -> str | None:
        found = device_missing(runtime, listed=sources.openvino, explain=sources.no_device)
        if found is None:
            return None
        missing[runtime] = found
        return found.why

    capability = profile.board.gpu.compute_capability.value if profile.board.gpu else None
    usable = [
        (choice, reason or _provider_obstacle(choice.name, sources) or sources.tensorrt(choice.name, capability))
        for choice, reason in usable_runtimes(profile, facts=facts, installed=sources.runtime, device=device)
    ]
    any_works = any(reason is None for _, reason in usable)
    found = []
    for choice, reason in usable:
        what = f"{profile.name}: {choice.name}"
        if reason is None:
            version = sources.runtime(choice.name)
            found.append(good(what, f"{version} usable in {', '.join(choice.precisions)}"))
            continue
        remedy = missing[choice.name].remedy if choice.name in missing else ""
        if "not installed" in reason or "is installed" in reason:
            remedy = f'pip install "vitrim[{_EXTRAS.get(choice.name, choice.name)}]"'
        found.append((warning if any_works else fix)(what, reason, remedy))
    return found


def _provider_obstacle(runtime: str, sources: Sources) -> str | None:
    """Why ONNX Runtime's provider for GPUs does not work, where a runtime is one; None: it does."""
    if runtime not in PROVIDERS:
        return None
    missing = f"this onnxruntime has no {PROVIDERS[runtime]}: pip uninstall onnxruntime, install onnxruntime-gpu"
    return sources.providers().get(PROVIDERS[runtime], missing)


def _discrete(profile: TargetProfile, reading: Reading, sources: Sources) -> list[Finding]:
    board, gpu = profile.board, profile.board.gpu
    assert gpu is not None  # profiles of this kind have one
    if not reading.how:
        remedy = "install NVIDIA's driver (start a container with --gpus all); pip install nvidia-ml-py"
        return [fix("GPU", f"cannot tell: {reading.why_not}", remedy)]
    if not reading.gpus:
        return [fix("GPU", f"{reading.how} finds none", f"run vitrim on a machine with {board.description}")]
    alike = [one for one in reading.gpus if one.compute_capability == gpu.compute_capability.value]
    wanted = f"compute capability {gpu.compute_capability.value}"
    if not alike:
        there = "; ".join(f"{one.name} ({one.compute_capability or 'not told'})" for one in reading.gpus)
        return [fix("GPU", f"{there}; the target needs {wanted}", f"run vitrim on a machine with {board.description}")]
    chosen = next((one for one in alike if is_called(one.name, gpu.name)), alike[0])
    found = [_gpu(chosen, gpu.name, wanted, reading.how)]
    if profile.software.driver is not None:
        unknown = f"{reading.how} does not tell the driver's version"
        remedy = "install a newer driver from NVIDIA, then restart"
        found.append(
            in_range("NVIDIA driver", reading.driver, profile.software.driver.value, remedy=remedy, unknown=unknown)
        )
    if profile.software.cuda is not None:
        unknown = f"{reading.how} does not tell which CUDA the driver supports"
        remedy = "a newer driver supports a newer CUDA"
        found.append(in_range("CUDA", reading.cuda, profile.software.cuda.value, remedy=remedy, unknown=unknown))
    found += [*_memory(profile, chosen), _slowed(chosen), _others(chosen, sources.own_pids)]
    if profile.power.clocks == "pinned":
        text = "the target is measured at pinned clocks; whether they are cannot be read"
        found.append(warning("GPU clocks", text, "sudo nvidia-smi --lock-gpu-clocks=MHZ, at what the card can hold"))
    return found


def _memory(profile: TargetProfile, one: GpuNow) -> list[Finding]:
    """Memory of the card against the profile's; what the driver keeps for itself counts as there."""
    wanted = profile.board.memory_gb
    if wanted is None:
        return []
    if one.memory_bytes is None:
        return [warning("GPU memory", f"the driver does not tell; the target has {wanted.value:g} GB", "nvidia-smi -q")]
    text = f"{one.memory_bytes / 1e9:.1f} GB"
    if one.memory_bytes < MEMORY_SHARE * wanted.value * 1e9:
        remedy = "another card or a part of one (MIG): engines may not fit; budgets are those of the whole"
        return [warning("GPU memory", f"{text}, the target has {wanted.value:g} GB", remedy)]
    return [good("GPU memory", f"{text}, the target has {wanted.value:g} GB")]


def _gpu(one: GpuNow, name: str, wanted: str, how: str) -> Finding:
    text = f"{one.name}, {wanted} ({how})"
    if is_called(one.name, name):
        return good("GPU", text)
    return warning("GPU", f"{text}; the target is {name}", "engines run; figures and budgets are those of another card")


def _slowed(one: GpuNow) -> Finding:
    heat = "" if one.temperature_c is None else f", {one.temperature_c} °C"
    clock = "" if one.clock_mhz is None else f", {one.clock_mhz} of {one.clock_max_mhz or '?'} MHz"
    if one.slowed_by is None:
        return warning("GPU throttling", f"the driver does not tell{heat}{clock}", "watch nvidia-smi -q -d PERFORMANCE")
    if one.slowed_by:
        return fix(
            "GPU throttling",
            f"slowed down by {', '.join(one.slowed_by)}{heat}{clock}",
            "let it cool, look at fans and power limit; what is measured meanwhile is void",
        )
    return good("GPU throttling", f"none{heat}{clock}")


def _others(one: GpuNow, own: frozenset[int]) -> Finding:
    if one.processes is None:
        return warning("GPU processes", "the driver does not tell", "look with nvidia-smi")
    others = [pid for pid in one.processes if pid not in own]
    used = "" if one.memory_used_bytes is None else f"; {one.memory_used_bytes / 2**30:.1f} GiB of its memory in use"
    if others:
        text = f"{len(others)} others compute on it ({', '.join(map(str, others[:5]))}){used}"
        return warning("GPU processes", text, "end them before you measure")
    return good("GPU processes", f"no others{used}")
