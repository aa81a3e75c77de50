"""Labels and class names: from a CSV, a text file, or the folders that the images lie in."""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from stages.data.place import Label, Listed
from targets.errors import InputError, suggest

MAX_LABEL = 10_000_000


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of the classes: line i, counted from 0, names class i. Raises InputError."""
    lines = [line.strip() for line in io.StringIO(_text(path, "classes").rstrip(), newline=None)]
    if not lines:
        raise InputError(f"classes file {str(path)!r} is empty; line i, counted from 0, names class i")
    if "" in lines:
        raise InputError(f"line {lines.index('') + 1} of the classes file {str(path)!r} is empty; line i names class i")
    return tuple(lines)


def read_class_names(path: Path) -> list[str]:
    """Read class names: a JSON list of strings, or text whose line i names class i. Raises InputError."""
    if path.suffix != ".json":
        return list(read_classes(path))
    try:
        labels = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"labels {str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"labels {str(path)!r} must hold a JSON list of strings")
    return labels


def read_labels(path: Path, where: Mapping[str, str]) -> dict[str, int]:
    """Read the rows of a CSV that fulfil `where`: {file: label}. Raises InputError with the line."""
    origin = f"labels file {str(path)!r}"
    reader = csv.DictReader(io.StringIO(_text(path, "labels"), newline=""), strict=True)
    labels: dict[str, int] = {}
    seen: dict[str, set[str]] = defaultdict(set)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        _check_header(header, where, origin)
        for row in reader:
            at = f"{origin}, line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{at}: expected {len(header)} columns as in the header")
            for column in where:
                seen[column].add(row[column])
            if any(row[column] != value for column, value in where.items()):
                continue
            file = str(PurePosixPath(row["file"].strip().replace("\\", "/")))
            if file in labels:
                raise InputError(f"{at}: {file!r} is there twice; give each image one label")
            labels[file] = _label(row["label"].strip(), at)
    except csv.Error as error:
        raise InputError(f"{origin}, line {reader.line_num}: {error}") from error
    if not labels:
        found = "; ".join(f"{column} is {', '.join(sorted(seen[column])[:5])}" for column in where if seen[column])
        raise InputError(f"{origin} has no row{f' with {dict(where)}; {found}' if where else ' below its header'}")
    return labels


def match_labels(labels: Mapping[str, int], ids: Sequence[str], origin: Path, *, partial: bool) -> dict[str, int]:
    """Find the image of each row: {id: label}. A row names an image by its id or the end of it, if only one has that.

    partial: images without a row are left out (rows were picked by `where`); else they are an error. Raises InputError.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for id_ in ids:
        by_name[id_.rpartition("/")[2]].append(id_)
    known = set(ids)
    matched: dict[str, int] = {}
    unknown = []
    for file, label in labels.items():
        hits = [file] if file in known else [i for i in by_name[file.rpartition("/")[2]] if i.endswith("/" + file)]
        if len(hits) > 1:
            raise InputError(
                f"labels file {str(origin)!r}: {file!r} could be {hits[0]!r} or {hits[1]!r}; write more of the path"
            )
        if not hits:
            unknown.append(file)
        elif hits[0] in matched:
            raise InputError(f"labels file {str(origin)!r}: two rows name the image {hits[0]!r}")
        else:
            matched[hits[0]] = label
    if unknown:
        raise InputError(
            f"labels file {str(origin)!r}: {len(unknown)} of {len(labels)} rows name no image, first {unknown[0]!r}; "
            f"images are named like {ids[0]!r}"
        )
    missing = [id_ for id_ in ids if id_ not in matched]
    if missing and not partial:
        raise InputError(
            f"labels file {str(origin)!r}: {len(missing)} of {len(ids)} images have no row, first {missing[0]!r}; "
            "add rows, or pick rows by `where`"
        )
    return matched


def labels_from_archives(
    images: Sequence[Listed], classes: Sequence[str] | None
) -> tuple[dict[str, int], tuple[str, ...] | None] | None:
    """Labels that lie beside the images in tars and tables, by id, and the class names; None where there are none.

    A negative number is no label. Names count as folders do: in the order of the classes file, else of the alphabet.
    Raises InputError for labels of two kinds, and for two data sets whose classes are not the same.
    """
    given = {image.id: image.label for image in images if not _is_missing(image.label)}
    if not given:
        return None
    kinds = {type(label) for label in given.values()}
    if len(kinds) > 1:
        raise InputError("some labels in the archives are numbers and others names; store one kind")
    known = {image.classes for image in images if image.classes is not None}
    if len(known) > 1:
        raise InputError("the tables have class names that differ; name tables of one data set")
    names = tuple(classes) if classes is not None else next(iter(known), None)
    if kinds == {int}:
        numbers = {id_: int(label) for id_, label in given.items() if label is not None}
        worst = max(numbers, key=numbers.__getitem__)
        if numbers[worst] > MAX_LABEL:
            raise InputError(f"image {worst!r} has the label {numbers[worst]}; labels count from 0 to {MAX_LABEL:,}")
        return numbers, names
    texts = {id_: str(label) for id_, label in given.items()}
    names = names or tuple(sorted(set(texts.values())))
    index = _by_name(names)
    for text in sorted(set(texts.values())):
        if index.get(text, -1) < 0:
            raise InputError(f"label {text!r} is not named in the classes file ({suggest(text, index)})")
    return {id_: index[text] for id_, text in texts.items()}, names


def _is_missing(label: Label | None) -> bool:
    return label is None or (isinstance(label, int) and label < 0)


def _by_name(classes: Sequence[str]) -> dict[str, int]:
    """Index of each class by its line or its first word; -1 where several begin with this word."""
    index: dict[str, int] = {}
    for i, name in enumerate(classes):
        for key in (name, name.split()[0]):
            index[key] = i if index.get(key, i) == i else -1
    return index


def labels_from_folders(
    names: Sequence[str], classes: Sequence[str] | None
) -> tuple[list[int], tuple[str, ...]] | None:
    """Labels of images that lie as CLASS/name.jpg, and the class names; None where they do not.

    Without a classes file the folders count in alphabetical order. With one, a folder is a line or its first word
    (`n01440764` for `n01440764 tench`). Raises InputError for a folder that the file does not name.
    """
    folders = [name.rpartition("/")[0].rpartition("/")[2] for name in names]
    if not all(folders) or (classes is None and len(set(folders)) == 1):
        return None
    if classes is None:
        classes = tuple(sorted(set(folders)))
        index = {name: i for i, name in enumerate(classes)}
    else:
        index = _by_name(classes)
        for folder in sorted(set(folders)):
            if index.get(folder, -1) < 0:
                hint = suggest(folder, index)
                raise InputError(f"folder {folder!r} is not named in the classes file ({hint}); give a labels file")
    return [index[folder] for folder in folders], tuple(classes)


def _check_header(header: Sequence[str], where: Mapping[str, str], origin: str) -> None:
    for column in ("file", "label"):
        if header.count(column) != 1:
            hint = "; separate columns by commas" if len(header) == 1 and re.search(r"[;\t]", header[0]) else ""
            raise InputError(f"{origin} needs a header with one column {column!r}, got {', '.join(header)!r}{hint}")
    for column in where:
        if column not in header:
            raise InputError(f"{origin} has no column {column!r}, which `where` names; {suggest(column, header)}")


def _label(text: str, at: str) -> int:
    if re.fullmatch(r"-[0-9]+", text):
        raise InputError(f"{at}: label {text} is negative; labels count from 0")
    if not re.fullmatch(r"[0-9]+", text):
        raise InputError(f"{at}: label {text!r} is not an integer; labels count from 0")
    if len(text) > 18 or int(text) > MAX_LABEL:
        raise InputError(f"{at}: label {text[:20]} is larger than {MAX_LABEL:,}")
    return int(text)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # line ends as they are: csv knows them
    except FileNotFoundError:
        raise InputError(f"no {what} file at {str(path)!r}; relative paths start at the recipe's folder") from None
    except OSError as error:
        raise InputError(f"cannot read the {what} file {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} file {str(path)!r} is not UTF-8 text (byte {error.start})") from error
