"""The page in a real browser: nothing complains, nothing sticks out, every picture can be seen."""

import pytest
from browser import find_browser, open_browser

from pipeline.report.html import to_html

WIDTHS = (400, 1000)
COMPLAINTS = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded"}
PICTURES = """[...document.querySelectorAll("svg.chart")].filter(one => one.checkVisibility()).map(one => {
  const box = one.getBoundingClientRect();
  return {width: box.width, height: box.height, left: box.left, right: box.right,
          drawn: [...one.querySelectorAll("rect, line, circle")].filter(mark => {
            const size = mark.getBoundingClientRect(); return size.width > 0 || size.height > 0; }).length};
})"""
STICKING_OUT = """[...document.querySelectorAll("body *")].filter(one => !one.closest(".scroll, .skip, svg"))
  .filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 200))"""
CONTRAST = """(() => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = one => { for (; one; one = one.parentElement) { const c = getComputedStyle(one).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c; } return "rgb(255, 255, 255)"; };
  return [...document.querySelectorAll("body *")].filter(one => !one.closest("svg, .skip") && one.checkVisibility()
      && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(one => {
    const [a, b] = [getComputedStyle(one).color, behind(one)].map(light).sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), one.outerHTML.slice(0, 120)]; }).sort((x, y) => x[0] - y[0])[0];
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium (tests/system_packages.sh)")
    with open_browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def show(page, tmp_path):
    """show(report, width, ...): the page with this report on it."""

    def showing(report, **how):
        file = tmp_path / "report.html"
        file.write_text(to_html(report), encoding="utf-8")
        page.open(file, **how)
        return page

    return showing


def complaints(page):
    return [event for event in page.events if event.get("method") in COMPLAINTS]


def requests(page):
    return [
        event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
    ]


def open_details(page):
    page.value('document.querySelectorAll("details").forEach(one => { one.open = true; })')


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_complains_sticks_out_or_is_loaded(any_report, show, width, dark):
    page = show(any_report, width=width, dark=dark)
    open_details(page)

    assert not complaints(page)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(STICKING_OUT) == []
    assert [url.rpartition("/")[2] for url in requests(page)] == ["report.html"]
    assert page.value("document.styleSheets.length") == 1  # the policy let it through


@pytest.mark.parametrize("width", WIDTHS)
def test_every_picture_has_a_size_and_something_on_it(any_report, show, width):
    page = show(any_report, width=width)
    open_details(page)
    pictures = page.value(PICTURES)

    assert pictures
    for one in pictures:
        assert one["width"] >= 40, one
        assert one["height"] >= 6, one
        assert one["drawn"] >= 1, one


def test_the_browser_tells_when_something_is_wrong(page, tmp_path):
    file = tmp_path / "wrong.html"
    file.write_text(
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
        '<script>alert(1)</script><img src="https://example.invalid/x.png"><table width="3000"><tr><td>wide</table>'
    )
    page.open(file, width=400)

    assert complaints(page)
    assert page.value("document.documentElement.scrollWidth") > 400


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_asks_for(any_report, show, dark):
    ratio, element = show(any_report, width=1000, dark=dark).value(CONTRAST)

    assert ratio >= 4.5, element


def test_dark_is_dark_and_paper_is_white(example, show):
    background = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"

    assert show(example, width=1000).value(background) > 240
    assert show(example, width=1000, dark=True).value(background) < 40
    assert show(example, width=800, dark=True, media="print").value(background) == 255


def test_on_paper_the_folded_parts_are_open_and_the_links_gone(example, show):
    page = show(example, width=800, media="print")

    assert page.value('document.querySelector("details pre").checkVisibility()')
    assert not page.value('document.querySelector("nav").checkVisibility()')
    assert page.printed().startswith(b"%PDF-")


def test_a_wide_table_scrolls_by_itself_and_by_keyboard(example, show):
    page = show(example, width=400)
    scrolling = page.value(
        '[...document.querySelectorAll(".scroll")].every(one => one.tabIndex === 0 && one.getAttribute("aria-label"))'
    )

    assert scrolling


def test_hostile_names_run_nothing(reports, show):
    page = show(reports["hostile"], width=1000)

    assert page.value("document.scripts.length") == 0
    assert page.value("document.title").startswith("<script>alert(1)</script>")
    assert page.value('document.querySelector("h1").innerText').startswith("<script>alert(1)</script>")
