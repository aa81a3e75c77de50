"""What is known of the model in a folder, be it a ViT with its spec or a graph with its card."""

from pathlib import Path

from pydantic import ValidationError

from stages.graph.card import CARD_FILE, GraphCard
from stages.vit.counts import count_macs, count_params, params_by_part
from stages.vit.spec import SPEC_FILE, BlockSpec, ViTSpec
from targets.errors import InputError

Described = ViTSpec | GraphCard
DESCRIPTIONS = (SPEC_FILE, CARD_FILE)


def is_described(folder: Path) -> bool:
    """Whether a folder says which model it holds."""
    return any((folder / name).is_file() for name in DESCRIPTIONS)


def read_described(folder: Path) -> Described:
    """Read the spec or card in a folder; raises InputError where there is neither, or it cannot be read."""
    try:
        if (folder / SPEC_FILE).is_file():
            return ViTSpec.model_validate_json((folder / SPEC_FILE).read_bytes())
        return GraphCard.model_validate_json((folder / CARD_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{str(folder)!r} does not say which model it holds; build it again") from error


def params_of(model: Described) -> int:
    """Parameters of the whole model."""
    return model.params if isinstance(model, GraphCard) else count_params(model)


def macs_of(model: Described) -> int:
    """Multiply-accumulates of one image."""
    return model.macs if isinstance(model, GraphCard) else count_macs(model)


def parts_of(model: Described) -> dict[str, int]:
    """Parameters by part; a graph's parts are not known."""
    return {} if isinstance(model, GraphCard) else params_by_part(model)


def blocks_of(model: Described) -> tuple[BlockSpec, ...]:
    """Blocks of a ViT; a graph's are not known."""
    return () if isinstance(model, GraphCard) else model.blocks
