"""Accidents with files and engines: graphs that a GPU does not take, engines of elsewhere, damage, pickles."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.accident import CLASSES, SIDE, Accident, Said, Workshop, said_by, said_by_command
from benchmarks.accidents_numbers import OURS
from targets.runtimes.engine import ENGINE_FILE
from targets.worker import Worker

RTX, CUDA = "tensorrt_rtx", "CUDAExecutionProvider"
BUILDS = "tests/targets/runtimes/nvidia/test_rtx_builds.py"
TRUST = "tests/targets/runtimes/nvidia/test_trust.py"
CONTRACT = "tests/targets/runtimes/test_contract.py"
OTHER_VERSION = "1.2.3.4"


def _build(model: Path, output: Path, runtime: str, precision: str, **more: Any) -> dict[str, Any]:
    with Worker(threads=1) as worker:
        return worker.build(model, output, runtime=runtime, precision=precision, batch=1, more=more)[0]


def _load(folder: Path) -> None:
    with Worker(threads=1) as worker:
        worker.load(folder)


def asymmetric(shop: Workshop) -> Said:
    """int8 with zero points that are not 0, to TensorRT-RTX."""
    _, model = shop.quantize("asymmetric", shop.graph(), alphas=("off",), images=8, bias_correction=False)
    output = shop.folder("asymmetric/engine")
    said = said_by(lambda: _build(model, output, RTX, "int8", compute_capability="8.9"), "`symmetric: true`", "node")
    return _with_leftovers(said, output)


def illegal_fp8(shop: Workshop) -> Said:
    """fp8 for an Ampere GPU."""
    _, model = shop.quantize("illegal", shop.graph(), precision="fp8", images=4, select_images=4)
    output = shop.folder("illegal/engine")
    said = said_by(lambda: _build(model, output, RTX, "fp8", compute_capability="8.6"), "'fp8'", "8.6")
    return _with_leftovers(said, output)


def illegal_recipe(shop: Workshop) -> Said:
    """The same in a recipe: refused before anything runs."""
    steps = ["export", {"quantize": {"precision": "fp8"}}]
    recipe = shop.recipe("illegal-recipe", {"folder": str(shop.model(1.0))}, steps, runtimes=None, targets=["rtx-3060"])
    return said_by_command(shop.vitrim("plan", recipe), 2, "rtx-3060", "does not run fp8")


def _with_leftovers(said: Said, output: Path) -> Said:
    """Nothing may be written of what is refused."""
    return Said(caught=said.caught and not any(output.iterdir()), said=said.said)


def provider_of_runtime(shop: Workshop) -> Said:
    """A provider that this ONNX Runtime does not have: its package would answer on the CPU without an error."""
    model, output = shop.graph() / "model.onnx", shop.folder("provider/engine")
    said = said_by(lambda: _build(model, output, "onnxruntime_cuda", "fp32"), "without the CUDA provider")
    return _with_leftovers(said, output)


def provider_of_target(shop: Workshop) -> Said:
    """A target that demands a GPU's provider, built where layers run on the CPU."""
    file = shop.place / "mine.yaml"
    facts = {"name": "mine", "summary": "mine", "verified": "not yet", "extends": "cpu"}
    file.write_text(yaml.safe_dump({**facts, "demands": {"providers": [CUDA]}}))
    recipe = shop.recipe("demands", {"folder": str(shop.model(1.0))}, ["export"])
    answer, report = shop.build(recipe, "--target", file)
    sentence = report.get("verdict", {}).get("sentence", "")
    return Said(
        caught=answer.code == 1 and f"the target allows {CUDA}" in sentence, said=sentence, exit_code=answer.code
    )


def _changed_binding(
    shop: Workshop, name: str, runtime: str, changes: Callable[[dict[str, str]], dict[str, str]]
) -> Said:
    """An engine built here whose engine.json says that it was built elsewhere; refused with both facts of each."""
    folder = shop.folder(f"{name}/engine")
    more = {"compute_capability": "12.0"} if runtime == RTX else {}
    engine = _build(shop.graph() / "model.onnx", folder, runtime, "fp32", **more)
    changed = changes(engine["bound_to"])
    engine["bound_to"] = {**engine["bound_to"], **changed}
    (folder / ENGINE_FILE).write_text(json.dumps(engine))
    words = [f"{fact} {value!r}, here '" for fact, value in changed.items()]
    return said_by(lambda: _load(folder), "the engine was built for ", *words)


def rtx_elsewhere(shop: Workshop) -> Said:
    """Another release of TensorRT-RTX and another GPU."""
    return _changed_binding(
        shop, "rtx", RTX, lambda bound: {RTX: OTHER_VERSION, "compute_capability": bound["compute_capability"]}
    )


def ort_elsewhere(shop: Workshop) -> Said:
    """Another release of ONNX Runtime and another processor."""
    return _changed_binding(
        shop,
        "ort",
        "onnxruntime",
        lambda bound: {"onnxruntime": OTHER_VERSION, "instruction_sets": "avx2 avx512f amx_int8"},
    )


def _flip(path: Path) -> None:
    """Change one bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damaged_engine(shop: Workshop) -> Said:
    """One bit of an engine."""
    folder = shop.folder("damaged/engine")
    engine = _build(shop.graph() / "model.onnx", folder, "onnxruntime", "fp32")
    _flip(folder / engine["load"])
    return said_by(lambda: _load(folder), engine["load"], "is not the one that was built")


def foreign_engine(shop: Workshop) -> Said:
    """engine.json of one engine, the file of another."""
    folder, other = shop.folder("foreign/engine"), shop.folder("foreign/other")
    engine = _build(shop.graph() / "model.onnx", folder, "onnxruntime", "fp32")
    _build(shop.graph(2.0) / "model.onnx", other, "onnxruntime", "fp32")
    shutil.copyfile(other / engine["load"], folder / engine["load"])
    return said_by(lambda: _load(folder), engine["load"], "is not the one that was built")


def damaged_bundle(shop: Workshop) -> Said:
    """One bit of the engine in a bundle."""
    bundle = shop.place / "damaged-bundle"
    shutil.copytree(shop.bundle, bundle)
    _flip(bundle / "engine" / json.loads((bundle / "engine" / ENGINE_FILE).read_text())["load"])
    return said_by_command(shop.vitrim("validate", bundle), 1, "damaged", "engine/model.onnx")


class Trap:
    """What a pickle may do when it is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        """Make a folder."""
        return os.mkdir, (str(self._folder),)


def pickled(shop: Workshop) -> Said:
    """A pickle in place of weights; it would make a folder."""
    sprung, file = shop.place / "sprung", shop.place / "weights.pth"
    file.write_bytes(pickle.dumps({"head.weight": Trap(sprung)}))
    model = {"timm": "vit_tiny_patch16_224", "image_size": SIDE, "classes": CLASSES}
    model |= {"arguments": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}}
    answer, _ = shop.build(shop.recipe("pickled", model, ["export"]), "--checkpoint", file)
    said = said_by_command(answer, 2, "weights.pth")
    return Said(caught=said.caught and not sprung.exists(), said=said.said, exit_code=said.exit_code)


ENGINES = (
    Accident(
        name="asymmetric Q/DQ for TensorRT",
        done="the int8 graph that CPUs take, given to TensorRT-RTX",
        by="look at the graph before the parser",
        stage=asymmetric,
        tests=(f"{BUILDS}::test_an_asymmetric_graph_is_refused_by_node", OURS),
        needs="tensorrt_rtx",
    ),
    Accident(
        name="fp8 for a GPU without it",
        done="an fp8 graph built by TensorRT-RTX for compute capability 8.6",
        by="table of legal pairs",
        stage=illegal_fp8,
        tests=(f"{BUILDS}::test_every_illegal_pair_is_refused_before_the_builder_is_asked", OURS),
        needs="tensorrt_rtx",
    ),
    Accident(
        name="fp8 for a GPU without it, in a recipe",
        done="a recipe with quantize: {precision: fp8} for the target rtx-3060",
        by="plan",
        stage=illegal_recipe,
        tests=(OURS,),
    ),
    Accident(
        name="provider that falls back",
        done="an engine for the CUDA provider of an ONNX Runtime that has none",
        by="runtime",
        stage=provider_of_runtime,
        tests=("tests/pipeline/doctor/test_providers.py::test_a_provider_whose_session_falls_back_is_found_out", OURS),
    ),
    Accident(
        name="provider that falls back, in a build",
        done="a target that demands the CUDA provider, built where every layer runs on the CPU",
        by="demands of the profile, held against every layer",
        stage=provider_of_target,
        tests=(
            "tests/end_to_end/test_onnx.py::test_an_engine_in_which_something_else_ran_than_its_target_demands_fails",
        ),
        quick=False,
    ),
    Accident(
        name="engine of elsewhere, TensorRT-RTX",
        done=f"an engine built here for 12.0, its engine.json changed to release {OTHER_VERSION}, loaded without a GPU",
        by="binding",
        stage=rtx_elsewhere,
        tests=(
            f"{TRUST}::test_another_gpu_or_version_is_refused_with_both_facts_before_deserialising",
            f"{BUILDS}::test_without_a_gpu_one_must_be_named_and_an_engine_is_not_loaded",
            OURS,
        ),
        needs="tensorrt_rtx",
    ),
    Accident(
        name="engine of elsewhere, ONNX Runtime",
        done=f"an engine built here, its engine.json changed to release {OTHER_VERSION} and other instruction sets",
        by="binding",
        stage=ort_elsewhere,
        tests=(f"{CONTRACT}::test_another_machine_or_version_is_refused_with_both_facts", OURS),
    ),
    Accident(
        name="damaged engine",
        done="one bit of the engine's file flipped",
        by="SHA-256 in engine.json",
        stage=damaged_engine,
        tests=(f"{CONTRACT}::test_a_changed_file_is_refused", OURS),
    ),
    Accident(
        name="engine that is not in the manifest",
        done="the file of another engine put in its place",
        by="SHA-256 in engine.json",
        stage=foreign_engine,
        tests=(f"{TRUST}::test_a_plan_that_engine_json_does_not_list_is_never_deserialised", OURS),
    ),
    Accident(
        name="damaged bundle",
        done="one bit of the engine in a bundle flipped",
        by="SHA-256 in the manifest",
        stage=damaged_bundle,
        tests=("tests/end_to_end/test_build.py::test_a_recipe_becomes_an_engine_a_report_and_a_bundle",),
        quick=False,
    ),
    Accident(
        name="pickle in place of a checkpoint",
        done="a .pth file that makes a folder when it is unpickled",
        by="source, which reads tensors only",
        stage=pickled,
        tests=("tests/pipeline/cli/test_bad_input.py::test_a_pickle_is_never_executed", OURS),
    ),
)
