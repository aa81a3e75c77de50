"""Where a package comes from, as others read it: an in-toto Statement with SLSA provenance, and a CycloneDX ML-BOM.

Both are unsigned and pure functions of what is packed: no clock, no machine. Formats: in-toto.io/Statement/v1,
slsa.dev/provenance/v1, CycloneDX 1.6. Unsigned, they state where it comes from and prove nothing.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from targets.bundle.manifest import BundleManifest
from targets.bundle.package import Packaged

BUILD_TYPE = "urn:vitrim:build:1"
"""externalParameters: recipe (text), recipe_digest, target, command; resolvedDependencies: recipe, artifacts by key"""
BUILDER = "urn:vitrim:local"
"""whoever ran vitrim; nothing vouches for the machine"""
KEY = "urn:vitrim:key:"
"""of an artifact: the digest of all that decides it"""
_SERIES = uuid.UUID("8d5f3c1e-6d0a-5b7e-9a55-3f1f4b0b7a11")


def statement(packaged: Packaged, *, card: Mapping[str, Any], build: Mapping[str, Any] | None) -> dict[str, Any]:
    """In-toto Statement v1 about a package, with an SLSA provenance v1 predicate.

    card: what card.json holds. build: what the report says of the build, where it is at hand: command, recipe, ...
    """
    manifest, known = packaged.manifest, dict(packaged.manifest.provenance)
    versions = known.pop("versions", {})
    told = {key: value for key, value in (build or {}).items() if key in ("command", "recipe", "recipe_digest")}
    digest = told.get("recipe_digest") or known.get("recipe_digest")
    parameters = {
        "target": (card.get("target") or {}).get("name", ""),
        "model": card.get("model", ""),
        **({"recipe_digest": digest} if digest else {}),
        **told,
    }
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": packaged.path.rsplit("/", 1)[-1], "digest": {"sha256": packaged.sha256}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {key: value for key, value in parameters.items() if value},
                "internalParameters": {
                    "runtime": manifest.runtime,
                    "runtime_version": manifest.version,
                    "precision": manifest.precision,
                    "batch": manifest.batch,
                    "bound_to": manifest.bound_to,
                },
                "resolvedDependencies": _dependencies(known, digest, card),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"vitrim": manifest.vitrim, **versions}},
                "byproducts": [
                    {"name": name, "digest": {"sha256": file.sha256}} for name, file in sorted(manifest.files.items())
                ],
            },
        },
    }


def _dependencies(known: Mapping[str, Any], recipe: str | None, card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the build read and made on the way, by the key of each step."""
    found = [{"name": "recipe", "digest": {"sha256": recipe}}] if recipe else []
    steps = {one["name"]: one["key"] for one in card.get("steps", ()) if one.get("key")}
    keys = {**steps, **{name: key for name, key in known.items() if name.endswith("_key")}}
    return found + [{"name": name, "uri": f"{KEY}{key}"} for name, key in keys.items()]


def bill_of_materials(packaged: Packaged, *, card: Mapping[str, Any]) -> dict[str, Any]:
    """CycloneDX 1.6 bill of materials of a package: the model with its card, its files, and what built it."""
    manifest = packaged.manifest
    versions = manifest.provenance.get("versions", {})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SERIES, packaged.sha256)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "vitrim", "version": manifest.vitrim}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": manifest.name,
                "description": manifest.summary,
                "hashes": [_hash(packaged.sha256)],
                "licenses": [{"license": {"name": manifest.licence}}],
                "modelCard": _model_card(manifest, card),
            },
        },
        "components": [
            *(
                {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_hash(file.sha256)]}
                for name, file in sorted(manifest.files.items())
            ),
            *(
                {
                    "type": "library",
                    "bom-ref": f"pkg:pypi/{name}@{found}",
                    "name": name,
                    "version": found,
                    "scope": "excluded",  # it built the model and is not in the package
                    "purl": f"pkg:pypi/{name}@{found}",
                }
                for name, found in sorted(versions.items())
                if name not in ("python", "vitrim")
            ),
        ],
    }


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _model_card(manifest: BundleManifest, card: Mapping[str, Any]) -> dict[str, Any]:
    metrics: list[dict[str, Any]] = []
    if accuracy := card.get("accuracy"):
        metrics.append({"type": str(accuracy["metric"]), "value": f"{accuracy['engine']:.6g}"})
        drop: dict[str, Any] = {"type": "accuracy drop, points", "value": f"{accuracy['drop_points']:.6g}"}
        if accuracy.get("drop_ci95"):
            drop["confidenceInterval"] = _interval(accuracy["drop_ci95"])
        metrics.append(drop)
    if latency := card.get("latency_ms"):
        metrics.append(
            {
                "type": "speed-up over the fp32 baseline",
                "value": f"{latency['speedup']:.6g}",
                "confidenceInterval": _interval(latency["speedup_ci95"]),
            }
        )
        metrics.append({"type": "latency p50, ms", "value": f"{latency['p50']:.6g}"})
    return {
        "modelParameters": {
            "task": "image classification" if manifest.output.kind == "logits" else "image features",
            "architectureFamily": "vision transformer",
            **({"modelArchitecture": card["model"]} if card.get("model") else {}),
            "inputs": [{"format": f"{one.dtype} {_shape(one.shape)}"} for one in manifest.inputs],
            "outputs": [{"format": f"{one.dtype} {_shape(one.shape)}"} for one in manifest.outputs],
        },
        **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
    }


def _interval(bounds: Any) -> dict[str, str]:
    return {"lowerBound": f"{bounds[0]:.6g}", "upperBound": f"{bounds[1]:.6g}"}


def _shape(shape: tuple[int | None, ...]) -> str:
    return "x".join("N" if size is None else str(size) for size in shape)
