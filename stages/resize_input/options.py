"""Options of the stage, and the spec after it. Light."""

from typing import Annotated

from pydantic import Field, field_validator

from stages.vit.spec import ViTSpec
from targets.errors import InputError
from targets.record import Record

Side = Annotated[int, Field(gt=0)]


class ResizeInputOptions(Record):
    """The new input resolution."""

    size: tuple[Side, Side] = Field(description="side, or [height, width], in pixels; a multiple of the patch")

    @field_validator("size", mode="before")
    @classmethod
    def _is_a_square(cls, given: object) -> object:
        return (given, given) if isinstance(given, int) and not isinstance(given, bool) else given


def reshaped(options: ResizeInputOptions, spec: ViTSpec) -> ViTSpec:
    """Return the spec after the stage; raises InputError where the model cannot see pictures of this size."""
    (height, width), (patch_height, patch_width) = options.size, spec.patch_size
    if height % patch_height or width % patch_width:
        raise InputError(
            f"resize_input: size {height}x{width} is no multiple of the patch {patch_height}x{patch_width}; near it is "
            f"{_nearest(height, patch_height)}x{_nearest(width, patch_width)}"
        )
    if any(spec.merge):
        raise InputError(
            "resize_input: this model merges tokens, by a schedule for its size; put resize_input before merge_tokens"
        )
    if spec.rope:
        raise InputError(
            "resize_input: this model has rotary positions, whose table belongs to its size; load it at another size "
            "with model.image_size"
        )
    return spec.replace(preprocess=spec.preprocess.replace(height=height, width=width))


def _nearest(side: int, patch: int) -> int:
    return max(1, round(side / patch)) * patch
