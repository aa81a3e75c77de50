"""The training loop: from a module, a loss and batches to trained weights, the same ones whether or not it was killed.

What a step does is a pure function of the weights before it and of (seed, step): batches and every other draw come from
there, never from a global generator. On a CPU a resumed run is therefore equal bit for bit, with the same number of
threads. A budget in minutes would break that, so there is none: `steps` is the only measure of length.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.training.checkpoint import load_newest, save_checkpoint
from stages.training.optimizer import adamw, learning_rate, set_learning_rate
from stages.training.pictures import Batch
from stages.training.precision import Precision, autocast
from stages.training.run import Progress, Run
from targets.errors import StageError
from targets.record import digest_of

log = logging.getLogger("vitrim.training")

LOOK_EVERY_STEPS = 10
"""losses are read at least so often, and every second: reading one waits for the GPU"""
EVALUATIONS = 20
"""how often held-out images are looked at, where there are any"""
PATIENCE = 4
"""evaluations without a better held-out loss after which training is flat"""
WORTH_NOTICING = 1e-3
"""relative decrease that counts as better"""

Loss = Callable[[Batch], dict[str, Tensor]]
"""the weighted parts of the loss, each a mean over the batch; what is minimised is their sum"""
Data = Callable[[int, int], Generator[Batch, None, None]]
"""the batches of the steps [start, stop), on the CPU"""
Tell = Callable[[str, float | None], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train."""

    steps: int
    lr: float
    """peak of the learning rate"""
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    """share of the steps in which the learning rate rises"""
    floor_share: float = 0.01
    """share of the peak at which the learning rate ends"""
    layer_decay: float = 1.0
    clip: float | None = 1.0
    """limit of the gradient's norm"""
    accumulate: int = 1
    """parts into which a batch is cut to save memory; the step is the same but for rounding"""
    ema_decay: float | None = None
    """of a moving average of the weights, which is then the result"""
    settle_steps: int = 0
    """steps in which the model still changes its form, so that held-out images say nothing about its result yet"""
    precision: Precision = "fp32"

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warmup, floor = math.ceil(self.warmup_share * self.steps), self.floor_share * self.lr
        return learning_rate(step, steps=self.steps, peak=self.lr, warmup_steps=warmup, floor=floor)


def train(
    module: nn.Module,
    loss: Loss,
    data: Data,
    training: Training,
    *,
    scratch: Path,
    identity: Any = None,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    judge: Loss | None = None,
    checkpoint_seconds: float = 30.0,
    tell: Tell = lambda message, share: None,
) -> dict[str, Any]:
    """Train a module in place and return the facts: steps, images, seconds, loss curve, precision, device.

    module: on its device; every parameter that requires a gradient is trained. loss: evaluates the module on a batch.
    scratch: folder for checkpoints; a run with the same `training` and `identity` (plain JSON: whatever else decides
    the result) goes on from the newest. held_out: batches that are not trained on; where given, training stops once
    they no longer gain, and the best weights are kept, if need be those at the start. judge: what is looked at on
    them, the loss where it is not given.
    Raises StageError when the loss is no longer a number.
    """
    run_id = digest_of([1, asdict(training), identity])
    run = _start(module, training)
    checkpoint = load_newest(scratch, run=run_id)
    if checkpoint is not None:
        run.restore(checkpoint)
        log.info("goes on from step %d of %d", run.progress.step, training.steps)

    progress, device = run.progress, next(module.parameters()).device
    evaluate_every = math.ceil(training.steps / EVALUATIONS)
    pending: list[dict[str, Tensor]] = []
    clock = _Clock(progress)
    module.train()
    judge = judge or loss
    if held_out is not None and not progress.held_out and not training.settle_steps:
        _evaluate(run, judge, held_out(), training)  # the weights at the start may be the best
    with closing(data(progress.step, training.steps)) as batches:
        while progress.step < training.steps and not progress.stopped:
            batch = next(batches).to(device)
            pending.append(_make_step(run, loss, batch, training))
            progress.step += 1
            progress.images += len(batch)
            last = progress.step == training.steps
            settled = last or progress.step > training.settle_steps
            if held_out is not None and settled and (last or progress.step % evaluate_every == 0):
                _evaluate(run, judge, held_out(), training)
            if len(pending) >= LOOK_EVERY_STEPS or clock.since_look() >= 1 or last or progress.stopped:
                latest = _read_losses(progress, pending, training)
                speed = clock.look(progress)
                tell(f"loss {latest:.4f}, {speed:.0f} images/s", progress.step / training.steps)
                if clock.since_save() >= checkpoint_seconds or last or progress.stopped:
                    save_checkpoint(scratch, run.checkpoint(), run=run_id)
                    clock.saved()
    module.load_state_dict(run.best or run.average, strict=False)
    if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
        raise StageError(f"the last step left weights that are no numbers; try half of lr {training.lr:g}, or clip 1.0")
    module.eval()
    return _facts(progress, training, device)


def _start(module: nn.Module, training: Training) -> Run:
    optimizer = adamw(module, lr=training.lr, weight_decay=training.weight_decay, layer_decay=training.layer_decay)
    average = {} if training.ema_decay is None else _copy_of(module)
    return Run(module=module, optimizer=optimizer, average=average, best={}, progress=Progress())


def _make_step(run: Run, loss: Loss, batch: Batch, training: Training) -> dict[str, Tensor]:
    """Move the weights once; returns the parts of the loss, still on the device."""
    step = run.progress.step
    set_learning_rate(run.optimizer, training.lr_at(step))
    run.optimizer.zero_grad()
    losses: dict[str, Tensor] = {}
    for part in batch.split(training.accumulate):
        with autocast(training.precision, part.images.device):
            values = loss(part)
        weighted = {name: value * (len(part) / len(batch)) for name, value in values.items()}
        _sum(weighted).backward()  # type: ignore[no-untyped-call]  # torch has no annotation there
        losses = {name: losses.get(name, 0.0) + value.detach() for name, value in weighted.items()}
    if training.clip is not None:
        torch.nn.utils.clip_grad_norm_(run.module.parameters(), training.clip)
    run.optimizer.step()
    if training.ema_decay is not None:
        # The average starts short, else it would hold the first weights for 1 / (1 - decay) steps.
        decay = min(training.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in run.module.state_dict().items():
                run.average[name].lerp_(tensor, 1 - decay)
    return losses


def _read_losses(progress: Progress, pending: list[dict[str, Tensor]], training: Training) -> float:
    """Move the losses of the latest steps to the curve; returns the last one. Raises StageError for NaN or infinity."""
    first = progress.step - len(pending)
    total = math.nan
    for step, parts in enumerate(pending, start=first):
        values = {name: float(value) for name, value in parts.items()}
        total = sum(values.values())
        if not math.isfinite(total):
            bad = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise StageError(
                f"the loss became {total:g} at step {step + 1} of {training.steps} ({bad}; learning rate "
                f"{training.lr_at(step):.3g}); try half of lr {training.lr:g}, clip 1.0, a larger warmup_share, "
                "or precision fp32"
            )
        progress.add({"loss": total, **values}, step=step + 1, steps=training.steps)
    pending.clear()
    return total


def _evaluate(run: Run, loss: Loss, batches: Iterable[Batch], training: Training) -> None:
    """Look at held-out images; remembers the best weights and sees when nothing is gained any more."""
    progress, device = run.progress, next(run.module.parameters()).device
    total, count = 0.0, 0
    with _weights(run.module, run.average), torch.no_grad():
        run.module.eval()
        for batch in batches:
            with autocast(training.precision, device):
                values = loss(batch.to(device))
            total += float(_sum(values)) * len(batch)
            count += len(batch)
        run.module.train()
        mean = total / count
        best = min((point["loss"] for point in progress.held_out), default=math.inf)
        progress.held_out.append({"step": progress.step, "loss": mean})
        if mean < best * (1 - WORTH_NOTICING):
            run.best.update(_copy_of(run.module))
            progress.best_step = progress.step
    since_best = sum(point["step"] > progress.best_step for point in progress.held_out)
    progress.stopped = since_best >= PATIENCE


def _facts(progress: Progress, training: Training, device: torch.device) -> dict[str, Any]:
    progress.finish_point(progress.step)
    facts: dict[str, Any] = {
        "steps": progress.step,
        "images_seen": progress.images,
        "seconds": round(progress.seconds, 1),
        "images_per_second": round(progress.images / max(progress.seconds, 1e-9), 1),
        "precision": training.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "loss_curve": progress.curve,
    }
    if progress.held_out:
        facts |= {
            "held_out_curve": progress.held_out,
            "best_step": progress.best_step,
            "stopped_early": progress.stopped,
        }
    return facts


class _Clock:
    """Seconds of this process and of those before it."""

    def __init__(self, progress: Progress) -> None:
        self._started = self._looked = self._saved = time.monotonic()
        self._before, self._first_image = progress.seconds, progress.images

    def since_look(self) -> float:
        return time.monotonic() - self._looked

    def since_save(self) -> float:
        return time.monotonic() - self._saved

    def look(self, progress: Progress) -> float:
        """Bring progress.seconds up to date; returns the images per second of this process."""
        self._looked = time.monotonic()
        progress.seconds = self._before + self._looked - self._started
        return (progress.images - self._first_image) / (self._looked - self._started)

    def saved(self) -> None:
        self._saved = time.monotonic()


@contextmanager
def _weights(module: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The module with other weights for a while; no tensors: its own."""
    if not tensors:
        yield
        return
    own = _copy_of(module)
    module.load_state_dict(tensors)
    try:
        yield
    finally:
        module.load_state_dict(own)


def _sum(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
