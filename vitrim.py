"""vitrim from Python: the same as the command line.

import vitrim

reports = vitrim.build("recipe.yaml", overrides=["steps.prune_mlp.keep=0.5"])
print(reports["cpu"].verdict.sentence)
bundle = vitrim.load("out/cpu/bundle")  # or a zip of `vitrim package`; its engine answers, without torch
print(bundle.classify("image.jpg"))
module = vitrim.load("out/model")       # a torch module from a folder with vit.json
figures = vitrim.validate("out/cpu/bundle", images="val.zip", labels="labels.csv")
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.events import Event
    from pipeline.report.record import Report
    from stages.vit.model import ViT
    from targets.bundle.loaded import LoadedBundle

__all__ = ["build", "load", "validate"]


def build(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    targets: Sequence[str] = (),
    output: str | Path = "out",
    store: str | Path | None = None,
    resume: bool = True,
    watch: "Callable[[Event], None] | None" = None,
) -> "dict[str, Report]":
    """Build a recipe for its targets (or these); returns the reports by target.

    overrides: like --set, e.g. "steps.prune_mlp.keep=0.5". watch: called with every event. Of several processes that a
    launcher started, the first builds and the others train with it and return nothing.
    Raises targets.errors.InputError for bad input, StageError and WorkerError where something that was tried failed.
    """
    from pipeline.build import build as run
    from pipeline.events import ignore
    from pipeline.follow import first_of_several
    from pipeline.recipe import load_recipe
    from pipeline.store import Store, default_store_root

    more = [f"targets={json.dumps(list(targets))}"] if targets else []
    loaded = load_recipe(Path(recipe), overrides=(*overrides, *more))
    with first_of_several() as is_first:
        if not is_first:
            return {}
        with Store(Path(store) if store else default_store_root()) as shelf:
            return run(
                loaded,
                store=shelf,
                output=Path(output),
                resume=resume,
                watch=watch or ignore,
                command=f"vitrim build {recipe}",
            )


def load(path: str | Path) -> "LoadedBundle | ViT":
    """Load a bundle, a folder or a zip, as a `targets.bundle.loaded.LoadedBundle`: classify, logits, features.

    Its engine runs in a process of its own, without torch, on any of vitrim's runtimes; where it is for another
    machine, the portable graph runs, and `note` says why. A model folder (vit.json, model.safetensors) gives a torch
    module (`stages.vit.model.ViT`) in evaluation mode. Raises InputError for what is neither, StageError for a damaged
    bundle.
    """
    if (Path(path) / "vit.json").is_file():
        from stages.vit.files import load_model

        return load_model(Path(path))
    from targets.bundle.loaded import LoadedBundle

    return LoadedBundle(path)


def validate(
    bundle: str | Path,
    *,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    level: str = "quick",
    batches: Sequence[int] = (),
    rate_ips: float | None = None,
    arrivals: str | None = None,
) -> dict[str, Any]:
    """Check a bundle's files and measure it anew on this machine; accuracy where labelled images are given.

    batches: sizes to time beside the engine's own. rate_ips: also serve images that come at this rate.
    """
    from pipeline.revalidate import revalidate

    return revalidate(
        Path(bundle),
        images=Path(images) if images else None,
        labels=Path(labels) if labels else None,
        level=level,
        batches=batches,
        rate_ips=rate_ips,
        arrivals=arrivals,
    )
