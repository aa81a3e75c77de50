"""BundleManifest: what a bundle says of itself in `manifest.json`, and the digest of each of its files."""

from typing import Any, Literal

from pydantic import Field

from targets.record import Record


class BundledFile(Record):
    """Size and content of one file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Tensor(Record):
    """An input or output of the engine."""

    name: str
    shape: tuple[int | None, ...]
    """null: any size"""
    dtype: str


class Output(Record):
    """The output that answers."""

    name: str
    kind: Literal["logits", "features"]
    size: int = Field(gt=0, description="classes, or width of the features")


class BundleManifest(Record):
    """It lists every other file of the bundle but SHA256SUMS, which is written last and holds the manifest's digest."""

    format: Literal["vitrim.bundle/1"] = "vitrim.bundle/1"
    name: str
    summary: str
    """what it is, in one line"""
    runtime: str
    version: str
    """of the runtime that built the engine; where there is no engine yet, the range that its target needs"""
    precision: str
    batch: int = Field(gt=0)
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    output: Output
    bound_to: dict[str, str] = {}
    """facts of the machine that the engine was built for; elsewhere model.onnx runs in its place"""
    engine_sha256: str | None
    """of engine/engine.json, which holds the digests of the engine's files: what reports cite. null: the bundle has no
    engine, the board builds it from model.onnx
    """
    provenance: dict[str, Any] = {}
    """where it comes from: keys, digest of the recipe, versions of what built it"""
    vitrim: str
    """version of vitrim that wrote it"""
    licence: str
    files: dict[str, BundledFile]
    sums: Literal["SHA256SUMS"] | None = None
    """the file that holds the digest of this one too; null in bundles of older versions"""
