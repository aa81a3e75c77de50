"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights and real images; skips where there is none."""
    folder = Path(os.environ.get("VITRIM_ASSETS") or ROOT.parent / "shared" / "assets")
    if not (folder / "vit_tiny_patch16_224").is_dir():
        pytest.skip(f"no assets at {folder}: set VITRIM_ASSETS to a folder with real weights and images")
    return folder
