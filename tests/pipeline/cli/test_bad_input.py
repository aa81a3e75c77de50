"""Bad input gets a reason, exit code 2 and no traceback; nothing is lost and nothing half-written."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., Any]
Recipe = Callable[..., Path]


def assert_refused(answer: Any, *parts: str, lines: int = 1) -> None:
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    assert len(answer.err.strip().splitlines()) <= lines, answer.err
    for part in parts:
        assert part in answer.err, answer.err


def weights(path: Path, change: Callable[[dict[str, Any]], None] = lambda state: None) -> Path:
    """Weights that fit the recipe's model, changed."""
    import timm
    from safetensors.torch import save_file

    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=10,
    )
    state = dict(model.state_dict())
    change(state)
    save_file(state, path)
    return path


def pictures(folder: Path, count: int = 4, classes: tuple[str, ...] = ("a", "b")) -> Path:
    draw = np.random.default_rng(0)
    for index in range(count):
        place = folder / classes[index % len(classes)] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(place)
    return folder


# What a recipe names.


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"steps": [{"prune_mpl": {}}, "export"]}, ("prune_mpl", "prune_mlp")),
        ({"steps": [{"prune_mlp": {"kep": 0.5}}, "export"]}, ("kep", "keep")),
        ({"steps": [{"prune_mlp": {"keep": 1.5}}, "export"]}, ("keep", "1.5")),
        ({"targets": ["cpuu"]}, ("cpuu", "cpu")),
        ({"bugdet": {}}, ("bugdet", "budget")),
        ({"data.fit.shar": [0, 1]}, ("shar", "share")),
        ({"vitrim": 7}, ("vitrim", "7")),
        ({"model": None}, ("model",)),
    ],
    ids=str,
)
def test_what_a_recipe_misspells_is_named_with_the_nearest_known_word(
    command: Command, write_recipe: Recipe, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    assert_refused(command("plan", write_recipe(changes)), *parts, lines=4)


def test_every_problem_of_a_recipe_is_told_at_once(command: Command, write_recipe: Recipe) -> None:
    changes = {"bugdet": {}, "steps": [{"prune_mlp": {"kep": 0.5}}, "distil"], "targets": ["cpuu"]}

    assert_refused(command("plan", write_recipe(changes)), "bugdet", "kep", "distil", "cpuu", lines=8)


def test_a_recipe_that_is_not_there_is_named(command: Command, tmp_path: Path) -> None:
    assert_refused(command("build", tmp_path / "none.yaml"), "none.yaml")


@pytest.mark.parametrize("pair", ["steps.prune_mlp.kep=0.5", "steps.prune.keep=0.5", "nonsense", "=1", "seed=minus"])
def test_an_override_that_names_nothing_is_refused(command: Command, write_recipe: Recipe, pair: str) -> None:
    assert_refused(command("plan", write_recipe(), "--set", pair), lines=2)


# The model.


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("vit_tinny_patch16_224", ("vit_tinny_patch16_224", "vit_tiny_patch16_224")),
        ("resnet18", ("resnet18", "VisionTransformer")),
        ("swin_tiny_patch4_window7_224", ("swin_tiny_patch4_window7_224",)),
    ],
)
def test_a_model_that_vitrim_cannot_read_is_refused(
    command: Command, write_recipe: Recipe, tmp_path: Path, model: str, parts: tuple[str, ...]
) -> None:
    recipe = write_recipe({"model": {"timm": model, "pretrained": False, "classes": 10}})

    assert_refused(command("build", recipe, "-o", tmp_path / "out"), *parts, lines=2)
    assert not (tmp_path / "out").exists()


def drop(state: dict[str, Any]) -> None:
    del state["blocks.1.mlp.fc1.weight"]


def poison(state: dict[str, Any]) -> None:
    state["blocks.0.attn.qkv.weight"][3, 3] = float("nan")


def shrink(state: dict[str, Any]) -> None:
    state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"][:8, :8].contiguous()


@pytest.mark.parametrize(
    ("change", "parts"),
    [(drop, ("blocks.1.mlp.fc1.weight",)), (poison, ("qkv",)), (shrink, ("blocks.0.attn.proj.weight", "8"))],
    ids=["a tensor is missing", "not finite", "another shape"],
)
def test_a_checkpoint_that_does_not_fit_says_which_tensors(
    command: Command, write_recipe: Recipe, tmp_path: Path, change: Any, parts: tuple[str, ...]
) -> None:
    file = weights(tmp_path / "w.safetensors", change)
    answer = command("build", write_recipe(), "--checkpoint", file, "-o", tmp_path / "out")

    assert_refused(answer, *parts, lines=3)


def test_a_truncated_checkpoint_is_refused(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    file = weights(tmp_path / "w.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    assert_refused(command("build", write_recipe(), "--checkpoint", file, "-o", tmp_path / "out"), "w.safetensors")


def test_a_pickle_is_never_executed(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    file = tmp_path / "w.pth"
    file.write_bytes(pickle.dumps({"x": Trap()}))

    assert_refused(command("build", write_recipe(), "--checkpoint", file, "-o", tmp_path / "out"), "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_that_is_not_there_is_named(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    assert_refused(command("plan", write_recipe(), "--checkpoint", tmp_path / "none.safetensors"), "none.safetensors")


# The images.


def with_images(write_recipe: Recipe, **evaluate: Any) -> Path:
    return write_recipe({"data.evaluate": evaluate})


def test_an_empty_folder_is_refused(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert_refused(command("plan", with_images(write_recipe, images=str(tmp_path / "empty"))), "empty")


def test_a_folder_that_is_not_there_is_named(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    assert_refused(command("plan", with_images(write_recipe, images=str(tmp_path / "gone"))), "gone")


def test_labels_that_name_other_files_are_refused(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    (tmp_path / "labels.csv").write_text("file,label\nother.png,0\n")
    recipe = with_images(write_recipe, images=str(folder), labels=str(tmp_path / "labels.csv"))

    assert_refused(command("plan", recipe), "labels.csv")


def test_a_label_that_the_model_does_not_have_is_refused(
    command: Command, write_recipe: Recipe, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "pictures")
    rows = "".join(f"{path.relative_to(folder)},{40 + i}\n" for i, path in enumerate(sorted(folder.rglob("*.png"))))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    recipe = with_images(write_recipe, images=str(folder), labels=str(tmp_path / "labels.csv"))

    assert_refused(command("build", recipe, "-o", tmp_path / "out"), "43", "10")
    assert not (tmp_path / "out").exists()


def test_a_corrupt_image_in_evaluate_is_named(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    victim = folder / "a" / "0.png"
    victim.write_bytes(victim.read_bytes()[:60])

    assert_refused(command("plan", with_images(write_recipe, images=str(folder))), "0.png")


def test_a_zip_whose_paths_leave_it_is_refused(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    picture = pictures(tmp_path / "pictures") / "a" / "0.png"
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(picture, "../../outside.png")

    assert_refused(command("plan", with_images(write_recipe, images=str(tmp_path / "evil.zip"))), "evil.zip", "outside")
    assert not (tmp_path.parent / "outside.png").exists()


def test_images_that_have_two_roles_are_refused(command: Command, write_recipe: Recipe) -> None:
    recipe = with_images(write_recipe, dataset="digits", share=[0.1, 1])

    assert_refused(command("plan", recipe), "evaluate")


# Where things go.


def test_an_output_that_is_a_file_is_refused_before_any_work(
    command: Command, write_recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    answer = command("build", write_recipe(), "-o", tmp_path / "out")

    assert_refused(answer, "is a file")
    assert (tmp_path / "out").read_text() == "mine"
    assert not (tmp_path / "store" / "entries").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder; run the tests as another user")
def test_a_read_only_output_is_refused_before_any_work(command: Command, write_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)

    assert_refused(command("build", write_recipe(), "-o", tmp_path / "locked" / "out"), "read-only")


def test_a_full_disk_is_refused_before_any_work(
    command: Command, write_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    answer = command("build", write_recipe(), "-o", tmp_path / "out")

    assert answer.code in (1, 2)
    assert "Traceback" not in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


# Other commands.


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("report", "{tmp}"), ("report.json",)),
        (("report", "{tmp}/none"), ("none",)),
        (("validate", "{tmp}"), ("manifest.json",)),
        (("targets", "show", "jetsonn"), ("jetsonn",)),
        (("init", "{tmp}/a.yaml", "--target", "cpuu"), ("cpuu",)),
        (("init", "{tmp}/none/a.yaml"), ("none",)),
        (("validate", "{tmp}", "--level", "fast"), ("quick", "full", "fast")),
        (("validate", "{tmp}", "--rate", "0"), ("rate", "images per second", "0")),
        (("validate", "{tmp}", "--rate", "nan"), ("rate", "nan")),
        (("validate", "{tmp}", "--rate", "9", "--arrivals", "burst"), ("poisson", "fixed", "burst")),
        (("validate", "{tmp}", "--arrivals", "fixed"), ("--arrivals", "--rate")),
        (("validate", "{tmp}", "--wait", "3"), ("--wait", "--device")),
        (("validate", "{tmp}", "--output", "{tmp}/told.json"), ("told.json", "inside of the bundle")),
        (("validate", "{tmp}", "--batches", "1,x"), ("batches", "1,8,64", "1,x")),
        (("validate", "{tmp}", "--batches", "0"), ("batches", "from 1", "0")),
        (("doctor", "--target", "cpuu"), ("cpuu",)),
    ],
    ids=str,
)
def test_every_command_refuses_in_one_line(
    command: Command, tmp_path: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_refused(command(*(word.replace("{tmp}", str(tmp_path)) for word in words)), *parts)


def test_init_does_not_overwrite(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("mine")

    assert_refused(command("init", tmp_path / "a.yaml"), "--force")
    assert (tmp_path / "a.yaml").read_text() == "mine"
    assert command("init", tmp_path / "a.yaml", "--force").code == 0


@pytest.mark.parametrize(
    "words", [("bild",), ("build",), ("build", "a.yaml", "--outptu", "x"), ("store", "lst")], ids=str
)
def test_a_misspelled_command_or_option_is_exit_2(command: Command, words: tuple[str, ...]) -> None:
    answer = command(*words)

    assert answer.code == 2
    assert "Traceback" not in answer.err
