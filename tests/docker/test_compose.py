"""The compose file: valid, without secrets in it, closed to other machines."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker" / "compose.yaml"
CHECKER = Path(sys.executable).parent / "check-jsonschema"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text())["services"])


def checked(file: Path) -> subprocess.CompletedProcess[str]:
    command = [str(CHECKER), "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not CHECKER.is_file(), reason="check-jsonschema is not installed (extra: dev)")
def test_it_fits_the_compose_specification(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(FILE.read_text().replace("healthcheck:", "healthchek:"))

    assert checked(FILE).returncode == 0, checked(FILE).stdout
    assert checked(broken).returncode == 1


def test_docker_compose_itself_reads_it() -> None:
    version = ["docker", "compose", "version"]
    try:
        has = subprocess.run(version, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        has = False
    if not has:
        pytest.skip("docker compose is not installed")
    command = ["docker", "compose", "-f", str(FILE), "--profile", "nightly", "config", "--quiet"]
    without = {name: value for name, value in os.environ.items() if name != "VITRIM_HISTORY_PASSWORD"}
    given = subprocess.run(command, env={**without, "VITRIM_HISTORY_PASSWORD": "x"}, capture_output=True, check=False)
    missing = subprocess.run(command, env=without, capture_output=True, text=True, check=False)

    assert given.returncode == 0
    assert missing.returncode != 0
    assert "set VITRIM_HISTORY_PASSWORD" in missing.stderr


def test_no_password_stands_in_it_and_a_missing_one_is_named(services: dict[str, Any]) -> None:
    for name in ("POSTGRES_PASSWORD", "PGPASSWORD"):
        found = [service["environment"][name] for service in services.values() if name in service["environment"]]
        assert len(found) == 1
        assert found[0].startswith("${VITRIM_HISTORY_PASSWORD:?set VITRIM_HISTORY_PASSWORD")


def test_the_database_listens_on_this_machine_only(services: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in services["history"]["ports"])


def test_services_have_no_rights_that_they_do_not_need(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")


def test_the_runner_waits_for_a_healthy_history_and_has_what_it_needs(services: dict[str, Any]) -> None:
    runner = services["nightly"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert runner["depends_on"]["history"]["condition"] == "service_healthy"
    assert "pg_isready" in services["history"]["healthcheck"]["test"]
    assert (ROOT / "docker" / runner["build"]["context"] / runner["build"]["dockerfile"]).is_file()
    assert set(runner["build"]["args"]["EXTRAS"].split(",")) <= set(extras)
