"""`vitrim package`: from a bundle, or the folder of a build, to what is shipped, with papers beside it."""

import json
from pathlib import Path
from typing import Any

from pipeline.report.files import JSON, read_report
from targets.atomic import write_atomic
from targets.bundle.manifest import BundleManifest
from targets.bundle.package import Options, Packaged, opened, package_bundle, package_name, read_card
from targets.bundle.provenance import bill_of_materials, statement
from targets.bundle.run import MANIFEST
from targets.bundle.triton.export import Exported, export_triton
from targets.errors import InputError, StoreError

PROVENANCE = ".provenance.json"
BOM = ".cdx.json"


def find_bundle(place: Path) -> Path:
    """The bundle in a folder: itself, `bundle` of a report's folder, or that of the one target of a build.

    A zip is taken as it is. Raises InputError where there is none, or several.
    """
    if place.is_file() or (place / MANIFEST).is_file():
        return place
    if (place / "bundle" / MANIFEST).is_file():
        return place / "bundle"
    found = sorted(one.parent for one in place.glob(f"*/bundle/{MANIFEST}"))
    if len(found) > 1:
        names = ", ".join(repr(str(one.parent)) for one in found[:10])
        raise InputError(f"{str(place)!r} holds {len(found)} bundles; name one of {names}")
    if not found:
        raise InputError(
            f"no bundle in {str(place)!r}; give one, or the folder of a target that `vitrim build --output` wrote"
        )
    return found[0]


def package(
    place: Path, output: Path | None, options: Options, *, provenance: bool = False, bom: bool = False
) -> tuple[Packaged, list[Path]]:
    """Pack a bundle into one zip, with the papers that are asked for beside it; returns what was written.

    Raises InputError for bad input, StageError for a damaged bundle, StoreError where something cannot be written.
    """
    bundle = find_bundle(place)
    with opened(bundle) as folder:
        if output is None:
            output = bundle.parent / f"{package_name(_manifest(folder), engine=options.engine)}.zip"
        card = read_card(folder) if provenance or bom else {}
        made = package_bundle(folder, output, options)
    papers = {
        **({PROVENANCE: statement(made, card=card, build=_build(bundle, made))} if provenance else {}),
        **({BOM: bill_of_materials(made, card=card)} if bom else {}),
    }
    written = []
    for ending, paper in papers.items():
        path = Path(made.path + ending)
        text = json.dumps(paper, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            write_atomic(path, text.encode(errors="backslashreplace"))
        except OSError as error:
            raise StoreError(f"cannot write {str(path)!r}: {error.strerror or error}; free some space") from error
        written.append(path)
    return made, written


def package_triton(place: Path, output: Path, *, engine: bool = True, max_batch: int | None = None) -> Exported:
    """Write a bundle as a model repository of Triton; see `targets.bundle.triton`."""
    with opened(find_bundle(place)) as folder:
        return export_triton(folder, output, manifest=_manifest(folder), engine=engine, max_batch=max_batch)


def _manifest(folder: Path) -> BundleManifest:
    """Of a bundle that was checked."""
    return BundleManifest.model_validate_json((folder / MANIFEST).read_bytes())


def _build(bundle: Path, made: Packaged) -> dict[str, Any] | None:
    """What the report beside a bundle says of its build; None where there is none, or one of another bundle."""
    if not (bundle.parent / JSON).is_file():
        return None
    told = read_report(bundle.parent / JSON).reproduce
    same = told.get("recipe_digest") == made.manifest.provenance.get("recipe_digest")
    return dict(told) if same else None
