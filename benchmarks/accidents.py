"""Deliberate accidents, and what vitrim says to each: exit 1 where one goes unnoticed that should be caught.

    python benchmarks/accidents.py [--only WORD ...]

Every row runs vitrim's own code on a small ViT. Messages are verbatim, but for folders of this machine ("...").
What vitrim cannot notice stands in the table as not caught, with the reason.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accident import Accident, Workshop
from benchmarks.accidents_engines import ENGINES
from benchmarks.accidents_numbers import NUMBERS
from benchmarks.accidents_times import TIMES
from benchmarks.conditions import write_result

ACCIDENTS: tuple[Accident, ...] = (*NUMBERS, *ENGINES, *TIMES)


def staged(accident: Accident, shop: Workshop) -> dict[str, Any]:
    """Stage one accident; its row."""
    if accident.needs and importlib.util.find_spec(accident.needs) is None:
        return {"accident": accident.name, "skipped": f"{accident.needs} is not installed"}
    started = time.monotonic()
    found = accident.stage(shop)
    return {
        "accident": accident.name,
        "done": accident.done,
        "noticed_by": accident.by,
        "caught": found.caught,
        "said": shop.clean(found.said),
        "exit_code": found.exit_code,
        "found": shop.clean(found.found),
        "hole": accident.hole,
        "tests": list(accident.tests),
        "seconds": round(time.monotonic() - started, 1),
    }


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of what should have been caught and was not, and of holes that are none any more."""
    return [row["accident"] for row in rows if "skipped" not in row and row["caught"] == bool(row["hole"])]


def main(words: Sequence[str] | None = None) -> None:
    """Stage all of them and write the result file, or some of them and write nothing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", metavar="WORD", help="accidents with one of these in their name; no file")
    only = parser.parse_args(words).only
    chosen = [one for one in ACCIDENTS if not only or any(word in one.name for word in only)]
    rows = []
    with tempfile.TemporaryDirectory(prefix="vitrim-accidents-") as place:
        shop = Workshop(Path(place))
        for one in chosen:
            rows.append(staged(one, shop))
            row = rows[-1]
            told = row.get("skipped") or ("caught" if row["caught"] else "NOT caught")
            print(f"{one.name}: {told}: {row.get('said', '')} [{row.get('found', '')}]", flush=True)
    if not only:
        write_result("accidents", {"rows": rows})
    if missed(rows):
        raise SystemExit(f"not as it should be: {', '.join(missed(rows))}")


if __name__ == "__main__":
    main()
