"""Writing bundles: complete or not at all, and every change is found."""

import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_graphs import save_fp32

from targets.atomic import sha256_of
from targets.bundle import write as write_module
from targets.bundle.board import build_script
from targets.bundle.card import _text, _wilson, model_card
from targets.bundle.manifest import BundleManifest, Tensor
from targets.bundle.verify import verify_bundle
from targets.bundle.write import write_bundle
from targets.errors import InputError, StoreError
from tests.targets.bundle.classifier import PREPROCESS, SPEC, write_engine_folder, write_onnx

FILES = {
    "README.md",
    "engine/engine.json",
    "engine/model.onnx",
    "labels.json",
    "manifest.json",
    "model.onnx",
    "pixels.py",
    "preprocessing.json",
    "run.py",
}


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_holds_what_is_needed_and_nothing_else(make_bundle):
    bundle = make_bundle(card={"name": "my model", "licence": "Apache-2.0", "provenance": {"engine_key": "abc"}})

    manifest = BundleManifest.model_validate_json((bundle / "manifest.json").read_bytes())
    assert set(content(bundle)) == FILES
    assert set(manifest.files) == FILES - {"manifest.json"}
    assert manifest.engine_sha256 == sha256_of(bundle / "engine" / "engine.json")
    assert (manifest.runtime, manifest.precision, manifest.batch) == ("onnxruntime", "fp32", 1)
    assert (manifest.output.name, manifest.output.kind, manifest.output.size) == ("logits", "logits", 3)
    assert manifest.licence == "Apache-2.0"
    assert manifest.provenance == {"engine_key": "abc"}
    assert json.loads((bundle / "labels.json").read_text()) == ["red", "green", "blue"]
    assert type(PREPROCESS).model_validate_json((bundle / "preprocessing.json").read_text()) == PREPROCESS
    assert verify_bundle(bundle) == []


def test_a_bundle_for_a_board_holds_its_profile_and_the_command_that_builds(make_bundle):
    planned = {"runtime": "tensorrt", "version": ">=10.3,<11", "precision": "int8", "batch": 4}
    bundle = make_bundle(without_engine=True, planned=planned, target={"name": "board"})
    manifest = BundleManifest.model_validate_json((bundle / "manifest.json").read_bytes())

    assert set(content(bundle)) == FILES - {"engine/engine.json", "engine/model.onnx"} | {"build.sh", "target.json"}
    assert manifest.engine_sha256 is None
    assert (manifest.runtime, manifest.version, manifest.precision, manifest.batch) == (*planned.values(),)
    assert (manifest.output.name, manifest.output.size) == ("logits", 3)
    assert json.loads((bundle / "target.json").read_text()) == {"name": "board"}
    assert "sh build.sh ENGINE_FOLDER" in (bundle / "README.md").read_text()
    assert "no engine in it" in (bundle / "README.md").read_text()
    assert verify_bundle(bundle) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_that_loads_the_graph_itself_needs_no_build(make_bundle, runtime):
    bundle = make_bundle(without_engine=True, planned={"runtime": runtime, "version": ">=1"})

    assert not (bundle / "build.sh").exists()
    assert f"pip install numpy pillow '{runtime}>=1'" in (bundle / "README.md").read_text()


@pytest.mark.parametrize(("runtime", "tool"), [("tensorrt", "trtexec"), ("tensorrt_rtx", "tensorrt_rtx")])
@pytest.mark.parametrize(("shape", "asked"), [((None, 3, 8, 8), "pixels:4x3x8x8"), ((4, 3, 8, 8), None)])
def test_the_command_that_builds_names_the_batch_where_the_graph_leaves_it_open(tmp_path, runtime, tool, shape, asked):
    inputs = [Tensor(name="pixels", shape=shape, dtype="float32")]
    script = tmp_path / "build.sh"
    script.write_text(str(build_script(runtime, inputs=inputs, batch=4, versions=">=10")))
    fake = tmp_path / tool
    fake.write_text('#!/bin/sh\n[ "$1" = --help ] || echo "$@"\n')
    fake.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", script, tmp_path / "out"], capture_output=True, text=True, env=path, check=True)

    words = done.stdout.split()
    assert f"--onnx={tmp_path / 'model.onnx'}" in words
    assert f"--saveEngine={tmp_path / 'out' / 'model.plan'}" in words
    assert [word for word in words if "Shapes" in word] == (
        [f"--{which}Shapes={asked}" for which in ("min", "opt", "max")] if asked else []
    )
    assert not any(word.startswith("--stronglyTyped") for word in words), (
        "a tool that does not know a flag is not asked"
    )


def test_the_command_that_builds_says_what_it_lacks(tmp_path):
    inputs = [Tensor(name="pixels", shape=(1, 3, 8, 8), dtype="float32")]
    script = tmp_path / "build.sh"
    script.write_text(str(build_script("tensorrt", inputs=inputs, batch=1, versions=">=10")))
    plain = {"PATH": "/usr/bin:/bin", "BUILDER": str(tmp_path / "absent")}
    lacking = subprocess.run(["sh", script, tmp_path / "out"], capture_output=True, text=True, env=plain, check=False)
    unasked = subprocess.run(["sh", script], capture_output=True, text=True, env=plain, check=False)

    assert (lacking.returncode, "trtexec is not here" in lacking.stderr) == (1, True)
    assert (unasked.returncode, "usage: sh build.sh ENGINE_FOLDER" in unasked.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def ort_script(runtime, folder, *, precision="fp32"):
    inputs = [Tensor(name="image", shape=(None, 3, 8, 8), dtype="float32")]
    text = build_script(runtime, inputs=inputs, batch=4, versions=">=1.24", precision=precision)
    (folder / "build.sh").write_text(text)
    return text


def run_script(folder):
    return subprocess.run(
        ["sh", folder / "build.sh", folder / "engine"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("runtime", ["onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_a_board_without_the_provider_is_told_what_to_install(tmp_path, runtime):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    save_fp32(tmp_path / "model.onnx")
    ort_script(runtime, tmp_path)
    done = run_script(tmp_path)

    assert done.returncode == 1
    assert "ExecutionProvider; install onnxruntime-gpu in its place" in done.stderr.strip().splitlines()[-1]


def test_the_script_of_onnx_runtime_really_saves_the_graph_it_optimised(tmp_path):
    """With the CPU's provider in the place of CUDA's: the rest is what the board runs."""
    import onnxruntime

    save_fp32(tmp_path / "model.onnx")
    text = ort_script("onnxruntime_cuda", tmp_path).replace("CUDAExecutionProvider", "CPUExecutionProvider")
    text = text.replace('"session.disable_cpu_ep_fallback", "1"', '"session.disable_cpu_ep_fallback", "0"')
    (tmp_path / "build.sh").write_text(text)
    done = run_script(tmp_path)

    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(str(tmp_path / "engine" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [4, 3, 8, 8]


def test_the_script_tells_tensorrt_the_precision_of_the_graph(tmp_path):
    text = ort_script("onnxruntime_tensorrt", tmp_path, precision="int8")

    assert "'trt_int8_enable': 'True'" in text
    assert "'trt_fp16_enable': 'False'" in text
    assert "'trt_ep_context_file_path': 'model_ctx.onnx'" in text


def test_the_same_input_gives_the_same_bytes(make_bundle):
    assert content(make_bundle()) == content(make_bundle(at="second/bundle"))


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_change_of_a_file_is_found(make_bundle, name):
    bundle = make_bundle()
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)

    assert len(verify_bundle(bundle)) >= 1
    (bundle / name).unlink()
    assert f"{name!r} is missing" in verify_bundle(bundle)


def test_extra_files_and_links_are_found(make_bundle, tmp_path):
    bundle = make_bundle()
    (bundle / "engine" / "more.bin").write_bytes(b"x")
    (bundle / "more").symlink_to(tmp_path)
    moved = (bundle / "model.onnx").rename(tmp_path / "model.onnx")
    (bundle / "model.onnx").symlink_to(moved)

    assert verify_bundle(bundle) == ["'model.onnx' is missing", "'more' is extra", "'engine/more.bin' is extra"]


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("", "cannot be read"),
        ("[1, 2]", "has format 'list'"),
        ('{"format": "vitrim.bundle/2"}', "has format 'vitrim.bundle/2', this program reads 'vitrim.bundle/1'"),
        ('{"format": "vitrim.bundle/1"}', "does not list its files"),
        ('{"format": "vitrim.bundle/1", "files": {"a": 1}}', "does not list its files"),
        ("[" * 100_000, "cannot be read"),
        (
            '{"format": "vitrim.bundle/1", "files": {"../x": {"sha256": "", "size_bytes": 0}}}',
            "'../x' is outside of the bundle",
        ),
    ],
)
def test_a_damaged_manifest_is_found(make_bundle, manifest, problem):
    bundle = make_bundle()
    (bundle / "manifest.json").write_text(manifest)

    assert problem in verify_bundle(bundle)[0]


def test_a_manifest_that_lacks_a_field_is_found(make_bundle):
    bundle = make_bundle()
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["licence"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))

    assert verify_bundle(bundle) == ["'manifest.json' is damaged: licence: Field required"]


def test_a_truncated_manifest_is_found_at_every_length(make_bundle):
    bundle = make_bundle()
    data = (bundle / "manifest.json").read_bytes().rstrip()
    for length in range(0, len(data), 7):
        (bundle / "manifest.json").write_bytes(data[:length])
        assert verify_bundle(bundle), length


def test_an_older_bundle_is_replaced(make_bundle):
    bundle = make_bundle(batch=1)
    (bundle / "leftover.txt").write_text("x")

    make_bundle(batch=2)

    assert verify_bundle(bundle) == []
    assert json.loads((bundle / "manifest.json").read_text())["batch"] == 2
    assert os.listdir(bundle.parent) == ["bundle"]


def test_an_empty_folder_becomes_a_bundle(make_bundle, tmp_path):
    (tmp_path / "out" / "bundle").mkdir(parents=True)

    assert verify_bundle(make_bundle()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "link", "manifest"])
def test_what_is_not_a_bundle_is_never_replaced(make_bundle, tmp_path, kind):
    place = tmp_path / "out" / "bundle"
    place.parent.mkdir()
    if kind == "file":
        place.write_text("mine")
    elif kind == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
        name = "manifest.json" if kind == "manifest" else "photo.jpg"
        (place / name).write_text('{"format": "vitrim.artifact/1"}')
    before = os.lstat(place)

    with pytest.raises(InputError, match=r"choose another output"):
        make_bundle()
    assert os.lstat(place).st_ino == before.st_ino


def test_a_damaged_engine_is_not_shipped_and_the_older_bundle_stays(make_bundle, tmp_path):
    bundle = make_bundle()
    before = content(bundle)
    engine = write_engine_folder(tmp_path / "e")
    (engine / "model.onnx").write_bytes(b"damaged")

    with pytest.raises(InputError, match=r"is not the one that was built"):
        write_bundle(
            bundle, engine=engine, onnx=engine / "model.onnx", spec=SPEC, preprocess=PREPROCESS, labels=None, card={}
        )
    assert content(bundle) == before


def test_a_failure_at_any_rename_leaves_the_older_bundle(make_bundle, monkeypatch):
    bundle = make_bundle()
    before = content(bundle)
    replace = os.replace

    for failing in (1, 2):
        calls = []

        def fail(source, destination, failing=failing, calls=calls):
            calls.append(source)
            if len(calls) == failing:
                raise OSError(5, "Input/output error")
            replace(source, destination)

        monkeypatch.setattr(write_module.os, "replace", fail)
        with pytest.raises(StoreError, match=r"cannot write the bundle .*: Input/output error"):
            make_bundle(batch=2)
        monkeypatch.undo()
        assert content(bundle) == before
        assert os.listdir(bundle.parent) == ["bundle"]


def test_an_interruption_leaves_the_older_bundle(make_bundle, monkeypatch):
    bundle = make_bundle()
    before = content(bundle)

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write_module, "sync_tree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_bundle(batch=2)

    assert content(bundle) == before
    assert os.listdir(bundle.parent) == ["bundle"]


def test_a_full_disk_is_one_clear_line_and_leaves_the_older_bundle(make_bundle, tmp_path):
    bundle = make_bundle()
    before = content(bundle)
    engine = write_engine_folder(tmp_path / "e")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # the nearest to a full disk that any machine can have
    try:
        with pytest.raises(StoreError) as caught:
            write_bundle(
                bundle,
                engine=engine,
                onnx=engine / "model.onnx",
                spec=SPEC,
                preprocess=PREPROCESS,
                labels=None,
                card={},
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)

    assert re.fullmatch(r"cannot write the bundle .*: File too large; free some space or .*", str(caught.value))
    assert content(bundle) == before
    assert os.listdir(bundle.parent) == ["bundle"]


def test_an_output_that_cannot_be_made_is_one_clear_line(make_bundle, tmp_path):
    (tmp_path / "file").write_text("x")

    with pytest.raises(StoreError, match=r"cannot write the bundle .*: (File exists|Not a directory)"):
        make_bundle(at="file/bundle")


def test_a_read_only_output_is_one_clear_line(make_bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    if os.geteuid() == 0:  # root may write everywhere but where nobody can
        out = Path("/sys")

    with pytest.raises(StoreError, match=r"cannot write the bundle .*: (Permission denied|Operation not|Read-only)"):
        make_bundle(at=str(out / "bundle"))


def test_what_a_killed_process_left_is_removed_later(make_bundle, tmp_path):
    killed, working = tmp_path / "out" / ".bundle-01234567.tmp", tmp_path / "out" / ".bundle-89abcdef.tmp"
    killed.mkdir(parents=True)
    working.mkdir()
    os.utime(killed, (time.time() - 7200,) * 2)

    make_bundle()

    assert sorted(os.listdir(tmp_path / "out")) == [working.name, "bundle"]


def test_weights_beside_the_graph_are_shipped(tmp_path):
    engine = write_engine_folder(tmp_path / "e")
    graph = write_onnx(tmp_path / "model.onnx", external=True)

    manifest = write_bundle(
        tmp_path / "bundle", engine=engine, onnx=graph, spec=SPEC, preprocess=PREPROCESS, labels=None, card={}
    )

    assert "model.onnx.data" in manifest.files
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(InputError, match=r"keeps tensors in 'model.onnx.data', which is no file beside it"):
        write_bundle(
            tmp_path / "bundle", engine=engine, onnx=graph, spec=SPEC, preprocess=PREPROCESS, labels=None, card={}
        )


def test_labels_must_be_as_many_as_classes(make_bundle):
    with pytest.raises(InputError, match="2 labels for 3 classes"):
        make_bundle(labels=["red", "green"])


def test_an_engine_without_an_answer_per_class_is_refused(make_bundle):
    with pytest.raises(InputError, match=r"no output of the engine has shape \[batch, 4\]"):
        make_bundle(classes=4, labels=None)


def test_the_card_says_what_was_measured(make_bundle):
    bundle = make_bundle(
        card={
            "name": "small <b>",
            "model": "timm/vit_tiny",
            "verdict": "within the budget",
            "target": {"name": "cpu", "board": "this | machine"},
            "accuracy": {
                "metric": "top1",
                "baseline": 0.8,
                "engine": 0.79,
                "drop_points": 1.0,
                "drop_ci95": [0.2, 1.8],
                "agreement": 0.95,
                "images": 850,
            },
            "latency_ms": {"batch": 1, "p50": 4.2, "baseline_p50": 8.4, "speedup": 2.0, "speedup_ci95": [1.9, 2.1]},
            "size": {"params": {"before": 5_000_000, "after": 3_000_000}},
            "steps": [{"name": "prune_mlp", "key": "k"}],
            "licence": "Apache-2.0",
        }
    )

    card = (bundle / "README.md").read_text()
    assert "# small \\<b\\>" in card
    assert "| top1 of this engine | 79.00 % | 76.13 to 81.60 % | 850 images |" in card
    assert "| drop, image by image | +1.00 points | 0.20 to 1.80 points | 850 images |" in card
    assert "| speed-up over the baseline | 2.00x | 1.90 to 2.10x |" in card
    assert "| parameters | 3,000,000 |  | before: 5,000,000 |" in card
    assert "board: this \\| machine" in card
    assert "Weights: Apache-2.0." in card
    assert "python run.py image.jpg" in card
    assert json.loads((bundle / "manifest.json").read_text())["engine_sha256"] in card


def test_a_card_without_figures_says_so(make_bundle):
    card = (make_bundle() / "README.md").read_text()

    assert "Nothing was measured." in card
    assert "Its accuracy was not measured." in card
    assert "licence" in card.lower()
    assert "not stated" in card


def test_a_card_of_a_users_own_metric_claims_no_interval_of_a_share(make_bundle):
    accuracy = {"metric": "map", "baseline": 0.5, "engine": 0.4, "drop_points": 10.0, "images": 9}

    card = (make_bundle(card={"accuracy": accuracy}) / "README.md").read_text()

    assert "| map of this engine | 40.00 % |  | 9 images |" in card


@given(share=st.integers(0, 50).map(lambda k: k / 50))
def test_the_interval_of_a_share_is_that_of_scipy(share):
    from scipy.stats import binomtest

    expected = binomtest(round(share * 50), 50).proportion_ci(method="wilson")

    assert _wilson(share, 50) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(text=st.text())
def test_no_text_leaves_its_line_or_its_cell(text):
    shown = _text(text)

    assert len(shown.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(\\\\)*[|<`]", shown)


def test_the_card_is_a_pure_function(make_bundle):
    manifest = BundleManifest.model_validate_json((make_bundle() / "manifest.json").read_bytes())

    assert model_card(manifest, {}) == model_card(manifest, {})
