"""Pages of a run: functions of one record, that say the same to people and machines."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # for browser.py

from browser import find_browser, open_browser

from pipeline.nightly.report.files import add_to_step_summary, write_night
from pipeline.nightly.report.github import MOST, annotations
from pipeline.nightly.report.html import to_html
from pipeline.nightly.report.junit import to_junit
from pipeline.nightly.report.markdown import to_markdown
from pipeline.nightly.report.record import NightReport
from pipeline.nightly.report.terminal import summary
from targets.errors import DeviceLostError, InputError

HOSTILE = "<script>alert(1)</script>|`*_[x](javascript:x)\u202egnp.exe\u202c \x1b[31m'\"& ::error::%0A"
Make = Callable[..., Any]


@pytest.fixture
def eventful(lab: Any) -> NightReport:
    """A night on which one engine is slower, one board has another driver, and one is lost."""
    for _ in range(8):
        lab.night()
    lab.boards["blue"].environment = {"driver": "570"}
    lab.boards["green"].trouble = [DeviceLostError(HOSTILE)] * 3
    lab.builder.speed = lambda unit: 1.06
    return lab.night(commit="0123456789abcdef" * 2)


@pytest.fixture
def quiet(lab: Any) -> NightReport:
    """A night on which nothing happened."""
    for _ in range(6):
        lab.night()
    return lab.night()


def test_the_report_survives_being_written_and_read(eventful: NightReport, tmp_path: Path) -> None:
    write_night(tmp_path / "out", eventful)

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.json", "index.html", "summary.md", "junit.xml"}
    again = NightReport.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert again == eventful
    assert to_html(again) == to_html(eventful)


def test_a_folder_that_cannot_be_written_is_one_line(quiet: NightReport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the report"):
        write_night(tmp_path / "file" / "out", quiet)


def test_what_belongs_together_is_one_case(eventful: NightReport) -> None:
    (case,) = eventful.cases

    assert [one.series.metric for one in case] == ["latency_p50_ms", "energy_mj"]
    assert {one.series.device for one in case} == {"red"}
    assert eventful.sentence == "regression: digits on red; 1 of 3 cells without values"


def test_every_page_names_the_commit_the_cause_and_the_command(eventful: NightReport) -> None:
    pages = [to_html(eventful), to_markdown(eventful), to_junit(eventful), summary(eventful, 200)]

    for page in pages:
        assert "first bad commit 0123456789ab" in page.replace("First bad", "first bad")
        assert "git checkout 0123456789abcdef0123456789abcdef" in page
        assert "commit-7 → 0123456789ab" in page


def test_a_quiet_night_is_green_everywhere(quiet: NightReport) -> None:
    assert quiet.exit_code == 0
    assert annotations(quiet) == []
    assert ET.fromstring(to_junit(quiet)).get("failures") == "0"
    assert "Nothing." in to_html(quiet)
    assert to_markdown(quiet).startswith("# ✓ lab-2026-01-07: nothing to look at")


def test_junit_counts_what_failed_and_skips_nothing(eventful: NightReport) -> None:
    root = ET.fromstring(to_junit(eventful))
    suites = {suite.get("name"): suite for suite in root}

    assert set(suites) == {"red", "green", "blue"}
    assert suites["blue"].get("failures") == "0"
    assert suites["red"].get("failures") == "2"
    assert suites["green"].get("failures") == suites["green"].get("tests") == "7"  # the cell and all of its series
    assert root.get("failures") == str(len(root.findall(".//failure")))
    assert root.findall(".//skipped") == []


def test_annotations_cannot_be_forged_by_what_a_board_says(eventful: NightReport) -> None:
    lines = annotations(eventful)

    assert all(line.startswith(("::error title=", "::warning title=")) for line in lines)
    assert not any("\n" in line or "\r" in line for line in lines)
    assert any("%250A" in line for line in lines)  # the board's own %0A is a text
    title = lines[0].removeprefix("::error title=").partition("::")[0]
    assert ":" not in title
    assert "," not in title


def test_many_annotations_end_with_how_many_more_there_are(make_lab: Make) -> None:
    names = [f"board{index}" for index in range(14)]
    lab = make_lab(
        f"format: vitrim.matrix/1\nname: lab\nlevel: quick\nretries: 0\ndevices: [{', '.join(names)}]\n"
        "recipes: [{recipe: digits.yaml}]\n"
    )
    for board in lab.boards.values():
        board.trouble = [DeviceLostError("gone")]

    lines = annotations(lab.night())

    assert len(lines) == MOST
    assert "5 more" in lines[-1]


def test_the_job_summary_is_added_where_this_is_a_github_job(
    quiet: NightReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    add_to_step_summary(quiet)
    assert page.read_text() == "before\n"

    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    add_to_step_summary(quiet)
    assert page.read_text() == "before\n" + to_markdown(quiet)


def test_the_terminal_is_never_wider_than_it_is(eventful: NightReport) -> None:
    assert max(map(len, summary(eventful, 80).splitlines())) <= 80


def test_bytes_are_told_as_megabytes_and_commits_are_short(eventful: NightReport) -> None:
    told = [one.verdict.sentence for one in eventful.series if one.series.device == "blue"]

    assert any(text.startswith("peak memory 50 MB") for text in told)
    assert any(text.startswith("size of the engine 1 MB") for text in told)
    assert all("commit commit-7 → 0123456789ab;" in text for text in told if "segment" in text)


def test_charts_draw_every_night_change_and_environment(eventful: NightReport) -> None:
    from pipeline.nightly.report.charts import trend

    red = next(one for one in eventful.series if one.series.device == "red")
    blue = next(one for one in eventful.series if one.series.device == "blue")
    green = next(one for one in eventful.series if one.series.device == "green")

    assert str(trend(red)).count("<circle") == 9
    assert str(trend(red)).count('class="event regression"') == 1
    assert str(trend(blue)).count('class="event environment"') == 1
    assert "driver 560 → 570" in str(trend(blue))
    assert str(trend(green)).count('class="cross"') == 2
    assert str(trend(green)).count("<circle") == 8


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium (tests/system_packages.sh)")
    with open_browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_the_page_holds_in_a_browser_narrow_and_wide_light_and_dark(
    eventful: NightReport, page: Any, tmp_path: Path
) -> None:
    from test_browser import COMPLAINTS, CONTRAST, STICKING_OUT

    file = tmp_path / "index.html"
    file.write_text(to_html(eventful), encoding="utf-8")
    for width, dark in ((400, False), (1000, True), (1000, False), (400, True)):
        page.open(file, width=width, dark=dark)
        page.value('document.querySelectorAll("details").forEach(one => { one.open = true; })')

        assert [event for event in page.events if event.get("method") in COMPLAINTS] == []
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(STICKING_OUT) == []
        ratio, element = page.value(CONTRAST)
        assert ratio >= 4.5, element
    loaded = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert [url.rpartition("/")[2] for url in loaded] == ["index.html"]
    assert page.value("document.scripts.length") == 0
    assert page.value(
        '[...document.querySelectorAll("svg.chart[role=img]")].every(one => one.getAttribute("aria-label"))'
    )
    tables = page.value('[...document.querySelectorAll("figure")].every(one => one.querySelector("table"))')
    assert tables
