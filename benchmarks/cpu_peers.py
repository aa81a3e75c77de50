"""Latency and accuracy on this CPU before any pruning: vitrim's choice beside what its peers make of a plain export.

    python benchmarks/cpu_peers.py [--groups ViT-Tiny ViT-S ViT-B] [--olive PYTHON] [--quick]

ViT-Tiny has its real weights: top-1 and paired drop on the 1,100 images of imagenet_val. ViT-S and ViT-B have random
weights: shapes decide the time, so only that is told. vitrim is one `vitrim build`: export, quantize, the faster of its
runtimes by measurement. Peers start from torch's export of the timm model and quantize by their own defaults, with the
same 300 images of imagenet_train1000, in processes of their own (peer_quantizers.py); what they make runs with
vitrim's session options, which are no slower than a runtime's own. All engines of a group take turns, each in a process
of its own; figures are medians over five processes. --olive: an interpreter that has olive-ai and onnxruntime.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import yaml

from benchmarks.conditions import ROOT, assets, write_result
from benchmarks.peer_quantizers import OLIVE, from_plain
from benchmarks.random_engines import P50, QUICK
from pipeline.statistics import compare_answers
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.measure.latency import EngineUnderTest, compare
from targets.measure.percentiles import p50_ci95, p50_of, paired_ratio
from targets.preprocess import Preprocess
from targets.worker import Worker

BASELINE = "ONNX Runtime, fp32"
CALIBRATION = 300
FP32 = {BASELINE: "onnxruntime", "OpenVINO, fp32": "openvino"}
GROUPS: dict[str, dict[str, Any]] = {
    "ViT-Tiny": {"timm": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "quantize": {"precision": "auto"}},
    "ViT-S": {"timm": "vit_small_patch16_224", "pretrained": False, "quantize": {"precision": "int8"}},
    "ViT-B": {"timm": "vit_base_patch16_224", "pretrained": False, "quantize": {"precision": "int8"}},
}


def main() -> None:
    """Measure every group and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--olive", type=Path, help="interpreter with olive-ai; none: Olive is left out")
    parser.add_argument("--quick", action="store_true", help="few queries, to try the script; writes nothing")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for group in asked.groups:
        with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as place:
            rows += measure(group, Path(place), asked.olive, quick=asked.quick)
        if not asked.quick:
            write_result("cpu_peers", {"batch": 1, "calibration_images": CALIBRATION, "rows": rows})


def measure(group: str, place: Path, olive: Path | None, *, quick: bool) -> list[dict[str, Any]]:
    """Make every engine of a group and compare them."""
    told = GROUPS[group]
    folder = assets()
    weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors")) if told.get("pretrained", True) else None
    engines = {"vitrim": build_with_vitrim(group, told, weights, place)}
    preprocess = Preprocess.model_validate_json((engines["vitrim"].parent / "preprocessing.json").read_bytes())
    images = open_images(DataSource(images=folder / "imagenet_train1000" / "images.zip"), Role.FIT, index_cache=None)
    some = images.subset([index * len(images) // CALIBRATION for index in range(CALIBRATION)])
    calibration = place / "calibration.npy"
    np.save(calibration, np.concatenate(list(some.batches(preprocess, 32))))
    plain = export_plain(told["timm"], weights, place)
    failed = {}
    for name, runtime, graph in peers(plain, calibration, place, olive):
        if isinstance(graph, str):
            failed[name] = graph
            print(f"{group} {name}: {graph}", flush=True)
            continue
        engines[name] = build(graph, runtime, "fp32" if name in FP32 else "int8", place)
    accuracy = accuracies(engines, preprocess) if weights is not None else {}
    inputs = np.load(calibration, mmap_mode="r")[:32]
    under_test = {name: EngineUnderTest(folder=one, batch=1) for name, one in engines.items()}
    measured = compare(under_test, inputs, level="quick", procedure=QUICK if quick else P50).measurements
    rows = []
    for name, engine in engines.items():
        speedup, interval = paired_ratio(measured[BASELINE], measured[name])
        facts = json.loads((engine / "engine.json").read_text())
        rows.append(
            {
                "group": group,
                "name": name,
                "runtime": facts["runtime"],
                "precision": facts["precision"],
                "p50_ms": round(p50_of(measured[name]), 3),
                "p50_ci95": [round(edge, 3) for edge in p50_ci95(measured[name])],
                "times_faster": round(speedup, 3),
                "times_faster_ci95": [round(edge, 3) for edge in interval],
                "engine_bytes": sum(one["size_bytes"] for one in facts["files"].values()),
                "flags": list(measured[name].flags),
                **accuracy.get(name, {}),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return [*rows, *({"group": group, "name": name, "failed": why} for name, why in failed.items())]


def build_with_vitrim(group: str, told: dict[str, Any], weights: Path | None, place: Path) -> Path:
    """Run `vitrim build` without pruning and return the folder of the engine in its bundle."""
    images = str(assets() / "imagenet_train1000" / "images.zip")
    model = {name: value for name, value in told.items() if name != "quantize"}
    content = {
        "vitrim": 1,
        "name": group.lower(),
        "model": model | ({"checkpoint": str(weights)} if weights else {}),
        "data": {"fit": {"images": images, "share": [0, 0.7]}, "select": {"images": images, "share": [0.7, 1]}},
        "steps": ["export", {"quantize": told["quantize"]}],
    }
    recipe, output = place / "recipe.yaml", place / "vitrim"
    recipe.write_text(yaml.safe_dump(content))
    words = [sys.executable, "-m", "pipeline", "build", str(recipe), "--output", str(output)]
    done = subprocess.run([*words, "--store", str(place / "store")], cwd=ROOT, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"vitrim ended with {done.returncode}")
    return output / "cpu" / "bundle" / "engine"


def export_plain(name: str, weights: Path | None, place: Path) -> Path:
    """Export a timm model as torch does by itself, at batch 1."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, checkpoint_path=str(weights or "")).eval()
    path = place / "plain.onnx"
    torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), path, input_names=["images"], external_data=False)
    return path


def peers(plain: Path, calibration: Path, place: Path, olive: Path | None) -> Iterator[tuple[str, str, Path | str]]:
    """Yield name, runtime and graph of every peer; words in place of a graph where it failed."""
    for name, runtime in FP32.items():
        yield name, runtime, plain
    jobs = [(name, runtime, Path(sys.executable)) for name, (runtime, _) in from_plain.items()]
    jobs += [(name, "onnxruntime", olive) for name in OLIVE if olive is not None]
    for name, runtime, python in jobs:
        output = Path(tempfile.mkdtemp(dir=place))
        script = str(Path(__file__).with_name("peer_quantizers.py"))
        words = [str(python), script, name, str(plain), str(calibration), str(output)]
        done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=output)
        made = [one for one in (output / "model.onnx", output / "model.xml") if one.is_file()]
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was made").splitlines()[-1]
        yield name, runtime, made[0] if done.returncode == 0 and made else last


def build(graph: Path, runtime: str, precision: str, place: Path) -> Path:
    """Build an engine from a peer's graph."""
    output = Path(tempfile.mkdtemp(dir=place))
    with Worker() as worker:
        worker.build(graph, output, runtime=runtime, precision=precision, batch=1)
    return output


def accuracies(engines: dict[str, Path], preprocess: Preprocess) -> dict[str, dict[str, Any]]:
    """Top-1 of every engine on imagenet_val, paired with the baseline."""
    folder = assets() / "imagenet_val"
    source = DataSource(images=folder / "images.zip", labels=folder / "labels.csv")
    unseen = open_images(source, Role.EVALUATE, index_cache=None)
    assert unseen.labels is not None
    pixels = np.concatenate(list(unseen.batches(preprocess, 32)))
    answers = {}
    for name, engine in engines.items():
        with Worker() as worker:
            worker.load(engine)
            answers[name] = next(iter(worker.infer(pixels).values()))
    found = {}
    for name, one in answers.items():
        compared = compare_answers(answers[BASELINE], one, unseen.labels)
        found[name] = {
            "top1": round(compared.engine, 4),
            "drop_points": round(compared.drop_points, 2),
            "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
            "agreement": round(compared.agreement or 0.0, 4),
        }
    return found


if __name__ == "__main__":
    main()
