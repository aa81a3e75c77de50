"""Bisect: which commit between the last good night and the first bad one made an engine worse.

Each commit is checked out beside the repository (a git worktree), its recipe is built there, and its engine is measured
on the same board in turns with the good one: the interval of their ratio decides, not their times. A commit that cannot
be built or told apart is passed over, and then more than one may be left.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import Field

from pipeline.nightly.accuracy import Answers, compare_answers
from pipeline.nightly.bench import Bench, Measured
from pipeline.nightly.builder import Builder, Unit
from pipeline.nightly.night import GOOD, TONIGHT, rerun_of
from pipeline.nightly.record import ANSWERS, Metric, Rerun
from pipeline.nightly.repository import bare, between, git
from pipeline.nightly.rules import Policy
from pipeline.nightly.stop import Stop
from stages.data.images import ImageSet
from targets.errors import DeviceLostError, InputError, VitrimError
from targets.measure.measurement import Level
from targets.record import Record

Tell = Callable[[str], None]
Outcome = Literal["good", "bad", "unknown"]
TRIES = 3
"""measurements of a commit that the first cannot tell"""


class Tried(Record):
    """One commit that was measured beside the good one."""

    commit: str
    subject: str
    outcome: Outcome
    """unknown: it could not be built, measured or told apart"""
    ratio: float | None = None
    ratio_ci95: tuple[float, float] | None = None
    reason: str = ""


class Bisection(Record):
    """What a bisection found."""

    format: Literal["vitrim.bisection/1"] = "vitrim.bisection/1"
    cell: str
    metric: Metric
    good: str
    bad: str
    commits: int = Field(description="between them, the bad one included")
    reproduced: bool = Field(description="whether the bad commit is worse beside the good one at all")
    suspects: tuple[str, ...] = Field(description="first bad commit; several where those between could not be told")
    tried: tuple[Tried, ...]
    finished_at: datetime

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        by_commit = {one.commit: one for one in self.tried}
        if not self.reproduced:
            end = by_commit.get(self.bad)
            shown = _interval(end) if end else ""
            return (
                f"{self.bad[:12]} is no worse than {self.good[:12]} beside it on this board{shown}: nothing to bisect"
            )
        if len(self.suspects) == 1:
            one = by_commit[self.suspects[0]]
            return f"first bad commit {one.commit[:12]} {one.subject!r}{_interval(one)}"
        names = ", ".join(commit[:12] for commit in self.suspects)
        return f"the first bad commit is one of {len(self.suspects)}: {names}"


@dataclass(kw_only=True)
class Bisector:
    """One bisection."""

    folder: Path
    """of the matrix"""
    board: Bench
    builder: Callable[[Path], Builder]
    """makes a builder for a checkout"""
    unit: Unit
    cell: str
    metric: Metric
    level: Level
    images: ImageSet | None
    policy: Policy
    busy_wait: float = 600.0
    tell: Tell = lambda message: None
    stop: Stop = field(default_factory=Stop)
    tried: dict[str, Tried] = field(default_factory=dict)
    cut: float | None = None
    """ratio between good and bad: halfway to the bad end's; None until that is measured"""

    def run(self, good: str, bad: str, *, now: Callable[[], datetime]) -> Bisection:
        """Find the first bad commit after `good` up to `bad`. Raises InputError where they are not in one line."""
        good, bad = (git(self.folder, "rev-parse", "--verify", f"{bare(one)}^{{commit}}") for one in (good, bad))
        commits = between(self.folder, good, bad)
        if not commits:
            raise InputError(
                f"there are no commits from {good[:12]} to {bad[:12]}; give --good and --bad in that order"
            )
        subjects = dict(commits)
        line = [commit for commit, _ in commits]
        with TemporaryDirectory(prefix="vitrim-bisect-") as scratch, ExitStack() as held:
            held.enter_context(self.board.open(wait_seconds=self.busy_wait))
            self.tell(f"building the good one, {good[:12]}")
            reference = self._build(good, Path(scratch, "good"))
            ends = self._try(bad, subjects[bad], reference, Path(scratch))
            found: tuple[str, ...] = ()
            if ends.outcome == "bad":
                self.cut = None if ends.ratio is None else (1 + ends.ratio) / 2
                found = self._search(line, subjects, reference, Path(scratch))
        return Bisection(
            cell=self.cell,
            metric=self.metric,
            good=good,
            bad=bad,
            commits=len(line),
            reproduced=ends.outcome == "bad",
            suspects=found,
            tried=tuple(self.tried.values()),
            finished_at=now(),
        )

    def _search(self, line: list[str], subjects: Mapping[str, str], reference: Path, scratch: Path) -> tuple[str, ...]:
        """Halve the commits between the last good and the first bad; those that cannot be told are passed over."""
        low, high = -1, len(line) - 1  # line[low] is good (-1: the good one itself), line[high] is bad
        unknown: set[int] = set()
        while True:
            left = [index for index in range(low + 1, high) if index not in unknown]
            if not left:
                return tuple(line[low + 1 : high + 1])
            middle = min(left, key=lambda index: abs(index - (low + high) / 2))
            self.tell(f"{len(left)} commits left")
            outcome = self._try(line[middle], subjects[line[middle]], reference, scratch).outcome
            if outcome == "bad":
                high = middle
            elif outcome == "good":
                low = middle
            else:
                unknown.add(middle)

    def _try(self, commit: str, subject: str, reference: Path, scratch: Path) -> Tried:
        """Build a commit and hold it against the good one; again where the interval leaves it open."""
        folder = scratch / commit[:12]
        outcome = Tried(commit=commit, subject=subject, outcome="unknown")
        try:
            built = self._build(commit, folder)
            for _ in range(TRIES):
                outcome = self._judge(outcome, self._measure(built, reference, scratch))
                if outcome.outcome != "unknown":
                    break
        except (DeviceLostError, InputError):
            raise
        except VitrimError as error:
            outcome = outcome.replace(outcome="unknown", reason=str(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.tell(f"{commit[:12]} {outcome.outcome}{_interval(outcome)} {subject}")
        self.tried[commit] = outcome
        return outcome

    def _measure(self, built: Path, reference: Path, scratch: Path) -> Measured:
        self.stop.check()
        with TemporaryDirectory(prefix="measure-", dir=scratch) as own:
            return self.board.measure(
                {TONIGHT: built / "bundle", GOOD: reference / "bundle"},
                images=self.images,
                level=self.level,
                answers=self.metric in ANSWERS,
                scratch=Path(own),
                tell=lambda message, share: None,
            )

    def _judge(self, tried: Tried, measured: Measured) -> Tried:
        """The bad end is bad where it is worse for sure, by what counts; the others by their side of halfway to it."""
        if self.metric in ANSWERS:
            return self._judge_answers(tried, measured)
        rerun: Rerun | None = rerun_of(measured, self.metric, "")
        if rerun is None:
            return tried.replace(reason=f"the measurement tells nothing of {self.metric}")
        low, high = rerun.ratio_ci95
        told = tried.replace(ratio=rerun.ratio, ratio_ci95=rerun.ratio_ci95)
        if self.cut is None:
            bad = low > 1 and rerun.ratio >= 1 + self.policy.confirmed_change / 2
            return told.replace(
                outcome="bad" if bad else "unknown" if high > 1 + self.policy.confirmed_change else "good"
            )
        if low > self.cut or high < self.cut:
            return told.replace(outcome="bad" if low > self.cut else "good")
        return told.replace(reason="its interval leaves it open")

    def _judge_answers(self, tried: Tried, measured: Measured) -> Tried:
        if self.images is None:
            raise InputError("answers cannot be bisected without evaluation images")
        labels = self.images.labels
        one, good = (
            Answers(values=measured.answers[role], labels=labels, images=self.images.fingerprint)
            for role in (TONIGHT, GOOD)
        )
        change = compare_answers(good, one, self.policy)
        if change.drop_ci95 is None or change.drop_points is None:
            bad = change.flips > self.policy.flips * change.images
            return tried.replace(outcome="bad" if bad else "good", ratio=1 + change.flips / change.images)
        low, high = (edge / 100 for edge in change.drop_ci95)
        told = tried.replace(ratio=1 + change.drop_points / 100, ratio_ci95=(1 + low, 1 + high))
        return told.replace(outcome="bad" if low > 0 and high > self.policy.accuracy_points / 100 else "good")

    def _build(self, commit: str, output: Path) -> Path:
        """Build a commit's recipe in a checkout of its own."""
        with _worktree(self.folder, commit) as checkout:
            top = Path(git(self.folder, "rev-parse", "--show-toplevel")).resolve()
            recipe = self.unit.recipe.resolve()
            if not recipe.is_relative_to(top):
                raise InputError(f"the recipe {str(recipe)!r} is not in the repository {str(top)!r}: nothing to bisect")
            own = checkout / recipe.relative_to(top)
            return self.builder(checkout).build(
                replace(self.unit, recipe=own), output, stop=self.stop, tell=lambda text: None
            )


@contextmanager
def _worktree(folder: Path, commit: str) -> Iterator[Path]:
    """A checkout of a commit in a temporary folder; gone afterwards, and the repository is as it was."""
    with TemporaryDirectory(prefix="vitrim-commit-") as parent:
        checkout = Path(parent, "tree")
        git(folder, "worktree", "add", "--detach", "--quiet", str(checkout), commit)
        try:
            yield checkout.resolve()
        finally:
            with suppress(InputError):
                git(folder, "worktree", "remove", "--force", str(checkout))
            with suppress(InputError):
                git(folder, "worktree", "prune")


def code_of(checkout: Path, default: Path) -> Path:
    """The vitrim that builds in a checkout: its own, where the repository holds vitrim itself."""
    return checkout if (checkout / "pipeline" / "cli" / "app.py").is_file() else default


def _interval(one: Tried) -> str:
    if one.ratio is None:
        return f" ({one.reason})" if one.reason else ""
    shown = "" if one.ratio_ci95 is None else f" [{one.ratio_ci95[0]:.3f}, {one.ratio_ci95[1]:.3f}]"
    return f" (ratio {one.ratio:.3f}{shown})"
