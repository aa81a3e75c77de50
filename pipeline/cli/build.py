"""Commands that build and measure: build, plan, validate, demo, init."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.devices import DevicesOption
from pipeline.cli.options import CheckpointOption, JsonOption, SetOption, StoreOption, TargetOption, open_store
from targets.errors import InputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.table import Table

    from pipeline.recipe import Recipe
    from pipeline.shapes import Shape

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False, metavar="RECIPE")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Where reports and bundles go.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit 1 also when undecided or not measured.")]


def build(
    recipe: RecipeArgument,
    target: TargetOption = None,
    set_: SetOption = None,
    checkpoint: CheckpointOption = None,
    output: OutputOption = Path("out"),
    store: StoreOption = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Use finished steps, or run all of them anew.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build an engine with its report and bundle.

    Finished steps are kept in the store: after an interruption the same command goes on where it stopped.
    """
    overrides = _overrides(set_, checkpoint, target)
    loaded = _load(recipe, overrides)
    if dry_run:
        _show_plan(loaded, store, as_json=as_json)
        return
    command = _command(recipe, overrides)
    _build(loaded, output=output, store=store, resume=resume, strict=strict, as_json=as_json, command=command)


def plan(
    recipe: RecipeArgument,
    target: TargetOption = None,
    set_: SetOption = None,
    checkpoint: CheckpointOption = None,
    store: StoreOption = None,
    without_images: Annotated[
        bool, typer.Option("--without-images", help="Only parameters and MACs; the recipe's images may be missing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the steps of a recipe; nothing runs.

    What each makes of parameters and MACs, its key, and whether it is finished already.
    """
    loaded = _load(recipe, _overrides(set_, checkpoint, target))
    _show_plan(loaded, store, as_json=as_json, without_images=without_images)


def validate(
    bundle: Annotated[
        Path, typer.Argument(help="A bundle that `vitrim build` wrote.", show_default=False, metavar="BUNDLE")
    ],
    recipe: Annotated[Path | None, typer.Option(help="Take evaluation images from this recipe.")] = None,
    images: Annotated[Path | None, typer.Option(help="Evaluation images: a folder or a zip.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV with the columns file,label.")] = None,
    level: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    batches: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Time these batch sizes too, e.g. 1,8,64.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="IMAGES_PER_SECOND", help="Also serve images that come at this rate.")
    ] = None,
    arrivals: Annotated[
        str | None, typer.Option(help="How they come: poisson (the default) or fixed.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Measure on this device instead; an engine that does not fit is built there."
        ),
    ] = None,
    devices: DevicesOption = None,
    wait: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long to wait for a device that somebody else holds.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write what was told, as JSON.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle anew, on this machine or a device.

    Checks its files, times its engine, and reads its accuracy where images are given: with those of the build also the
    drop from the source. Exit 1 where the budget of the build is not kept.
    """
    from rich.console import Console

    from pipeline.revalidate import revalidate, revalidate_on_device
    from targets.bundle.package import refuse_inside

    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise InputError(f"cannot write {str(output)!r}: give the path of a file in a folder that is there")
    if output is not None:
        refuse_inside(bundle, output)
    if device is None and wait is not None:
        raise InputError("--wait is for a device that somebody else holds; give --device, too")
    if device is not None:
        if arrivals is not None:
            raise InputError("--arrivals is for this machine: on a device only the closed loop is measured")
        told, records = revalidate_on_device(
            bundle,
            device,
            devices=devices,
            recipe=recipe,
            images=images,
            labels=labels,
            level=level,
            batches=_numbers(batches),
            rate_ips=rate,
            wait_seconds=wait or 0,
            tell=_teller(quiet=as_json),
        )
    else:
        records = []
        told = revalidate(
            bundle,
            recipe=recipe,
            images=images,
            labels=labels,
            level=level,
            batches=_numbers(batches),
            rate_ips=rate,
            arrivals=arrivals,
        )
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        console = Console()
        for name, value in _lines(told):
            console.print(f"{name:<22} {value}", highlight=False, markup=False)
    if output is not None:
        from targets.atomic import write_atomic

        told_and_records = {**told, "records": [one.model_dump(mode="json") for one in records]}
        try:
            write_atomic(output, (json.dumps(told_and_records, indent=1) + "\n").encode())
        except OSError as error:
            raise StoreError(
                f"cannot write {str(output)!r}: {error.strerror or error}; what was told is above"
            ) from error
    if told.get("verdict", {}).get("status") == "over":
        raise typer.Exit(1)


def _teller(*, quiet: bool) -> "Callable[[str, float | None], None]":
    """Say on standard error what is done on a device, one line for each new thing."""
    last = ""

    def tell(message: str, share: float | None) -> None:
        nonlocal last
        kind = re.sub(r"\d+", "", message)  # block 2 of 16 is nothing new
        if kind != last and not quiet:
            typer.echo(message, err=True)
        last = kind

    return tell


def _numbers(text: str | None) -> list[int]:
    """Whole numbers between commas."""
    try:
        return [int(one) for one in text.split(",")] if text is not None else []
    except ValueError:
        raise InputError(f"batches must be whole numbers between commas, e.g. 1,8,64, got {text!r}") from None


def _lines(told: "Mapping[str, object]", indent: str = "") -> "Iterator[tuple[str, object]]":
    """Figures by name; those of a group below its name."""
    for name, value in told.items():
        if isinstance(value, dict):
            yield f"{indent}{name}", ""
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{name}", ""
            for one in value:
                yield from _lines(one, indent + "  ")
        elif value not in ("", []):
            yield f"{indent}{name}", "not measured" if value is None else value


def demo(
    output: OutputOption = Path("out/demo"),
    store: StoreOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the main job on handwritten digits.

    Model and images are embedded: no download, no account, a few minutes.
    """
    from pipeline.recipe import demo_recipe_path

    loaded = _load(demo_recipe_path(), set_)
    _build(loaded, output=output, store=store, resume=True, strict=False, as_json=as_json, command="vitrim demo")


def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write.", metavar="RECIPE")] = Path("recipe.yaml"),
    model: Annotated[str, typer.Option(help="timm name of the model.")] = "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    images: Annotated[Path, typer.Option(help="Folder or zip of images for calibration and distillation.")] = Path(
        "images"
    ),
    target: Annotated[str, typer.Option(help="Where it will run.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a recipe to start from."""
    from pipeline.starter import write_starter

    write_starter(path, model=model, images=images, target=target, force=force)
    typer.echo(f"wrote {path}; look at it, then: vitrim build {path}")


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    for command in (build, plan, validate, init, demo):
        app.command()(command)


def _overrides(pairs: list[str] | None, checkpoint: Path | None, targets: list[str] | None) -> list[str]:
    """What the options say, as overrides of the recipe: one way to change it, with one kind of message."""
    more = [f"model.checkpoint={json.dumps(str(checkpoint))}"] if checkpoint else []
    more += [f"targets={json.dumps(targets)}"] if targets else []
    return [*(pairs or ()), *more]


def _load(path: Path, overrides: list[str] | None) -> "Recipe":
    from pipeline.recipe import load_recipe

    return load_recipe(path, overrides=tuple(overrides or ()))


def _build(
    recipe: "Recipe",
    *,
    output: Path,
    store: Path | None,
    resume: bool,
    strict: bool,
    as_json: bool,
    command: str,
) -> None:
    from rich.console import Console

    from pipeline.build import build as run
    from pipeline.cli.console import make_watcher
    from pipeline.follow import first_of_several
    from pipeline.report.terminal import summary
    from pipeline.verdict import exit_code

    console = Console()
    with first_of_several() as is_first:
        if not is_first:
            return
        with make_watcher(as_json=as_json, console=console) as watcher:
            reports = run(recipe, store=open_store(store), output=output, resume=resume, watch=watcher, command=command)
    if as_json:
        typer.echo(
            json.dumps(
                {"kind": "result", "reports": {name: one.model_dump(mode="json") for name, one in reports.items()}}
            )
        )
    else:
        for name, one in reports.items():
            console.print()
            console.print(summary(one))
            console.print(
                f"\nreport  {output / name / 'report.html'}\nbundle  {output / name / 'bundle'}", highlight=False
            )
    worst = max(exit_code(one.verdict.status, strict=strict) for one in reports.values())
    if worst:
        raise typer.Exit(worst)


def _command(recipe: Path, overrides: list[str]) -> str:
    import shlex

    return shlex.join(["vitrim", "build", str(recipe), *(word for pair in overrides for word in ("--set", pair))])


def _show_plan(recipe: "Recipe", store: Path | None, *, as_json: bool, without_images: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table

    from pipeline.build import plan_recipe
    from pipeline.plan import AwayPlan
    from pipeline.room import lacking_room
    from pipeline.shapes import shapes_of

    shelf = open_store(store)
    made = plan_recipe(recipe, shelf, without_images=without_images)
    shapes = {shape.key: shape for shape in shapes_of(made, shelf)}
    if as_json:
        told = {
            target.profile.name: [
                {
                    "step": step.title,
                    "stage": step.stage,
                    "key": None if without_images else step.key,
                    "finished": shelf.has(step.key) and not step.searched and not without_images,
                    "depends_on_search": step.searched,
                    "options": step.options.model_dump(mode="json"),
                    **(shapes[step.key].told() if step.key in shapes else {}),
                }
                for step in target.steps()
            ]
            for target in made.targets
        }
        typer.echo(json.dumps(told, indent=2))
        return
    console = Console()
    console.print(_shape_table(list(shapes.values())))
    if without_images:
        console.print("counted without images: which steps are finished is not known", highlight=False)
        return
    for target in made.targets:
        table = Table(
            "step",
            "key",
            "",
            title=f"{recipe.name} for {target.profile.name}",
            box=None,
            pad_edge=False,
            title_justify="left",
        )
        for step in target.steps():
            state = "depends on search" if step.searched else "finished" if shelf.has(step.key) else "to run"
            table.add_row(step.title, "" if step.searched else step.key[:12], state)
        console.print(table)
        small = lacking_room(
            target.profile, list(shapes.values())[-1].params, tuple(one.precision for one in target.candidates)
        )
        if small is not None:
            console.print(f"memory: {small}", style="yellow", markup=False)
        if isinstance(target, AwayPlan):
            console.print(f"not at hand: {target.away}; nothing is measured", style="yellow", markup=False)
        for role, images in made.images.items():
            console.print(f"images  {role.value:<9} {len(images):>6}", highlight=False)
        for name, reason in target.passed_over:
            console.print(f"passed over: {name}: {reason}", style="yellow", markup=False)


def _shape_table(shapes: "Sequence[Shape]") -> "Table":
    """What the steps make of the model's size."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from pipeline.report.figures import count

    table = Table(title="the model, one image", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("after", overflow="fold")
    for head in ("parameters", "without head", "left", "MACs", "left"):
        table.add_column(head, justify="right")
    first = shapes[0]
    for shape in shapes:
        if shape.spec is None or first.spec is None:
            table.add_row(Text(shape.title), "not known yet")  # a model on the hub
            continue
        most = "≤ " if shape.at_most else ""
        numbers = [f"{most}{count(number, 4)}" for number in (shape.params, shape.tower_params, shape.macs)]
        left = [
            f"{100 * now / before:.1f} %"
            for now, before in ((shape.tower_params, first.tower_params), (shape.macs, first.macs))
        ]
        table.add_row(Text(shape.title), *numbers[:2], left[0], numbers[2], left[1])
    return table
