"""The agent as one file: the same bytes every time, complete, in Python 3.10, without torch and pydantic."""

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from targets.agent.receive import MARK
from targets.devices.archive import MAIN, SOURCE, agent_bytes, agent_digest, sources


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "vitrim-agent.pyz"
    path.write_bytes(agent_bytes())
    return path


def test_the_same_sources_give_the_same_bytes(agent: Path) -> None:
    agent_bytes.cache_clear()

    assert agent_bytes() == agent.read_bytes()
    assert len(agent_digest()) == 64


def test_it_holds_all_that_it_imports_of_ours_and_nothing_above() -> None:
    names = {f"targets/{path.relative_to(SOURCE).as_posix()}" for path in sources()}
    lacking = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
                if isinstance(node, ast.ImportFrom) and node.module
                else [one.name for one in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for module in modules:
                assert module.partition(".")[0] not in ("pipeline", "stages", "pydantic", "yaml", "torch"), (
                    path,
                    module,
                )
                if module.partition(".")[0] != "targets":
                    continue
                file = SOURCE.parent / module.replace(".", "/")
                inside = {f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"}
                if (file.with_suffix(".py").is_file() or file.is_dir()) and not inside & names:
                    lacking.add(module)

    assert lacking == set()


def test_it_is_written_in_python_3_10(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(agent_bytes())) as archive:
        archive.extractall(tmp_path)
    vermin = Path(sys.executable).with_name("vermin")
    if not vermin.is_file():
        pytest.skip("vermin is not installed (extra dev)")
    done = subprocess.run(
        [vermin, "-t=3.10-", "--violations", "--no-parse-comments", "--eval-annotations", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_it_answers_a_probe_where_nothing_is_installed(agent: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", agent, "probe", tmp_path / "folder"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    state = json.loads(done.stdout.removeprefix(MARK))["result"]

    assert state["facts"]["architecture"]
    assert state["disk"]["free_bytes"] > 0
    assert state["numpy"] is None


def test_it_serves_as_a_worker_and_needs_nothing_of_the_repository(agent: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; others = [p for p in sys.path if 'site-packages' in p or 'lib/python' in p];"
        f"sys.path[:] = [{str(agent)!r}, *others];"
        "from targets.worker import ROOT, Worker\n"
        "with Worker(1) as worker: print(ROOT, worker.facts()['architecture'])\n"
        "print([n for n in ('pydantic', 'yaml', 'torch', 'pipeline', 'stages') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(agent)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_is_refused(agent: Path) -> None:
    done = subprocess.run([sys.executable, agent, "dance"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith("unknown command 'dance'; known: serve, probe")
    assert "targets.agent.__main__" in MAIN
