"""A bundle as one file to ship: the same bytes for the same bundle and options, whoever packs it and when."""

import hashlib
import io
import json
import os
import secrets
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from targets.atomic import sha256_of, sync_folder
from targets.bundle.archive import ChangedError, Source, slug, write_archive
from targets.bundle.board import BUILD_SCRIPT
from targets.bundle.manifest import BundledFile, BundleManifest
from targets.bundle.reproduce import REPRODUCE_SCRIPT
from targets.bundle.run import MANIFEST, MAX_MANIFEST_BYTES, SUMS, BundleError, parse_manifest, sums_text
from targets.bundle.verify import check_bundle
from targets.bundle.write import BUILT, CARD, json_text, onnx_facts, written_files
from targets.errors import InputError, StageError, StoreError
from targets.record import Record
from targets.runtimes.engine import read_engine

LICENCE_FILE = "LICENSE"
MOST_LICENCE_BYTES = 2**20
MOST_LICENCE_LETTERS = 200
_WRITTEN = ("README.md", BUILD_SCRIPT, REPRODUCE_SCRIPT, MANIFEST, SUMS)
"""files that are written anew where an option changes what they say"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a package differs in from its bundle."""

    licence: str | None = None
    """of the weights, in one line: an SPDX expression where there is one"""
    licence_file: Path | None = None
    """its text, which becomes LICENSE"""
    engine: bool = True
    """False: only the portable graph"""


class Packaged(Record):
    """What was written."""

    path: str
    sha256: str
    size_bytes: int
    folder: str
    """the one folder that it unpacks into"""
    manifest: BundleManifest


def package_name(manifest: BundleManifest, *, engine: bool = True) -> str:
    """Name of the folder that a package unpacks into, and of its file where the user gives none."""
    portable = "" if engine and manifest.engine_sha256 is not None else "-portable"
    return slug(f"{manifest.name}-{manifest.runtime}-{manifest.precision}{portable}")


def package_bundle(bundle: Path, output: Path, options: Options) -> Packaged:
    """Write a bundle's folder as one zip; an older package is replaced, anything else never.

    Raises InputError for bad options, StageError for a damaged
    bundle, StoreError where the zip cannot be written.
    """
    check = check_bundle(bundle)
    if check.problems or check.manifest is None:
        raise StageError(f"the bundle {str(bundle)!r} is damaged: {'; '.join(check.problems[:3])}; build it again")
    contents, manifest = _contents(bundle, check.manifest, options)
    root = package_name(manifest)
    path = output.absolute()
    refuse_inside(bundle, path)
    _check_replaceable(path)
    sources = [Source(name, _digest(content), _opener(content)) for name, content in contents.items()]
    try:
        with _in_place_of(path) as file:
            write_archive(file, sources, root)
    except (ChangedError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"cannot write {str(path)!r}: {reason}; free some space or choose another output") from error
    return Packaged(
        path=str(path), sha256=sha256_of(path), size_bytes=path.stat().st_size, folder=root, manifest=manifest
    )


@contextmanager
def opened(bundle: Path) -> Iterator[Path]:
    """A checked bundle as a folder: itself, or unpacked for as long as it is needed.

    Raises InputError for what is no bundle, StageError for a damaged one.
    """
    check = check_bundle(bundle)
    if check.problems:
        raise StageError(f"the bundle {str(bundle)!r} is damaged: {'; '.join(check.problems[:3])}; get it again")
    if check.kind == "folder":
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="vitrim-bundle-") as folder:
        try:
            with zipfile.ZipFile(bundle) as archive:
                archive.extractall(folder)  # its names were checked
        except OSError as error:
            raise StoreError(f"cannot unpack {str(bundle)!r}: {error.strerror or error}; free some space") from error
        found = [one.parent for one in Path(folder).glob(MANIFEST)] or [
            one.parent for one in Path(folder).glob(f"*/{MANIFEST}")
        ]
        yield found[0]


def _contents(
    bundle: Path, manifest: BundleManifest, options: Options
) -> tuple[dict[str, Path | bytes], BundleManifest]:
    """Every file of the package, and its manifest."""
    contents: dict[str, Path | bytes] = {name: bundle / name for name in (*manifest.files, MANIFEST)}
    if manifest.sums is not None:
        contents[SUMS] = bundle / SUMS
    changes = _changes(bundle, manifest, options)
    if not changes and options.licence_file is None:
        return contents, manifest
    card = read_card(bundle)
    engine = read_engine(bundle / "engine") if manifest.engine_sha256 is not None else {}
    changed = manifest.replace(**changes)
    if changed.engine_sha256 is None:
        contents = {name: content for name, content in contents.items() if not name.startswith("engine/")}
        engine = {key: engine[key] for key in ("options", "at_load") if key in engine}
        contents[BUILT] = json_text({"runtime": manifest.runtime, **engine}).encode()
    if options.licence_file is not None:
        contents[LICENCE_FILE] = _licence_text(options.licence_file)
    for name in _WRITTEN:
        contents.pop(name, None)
    written = written_files(changed, card, engine=engine, onnx=bundle / "model.onnx")
    contents |= {name: text.encode() for name, text in written.items()}
    listed = {name: _listed(content, manifest.files.get(name)) for name, content in sorted(contents.items())}
    changed = changed.replace(files=listed, sums=SUMS)
    plain = changed.model_dump(mode="json")
    text = json_text(plain).encode()
    contents[MANIFEST] = text
    contents[SUMS] = sums_text(plain["files"], hashlib.sha256(text).hexdigest()).encode()
    return contents, changed


def _changes(bundle: Path, manifest: BundleManifest, options: Options) -> dict[str, Any]:
    """Fields of the manifest that the options change."""
    changes: dict[str, Any] = {}
    if options.licence is not None:
        licence = options.licence.strip()
        if not licence or len(licence) > MOST_LICENCE_LETTERS or not licence.isprintable():
            raise InputError(
                f"--licence is one line of at most {MOST_LICENCE_LETTERS} letters, e.g. 'Apache-2.0', got "
                f"{options.licence[:40]!r}; a whole text goes in with --license-file"
            )
        changes["licence"] = licence
    elif options.licence_file is not None:
        changes["licence"] = f"see {LICENCE_FILE}"
    if not options.engine and manifest.engine_sha256 is not None:
        changes |= {"engine_sha256": None, "bound_to": {}, "version": "", **onnx_facts(bundle / "model.onnx")}
    return changes


def read_card(bundle: Path) -> Mapping[str, Any]:
    """The figures of a bundle's model card; raises InputError for a bundle of a version that kept none."""
    try:
        card = json.loads((bundle / CARD).read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"the bundle {str(bundle)!r} is of an older version and has no {CARD}, which the asked for is written "
            "from; build it again (finished steps are reused), or pack it as it is"
        ) from error
    return dict(card)


def _licence_text(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read the licence {str(path)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the licence {str(path)!r} is not text in UTF-8; save it as UTF-8") from error
    if not data.strip() or len(data) > MOST_LICENCE_BYTES:
        raise InputError(f"the licence {str(path)!r} has {len(data):,} bytes; 1 to {MOST_LICENCE_BYTES:,} are allowed")
    return data


def _listed(content: Path | bytes, known: BundledFile | None) -> BundledFile:
    if isinstance(content, bytes):
        return BundledFile(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    assert known is not None  # a file of the bundle
    return known


def _digest(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)


def _opener(content: Path | bytes) -> Any:
    def open_content() -> IO[bytes]:
        return io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")

    return open_content


def refuse_inside(bundle: Path, output: Path) -> None:
    """Raise InputError for an output in the bundle itself, which it would damage."""
    if output.resolve().is_relative_to(bundle.resolve()):
        raise InputError(f"{str(output)!r} is inside of the bundle, which it would damage; choose another output")


def _check_replaceable(path: Path) -> None:
    """Raise InputError unless there is nothing, or an older package."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{str(path)!r} is in the way: it is not a file; choose another output or remove it")
    if path.exists():
        try:
            with zipfile.ZipFile(path) as archive:
                is_package = any(
                    one.filename.split("/")[1:] == [MANIFEST]
                    and one.file_size <= MAX_MANIFEST_BYTES
                    and parse_manifest(archive.read(one))
                    for one in archive.infolist()
                )
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, BundleError):
            is_package = False
        if not is_package:
            raise InputError(f"{str(path)!r} is not a package of vitrim; choose another output or remove it")


@contextmanager
def _in_place_of(path: Path) -> Iterator[Any]:
    """A new file that takes the place of this one at the end; on any error nothing has changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)
