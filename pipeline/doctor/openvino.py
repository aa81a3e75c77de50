"""Which devices OpenVINO finds, and what keeps it from hardware that is there."""

from pipeline.doctor.finding import Finding, fix, good, warning
from pipeline.doctor.sources import Sources
from targets.profile import TargetProfile
from targets.runtimes.intel.devices import device_missing
from targets.runtimes.intel.options import CPU, DEVICES


def examine_openvino(profile: TargetProfile, sources: Sources) -> list[Finding]:
    """List the devices, where openvino is installed, and those that the kernel shows and OpenVINO does not find.

    What a target names and the machine lacks is told with the target's runtimes.
    """
    if sources.runtime(CPU) is None:
        return []
    named = {choice.name for choice in profile.runtimes}
    listed = sources.openvino()
    if listed.why_not:
        say = fix if named & set(DEVICES) else warning
        return [say("OpenVINO devices", listed.why_not, "install openvino anew")]
    found = [good("OpenVINO devices", ", ".join(f"{device} ({name})" for device, name in listed.names.items()))]
    for runtime, device in DEVICES.items():
        missing = device_missing(runtime, listed=lambda: listed, explain=sources.no_device)
        if missing is not None and missing.seen and runtime not in named:
            found.append(warning(f"OpenVINO {device}", missing.why, missing.remedy))
    return found
