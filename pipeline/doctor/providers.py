"""Which of ONNX Runtime's providers really work: a list of them is no proof, a session on a tiny graph is.

A wheel lists the providers that it was compiled with; one whose libraries or driver are absent falls back to the CPU in
silence. So each makes a session and answers a query, in a process of its own: a broken one can take the process along.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from pipeline.keys import ROOT

LIMIT_SECONDS = 120
REMOTE = ("AzureExecutionProvider",)
"""listed by every wheel, and no device: it asks a service"""

_LIST = """
import json, onnxruntime
print(json.dumps(onnxruntime.get_available_providers()))
"""
_TRY = """
import json, sys
import numpy as np, onnx, onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
pair = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8]) for name in "xy"]
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "tiny", pair[:1], pair[1:], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
from targets.runtimes.nvidia.options import PROVIDERS
from targets.runtimes.ort.gpu import obstacle
if sys.argv[1] in PROVIDERS.values() and (reason := obstacle(sys.argv[1])):
    sys.exit(reason)
options = ort.SessionOptions()
options.log_severity_level = 4
if sys.argv[1] != "CPUExecutionProvider":
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
session = ort.InferenceSession(model.SerializeToString(), options, providers=[sys.argv[1]], enable_fallback=0)
used = session.get_providers()[0]
if used != sys.argv[1]:
    sys.exit(f"the session fell back to {used}")
x = np.arange(64, dtype=np.float32).reshape(8, 8)
if not np.allclose(session.run(None, {"x": x})[0], x, atol=0.1):
    sys.exit("it answers wrongly")
"""


def try_providers() -> Mapping[str, str | None]:
    """Provider -> None where it works, else the reason why not; empty where ONNX Runtime itself is absent or broken."""
    listed, _ = _ask(_LIST)
    try:
        names = json.loads(listed or "[]")
    except ValueError:
        names = []
    return {name: _ask(_TRY, name)[1] for name in names if name not in REMOTE}


def _ask(code: str, *words: str) -> tuple[str | None, str | None]:
    """Standard output of a program, and why it failed."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": path}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return None, f"it did not answer within {LIMIT_SECONDS} s"
    if done.returncode == 0:
        return done.stdout, None
    if done.returncode < 0:
        return None, f"the process was ended by signal {-done.returncode}"
    last = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return None, last[-1][:300] if last else f"the process ended with exit code {done.returncode}"
