"""The site: built strictly, complete, and readable without a network."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Page, find_browser, open_browser

ROOT = Path(__file__).resolve().parents[2]
ZENSICAL = Path(sys.executable).parent / "zensical"

pytestmark = pytest.mark.skipif(not ZENSICAL.is_file(), reason="zensical is not installed (extra: docs)")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder that holds mkdocs.yml and docs, strictly."""
    return subprocess.run(
        [str(ZENSICAL), "build", "--strict", "--clean"], cwd=folder, capture_output=True, text=True, check=False
    )


def copied(folder: Path) -> Path:
    """The site's sources, to change and build."""
    folder.mkdir()
    shutil.copy(ROOT / "mkdocs.yml", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = copied(tmp_path_factory.mktemp("documents") / "site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def configuration() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "mkdocs.yml").read_text()))


def navigation(nav: Any) -> Iterator[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        yield nav
    else:
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from navigation(inner)


def test_every_page_stands_in_the_navigation_once() -> None:
    listed = list(navigation(configuration()["nav"]))
    there = sorted(page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md"))

    assert sorted(listed) == there


def test_every_page_becomes_a_page_of_the_site(site: Path) -> None:
    missing = [name for name in navigation(configuration()["nav"]) if not (site / name).with_suffix(".html").is_file()]

    assert missing == []


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](recipe.md#no-such-heading)"])
def test_a_link_that_leads_nowhere_fails_the_build(link: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "broken")
    page = folder / "docs" / "index.md"
    page.write_text(page.read_text() + f"\n{link}\n")

    assert build(folder).returncode != 0


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^"']+""")
    found = {hit for page in site.rglob("*.html") for hit in fetched.findall(page.read_text())}
    styles = [path.name for path in site.rglob("*.css") if re.search(r"url\(['\"]?(?:https?:)?//", path.read_text())]

    assert found == set()
    assert styles == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a browser."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    with open_browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def reported(page: Page) -> list[str]:
    """What the browser complained about."""
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.loadingFailed")
    return [str(event) for event in page.events if event.get("method") in kinds]


def requests(page: Page) -> list[str]:
    """Where the browser asked for something."""
    sent = [
        event["params"]["request"]["url"] for event in page.events if event.get("method") == "Network.requestWillBeSent"
    ]
    return [url for url in sent if not url.startswith("data:")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.html", "methods/dgmr.html", "results.html"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_open_from_disk_without_a_complaint(site: Path, page: Page, name: str, dark: bool) -> None:
    page.open(site / name, width=1280, dark=dark)
    page.value("localStorage.clear()")  # the first visit decides by the system
    page.open(site / name, width=1280, dark=dark)

    assert page.value("document.body.getAttribute('data-md-color-scheme')") == ("slate" if dark else "default")
    assert page.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert reported(page) == []
    assert [url for url in requests(page) if not url.startswith(site.as_uri())] == []


@pytest.mark.slow
def test_the_search_works_on_pages_opened_from_disk(site: Path, page: Page) -> None:
    page.open(site / "stages" / "export.html", width=1280)
    found = page.value("""(async () => {
        const until = async (wanted) => {
            for (let tries = 0; tries < 600; tries++) {
                const found = wanted()
                if (found) return found
                await new Promise((done) => setTimeout(done, 50))
            }
        }
        document.querySelector(".md-search__button, label[for=__search]").click()
        const search = await until(() => [...document.querySelectorAll("*")].find((one) => one.shadowRoot)?.shadowRoot)
        const field = await until(() => search.querySelector("input"))
        field.focus()
        document.execCommand("insertText", false, "Businger")
        return await until(() => /[1-9] result/.test(search.textContent) && search.textContent)
    })()""")

    assert found is not None
    assert "DGMR" in found
    assert [url for url in requests(page) if not url.startswith(site.as_uri())] == []
