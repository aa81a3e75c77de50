"""What a recipe says under `model`: where the trained model comes from."""

import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from targets.preprocess import ImageSize, height_and_width
from targets.record import Record

OWN_OPTIONS = {
    "num_classes": "classes",
    "img_size": "image_size",
    "pretrained": "pretrained",
    "checkpoint_path": "checkpoint",
}
"""timm arguments that have an option of their own here"""
TIMM_ONLY = ("arguments", "checkpoint", "pretrained")
HUB_NAME = re.compile(r"(?:hf:)?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


class SourceOptions(Record):
    """The model to compress: a timm name, a folder, or a model on the Hugging Face hub."""

    timm: str | None = Field(
        default=None, description="timm name, with or without pretrained tag, or hf-hub:user/model"
    )
    folder: Path | None = Field(
        default=None,
        description="folder that vitrim saved (vit.json), or of transformers (config.json), or of open_clip "
        "(open_clip_config.json)",
    )
    hub: str | None = Field(
        default=None,
        description="user/model or user/model@revision on the Hugging Face hub, in the format of transformers or "
        "open_clip",
    )
    checkpoint: Path | None = Field(
        default=None,
        description="weights for the timm model (.safetensors, .pth, .pt, .bin) instead of the hub's: in timm's names, "
        "or of DeiT, DINOv2, OpenAI CLIP or open_clip",
    )
    pretrained: bool = Field(default=True, description="fetch the hub's weights where no checkpoint is given")
    image_size: ImageSize | None = Field(default=None, description="side, or height and width, in pixels")
    classes: int | None = Field(default=None, ge=0, description="outputs of the head; 0: no head")
    arguments: dict[str, bool | int | float | str] = Field(default={}, description="further arguments of timm's model")
    labels: Path | None = Field(default=None, description="class names: text, line i is class i; or a JSON list")

    @field_validator("hub")
    @classmethod
    def _is_hub_name(cls, name: str | None) -> str | None:
        if name is not None and not HUB_NAME.fullmatch(name):
            raise ValueError(f"hub must be user/model or user/model@revision, got {name!r}")
        return name

    @model_validator(mode="after")
    def _is_one_source(self) -> "SourceOptions":
        if sum(one is not None for one in (self.timm, self.folder, self.hub)) != 1:
            raise ValueError(
                "give timm (a model's name), folder (of vitrim, transformers or open_clip) or hub (user/model), "
                "one of them"
            )
        if self.timm is None:
            changed = [name for name in TIMM_ONLY if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ValueError(
                    f"{changed[0]} goes with timm only: a folder or hub model has its own config and weights"
                )
        for argument, option in OWN_OPTIONS.items():
            if argument in self.arguments:
                raise ValueError(f"arguments: set the option {option} in place of timm's {argument}")
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, where they are given."""
        return None if self.image_size is None else height_and_width(self.image_size)

    def files(self) -> dict[str, Path]:
        """Files whose content decides the result, by option."""
        files = {"folder": self.folder, "checkpoint": self.checkpoint, "labels": self.labels}
        return {name: path for name, path in files.items() if path is not None}
