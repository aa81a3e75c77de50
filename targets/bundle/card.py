"""The model card of a bundle: README.md as a pure function of the manifest and the build's figures.

The card's keys are those of the report where it has them; each may be missing, and then the card says so.
    name, model, verdict, target {name, board}, accuracy {metric, baseline, engine, drop_points, drop_ci95, agreement,
    images}, latency_ms {batch, p50, ci95, queries, baseline_p50, speedup, speedup_ci95}, size {params, macs, bytes:
    {before, after}}, steps [{name}], limits [text], recipe_digest
"""

import math
from collections.abc import Mapping
from typing import Any

from targets.bundle.manifest import BundleManifest
from targets.runtimes.intel.options import CPU, DEVICES
from targets.runtimes.nvidia.options import PROVIDERS

_ENGINE_FILES = {"onnxruntime_cuda": "model.onnx", "onnxruntime_tensorrt": "model_ctx.onnx"}
_PROVIDED = {runtime: f" (onnxruntime, with {provider} alone)" for runtime, provider in PROVIDERS.items()}
SHARES = ("top1", "zero_shot_top1", "knn_agreement")
"""metrics that count images"""


def model_card(manifest: BundleManifest, card: Mapping[str, Any]) -> str:
    """Write README.md."""
    parts = [
        f"# {_text(manifest.name)}",
        f"{_text(manifest.summary)}.",
        *_how_to_run(manifest),
        *_how_to_use(manifest),
        "## Figures",
        _figures(card),
        "## Target",
        _target(manifest, card),
        "## Limits",
        _limits(manifest, card),
        "## Licence",
        f"Weights: {_text(manifest.licence)}. `run.py` and `pixels.py`: Apache-2.0.",
        "## Where it comes from",
        _origin(manifest, card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how_to_run(manifest: BundleManifest) -> list[str]:
    logits = manifest.output.kind == "logits"
    printed = "the classes of the image with probabilities" if logits else "the features of the image"
    if manifest.runtime not in ("onnxruntime", *DEVICES):
        return _how_to_run_elsewhere(manifest, printed)
    return [
        "## How to run it",
        f"```sh\npip install numpy pillow {_requirement(manifest)}\npython run.py image.jpg\n```",
        f"It prints {printed}; `python run.py --help` lists its options. Neither torch nor vitrim is needed. It "
        "first compares every file with `manifest.json`. On another kind of processor or device, or with another "
        "version of the runtime (onnxruntime or openvino), it runs `model.onnx`, the same graph, and says so.",
    ]


def _how_to_use(manifest: BundleManifest) -> list[str]:
    """From a Python program; nothing is compiled."""
    answer = 'print(bundle.classify("image.jpg", top=3))  # class, label, probability'
    if manifest.output.kind != "logits":
        answer = 'print(next(bundle.answers([bundle.read("image.jpg")])))  # the features'
    return [
        "From a Python program, with nothing to compile:",
        f'```python\nimport sys\n\nsys.path.insert(0, "/path/to/this/folder")\nimport run\n\n'
        f"bundle = run.Bundle()  # compares every file first\n{answer}\n```",
        "`python run.py --verify` only compares the files, and needs no package; `sha256sum -c SHA256SUMS` finds "
        "damage without Python.",
    ]


def _how_to_run_elsewhere(manifest: BundleManifest, printed: str) -> list[str]:
    """Of an engine that `run.py` does not load."""
    version = f"{_text(manifest.runtime)} {_text(manifest.version)}"
    if manifest.engine_sha256 is None:
        engine = (
            f"There is no engine in it: {version} builds it on the machine that runs it, by `sh build.sh "
            "ENGINE_FOLDER`. `target.json` says for which board."
        )
    else:
        file = _ENGINE_FILES.get(manifest.runtime, "model.plan")
        how = f"that runtime's own API{_PROVIDED.get(manifest.runtime, '')}"
        engine = f"`engine/{file}` is for {version}; compare its SHA-256, then load it with {how}."
    return [
        "## How to run it",
        engine,
        "`model.onnx` is the same graph and runs anywhere, more slowly:",
        "```sh\npip install numpy pillow onnxruntime\npython run.py image.jpg\n```",
        f"It prints {printed}; `python run.py --help` lists its options. Neither torch nor vitrim is needed. It first "
        "compares every file with `manifest.json`.",
    ]


def _requirement(manifest: BundleManifest) -> str:
    """What pip is asked for: the version that built the engine, or the range that the target needs."""
    package = CPU if manifest.runtime in DEVICES else manifest.runtime
    if manifest.version[:1].isdigit():
        return f"{package}=={manifest.version}"
    return f"'{package}{manifest.version}'" if manifest.version else package


def _figures(card: Mapping[str, Any]) -> str:
    rows = []
    if accuracy := card.get("accuracy"):
        n, metric = accuracy["images"], str(accuracy["metric"])
        for name, who in (
            ("engine", "its graph" if accuracy.get("proxy") else "this engine"),
            ("baseline", "the source model in fp32"),
        ):
            share = accuracy[name]
            interval = wilson(share, n) if metric in SHARES else None
            rows.append((f"{metric} of {who}", f"{100 * share:.2f} %", _interval(interval, " %", 100), f"{n} images"))
        drop = f"{accuracy['drop_points']:+.2f} points"
        rows.append(("drop, image by image", drop, _interval(accuracy.get("drop_ci95"), " points"), f"{n} images"))
        if accuracy.get("agreement") is not None:
            share = accuracy["agreement"]
            rows.append(
                (
                    "same answer as the source",
                    f"{100 * share:.2f} %",
                    _interval(wilson(share, n), " %", 100),
                    f"{n} images",
                )
            )
    if latency := card.get("latency_ms"):
        batch = f"batch {latency['batch']}"
        queries = f"{latency['queries']} queries" if latency.get("queries") else ""
        rows.append(
            (f"latency, {batch}, median", f"{latency['p50']:.2f} ms", _interval(latency.get("ci95"), " ms"), queries)
        )
        rows.append((f"latency of the fp32 baseline, {batch}", f"{latency['baseline_p50']:.2f} ms", "", ""))
        rows.append(
            (
                "speed-up over the baseline",
                f"{latency['speedup']:.2f}x",
                _interval(latency.get("speedup_ci95"), "x"),
                "",
            )
        )
    for key, what in (
        ("params", "parameters"),
        ("macs", "multiplications per image"),
        ("bytes", "bytes of the engine"),
    ):
        if change := (card.get("size") or {}).get(key):
            rows.append((what, f"{change['after']:,}", "", f"before: {change['before']:,}"))
    if not rows:
        return "Nothing was measured."
    lines = ["| what | value | 95 % interval | of |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
    verdict = [f"\n{_text(card['verdict'])}"] if card.get("verdict") else []
    return "\n".join(lines + verdict)


def _target(manifest: BundleManifest, card: Mapping[str, Any]) -> str:
    target = card.get("target") or {}
    lines = [
        f"- {what}: {_text(target[key])}" for key, what in (("name", "target"), ("board", "board")) if key in target
    ]
    lines.append(
        f"- runtime: {_text(manifest.runtime)} {_text(manifest.version)}, precision {_text(manifest.precision)}"
    )
    for tensor in manifest.inputs:
        shape = " x ".join("any" if size is None else str(size) for size in tensor.shape)
        lines.append(f"- input `{_text(tensor.name)}`: {shape}, {tensor.dtype}; from an image by `preprocessing.json`")
    lines.append(f"- answer: output `{_text(manifest.output.name)}`, {manifest.output.size} {manifest.output.kind}")
    if manifest.bound_to:
        bound = ", ".join(f"{_text(name)} {_text(value)}" for name, value in sorted(manifest.bound_to.items()))
        lines.append(f"- the engine was built for {bound}")
    return "\n".join(lines)


def _limits(manifest: BundleManifest, card: Mapping[str, Any]) -> str:
    limits = [_text(limit) for limit in card.get("limits", ())]
    accuracy = card.get("accuracy")
    if accuracy and accuracy.get("proxy"):
        limits.append(f"The engine never ran. Accuracy was measured by a proxy: {_text(accuracy['proxy'])}.")
    if accuracy:
        limits.append(f"Accuracy was measured on {accuracy['images']} images; on other kinds of images it may differ.")
    else:
        limits.append("Its accuracy was not measured.")
    limits.append("Figures of time hold for the machine they were measured on.")
    if manifest.output.kind == "logits":
        limits.append(
            "Probabilities are a softmax of the outputs; they are not calibrated, and every image gets a class."
        )
    limits.append("The digests find damage; they are no signature.")
    return "\n".join(f"- {limit}" for limit in limits)


def _origin(manifest: BundleManifest, card: Mapping[str, Any]) -> str:
    lines = ["- engine: none yet, the board builds it"]
    if manifest.engine_sha256 is not None:
        lines = [f"- engine: sha256 `{manifest.engine_sha256}` (of `engine/engine.json`)"]
    if card.get("model"):
        lines.append(f"- source model: {_text(card['model'])}")
    if card.get("recipe_digest") and "recipe_digest" not in manifest.provenance:
        lines.append(f"- recipe: `{_text(card['recipe_digest'])}`")
    for name, value in sorted(manifest.provenance.items()):
        told = ", ".join(f"{one} {value[one]}" for one in sorted(value)) if isinstance(value, dict) else value
        lines.append(f"- {_text(name)}: {_text(told)}")
    if card.get("steps"):
        lines.append("- steps: " + ", ".join(_text(step["name"]) for step in card["steps"]))
    lines.append(f"- written by vitrim {_text(manifest.vitrim)}; `manifest.json` lists every file")
    return "\n".join(lines)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n (E. B. Wilson, JASA 22, 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _interval(bounds: Any, unit: str, factor: float = 1.0) -> str:
    return "" if bounds is None else f"{factor * bounds[0]:.2f} to {factor * bounds[1]:.2f}{unit}"


def _text(value: object) -> str:
    """As one line of Markdown in which nothing but words is left."""
    line = " ".join(str(value).split())
    return "".join(f"\\{sign}" if sign in "\\`*[]<>|#" else sign for sign in line)
