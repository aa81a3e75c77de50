"""Run the command line in this process, as a user would type it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPE: dict[str, Any] = {
    "vitrim": 1,
    "name": "tried",
    "model": {
        "timm": "vit_tiny_patch16_224",
        "pretrained": False,
        "image_size": 16,
        "classes": 10,
        "arguments": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
    "data": {
        "fit": {"dataset": "digits", "share": [0, 0.2]},
        "train": {"dataset": "digits", "share": [0, 0.2]},
        "select": {"dataset": "digits", "share": [0.2, 0.4]},
        "evaluate": {"dataset": "digits", "share": [0.4, 1]},
    },
    "steps": [{"prune_mlp": {"keep": 0.5}}, "export"],
    "targets": ["cpu"],
    "budget": {"accuracy_drop_points": 5},
}


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """command("plan", recipe): exit code, stdout and stderr, 80 columns wide, with a store of its own."""

    def run(*words: str | Path) -> Answer:
        from pipeline.cli.app import main

        monkeypatch.setattr(sys, "argv", ["vitrim", *map(str, words)])
        capsys.readouterr()
        code: int | str | None = 0
        try:
            main()
        except SystemExit as ending:
            code = ending.code
        said = capsys.readouterr()
        return Answer(int(code or 0), said.out, said.err)

    monkeypatch.setenv("VITRIM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    return run


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """write_recipe({"model.timm": "vit_x"}): the recipe above with keys set by their path, as a file."""

    def write(changes: dict[str, Any] | None = None, name: str = "recipe.yaml") -> Path:
        data = yaml.safe_load(yaml.safe_dump(RECIPE))
        for place, value in (changes or {}).items():
            *folders, last = place.split(".")
            inner = data
            for folder in folders:
                inner = inner[folder]
            if value is None:
                inner.pop(last)
            else:
                inner[last] = value
        path = tmp_path / name
        path.write_text(yaml.safe_dump(data))
        return path

    return write
