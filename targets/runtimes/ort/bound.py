"""A session whose inputs and outputs lie on the device: IO binding, with the copies that a caller needs.

A query copies its images in, runs, and copies the answer out, like a query of the TensorRT runtimes. Memory is
allocated once for each shape, so that a CUDA graph may be recorded.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from targets.errors import VitrimError, WorkerError
from targets.runtimes.ort.library import Graph, load_library
from targets.runtimes.ort.session import OnnxRuntimeSession
from targets.runtimes.runtime import Array, Feeds, check_feeds, in_their_types


class BoundSession(OnnxRuntimeSession):
    """One graph on one device, one query at a time."""

    def __init__(
        self,
        graph: Graph,
        session: Any,
        *,
        device_type: str,
        device: int,
        facts: dict[str, Any],
        products: int | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """graph: as it is opened to look at what runs. session: the one that answers.

        products: how many matrix products there are, where the provider does not tell in which precision they run.
        """
        super().__init__(graph, session)
        self._device = (device_type, device)
        self._facts, self._products, self._on_close = facts, products, on_close
        self._binding: Any = None
        self._values: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._open = True

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answer one query."""
        feeds = in_their_types(self.inputs, feeds)
        try:
            self._prepare(feeds)
            for name, value in self._values.items():
                value.update_inplace(np.ascontiguousarray(feeds[name]))
            self._session.run_with_iobinding(self._binding)  # waits until the device is done
            answers = self._binding.copy_outputs_to_cpu()
        except VitrimError:
            raise
        except Exception as error:
            raise self._failure(error) from error
        return dict(zip(self._output_names, answers, strict=True))

    def matrix_products(self, feeds: Feeds) -> dict[str, int]:
        """Precision by the types that went into each product; `unknown` where the provider does not tell."""
        return super().matrix_products(feeds) if self._products is None else {"unknown": self._products}

    def layers(self, feeds: Feeds, repeats: int) -> list[dict[str, Any]]:
        """Nodes as they ran; a node that stands for a whole engine has no precision and no macs."""
        rows = super().layers(feeds, repeats)
        hidden = {} if self._products is None else {"precision": "unknown", "macs": None}
        return [{**row, **hidden} for row in rows]

    def facts(self) -> dict[str, Any]:
        """What is in force."""
        return {**super().facts(), **self._facts, "io_binding": self._device[0]}

    def close(self) -> None:
        """Give the memory back; a second time does nothing."""
        if not self._open:
            return
        self._open = False
        self._binding, self._values = None, {}
        super().close()
        self._on_close()

    def _prepare(self, feeds: Feeds) -> None:
        """Memory for the shapes of a query, where they differ from those of the last one."""
        if not self._open:
            raise WorkerError("the session is closed: load the engine again")
        check_feeds(self.inputs, feeds)
        shapes = {one.name: tuple(feeds[one.name].shape) for one in self.inputs}
        if shapes == self._shapes:
            return
        kinds = load_library().OrtValue
        binding = self._session.io_binding()
        self._values = {
            one.name: kinds.ortvalue_from_shape_and_type(list(shapes[one.name]), np.dtype(one.dtype), *self._device)
            for one in self.inputs
        }
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
        for one in self.outputs:
            if None in one.shape:
                binding.bind_output(one.name, *self._device)
            else:
                place = kinds.ortvalue_from_shape_and_type(list(one.shape), np.dtype(one.dtype), *self._device)
                binding.bind_ortvalue_output(one.name, place)
        self._binding, self._shapes = binding, shapes
