"""Part `distill`: prune ViT-Tiny and distil it for some minutes with the stages' own code; and the images for it.

Trains on imagenet_train1000 and caltech101, without labels; imagenet_val is read once per model, to evaluate.
"""

import io
import time
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_timing import Budget, SkipError, gpu_state, need_packages

MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
LIMIT_BYTES = 58 * 2**20
"""of a prepared folder, below the 60 MiB that it may have"""
EVALUATE_QUALITY, TRAIN_QUALITY, TRAIN_SIDE = 88, 80, 176
"""JPEG qualities; longest short side of training images, pixels"""
SMALL_TRAIN, SMALL_EVALUATE = 64, 32
KEEP, BATCH, LR = 0.5, 128, 5e-4
TRIAL_STEPS = 20
"""whose speed says how many steps fit; twice, because the first run also decodes every image"""
PACKAGES = ("timm", "scipy", "PIL", "torchvision", "safetensors")


def prepare(folder: Path, *, most: int | None = None) -> None:
    """Write weights (fp16) and re-encoded images of the assets into a folder of less than 60 MiB."""
    from benchmarks.conditions import assets
    from stages.source.load import load_source
    from stages.source.options import SourceOptions
    from stages.vit.files import save_model

    given = assets()
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    weights = next((given / "vit_tiny_patch16_224").glob("*.safetensors"))
    source = load_source(SourceOptions(timm=MODEL, checkpoint=weights), seed=0)
    save_model(folder / "model", source.spec, {name: tensor.half() for name, tensor in source.state.items()})
    if find_spec("nncf") is None:
        print("no int8 graph for part quantized: nncf is not installed here")
    else:
        _prepare_int8(source, given, folder, most)
    (folder / "labels.csv").write_bytes((given / "imagenet_val" / "labels.csv").read_bytes())
    evaluated = _members([given / "imagenet_val" / "images.zip"])
    names = _listed(folder / "labels.csv")
    with zipfile.ZipFile(folder / "evaluate.zip", "w") as archive:
        kept = [(name, data) for name, data in evaluated if name in names][:most]
        for name, data in kept:
            archive.writestr(name, _encoded(data, EVALUATE_QUALITY, side=None))
    if most is not None:
        rows = (folder / "labels.csv").read_text().splitlines()
        there = {name for name, _ in kept}
        rows = [rows[0], *(row for row in rows[1:] if row.split(",")[0] in there)]
        (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    left = LIMIT_BYTES - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # A round over the archives, so that every part of caltech101 is in what fits.
    shards = sorted((given / "caltech101").glob("*.zip"))
    training = [_members([given / "imagenet_train1000" / "images.zip"]), *(_members([shard]) for shard in shards)]
    count = 0
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for source_index, _, data in _in_turns(training):
            encoded = _encoded(data, TRAIN_QUALITY, side=TRAIN_SIDE)
            left -= len(encoded) + 300  # with its two headers
            if left < 0 or count == most:
                break
            archive.writestr(f"{count:05d}_{source_index}.jpg", encoded)  # no class in the name
            count += 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB, {count} images to train on, {len(kept)} to evaluate; keep it private")


def _prepare_int8(source: Any, given: Path, folder: Path, most: int | None) -> None:
    """Write the int8 graph of the weights as the folder has them, calibrated on training images."""
    from tempfile import TemporaryDirectory

    from benchmarks.gpu_quantized import GRAPHS, prepare_int8
    from stages.data.images import open_images
    from stages.data.source import DataSource
    from stages.stage import Role
    from stages.vit.files import save_model

    images = open_images(
        DataSource(images=given / "imagenet_train1000" / "images.zip", limit=most), Role.FIT, index_cache=None
    )
    with TemporaryDirectory(prefix="vitrim-prepare-") as place:
        state = {name: tensor.half().float() for name, tensor in source.state.items()}
        save_model(Path(place, "model"), source.spec, state)
        prepare_int8(Path(place, "model"), images, folder / GRAPHS)


def _in_turns(sources: "list[Iterator[tuple[str, bytes]]]") -> Iterator[tuple[int, str, bytes]]:
    """All of the first (ImageNet), then the others in turns."""
    for name, data in sources[0]:
        yield 0, name, data
    waiting = dict(enumerate(sources[1:], 1))
    while waiting:
        for index, one in list(waiting.items()):
            found = next(one, None)
            if found is None:
                del waiting[index]
            else:
                yield index, *found


def _members(archives: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.lower().endswith((".jpg", ".jpeg", ".png")):
                    yield name, archive.read(name)


def _listed(labels: Path) -> set[str]:
    return {row.split(",")[0] for row in labels.read_text().splitlines()[1:]}


def _encoded(data: bytes, quality: int, *, side: int | None) -> bytes:
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if side is not None and min(picture.size) > side:
        share = side / min(picture.size)
        picture = picture.resize(
            (round(picture.width * share), round(picture.height * share)), Image.Resampling.BICUBIC, reducing_gap=3
        )
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def _inputs(place: Path, scratch: Path) -> tuple[Path, Any, Any]:
    """Teacher folder in fp32, images to train on, images to evaluate: out of a prepared folder or the assets."""
    from stages.data.images import open_images
    from stages.data.source import DataSource
    from stages.stage import Role
    from stages.vit.files import load_spec, load_state, save_model

    teacher = scratch / "teacher"
    if (place / "train.zip").is_file():
        state = {name: tensor.float() for name, tensor in load_state(place / "model").items()}
        save_model(teacher, load_spec(place / "model"), state)
        train = DataSource(images=place / "train.zip")
        evaluate = DataSource(images=place / "evaluate.zip", labels=place / "labels.csv")
    else:
        from stages.source.load import load_source
        from stages.source.options import SourceOptions

        weights = next((place / "vit_tiny_patch16_224").glob("*.safetensors"))
        source = load_source(SourceOptions(timm=MODEL, checkpoint=weights), seed=0)
        save_model(teacher, source.spec, source.state)
        val = place / "imagenet_val"
        train = DataSource(images=(place / "imagenet_train1000" / "images.zip", place / "caltech101"))
        evaluate = DataSource(images=val / "images.zip", labels=val / "labels.csv")
    return (
        teacher,
        open_images(train, Role.TRAIN, index_cache=None),
        open_images(evaluate, Role.EVALUATE, index_cache=None),
    )


def distillation(
    *, place: Path | None, device: str, small: bool, minutes: float, budget: Budget, scratch: Path
) -> Iterator[dict[str, Any]]:
    """Rows: source, pruned and repaired, distilled. place: a prepared folder, or one with the assets."""
    need_packages(*PACKAGES)
    if place is None or not any((place / name).exists() for name in ("train.zip", "vit_tiny_patch16_224")):
        raise SkipError("no images: set VITRIM_ASSETS or give --images a folder that --prepare wrote")
    budget.need(0 if small else 60 * minutes + 60)
    import numpy as np
    import torch

    from pipeline.statistics import compare_answers
    from stages.distill.distillation import distill_model
    from stages.distill.stage import DistillOptions
    from stages.prune_mlp.options import PruneMlpOptions
    from stages.prune_mlp.prune import prune_folder
    from stages.vit.counts import count_macs, count_params
    from stages.vit.files import load_model, load_spec

    teacher, train, evaluate = _inputs(place, scratch)
    if small:
        train = train.first_by_content(SMALL_TRAIN)
        evaluate = evaluate.first_by_content(SMALL_EVALUATE)
    if {item.sha256 for item in train.items} & {item.sha256 for item in evaluate.items}:
        raise SkipError("images to train on and to evaluate overlap; prepare the folder anew")
    labels = evaluate.labels

    def answers(folder: Path) -> "np.ndarray[Any, np.dtype[np.float32]]":
        model = load_model(folder).to(device)
        with torch.inference_mode():
            found = [
                model(torch.as_tensor(batch).to(device)).float().cpu().numpy()
                for batch in evaluate.batches(load_spec(folder).preprocess, 100)
            ]
        return np.concatenate(found)

    reference = answers(teacher)

    def row(role: str, folder: Path, **facts: Any) -> dict[str, Any]:
        compared = compare_answers(reference, answers(folder), labels)
        spec = load_spec(folder)
        return {
            "model": MODEL,
            "variant": role,
            "params": count_params(spec),
            "macs": count_macs(spec),
            "images_evaluated": len(evaluate),
            "top1": round(compared.engine, 4),
            "drop_points": round(compared.drop_points, 2),
            "drop_ci95": [round(edge, 2) for edge in compared.drop_ci95 or ()],
            "agreement": round(compared.agreement or 0.0, 4),
            **facts,
        }

    yield row("source", teacher)
    pruned = scratch / "pruned"
    pruned.mkdir()
    options = PruneMlpOptions(keep=KEEP)
    if small:  # too few images for a fit
        options = PruneMlpOptions(method="dgmr", keep=KEEP, repair="none")
    started = time.perf_counter()
    prune_folder(
        options,
        model_folder=teacher,
        output=pruned,
        scratch=scratch,
        images=train if options.reads_images else None,
        seed=0,
        tell=lambda message, share: None,
    )
    yield row(
        "pruned", pruned, options=options.model_dump(mode="json"), seconds=round(time.perf_counter() - started, 1)
    )

    batch = 8 if small else BATCH

    def distil(steps: int, name: str) -> dict[str, Any]:
        (scratch / f"{name}-scratch").mkdir()
        return distill_model(
            DistillOptions(images_seen=steps * batch, batch_size=batch, lr=LR),
            student_folder=pruned,
            teacher_folder=teacher,
            output=scratch / name,
            scratch=scratch / f"{name}-scratch",
            images=train,
            seed=0,
        )

    trial = 2 if small else TRIAL_STEPS
    distil(trial, "first")
    speed = distil(trial, "trial")["images_per_second"]
    steps = trial if small else max(trial, int(60 * min(minutes, budget.left / 60 - 0.5) * speed / batch))
    before, started = gpu_state(), time.perf_counter()
    facts = distil(steps, "distilled")
    taken = {"seconds": round(time.perf_counter() - started, 1), "gpu_before": before, "gpu_after": gpu_state()}
    kept = {name: value for name, value in facts.items() if name not in ("loss_curve", "seconds", "summary")}
    yield row("distilled", scratch / "distilled", batch_size=batch, lr=LR, minutes=minutes, **taken, **kept)
