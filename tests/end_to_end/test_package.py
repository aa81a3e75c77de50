"""From a recipe to a package that runs where nothing but numpy, Pillow and ONNX Runtime is installed."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow]

Run = Callable[..., subprocess.CompletedProcess[str]]
PLACE = "a place — größe"


@pytest.fixture
def clean_python(tmp_path: Path) -> Path:
    """The Python of a new environment with numpy, Pillow and onnxruntime alone; skips where pip finds no index."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "clean"], check=True)
    python = tmp_path / "clean" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "numpy", "pillow", "onnxruntime"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    if done.returncode:
        pytest.skip(f"pip cannot install here: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:120]}")
    return python


def test_a_build_is_packed_verified_and_runs_elsewhere(
    recipe: Path, vitrim: Run, clean_python: Path, tmp_path: Path
) -> None:
    built = vitrim("build", recipe, "--output", tmp_path / "out")
    assert built.returncode == 0, built.stdout + built.stderr
    package = tmp_path / PLACE / "p.zip"
    packed = vitrim("package", tmp_path / "out", "-o", package, "--licence", "MIT", "--provenance", "--bom")
    assert packed.returncode == 0, packed.stderr
    assert vitrim("verify", package).returncode == 0
    _papers_tell_of_the_build(package, recipe)
    _report_says_how_to_time_it(tmp_path / "out" / "cpu")
    with zipfile.ZipFile(package) as archive:
        archive.extractall(package.parent)
        (folder,) = {name.split("/")[0] for name in archive.namelist()}
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(package.parent / "bild ü.png")

    def run(python: Path, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [python, "-I", "-W", "error", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)

    for words in ((), ("--verify",)):
        script = package.parent / folder / "run.py"
        done = run(clean_python, script, *(words or ("bild ü.png", "--json")), cwd=package.parent)
        assert done.returncode == 0, done.stderr
    answer = run(clean_python, package.parent / folder / "run.py", "bild ü.png", "--json", cwd=package.parent)
    here = run(Path(sys.executable), tmp_path / "out" / "cpu" / "bundle" / "run.py", package.parent / "bild ü.png",
               "--json", cwd=tmp_path)  # fmt: skip
    there, at_home = (json.loads(one.stdout)[0]["classes"] for one in (answer, here))
    assert {one["class"]: one["probability"] for one in there} == pytest.approx(
        {one["class"]: one["probability"] for one in at_home}, abs=0.05
    )
    program = (
        f"import sys; sys.path.insert(0, {str(package.parent / folder)!r}); import run;"
        "print(len(run.Bundle().classify('bild ü.png', top=3)))"
    )
    assert run(clean_python, "-c", program, cwd=package.parent).stdout == "3\n"


def _papers_tell_of_the_build(package: Path, recipe: Path) -> None:
    statement = json.loads(package.with_name(package.name + ".provenance.json").read_text())
    definition = statement["predicate"]["buildDefinition"]
    bom = json.loads(package.with_name(package.name + ".cdx.json").read_text())

    assert definition["externalParameters"]["target"] == "cpu"
    assert "tiny-digits" in definition["externalParameters"]["recipe"]
    assert definition["externalParameters"]["command"].startswith("vitrim build ")
    assert {"recipe", "graph_key", "engine_key"} <= {one["name"] for one in definition["resolvedDependencies"]}
    assert {"torch", "vitrim"} <= set(statement["predicate"]["runDetails"]["builder"]["version"])
    assert bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]


def _report_says_how_to_time_it(folder: Path) -> None:
    command = json.loads((folder / "report.json").read_text())["reproduce"]["latency"]

    assert command.split()[0] in ("onnxruntime_perf_test", "benchmark_app")
    for page in ("report.md", "report.html"):
        assert command.split()[0] in (folder / page).read_text()
