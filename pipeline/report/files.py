"""The report's files: report.json is the truth, the two pages are drawn from it."""

import json
import re
import reprlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.report.record import Report, migrated
from targets.atomic import write_atomic
from targets.errors import InputError

JSON, HTML, MARKDOWN = "report.json", "report.html", "report.md"
FORMAT = str(Report.model_fields["format"].default)
_NEWEST = int(FORMAT.partition("/")[2])
_MOST_PROBLEMS = 3


def write_report(folder: Path, report: Report) -> None:
    """Write report.json, report.html and report.md, each complete or not at all.

    Raises InputError where the folder cannot be written.
    """
    from pipeline.report.html import to_html
    from pipeline.report.markdown import to_markdown

    # All three exist before the first is written: a page that cannot be drawn leaves the old files as they were.
    files = {JSON: to_json(report), HTML: to_html(report), MARKDOWN: to_markdown(report)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomic(folder / name, text.encode(errors="backslashreplace"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write the report to {str(folder)!r}: {reason}; choose another folder") from error


def to_json(report: Report) -> str:
    """The record as indented JSON; NaN and infinity, which JSON lacks, become null.

    A lone surrogate (from a path that is not UTF-8) stays as it is; `backslashreplace` then writes JSON's own escape.
    """
    plain = json.loads(json.dumps(report.model_dump(mode="json")), parse_constant=lambda name: None)
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


def read_report(path: Path) -> Report:
    """Read a report.json, or the one in a folder. Raises InputError for what is broken, foreign or too new."""
    file = path / JSON if path.is_dir() else path
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        hint = "; give the folder that `vitrim build --output` wrote" if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"cannot read the report {str(file)!r}: {error.strerror or error}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"report {str(file)!r} is not JSON: {error}") from error
    version = _version(file, data)
    try:
        return Report.model_validate(data if version == _NEWEST else migrated(data, version))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        more = f" and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise InputError(
            f"report {str(file)!r} is broken: {'; '.join(problems[:_MOST_PROBLEMS])}{more}; build it again"
        ) from error


def _version(file: Path, data: Any) -> int:
    """The version of a report; refuses other people's JSON and versions that are not known here."""
    found = data.get("format") if isinstance(data, dict) else None
    family, _, _ = FORMAT.partition("/")
    told = reprlib.repr(found)
    if isinstance(found, str) and (match := re.fullmatch(rf"{re.escape(family)}/(\d{{1,9}})", found)):
        version = int(match[1])
        if 1 <= version <= _NEWEST:
            return version
        advice = "update vitrim" if version > _NEWEST else "build it again"
        raise InputError(f"report {str(file)!r} has format {told}, this vitrim reads {FORMAT!r}; {advice}")
    raise InputError(f"{str(file)!r} is no vitrim report: its format is {told}, expected {FORMAT!r}")
