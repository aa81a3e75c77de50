"""The dashboard as one HTML page: a pure function of the report, with nothing loaded from anywhere and no script."""

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.nightly.report import charts, words
from pipeline.nightly.report.record import NightReport, SeriesReport
from pipeline.report import figures
from pipeline.report.html import TEMPLATES as REPORT_TEMPLATES

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_NIGHTS = 14
"""in the table behind a chart"""


def to_html(report: NightReport) -> str:
    """Draw the page. The same report gives the same bytes."""
    style = (REPORT_TEMPLATES / "style.css").read_text(encoding="utf-8")
    style += (TEMPLATES / "nightly.css").read_text(encoding="utf-8")
    devices: dict[str, dict[str, list[SeriesReport]]] = {}
    for one in report.series:
        devices.setdefault(one.series.device, {}).setdefault(_group(one), []).append(one)
    changes = [one for one in report.series if one.verdict.kind in ("improvement", "environment_changed", "accepted")]
    return (
        _environment()
        .get_template("nightly.html.jinja")
        .render(
            report=report,
            style=Markup(style),
            policy=_policy(style),
            devices=devices,
            changes=changes,
            void=[one for one in report.series if one.verdict.kind == "invalid"],
            warned=[one for one in report.series if one.verdict.warnings],
            over_budget=[one for one in report.cells if one.budget],
            status_of="over" if report.exit_code else "undecided" if report.ended is None else "within",
            shown_nights=SHOWN_NIGHTS,
        )
    )


def _group(one: SeriesReport) -> str:
    """Series of one engine stand together."""
    own = one.series
    return f"{own.recipe}, {figures.runtime_name(own.runtime)} {own.precision}, batch {own.batch}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(name=_name, plain=lambda text: figures.name(str(text)))
    environment.globals.update(w=words, charts=charts)
    return environment


def _policy(style: str) -> str:
    """Allow this one style sheet and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _name(text: object) -> Markup:
    """Text from outside: escaped, control characters shown, its writing direction kept to itself."""
    return Markup("<bdi>{}</bdi>").format(figures.visible(str(text)))
