"""Peak memory and seconds of pruning a model of 4.35 billion parameters on weights alone (DGMR, r = 1, no images).

    python benchmarks/streaming_prune.py [FOLDER]

Writes EVA-CLIP-E with random bf16 weights (8.7 GB) and the pruned model (2.5 GB) below FOLDER and deletes both. Pruning
runs in a process of its own, whose peak resident memory the kernel tells; the library's import is part of it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.conditions import write_result
from stages.vit.files import build_empty, load_spec, save_description
from stages.vit.spec import WEIGHTS_FILE, ViTSpec
from stages.vit.stream import Entry, TensorFile, in_file_order, write_tensors

MODEL = "eva02_enormous_patch14_clip_224"
OPTIONS: dict[str, Any] = {"method": "dgmr", "r": 1, "repair": "none"}


def write_random(folder: Path) -> ViTSpec:
    """Write a model folder with random bf16 weights, tensor by tensor; rows of fc1 have uneven lengths."""
    import timm

    from stages.vit.timm_reader import read_spec

    with torch.device("meta"):
        spec = read_spec(timm.create_model(MODEL), name=MODEL)
    shapes = build_empty(spec).state_dict()
    entries = {name: Entry(torch.bfloat16, tuple(tensor.shape)) for name, tensor in shapes.items()}
    draw = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in in_file_order(entries):
            values = torch.randn(entries[name].shape, generator=draw) * 0.02
            if name.endswith("fc1.weight"):
                values *= torch.exp(0.2 * torch.randn(len(values), 1, generator=draw))
            yield name, values.bfloat16()

    save_description(folder, spec, labels=None)
    write_tensors(folder / WEIGHTS_FILE, entries, tensors())
    return spec


def prune_here(source: Path, output: Path) -> dict[str, Any]:
    """Prune in this process and tell its peak memory."""
    from stages.prune_mlp.options import PruneMlpOptions
    from stages.prune_mlp.prune import prune_folder

    before = _peak_bytes()
    started = time.perf_counter()
    output.mkdir()
    prune_folder(
        PruneMlpOptions.model_validate(OPTIONS),
        model_folder=source,
        output=output,
        scratch=output,
        images=None,
        seed=0,
        tell=lambda message, share: print(message, file=sys.stderr, flush=True),
    )
    return {"seconds": time.perf_counter() - started, "peak_bytes": _peak_bytes(), "peak_bytes_before": before}


def _peak_bytes() -> int:
    # Not ru_maxrss: a child starts with the peak of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Measure and write the result file, or prune for the process that asked."""
    if len(sys.argv) == 3:
        print(json.dumps(prune_here(Path(sys.argv[1]), Path(sys.argv[2]))))
        return
    with TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) == 2 else None, prefix="streaming-") as folder:
        source, output = Path(folder) / "source", Path(folder) / "pruned"
        spec = write_random(source)
        done = subprocess.run(
            [sys.executable, __file__, source, output], stdout=subprocess.PIPE, text=True, check=True, timeout=7200
        )
        found = json.loads(done.stdout)
        sizes = {}
        for name, place in (("source", source), ("pruned", output)):
            entries = TensorFile(place / WEIGHTS_FILE).entries.values()
            sizes[name] = {
                "parameters": sum(entry.nbytes // entry.dtype.itemsize for entry in entries),
                "bytes": (place / WEIGHTS_FILE).stat().st_size,
            }
        widths = {block.mlp_width for block in load_spec(output).blocks}
    print(f"{found['peak_bytes'] / 2**30:.2f} GiB at most, {found['seconds']:.0f} s, {sizes}")
    print(
        write_result(
            "streaming_prune",
            {
                "model": MODEL,
                "weights": "random, bf16",
                "options": OPTIONS,
                "blocks": len(spec.blocks),
                "width_before": spec.blocks[0].mlp_width,
                "width_after": sorted(widths),
                **sizes,
                "seconds": round(found["seconds"], 1),
                "peak_resident_bytes": found["peak_bytes"],
                "peak_resident_gib": round(found["peak_bytes"] / 2**30, 3),
                "resident_bytes_after_imports": found["peak_bytes_before"],
                "torch_threads": torch.get_num_threads(),
            },
        )
    )


if __name__ == "__main__":
    main()
