"""Write a bundle: the folder that is shipped, in place in one step or not at all."""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from targets.atomic import sha256_of, sync_folder, sync_tree
from targets.bundle.board import BUILD_SCRIPT, build_script
from targets.bundle.card import model_card
from targets.bundle.expected import FILE as EXPECTED
from targets.bundle.expected import Expected
from targets.bundle.manifest import BundledFile, BundleManifest, Output, Tensor
from targets.bundle.reproduce import REPRODUCE_SCRIPT, reproduce_script
from targets.bundle.run import FORMAT, MANIFEST, SUMS, sums_text
from targets.errors import InputError, StoreError
from targets.preprocess import Preprocess
from targets.runtimes.engine import ENGINE_FILE, read_engine, verify_files
from targets.runtimes.own import own_table

LICENCE = "not stated; that of the source model's weights holds"
CARD = "card.json"
"""the figures that README.md is written from"""
BUILT = "build.json"
"""threads and options of an engine that a package leaves out, for whoever builds it again"""
STALE_SECONDS = 3600
"""a temporary folder beside the bundle that is older was left by a killed process"""


def write_bundle(
    folder: Path,
    *,
    engine: Path | None,
    onnx: Path,
    spec: Mapping[str, Any],
    preprocess: Preprocess,
    labels: Sequence[str] | None,
    card: Mapping[str, Any],
    planned: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    expected: Expected | None = None,
) -> BundleManifest:
    """Put engine, portable graph, preprocessing, labels, run.py and model card into a folder.

    engine: a folder with engine.json; None where the board builds it, then `planned` says its runtime, versions (a
    range), precision and batch. onnx: the graph that the engine was, or will be, built from. spec: the data of
    vit.json. target: the profile, for a board that is elsewhere; it becomes target.json.
    expected: answers and budget of the build, which it can be held against again; it becomes expected.json.
    labels: a name for each class. card: the model card's figures, see `card.py`; also name, licence and provenance.
    An older bundle is replaced; until the very end it stays as it is. Raises InputError for a folder that holds
    something else or an engine that is damaged, StoreError where the disk is full or read-only.
    """
    if engine is None:
        facts = _planned_facts(onnx, planned or {})
    else:
        facts = read_engine(engine)
        verify_files(engine, facts)
    output = _output(facts, int(spec["classes"]))
    if labels is not None and len(labels) != spec["classes"]:
        raise InputError(f"{len(labels)} labels for {spec['classes']} classes; give one name per class, in their order")
    with in_place_of(folder, "the bundle", is_ours=_is_bundle) as new:
        if engine is not None:
            (new / "engine").mkdir()
            for name in (ENGINE_FILE, *facts["files"]):
                shutil.copyfile(engine / name, new / "engine" / name)
        for path in (onnx, *external_data(onnx)):
            shutil.copyfile(path, new / ("model.onnx" if path == onnx else path.name))
        for name in ("run.py", "pixels.py"):
            shutil.copyfile(Path(__file__).parent / name, new / name)
        _write(new / "preprocessing.json", json_text(preprocess.model_dump(mode="json")))
        _write(new / "labels.json", json_text(None if labels is None else list(labels)))
        manifest = BundleManifest(
            name=str(card.get("name", spec["architecture"])),
            summary=_summary(spec, facts, output),
            runtime=facts["runtime"],
            version=facts["version"],
            precision=facts["precision"],
            batch=facts["batch"],
            inputs=tuple(Tensor(**tensor) for tensor in facts["inputs"]),
            outputs=tuple(Tensor(**tensor) for tensor in facts["outputs"]),
            output=output,
            bound_to=facts["bound_to"],
            engine_sha256=None if engine is None else sha256_of(new / "engine" / ENGINE_FILE),
            provenance=dict(card.get("provenance", {})),
            vitrim=str(card.get("vitrim", _own_version())),
            licence=str(card.get("licence", LICENCE)),
            files={},
        )
        if target is not None:
            _write(new / "target.json", json_text(dict(target)))
        if expected is not None:
            _write(new / EXPECTED, expected.model_dump_json(exclude_none=True) + "\n")
        _write(new / CARD, json_text(dict(card)))
        for name, text in written_files(manifest, card, engine=facts, onnx=onnx).items():
            _write(new / name, text)
        manifest = manifest.replace(files=_listed(new), sums=SUMS)
        text = json_text(manifest.model_dump(mode="json"))
        _write(new / MANIFEST, text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        _write(new / SUMS, sums_text(manifest.model_dump(mode="json")["files"], digest))
    return manifest


def written_files(
    manifest: BundleManifest, card: Mapping[str, Any], *, engine: Mapping[str, Any], onnx: Path
) -> dict[str, str]:
    """What a bundle holds as words, by name: model card and commands. engine: engine.json, or what is planned."""
    found: dict[str, str | None] = {"README.md": model_card(manifest, card)}
    runtime = manifest.runtime
    if manifest.engine_sha256 is None:
        found[BUILD_SCRIPT] = build_script(
            runtime,
            inputs=manifest.inputs,
            batch=manifest.batch,
            versions=manifest.version,
            precision=manifest.precision,
            options={name: one for name, one in (engine.get("options") or {}).items() if name in own_table(runtime)},
        )
    found[REPRODUCE_SCRIPT] = reproduce_script(manifest, engine=engine, open_dimension=_open_dimension(onnx))
    return {name: text for name, text in found.items() if text is not None}


def json_text(value: Any) -> str:
    """One spelling for the JSON files of a bundle."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _planned_facts(onnx: Path, planned: Mapping[str, Any]) -> dict[str, Any]:
    """What engine.json would say of an engine that is not built yet, from its graph."""
    known = {"runtime": "onnxruntime", "version": "", "precision": "fp32", "batch": 1, "options": {}}
    return {**known, **planned, **onnx_facts(onnx), "bound_to": {}}


def onnx_facts(onnx: Path) -> dict[str, Any]:
    """Name, shape (None: dynamic) and dtype of a graph's inputs and outputs."""
    from onnx import TensorProto, helper, load

    graph = load(str(onnx), load_external_data=False).graph
    weights = {one.name for one in graph.initializer}

    def facts(value: Any) -> dict[str, Any]:
        kind = value.type.tensor_type
        shape = [one.dim_value if one.HasField("dim_value") else None for one in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type != TensorProto.UNDEFINED else "?"
        return {"name": value.name, "shape": shape, "dtype": str(dtype)}

    return {
        "inputs": [facts(one) for one in graph.input if one.name not in weights],
        "outputs": [facts(one) for one in graph.output],
    }


def _open_dimension(onnx: Path) -> str | None:
    """Name of a graph's batch where it is left open."""
    from onnx import load

    graph = load(str(onnx), load_external_data=False).graph
    weights = {one.name for one in graph.initializer}
    for one in graph.input:
        if one.name not in weights and one.type.tensor_type.shape.dim:
            first = one.type.tensor_type.shape.dim[0]
            return None if first.HasField("dim_value") else str(first.dim_param)
    return None


def _output(engine: Mapping[str, Any], classes: int) -> Output:
    """The output that answers: one row per image, called `logits` or `features`, or else the first such."""
    kind: Literal["logits", "features"] = "logits" if classes else "features"
    rows = [
        (tensor["name"], tensor["shape"][1])
        for tensor in engine["outputs"]
        if len(tensor["shape"]) == 2 and tensor["shape"][1] and tensor["shape"][1] == (classes or tensor["shape"][1])
    ]
    if not rows:
        shapes = {tensor["name"]: tensor["shape"] for tensor in engine["outputs"]}
        raise InputError(f"no output of the engine has shape [batch, {classes or 'width'}], it has {shapes}")
    name, size = next((row for row in rows if row[0] == kind), rows[0])
    return Output(name=name, kind=kind, size=size)


def _summary(spec: Mapping[str, Any], engine: Mapping[str, Any], output: Output) -> str:
    task = (
        f"classifies images into {output.size} classes" if output.kind == "logits" else "describes images by features"
    )
    runtime = f"{engine['runtime']} {engine['version']}".strip()
    return f"{spec['architecture']}, {task}; {runtime}, {engine['precision']}"


def external_data(onnx: Path) -> list[Path]:
    """Files beside an ONNX graph that hold its larger tensors; raises InputError where they are not beside it."""
    from onnx import load
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    graph = load(str(onnx), load_external_data=False).graph
    names = {ExternalDataInfo(tensor).location for tensor in graph.initializer if uses_external_data(tensor)}
    for name in names:
        if Path(name).name != name or (onnx.parent / name).is_symlink() or not (onnx.parent / name).is_file():
            raise InputError(f"{str(onnx)!r} keeps tensors in {name!r}, which is no file beside it; export it again")
    return [onnx.parent / name for name in sorted(names)]


def _check_replaceable(folder: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Raise InputError unless there is nothing, an empty folder or an older one of the same kind."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise InputError(f"{str(folder)!r} is in the way: it is not a folder; choose another output or remove it")
    try:
        fits = not any(folder.iterdir()) or is_ours(folder)
    except OSError:
        fits = False
    if not fits:
        raise InputError(f"{str(folder)!r} holds something that is not {what}; choose another output or remove it")


def _is_bundle(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def in_place_of(folder: Path, what: str, *, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder beside this one that takes its place at the end; on any error nothing has changed.

    what: with its article, for messages. is_ours: whether a folder may be replaced. Raises InputError where not,
    StoreError where it cannot be written.
    """
    _check_replaceable(folder, is_ours, what.replace("the ", "a ", 1))
    folder = folder.absolute()
    mark = f".{folder.name}-{secrets.token_hex(4)}"
    new, old = folder.with_name(f"{mark}.tmp"), folder.with_name(f"{mark}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        new.mkdir()
        yield new
        sync_tree(new)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
        sync_folder(folder.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"cannot write {what} {str(folder)!r}: {reason}; free some space or choose another output"
        ) from error
    finally:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    for leftover in folder.parent.glob(f".{escape(folder.name)}-????????.*"):
        with suppress(OSError):
            if leftover.suffix in (".tmp", ".old") and time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(leftover)


def _listed(folder: Path) -> dict[str, BundledFile]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): BundledFile(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in files
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _own_version() -> str:
    try:
        return version("vitrim")
    except PackageNotFoundError:
        return "unknown"
