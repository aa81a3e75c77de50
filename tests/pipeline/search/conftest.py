"""A spec, prices and a table to search with."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.search import search as search_module
from pipeline.search import workbench as module
from pipeline.search.probes import Shares
from pipeline.search.search import Search
from pipeline.search.workbench import Workbench
from pipeline.store import Store
from stages.offers.record import OFFERS_FILE, Offer, Offers, Sublayer
from stages.prune.options import PruneOptions
from stages.vit.counts import count_params
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess
from targets.profile import Budget
from tests.pipeline.search.played import RULES, Reshape, Time, changed


@pytest.fixture(scope="session")
def plain_spec() -> ViTSpec:
    block = BlockSpec(heads=2, d_qk=8, d_v=8, scale=8**-0.5, mlp_width=64, norm1_eps=1e-6, norm2_eps=1e-6)
    return ViTSpec(
        architecture="tiny",
        preprocess=Preprocess(height=32, width=32),
        patch_size=(8, 8),
        width=16,
        classes=10,
        blocks=(block,) * 3,
    )


@pytest.fixture(scope="session")
def offers(plain_spec: ViTSpec) -> Offers:
    """Later blocks lose less; every price falls with the size of the shape."""
    sublayers = []
    for index in range(len(plain_spec.blocks)):
        worth = 3 - index
        attention = [
            Offer(shape=(heads, d_qk, d_v), loss=worth * (1 - heads * (d_qk + d_v) / 32) ** 2)
            for heads in (1, 2)
            for d_qk in (4, 8)
            for d_v in (4, 8)
        ]
        sublayers.append(
            Sublayer(block=index, part="attention", offers=(Offer(shape=(0, 0, 0), loss=2.0 * worth), *attention))
        )
        mlp = [Offer(shape=(width,), loss=worth * (1 - width / 64) ** 2) for width in range(0, 65, 16)]
        sublayers.append(Sublayer(block=index, part="mlp", offers=tuple(mlp)))
    return Offers(unit="kl_nats", sublayers=tuple(sublayers), images=16)


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
