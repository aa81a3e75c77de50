"""Which provider each node of a session went to, and a refusal where one went elsewhere than asked."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from targets.errors import InputError
from targets.runtimes.ort.library import Graph, places, tensor_facts
from targets.runtimes.ort.profile import Fallen, find_fallen
from targets.runtimes.ort.session import profile
from targets.runtimes.runtime import zero_feeds

SHOWN = 3
"""nodes that a message names"""


def check_places(graph: Graph, session: Any, wanted: Sequence[str]) -> dict[str, int]:
    """Return how many nodes went to each provider; raises InputError where any went to another than those wanted.

    session: an open one of the graph, with places recorded. Where it has nodes elsewhere, a query of zeros shows
    whether they only compute shapes, which ONNX Runtime leaves to the CPU.
    """
    placed = places(session)
    if not placed or any(provider not in wanted for provider, _, _ in placed):
        inputs = tuple(tensor_facts(one) for one in session.get_inputs())
        refuse_fallen(graph.runtime, find_fallen(profile(graph, zero_feeds(inputs, 1), 1), wanted), wanted)
    return dict(Counter(provider for provider, _, _ in placed))


def refuse_fallen(runtime: str, fallen: Sequence[Fallen], wanted: Sequence[str]) -> None:
    """Raise InputError that names nodes which ran elsewhere, where there are any."""
    if not fallen:
        return
    shown = ", ".join(f"{one.name!r} ({one.operator})" for one in fallen[:SHOWN])
    more = f" and {len(fallen) - SHOWN} more" if len(fallen) > SHOWN else ""
    elsewhere = ", ".join(dict.fromkeys(one.provider or "no provider" for one in fallen))
    raise InputError(
        f"{runtime} runs {len(fallen)} {'node' if len(fallen) == 1 else 'nodes'} on {elsewhere} instead of "
        f"{' or '.join(wanted)}: {shown}{more}; nothing runs elsewhere unasked: change the graph, or take another "
        "runtime"
    )
