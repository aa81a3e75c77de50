"""The search on a device that is played: rounds end within the limit, whatever the table got wrong."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.search.decide import Allocator
from pipeline.search.limits import UnreachableError
from pipeline.search.probes import probes_for, table_from
from pipeline.search.record import Decision
from pipeline.search.workbench import Workbench
from stages.offers.record import OFFERS_FILE, MergeOffer, Offers
from stages.prune_width.options import PruneWidthOptions
from stages.vit.counts import count_macs, count_params
from stages.vit.spec import ViTSpec
from targets.errors import InputError
from targets.profile import Budget
from tests.pipeline.search.played import RULES, Time, additive, blocks_of, changed, fused, run, scaled, steppy


@pytest.mark.parametrize("time", [additive, fused, steppy], ids=lambda time: time.__name__)
@pytest.mark.parametrize("ratio", [0.85, 0.7, 0.55])
def test_the_limit_is_kept_in_three_rounds(played: Any, plain_spec: ViTSpec, time: Time, ratio: float) -> None:
    decision = run(played(time, Budget(latency_ratio=ratio)))

    spec = plain_spec.replace(blocks=blocks_of(plain_spec, decision))
    assert len(decision.rounds) <= 3
    assert time(spec) / time(plain_spec) <= ratio
    assert time(spec) / time(plain_spec) >= 0.75 * ratio  # and is made use of
    assert decision.limits == {"latency": ratio}


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
    with pytest.raises(UnreachableError, match=r"keep latency .* within 0.01: the smallest that may be had is 0\.\d"):
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

    with pytest.raises(InputError, match="both say what merges") as caught:
        run(search)
    assert not isinstance(caught.value, UnreachableError)  # a fault of the recipe, not of the limit
