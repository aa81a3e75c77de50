"""Labels from CSV files and folders: right, or refused with the line and what to do."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.data.labels import labels_from_folders, match_labels, read_classes, read_labels
from targets.errors import InputError


@pytest.fixture
def table(tmp_path):
    def write(content: str | bytes, name: str = "labels.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_rows_are_read_with_other_columns_spaces_and_quotes(table):
    path = table('\ufeffpart, file ,label\r\nx,a.jpg, 3\r\ny,"b, c.jpg",0\r\n')

    assert read_labels(path, {}) == {"a.jpg": 3, "b, c.jpg": 0}


def test_where_picks_rows(table):
    path = table("file,label,part,fold\na,1,x,1\nb,2,y,1\nc,3,x,2\n")

    assert read_labels(path, {"part": "x"}) == {"a": 1, "c": 3}
    assert read_labels(path, {"part": "x", "fold": "2"}) == {"c": 3}


@pytest.mark.parametrize(
    ("content", "where", "reason"),
    [
        ("", {}, "needs a header with one column 'file', got ''"),
        ("name,label\na,1\n", {}, "needs a header with one column 'file', got 'name, label'"),
        ("file,class\na,1\n", {}, "needs a header with one column 'label'"),
        ("file;label\na;1\n", {}, "separate columns by commas"),
        ("file\tlabel\na\t1\n", {}, "separate columns by commas"),
        ("file,file,label\na,b,1\n", {}, "one column 'file'"),
        ("a.jpg,1\nb.jpg,2\n", {}, "needs a header"),
        ("file,label\n", {}, "has no row below its header"),
        ("file,label\na,cat\n", {}, "line 2: label 'cat' is not an integer"),
        ("file,label\na,1.0\n", {}, "line 2: label '1.0' is not an integer"),
        ("file,label\na,1_0\n", {}, "line 2: label '1_0' is not an integer"),
        ("file,label\na,\n", {}, "line 2: label '' is not an integer"),
        ("file,label\na,1\nb,-1\n", {}, "line 3: label -1 is negative"),
        ("file,label\na,99999999999999999999999\n", {}, "larger than 10,000,000"),
        ("file,label\na,1\na,1\n", {}, "line 3: 'a' is there twice"),
        ("file,label\na,1\n./a,1\n", {}, "line 3: 'a' is there twice"),
        ("file,label\na\n", {}, "line 2: expected 2 columns"),
        ("file,label\na,1,2\n", {}, "line 2: expected 2 columns"),
        ('file,label\n"a,1\n', {}, "line 1: unexpected end of data"),
        ("file,label,part\na,1,x\n", {"prt": "x"}, "no column 'prt', which `where` names; did you mean 'part'?"),
        ("file,label,part\na,1,x\nb,1,y\n", {"part": "z"}, "no row with {'part': 'z'}; part is x, y"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(table, content, where, reason):
    assert reason in refusal(read_labels, table(content), where)


def test_a_table_that_is_no_text_is_refused(table, tmp_path):
    assert "is not UTF-8 text" in refusal(read_labels, table(b"file,label\n\xff\xfe,1\n"), {})
    assert "no labels file at" in refusal(read_labels, tmp_path / "none.csv", {})
    assert "cannot read the labels file" in refusal(read_labels, tmp_path, {})


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1).filter(
            lambda name: name.strip() == name and name != "."
        ),
        st.integers(0, 10**7),
        min_size=1,
    )
)
def test_what_a_csv_writer_writes_is_read_back(table, rows):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerows([("file", "label"), *rows.items()])

    assert read_labels(table(stream.getvalue()), {}) == rows


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(st.sampled_from("file,label\n\r\"'; 012-\0a")) | st.binary().map(lambda b: b"file,label\n" + b))
def test_any_table_is_read_or_refused(table, content):
    labels, message = {}, ""
    try:
        labels = read_labels(table(content), {})
    except InputError as error:
        message = str(error)

    assert bool(labels) != bool(message)
    assert "\n" not in message
    assert all(label >= 0 for label in labels.values())


IDS = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "3.jpg"]


def match(labels, *, ids=IDS, partial=False):
    return match_labels(labels, ids, Path("labels.csv"), partial=partial)


def test_a_row_names_an_image_by_its_path_or_by_the_end_of_it():
    assert match({"a/1.jpg": 1, "b/1.jpg": 2, "2.jpg": 3, "3.jpg": 4}) == {
        "a/1.jpg": 1,
        "b/1.jpg": 2,
        "b/2.jpg": 3,
        "3.jpg": 4,
    }


def test_the_end_of_a_name_is_no_name():
    assert "1 of 1 rows name no image, first 'g.jpg'" in refusal(match, {"g.jpg": 0}, ids=["dog.jpg"])


def test_a_row_that_could_be_two_images_is_refused():
    assert "'1.jpg' could be 'a/1.jpg' or 'b/1.jpg'" in refusal(match, {"1.jpg": 0})


def test_two_rows_for_one_image_are_refused():
    assert "two rows name the image 'b/2.jpg'" in refusal(match, {"2.jpg": 0, "b/2.jpg": 1})


def test_rows_that_name_no_image_are_refused_with_an_example():
    message = refusal(match, {"3.jpg": 0, "4.jpg": 0, "5.jpg": 0})

    assert "2 of 3 rows name no image, first '4.jpg'; images are named like 'a/1.jpg'" in message


def test_images_without_a_row_are_refused_unless_rows_were_picked():
    assert "2 of 4 images have no row, first 'a/1.jpg'" in refusal(match, {"b/1.jpg": 0, "3.jpg": 1})
    assert match({"b/1.jpg": 0}, partial=True) == {"b/1.jpg": 0}


def test_line_i_names_class_i(table):
    assert read_classes(table("n01 tench, Tinca\r\n  dog \ncat\n\n")) == ("n01 tench, Tinca", "dog", "cat")


@pytest.mark.parametrize(("content", "reason"), [("", "is empty"), ("\n\n", "is empty"), ("a\n\nb\n", "line 2")])
def test_a_classes_file_with_gaps_is_refused(table, content, reason):
    assert reason in refusal(read_classes, table(content))


def test_folders_are_classes_in_alphabetical_order():
    labels, classes = labels_from_folders(["dog/1.jpg", "cat/1.jpg", "x/dog/2.jpg"], None)

    assert labels == [1, 0, 1]
    assert classes == ("cat", "dog")


@pytest.mark.parametrize("names", [["dog/1.jpg", "2.jpg"], ["1.jpg"], ["images/1.jpg", "images/2.jpg"]])
def test_images_that_do_not_lie_in_class_folders_have_no_labels(names):
    assert labels_from_folders(names, None) is None


def test_a_classes_file_orders_the_folders_by_name_or_first_word():
    names = ["n02/1.jpg", "dog/1.jpg", "white shark/1.jpg"]
    classes = ("white shark", "dog", "n02 tench, Tinca")

    assert labels_from_folders(names, classes) == ([2, 1, 0], classes)


def test_a_folder_that_is_no_class_is_refused():
    assert "folder 'dgo' is not named in the classes file (did you mean 'dog'?)" in refusal(
        labels_from_folders, ["dgo/1.jpg"], ("dog", "cat")
    )


def test_a_folder_that_could_be_two_classes_is_refused():
    assert "folder 'great'" in refusal(labels_from_folders, ["great/1.jpg"], ("great auk", "great shark"))
