"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("vitrim", deadline=None)  # a test is never about time: machines differ by a factor of ten
settings.load_profile("vitrim")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as pipeline does, before anything imports torch
ROOT = Path(__file__).resolve().parent.parent
# A shell ignores Ctrl-C for what it runs in the background, and that passes on to tests and what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights and real images; skips where there is none."""
    folder = Path(os.environ.get("VITRIM_ASSETS") or ROOT.parent / "shared" / "assets")
    if not (folder / "vit_tiny_patch16_224").is_dir():
        pytest.skip(f"no assets at {folder}: set VITRIM_ASSETS to a folder with real weights and images")
    return folder


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: then no process is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with a table of what was skipped and why."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    terminalreporter.section("skipped, and why")
    if not reasons:
        terminalreporter.write_line("nothing was skipped")
    for reason, tests in sorted(reasons.items()):
        terminalreporter.write_line(f"{len(tests):4}  {reason}")
        for test in sorted(tests)[:5]:
            terminalreporter.write_line(f"        {test}")
        if len(tests) > 5:
            terminalreporter.write_line(f"        and {len(tests) - 5} more")


@pytest.fixture(scope="session")
def int8_saturates() -> bool:
    """Whether int8 products add in 16 bits here, which can overflow: x86 processors without VNNI."""
    from targets.facts import probe

    facts = probe()
    return facts["architecture"] == "x86_64" and not any("vnni" in one for one in facts["instruction_sets"])
