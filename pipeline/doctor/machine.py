"""Disk, memory, governor, clocks and throttling of the processor."""

import re
from pathlib import Path
from typing import Any

from pipeline.doctor.finding import Finding, fix, good, warning
from pipeline.doctor.sources import Sources
from targets.facts import read_text
from targets.profile import TargetProfile

DISK_LEAST_BYTES, DISK_GOOD_BYTES = 2**30, 5 * 2**30
"""a build of a small model needs one GiB, of a ViT-B with its candidates a few"""
MEMORY_GOOD_BYTES = 4 * 2**30
LOOK_SECONDS = 0.3
"""between two readings of the counters that rise while a processor slows itself down"""


def examine_machine(profile: TargetProfile, store: Path, sources: Sources) -> list[Finding]:
    """Look at what a build needs room for, and at what makes measurements wrong."""
    before = sources.conditions()
    sources.wait(LOOK_SECONDS)
    after = sources.conditions()
    return [
        _disk(store, sources.free(store)),
        _memory(sources.probe(), after),
        _governor(after, pinned=profile.power.clocks == "pinned" and profile.board.kind == "cpu"),
        _throttling(before, after, sources),
        _load(after),
    ]


def _disk(store: Path, free: int) -> Finding:
    text = f"{free / 2**30:.1f} GiB free at {store}"
    remedy = "`vitrim store gc` frees what is not used, or set VITRIM_STORE to another disk"
    if free < DISK_LEAST_BYTES:
        return fix("disk for the store", text, remedy)
    return good("disk for the store", text) if free >= DISK_GOOD_BYTES else warning("disk for the store", text, remedy)


def _memory(facts: dict[str, Any], conditions: dict[str, Any]) -> Finding:
    size, free = facts["memory_bytes"], conditions["memory_available_bytes"]
    if size is None:
        return warning("memory", f"the machine does not tell; {facts['cores']} cores", "look yourself")
    text = f"{size / 2**30:.1f} GiB, {facts['cores']} cores"
    if free is not None and free < 2**30:
        return warning("memory", f"{text}; {free / 2**30:.1f} GiB of it free", "close other programs")
    if size < MEMORY_GOOD_BYTES:
        return warning("memory", text, "ViT-B needs about 4 GiB; use fewer calibration images")
    return good("memory", text)


def _governor(conditions: dict[str, Any], *, pinned: bool) -> Finding:
    governors = conditions["governors"]
    if governors is None:
        return good("CPU governor", "the machine does not tell (as virtual ones do not)")
    names = ", ".join(sorted(governors))
    if set(governors) == {"performance"}:
        return good("CPU governor", names)
    remedy = "sudo cpupower frequency-set --governor performance"
    if pinned:
        return fix("CPU governor", f"{names}; the target is measured at pinned clocks", remedy)
    return warning("CPU governor", f"{names}: clocks follow the load", remedy)


def _throttling(before: dict[str, Any], after: dict[str, Any], sources: Sources) -> Finding:
    cooling = "let it cool, look at fan and power supply; what is measured meanwhile is void"
    bits = re.search(r"throttled=0x([0-9a-fA-F]+)", _vcgencmd(sources))
    if bits:  # Raspberry Pi: bits 0 to 3 now, 16 to 19 since it was started
        value = int(bits.group(1), 16)
        if value & 0xF:
            return fix("throttling", f"the processor is slowed down now: {_pi_reasons(value)}", cooling)
        if value >> 16 & 0xF:
            return warning("throttling", f"since the start there was: {_pi_reasons(value >> 16)}", cooling)
        return good("throttling", "none since the start")
    counts = before["throttle_count"], after["throttle_count"]
    if None in counts:
        return good("throttling", "the machine does not tell (as virtual ones do not)")
    if counts[1] > counts[0]:
        return fix("throttling", "the processor is slowing itself down now", cooling)
    return good("throttling", f"not now; {counts[1]} times since the start")


def _vcgencmd(sources: Sources) -> str:
    if "Raspberry Pi" not in read_text(sources.root / "proc/device-tree/model"):
        return ""
    return sources.run(["vcgencmd", "get_throttled"]) or ""


def _pi_reasons(bits: int) -> str:
    reasons = ("under-voltage", "capped clock", "throttling", "soft temperature limit")
    return ", ".join(reason for position, reason in enumerate(reasons) if bits >> position & 1)


def _load(conditions: dict[str, Any]) -> Finding:
    load, cores = conditions["load_average"][0], conditions["cores"]
    text = f"{load:.1f} runnable on {cores} cores in the last minute"
    if load > max(1.0, cores / 2):
        return warning("other programs", text, "close them before you measure")
    return good("other programs", text)
