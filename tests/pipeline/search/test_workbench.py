"""What a search asks of the stages: the shapes that the target allows, and no others."""

from types import SimpleNamespace
from typing import Any

from pipeline.search.workbench import Workbench
from stages.prune.options import SearchOptions
from targets.profile import ShapeRules


def test_every_rule_of_the_targets_shapes_reaches_the_prices() -> None:
    asked: list[Any] = []
    rules = ShapeRules(mlp_multiple=32, head_multiple=16, head_least=16, head_widths=(16, 32), equal_head_widths=True)
    unused: dict[str, Any] = dict.fromkeys(("runner", "candidate", "spec", "source", "later", "inputs"))
    bench = Workbench(
        planner=SimpleNamespace(step=lambda name, options, **_: asked.append(options)),  # type: ignore[arg-type]
        target=SimpleNamespace(profile=SimpleNamespace(shapes=rules)),  # type: ignore[arg-type]
        search=SearchOptions(),
        **unused,
    )

    bench.offers_step(None)  # type: ignore[arg-type]

    (options,) = asked
    assert {name: getattr(options, name) for name in type(rules).model_fields} == rules.model_dump()
