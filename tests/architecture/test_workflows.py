"""What starts vitrim by itself: GitHub's workflows, systemd's units, cron's line."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXAMPLES = ROOT / "docs" / "examples" / "nightly"
CHECKER = Path(sys.executable).parent / "check-jsonschema"
CRON = re.compile(r"^(?:\*|\d+(?:-\d+)?)(?:/\d+)?(?:,(?:\*|\d+(?:-\d+)?)(?:/\d+)?)*$")
LARGEST = (59, 23, 31, 12, 7)


def load(file: Path) -> dict[str, Any]:
    """A workflow; YAML 1.1 reads its key `on` as true."""
    data = yaml.safe_load(file.read_text())
    return {**data, "on": data.get("on", data.get(True))}


def steps(file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every step with its job."""
    for job in load(file)["jobs"].values():
        for step in job["steps"]:
            yield job, step


def nightly() -> dict[str, Any]:
    return load(ROOT / ".github" / "workflows" / "nightly.yml")


@pytest.mark.skipif(not CHECKER.is_file(), reason="check-jsonschema is not installed (extra: dev)")
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_fit_githubs_schema(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(file.read_text().replace("runs-on:", "run-on:"))
    codes = [
        subprocess.run(
            [str(CHECKER), "--builtin-schema", "vendor.github-workflows", str(one)], capture_output=True, check=False
        ).returncode
        for one in (file, broken)
    ]

    assert codes == [0, 1]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_read_only_and_end_in_time(file: Path) -> None:
    workflow = load(file)

    assert workflow["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 720 for job in workflow["jobs"].values())


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_and_keep_no_token(file: Path) -> None:
    for _, step in steps(file):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", step["uses"])
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_no_shell_step_is_filled_in_by_an_expression(file: Path) -> None:
    """What others can write (names, branches, inputs) comes as a variable: in the text it would be run."""
    assert [step["run"] for _, step in steps(file) if "${{" in step.get("run", "")] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_shell_steps_are_shell(file: Path) -> None:
    for _, step in steps(file):
        if "run" in step:
            done = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr


def test_what_is_referred_to_in_a_workflow_is_there() -> None:
    for file in WORKFLOWS:
        for job in load(file)["jobs"].values():
            names = {step["id"] for step in job["steps"] if "id" in step}
            used = set(re.findall(r"steps\.(\w+)\.", json.dumps(job)))
            assert used <= names
            needs = job.get("needs", [])
            assert set([needs] if isinstance(needs, str) else needs) <= set(load(file)["jobs"])


def test_ci_runs_what_every_machine_runs() -> None:
    runs = [step["run"] for _, step in steps(ROOT / ".github" / "workflows" / "ci.yml") if "run" in step]

    assert runs == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


def test_nights_start_by_schedule_and_by_hand_and_never_for_a_stranger() -> None:
    starts = nightly()["on"]

    assert set(starts) == {"schedule", "workflow_dispatch"}
    assert [len(one["cron"].split()) for one in starts["schedule"]] == [5]


def test_a_board_has_one_night_at_a_time_and_loses_none() -> None:
    job = nightly()["jobs"]["night"]

    assert job["concurrency"] == {"group": "board-${{ matrix.board }}", "cancel-in-progress": False}
    assert job["strategy"]["fail-fast"] is False
    assert job["runs-on"] == ["self-hosted", "vitrim", "${{ matrix.board }}"]


def test_what_a_night_found_is_kept_also_where_it_failed() -> None:
    job = nightly()["jobs"]["night"]
    kept = [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")]
    told = [step for step in job["steps"] if "nightly report" in step.get("run", "")]

    assert len(kept) == len(told) == 1
    assert all(step["if"].startswith("always()") for step in kept + told)
    assert {"out/night/index.html", "out/night/junit.xml"} <= set(kept[0]["with"]["path"].split())
    assert "--github" in told[0]["run"]


@pytest.mark.parametrize(
    ("listed", "one", "names"),
    [
        ('["shelf-1", "shelf-2"]', "", ["shelf-1", "shelf-2"]),
        ('["shelf-1"]', "bench", ["bench"]),
        ("", "", None),
        ("shelf-1", "", None),
        ("[]", "", None),
        ('["$(touch sprung)"]', "", None),
        ("", "a b", None),
        ("7", "", None),
    ],
)
def test_boards_are_names_from_a_list_and_anything_else_is_refused(
    listed: str, one: str, names: list[str] | None, tmp_path: Path
) -> None:
    (step,) = nightly()["jobs"]["boards"]["steps"]
    output = tmp_path / "output"
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        env={**os.environ, "ALL": listed, "ONE": one, "GITHUB_OUTPUT": str(output)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    if names is None:
        assert done.returncode == 1
        assert done.stderr.startswith("VITRIM_BOARDS must be a JSON list of names")
        assert not (tmp_path / "sprung").exists()
    else:
        assert done.returncode == 0, done.stderr
        assert output.read_text() == f"names={json.dumps(names)}\n"


def started() -> dict[str, str]:
    """The command that each way runs."""
    unit = re.search(r"^ExecStart=\S+/(vitrim .+)$", (EXAMPLES / "vitrim-nightly.service").read_text(), re.MULTILINE)
    line = re.search(r"/(vitrim nightly .+)$", (EXAMPLES / "crontab").read_text(), re.MULTILINE)
    assert unit
    assert line
    found = {"systemd": unit[1], "cron": line[1]}
    for number, (_, step) in enumerate(steps(ROOT / ".github" / "workflows" / "nightly.yml")):
        for command in re.findall(r"\.venv/bin/(vitrim .+)$", step.get("run", ""), re.MULTILINE):
            found[f"github {number}"] = command
    return found


def test_every_way_runs_commands_that_vitrim_has() -> None:
    import typer.main

    from pipeline.cli.app import app

    commands = typer.main.get_command(app)
    assert set(started()) > {"systemd", "cron"}
    if "nightly" not in commands.commands:  # type: ignore[attr-defined]
        pytest.skip("this version has no `vitrim nightly`")
    for command in started().values():
        _, group, name, *words = command.split()
        options = {word for part in commands.commands[group].commands[name].params for word in part.opts}  # type: ignore[attr-defined]
        assert {word for word in words if word.startswith("--")} <= options


def test_cron_gets_five_fields_a_user_and_a_shell_command(tmp_path: Path) -> None:
    lines = [line for line in (EXAMPLES / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    jobs = [line for line in lines if not re.match(r"^[A-Z_]+=", line)]
    assert len(jobs) == 1
    *fields, user, command = jobs[0].split(maxsplit=6)

    for field, largest in zip(fields, LARGEST, strict=True):
        assert CRON.fullmatch(field)
        assert all(int(number) <= largest for number in re.findall(r"\d+", field))
    assert re.fullmatch(r"[a-z][a-z0-9-]*", user)
    assert "%" not in command, "cron makes a line break of it"

    # It runs as it stands, in a folder of ours and with a vitrim that only says how it was called.
    fake = tmp_path / "vitrim"
    fake.write_text('#!/bin/sh\necho "$PWD: $@"\nexit 1\n')
    fake.chmod(0o755)
    for place in ("/srv/vitrim", "/var/lib/vitrim"):
        command = command.replace(place, str(tmp_path))
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace("/opt/vitrim/bin/vitrim", str(fake))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{tmp_path}: nightly run matrix.yaml --output {tmp_path}/night\n", done.stderr
    assert done.returncode == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_its_units(tmp_path: Path) -> None:
    for name in ("vitrim-nightly.service", "vitrim-nightly.timer"):
        text = (EXAMPLES / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/vitrim/bin/vitrim", sys.executable))
    (tmp_path / "broken.service").write_text("[Service]\nType=onceshot\nExecStart=/bin/true\n")

    def verified(*names: str) -> subprocess.CompletedProcess[str]:
        command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in names)]
        environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    right, wrong = verified("vitrim-nightly.service", "vitrim-nightly.timer"), verified("broken.service")
    said = [line for line in right.stderr.splitlines() if "vitrim-nightly" in line]
    assert right.returncode == 0, right.stderr
    assert said == []
    assert "onceshot" in wrong.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_knows_when_the_timer_is_due() -> None:
    when = re.search(r"^OnCalendar=(.+)$", (EXAMPLES / "vitrim-nightly.timer").read_text(), flags=re.MULTILINE)
    assert when
    done = subprocess.run(["systemd-analyze", "calendar", when[1]], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "01:17:00" in done.stdout
