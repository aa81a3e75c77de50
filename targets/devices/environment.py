"""Environment: what of a board's state makes its figures another series when it changes."""

from collections.abc import Mapping
from typing import Any


def environment(state: Mapping[str, Any]) -> dict[str, str]:
    """Power mode, clock policy, software, hardware; from `targets.agent.state.board_state`. Nothing that drifts."""
    facts, conditions = state["facts"], state["conditions"]
    jetson, gpus = state["jetson"] or {}, state["gpus"]
    limit = conditions["frequency_limit_mhz"] or {}
    found = {
        "architecture": facts["architecture"],
        "cpu_model": facts["cpu_model"],
        "cores": facts["cores"],
        "gpus": "; ".join(one["name"] for one in gpus["gpus"]) or "; ".join(one["name"] for one in facts["gpus"]),
        "gpu_driver": gpus["driver"],
        "os": facts["os"],
        "kernel": facts["kernel"],
        "python": facts["python"],
        "l4t": jetson.get("l4t"),
        "jetpack": jetson.get("jetpack"),
        "power_mode": state["power_mode"] or jetson.get("power_mode"),
        "governors": " ".join(f"{name}:{count}" for name, count in sorted((conditions["governors"] or {}).items())),
        "cpu_limit_mhz": limit.get("max"),
        "turbo": conditions["turbo"],
        **{f"runtime_{name}": version for name, version in facts["runtimes"].items()},
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}
