"""Every stage and target has its page, pages and code name the same things, files stay small."""

import re
import subprocess
from pathlib import Path

from stages.catalog import CATALOG
from targets.profile import list_profiles


def tracked_text_files(root: Path) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name]
    return [root / name for name in names if (root / name).is_file()]


def test_every_stage_has_its_page(root: Path) -> None:
    pages = {page.stem for page in (root / "docs" / "stages").glob("*.md")}

    assert pages == set(CATALOG)


def test_every_target_stands_on_the_page_of_its_family(root: Path) -> None:
    pages = {page.stem: page.read_text() for page in (root / "docs" / "targets").glob("*.md") if page.stem != "index"}
    families = {
        name: [
            page for page, text in pages.items() if re.search(rf"^(?:\| |# )`?{name}`?(?: \||$)", text, re.MULTILINE)
        ]
        for name in list_profiles()
    }

    assert {name: found for name, found in families.items() if len(found) != 1} == {}
    assert {page for found in families.values() for page in found} == set(pages)


def test_pages_of_targets_say_what_never_ran_on_hardware(root: Path) -> None:
    for page in (root / "docs" / "targets").glob("*.md"):
        assert "not yet run on hardware" in page.read_text().lower(), page


def test_every_option_of_a_stage_is_on_its_page(root: Path) -> None:
    from stages.catalog import get_stage

    missing = [
        f"{name}.{option}"
        for name in CATALOG
        for option in get_stage(name).options.model_fields
        if f"`{option}`" not in (root / "docs" / "stages" / f"{name}.md").read_text()
    ]

    assert missing == []


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    broken = []
    for page in [*root.glob("*.md"), *(root / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not link.startswith(("http:", "https:", "mailto:")) and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(root)}: {link}")

    assert broken == []


def test_no_tracked_file_is_large(root: Path) -> None:
    large = [path.relative_to(root).as_posix() for path in tracked_text_files(root) if path.stat().st_size > 500_000]

    assert large == []


def test_files_stay_short(root: Path) -> None:
    long = [
        f"{path.relative_to(root)} has {lines} lines"
        for path in tracked_text_files(root)
        if path.suffix == ".py" and (lines := path.read_text().count("\n")) > 500
    ]

    assert long == []
