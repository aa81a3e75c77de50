"""The report's files: report.json is the truth, the others are drawn from it."""

import os
from pathlib import Path

from pipeline.nightly.report.record import NightReport
from targets.atomic import write_atomic
from targets.errors import InputError

JSON, HTML, MARKDOWN, JUNIT = "report.json", "index.html", "summary.md", "junit.xml"


def write_night(folder: Path, report: NightReport) -> None:
    """Write all pages of a run, each complete or not at all. Raises InputError where the folder cannot be written."""
    from pipeline.nightly.report.html import to_html
    from pipeline.nightly.report.junit import to_junit
    from pipeline.nightly.report.markdown import to_markdown

    files = {
        JSON: report.model_dump_json(indent=2) + "\n",
        HTML: to_html(report),
        MARKDOWN: to_markdown(report),
        JUNIT: to_junit(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomic(folder / name, text.encode(errors="backslashreplace"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot write the report to {str(folder)!r}: {reason}; choose another with --output"
        ) from error


def add_to_step_summary(report: NightReport) -> None:
    """Add the summary to the page of a GitHub job, where this is one."""
    from pipeline.nightly.report.markdown import to_markdown

    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(to_markdown(report))
