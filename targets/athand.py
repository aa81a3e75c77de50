"""Is a target at hand: can its engines be measured on this machine? And if not, what is left to its board."""

from typing import Any

from targets.facts import installed_version
from targets.jetson import Jetson, read_jetson
from targets.nvidia import is_called
from targets.profile import RuntimeChoice, TargetProfile, board_obstacle, version_obstacle
from targets.runtimes.nvidia.capability import LEGAL
from targets.runtimes.nvidia.options import ORT_CUDA, RTX


def away(profile: TargetProfile, facts: dict[str, Any], *, jetson: Jetson | None = None) -> str | None:
    """Why this machine is not the target's board, so that nothing can be measured for it; None where it is.

    facts: of `targets.facts.probe`. jetson: what this machine is, where it is one; looked at where it is not given.
    """
    board = profile.board
    obstacle = board_obstacle(profile, facts)
    if obstacle is not None:
        return obstacle
    if board.kind == "jetson":
        found = jetson or read_jetson()
        if found is None:
            return "this machine is no Jetson"
        if board.part_numbers and not any(part in name for part in board.part_numbers for name in found.compatible):
            return f"this machine is {found.model}"
    if board.kind == "gpu" and board.gpu is not None:
        wanted = board.gpu.compute_capability.value
        alike = [one for one in facts["gpus"] if one["compute_capability"] == wanted]
        if not any(is_called(one["name"], board.gpu.name) for one in alike):
            shown = ", ".join(f"{one['name']} ({one['compute_capability']})" for one in facts["gpus"])
            return f"the target has {board.description} ({wanted}), this machine has {shown or 'no NVIDIA GPU'}"
    return None


def left_to_do(profile: TargetProfile, choice: RuntimeChoice) -> tuple[bool, str]:
    """For a target that is not at hand: whether a runtime's engine can be built here, and what its board has to do."""
    if choice.name == RTX:
        lacking = version_obstacle(choice, installed_version)
        if lacking is None:
            return True, "load the engine, which was built ahead of time"
        return False, f"build the engine (not built here: tensorrt_rtx {lacking})"
    if choice.name == ORT_CUDA:
        return False, "build the engine: ONNX Runtime optimises the graph on the GPU that runs it"
    if choice.name in LEGAL:
        return False, "build the engine: TensorRT builds on the GPU that runs it"
    return False, f"load the graph: {choice.name} prepares it for the processor that it runs on"
