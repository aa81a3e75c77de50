"""Artifact: a finished folder with a manifest. Files only, no live objects, no pickles.

An artifact's folder holds its files and `manifest.json`, which lists every file with its size and SHA-256.
The manifest is written last; a folder without one is not an artifact.
"""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from targets.record import Record

MANIFEST = "manifest.json"


class Format(StrEnum):
    """What kind of model a folder holds."""

    NOTHING = "nothing"  # only the source stage starts from it
    VIT = "vit"  # vit.json + model.safetensors + model.py
    ONNX = "onnx"  # model.onnx + vit.json
    ENGINE = "engine"  # what a runtime built: engine.json + its files
    OFFERS = "offers"  # offers.json: what each smaller shape of each sublayer costs in accuracy


class FileFacts(Record):
    """Size and content of one file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Manifest(Record):
    """What is in an artifact's folder and where it comes from."""

    format: str = "vitrim.artifact/1"
    key: str
    stage: str
    holds: Format
    files: dict[str, FileFacts]
    facts: dict[str, Any] = {}
    """what the stage found out, for people and reports: plain JSON"""
    inputs: dict[str, str] = {}
    """what went in, by name: keys of artifacts, fingerprints of images, versions of tools"""
    options: dict[str, Any] = {}
    bound_to: dict[str, str] = {}
    """facts of the device an engine was built on; empty for what runs anywhere"""
    seconds: float = Field(ge=0)
    finished_at: datetime
    seal: str = ""
    """SHA-256 of the other fields; the store writes and checks it"""


class Artifact(Record):
    """A finished, verified folder."""

    folder: Path
    manifest: Manifest
    cached: bool = False
