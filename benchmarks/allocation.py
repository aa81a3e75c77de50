"""Top-1 of ViT-Tiny against the latency of its engine, without training: shapes found by the search, and uniform ones.

    python benchmarks/allocation.py [--runtime onnxruntime] [--ratios 0.85 0.7 0.55] [--only allocated "uniform ols"]
    python benchmarks/allocation.py --resume [--parts shapes] [--store FOLDER]

`allocated` is one `vitrim build` for each ratio as its budget, calibrated on 700 images of imagenet_train1000, chosen
by the 300 others: top-1 and paired drop of the engine on the 1,100 images of imagenet_val, its latency interleaved with
that of the unpruned one. `allocated, sizes and merging` may read smaller pictures and merge tokens, too. The uniform
rows cut every MLP, or every MLP and every head, to the same share: ours, and the rules of papers, with the repair that
each of them has (none, or `+ repair` where it is ours), L2 and Taylor through Torch-Pruning where it is installed, all
calibrated on 700 images, too; their top-1 is torch's, and the latency that of engines of these shapes with random
weights, interleaved with the unpruned one: shapes decide it. fp32, so that nothing but the shapes differs.

The whole takes hours of a machine with nothing else on it. --resume keeps what the result file has and measures what is
missing, --parts only some of it: `allocated` and `shapes` are timed, `accuracy` of the uniform rows is not. Every row
says when and with which commit it was measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from benchmarks.conditions import ROOT, add_resume, assets, measured_with, read_result, write_result
from benchmarks.mlp_pruning import peers
from benchmarks.random_engines import time_shapes
from benchmarks.real_vit import RealViT
from benchmarks.rules_of_papers import corp_mlps, snp_mlps
from stages.prune_attention.options import PruneAttentionOptions
from stages.prune_attention.prune import prune as prune_attention
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune as prune_mlp
from stages.vit.model import ViT
from stages.vit.spec import ViTSpec

SHARES = (0.75, 0.5)
FIT = 700
PARTS = ("allocated", "shapes", "accuracy")
Steps = list[dict[str, Any]]
Row = dict[str, Any]
Cut = tuple[dict[str, Any], dict[str, Any] | None]
"""options of prune_mlp and, where heads are cut, of prune_attention, without the share"""

UNIFORM: dict[str, Cut] = {
    "uniform ols": ({"method": "ols"}, None),
    "uniform ols and rotate": ({"method": "ols"}, {"method": "rotate"}),
    "dgmr": ({"method": "dgmr", "repair": "none"}, None),
    "dgmr + repair": ({"method": "dgmr"}, None),
    "l2": ({"method": "l2", "repair": "none"}, None),
    "random + repair": ({"method": "random"}, {"method": "random"}),
    "corp": ({"method": "corp"}, {"method": "corp", "repair": "none"}),
    "snp": ({"method": "snp"}, {"method": "snp", "repair": "none"}),
    "snp + repair": ({"method": "ols"}, {"method": "snp"}),
}
"""corp and snp as methods of MLPs: benchmarks/rules_of_papers.py"""
PEERS = "Torch-Pruning"
"""of MLPs alone, l2 and taylor"""
AUTO: dict[str, dict[str, Any]] = {
    "allocated": {},
    "allocated, sizes and merging": {"search": {"tokens": [0.7, 0.5], "sizes": [192, 160]}},
}


def recipe(name: str, steps: Steps, runtime: str, budget: dict[str, float]) -> dict[str, Any]:
    """The recipe of one row."""
    folder = assets()
    weights = next((folder / "vit_tiny_patch16_224").glob("*.safetensors"))
    images = str(folder / "imagenet_train1000" / "images.zip")
    val = folder / "imagenet_val"
    return {
        "vitrim": 1,
        "name": name,
        "model": {"timm": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "checkpoint": str(weights)},
        "data": {
            "fit": {"images": images, "share": [0, 0.7]},
            "select": {"images": images, "share": [0.7, 1]},
            "evaluate": {"images": str(val / "images.zip"), "labels": str(val / "labels.csv")},
        },
        "steps": steps,
        "runtimes": [runtime],
        "budget": budget,
    }


def main() -> None:
    """Build every row and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.85, 0.7, 0.55])
    parser.add_argument("--only", nargs="*", help="only these rows: a try, which writes nothing")
    parser.add_argument("--fit", type=int, default=FIT, help="images that uniform rows calibrate on, with --only")
    parser.add_argument("--evaluate", type=int, help="images that uniform rows are evaluated on, with --only")
    parser.add_argument("--store", type=Path, help="keep finished steps here (default: a temporary folder)")
    add_resume(parser)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="with --resume, only these")
    arguments = parser.parse_args()
    if arguments.only is None and (arguments.fit != FIT or arguments.evaluate):
        parser.error("--fit and --evaluate go with --only: with fewer images it is a try")
    if arguments.only is not None and arguments.resume:
        parser.error("--only is a try, which writes nothing: it has nothing to resume")
    if tuple(arguments.parts) != PARTS and not (arguments.resume or arguments.only):
        parser.error("--parts goes with --resume or --only: a result file has all of them")
    rows = Rows.of(arguments.runtime, resume=arguments.resume, write=arguments.only is None)

    def wanted(name: str) -> bool:
        return arguments.only is None or name in arguments.only

    if "allocated" in arguments.parts:
        with tempfile.TemporaryDirectory(prefix="vitrim-bench-") as folder:
            store = arguments.store or Path(folder, "store")
            for name, options in AUTO.items():
                for ratio in arguments.ratios if wanted(name) else ():
                    if not rows.has(name, ratio):
                        content = recipe("allocation", [{"prune": options}], rows.runtime, {"latency_ratio": ratio})
                        rows.keep(measure(name, ratio, content, store))
    names = [name for name in (*UNIFORM, PEERS) if wanted(name)]
    if names and {"shapes", "accuracy"} & set(arguments.parts):
        real = RealViT(fit=arguments.fit, evaluate=arguments.evaluate)
        for share in SHARES:
            for heads in (False, True):
                timed(real, share, heads, rows)
        if "accuracy" in arguments.parts:
            uniform(real, names, rows)


class Rows:
    """What is measured so far, written after every row."""

    def __init__(self, runtime: str, rows: list[Row], shapes: list[Row], *, write: bool) -> None:
        self.runtime = runtime
        self.rows = rows
        self.shapes = shapes
        self.write = write

    @classmethod
    def of(cls, runtime: str, *, resume: bool, write: bool) -> "Rows":
        """Start with nothing, or with what the result file has for this runtime."""
        data = read_result("allocation") if resume else {}
        if not data:
            return cls(runtime, [], [], write=write)
        if data["runtime"] != runtime:
            raise SystemExit(f"benchmarks/results/allocation.json was measured with {data['runtime']}, not {runtime}")
        return cls(runtime, data["rows"], data["shapes"], write=write)

    def has(self, name: str, asked: float) -> bool:
        """Whether the row is there."""
        return any((row["name"], row["asked"]) == (name, asked) for row in self.rows)

    def keep(self, row: Row) -> None:
        """Take a row in and write them all."""
        self.rows.append(row | measured_with())
        self._write(row)

    def keep_shape(self, row: Row) -> None:
        """Take the latency of a uniform shape in and write."""
        self.shapes.append(row | measured_with())
        self._write(row)

    def _write(self, row: Row) -> None:
        print(json.dumps(row), flush=True)
        if self.write:
            found = {"runtime": self.runtime, "precision": "fp32", "rows": self.rows, "shapes": self.shapes}
            write_result("allocation", found)


def timed(real: RealViT, share: float, heads: bool, rows: Rows) -> Row:
    """The latency of a uniform shape, measured where it isn't known."""
    told = f"{share:.0%} of MLPs" + (" and heads" if heads else "")
    for row in rows.shapes:
        if row["group"] == told:
            return row
    anyone = {"method": "random", "repair": "none"}
    _, spec = cut(real, share, (anyone, anyone if heads else None))
    rows.keep_shape(time_shapes(told, {"unpruned": real.spec, "pruned": spec}, runtime=rows.runtime)[1])
    return rows.shapes[-1]


def uniform(real: RealViT, names: list[str], rows: Rows) -> None:
    """Keep a row for every uniform cut and share."""
    for name in names:
        for share in SHARES:
            if rows.has(name, share):
                continue
            if name == PEERS:
                for peer in peers(real, share):
                    figures = {key: value for key, value in peer.items() if key not in ("keep", "repair", "seconds")}
                    if not rows.has(figures["method"], share):
                        rows.keep(uniform_row(figures.pop("method"), share, figures, timed(real, share, False, rows)))
            else:
                pruned, _ = cut(real, share, UNIFORM[name])
                heads = UNIFORM[name][1] is not None
                rows.keep(uniform_row(name, share, real.figures(pruned), timed(real, share, heads, rows)))


def uniform_row(name: str, share: float, figures: dict[str, Any], timed: dict[str, Any]) -> dict[str, Any]:
    """A row. figures: of the answers; timed: of an engine of the same shapes."""
    low, high = timed["times_faster_ci95"]
    return {
        "name": name,
        "asked": share,
        "asked_of": timed["group"],
        **figures,
        "ratio": round(1 / timed["times_faster"], 4),
        "ratio_ci95": [round(1 / high, 4), round(1 / low, 4)],
        **{key: timed[key] for key in ("p50_ms", "params", "macs", "macs_share")},
    }


def cut(real: RealViT, share: float, options: Cut) -> tuple[ViT, ViTSpec]:
    """Cut every head and MLP to a share."""
    model, spec = real.model, real.spec
    mlp, attention = options
    if attention is not None:
        heads = PruneAttentionOptions.model_validate({"images": None, "keep": share, **attention})
        model, spec, _ = prune_attention(model, spec, heads, real.calibration if heads.reads_images else None)
    if mlp["method"] == "corp":
        return corp_mlps(model, spec, share, real.calibration)
    if mlp["method"] == "snp":
        return snp_mlps(model, spec, share)
    widths = PruneMlpOptions.model_validate({"images": None, "keep": share, **mlp})
    model, spec, _ = prune_mlp(model, spec, widths, real.calibration if widths.reads_images else None)
    return model, spec


def measure(name: str, asked: float, content: dict[str, Any], store: Path) -> dict[str, Any]:
    """Build one row in a process of its own and return its figures. asked: ratio or share."""
    with tempfile.TemporaryDirectory(prefix="vitrim-row-") as folder:
        path, output = Path(folder, "allocation.yaml"), Path(folder, "out")
        path.write_text(yaml.safe_dump(content))
        words = [sys.executable, "-m", "pipeline", "build", str(path), "--output", str(output), "--store", str(store)]
        done = subprocess.run(words, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{name} at {asked:g} ended with {done.returncode}")
        report = json.loads((output / "cpu" / "report.json").read_text())
    accuracy, latency, search = report["accuracy"], report["latency_ms"], report["search"]
    return {
        "name": name,
        "asked": asked,
        "top1": accuracy["engine"],
        "top1_source": accuracy["baseline"],
        "drop_points": accuracy["drop_points"],
        "drop_ci95": accuracy["drop_ci95"],
        "agreement": accuracy["agreement"],
        "ratio": latency["ratio"],
        "ratio_ci95": latency["ratio_ci95"],
        "p50_ms": latency["engine"]["p50"],
        "params": report["size"]["params"]["after"],
        "macs": report["size"]["macs"]["after"],
        "macs_share": report["size"]["macs"]["after"] / report["size"]["macs"]["before"],
        "predicted_loss": search["loss"] if search else None,
        "solve_ms": search["solve_ms"] if search else None,
        "rounds": [one["measured"] for one in search["rounds"]] if search else None,
        "merge": search["merge"] if search else None,
        "size": search["size"] if search else None,
        "agreement_on_select": {row["name"]: row["agreement"] for row in report["stages"] if row["agreement"]},
        "seconds": {stage["name"]: stage["seconds"] for stage in report["stages"]},
    }


if __name__ == "__main__":
    main()
