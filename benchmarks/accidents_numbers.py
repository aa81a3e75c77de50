"""Accidents with numbers: fp16 that overflows, int8 that collapses, images prepared in another way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from benchmarks.accident import Accident, Said, Workshop, digits, said_by_command, small_vit, warnings_of
from pipeline.pixels import Pixels
from pipeline.recipe import Measure
from pipeline.validation import Engines, Subject, check_parity, measure_accuracy
from pipeline.verdict import exit_code, judge
from stages.quantize.half import HALVES, emulate
from stages.stage import Role
from stages.vit.spec import ViTSpec
from targets.preprocess import Preprocess
from targets.profile import Budget
from targets.worker import Worker

FP16_LARGEST = 65504
BEYOND_FP16, COLLAPSING = 3.5e4, 3e3
"""how much larger two channels behind the norms are; the first makes them exceed fp16"""
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""the model was trained with 0.5 and 0.5"""
UNSCALED = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}
"""the division by 255 forgotten"""


def overflow(shop: Workshop) -> Said:
    """Activations beyond 65504, to fp16."""
    graph = shop.graph(BEYOND_FP16)
    with warnings_of("vitrim.quantize") as heard:
        result, _ = shop.quantize("overflow", graph, precision="fp16", images=16)
    facts = result.facts
    kept = [one for one in facts["kept_float"] if one["largest"] > FP16_LARGEST]
    lost = _lost_without_islands(graph, shop.folder("overflow/plain"))
    said = next((line for line in heard if line.startswith("fp16:")), "")
    named = bool(kept) and kept[0]["node"] in said
    return Said(
        caught=named and facts["agreement"] > 0.98 and lost > 0,
        said=said,
        found=f"largest value {facts['largest']:.0f}; {len(facts['kept_float'])} nodes stay fp32, agreement with fp32 "
        f"{facts['agreement']:.3f}; with none of them in fp32 {100 * lost:.0f} % of the answers are not finite",
    )


def _lost_without_islands(graph: Path, folder: Path) -> float:
    """Share of answers that are not finite where everything is rounded to fp16."""
    model = onnx.load(graph / "model.onnx")
    emulate(model, set(), HALVES["fp16"])
    onnx.save(model, folder / "model.onnx")
    preprocess = ViTSpec.model_validate_json((graph / "vit.json").read_text()).preprocess
    pixels = digits(Role.SELECT).uint8(preprocess, folder=folder)
    with Worker(threads=1) as worker:
        worker.load(folder / "model.onnx", runtime="onnxruntime", precision="fp32")
        (answers,) = worker.infer(pixels, batch=1, preprocess=preprocess).values()
    return float((~np.isfinite(answers)).any(axis=1).mean())


def collapse(shop: Workshop) -> Said:
    """One int8 scale per tensor over outliers, in a whole build."""
    steps = ["export", {"quantize": {"alphas": ["off"], "images": 32}}]
    answer, report = shop.build(shop.recipe("collapse", {"folder": str(shop.model(COLLAPSING))}, steps))
    facts = next((row["facts"] for row in report.get("stages", ()) if row["name"] == "quantize"), {})
    verdict = report.get("verdict", {})
    broken = facts.get("breaks_at") or {}
    told = [line for line in answer.err.splitlines() if "collapsed" in line]
    remedy, _ = shop.quantize("collapse", shop.graph(COLLAPSING), alphas=(0.95,), images=32)
    named = bool(told) and str(broken.get("node")) in told[0]
    return Said(
        caught=answer.code == 1 and verdict.get("status") == "failed" and bool(facts.get("collapsed")) and named,
        said="; ".join([*told, verdict.get("sentence", "")]),
        exit_code=answer.code,
        found=f"agreement with fp32 {facts.get('agreement', 0):.3f}; first tensor below 6 dB: {broken.get('node')} "
        f"({broken.get('snr_db', 0):.1f} dB); with SmoothQuant 0.95 the agreement is {remedy.facts['agreement']:.3f}",
    )


def edited_bundle(shop: Workshop) -> Said:
    """preprocessing.json of a bundle, edited."""
    bundle = shop.place / "edited"
    shutil.copytree(shop.bundle, bundle)
    file = bundle / "preprocessing.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **IMAGENET}))
    run = subprocess.run(
        [sys.executable, str(bundle / "run.py"), "picture.png"], capture_output=True, text=True, check=False
    )
    found = said_by_command(shop.vitrim("validate", bundle), 1, "damaged", "preprocessing.json")
    refused = run.returncode == 1 and "damaged" in run.stderr
    return Said(
        caught=found.caught and refused,
        said=found.said,
        exit_code=found.exit_code,
        found=f"run.py, exit {run.returncode}: {run.stderr.strip()}",
    )


def no_processor(shop: Workshop) -> Said:
    """A folder of transformers without its processor."""
    folder = shop.folder("no-processor")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 32, "image_size": 16}))
    (folder / "model.safetensors").write_bytes(b"")
    recipe = shop.recipe("no-processor", {"folder": str(folder)}, ["export"])
    return said_by_command(shop.build(recipe)[0], 2, "preprocessor_config.json")


def engine_alone(shop: Workshop) -> Said:
    """The engine's images are prepared in another way than the source's: which check sees it?"""
    bundle = shop.bundle
    right = Preprocess.model_validate_json((bundle / "preprocessing.json").read_text())
    wrong = right.replace(**{name: tuple(values) for name, values in UNSCALED.items()})
    folder, budget = shop.folder("engine-alone"), Budget(accuracy_drop_points=3)
    engines = {1: bundle / "engine"}
    subject = Subject(
        engines=Engines(baseline=engines, unpruned=engines, engine=engines),
        batch=1,
        precision="fp32",
        model=None,
        source_graph=bundle / "model.onnx",
        spec=small_vit().replace(preprocess=right),  # of which only what it reads and its classes count here
        preprocess=wrong,
        measure=Measure(),
        budget=budget,
        threads=1,
        floors={},
        command_bundle=lambda role, place: None,
    )
    pixels = Pixels.of(digits(Role.SELECT), wrong, folder)
    parity = check_parity(subject, pixels, tell=_quiet)
    accuracy, _ = measure_accuracy(subject, digits(Role.EVALUATE), folder, tell=_quiet)
    verdict = judge(budget, accuracy=accuracy, latency=None, memory_bytes=None, engine_bytes=None, parity=parity)
    return Said(
        caught=verdict.status == "over",
        said=verdict.sentence,
        found=f"accuracy sees it (exit {exit_code(verdict.status)} in a build); parity does not: both sides read the "
        f"same numbers (cosine {parity.cosine:.4f}, passed: {parity.passed})",
    )


def wrong_from_the_start(shop: Workshop, wrong: dict[str, list[float]], name: str, *, told: bool) -> Said:
    """A recipe that says another normalisation than the model was trained with: baseline and engine share it.

    told: whether the recipe says what accuracy is known of the model.
    """
    right = shop.trained[0]["accuracy"]["baseline"]
    model = {"onnx": str(shop.bundle / "model.onnx"), "preprocess": {**wrong, "crop_share": 0.9}}
    recipe = shop.recipe(name, model, [{"quantize": {"alphas": [0.5], "images": 32}}])
    words = ["--set", f"measure.known_accuracy={right:.3f}"] if told else []
    answer, report = shop.build(recipe, *words)
    if not report:  # refused: the hole is closed
        return Said(caught=answer.code != 0, said=answer.err.strip(), exit_code=answer.code)
    status, sentence = report["verdict"]["status"], report["verdict"]["sentence"]
    return Said(
        caught=answer.code != 0 or status != "within",
        said=sentence,
        exit_code=answer.code,
        found=f"the baseline's top-1 falls from {100 * right:.1f} to {100 * report['accuracy']['baseline']:.1f} %, "
        f"and the verdict is {status}",
    )


def _quiet(message: str, share: float | None) -> None:
    pass


HOLE = "the baseline is read in the same wrong way; the recipe must say `measure.known_accuracy`"
KNOWN = "tests/pipeline/test_plausible.py::test_a_source_far_from_what_is_known_of_it_is_told"
QUANTIZE, BUNDLE = "tests/stages/quantize/test_ladder.py", "tests/targets/bundle/test_run.py"
OURS = "tests/benchmarks/test_accidents.py::test_quick_accidents_are_caught_in_vitrim_s_own_words"
NUMBERS = (
    Accident(
        name="fp16 overflow",
        done="a ViT with two channels behind each norm beyond 65504, quantized to fp16",
        by="range scan of quantize",
        stage=overflow,
        tests=(f"{QUANTIZE}::test_what_overflows_fp16_is_found_named_and_repaired", OURS),
    ),
    Accident(
        name="int8 collapse",
        done="a build in int8 without SmoothQuant of a ViT whose norms give outliers: one scale per tensor over them",
        by="agreement on select, signal to noise, parity",
        stage=collapse,
        tests=(f"{QUANTIZE}::test_a_collapse_names_the_layer_where_the_signal_is_lost",),
        quick=False,
    ),
    Accident(
        name="normalisation of a bundle edited",
        done="ImageNet's mean and std written into preprocessing.json of a bundle trained with 0.5",
        by="digests of the manifest, in validate and run.py",
        stage=edited_bundle,
        tests=(f"{BUNDLE}::test_a_damaged_bundle_does_not_run",),
        quick=False,
    ),
    Accident(
        name="normalisation unknown",
        done="a folder of transformers without its preprocessor_config.json",
        by="source",
        stage=no_processor,
        tests=("tests/stages/source/test_transformers.py::test_what_cannot_be_read_is_refused_in_one_line", OURS),
    ),
    Accident(
        name="normalisation of the engine alone",
        done="validation of an engine that reads pixels of 0..255, of a source that reads what it was trained with",
        by="accuracy",
        stage=engine_alone,
        tests=(),
        quick=False,
    ),
    Accident(
        name="normalisation wrong from the start, ImageNet's",
        done="a recipe that starts from an ONNX file trained with 0.5, says ImageNet's mean and std, and what is known",
        by="`measure.known_accuracy`",
        stage=lambda shop: wrong_from_the_start(shop, IMAGENET, "imagenet-mean", told=True),
        tests=(KNOWN,),
        quick=False,
    ),
    Accident(
        name="normalisation wrong from the start, no scaling",
        done="the same with pixels of 0..255, the division by 255 forgotten",
        by="`measure.known_accuracy`",
        stage=lambda shop: wrong_from_the_start(shop, UNSCALED, "no-scaling", told=True),
        tests=(KNOWN,),
        quick=False,
    ),
    Accident(
        name="normalisation wrong from the start, and nothing known of the model",
        done="the first of these two, in a recipe without `measure.known_accuracy`",
        by="nothing",
        stage=lambda shop: wrong_from_the_start(shop, IMAGENET, "imagenet-mean-unknown", told=False),
        tests=(),
        hole=HOLE,
        quick=False,
    ),
)
