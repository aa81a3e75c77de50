"""Published JSON schemas: `python -m pipeline.schemas` writes them, `--check` fails where one is out of date."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.keys import ROOT

FOLDER = ROOT / "docs" / "schemas"


def schemas() -> dict[str, dict[str, Any]]:
    """Every published schema by file name without `.schema.json`."""
    from pipeline.nightly.matrix import matrix_schema
    from pipeline.nightly.record import Night
    from pipeline.nightly.report.record import NightReport
    from pipeline.recipe import recipe_schema
    from pipeline.report.record import Report
    from pipeline.validation import Validation
    from stages.artifact import Manifest
    from stages.graph.card import GraphCard
    from stages.vit.spec import ViTSpec
    from targets.bundle.expected import Expected
    from targets.devices.job import JobResult
    from targets.measure.measurement import Comparison
    from targets.measure.open_loop import OpenLoop
    from targets.measure.throughput import Throughput

    records: dict[str, type[BaseModel]] = {
        "vit": ViTSpec,
        "graph": GraphCard,
        "artifact": Manifest,
        "comparison": Comparison,
        "open_loop": OpenLoop,
        "throughput": Throughput,
        "device_result": JobResult,
        "validation": Validation,
        "report": Report,
        "expected": Expected,
        "night": Night,
        "night_report": NightReport,
    }
    return {
        "recipe": recipe_schema(),
        "target": target_schema(),
        "matrix": matrix_schema(),
        **{name: record.model_json_schema() for name, record in records.items()},
    }


def target_schema() -> dict[str, Any]:
    """Schema of a target's file: what must be there need not be where another profile is extended."""
    from targets.inherit import OWN
    from targets.profile import TargetProfile

    schema = TargetProfile.model_json_schema()
    everything = {"required": schema.pop("required"), "properties": {}}
    for key in ("board", "gpu"):
        parts = schema["$defs"][key.capitalize()]
        needed = {"required": parts.pop("required")}
        if key == "board":
            everything["properties"]["board"] = needed
        else:
            everything["properties"]["board"]["properties"] = {"gpu": needed}
    extends = {"required": ["extends"], "properties": {"extends": {"type": "string"}}}
    return {**schema, "if": extends, "then": {"required": list(OWN)}, "else": everything}


def text_of(schema: dict[str, Any]) -> str:
    """One spelling, for files that are compared."""
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def out_of_date(folder: Path = FOLDER) -> list[str]:
    """Names of the schema files that are not what the code says."""
    return [
        name
        for name, schema in schemas().items()
        if not (folder / f"{name}.schema.json").is_file()
        or (folder / f"{name}.schema.json").read_text() != text_of(schema)
    ]


def main() -> None:
    """Write the schemas, or with --check say which are out of date (exit 1)."""
    if "--check" in sys.argv[1:]:
        stale = out_of_date()
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; run `make schemas`")
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (FOLDER / f"{name}.schema.json").write_text(text_of(schema))


if __name__ == "__main__":
    main()
