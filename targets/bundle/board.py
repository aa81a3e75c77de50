"""What a bundle holds for a board that builds its own engine: the command that does it."""

from collections.abc import Sequence

from targets.bundle.manifest import Tensor
from targets.runtimes.nvidia.options import RTX, TENSORRT

BUILD_SCRIPT = "build.sh"
_TOOLS = {
    TENSORRT: ("trtexec", "/usr/src/tensorrt/bin/trtexec", "TensorRT; JetPack has it in /usr/src/tensorrt/bin"),
    RTX: ("tensorrt_rtx", "tensorrt_rtx", "TensorRT for RTX"),
}
_SCRIPT = """\
#!/bin/sh
# Build the engine of this bundle on the machine that will run it, with {tool} of {where}:
#
#   sh {script} ENGINE_FOLDER
#
# {versions}. The graph says the precision of every layer: the network is strongly typed.
# Not yet run on hardware.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || {{ echo "usage: sh {script} ENGINE_FOLDER" >&2; exit 2; }}
tool=${{BUILDER:-$(command -v {tool} || echo {path})}}
[ -x "$tool" ] || {{ echo "{tool} is not here: it comes with {where}; or set BUILDER to its path" >&2; exit 1; }}
mkdir -p "$1"
flags=
for flag in --stronglyTyped --skipInference; do  # later versions do without the first
    if "$tool" --help 2>&1 | grep -q -e "$flag"; then flags="$flags $flag"; fi
done
exec "$tool" --onnx="$here/model.onnx" $flags --saveEngine="$1/model.plan" --profilingVerbosity=detailed \\
    {shapes}
"""


def build_script(runtime: str, *, inputs: Sequence[Tensor], batch: int, versions: str) -> str | None:
    """Shell script that builds the engine by the runtime's own tool; None where the runtime needs no build.

    versions: PEP 440 range that the target needs.
    """
    if runtime not in _TOOLS:
        return None
    tool, path, where = _TOOLS[runtime]
    sizes = ",".join(f"{one.name}:{'x'.join(str(size or batch) for size in one.shape)}" for one in inputs)
    dynamic = any(size is None for one in inputs for size in one.shape)
    shapes = " ".join(f"--{which}Shapes={sizes}" for which in ("min", "opt", "max")) if dynamic else ""
    needs = f"It needs {runtime} {versions}" if versions else f"It needs {runtime}"
    return _SCRIPT.format(
        tool=tool, where=where, path=path, script=BUILD_SCRIPT, versions=needs, shapes=shapes
    ).replace(" \\\n    \n", "\n")
