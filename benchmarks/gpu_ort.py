"""One ONNX Runtime session in a process of its own, without torch, timed through IO binding on request.

    python benchmarks/gpu_ort.py MODEL.onnx BATCH cuda|cpu

Reads a number of queries per line, answers with their milliseconds as JSON. The first line that it writes says what
the session runs on.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
PATIENCE_S = 180.0
"""a child that answers nothing for so long is ended"""


class OrtProcess:
    """The parent's end. `info`: what the child said of its session."""

    def __init__(self, model: Path, *, batch: int, device: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the child)
        self._child = subprocess.Popen(
            [sys.executable, __file__, str(model), str(batch), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.info: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def time(self, queries: int) -> list[float]:
        """Milliseconds of so many queries."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{queries}\n")
        self._child.stdin.flush()
        found: list[float] = self._answer()
        return found

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        timer = threading.Timer(PATIENCE_S, self._child.kill)
        timer.start()
        try:
            line = self._child.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self._child.wait(timeout=10)
            self._errors.seek(0)
            said = [line.strip() for line in self._errors if line.strip()]
            raise RuntimeError(f"ONNX Runtime: {said[-1] if said else 'the process ended without a word'}")
        return json.loads(line)

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.wait(timeout=10)
        for pipe in (self._child.stdin, self._child.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(model: str, batch: int, device: str) -> None:
    """The child's end."""
    import numpy as np
    import onnxruntime as ort

    if device == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN out of the wheels that torch brought
    wanted = PROVIDERS[device]
    if wanted not in ort.get_available_providers():
        raise SystemExit(f"{wanted} is not in this onnxruntime; it is in onnxruntime-gpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    started = time.perf_counter()
    session = ort.InferenceSession(model, options, providers=[wanted])
    if session.get_providers()[0] != wanted:  # it falls back to the CPU without an error
        raise SystemExit(f"the session runs on {session.get_providers()[0]} instead of {wanted}")
    given = session.get_inputs()[0]
    dtype = {"tensor(float16)": np.float16, "tensor(float)": np.float32}[given.type]
    images = np.random.default_rng(0).standard_normal((batch, *given.shape[1:]), dtype=np.float32).astype(dtype)
    binding = session.io_binding()
    binding.bind_ortvalue_input(given.name, ort.OrtValue.ortvalue_from_numpy(images, device, 0))
    binding.bind_output(session.get_outputs()[0].name, device, 0)

    def query() -> float:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return 1e3 * (time.perf_counter() - start)

    first = query()
    output = binding.copy_outputs_to_cpu()[0]
    info = {
        "provider": session.get_providers()[0],
        "onnxruntime": ort.__version__,
        "load_s": round(time.perf_counter() - started, 3),
        "first_ms": round(first, 3),
        "input": given.type,
        "finite": bool(np.isfinite(output).all()),
        "output": list(output.shape),
        "torch_loaded": "torch" in sys.modules,
    }
    print(json.dumps(info), flush=True)
    for line in sys.stdin:
        print(json.dumps([round(query(), 5) for _ in range(int(line))]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
