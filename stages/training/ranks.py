"""The processes that train one model together, as `accelerate launch` or `torchrun` started them; mostly one.

Every process takes its share of each batch. It has the whole model, and torch's DistributedDataParallel averages the
gradients; or, sharded, a part of every weight (torch's fully_shard, known as FSDP2). Whatever decides the course
(losses, where to go on, when to stop) is the same in all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from stages.training.launched import launched
from stages.vit.model import Block
from targets.errors import InputError

PATIENCE = timedelta(days=30)
"""how long processes wait for the first one, which runs all stages that do not train"""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    index: int = 0
    count: int = 1
    device: torch.device | None = None
    """where this process trains; None: whatever one process would take"""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.index == 0

    def share(self, count: int) -> list[int]:
        """Places of a batch of `count` images that this process takes: a place and its mirror image together.

        So a batch that is mixed with itself in reverse order (mixup) is mixed as one process would mix it.
        """
        return mirrored(count, self.count)[self.index]

    def agree(self, value: T) -> T:
        """The first process's value, for all. Plain values, and tensors on the CPU."""
        if self.count == 1:
            return value
        box: list[Any] = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0, group=_control())
        agreed: T = box[0]
        return agreed

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all processes, in one message; the names must be the same everywhere."""
        if self.count == 1 or not values:
            return values
        together = torch.stack([value.double() for value in values.values()])
        dist.all_reduce(together)
        return dict(zip(values, together.unbind(), strict=True))

    def wrap(self, module: nn.Module, *, some_unused: bool, sharded: bool) -> nn.Module:
        """The module, whose backward pass then averages gradients over all processes.

        sharded: each process keeps its part of every weight and fetches a block when it is computed (FSDP2); this
        changes the module's parameters in place, so optimizers are made afterwards.
        """
        if self.count == 1:
            return module
        if not sharded:
            return nn.parallel.DistributedDataParallel(module, find_unused_parameters=some_unused)
        assert self.device is not None
        mesh = init_device_mesh(self.device.type, (self.count,))
        for part in [*(one for one in module.modules() if isinstance(one, Block)), module]:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        return module

    @contextmanager
    def without_averaging(self, module: nn.Module) -> Iterator[None]:
        """Context for all but the last part of a batch: gradients add up here and are not sent."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(False)
            yield
            module.set_requires_gradient_sync(True)
        elif isinstance(module, nn.parallel.DistributedDataParallel):
            with module.no_sync():
                yield
        else:
            yield


ALONE = Ranks()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; then all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """All weights of a module that may be sharded; then all processes must ask for them."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def as_sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all processes have, where `like` is sharded; else the tensor itself."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements)


def mirrored(count: int, parts: int) -> list[list[int]]:
    """Cut 0..count-1 into parts of nearly equal size; a number i is in the same part as count - 1 - i. Ascending."""
    pairs = [(low, count - 1 - low) for low in range((count + 1) // 2)]
    return [sorted({place for pair in pairs[part::parts] for place in pair}) for part in range(parts)]


def ranks() -> Ranks:
    """This process's place; the first call waits for all processes. Raises InputError where Accelerate is missing."""
    return ALONE if launched() == 1 else _join()


def finish() -> None:
    """Leave the other processes in peace, when nothing is trained any more."""
    if launched() > 1 and dist.is_initialized():
        dist.destroy_process_group()
        _control.cache_clear()
        _join.cache_clear()


def check_batch(batch_size: int, among: Ranks) -> None:
    """Raise InputError where a batch is too small to give every process an image."""
    least = 2 * among.count - 1
    if batch_size < least:
        raise InputError(f"batch_size {batch_size} is too small for {among.count} processes; give at least {least}")


@cache
def _join() -> Ranks:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise InputError(
            f"{launched()} processes were started together, which needs accelerate; pip install accelerate, "
            "or start one process"
        ) from error
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    if state.num_processes != launched():  # else each would train alone, and all would write the same files
        raise InputError(
            f"{launched()} processes were started together, but accelerate sees {state.num_processes}; start them with "
            "accelerate launch or torchrun"
        )
    return Ranks(state.process_index, state.num_processes, state.device)


@cache
def _control() -> Any:
    """A group for plain values that waits without a timeout and without a GPU."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)
