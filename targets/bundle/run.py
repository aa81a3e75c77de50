#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Classify images with the model in this folder: `python run.py image.jpg`; check its files: `python run.py --verify`.

Needs numpy, pillow and onnxruntime or openvino (none of them to verify); neither torch nor vitrim. Runs on Python 3.9.
Exit: 0; 1 for a damaged bundle or where no runtime can run it; 2 for images that cannot be read or wrong arguments.
From a program: `import run; bundle = run.Bundle(); bundle.classify("image.jpg")`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
"""digests of all files in the form that `sha256sum -c` reads; it holds the one of the manifest"""
FORMAT = "vitrim.bundle/1"
MAX_MANIFEST_BYTES = 16 * 2**20
INSTALL = "pip install numpy pillow onnxruntime"
INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
"""those that decide which kernels a runtime takes, in the order in which engine.json names them"""
OPENVINO = {"openvino": "CPU", "openvino_gpu": "GPU", "openvino_npu": "NPU"}
"""runtime -> device"""
OPENVINO_PRECISIONS = {
    "openvino": {"bf16": "bf16"},
    "openvino_gpu": {"fp16": "f16", "int8": "f16"},
    "openvino_npu": {"fp16": "f16", "int8": "f16"},
}
"""runtime -> precision -> what OpenVINO is told; f32 where nothing stands"""

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: openvino takes its own stub


class BundleError(Exception):
    """Nothing can be run; the message says why in one line."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.verify == bool(options.image):
        parser.error("--verify takes no images" if options.verify else "give an image, or --verify")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names and labels that the terminal cannot show
    try:
        return _run(Path(__file__).resolve().parent, options)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def bundle_problems(folder: Path) -> list[str]:
    """Compare every file with the manifest: what is missing, changed or extra, one line each; empty: all is well."""
    try:
        manifest = _read_manifest(folder)
        data = _read_small(folder / MANIFEST)
        sums = _read_small(folder / SUMS) if (folder / SUMS).is_file() and not (folder / SUMS).is_symlink() else None
    except BundleError as error:
        return [str(error)]
    found: dict[str, Callable[[], tuple[int, str]] | None] = {}
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in files + links:
            path = Path(root, name)
            if path.parent == folder / "__pycache__" and name.startswith("run.") and name.endswith(".pyc"):
                continue  # Python leaves it there when a program imports this file
            plain = path.is_file() and not path.is_symlink()
            found[path.relative_to(folder).as_posix()] = functools.partial(_facts, path) if plain else None
    return contents_problems(manifest, found, manifest_sha256=hashlib.sha256(data).hexdigest(), sums=sums)


def contents_problems(
    manifest: dict[str, Any],
    found: Mapping[str, Callable[[], tuple[int, str]] | None],
    *,
    manifest_sha256: str,
    sums: bytes | None,
) -> list[str]:
    """What is missing, changed or extra among the files that were found.

    found: by name, what tells size and SHA-256; None for a link or anything else that is no plain file.
    sums: content of SHA256SUMS; bundles of older versions have none.
    """
    problems = []
    expected = manifest["files"]
    for name, wanted in sorted(expected.items()):
        facts = found.get(name)
        if os.path.isabs(name) or ".." in name.split("/") or "\\" in name:
            problems.append(f"{name!r} is outside of the bundle")
        elif facts is None:
            problems.append(f"{name!r} is missing")
        elif facts() != (wanted["size_bytes"], wanted["sha256"]):
            problems.append(f"{name!r} was changed")
    own = [MANIFEST, *([SUMS] if manifest.get("sums") == SUMS else [])]
    if SUMS in own and sums is None:
        problems.append(f"{SUMS!r} is missing")
    elif SUMS in own and sums != sums_text(expected, manifest_sha256).encode():
        problems.append(f"{MANIFEST!r} or {SUMS!r} was changed: they do not agree")
    problems += [f"{name!r} is extra" for name in sorted(found) if name not in expected and name not in own]
    return problems


def sums_text(files: Mapping[str, Any], manifest_sha256: str) -> str:
    """What SHA256SUMS holds. files: the manifest's."""
    digests = {**{name: facts["sha256"] for name, facts in files.items()}, MANIFEST: manifest_sha256}
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def _run(folder: Path, options: argparse.Namespace) -> int:
    if options.verify:
        return _verify(folder, as_json=options.json)
    bundle = Bundle(folder, verify=not options.no_verify)
    names, images, failed = [], [], False
    for name in options.image:
        try:
            images.append(bundle.read(name))
            names.append(name)
        except bundle.unreadable as error:
            print(f"error: cannot read {name!r}: {error}", file=sys.stderr)
            failed = True
    if images:
        _tell(names, bundle.answers(images, together=options.batch), bundle.manifest["output"]["kind"], bundle, options)
    return 2 if failed else 0


def _verify(folder: Path, *, as_json: bool) -> int:
    problems = bundle_problems(folder)
    if as_json:
        print(json.dumps({"state": "damaged" if problems else "complete", "problems": problems}, indent=1))
    elif problems:
        print("\n".join(["damaged", *problems]))
    else:
        manifest = _read_manifest(folder)
        print(f"complete: {len(manifest['files']) + 1 + bool(manifest.get('sums'))} files are as {MANIFEST!r} says")
    return 1 if problems else 0


class Bundle:
    """The model in a folder, for use from a program; the engine is loaded at the first image.

    Raises BundleError for a damaged bundle and where nothing here can run it, and what `unreadable` names for an image.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, verify: bool = True) -> None:
        self.folder = Path(folder) if folder is not None else Path(__file__).resolve().parent
        problems = bundle_problems(self.folder) if verify else []
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise BundleError(f"this bundle is damaged: {'; '.join(problems[:3])}{more}; get it again")
        self.manifest = _read_manifest(self.folder)
        self._pixels = _load_pixels(self.folder)
        self.unreadable: type[Exception] = self._pixels.UnreadableImageError
        self._preprocess = SimpleNamespace(**json.loads((self.folder / "preprocessing.json").read_text("utf-8")))
        self.labels: list[str] | None = json.loads((self.folder / "labels.json").read_text("utf-8"))
        self._model: Model | None = None

    def read(self, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """Read, resize and crop an image file to the model's input: uint8 [H, W, 3]."""
        cropped: NDArray[np.uint8] = self._pixels.resize_and_crop(self._pixels.read_image(path), self._preprocess)
        return cropped

    def answers(self, images: list[NDArray[np.uint8]], *, together: bool = False) -> Iterator[NDArray[np.float64]]:
        """Logits or features of images that `read` returned: [classes] or [width] each. together: in one batch."""
        if self._model is None:
            self._model = open_model(self.folder, self.manifest)
        return _answer(
            self._model, images, lambda batch: self._pixels.normalise(batch, self._preprocess), together=together
        )

    def classify(self, path: str | os.PathLike[str], top: int = 5) -> list[dict[str, Any]]:
        """Best classes of one image file, best first: class, label, probability."""
        return best_classes(next(self.answers([self.read(path)])), self.labels, top)


class Model:
    """A loaded model, whatever runs it."""

    def __init__(self, batch: int | None, dtype: str, run: Callable[[Any], Any]) -> None:
        self.batch = batch
        """images per query; None: any number"""
        self.dtype = dtype
        self.run = run
        """[B, 3, H, W] -> the output that answers: [B, classes] or [B, width]"""


def open_model(folder: Path, manifest: dict[str, Any]) -> Model:
    """Load the engine; where it does not fit this machine, the portable graph instead, and say so on stderr."""
    runtime, output = manifest["runtime"], manifest["output"]["name"]
    if manifest["engine_sha256"] is None:
        reason = "this bundle has no engine yet"
    else:
        engine = json.loads((folder / "engine" / "engine.json").read_text(encoding="utf-8"))
        try:
            _check_fit(engine)
            return _LOADERS[_package(runtime)](folder / "engine" / engine["load"], output, engine)
        except Exception as error:  # a runtime may raise anything for an engine of another machine
            reason = f"the engine does not fit here ({' '.join(str(error).split())})"
    for name in sorted(_LOADERS, key=lambda name: name != _package(runtime)):  # the engine's own runtime first
        if importlib.util.find_spec(name) is None:
            continue
        try:
            model = _LOADERS[name](folder / "model.onnx", output, None)
        except Exception as error:
            reason += f"; {name}: {' '.join(str(error).split())}"
            continue
        print(f"note: {reason}; running model.onnx with {name}", file=sys.stderr)
        return model
    raise BundleError(f"nothing here can run this model ({reason}); try: {INSTALL}")


def _check_fit(engine: dict[str, Any]) -> None:
    """Raise where the engine was built for another machine or runtime than this."""
    runtime = engine["runtime"]
    package = _package(runtime)
    if package not in _LOADERS:
        raise BundleError(f"run.py does not know the runtime {runtime!r}")
    if importlib.util.find_spec(package) is None:
        raise BundleError(f"{package} is not installed")
    here = _machine(runtime)
    for name, built in sorted(engine["bound_to"].items()):
        if here.get(name) != built:
            raise BundleError(f"it was built for {name} {built!r}, here is {here.get(name)!r}")


def _package(runtime: str) -> str:
    return "openvino" if runtime in OPENVINO else runtime


def _machine(runtime: str) -> dict[str, str]:
    """What engines are bound to, in vitrim's words: a runtime saves layouts that suit one set of instructions."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):  # x86_64, aarch64
                flags = set(value.split())
                break
    except OSError:
        pass  # not Linux
    package = importlib.import_module(_package(runtime))
    found = {
        "architecture": {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine()),
        "instruction_sets": " ".join(name for name in INSTRUCTION_SETS if name in flags),
        runtime: package.__version__.split("-")[0],
    }
    if OPENVINO.get(runtime, "CPU") != "CPU":
        device = OPENVINO[runtime]
        core = package.Core()
        if not any(name.partition(".")[0] == device for name in core.available_devices):
            raise BundleError(f"openvino lists no {device} here, only {', '.join(core.available_devices)}")
        found["device"] = str(core.get_property(device, "FULL_DEVICE_NAME"))
    return found


def _load_onnxruntime(path: Path, output: str, engine: dict[str, Any] | None) -> Model:
    import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]  # vitrim's own checks run without

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # int8 weights are weights only
    if engine is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimized already
        options.intra_op_num_threads = engine["options"].get("threads") or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else None
    dtype = "float16" if entry.type == "tensor(float16)" else "float32"
    return Model(batch, dtype, lambda pixels: session.run([output], {entry.name: pixels})[0])


def _load_openvino(path: Path, output: str, engine: dict[str, Any] | None) -> Model:
    import openvino  # type: ignore[import-not-found,import-untyped,unused-ignore]

    core = openvino.Core()
    runtime = "openvino" if engine is None else engine["runtime"]
    device, precision = OPENVINO[runtime], "fp32" if engine is None else engine["precision"]
    hints: dict[str, Any] = {  # one image after the other: the latency hint, whatever the engine was measured with
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[runtime].get(precision, "f32"),
    }
    if device == "NPU" and "INFERENCE_PRECISION_HINT" not in core.get_property(device, "SUPPORTED_PROPERTIES"):
        del hints["INFERENCE_PRECISION_HINT"]  # floats are f16 on an NPU in any case
    if device == "CPU" and engine is not None and engine["options"].get("threads"):
        hints["INFERENCE_NUM_THREADS"] = engine["options"]["threads"]
    if device == "CPU" and "DYNAMIC_QUANTIZATION_GROUP_SIZE" in core.get_property(device, "SUPPORTED_PROPERTIES"):
        hints["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # else, with int8 weights, activations are quantized too
    compiled = core.compile_model(str(path), device, hints)
    entry = compiled.input(0)
    batch = None if entry.partial_shape[0].is_dynamic else entry.partial_shape[0].get_length()
    dtype = "float16" if entry.element_type == openvino.Type.f16 else "float32"
    return Model(batch, dtype, lambda pixels: compiled([pixels])[compiled.output(output)])


_LOADERS: dict[str, Callable[[Path, str, dict[str, Any] | None], Model]] = {
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
}


def _answer(
    model: Model, images: list[NDArray[np.uint8]], normalise: Callable[[Any], Any], *, together: bool
) -> Iterator[NDArray[np.float64]]:
    """Answer each image; a fixed batch is filled up with copies of its last image."""
    import numpy as np

    size = model.batch or (len(images) if together else 1)
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        filled = chunk + chunk[-1:] * ((model.batch or len(chunk)) - len(chunk))
        try:
            answers = model.run(normalise(np.stack(filled)).astype(model.dtype))
        except Exception as error:
            raise BundleError(f"the model cannot be run: {' '.join(str(error).split())}") from error
        for answer in answers[: len(chunk)]:
            row = np.asarray(answer, dtype=np.float64).reshape(-1)
            if not np.isfinite(row).all():
                raise BundleError("the model answered with numbers that are not finite")
            yield row


def _tell(
    names: list[str],
    answers: Iterator[NDArray[np.float64]],
    kind: str,
    bundle: Bundle,
    options: argparse.Namespace,
) -> None:
    """Print what the model says of each image: classes with probabilities, or its feature vector."""
    import numpy as np

    rows, told = [], []
    for name in names:
        row = next(answers)
        rows.append(row)
        if kind == "features":
            told.append({"image": name, "features": row.tolist()})
            text = f"{name}\n  {row.size} features, norm {np.linalg.norm(row):.4g}: "
            text += " ".join(f"{value:.4g}" for value in row[:8]) + (" ..." if row.size > 8 else "")
        else:
            classes = best_classes(row, bundle.labels, options.top)
            told.append({"image": name, "classes": classes})
            text = name
            for one in classes:
                label = one["label"] if bundle.labels else f"class {one['class']}"
                text += f"\n  {100 * one['probability']:6.2f} %  {label}"
        if not options.json:
            print(text, flush=True)
    if options.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
    if options.save:
        try:
            with open(options.save, "wb") as file:
                np.save(file, np.stack(rows).astype(np.float32))
        except OSError as error:
            raise BundleError(f"cannot write {options.save!r}: {error.strerror}") from error


def best_classes(logits: NDArray[np.float64], labels: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """Softmax of one image's logits [classes], best first: class, label, probability."""
    import numpy as np

    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return [
        {"class": int(i), "label": labels[i] if labels else None, "probability": float(shares[i])}
        for i in np.argsort(-shares, kind="stable")[:top]
    ]


def _load_pixels(folder: Path) -> ModuleType:
    """Load pixels.py from this folder by its path: `python -I` does not look beside the script."""
    sys.dont_write_bytecode = True  # a cache folder would be an extra file
    spec = importlib.util.spec_from_file_location("vitrim_bundle_pixels", folder / "pixels.py")
    if spec is None or spec.loader is None:
        raise BundleError("'pixels.py' cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise BundleError(f"{error.name} is not installed; try: {INSTALL}") from error
    except (OSError, SyntaxError) as error:
        raise BundleError(f"'pixels.py' cannot be loaded: {error}") from error
    return module


def _read_manifest(folder: Path) -> dict[str, Any]:
    return parse_manifest(_read_small(folder / MANIFEST))


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Read what manifest.json holds; raises BundleError."""
    try:
        manifest = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST!r} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{MANIFEST!r} has format {found!r}, this program reads {FORMAT!r}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(facts, dict) and {"sha256", "size_bytes"} <= set(facts) for facts in files.values()
    ):
        raise BundleError(f"{MANIFEST!r} does not list its files")
    return manifest


def _read_small(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(f"{path.name!r} is missing") from None
    except OSError as error:
        raise BundleError(f"{path.name!r} cannot be read: {error}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path.name!r} has more than {MAX_MANIFEST_BYTES:,} bytes")
    return data


def _facts(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256."""
    try:
        with open(path, "rb") as file:
            return stream_facts(file.read)
    except OSError:
        return -1, ""  # it cannot be read: not what the manifest says


def stream_facts(read: Callable[[int], bytes]) -> tuple[int, str]:
    """Size in bytes and SHA-256 of what a file's read function gives."""
    digest, size = hashlib.sha256(), 0
    while True:
        chunk = read(1 << 20)
        if not chunk:
            return size, digest.hexdigest()
        digest.update(chunk)
        size += len(chunk)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Classify images with the model in this folder.")
    parser.add_argument("image", nargs="*", help="JPEG, PNG, BMP, WEBP, TIFF or GIF")
    parser.add_argument("--top", type=_count, default=5, metavar="N", help="classes to print (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--batch", action="store_true", help="all images in one batch, where the engine allows it")
    parser.add_argument("--save", metavar="FILE", help="write the raw outputs, one row per image, as .npy")
    check = parser.add_mutually_exclusive_group()
    check.add_argument("--verify", action="store_true", help="only compare the files with manifest.json")
    check.add_argument("--no-verify", action="store_true", help="do not compare the files with manifest.json first")
    return parser


if __name__ == "__main__":
    sys.exit(main())
