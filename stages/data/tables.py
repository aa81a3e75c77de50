"""Images in tables: Parquet and Arrow files, with a column of encoded images and perhaps one of labels.

That is how data sets of the Hugging Face hub are stored, and what `datasets.Dataset.save_to_disk` writes. An image of
an Arrow file is read where it lies. Parquet can only be read in groups of rows, so the images of a Parquet file are
copied one after the other into a file beside the index cache, once for each version of it. pyarrow reads both.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache as remember
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.data.place import Label, Listed, Slice
from targets.errors import InputError, StoreError, suggest
from targets.record import digest_of

TABLE_SUFFIXES = (".parquet", ".arrow")
ROWS_AT_ONCE = 256


class Columns(NamedTuple):
    """Names of columns; None: found by type and name."""

    image: str | None = None
    label: str | None = None


FOUND = Columns()


def list_table(root: Path, prefix: str, columns: Columns, *, cache: Path | None) -> list[Listed]:
    """The images of a Parquet or Arrow file, in the order of its rows.

    cache: the index cache, in whose folder a Parquet file's images are kept; None: in a temporary one. Raises
    InputError.
    """
    pa = _pyarrow(root)
    try:
        if root.suffix.lower() == ".parquet":
            import pyarrow.parquet as parquet

            file = parquet.ParquetFile(root)
            image, label = _pick(file.schema_arrow, columns, root)
            path, spans = _copied(root, file, image, cache)
            labels = file.read(columns=[label]).column(0).to_pylist() if label else None
            schema = file.schema_arrow
        else:
            table, whole = _mapped(root)
            schema = table.schema
            image, label = _pick(schema, columns, root)
            path, spans = root, _spans_in_place(table, whole, image, root)
            labels = table.column(label).to_pylist() if label else None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"cannot read the table {str(root)!r}: {reason[0]}") from error
    names = _class_names(schema, label)
    listed = []
    for row, (offset, size) in enumerate(spans.tolist()):
        name = f"{row:08}"
        given = _label(labels[row], root, row) if labels is not None else None
        listed.append(Listed(prefix + name, name, Slice(str(path), name, offset, size), label=given, classes=names))
    return listed


def data_set_files(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that `save_to_disk` wrote, in order; None where it is none. Raises InputError."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise InputError(
            f"{str(folder)!r} holds several splits; name the folder of one: {', '.join(splits) or 'none is there'}"
        )
    state = folder / "state.json"
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return None
    try:
        names = [str(entry["filename"]) for entry in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(state)!r} does not name the data set's files: {error}") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise InputError(
            f"{str(state)!r} names {(missing or ['nothing'])[0]!r}, which is not in its folder; save the data set anew"
        )
    return [folder / name for name in names]


def _pyarrow(root: Path) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise InputError(f"{str(root)!r} is read by pyarrow, which is not installed; pip install pyarrow") from error
    return pa


def _pick(schema: Any, columns: Columns, root: Path) -> tuple[str, str | None]:
    """Names of the image column and of the label column, if there is one."""
    images = [field.name for field in schema if _holds_bytes(field.type)]
    for wanted in columns:
        if wanted is not None and wanted not in schema.names:
            raise InputError(f"{str(root)!r} has no column {wanted!r}; {suggest(wanted, schema.names)}")
    if columns.image is not None and columns.image not in images:
        kind = schema.field(columns.image).type
        raise InputError(
            f"column {columns.image!r} of {str(root)!r} holds {kind}; images are binary, or a struct with binary "
            "'bytes'"
        )
    if columns.image is None and len(images) != 1:
        found = ", ".join(images) or f"none among {', '.join(schema.names)}"
        raise InputError(f"{str(root)!r} must have one column of images; found {found}: name it with image_column")
    label = columns.label or next((name for name in ("label", "labels") if name in schema.names), None)
    return columns.image or images[0], label


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _mapped(root: Path) -> tuple[Any, Any]:
    """The table of an Arrow file, stream or file format, and the buffer of the whole file that it points into."""
    import pyarrow as pa

    whole = pa.memory_map(str(root)).read_buffer()
    try:
        return pa.ipc.open_stream(whole).read_all(), whole
    except pa.ArrowInvalid:
        return pa.ipc.open_file(whole).read_all(), whole


def _encoded(chunk: Any, root: Path, first_row: int) -> Any:
    """The binary array of a chunk of the image column."""
    import pyarrow.types as types

    array = chunk
    while types.is_struct(array.type):
        array = array.flatten()[array.type.get_field_index("bytes")]
    if array.null_count:
        row = first_row + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise InputError(
            f"{str(root)!r}: row {row} holds no image bytes ({array.null_count} rows do not); save the data set with "
            "its images embedded, not their paths"
        )
    return array


def _offsets(array: Any) -> NDArray[np.int64]:
    """Where the values of a binary array start in its data, and where the last one ends: [rows + 1]."""
    import pyarrow.types as types

    kind = np.int64 if types.is_large_binary(array.type) else np.int32
    found = np.frombuffer(array.buffers()[1], kind) if array.buffers()[1] else np.zeros(1, kind)
    return found[array.offset : array.offset + len(array) + 1].astype(np.int64)


def _spans_in_place(table: Any, whole: Any, image: str, root: Path) -> NDArray[np.int64]:
    """Offset in the file and size of each image of a mapped table: [rows, 2]."""
    spans, row = [np.empty((0, 2), np.int64)], 0
    for chunk in table.column(image).chunks:
        array = _encoded(chunk, root, row)
        row += len(array)
        if not len(array):
            continue
        offsets, data = _offsets(array), array.buffers()[2]
        start = data.address - whole.address
        if not 0 <= start <= start + data.size <= whole.size:
            raise InputError(f"{str(root)!r} is compressed: its images cannot be read in place; save it uncompressed")
        spans.append(np.stack([offsets[:-1] + start, np.diff(offsets)], axis=1))
    return np.concatenate(spans)


@remember
def _temporary() -> Path:
    """A folder for this process, removed at its end."""
    folder = tempfile.mkdtemp(prefix="vitrim-tables-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _copied(root: Path, file: Any, image: str, cache: Path | None) -> tuple[Path, NDArray[np.int64]]:
    """The file with a Parquet file's images one after the other, made if need be; [rows, 2]: offset, size."""
    status = root.stat()
    name = digest_of([str(root.resolve()), image])[:16]
    version = digest_of([1, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])[:16]
    folder = _temporary() if cache is None else cache.parent / "tables"
    images, ends = folder / f"{name}-{version}.images", folder / f"{name}-{version}.npy"
    if not (images.is_file() and ends.is_file()):
        _copy(root, file, image, images, ends)
        for old in folder.glob(f"{name}-*"):
            if version not in old.name:
                old.unlink(missing_ok=True)
    stops = np.load(ends)
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]]) if len(stops) else stops
    return images, np.stack([starts, stops - starts], axis=1)


def _copy(root: Path, file: Any, image: str, images: Path, ends: Path) -> None:
    written = [0]
    try:
        images.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.NamedTemporaryFile(dir=images.parent, prefix=f".{images.stem}-", delete=False)  # noqa: SIM115  # it is renamed
        try:
            with temporary:
                for content in _rows(root, file, image):
                    temporary.write(content)
                    written.append(written[-1] + len(content))
            index = images.with_suffix(f".{os.getpid()}.tmp")
            with index.open("wb") as stream:
                np.save(stream, np.array(written[1:], np.int64))
            os.replace(index, ends)
            os.replace(temporary.name, images)
        finally:
            Path(temporary.name).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot copy the images of {str(root)!r} to {str(images.parent)!r}: {error.strerror or error}; "
            "free some space"
        ) from error


def _rows(root: Path, file: Any, image: str) -> Iterator[bytes]:
    row = 0
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[image]):
        array = _encoded(batch.column(0), root, row)
        row += len(array)
        for value in array:
            yield value.as_py()


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """Names of the classes in the metadata of the Hugging Face library, None where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _label(value: Any, root: Path, row: int) -> Label | None:
    if value is None or type(value) in (int, str):
        return value  # type: ignore[no-any-return]  # its type was just looked at
    raise InputError(f"{str(root)!r}: row {row} has the label {value!r}; labels are whole numbers or class names")
