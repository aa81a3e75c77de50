"""Images in Parquet and Arrow files, as the Hugging Face hub and its library store them."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.data.images import check_roles, open_images
from stages.data.source import DataSource
from stages.stage import Role
from targets.errors import InputError
from tests.stages.data.conftest import png

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra tables)")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "dog", "owl"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


BINARY = pa.binary()


def table(seeds: list[int], *, kind: Any = BINARY, label: Any = "numbers", named: bool = True) -> Any:
    """A table as the datasets library makes it: image {bytes, path}, label."""
    struct = pa.struct([("bytes", kind), ("path", pa.string())])
    images = pa.array([{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds], struct)
    columns: dict[str, Any] = {"image": images, "caption": pa.array([f"picture {seed}" for seed in seeds])}
    if label == "numbers":
        columns["label"] = pa.array([seed % 3 for seed in seeds], pa.int64())
    elif label is not None:
        columns["label"] = pa.array(label)
    made = pa.table(columns)
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return made.replace_schema_metadata(metadata) if named else made


def write_arrow(content: Any, path: Path, *, stream: bool = True, rows: int = 3, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with (
        pa.OSFile(str(path), "wb") as sink,
        new(sink, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as file,
    ):
        file.write_table(content, max_chunksize=rows)
    return path


def write(content: Any, path: Path, form: str) -> Path:
    if form == "parquet":
        parquet.write_table(content, path, row_group_size=3)
        return path
    return write_arrow(content, path, stream=form == "stream")


def saved(folder: Path, parts: list[Any]) -> Path:
    """A folder as `save_to_disk` leaves it, with one more file that is not part of the data set."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(parts):05}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_arrow(part, folder / name)
    write_arrow(parts[0], folder / "cache-0123.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def opened(path: Path | tuple[Path, ...], role: Role = Role.FIT, cache: Path | None = None, **options: Any):
    return open_images(DataSource(images=path, **options), role, index_cache=cache)


FORMS = ["parquet", "stream", "file"]
SUFFIX = {"parquet": "parquet", "stream": "arrow", "file": "arrow"}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_table_gives_the_same_images_as_a_folder(form, kind, folder, tmp_path):
    plain = opened(folder({f"{seed:08}.png": seed for seed in range(10)}))
    images = opened(
        write(table(list(range(10)), kind=kind), tmp_path / f"x.{SUFFIX[form]}", form), cache=tmp_path / "c" / "index"
    )

    assert [item.sha256 for item in images.items] == [item.sha256 for item in plain.items]
    assert all(images.image(i).tobytes() == plain.image(i).tobytes() for i in (7, 0, 9, 3))
    assert images.labels.tolist() == [seed % 3 for seed in range(10)]
    assert images.classes == tuple(NAMES)


def test_a_saved_data_set_is_its_files_alone(tmp_path):
    folder = saved(tmp_path / "train", [table([0, 1, 2]), table([3, 4])])
    images = opened(folder)

    assert [item.label for item in images.items] == [0, 1, 2, 0, 1]
    assert images.items[0].id == "data-00000-of-00002.arrow/00000000"


def test_a_data_set_of_splits_asks_for_one(tmp_path):
    saved(tmp_path / "all" / "train", [table([0])])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match="holds several splits; name the folder of one: train"):
        opened(tmp_path / "all")


def test_parquet_is_copied_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    path, cache = write(table([0, 1]), tmp_path / "x.parquet", "parquet"), tmp_path / "store" / "index"
    first = opened(path, cache=cache)
    copies = sorted((tmp_path / "store" / "tables").iterdir())
    opened(path, cache=cache)

    assert sorted((tmp_path / "store" / "tables").iterdir()) == copies
    assert len(copies) == 2
    write(table([5, 6, 7]), path, "parquet")
    second = opened(path, cache=cache)
    assert len(second) == 3
    assert second.image(2).tobytes() != first.image
    assert len(list((tmp_path / "store" / "tables").iterdir())) == 2


def test_without_a_cache_the_copy_is_temporary(tmp_path):
    images = opened(write(table([0, 1]), tmp_path / "x.parquet", "parquet"))

    assert images.image(1).size == (12, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_columns_are_named_where_they_cannot_be_found(tmp_path):
    content = table([3, 4], label=None, named=False)
    content = content.append_column("raw", pa.array([png(8), png(9)], pa.binary())).append_column("y", pa.array([2, 5]))
    path = write(content, tmp_path / "x.parquet", "parquet")
    with pytest.raises(InputError, match="must have one column of images; found image, raw: name it with image_column"):
        opened(path)
    images = opened(path, image_column="raw", label_column="y")

    assert [place.read() for place in images.places] == [png(8), png(9)]
    assert images.labels.tolist() == [2, 5]
    for options, reason in (
        ({"image_column": "pixels"}, "has no column 'pixels'; known: caption, image, raw, y"),
        ({"image_column": "caption"}, "column 'caption' of .* holds string; images are binary"),
        ({"image_column": "raw", "label_column": "why"}, "has no column 'why'"),
    ):
        with pytest.raises(InputError, match=reason):
            opened(path, **options)


def test_labels_may_be_names_or_missing(tmp_path):
    names = write(table([0, 1, 2], label=["owl", "cat", "owl"], named=False), tmp_path / "names.parquet", "parquet")
    none = write(table([0, 1], label=[-1, -1]), tmp_path / "none.parquet", "parquet")
    some = write(table([0, 1], label=[1, None]), tmp_path / "some.parquet", "parquet")

    assert (opened(names).classes, opened(names).labels.tolist()) == (("cat", "owl"), [1, 0, 1])
    assert opened(none).labels is None
    assert [item.label for item in opened(some).items] == [1, None]


def test_a_table_and_a_folder_are_kept_apart_by_content(folder, tmp_path):
    train = opened(write(table([0, 1, 2]), tmp_path / "x.parquet", "parquet"), Role.TRAIN)
    evaluate = opened(folder({"a.png": 2, "b.png": 40}), Role.EVALUATE)
    with pytest.raises(InputError, match=r"1 images in common, first 'a.png' = '00000002'"):
        check_roles({Role.TRAIN: train, Role.EVALUATE: evaluate})


def test_a_damaged_image_of_a_table_is_named(tmp_path):
    content = table(list(range(4)))
    bad = pa.array([b"no image"] + [png(seed) for seed in range(1, 4)], pa.binary())
    content = content.append_column("raw", bad).drop_columns(["image"])
    path = write(content, tmp_path / "x.parquet", "parquet")
    with pytest.raises(InputError, match="1 of 4 images of evaluate cannot be read, first '00000000'"):
        opened(path, Role.EVALUATE)


def no_bytes(path: Path) -> Path:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "/x/y.png"}]
    return write(pa.table({"image": pa.array(rows, struct)}), path / "x.parquet", "parquet")


def floats(path: Path) -> Path:
    return write(table([0, 1], label=[0.5, 1.0]), path / "x.parquet", "parquet")


def cut(path: Path) -> Path:
    write(table([0, 1]), path / "x.parquet", "parquet")
    (path / "x.parquet").write_bytes((path / "x.parquet").read_bytes()[:-30])
    return path / "x.parquet"


def compressed(path: Path) -> Path:
    return write_arrow(table([0, 1]), path / "x.arrow", compression="zstd")


def cut_arrow(path: Path) -> Path:
    write_arrow(table(list(range(9))), path / "x.arrow")
    (path / "x.arrow").write_bytes((path / "x.arrow").read_bytes()[:-2000])
    return path / "x.arrow"


def no_images(path: Path) -> Path:
    return write(pa.table({"text": ["a"]}), path / "x.parquet", "parquet")


def other_names(path: Path) -> Path:
    features = {"info": {"features": {**FEATURES, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    write(table([0]), path / "x.parquet", "parquet")
    write(table([1]).replace_schema_metadata({"huggingface": json.dumps(features)}), path / "y.parquet", "parquet")
    return path


def missing_file(path: Path) -> Path:
    folder = saved(path / "d", [table([0]), table([1])])
    (folder / "data-00001-of-00002.arrow").unlink()
    return folder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_bytes, r"row 1 holds no image bytes \(1 rows do not\)"),
        (floats, "row 0 has the label 0.5; labels are whole numbers or class names"),
        (cut, "cannot read the table"),
        (cut_arrow, "cannot read the table"),
        (compressed, "is compressed: its images cannot be read in place; save it uncompressed"),
        (no_images, "found none among text"),
        (other_names, "class names that differ"),
        (missing_file, "names 'data-00001-of-00002.arrow', which is not in its folder"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_in_one_line(make, reason, tmp_path):
    path = make(tmp_path)
    with pytest.raises(InputError, match=reason) as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    path = write(table([0]), tmp_path / "x.parquet", "parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match="which is not installed; pip install pyarrow"):
        opened(path)
