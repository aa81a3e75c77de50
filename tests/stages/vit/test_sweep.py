"""The sweep: streams, visits and moments, in every mode."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.vit.model import ViT
from stages.vit.moments import Moments
from stages.vit.repair import fit, relative_error
from stages.vit.spec import ViTSpec
from stages.vit.sweep import READ_BY_HEAD, Part, Visit, sweep, weigh_tokens
from targets.errors import InputError

MODES = pytest.mark.parametrize("sequential", [True, False], ids=["sequential", "parallel"])


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(23, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split(10))


@pytest.fixture
def make_pair(make_spec: Callable[..., ViTSpec], randomize: Callable[..., nn.Module]) -> Callable[..., tuple[ViT, ViT]]:
    """Build a model with random weights and a copy to change."""

    def make(**changes: Any) -> tuple[ViT, ViT]:
        model = ViT(make_spec(**changes).model_dump(mode="json"))
        randomize(model)
        return model, deepcopy(model)

    return make


def gather(source: ViT, changed: ViT, batches: list[Tensor], **settings: Any) -> dict[tuple[int, Part], Moments]:
    """Sweep with edits that change nothing, and return what they saw."""
    seen: dict[tuple[int, Part], Moments] = {}

    def look(visit: Visit) -> None:
        seen[visit.index, visit.part], _ = visit.moments()

    sweep(source, changed, batches, {Part.ATTENTION: look, Part.MLP: look}, **settings)
    return seen


def test_a_model_that_merges_tokens_is_refused(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    with pytest.raises(InputError, match="put merge_tokens behind this stage"):
        gather(*make_pair(merge=(1, 0)), batches)


@MODES
def test_visits_go_from_front_to_back(
    sequential: bool, make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    seen = gather(*make_pair(), batches, sequential=sequential)

    assert list(seen) == [(0, Part.ATTENTION), (0, Part.MLP), (1, Part.ATTENTION), (1, Part.MLP)]
    assert all(moments.tokens == 23 * 5 for moments in seen.values())


@MODES
@pytest.mark.parametrize("kind", [{}, {"layer_scale": True}, {"norm_placement": "post", "layer_scale": True}])
def test_the_fit_on_an_unchanged_model_is_the_layer_that_is_there(
    kind: dict[str, Any], sequential: bool, make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    source, changed = make_pair(**kind)

    for (index, part), moments in gather(source, changed, batches, sequential=sequential).items():
        block = source.blocks[index]
        layer, scale = (block.attn.proj, block.ls1) if part is Part.ATTENTION else (block.mlp.fc2, block.ls2)
        gamma = scale.gamma if kind.get("layer_scale") else torch.ones(16)
        found = fit(moments, torch.arange(layer.in_features), ridge=0.0)

        expected = (gamma[:, None] * layer.weight).double()
        torch.testing.assert_close(found.weight, expected, rtol=1e-2, atol=1e-2)
        assert relative_error(moments, torch.arange(layer.in_features), found) < 1e-6


def test_sequential_fits_take_back_the_error_of_those_before_them(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    source, changed = make_pair()
    seen: list[Moments] = []

    def edit(visit: Visit) -> None:
        seen.append(visit.moments()[0])
        if visit.index == 0:
            visit.block.mlp.fc2.weight.mul_(0.5)  # an error to take back

    sweep(source, changed, batches, {Part.MLP: edit})

    with torch.no_grad():
        images = torch.cat(batches)
        truth = source.blocks[1](source.blocks[0](source.embed(images)))
        before = changed.blocks[1].after_attention(changed.blocks[0](changed.embed(images)))
        hidden = changed.blocks[1].mlp_hidden(before)
    expected = Moments.of(hidden.flatten(0, 1).double(), (truth - before).flatten(0, 1).double())
    torch.testing.assert_close(seen[1].gram, expected.gram, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen[1].cross, expected.cross, rtol=1e-3, atol=1e-3)


def test_parallel_visits_do_not_see_the_changes_before_them(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    source, changed = make_pair()
    unchanged = gather(source, deepcopy(changed), batches, sequential=False)
    seen: list[Moments] = []

    def edit(visit: Visit) -> None:
        seen.append(visit.moments()[0])
        visit.block.mlp.fc2.weight.zero_()

    sweep(source, changed, batches, {Part.MLP: edit}, sequential=False)

    assert torch.equal(seen[1].gram, unchanged[1, Part.MLP].gram)


@MODES
def test_streams_in_files_give_what_streams_in_memory_give(
    sequential: bool, make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor], tmp_path: Path
) -> None:
    source, changed = make_pair()
    mapped: list[int] = []

    def look(visit: Visit) -> None:
        mapped.append(len(list(tmp_path.glob("streams-*/*.bin"))))

    in_memory = gather(source, changed, batches, sequential=sequential)
    in_files = gather(source, changed, batches, sequential=sequential, scratch=tmp_path, memory_limit_bytes=0)
    sweep(source, changed, batches, {Part.MLP: look}, sequential=sequential, scratch=tmp_path, memory_limit_bytes=5000)

    assert all(torch.equal(in_memory[key].gram, in_files[key].gram) for key in in_memory)
    assert mapped[0] in {2, 4, 5}  # of three chunks per stream of 3,200 bytes or less
    assert list(tmp_path.iterdir()) == []


def test_images_held_out_and_fitted_make_up_all(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    source, changed = make_pair()
    whole = gather(source, changed, batches)[1, Part.MLP]
    parts: list[tuple[Moments, Moments | None]] = []
    sweep(source, changed, batches, {Part.MLP: lambda visit: parts.append(visit.moments(hold_out=True))})

    fitted, held_out = parts[1]

    assert held_out is not None
    assert held_out.tokens == (2 + 2 + 0) * 5  # a fifth of each chunk of 10, 10 and 3 images
    torch.testing.assert_close(fitted.absorb(held_out).gram, whole.gram, rtol=1e-3, atol=1e-3)


def test_a_second_look_sees_what_the_changed_block_gives(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    source, changed = make_pair()
    looks: list[Moments] = []

    def edit(visit: Visit) -> None:
        looks.append(visit.moments()[0])
        visit.block.mlp.fc1.weight[0].zero_()
        looks.append(visit.moments()[0])

    sweep(source, changed, batches, {Part.MLP: edit})

    first, second = looks[:2]
    torch.testing.assert_close(second.gram[1:, 1:], first.gram[1:, 1:], rtol=1e-4, atol=1e-4)
    assert float(first.gram[0, 0]) > 1e-2
    assert float(second.gram[0, 0]) < 1e-6
    assert second.energy == pytest.approx(first.energy)


def test_a_second_look_is_refused_where_the_source_is_gone(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    def look_twice(visit: Visit) -> None:
        visit.moments()
        visit.moments()

    with pytest.raises(RuntimeError, match="sequential sweeps of pre-norm"):
        sweep(*make_pair(), batches, {Part.MLP: look_twice}, sequential=False)
    with pytest.raises(RuntimeError, match="sequential sweeps of pre-norm"):
        sweep(*make_pair(norm_placement="post"), batches, {Part.MLP: look_twice})


def test_inputs_are_the_changed_stream_before_the_sublayer(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    source, changed = make_pair()
    seen: list[Tensor] = []

    def edit(visit: Visit) -> None:
        seen.append(torch.cat([chunk.clone() for chunk in visit.inputs()]))
        visit.block.mlp.fc2.weight.mul_(0.5)

    sweep(source, changed, batches, {Part.MLP: edit})

    with torch.no_grad():
        expected = changed.blocks[1].after_attention(changed.blocks[0](changed.embed(torch.cat(batches))))
    torch.testing.assert_close(seen[1], expected)


def test_sublayers_that_are_off_are_passed_by(make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]) -> None:
    pair = make_pair(block={"attention": "off", "mlp": True})

    assert list(gather(*pair, batches)) == [(0, Part.MLP), (1, Part.MLP)]


def test_batches_may_be_numpy_arrays_and_are_read_once(make_pair: Callable[..., tuple[ViT, ViT]]) -> None:
    source, changed = make_pair()
    batches = (torch.randn(4, 3, 16, 16).numpy() for _ in range(2))  # a generator: gone after one pass

    assert sweep(source, changed, batches, {Part.MLP: lambda visit: None}) == 8


@pytest.mark.parametrize(("pooling", "factor"), [("token", READ_BY_HEAD), ("token_avg", READ_BY_HEAD), ("avg", 1.0)])
def test_tokens_weigh_by_inverse_variance_and_by_who_reads_them(
    pooling: str, factor: float, make_spec: Callable[..., ViTSpec]
) -> None:
    tokens = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    tokens[:, 1] = 10 * tokens[:, 0]
    tokens[:, 2] = tokens[:, 0]

    weights = weigh_tokens(make_spec(pooling=pooling))(tokens)

    torch.testing.assert_close(weights[:, 2] / weights[:, 1], torch.full((2,), 100.0))
    torch.testing.assert_close(weights[:, 0] / weights[:, 2], torch.full((2,), factor))


def test_a_token_without_variance_gets_a_finite_weight(make_spec: Callable[..., ViTSpec]) -> None:
    tokens = torch.randn(1, 4, 16)
    tokens[0, 2] = 0

    assert bool(weigh_tokens(make_spec())(tokens).isfinite().all())


def test_a_changed_model_of_another_width_aims_at_the_projected_stream(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    """The same model stands for the other width; the projection doubles its stream."""
    source, changed = make_pair()
    streams: list[tuple[Tensor, Tensor]] = []
    means: dict[float, Tensor] = {}
    for take_back in (1.0, 0.25):

        def look(visit: Visit, share: float = take_back) -> None:
            if visit.index == 0:
                streams[:] = list(visit.both())
                means[share] = visit.moments(take_back=share)[0].mean_out

        ends: list[tuple[Tensor, Tensor]] = []
        sweep(
            source,
            changed,
            batches,
            {Part.ATTENTION: look},
            project=lambda stream: 2 * stream,
            finish=lambda both, ends=ends: ends.extend((x.clone(), y.clone()) for x, y in both),
        )

    with torch.no_grad():
        entering = torch.cat([source.embed(batch) for batch in batches])
        after = source.blocks[0].after_attention(entering)
        expected = torch.cat([source.blocks[1](source.blocks[0](source.embed(batch))) for batch in batches])
    all_of_it = (2 * after - entering).mean(dim=(0, 1)).double()
    own = 2 * (after - entering).mean(dim=(0, 1)).double()
    torch.testing.assert_close(means[1.0], all_of_it, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(means[0.25], 0.25 * all_of_it + 0.75 * own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([x for x, _ in ends]), expected)
    torch.testing.assert_close(torch.cat([y for _, y in ends]), expected)


def test_a_projection_goes_with_sequential_sweeps_only(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    with pytest.raises(ValueError, match="sequential sweeps only"):
        sweep(*make_pair(), batches, {}, sequential=False, project=lambda stream: stream)


def test_what_enters_can_come_from_the_block_as_it_is_now_in_parallel_sweeps_too(
    make_pair: Callable[..., tuple[ViT, ViT]], batches: list[Tensor]
) -> None:
    source, changed = make_pair()
    means: dict[bool, Tensor] = {}
    for through_block in (False, True):
        halved = deepcopy(changed)

        def look(visit: Visit, through: bool = through_block) -> None:
            attention = visit.block.attn
            assert attention is not None
            attention.qkv.weight.mul_(0.5)
            found, _ = visit.moments(through_block=through)
            means.setdefault(through, found.mean_in)

        sweep(source, halved, batches, {Part.ATTENTION: look}, sequential=False)

    with torch.no_grad():
        x = torch.cat([source.embed(batch) for batch in batches])
        for through_block, model in ((False, source), (True, halved)):
            expected = model.blocks[0].attention_hidden(x).mean(dim=(0, 1)).double()
            torch.testing.assert_close(means[through_block], expected, rtol=1e-4, atol=1e-4)
