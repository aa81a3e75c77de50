"""The search on a device that is played: rounds end within the limit, whatever the table got wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.search import search as search_module
from pipeline.search import workbench as module
from pipeline.search.decide import Allocator
from pipeline.search.latency import attention_shape, mlp_width
from pipeline.search.probes import Shares, probes_for, table_from
from pipeline.search.record import Decision
from pipeline.search.search import Search
from pipeline.search.workbench import Workbench
from pipeline.store import Store
from stages.merge_tokens.options import MergeTokensOptions
from stages.merge_tokens.options import reshaped as merging
from stages.offers.record import OFFERS_FILE, MergeOffer, Offers, Sublayer
from stages.prune.options import PruneOptions, reshaped, with_shapes
from stages.prune_width.options import PruneWidthOptions
from stages.vit.counts import count_macs, count_params
from stages.vit.spec import ViTSpec
from targets.errors import InputError
from targets.profile import Budget, ShapeRules

RULES = ShapeRules(mlp_multiple=16, head_multiple=4)
Time = Callable[[ViTSpec], float]
Reshape = Callable[[ViTSpec], ViTSpec]


def additive(spec: ViTSpec) -> float:
    """Milliseconds of a device whose sublayers do not feel each other."""
    return 0.3 + sum(
        (0.05 + 0.01 * block.mlp_width if block.mlp else 0)
        + (0.05 + 0.02 * block.heads * (block.d_qk + 2 * block.d_v) if block.attention == "on" else 0)
        for block in spec.blocks
    )


def fused(spec: ViTSpec) -> float:
    """A device that runs whole blocks faster than their parts, and has a floor."""
    both = sum(block.mlp and block.attention == "on" for block in spec.blocks)
    return max(0.35 * additive(spec), 0.7 * additive(spec) - 0.04 * both) + 0.2


def scaled(spec: ViTSpec) -> float:
    """A device on which fewer tokens and a narrower stream are faster."""
    tokens = sum(spec.tokens_in(index + 1) for index in range(len(spec.blocks))) / (len(spec.blocks) or 1)
    return additive(spec) * (0.2 + 0.8 * tokens / 17) * (0.2 + 0.8 * spec.width / 16)


def steppy(spec: ViTSpec) -> float:
    """A device that only knows widths of 32."""
    return additive(
        spec.replace(
            blocks=tuple(
                block.replace(mlp_width=-(-block.mlp_width // 32) * 32) if block.mlp else block for block in spec.blocks
            )
        )
    )


@pytest.fixture
def played(plain_spec: ViTSpec, offers: Offers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """played(time, budget) -> Search, with what was built and how often was measured."""
    (tmp_path / OFFERS_FILE).write_text(offers.canonical_json())
    specs: dict[str, ViTSpec] = {}
    log = SimpleNamespace(measured=0, specs=specs, processes=[])

    def engine_of(planner: Any, spec: ViTSpec, like: Any, *, title: str, alpha: Any, **_: Any) -> Any:
        specs[spec.digest()] = spec
        return SimpleNamespace(key=spec.digest(), title=title, line=list)

    def bring(step: Any) -> Any:
        if isinstance(step, str):
            return SimpleNamespace(folder=Path(step))
        size = 1000 + 4 * count_params(specs[step.key]) if step.key in specs else 0
        folder = Path(step.key) if step.key in specs else tmp_path
        return SimpleNamespace(folder=folder, manifest=SimpleNamespace(facts={"engine_bytes": size}))

    def make(
        time: Time,
        budget: Budget,
        *,
        earlier: Reshape = lambda spec: spec,
        later: Reshape = lambda spec: spec,
        **options: Any,
    ) -> Search:
        def measure_shares(engines: Mapping[str, Path], inputs: Any, *, procedure: Any, **_: Any) -> Shares:
            log.measured += 1
            log.processes.append((sorted(engines), procedure.processes))
            whole = time(plain_spec)
            ratios = {name: time(specs[str(folder)]) / whole for name, folder in engines.items()}
            return Shares({name: (one, (0.99 * one, 1.01 * one)) for name, one in ratios.items()}, whole)

        monkeypatch.setattr(module, "engine_of", engine_of)
        monkeypatch.setattr(module, "measure_shares", measure_shares)
        monkeypatch.setattr(Workbench, "_quietly", lambda self, step, tell: bring(step))
        monkeypatch.setattr(Workbench, "offers_step", lambda self, model: SimpleNamespace(key=f"offers of {model}"))
        monkeypatch.setattr(Workbench, "planned", lambda self, after, stage, title, **_: f"{after or 'model'} {stage}")
        monkeypatch.setattr(search_module, "load_changed", lambda bench, model: changed(plain_spec, model))
        monkeypatch.setattr(Workbench, "base_loss", lambda self, model, what: self.offers(model).base_loss)
        unpruned = SimpleNamespace(key="unpruned", line=tuple)
        prune = PruneOptions.model_validate(options)
        bench = Workbench(
            planner=None,
            runner=SimpleNamespace(store=Store(tmp_path / "store"), bring=bring),
            target=SimpleNamespace(profile=SimpleNamespace(shapes=RULES, threads=1), budget=budget),
            candidate=SimpleNamespace(unpruned=unpruned, batch=1, runtime="openvino", precision="int8"),
            spec=earlier(plain_spec),
            source=plain_spec,
            search=prune.search,
            later=later,
            inputs=lambda preprocess: None,
        )
        return Search(bench=bench, model=None, step=SimpleNamespace(options=prune))

    make.log = log
    return make


def changed(spec: ViTSpec, steps: str) -> ViTSpec:
    """What the steps before the pruning make of a spec."""
    if "resize_input" in steps:
        spec = spec.replace(preprocess=spec.preprocess.replace(height=16, width=16))
    return spec.replace(width=8) if "prune_width" in steps else spec


def run(search: Search) -> Decision:
    return search.run(lambda title, work, cached=False: work(lambda message, share: None))


@pytest.mark.parametrize("time", [additive, fused, steppy], ids=lambda time: time.__name__)
@pytest.mark.parametrize("ratio", [0.85, 0.7, 0.55])
def test_the_limit_is_kept_in_three_rounds(played: Any, plain_spec: ViTSpec, time: Time, ratio: float) -> None:
    decision = run(played(time, Budget(latency_ratio=ratio)))

    spec = plain_spec.replace(blocks=blocks_of(plain_spec, decision))
    assert len(decision.rounds) <= 3
    assert time(spec) / time(plain_spec) <= ratio
    assert time(spec) / time(plain_spec) >= 0.75 * ratio  # and is made use of
    assert decision.limits == {"latency": ratio}


def blocks_of(spec: ViTSpec, decision: Decision) -> Any:
    return with_shapes(spec, decision.shapes).blocks


def test_what_decides_is_measured_in_more_processes(played: Any) -> None:
    run(played(additive, Budget(latency_ratio=0.7), blocks="auto"))

    assert all(count == (5 if names == ["whole"] else 2) for names, count in played.log.processes)
    assert {count for _, count in played.log.processes} == {2, 5}


def test_milliseconds_are_a_share_of_the_unpruned_engine(played: Any, plain_spec: ViTSpec) -> None:
    whole = additive(plain_spec)

    decision = run(played(additive, Budget(latency_p50_ms=0.6 * whole)))

    assert decision.limits["latency"] == pytest.approx(0.6)


def test_parameters_macs_and_bytes_need_no_rounds(played: Any, plain_spec: ViTSpec) -> None:
    params, macs = count_params(plain_spec), count_macs(plain_spec)
    budget = Budget(parameters=int(0.8 * params), macs=int(0.8 * macs), engine_bytes=int(1000 + 4 * 0.7 * params))

    decision = run(played(additive, budget))

    spec = plain_spec.replace(blocks=blocks_of(plain_spec, decision))
    assert count_params(spec) <= 0.7 * params + 1
    assert count_macs(spec) <= 0.8 * macs
    assert decision.rounds == ()


def test_a_second_search_asks_nothing_again(played: Any) -> None:
    first = run(played(fused, Budget(latency_ratio=0.6)))
    asked = played.log.measured

    second = run(played(fused, Budget(latency_ratio=0.6)))

    assert second == first
    assert second.seconds is not None  # of the first one
    assert played.log.measured == asked


def test_another_budget_asks_for_whole_models_only(played: Any) -> None:
    run(played(additive, Budget(latency_ratio=0.6)))
    asked = played.log.measured

    decision = run(played(additive, Budget(latency_ratio=0.7)))

    assert played.log.measured == asked + len(decision.rounds)


def test_what_cannot_be_reached_is_told_with_what_can(played: Any) -> None:
    with pytest.raises(InputError, match=r"keep latency .* within 0.01: the smallest that may be had is 0\.\d"):
        run(played(additive, Budget(latency_ratio=0.01)))


def test_without_attention_only_mlps_are_timed(played: Any, plain_spec: ViTSpec) -> None:
    names = [probe.name for probe in probes_for(plain_spec, RULES, attention=False)]

    assert names == ["one block", "several blocks", "mlp 16", "mlp 32", "mlp 48", "mlp 64"]


def test_the_table_gives_the_source_exactly_one(plain_spec: ViTSpec) -> None:
    probes = {probe.name: probe.spec for probe in probes_for(plain_spec, RULES)}
    whole = fused(plain_spec)
    shares = {name: fused(spec) / whole for name, spec in probes.items()}

    table = table_from(plain_spec, probes, shares, dict.fromkeys(probes, 1000), unpruned_p50_ms=whole)

    assert table.share(plain_spec) == pytest.approx(1.0)


def test_of_an_additive_device_the_table_knows_every_model(plain_spec: ViTSpec, offers: Offers) -> None:
    probes = {probe.name: probe.spec for probe in probes_for(plain_spec, RULES)}
    whole = additive(plain_spec)
    shares = {name: additive(spec) / whole for name, spec in probes.items()}
    table = table_from(plain_spec, probes, shares, dict.fromkeys(probes, 1000), unpruned_p50_ms=whole)
    allocator = Allocator(plain_spec, offers, table)

    for one in allocator.frontier("latency", points=20):
        assert allocator.total(one, "latency") == pytest.approx(additive(allocator.spec_of(one)) / whole, abs=1e-6)


def with_merges(offers: Offers, loss: float) -> Offers:
    return offers.replace(merges=(MergeOffer(keep=0.5, merge=(4, 4, 0), loss=loss),))


@pytest.mark.parametrize(("loss", "chosen"), [(0.01, 0.5), (50.0, None)])
def test_tokens_merge_where_that_loses_less(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path, loss: float, chosen: float | None
) -> None:
    search = played(scaled, Budget(latency_ratio=0.6), search={"tokens": [0.5]})
    (tmp_path / OFFERS_FILE).write_text(with_merges(offers, loss).canonical_json())

    decision = run(search)

    assert [one.tokens for one in decision.grounds if one.chosen] == [chosen]
    assert [one.loss for one in decision.grounds] == [0.0, loss]
    assert decision.merge == ((4, 4, 0) if chosen else ())
    spec = plain_spec.replace(blocks=blocks_of(plain_spec, decision), merge=decision.merge)
    assert scaled(spec) / scaled(plain_spec) <= 0.6
    assert decision.loss >= (loss if chosen else 0.0)


@pytest.mark.parametrize(("base", "chosen"), [(0.0, 8), (50.0, None)])
def test_the_stream_narrows_where_that_loses_less(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path, base: float, chosen: int | None
) -> None:
    search = played(scaled, Budget(latency_ratio=0.55), search={"widths": [0.5]})
    narrower = tmp_path / "narrower"
    narrower.mkdir()
    (narrower / OFFERS_FILE).write_text(offers.replace(base_loss=base).canonical_json())
    plain = search.bench.runner.bring
    search.bench.runner.bring = lambda step: (
        SimpleNamespace(folder=narrower) if "prune_width" in str(getattr(step, "key", "")) else plain(step)
    )

    decision = run(search)

    assert decision.width == chosen
    assert [one.width for one in decision.grounds] == [16, 8]
    spec = plain_spec.replace(blocks=blocks_of(plain_spec, decision), width=decision.width or 16)
    assert scaled(spec) / scaled(plain_spec) <= 0.55


@pytest.mark.parametrize(("changes", "method"), [({}, "rotate"), ({"norm_placement": "post"}, "energy")], ids=str)
def test_a_stream_that_cannot_be_rotated_is_narrowed_by_energy(
    played: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], method: str
) -> None:
    search = played(scaled, Budget(latency_ratio=0.55), search={"widths": [0.5]})
    search.bench.spec = search.bench.spec.replace(**changes)
    asked: list[dict[str, Any]] = []

    def planned(self: Workbench, after: Any, stage: str, title: str, **options: Any) -> str:
        asked.append(PruneWidthOptions.model_validate(options).model_dump())
        return "model prune_width"

    monkeypatch.setattr(Workbench, "planned", planned)

    decision = run(search)

    assert {(one["method"], one["keep"]) for one in asked} == {(method, 0.5)}
    assert decision.width_method == method


@pytest.mark.parametrize(("base", "chosen"), [(0.0, (16, 16)), (50.0, None)])
def test_pictures_are_smaller_where_that_loses_less(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path, base: float, chosen: tuple[int, int] | None
) -> None:
    search = played(scaled, Budget(latency_ratio=0.55), search={"sizes": [16]})
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    (smaller / OFFERS_FILE).write_text(offers.replace(base_loss=base).canonical_json())
    plain = search.bench.runner.bring
    search.bench.runner.bring = lambda step: (
        SimpleNamespace(folder=smaller) if "resize_input" in str(getattr(step, "key", "")) else plain(step)
    )

    decision = run(search)

    assert decision.size == chosen
    assert [one.size for one in decision.grounds] == [(32, 32), (16, 16)]
    assert decision.width is None
    spec = changed(plain_spec, "resize_input" if chosen else "").replace(blocks=blocks_of(plain_spec, decision))
    assert scaled(spec) / scaled(plain_spec) <= 0.55


@pytest.fixture
def prices(played: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """prices(limit) -> decision among a smaller input, a narrower stream and both; and what was priced for it.

    They take 0.44, 0.6 and 0.26 of the time, and lose 0.05, 0.1 and 0.1.
    """

    def make(limit: float) -> tuple[Decision, list[str]]:
        search = played(scaled, Budget(latency_ratio=limit), search={"sizes": [16], "widths": [0.5]})
        asked: list[str] = []
        plain = search.bench.runner.bring
        search.bench.runner.bring = lambda step: asked.append(str(getattr(step, "key", ""))) or plain(step)
        monkeypatch.setattr(Workbench, "base_loss", lambda self, model, what: 0.1 if "width" in model else 0.05)
        decision = run(search)
        return decision, [key.removeprefix("offers of ") for key in asked if key.startswith("offers of")]

    return make


def notes(decision: Decision) -> set[tuple[Any, ...]]:
    return {(one.size, one.width, one.note, one.chosen) for one in decision.grounds}


def test_of_sizes_and_widths_only_what_may_win_is_priced(prices: Any) -> None:
    decision, priced = prices(0.25)

    assert priced == ["None", "model resize_input prune_width"]
    assert notes(decision) == {
        ((32, 32), 16, None, False),
        ((32, 32), 8, "estimated", False),
        ((16, 16), 16, "estimated", False),
        ((16, 16), 8, None, True),
    }
    assert (decision.size, decision.width) == ((16, 16), 8)


def test_what_keeps_the_limit_with_nothing_pruned_needs_no_prices(prices: Any, plain_spec: ViTSpec) -> None:
    decision, priced = prices(0.5)

    assert priced == ["None"]
    assert notes(decision) == {
        ((32, 32), 16, None, False),
        ((32, 32), 8, "estimated", False),
        ((16, 16), 16, "fits whole", True),
        ((16, 16), 8, "fits whole", False),
    }
    assert decision.loss == 0.05
    assert len(decision.rounds) == 1
    assert blocks_of(plain_spec, decision) == plain_spec.blocks
    assert min(point.ratio for point in decision.pareto) < 0.5 < max(point.ratio for point in decision.pareto)
    assert decision.table.share(plain_spec) == pytest.approx(
        scaled(changed(plain_spec, "resize_input")) / scaled(plain_spec)
    )


def test_a_decision_that_is_kept_needs_no_prices(played: Any) -> None:
    options = {"sizes": [16], "tokens": [0.5]}
    first = run(played(scaled, Budget(latency_ratio=0.7), search=options))
    again = played(scaled, Budget(latency_ratio=0.7), search=options)
    again.bench.runner.bring = None

    assert run(again) == first


def test_a_recipe_that_merges_itself_leaves_nothing_to_search_there(played: Any, plain_spec: ViTSpec) -> None:
    search = played(scaled, Budget(latency_ratio=0.6), search={"tokens": [0.5]})
    search.bench.later = lambda spec: spec.replace(merge=(2,) * len(spec.blocks))

    with pytest.raises(InputError, match="both say what merges"):
        run(search)


# What comes before and after the pruning.


def shortened(spec: ViTSpec) -> ViTSpec:
    """Steps before the pruning: two blocks lose their attention and most of their MLP."""
    small = spec.blocks[0].replace(attention="off", heads=0, d_qk=0, d_v=0, mlp_width=16)
    return spec.replace(blocks=(spec.blocks[0], small, small))


def shape_of(one: Sublayer, spec: ViTSpec) -> tuple[int, ...]:
    block = spec.blocks[one.block]
    return (mlp_width(block),) if one.part == "mlp" else attention_shape(block)


def of_shortened(offers: Offers, spec: ViTSpec) -> Offers:
    """Prices of no more than each block has."""
    sublayers = []
    for one in offers.sublayers:
        most = shape_of(one, spec)
        fits = [offer for offer in one.offers if all(a <= b for a, b in zip(offer.shape, most, strict=True))]
        kept = tuple(offer.replace(loss=0.0) if offer.shape == most else offer for offer in fits)
        sublayers.append(one.replace(offers=kept))
    return offers.replace(sublayers=tuple(sublayers))


def test_a_model_that_is_faster_already_is_pruned_no_more_than_it_must(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path
) -> None:
    start = shortened(plain_spec)
    (tmp_path / OFFERS_FILE).write_text(of_shortened(offers, start).canonical_json())
    taken = additive(start) / additive(plain_spec)
    assert taken < 0.6

    decision = run(played(additive, Budget(latency_ratio=0.9 * taken), earlier=shortened))

    reached = additive(with_shapes(start, decision.shapes)) / additive(plain_spec)
    assert 0.7 * taken < reached <= 0.9 * taken
    nothing = run(played(additive, Budget(latency_ratio=1.1 * taken), earlier=shortened))
    assert nothing.loss == 0


def test_tables_of_two_models_are_not_mixed_up(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path
) -> None:
    (tmp_path / OFFERS_FILE).write_text(of_shortened(offers, shortened(plain_spec)).canonical_json())
    run(played(additive, Budget(latency_ratio=0.4), earlier=shortened))
    (tmp_path / OFFERS_FILE).write_text(offers.canonical_json())

    decision = run(played(additive, Budget(latency_ratio=0.6)))  # the same store, and blocks of the same shapes

    assert 0.45 < additive(plain_spec.replace(blocks=blocks_of(plain_spec, decision))) / additive(plain_spec) <= 0.6


def later_narrow(spec: ViTSpec) -> ViTSpec:
    """A step after the pruning that halves every input picture: a quarter of the tokens."""
    return spec.replace(preprocess=spec.preprocess.replace(height=16, width=16))


def test_what_later_steps_save_need_not_be_pruned(played: Any, plain_spec: ViTSpec) -> None:
    alone = scaled(later_narrow(plain_spec)) / scaled(plain_spec)
    assert alone < 0.5
    macs = count_macs(later_narrow(plain_spec))

    by_time = run(played(scaled, Budget(latency_ratio=0.5), later=later_narrow))
    by_macs = run(played(scaled, Budget(macs=macs), later=later_narrow))

    assert by_time.loss == by_macs.loss == 0


def test_merging_counts_in_multiply_accumulates(
    played: Any, plain_spec: ViTSpec, offers: Offers, tmp_path: Path
) -> None:
    merge = MergeOffer(keep=0.5, merge=(8, 0, 0), loss=0.01)
    (tmp_path / OFFERS_FILE).write_text(offers.replace(merges=(merge,)).canonical_json())
    merged = merging(MergeTokensOptions(counts=merge.merge), plain_spec)
    limit = count_macs(merged)
    assert limit < 0.8 * count_macs(plain_spec)

    decision = run(played(additive, Budget(macs=limit)))

    assert decision.merge == (8, 0, 0)
    assert decision.loss == pytest.approx(0.01)


def test_parameters_hold_the_biases_that_repair_adds(played: Any, plain_spec: ViTSpec) -> None:
    def bare(spec: ViTSpec) -> ViTSpec:
        return spec.replace(proj_bias=False, fc2_bias=False)

    limit = 0.8 * count_params(bare(plain_spec))
    decision = run(played(additive, Budget(parameters=int(limit)), earlier=bare))

    made = reshaped(PruneOptions(blocks=decision.shapes), bare(plain_spec))
    assert made.proj_bias or made.fc2_bias
    assert count_params(made) <= limit


def overlapped(spec: ViTSpec) -> float:
    """A device that runs an attention beside the MLP of its block: parts sum to more than the whole."""
    return 0.3 + sum(
        max(
            0.02 * block.heads * (block.d_qk + 2 * block.d_v) if block.attention == "on" else 0,
            0.012 * block.mlp_width if block.mlp else 0,
        )
        for block in spec.blocks
    )


@pytest.mark.parametrize("ratio", [0.7, 0.5, 0.35])
def test_parts_that_sum_to_more_than_the_whole_are_no_trap(played: Any, plain_spec: ViTSpec, ratio: float) -> None:
    decision = run(played(overlapped, Budget(latency_ratio=ratio)))

    assert decision.table.rest > 0
    assert overlapped(plain_spec.replace(blocks=blocks_of(plain_spec, decision))) / overlapped(plain_spec) <= ratio
