"""run.py: classifies images alone in the world, with neither torch nor vitrim, and says what is wrong in one line."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from targets.bundle.pixels import read_image
from targets.bundle.verify import verify_bundle
from targets.bundle.write import write_bundle
from targets.preprocess import normalise, resize_and_crop
from tests.targets.bundle.classifier import PREPROCESS, SPEC, expected_logits, reseal, write_onnx

OURS = ("torch", "torchvision", "timm", "pydantic", "onnx", "targets", "stages", "pipeline")


def run(bundle: Path, *arguments: object, without: tuple[str, ...] = (), cwd: Path | None = None):
    """Run run.py as `python -I` does, where some packages cannot be imported."""
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({[*OURS, *without]!r}));"
        f"sys.argv = {[str(bundle / 'run.py'), *map(str, arguments)]!r};"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)


@pytest.fixture
def red(tmp_path) -> Path:
    Image.new("RGB", (20, 30), (250, 20, 10)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Five images of different sizes and kinds."""
    paths = []
    for i, (mode, suffix) in enumerate(
        [("RGB", "jpg"), ("L", "png"), ("RGBA", "webp"), ("P", "gif"), ("CMYK", "tiff")]
    ):
        pixels = np.random.default_rng(i).integers(0, 256, (11 + 7 * i, 40 - 5 * i, 3), dtype=np.uint8)
        paths.append(tmp_path / f"photo {i}.{suffix}")
        Image.fromarray(pixels).convert(mode).save(paths[-1])
    return paths


def reference(paths: list[Path]) -> np.ndarray:
    pixels = np.stack([resize_and_crop(read_image(path), PREPROCESS) for path in paths])
    return expected_logits(normalise(pixels, PREPROCESS))


def test_it_classifies_an_image(make_bundle, red):
    done = run(make_bundle(), red)

    assert done.stderr == ""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == str(red)
    assert lines[1].endswith("%  red")
    assert len(lines) == 4


def test_it_is_a_plain_script_for_any_folder(make_bundle, red, tmp_path):
    (tmp_path / "elsewhere").mkdir()

    done = subprocess.run(
        [sys.executable, "-I", make_bundle() / "run.py", "../red.png"],
        capture_output=True,
        text=True,
        cwd=tmp_path / "elsewhere",
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "red" in done.stdout


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("batch", "dynamic", "flags"), [(1, False, ()), (2, False, ()), (4, True, ()), (4, True, ("--batch",))]
)
def test_its_numbers_are_those_of_the_pipeline(make_bundle, photos, tmp_path, runtime, batch, dynamic, flags):
    bundle = make_bundle(runtime=runtime, batch=batch, dynamic=dynamic)
    other = "openvino" if runtime == "onnxruntime" else "onnxruntime"

    done = run(bundle, *photos, *flags, "--json", "--save", tmp_path / "out.npy", without=(other,))

    assert (done.returncode, done.stderr) == (0, "")
    logits = reference(photos)
    assert np.allclose(np.load(tmp_path / "out.npy"), logits, atol=1e-5)
    told = json.loads(done.stdout)
    assert [entry["image"] for entry in told] == [str(path) for path in photos]
    for entry, row in zip(told, logits, strict=True):
        shares = np.exp(row) / np.exp(row).sum()
        assert [one["class"] for one in entry["classes"]] == np.argsort(-row).tolist()
        assert np.allclose([one["probability"] for one in entry["classes"]], np.sort(shares)[::-1], atol=1e-5)
    assert verify_bundle(bundle) == []


def test_a_model_without_head_prints_its_features(make_bundle, red, tmp_path):
    bundle = make_bundle(classes=0, labels=None, output="features")

    done = run(bundle, red, "--save", tmp_path / "features.npy")
    assert done.returncode == 0
    assert "3 features, norm" in done.stdout
    assert np.load(tmp_path / "features.npy").shape == (1, 3)

    told = json.loads(run(bundle, red, "--json").stdout)
    assert np.allclose(told[0]["features"], reference([red])[0], atol=1e-5)


def test_without_labels_it_prints_the_number_of_the_class(make_bundle, red):
    assert run(make_bundle(labels=None), "--top", "1", red).stdout.splitlines()[1].endswith("%  class 0")


def test_options_may_stand_between_images(make_bundle, red):
    done = run(make_bundle(), red, "--top", "1", red, "--json", red)

    assert [len(entry["classes"]) for entry in json.loads(done.stdout)] == [1, 1, 1]


def test_labels_that_the_terminal_cannot_show_are_escaped(make_bundle, red):
    bundle = make_bundle(labels=["röt \u2603", "green", "blue"])
    command = [sys.executable, bundle / "run.py", red]

    done = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=False)

    assert done.returncode == 0
    assert b"r\\xf6t \\u2603" in done.stdout


@pytest.mark.parametrize(
    ("engine", "without", "reason"),
    [
        ({"bound_to": {"architecture": "vax"}}, (), "built for architecture 'vax', here is"),
        ({"bound_to": {"moon phase": "full"}}, (), "built for moon phase 'full', here is None"),
        ({"runtime": "openvino"}, ("openvino",), "openvino is not installed"),
        ({"runtime": "onnxruntime"}, ("onnxruntime",), "onnxruntime is not installed"),
    ],
)
def test_an_engine_that_does_not_fit_gives_way_to_the_portable_graph(make_bundle, red, engine, without, reason):
    done = run(make_bundle(**engine), red, "--top", "1", without=without)

    assert done.returncode == 0
    assert done.stdout.splitlines()[1].endswith("red")
    assert done.stderr.startswith("note: the engine does not fit here (")
    assert reason in done.stderr
    assert f"running model.onnx with {'openvino' if 'onnxruntime' in without else 'onnxruntime'}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_bundle_without_an_engine_runs_its_graph_and_says_so(make_bundle, red):
    done = run(make_bundle(at="plain", without_engine=True), red, "--top", "1")

    assert done.returncode == 0
    assert done.stdout.splitlines()[1].endswith("red")
    assert done.stderr == "note: this bundle has no engine yet; running model.onnx with onnxruntime\n"


def test_an_engine_is_bound_to_what_it_was_built_for(make_bundle, red, tmp_path):
    from targets.worker import Worker

    graph = write_onnx(tmp_path / "graph.onnx")
    for runtime, other in (("onnxruntime", "openvino"), ("openvino", "onnxruntime")):
        engine = tmp_path / f"built by {runtime}"
        engine.mkdir()
        with Worker(threads=1) as worker:
            worker.build(graph, engine, runtime=runtime, precision="fp32", batch=2, threads=1)
        bundle = tmp_path / f"bundle of {runtime}"
        write_bundle(bundle, engine=engine, onnx=graph, spec=SPEC, preprocess=PREPROCESS, labels=None, card={})

        done = run(bundle, red, "--save", tmp_path / "out.npy", without=(other,))

        assert (done.returncode, done.stderr) == (0, "")
        assert np.allclose(np.load(tmp_path / "out.npy"), reference([red]), atol=1e-5)
        assert set(json.loads((bundle / "manifest.json").read_text())["bound_to"]) == {
            "architecture",
            "instruction_sets",
            runtime,
        }


def test_instruction_sets_are_named_as_the_agent_names_them():
    from targets.bundle.run import INSTRUCTION_SETS
    from targets.facts import INSTRUCTION_SETS as NAMED_BY_AGENT

    assert INSTRUCTION_SETS == NAMED_BY_AGENT


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_engine_that_cannot_be_loaded_gives_way_to_the_portable_graph(make_bundle, red, runtime):
    bundle = make_bundle(runtime=runtime)
    (bundle / "engine" / ("model.onnx" if runtime == "onnxruntime" else "model.xml")).write_bytes(b"damaged")
    reseal(bundle)

    done = run(bundle, red)

    assert done.returncode == 0
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]  # openvino's own lines aside
    assert len(notes) == 1
    assert notes[0].endswith(f"); running model.onnx with {runtime}")


def test_without_any_runtime_it_says_what_to_install(make_bundle, red):
    done = run(make_bundle(), red, without=("onnxruntime", "openvino"))

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].endswith("try: pip install numpy pillow onnxruntime")


@pytest.mark.parametrize("package", ["numpy", "PIL"])
def test_without_numpy_or_pillow_it_says_what_to_install(make_bundle, red, package):
    done = run(make_bundle(), red, without=(package,))

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "try: pip install numpy pillow onnxruntime" in done.stderr


def test_a_damaged_bundle_does_not_run(make_bundle, red):
    bundle = make_bundle()
    (bundle / "pixels.py").write_text("raise SystemExit('this must not run')")

    done = run(bundle, red)

    assert done.returncode == 1
    assert done.stderr == "error: this bundle is damaged: 'pixels.py' was changed; get it again\n"


def test_a_program_that_imports_it_leaves_a_complete_bundle(make_bundle, red):
    bundle = make_bundle(at="a b — ü/bundle")
    code = (
        f"import sys; sys.path.insert(0, {str(bundle)!r}); import run;"
        f"print([run.Bundle().classify({str(red)!r}, top=1)[0]['label'] for _ in range(2)])"
    )
    done = [
        subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
        for _ in range(2)
    ]

    assert [(one.stdout, one.stderr) for one in done] == [("['red', 'red']\n", "")] * 2
    assert list(bundle.rglob("*.pyc")), "Python wrote its cache, else nothing is shown here"
    assert verify_bundle(bundle) == []
    (bundle / "__pycache__" / "other.pyc").write_bytes(b"x")
    assert verify_bundle(bundle) == ["'__pycache__/other.pyc' is extra"]


def test_a_harmless_change_can_be_ignored(make_bundle, red):
    bundle = make_bundle()
    (bundle / "README.md").write_text("mine")

    assert run(bundle, red).returncode == 1
    assert run(bundle, red, "--no-verify").returncode == 0


def test_a_bad_image_is_one_line_and_exit_2_and_the_others_are_answered(make_bundle, red, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "empty.png").write_bytes(b"")

    done = run(make_bundle(), tmp_path / "bad.jpg", red, tmp_path / "none.jpg", tmp_path / "empty.png", tmp_path)

    assert done.returncode == 2
    assert done.stdout.splitlines()[1].endswith("red")
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"error: cannot read {str(tmp_path / 'bad.jpg')!r}: not one of JPEG, PNG")
    assert "No such file" in lines[1]
    assert "the file is empty" in lines[2]
    assert "Is a directory" in lines[3]


@pytest.mark.parametrize("arguments", [(), ("--top", "0", "x.png"), ("--top", "five", "x.png"), ("--tpo", "x.png")])
def test_wrong_arguments_are_exit_2(make_bundle, arguments):
    done = run(make_bundle(), *arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_answer_that_is_no_number_is_an_error(make_bundle, red):
    bundle = make_bundle()
    preprocess = json.loads((bundle / "preprocessing.json").read_text())
    (bundle / "preprocessing.json").write_text(json.dumps({**preprocess, "std": [1e-38, 1e-38, 1e-38]}))
    reseal(bundle)

    done = run(bundle, red)

    assert done.returncode == 1
    assert "not finite" in done.stderr


def test_a_file_that_cannot_be_written_is_an_error(make_bundle, red, tmp_path):
    done = run(make_bundle(), red, "--save", tmp_path / "no" / "folder.npy")

    assert done.returncode == 1
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["run.py", "pixels.py"])
def test_what_is_shipped_is_python_3_9_and_imports_nothing_of_ours(root, name):
    tree = ast.parse((root / "targets" / "bundle" / name).read_text(), feature_version=(3, 9))

    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported <= set(sys.stdlib_module_names) | {"numpy", "PIL", "onnxruntime", "openvino"}


@pytest.mark.real
def test_it_reads_real_images_as_the_pipeline_does(make_bundle, assets, tmp_path):
    import zipfile

    with zipfile.ZipFile(assets / "imagenet_val" / "images.zip") as archive:
        paths = [Path(archive.extract(name, tmp_path)) for name in archive.namelist()[:20]]

    done = run(make_bundle(batch=8), *paths, "--save", tmp_path / "out.npy")

    assert (done.returncode, done.stderr) == (0, "")
    assert np.allclose(np.load(tmp_path / "out.npy"), reference(paths), atol=1e-5)
