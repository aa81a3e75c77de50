"""Everything that the doctor looks at, in the order in which it is shown."""

from pathlib import Path

from pipeline.doctor.finding import Finding
from pipeline.doctor.machine import examine_machine
from pipeline.doctor.software import examine_software
from pipeline.doctor.sources import Sources
from pipeline.doctor.target import examine_target
from targets.profile import load_profile


def examine(target: str | None = None, *, store_root: Path, sources: Sources | None = None) -> list[Finding]:
    """Look at Python, packages, providers, disk, memory, clocks, and at what a target needs; `cpu` where none is named.

    sources: where the facts come from; this machine's by default.
    """
    profile = load_profile(target or "cpu")
    sources = sources or Sources()
    return [
        *examine_software(profile, sources),
        *examine_machine(profile, store_root, sources),
        *examine_target(profile, sources),
    ]
