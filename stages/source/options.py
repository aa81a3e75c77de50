"""What a recipe says under `model`: where the trained model comes from."""

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from targets.record import Record

OWN_OPTIONS = {
    "num_classes": "classes",
    "img_size": "image_size",
    "pretrained": "pretrained",
    "checkpoint_path": "checkpoint",
}
"""timm arguments that have an option of their own here"""


class SourceOptions(Record):
    """The model to compress: a timm name, or a folder that vitrim saved."""

    timm: str | None = Field(
        default=None, description="timm name, with or without pretrained tag, or hf-hub:user/model"
    )
    folder: Path | None = Field(default=None, description="folder with vit.json and model.safetensors")
    checkpoint: Path | None = Field(
        default=None, description="weights in timm's names (.safetensors, .pth, .pt, .bin) instead of the hub's"
    )
    pretrained: bool = Field(default=True, description="fetch the hub's weights where no checkpoint is given")
    image_size: int | tuple[int, int] | None = Field(default=None, description="side, or height and width, in pixels")
    classes: int | None = Field(default=None, ge=0, description="outputs of the head; 0: no head")
    arguments: dict[str, bool | int | float | str] = Field(default={}, description="further arguments of timm's model")
    labels: Path | None = Field(default=None, description="class names: text, line i is class i; or a JSON list")

    @field_validator("image_size")
    @classmethod
    def _is_positive(cls, size: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        sides = size if isinstance(size, tuple) else () if size is None else (size,)
        if any(side < 1 for side in sides):
            raise ValueError("image_size must be above 0")
        return size

    @model_validator(mode="after")
    def _is_one_source(self) -> "SourceOptions":
        if (self.timm is None) == (self.folder is None):
            raise ValueError("give timm (a model's name) or folder (a model that vitrim saved), one of both")
        if self.folder is not None:
            given = self.model_fields_set - {"folder", "labels", "timm"}
            changed = [name for name in sorted(given) if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ValueError(
                    f"{changed[0]} goes with timm only: the folder's vit.json already says what the model is"
                )
        for argument, option in OWN_OPTIONS.items():
            if argument in self.arguments:
                raise ValueError(f"arguments: set the option {option} in place of timm's {argument}")
        return self

    def files(self) -> dict[str, Path]:
        """Files whose content decides the result, by option."""
        files = {"folder": self.folder, "checkpoint": self.checkpoint, "labels": self.labels}
        return {name: path for name, path in files.items() if path is not None}
