"""A folder in which the commands of a page run: a tiny model and real digits where a reader has a model and pictures.

`vitrim` and `python` are the real ones. Stand-ins, each a few lines below, are: `pip` (looks every name up, installs
nothing), `make` (`make -n`: the goal must be there), `open` (the file must be there). Two things a reader does are done
here: after `vitrim init` the recipe is changed, to the tiny one; and `vitrim doctor` may find something to fix.
"""

import csv
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
vitrim: 1
name: tiny
model:
  timm: vit_tiny_patch16_224
  checkpoint: {checkpoint}
  image_size: 16
  classes: 10
  arguments: {{patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data:
  fit: {{dataset: digits, share: [0, 0.3]}}
  train: {{dataset: digits, share: [0, 0.3]}}
  select: {{dataset: digits, share: [0.5, 0.7]}}
  evaluate: {{dataset: digits, share: [0.7, 1]}}
steps:
  - prune_mlp: {{keep: 0.75, images: 256}}
  - distill: {{images_seen: 128, flip: false}}
  - distill: {{images_seen: 64, flip: false, lr: 0.0001}}
  - export
  - quantize: {{precision: int8, alphas: [0.5], images: 32}}
targets: [cpu]
budget: {{accuracy_drop_points: 50}}
measure: {{level: quick, batches: [1]}}
"""
MATRIX = """\
format: vitrim.matrix/1
name: tiny
recipes: [{recipe: recipe.yaml}]
devices: [here]
level: quick
"""
DEVICES = """\
format: vitrim.devices/1
devices:
  here: {kind: local, target: cpu}
"""
PROGRAMS = {
    "vitrim": """
        "$PYTHON" -m pipeline "$@"
        code=$?
        if [ "$1" = init ] && [ $code = 0 ]; then cp "$WORKSHOP/recipe.yaml" recipe.yaml; fi
        if [ "$1" = doctor ] && [ $code = 1 ]; then exit 0; fi
        exit $code
    """,
    "python": 'exec "$PYTHON" "$@"',
    "python3": 'exec "$PYTHON" "$@"',
    "pip": """
        [ "$1" = install ] || exit 2
        shift
        exec "$PYTHON" -c '
import sys
from importlib.metadata import distribution
from packaging.requirements import Requirement
import os
import tomllib
for word in sys.argv[1:]:
    asked = Requirement(word)
    if asked.name == "vitrim":
        with open(os.environ["ROOT"] + "/pyproject.toml", "rb") as file:
            known = tomllib.load(file)["project"]["optional-dependencies"]
    else:
        known = distribution(asked.name).metadata.get_all("Provides-Extra") or []
    unknown = asked.extras - set(known)
    sys.exit(f"{word}: no extra {unknown}") if unknown else None
' "$@"
    """,
    "make": 'exec "$MAKE" -n -C "$ROOT" "$@"',
    "open": 'for file in "$@"; do [ -f "$file" ] || { echo "open: no file $file" >&2; exit 1; }; done',
}


def train(folder: Path) -> Path:
    """The tiny model's weights; trained once per folder."""
    file = folder / "digits.safetensors"
    script = str(Path(__file__).with_name("train_digits.py"))
    subprocess.run([sys.executable, script, str(file)], check=True, capture_output=True, timeout=600)
    return file


def furnish(folder: Path, *, checkpoint: Path, recipe: bool) -> None:
    """Put into an empty folder what readers have: pictures, a zip of labelled ones, programs; the recipe, if wanted."""
    from sklearn.datasets import load_digits

    hidden, programs = folder / ".workshop", folder / ".workshop" / "bin"
    programs.mkdir(parents=True)
    (hidden / "recipe.yaml").write_text(RECIPE.format(checkpoint=checkpoint))
    if recipe:
        (folder / "recipe.yaml").write_text(RECIPE.format(checkpoint=checkpoint))
    (folder / "matrix.yaml").write_text(MATRIX)
    (folder / "devices.yaml").write_text(DEVICES)
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    data = load_digits()
    (folder / "photos").mkdir()
    with zipfile.ZipFile(folder / "val.zip", "w") as archive, open(folder / "labels.csv", "w", newline="") as labels:
        rows = csv.writer(labels)
        rows.writerow(["file", "label"])
        for index in range(40):
            picture = folder / "photos" / f"{index}.png"
            Image.fromarray((data.images[index] * (255 / 16)).astype("uint8")).convert("RGB").save(picture)
            if index < 20:
                archive.write(picture, picture.name)
                rows.writerow([picture.name, int(data.target[index])])
    for name in ("picture.jpg", "image.jpg"):
        Image.open(folder / "photos" / "0.png").resize((16, 16)).save(folder / name)


def run(script: str, *, folder: Path, store: Path, path: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """Run the text of a block in the folder, as a shell does that ends with the first command that fails."""
    programs = folder / ".workshop" / "bin"
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), *map(str, path), os.environ["PATH"]]),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "ROOT": str(ROOT),
        "MAKE": shutil.which("make") or "make",
        "WORKSHOP": str(folder / ".workshop"),
        "VITRIM_STORE": str(store),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "HOME": str(folder),
    }
    for name in ("VITRIM_ASSETS", "MAKEFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    command = ["bash", "--noprofile", "--norc", "-euo", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def programs_of(script: str) -> set[str]:
    """First words of the lines of a script, without what sets variables."""
    found = set()
    for line in script.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if "=" not in word.split("/")[0] or " " in word]
        found |= set(words[:1])
    return found
