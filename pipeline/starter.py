"""The recipe that `vitrim init` writes: complete, every choice explained, loadable as it stands."""

from pathlib import Path
from string import Template

from targets.atomic import write_atomic
from targets.errors import InputError

STARTER = Template("""\
# A recipe of vitrim. `vitrim plan $file` shows what it would do, `vitrim build $file` does it.
vitrim: 1
name: $name

model:
  timm: $model              # any timm Vision Transformer
  # checkpoint: weights.safetensors   # your own weights; without it timm loads the published ones
  # classes: 10                       # if your head differs from the published one
  # labels: classes.txt               # names of the classes, one per line

# Images have four roles. `select` and `evaluate` share no image with another role: vitrim checks their content.
# `share` takes a part of the images by content hash, so parts that do not overlap have no image in common.
data:
  fit:                                # statistics for pruning, repair and quantization: a few hundred are enough
    images: $images
    share: [0, 0.6]
    limit: 1000
  train:                              # distillation: the more the better, no labels needed
    images: $images
    share: [0, 0.6]
  select:                             # every choice is made on these: at least 256
    images: $images
    share: [0.6, 0.8]
    limit: 1000
  evaluate:                           # read once per finished engine; labels.csv has the columns file,label
    images: $images
    # labels: labels.csv              # without labels (or folders per class) the report shows agreement with the source
    share: [0.8, 1]

steps:
  - prune_mlp: {keep: 0.75}           # width of the MLPs that stays
  - distill: {images_seen: 20000}     # the unpruned model teaches the pruned one
  - export
  - quantize: {precision: int8}       # leave this line out to stay in fp32

targets: [$target]                    # `vitrim targets list`

budget:
  accuracy_drop_points: 2.0           # `within` when the 95 % interval of the drop stays below it
  # latency_ratio: 0.7                # engine / unpruned, same runtime and precision

measure:
  level: quick                        # full: ten times the queries, with p99
""")


def write_starter(path: Path, *, model: str, images: Path, target: str, force: bool) -> None:
    """Write a recipe to start from; refuses to overwrite unless forced, and names that vitrim does not know."""
    from targets.profile import load_profile, refuse_unsupported

    refuse_unsupported(load_profile(target))
    if path.exists() and not force:
        raise InputError(f"{str(path)!r} exists; choose another name, or overwrite it with --force")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {str(path.parent)!r}; make it first")
    name = path.stem if path.stem != "recipe" else model.split(".")[0].replace("_", "-")
    text = STARTER.substitute(file=path.name, name=name, model=model, images=images, target=target)
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
