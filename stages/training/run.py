"""The live state of one training: what a checkpoint saves and restores."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stages.training.checkpoint import Checkpoint
from stages.training.ranks import ALONE, Ranks, as_sharded, whole

CURVE_POINTS = 100


@dataclass
class Progress:
    """What a run knows besides its tensors: plain JSON, so that a checkpoint can hold it."""

    step: int = 0
    """steps made"""
    images: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    """at most CURVE_POINTS points: step, loss and its parts, each the mean since the point before"""
    sums: dict[str, float] = field(default_factory=dict)
    """of the point that is not finished"""
    summed: int = 0
    held_out: list[dict[str, float]] = field(default_factory=list)
    """step and loss on held-out images"""
    best_step: int = 0
    flat_at: int | None = None
    """step at which held-out images no longer gained, so that the learning rate began to fall to its end"""

    def add(self, losses: dict[str, float], *, step: int, steps: int) -> None:
        """Take in the losses of one more step; step counts from 1."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += 1
        if step == steps or step % -(-steps // CURVE_POINTS) == 0:
            self.finish_point(step)

    def finish_point(self, step: int) -> None:
        """End the curve's open point, where there is one."""
        if self.summed:
            means = {name: value / self.summed for name, value in self.sums.items()}
            self.curve.append({"step": step, **means})
            self.sums, self.summed = {}, 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """Tensors and progress."""

    module: nn.Module
    wrapped: nn.Module
    """gives the loss of a batch; its backward pass averages gradients over the processes"""
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    """moving average of the weights; empty without one"""
    best: dict[str, Tensor]
    """weights with the lowest held-out loss; empty without held-out images"""
    progress: Progress
    among: Ranks = ALONE

    def checkpoint(self) -> Checkpoint:
        """Everything that must survive. Of sharded weights, all processes must ask for it."""
        named = {f"weights/{name}": whole(tensor) for name, tensor in self.module.state_dict().items()}
        named |= {f"average/{name}": whole(tensor) for name, tensor in self.average.items()}
        named |= {f"best/{name}": whole(tensor) for name, tensor in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer/{index}/{key}": whole(tensor) for key, tensor in state.items()}
        return Checkpoint(self.progress.step, named, vars(self.progress))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of the same module and optimizer, sharded or not."""
        device = next(self.module.parameters()).device
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "best": {}, "optimizer": {}}
        own = self.module.state_dict()
        for name, tensor in checkpoint.tensors.items():
            part, _, rest = name.partition("/")
            tensor = tensor.to(device)
            parts[part][rest] = tensor if part == "optimizer" else as_sharded(tensor, own[rest])
        self.module.load_state_dict(parts["weights"])
        self.average.update(parts["average"])
        self.best.update(parts["best"])
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition("/")
            like = parameters[int(index)]
            same = tensor.shape == like.shape  # the count of steps is no part of the weight
            state.setdefault(int(index), {})[key] = as_sharded(tensor, like) if same else tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for name, value in checkpoint.progress.items():
            setattr(self.progress, name, value)
