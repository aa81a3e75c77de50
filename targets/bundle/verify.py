"""Is a bundle complete and unchanged? The same check that `run.py` makes before it runs."""

from pathlib import Path

from pydantic import ValidationError

from targets.bundle.manifest import BundleManifest
from targets.bundle.run import MANIFEST, bundle_problems


def verify_bundle(folder: Path) -> list[str]:
    """What is missing, changed or extra in a bundle, one line each; empty when all is well."""
    problems = bundle_problems(folder)
    if not problems:
        try:
            BundleManifest.model_validate_json((folder / MANIFEST).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            problems = [f"{MANIFEST!r} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}"]
    return problems
