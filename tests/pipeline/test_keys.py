"""Keys change with everything that decides a result, and with nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.keys import code_digest, content_digest, roles_of, step_key
from stages.artifact import Format
from stages.stage import Role, Stage, StageContext, StageResult
from targets.record import Record


class Options(Record):
    keep: float = 0.5
    checkpoint: Path | None = None


def reads(options: Options) -> Mapping[str, Path]:
    return {"checkpoint": options.checkpoint} if options.checkpoint else {}


def nothing(options: Options, context: StageContext) -> StageResult:
    return StageResult()


STAGE = Stage(
    name="prune_mlp",
    summary="for keys only",
    consumes=Format.VIT,
    produces=Format.VIT,
    options=Options,
    run=nothing,
    reads=reads,
    roles=lambda options: (Role.FIT,),
    tools=("pydantic",),
)
GIVEN = {"input_key": "a" * 64, "images": {Role.FIT: "f", Role.EVALUATE: "e"}, "seed": 0, "device": "d"}


def key(options: Options | None = None, stage: Stage[Options] = STAGE, **changes: object) -> str:
    return step_key(stage, options or Options(), **{**GIVEN, **changes})  # type: ignore[arg-type]


def test_a_default_written_out_gives_the_same_key() -> None:
    assert key(Options(keep=0.5)) == key(Options())


@pytest.mark.parametrize(
    "changes", [{"input_key": "b" * 64}, {"seed": 1}, {"images": {Role.FIT: "g", Role.EVALUATE: "e"}}], ids=str
)
def test_a_key_changes_with_its_input_its_seed_and_its_images(changes: dict[str, object]) -> None:
    assert key(**changes) != key()


def test_a_key_ignores_images_that_the_stage_does_not_read() -> None:
    assert key(images={Role.FIT: "f", Role.EVALUATE: "other"}) == key()


def test_images_that_a_stage_also_reads_are_in_its_key_where_there_are_any() -> None:
    stage = replace(STAGE, also_reads=lambda options: (Role.SELECT, Role.FIT))

    assert key(stage=stage) == key()
    with_select = {**GIVEN["images"], Role.SELECT: "s"}  # type: ignore[dict-item]
    assert key(stage=stage, images=with_select) != key(images=with_select)
    assert roles_of(stage, Options(), with_select) == (Role.FIT, Role.SELECT)
    assert roles_of(stage, Options(), GIVEN["images"]) == (Role.FIT,)  # type: ignore[arg-type]


def test_only_a_target_bound_stage_depends_on_the_device() -> None:
    bound = Stage(**{**vars(STAGE), "target_bound": True})

    assert key(device="other") == key()
    assert key(stage=bound, device="other") != key(stage=bound)


def test_a_file_counts_by_its_content_not_by_its_path(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    keys = {name: key(Options(checkpoint=tmp_path / name)) for name in "abc"}

    assert keys["a"] == keys["b"]
    assert keys["a"] != keys["c"]


def test_a_folder_counts_by_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "one").write_bytes(b"1")
    before = content_digest(tmp_path / "x")
    (tmp_path / "x" / "two").write_bytes(b"2")

    assert content_digest(tmp_path / "x") != before


def test_the_source_of_a_stage_is_part_of_its_key() -> None:
    assert code_digest(("stages/vit",)) != code_digest(("stages/data",))
    assert code_digest(("stages/vit", "stages/data")) == code_digest(("stages/data", "stages/vit"))
