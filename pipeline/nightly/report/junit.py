"""The run as JUnit XML: a suite per device, a case per series. What has no value has failed: a skip is a failure."""

from collections import defaultdict
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from pipeline.nightly.report import words
from pipeline.nightly.report.record import NightReport
from pipeline.report.figures import visible


def to_junit(report: NightReport) -> str:
    """Write the document. The same report gives the same text."""
    root = Element("testsuites", {"name": f"vitrim nightly {_text(report.matrix)}"})
    cases: dict[str, list[Element]] = defaultdict(list)
    for one in report.cells:
        case = _case(one.cell, "cell", one.seconds)
        if one.status != "measured":
            said = one.reason or one.status
            SubElement(case, "failure", {"type": one.status, "message": _text(said)}).text = _text(one.command)
        cases[one.device].append(case)
    for cell in report.waiting:
        case = _case(cell, "cell", 0.0)
        SubElement(case, "failure", {"type": "missing", "message": "not run yet"})
        cases[cell.rpartition("@")[2]].append(case)
    for series in report.series:
        own, verdict = series.series, series.verdict
        case = _case(f"{own.recipe}.{own.runtime}.{own.precision}.b{own.batch}", own.metric, 0.0)
        if verdict.alarms:
            body = [verdict.sentence, words.blamed(series), *verdict.hints, verdict.reproduce]
            failure = SubElement(case, "failure", {"type": verdict.kind, "message": _text(verdict.sentence)})
            failure.text = _text("\n".join(line for line in body if line))
        else:
            SubElement(case, "system-out").text = _text(f"{verdict.kind}: {verdict.sentence}")
        cases[own.device].append(case)
    for device, found in sorted(cases.items()):
        failures = sum(case.find("failure") is not None for case in found)
        suite = SubElement(
            root,
            "testsuite",
            {
                "name": _text(device),
                "tests": str(len(found)),
                "failures": str(failures),
                "errors": "0",
                "skipped": "0",
                "time": f"{sum(float(case.get('time', 0)) for case in found):.3f}",
                "timestamp": report.started_at.isoformat(timespec="seconds"),
            },
        )
        suite.extend(found)
    root.set("tests", str(sum(len(found) for found in cases.values())))
    root.set("failures", str(len(root.findall(".//failure"))))
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _case(name: str, metric: str, seconds: float) -> Element:
    return Element("testcase", {"classname": _text(name), "name": metric, "time": f"{seconds:.3f}"})


def _text(text: str) -> str:
    """Text that XML 1.0 can hold: control characters and lone surrogates are written as escapes."""
    return "\n".join(visible(line) for line in text.split("\n")).replace("\ufffe", "").replace("\uffff", "")
