"""One ONNX Runtime session in a process of its own, without torch, timed through IO binding on request.

    python benchmarks/gpu_ort.py MODEL.onnx BATCH cuda|tensorrt|cpu OPTIONS

OPTIONS: of the provider, JSON. Reads a number of queries per line, answers with their milliseconds as JSON; or two
paths, `answers IMAGES.npy OUTPUT.npy`. The first line that it writes says what the session runs on.
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

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
PATIENCE_S = 180.0
"""a child that answers nothing for so long is ended"""


class OrtProcess:
    """The parent's end. `info`: what the child said of its session."""

    def __init__(self, model: Path, *, batch: int, device: str, options: "dict[str, str] | None" = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the child)
        self._child = subprocess.Popen(
            [sys.executable, __file__, str(model), str(batch), device, json.dumps(options or {})],
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

    def answers(self, images: Any) -> Any:
        """First output for images [N, C, H, W] of any type, the batch of the session at once."""
        import numpy as np

        assert self._child.stdin is not None
        with tempfile.TemporaryDirectory(prefix="vitrim-answers-") as folder:
            given, found = Path(folder, "images.npy"), Path(folder, "answers.npy")
            np.save(given, images)
            self._child.stdin.write(f"answers {given} {found}\n")
            self._child.stdin.flush()
            self._answer()
            return np.load(found)

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


def serve(model: str, batch: int, device: str, told: dict[str, str]) -> None:
    """The child's end. told: options of the provider."""
    import numpy as np
    import onnxruntime as ort

    if device != "cpu" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN out of the wheels that torch brought
    wanted = PROVIDERS[device]
    if wanted not in ort.get_available_providers():
        raise SystemExit(f"{wanted} is not in this onnxruntime; it is in onnxruntime-gpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    started = time.perf_counter()
    session = ort.InferenceSession(model, options, providers=[(wanted, told)])
    if session.get_providers()[0] != wanted:  # it falls back to the CPU without an error
        raise SystemExit(f"the session runs on {session.get_providers()[0]} instead of {wanted}")
    given = session.get_inputs()[0]
    dtype = {"tensor(float16)": np.float16, "tensor(float)": np.float32}[given.type]
    images = np.random.default_rng(0).standard_normal((batch, *given.shape[1:]), dtype=np.float32).astype(dtype)
    memory = "cpu" if device == "cpu" else "cuda"
    binding = session.io_binding()
    binding.bind_ortvalue_input(given.name, ort.OrtValue.ortvalue_from_numpy(images, memory, 0))
    binding.bind_output(session.get_outputs()[0].name, memory, 0)

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
        if line.startswith("answers "):
            _, source, place = line.split()
            pixels = np.load(source).astype(dtype)
            parts = [session.run(None, {given.name: part})[0] for part in _parts(pixels, batch)]
            np.save(place, np.concatenate(parts)[: len(pixels)].astype(np.float32))
            print(json.dumps(len(pixels)), flush=True)
            continue
        print(json.dumps([round(query(), 5) for _ in range(int(line))]), flush=True)


def _parts(pixels: Any, batch: int) -> "list[Any]":
    """Images in batches of one size, the last one filled up."""
    import numpy as np

    filled = np.concatenate([pixels, np.repeat(pixels[:1], -len(pixels) % batch, axis=0)])
    return np.split(filled, len(filled) // batch)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
