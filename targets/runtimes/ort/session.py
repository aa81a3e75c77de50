"""A session of ONNX Runtime that answers queries, on whatever provider; what ran is seen in sessions of their own."""

import json
import tempfile
from pathlib import Path
from typing import Any

from targets.errors import WorkerError
from targets.runtimes.ort.library import AFFINITIES, SPINNING, Graph, tensor_facts
from targets.runtimes.ort.profile import Event, count_products, describe_layers, node_events
from targets.runtimes.runtime import Array, Feeds, in_their_types


class OnnxRuntimeSession:
    """One graph, sequential, with a fixed number of threads."""

    def __init__(self, graph: Graph, session: Any = None) -> None:
        """session: one that is open already."""
        self._graph = graph
        self._session = graph.open() if session is None else session
        self.inputs = tuple(tensor_facts(one) for one in self._session.get_inputs())
        self.outputs = tuple(tensor_facts(one) for one in self._session.get_outputs())
        self._output_names = [one.name for one in self.outputs]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answer one query."""
        feeds = in_their_types(self.inputs, feeds)
        try:
            answers = self._session.run(self._output_names, feeds)
        except Exception as error:
            raise self._failure(error) from error
        return dict(zip(self._output_names, answers, strict=True))

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """Nodes of the graph as it runs, from a session of its own: profiling slows queries down."""
        return describe_layers(profile(self._graph, in_their_types(self.inputs, feeds), repeats), repeats)

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """Precision by the types that went into each product, from the profile of one query."""
        return count_products(profile(self._graph, in_their_types(self.inputs, feeds), 1))

    def facts(self) -> dict[str, Any]:
        """Session options and providers in force."""
        settings = self._session.get_session_options()
        return {
            "providers": self._session.get_providers(),
            "provider_options": self._session.get_provider_options(),
            "threads": settings.intra_op_num_threads,
            "execution_mode": settings.execution_mode.name,
            "optimization": settings.graph_optimization_level.name,
            "spinning": settings.get_session_config_entry(SPINNING),
            "thread_affinities": _entry(settings, AFFINITIES),
        }

    def close(self) -> None:
        """Give the memory back; a second time does nothing."""
        self._session = None

    def _failure(self, error: Exception) -> WorkerError:
        """Say in one line what the library raises, whose exceptions share no base but RuntimeError and ValueError."""
        return WorkerError(f"{self._graph.runtime} cannot run: {' '.join(str(error).split())}")


def profile(graph: Graph, feeds: Feeds, repeats: int) -> list[Event]:
    """Run queries in a profiling session; events of all nodes of all queries but the first."""
    with tempfile.TemporaryDirectory(prefix="vitrim-profile-") as folder:

        def profiling(settings: Any) -> None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")

        session = graph.open(profiling)
        for _ in range(repeats + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    return node_events(events, skip_queries=1)


def _entry(settings: Any, name: str) -> str:
    """A session's configuration entry; empty where it has none, which the library calls an error."""
    try:
        return str(settings.get_session_config_entry(name))
    except RuntimeError:
        return ""
