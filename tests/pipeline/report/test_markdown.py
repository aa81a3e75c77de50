"""The Markdown page says what the report says, and shows names as they are."""

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.report import figures, tables
from pipeline.report.markdown import to_markdown

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
MARKUP = ("html_inline", "link_open", "image", "code_inline", "s_open", "em_open", "softbreak", "hardbreak")


def parsed(text):
    """Tokens of a page, those of its lines unfolded."""
    tokens = []
    for token in PARSER.parse(text):
        tokens.append(token)
        tokens += token.children or []
    return tokens


def shown(text):
    """What a reader sees of a page, without markup."""
    return "\n".join(token.content for token in parsed(text) if token.type in ("text", "fence"))


def test_the_page_is_this(reports, golden):
    golden("report.md", to_markdown(reports["example"]))


def test_every_row_of_a_table_has_its_columns(any_report):
    text = to_markdown(any_report)
    tables_written = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]

    assert len(tables_written) == sum(token.type == "table_open" for token in parsed(text)) > 0
    for lines in tables_written:
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1, lines


def test_nothing_is_written_that_only_python_understands(any_report):
    page = shown(to_markdown(any_report))

    assert not re.search(r"\b(None|nan|inf|True|False|\{\}|\[\])\b", page)


def test_every_headline_is_on_the_page(any_report):
    page = shown(to_markdown(any_report))

    assert figures.visible(any_report.verdict.sentence).replace("  ", " ")[:60] in page
    for row in tables.headlines(any_report):
        assert (row.after or figures.NOT_MEASURED) in page


def test_hostile_names_are_text_and_nothing_else(hostile):
    text = to_markdown(hostile)
    tokens = parsed(text)

    assert not [token.type for token in tokens if token.type in MARKUP]
    # The only HTML is our own, around the recipe.
    assert [token.content.strip() for token in tokens if token.type == "html_block"] == [
        "<details><summary>The recipe</summary>",
        "</details>",
    ]
    assert figures.visible(hostile.name) in shown(text)


@given(st.text(min_size=1, max_size=60) | st.text("-+#>*_`~[](){}!:|\\<&; 1.ab\n\t=", min_size=1, max_size=40))
@example("[0]")  # with what follows it in a list, a definition of where a link leads
@example("# a")
@example("1. a")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_shows_as_it_is(bare, name):
    reproduce = {name: name, "engine_sha256": name} if name not in ("command", "recipe") else {}
    page = to_markdown(bare.replace(name=name, target=bare.target.replace(name=name), reproduce=reproduce))
    tokens = parsed(page)

    # All markup is ours: the only emphasis says "not measured", and every name is one item of the list.
    assert {token.type for token in tokens if token.type in MARKUP} == {"em_open"}
    assert shown(page).count(figures.NOT_MEASURED) >= sum(token.type == "em_open" for token in tokens)
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", *["h2"] * bool(reproduce)]
    assert sum(token.type == "list_item_open" for token in tokens) == len(reproduce)
    title = "".join(child.content for child in tokens[1].children)
    assert title.split() == f"{figures.visible(name)} on {figures.visible(name)}".split()


@pytest.mark.parametrize("fences", [3, 4, 9])
def test_a_recipe_cannot_end_its_own_block(bare, fences):
    recipe = f"a: b\n{'`' * fences}\n# not a heading\n~~~\n</details>"
    tokens = parsed(to_markdown(bare.replace(reproduce={"recipe": recipe})))

    assert recipe in [token.content.rstrip("\n") for token in tokens if token.type == "fence"]
    assert sum(token.type == "html_block" for token in tokens) == 2
