"""The command line starts light, our packages are ours, and imports go one way."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "scipy", "sklearn", "numpy", "pydantic")


def run_python(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["pipeline", "stages", "targets"])
def test_no_other_package_hides_ours(name: str, root: Path) -> None:
    code = f"from importlib.util import find_spec; print(find_spec({name!r}).origin)"
    found = Path(run_python("-P", "-c", code, cwd=Path("/")))

    # Equality, not "below the root": a .venv inside the checkout is below it too.
    assert found == root / name / "__init__.py", f"{name} is imported from {found}"


def test_the_command_line_starts_without_heavy_packages(root: Path) -> None:
    code = f"import sys, pipeline.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"

    assert run_python("-c", code, cwd=root) == "[]"


def test_planning_needs_no_torch(root: Path) -> None:
    modules = "pipeline.recipe, pipeline.plan, pipeline.build, pipeline.store, pipeline.verdict, targets.facts"
    heavy = ("torch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "sklearn")
    code = f"import sys, {modules}; print([name for name in {heavy!r} if name in sys.modules])"

    assert run_python("-c", code, cwd=root) == "[]"


def test_every_stage_is_listed_and_light(root: Path) -> None:
    heavy = ("torch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "scipy", "sklearn")
    code = (
        "import sys; from stages.catalog import CATALOG, get_stage; [get_stage(n) for n in CATALOG];"
        f"print([n for n in {heavy!r} if n in sys.modules])"
    )

    assert run_python("-c", code, cwd=root) == "[]"


def test_the_catalog_names_every_stage_folder(root: Path) -> None:
    from stages.catalog import CATALOG, get_stage

    folders = {path.parent.name for path in (root / "stages").glob("*/stage.py")}

    assert folders == set(CATALOG)
    assert {name: get_stage(name).name for name in CATALOG} == {name: name for name in CATALOG}


def test_the_agent_and_the_runtimes_start_without_torch_and_pydantic(root: Path) -> None:
    code = (
        "import sys, targets.agent, targets.runtimes.catalog;"
        "print([n for n in ('torch', 'pydantic', 'yaml', 'timm') if n in sys.modules])"
    )

    assert run_python("-c", code, cwd=root) == "[]"


def test_import_contracts_hold(root: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
