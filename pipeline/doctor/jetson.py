"""What a Jetson that is a target needs of this machine, and whether it is in a state to be measured in."""

from typing import Any

from pipeline.doctor.finding import Finding, fix, good, in_range, warning
from pipeline.doctor.sources import Sources
from targets.jetson import Jetson, JetsonNow
from targets.profile import TargetProfile

LOOK_SECONDS = 0.3
"""between two readings of the counters that rise while clocks are cut"""
MEMORY_SHARE = 0.8
"""of the memory on the data sheet that the kernel has to show: it keeps some for firmware and display"""


def examine_jetson(profile: TargetProfile, facts: dict[str, Any], sources: Sources) -> list[Finding]:
    """Name every mismatch between a Jetson that is a target and this machine, and what makes measurements wrong."""
    board, software, power = profile.board, profile.software, profile.power
    found = sources.jetson()
    if found is None:
        remedy = f"run vitrim on {board.description}"
        return [fix("Jetson", "this machine is none", remedy)]
    lines = [_module(profile, found)]
    if software.jetpack is not None:
        unknown = f"L4T {found.l4t} belongs to no JetPack that is known" if found.l4t else "L4T could not be read"
        remedy = "flash it with a JetPack of that range"
        lines.append(in_range("JetPack", found.jetpack, software.jetpack.value, remedy=remedy, unknown=unknown))
    if software.cuda is not None:
        unknown = "no CUDA at /usr/local/cuda"
        remedy = "install the CUDA of this JetPack: sudo apt install nvidia-jetpack"
        lines.append(in_range("CUDA", found.cuda, software.cuda.value, remedy=remedy, unknown=unknown))
    if power.mode is not None:
        wanted = power.mode.value
        if found.power_mode == wanted:
            lines.append(good("power mode", wanted))
        elif found.power_mode is None:
            lines.append(warning("power mode", f"nvpmodel does not tell; the target is {wanted}", "sudo nvpmodel -q"))
        else:
            remedy = f"sudo nvpmodel -m ID of {wanted} (see nvpmodel -p --verbose), before anything is built"
            lines.append(fix("power mode", f"{found.power_mode}, the target is {wanted}", remedy))
    before = sources.jetson_now()
    sources.wait(LOOK_SECONDS)
    now = sources.jetson_now()
    lines.append(_clocks(now, pinned=power.clocks == "pinned"))
    lines += [*_memory(profile, facts), _throttling(before, now), _users(now, sources.own_pids)]
    return lines


def _clocks(now: JetsonNow, *, pinned: bool) -> Finding:
    """Whether the GPU's clock can move: jetson_clocks raises the least clock to the highest."""
    remedy = "sudo jetson_clocks, after the power mode is set" if pinned else ""
    if now.gpu_mhz is None:
        return warning("GPU clocks", "the kernel shows no GPU in devfreq", "look with sudo jetson_clocks --show")
    least, clock, most = now.gpu_mhz
    if least >= most:
        return good("GPU clocks", f"pinned at {most:.0f} MHz")
    text = f"float from {least:.0f} to {most:.0f} MHz, now {clock:.0f}"
    if pinned:
        return fix("GPU clocks", f"{text}; the target is measured at pinned clocks", remedy)
    return warning("GPU clocks", f"{text}: they follow the load")


def _memory(profile: TargetProfile, facts: dict[str, Any]) -> list[Finding]:
    """Memory of the board, which processor and GPU share, against the profile's; the kernel keeps some for itself."""
    wanted, size = profile.board.memory_gb, facts["memory_bytes"]
    if wanted is None or size is None:
        return []
    text = f"{size / 1e9:.1f} GB shared by processor and GPU, the target has {wanted.value:g} GB"
    if size < MEMORY_SHARE * wanted.value * 1e9:
        return [warning("board memory", text, "another module, or a limit of the container: engines may not fit")]
    return [good("board memory", text)]


def _throttling(before: JetsonNow, now: JetsonNow) -> Finding:
    cooling = "let it cool, look at fan, power supply and power mode; what is measured meanwhile is void"
    if now.capped_by:
        return fix("GPU throttling", f"clocks are capped now by {', '.join(now.capped_by)}", cooling)
    if now.overcurrents is None and now.capped_by is None:
        return warning("GPU throttling", "the board does not tell", "watch tegrastats")
    events, rise = now.overcurrents or 0, (now.overcurrents or 0) - (before.overcurrents or 0)
    if rise > 0:
        return fix("GPU throttling", f"{rise} over-current events just now: clocks are being cut", cooling)
    if events:
        return warning("GPU throttling", f"not now; {events} over-current events since the start", cooling)
    return good("GPU throttling", "none since the start")


def _users(now: JetsonNow, own: frozenset[int]) -> Finding:
    """Who else has the GPU open; of other users' processes only root can tell."""
    others = [pid for pid in now.gpu_users if pid not in own]
    unseen = f"; {now.hidden} processes of others cannot be looked at without sudo" if now.hidden else ""
    if others:
        remedy = "end them before you measure; a desktop is one: sudo systemctl isolate multi-user.target"
        text = f"{len(others)} others have the GPU open ({', '.join(map(str, others[:5]))}){unseen}"
        return warning("GPU processes", text, remedy)
    return good("GPU processes", f"none that can be seen{unseen}")


def _module(profile: TargetProfile, found: Jetson) -> Finding:
    parts = profile.board.part_numbers
    if not parts:
        return warning("Jetson", f"{found.model}; the profile names no part number to compare with")
    if any(part in name for part in parts for name in found.compatible):
        return good("Jetson", found.model)
    text = f"{found.model}, the target is {profile.board.description} ({' or '.join(parts)})"
    return fix("Jetson", text, "choose the target of this module: `vitrim targets list`")
