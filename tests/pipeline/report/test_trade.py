"""How shapes were chosen: the same in every rendering."""

import re

import pytest

from pipeline.report import figures, trade
from pipeline.report.html import to_html
from pipeline.report.markdown import to_markdown


@pytest.fixture
def decision(reports):
    return reports["searched"].search


def test_the_sentence_says_limits_loss_and_what_uniform_shapes_lose(decision) -> None:
    text = trade.sentence(decision)

    assert "at most 0.80 of the unpruned engine's time and at most 5.00 M parameters" in text
    assert "int8 OpenVINO" in text
    assert "0.56 nats of KL divergence predicted, 13 of 24 sublayers changed" in text
    assert "The same share of every sublayer, at that latency: 0.28" in text
    assert "Found in 14 ms by weighing several limits at once: a good choice, not proven the best." in text
    assert text.endswith("The search took 52 min 0 s.")
    assert "took" not in trade.sentence(decision.replace(seconds=None))  # of an older version


def test_only_an_exact_solution_is_called_so(decision) -> None:
    told = trade.sentence(decision.replace(exact=True))
    assert told.endswith(". Solved exactly in 14 ms. The search took 52 min 0 s.")
    assert "exactly" not in trade.sentence(decision)


def test_the_sentence_says_what_scales_all_sublayers(decision) -> None:
    scaled = decision.replace(size=(160, 160), width=96, merge=(0, 98, 0))

    assert (
        "sublayers changed; the engine reads 160 x 160 pixels and the stream is 96 wide and 98 tokens are merged in "
        "block 1. The same share" in trade.sentence(scaled)
    )
    assert "pixels" not in trade.sentence(decision)


def test_what_was_chosen_lies_where_it_was_measured(decision) -> None:
    assert trade.chosen_ratio(decision) == 0.771
    unmeasured = decision.replace(rounds=())
    assert trade.chosen_ratio(unmeasured) == pytest.approx(0.06 + sum(one.time_after for one in decision.sublayers))


def test_rows_tell_shapes_in_words(decision) -> None:
    rows = {(row.block, row.part): row for row in trade.choice_rows(decision)}

    assert rows[0, "attention"].before == "3 heads, 64"
    assert rows[0, "attention"].after == "3 heads, 32 | 48"
    assert rows[0, "attention"].loss == "<0.0001"
    assert rows[7, "attention"].after == "left out"
    assert rows[7, "attention"].next_loss == figures.DASH
    assert rows[0, "MLP"].time == "3.6 % → 1.9 %"
    assert not rows[1, "MLP"].changed


def test_the_picture_has_the_curve_the_limit_and_the_choice(decision) -> None:
    drawn = str(trade.picture(decision))

    assert len(re.findall('class="allocated"', drawn)) >= 10
    assert drawn.count('class="point chosen"') == 1
    assert drawn.count('class="point tried"') == 2
    assert re.search('x1="(80.00)%" x2="80.00%"[^>]*class="limit"', drawn)


def test_pages_show_it_only_where_there_was_a_search(reports) -> None:
    assert "How shapes were chosen" in to_html(reports["searched"])
    assert "How shapes were chosen" not in to_html(reports["example"])
    assert "## How shapes were chosen" in to_markdown(reports["searched"])
    assert "How shapes were chosen" not in to_markdown(reports["example"])


def test_widths_and_tokens_that_were_tried_are_told(reports) -> None:
    page, short = to_html(reports["searched"]), to_markdown(reports["searched"])

    for text in (
        "width 192, all tokens",
        "width 192, 70.0 % of the tokens, merged in block 1",
        "none keeps the budget",
        "160 x 160 pixels, width 192, all tokens",
        "0.70 (estimated)",
        "192 x 192 pixels, width 192, 50.0 % of the tokens, merged in block 1",
        "not timed",
        "more than the best loses",
    ):
        assert text in page
        assert text in short


def test_the_page_marks_the_chosen_ground_and_counts_stages_apart(reports) -> None:
    page = to_html(reports["searched"])
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">.*?pixels|<tr[^>]*><th scope=\"row\">[^\n]*tokens", page)

    assert [row.startswith('<tr class="chosen">') for row in rows] == [
        one.chosen for one in reports["searched"].search.grounds
    ]
    assert "The search before them is not counted." in page
    assert "The search before them" not in to_html(reports["example"])
