"""What the other processes of `accelerate launch` or `torchrun` do: nothing but train.

The first process builds as if it were alone. Where a stage trains, it sends the others what to run and takes part
itself; the others wait for such orders until it says that there are no more. They write nothing that is kept.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.catalog import get_stage
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.stage import Role, StageContext
from stages.training.launched import launched
from targets.errors import InputError
from targets.record import Record


@contextmanager
def first_of_several() -> Iterator[bool]:
    """Yields whether this process builds. In any other one, the block must do nothing: it has trained what it was sent.

    When the first one is done the others end; where it fails, the launcher ends them.
    """
    if launched() == 1:
        yield True
        return
    from stages.training.ranks import finish, ranks

    among = ranks()
    if among.is_first:
        yield True
        among.agree(None)
    else:
        while (order := among.agree(None)) is not None:
            _obey(order)
        yield False
    finish()


def send(stage: str, options: Record, context: StageContext, sources: Mapping[Role, DataSource], index: Path) -> None:
    """Tell the other processes, where there are any, to run this stage together with this one."""
    if launched() == 1 or not get_stage(stage).distributed:
        return
    from stages.training.ranks import ranks

    ranks().agree(
        {
            "stage": stage,
            "options": options.model_dump(mode="json"),
            "input": str(context.input),
            "source": str(context.source),
            "seed": context.seed,
            "images": {role.value: sources[role].model_dump(mode="json") for role in context.images},
            "fingerprints": {role.value: images.fingerprint for role, images in context.images.items()},
            "index": str(index),
        }
    )


def _obey(order: Mapping[str, Any]) -> None:
    stage = get_stage(order["stage"])
    index = Path(order["index"])
    images = {
        Role(role): open_images(
            DataSource.model_validate(source), Role(role), index_cache=index if index.parent.is_dir() else None
        )
        for role, source in order["images"].items()
    }
    for role, found in images.items():
        if found.fingerprint != order["fingerprints"][role.value]:
            raise InputError(f"the images of {role} are not the same on all machines; give all the same files")
    if not Path(order["input"]).is_dir():
        raise InputError(f"{order['input']!r} is not there on this machine; all need the same store and the same files")
    with TemporaryDirectory(prefix="vitrim-together-") as folder:
        for name in ("output", "scratch"):
            Path(folder, name).mkdir()
        context = StageContext(
            input=Path(order["input"]),
            source=Path(order["source"]),
            output=Path(folder, "output"),
            scratch=Path(folder, "scratch"),
            images=images,
            seed=order["seed"],
        )
        stage.run(stage.options.model_validate(order["options"]), context)
