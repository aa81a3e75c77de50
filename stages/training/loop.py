"""The training loop: from a module, a loss and batches to trained weights, the same ones whether or not it was killed.

What a step does is a pure function of the weights before it and of (seed, step): batches and every other draw come from
there, never from a global generator. On a CPU a resumed run is therefore equal bit for bit, with the same number of
threads. A budget in minutes would break that, so there is none: `steps` is the only measure of length.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.training.checkpoint import load_newest, save_checkpoint
from stages.training.logs import SILENT, LogTo, Write, open_log
from stages.training.optimizer import adamw, learning_rate, set_learning_rate, set_weight_decay
from stages.training.pictures import Batch
from stages.training.precision import Precision, autocast
from stages.training.ranks import ALONE, Ranks, whole_state
from stages.training.run import Progress, Run
from targets.errors import StageError
from targets.record import digest_of

log = logging.getLogger("vitrim.training")

LOOK_EVERY_STEPS = 10
"""losses are read at least so often, and every second: reading one waits for the GPU"""
EVALUATIONS = 20
"""how often held-out images are looked at, where there are any and nothing else is asked for"""
PATIENCE = 0.2
"""share of the evaluations, and at least two, without a better held-out loss after which training is flat"""
COOLING = 0.1
"""share of the steps in which the learning rate falls to its end once training is flat: often that gains once more"""
WORTH_NOTICING = 1e-3
"""relative decrease that counts as better"""

Loss = Callable[[Batch], dict[str, Tensor]]
"""the weighted parts of the loss, each a mean over the batch; what is minimised is their sum"""
Data = Callable[[int, int], Generator[Batch, None, None]]
"""the batches of the steps [start, stop), on the CPU; of several processes, the share of this one"""
Tell = Callable[[str, float | None], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train."""

    steps: int
    lr: float
    """peak of the learning rate"""
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    """where given, the decay moves there from `weight_decay` on half a cosine"""
    betas: tuple[float, float] = (0.9, 0.999)
    """of AdamW: how long gradients and their squares are remembered"""
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
    evaluations: int = EVALUATIONS
    """looks at held-out images, besides the one at the start"""
    precision: Precision = "fp32"
    sharded: bool = False
    """several processes keep parts of the weights, each"""

    def lr_at(self, step: int, *, flat_at: int | None = None) -> float:
        """Learning rate of a step, counted from 0. flat_at: where training was flat, it falls from there to the end."""
        warmup, floor = math.ceil(self.warmup_share * self.steps), self.floor_share * self.lr
        if flat_at is None or step < flat_at:
            return learning_rate(step, steps=self.steps, peak=self.lr, warmup_steps=warmup, floor=floor)
        high, share = self.lr_at(flat_at, flat_at=None), (step - flat_at) / (self.end(flat_at) - flat_at)
        return floor + (high - floor) * (1 - share)

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of a step, counted from 0."""
        last = self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
        return last + (self.weight_decay - last) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def end(self, flat_at: int | None) -> int:
        """Number of steps in all, where training was flat at this one or not at all (None)."""
        return self.steps if flat_at is None else min(self.steps, flat_at + math.ceil(COOLING * self.steps))

    @property
    def patience(self) -> int:
        """Looks without gain after which training is flat."""
        return max(2, math.ceil(PATIENCE * self.evaluations))


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
    among: Ranks = ALONE,
    log_to: LogTo = SILENT,
    tell: Tell = lambda message, share: None,
) -> dict[str, Any]:
    """Train a module in place and return the facts: steps, images, seconds, loss curve, precision, device.

    module: on its device; every parameter that requires a gradient is trained. loss: evaluates the module on a batch.
    scratch: folder for checkpoints; a run with the same `training` and `identity` (plain JSON: whatever else decides
    the result) goes on from the newest. held_out: batches that are not trained on; where given, the learning rate falls
    to its end once they no longer gain, and the best weights are kept, if need be those at the start. judge: what is
    looked at on them, the loss where it is not given. among: the processes that train together; only the first one's
    scratch is used, and all end with the same weights. log_to: where losses, learning rate and speed go besides.
    Raises StageError when the loss is no longer a number.
    """
    run_id = digest_of([1, {**asdict(training), "sharded": None}, identity])  # sharded or not, it is the same run
    run = _start(module, loss, judge or loss, data, training, among)
    checkpoint = among.agree(load_newest(scratch, run=run_id) if among.is_first else None)
    if checkpoint is not None:
        run.restore(checkpoint)
        log.info("goes on from step %d of %d", run.progress.step, training.steps)

    progress, device = run.progress, next(module.parameters()).device
    evaluate_every = math.ceil(training.steps / training.evaluations)
    pending: list[dict[str, Tensor]] = []
    clock = _Clock(progress)
    module.train()
    with ExitStack() as opened:
        log_here = log_to if among.is_first and progress.step < training.end(progress.flat_at) else SILENT
        write = opened.enter_context(open_log(log_here, run=run_id, scratch=scratch, from_step=progress.step))
        batches = opened.enter_context(closing(data(progress.step, training.steps)))
        if held_out is not None and not progress.held_out and not training.settle_steps:
            _evaluate(run, held_out(), training, write)  # the weights at the start may be the best
        while progress.step < training.end(progress.flat_at):
            batch = next(batches).to(device)
            pending.append(_make_step(run, batch, training))
            progress.step += 1
            progress.images += batch.whole or len(batch)
            last = progress.step == training.end(progress.flat_at)
            settled = last or progress.step > training.settle_steps
            if held_out is not None and settled and (last or progress.step % evaluate_every == 0):
                _evaluate(run, held_out(), training, write)
            together = training.sharded and among.count > 1  # what each does on its own, all must do at the same time
            late = not together and clock.since_look() >= 1
            if len(pending) >= LOOK_EVERY_STEPS or late or last:
                latest = _read_losses(progress, pending, training, write)
                speed = clock.look(progress)
                write(progress.step, {"images_per_second": speed})
                tell(f"loss {latest:.4f}, {speed:.0f} images/s", progress.step / training.end(progress.flat_at))
                due = clock.since_save() >= checkpoint_seconds or last
                if among.agree(due) if together else due and among.is_first:
                    reached = run.checkpoint()
                    if among.is_first:
                        save_checkpoint(scratch, reached, run=run_id)
                    clock.saved()
    module.load_state_dict(run.best or run.average, strict=False)
    if not all(tensor.isfinite().all() for tensor in whole_state(module).values()):
        raise StageError(f"the last step left weights that are no numbers; try half of lr {training.lr:g}, or clip 1.0")
    module.eval()
    return _facts(progress, training, device, among)


def _start(module: nn.Module, loss: Loss, judge: Loss, data: Data, training: Training, among: Ranks) -> Run:
    sharded = training.sharded and among.count > 1
    changes = training.settle_steps > 0  # parts of it may be used at first, and not later
    some_unused = among.count > 1 and not sharded and (changes or _some_unused(module, loss, data))
    wrapped = among.wrap(_Evaluated(module, loss, judge), some_unused=some_unused, sharded=sharded)
    optimizer = adamw(
        module,
        lr=training.lr,
        weight_decay=training.weight_decay,
        layer_decay=training.layer_decay,
        betas=training.betas,
    )
    average = {} if training.ema_decay is None else _copy_of(module)
    return Run(
        module=module, wrapped=wrapped, optimizer=optimizer, average=average, best={}, progress=Progress(), among=among
    )


class _Evaluated(nn.Module):
    """A module whose forward pass is the loss on a batch: what DistributedDataParallel can wrap."""

    def __init__(self, module: nn.Module, loss: Loss, judge: Loss) -> None:
        super().__init__()
        self.module = module
        self._loss, self._judge = loss, judge

    def forward(self, batch: Batch, *, held_out: bool = False) -> dict[str, Tensor]:
        """Return the parts of the loss, or of what is looked at on held-out images."""
        return self._judge(batch) if held_out else self._loss(batch)


def _some_unused(module: nn.Module, loss: Loss, data: Data) -> bool:
    """Whether the loss leaves some parameters out, which then must not move: tried on the first images."""
    with closing(data(0, 1)) as batches:
        batch = next(batches).to(next(module.parameters()).device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    few = Batch(step=0, images=batch.images[:2], labels=None if batch.labels is None else batch.labels[:2])
    return None in torch.autograd.grad(_sum(loss(few)), trained, allow_unused=True)


def _make_step(run: Run, batch: Batch, training: Training) -> dict[str, Tensor]:
    """Move the weights once; returns the parts of the loss, still on the device."""
    step = run.progress.step
    set_learning_rate(run.optimizer, training.lr_at(step, flat_at=run.progress.flat_at))
    set_weight_decay(run.optimizer, training.weight_decay_at(step))
    run.optimizer.zero_grad()
    losses: dict[str, Tensor] = {}
    parts = batch.split(training.accumulate)
    for index, part in enumerate(parts):
        between = nullcontext() if index == len(parts) - 1 else run.among.without_averaging(run.wrapped)
        with between:
            with autocast(training.precision, part.images.device):
                values = run.wrapped(part)
            weighted = {name: value * (len(part) / part.whole) for name, value in values.items()}
            # Gradients are averaged over the processes, and here they are to be added.
            (_sum(weighted) * run.among.count).backward()  # type: ignore[no-untyped-call]  # torch has no annotation there
        losses = {name: losses.get(name, 0.0) + value.detach() for name, value in weighted.items()}
    losses = run.among.sum(losses)
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


def _read_losses(progress: Progress, pending: list[dict[str, Tensor]], training: Training, write: Write) -> float:
    """Move the losses of the latest steps to the curve; returns the last one. Raises StageError for NaN or infinity."""
    first = progress.step - len(pending)
    total = math.nan
    for step, parts in enumerate(pending, start=first):
        values = {name: float(value) for name, value in parts.items()}
        total = sum(values.values())
        if not math.isfinite(total):
            bad = ", ".join(f"{name} {value:g}" for name, value in values.items())
            rate = training.lr_at(step, flat_at=progress.flat_at)
            raise StageError(
                f"the loss became {total:g} at step {step + 1} of {training.steps} ({bad}; learning rate {rate:.3g}); "
                f"try half of lr {training.lr:g}, clip 1.0, a larger warmup_share, "
                "or precision fp32"
            )
        progress.add({"loss": total, **values}, step=step + 1, steps=training.steps)
        write(step + 1, {"loss": total, **values, "learning_rate": training.lr_at(step, flat_at=progress.flat_at)})
    pending.clear()
    return total


def _evaluate(run: Run, batches: Iterable[Batch], training: Training, write: Write) -> None:
    """Look at held-out images; remembers the best weights and sees when nothing is gained any more."""
    progress, device = run.progress, next(run.module.parameters()).device
    totals = {name: torch.zeros((), device=device, dtype=torch.float64) for name in ("loss", "images")}
    with _weights(run.module, run.average), torch.no_grad():
        run.module.eval()
        # Sharded, all processes must compute at the same time, so each sees all images.
        index, count = (0, 1) if training.sharded else (run.among.index, run.among.count)
        for batch in islice(batches, index, None, count):
            with autocast(training.precision, device):
                values = run.wrapped(batch.to(device), held_out=True)
            totals["loss"] += _sum(values).double() * len(batch)
            totals["images"] += len(batch)
        run.module.train()
        sums = run.among.sum(totals)
        mean = float(sums["loss"] / sums["images"])
        best = next((point["loss"] for point in progress.held_out if point["step"] == progress.best_step), math.inf)
        progress.held_out.append({"step": progress.step, "loss": mean})
        write(progress.step, {"held_out_loss": mean})
        if mean < best * (1 - WORTH_NOTICING):
            run.best.update(_copy_of(run.module))
            progress.best_step = progress.step
    since_best = sum(point["step"] > progress.best_step for point in progress.held_out)
    would_end_sooner = training.end(progress.step) < training.steps
    if progress.flat_at is None and since_best >= training.patience and would_end_sooner:
        progress.flat_at = progress.step


def _facts(progress: Progress, training: Training, device: torch.device, among: Ranks) -> dict[str, Any]:
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
    if among.count > 1:
        facts["processes"] = among.count
    if progress.held_out:
        facts |= {
            "held_out_curve": progress.held_out,
            "best_step": progress.best_step,
            "stopped_early": progress.flat_at is not None,
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
