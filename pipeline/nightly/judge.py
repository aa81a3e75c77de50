"""What one night says of one series, by the nights before it. Pure: a history can be judged again at any time.

A change of the environment starts a new segment; only nights of tonight's segment are compared. One night alone never
decides: beyond the band it asks for a re-run of tonight's engine beside the last good one. What both take longer for
was the board's doing. The same engine, slower in the same environment, is the board's doing too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.nightly.record import Culprit, Kind, Metric, Night, Rerun, Verdict
from pipeline.nightly.rules import Policy, Window, change_point, creep, fast, relative, slow

UNCOUNTED: tuple[Kind, ...] = ("invalid", "quarantine", "failed", "missing")
"""nights whose values are compared with nothing"""
WORDS = {
    "latency_p50_ms": ("median latency", "ms"),
    "latency_p99_ms": ("p99 latency", "ms"),
    "energy_mj": ("energy per image", "mJ"),
    "power_w": ("power", "W"),
    "memory_bytes": ("peak memory", "MB"),
    "engine_bytes": ("size of the engine", "MB"),
    "health_ms": ("reference graph", "ms"),
    "top1": ("top-1", "%"),
    "answered": ("images answered", "%"),
}
"""name and unit of a metric, as people read it"""


def scaled(metric: Metric, value: float) -> float:
    """A value in the unit that is shown: bytes as MB."""
    return value / 1e6 if WORDS[metric][1] == "MB" else value


@dataclass
class Past:
    """The nights of tonight's segment that count, oldest first, and what is open."""

    nights: list[Night] = field(default_factory=list)
    open: Verdict | None = None
    """a regression that is not over"""
    accepted: bool = False
    """whether somebody took the board as it is now"""
    drifts: int = 0
    """nights in a row, up to the last, on which the board itself was slow"""

    @property
    def values(self) -> tuple[float, ...]:
        """One a night."""
        return tuple(one.value for one in self.nights)


def judge(
    history: Sequence[tuple[Night, Verdict]],
    tonight: Night,
    *,
    policy: Policy | None = None,
    release: Night | None = None,
    rerun: Rerun | None = None,
    can_rerun: bool = True,
) -> Verdict:
    """Say what became of a series tonight.

    history: its earlier nights, oldest first, each as it was judged. release: a pinned night that a creep is held
    against. rerun: what a verdict with `rerun_wanted` asked for. can_rerun: False where the last good engine is gone.
    """
    policy = policy or Policy()
    if tonight.status != "measured":
        kind: Kind = "missing" if tonight.status == "missing" else "failed"
        what = {"failed": "failed", "missing": "was not run", "device_lost": "lost its board"}[tonight.status]
        return Verdict(kind=kind, rule="status", sentence=_ended(f"it {what}", tonight.reason))
    if not tonight.valid:
        why = ", ".join(tonight.flags) or "no run gave a value"
        return Verdict(kind="invalid", rule="status", sentence=f"its values count for nothing: {why}")
    earlier = [night for night, verdict in history if night.valid and verdict.kind not in UNCOUNTED]
    past = segment(history, tonight)
    if not past.nights and past.open is None:
        if not earlier:
            return _told("insufficient_data", tonight, None, "the first night")
        return _new_segment(earlier[-1], [one.value for one in earlier], tonight)
    level = Window(past.values[-policy.window :]).level
    if past.open is not None:
        return _still(past, past.open, tonight, level, policy)
    if len(past.nights) < policy.least_nights:
        text = f"{len(past.nights)} of {policy.least_nights} nights in this environment"
        return _told("insufficient_data", tonight, level, text)
    found = _of_some_nights(past, tonight, policy, can_rerun=can_rerun or rerun is not None) or _crept(
        past, tonight, policy, release
    )
    if found is None and fast(policy, past.values, tonight.value):
        found = _of_one_night(past, tonight, policy)
    if found is None:
        found = _told("ok", tonight, level, "as before")
    elif found.kind == "suspicious" or (found.kind == "regression" and found.rule == "slow"):
        if rerun is not None:
            found = _beside(found, rerun, past, tonight, policy)
        elif can_rerun:
            found = found.replace(kind="suspicious", rerun_wanted=True)
    noise = Window(past.values[-policy.window :]).noise
    warnings: tuple[str, ...] = ()
    if noise > policy.noisy:
        warnings = (
            f"this board varies by {noise:.1%} from night to night: changes below {4 * noise:.0%} stay unseen; "
            "lock its clocks, cool it, or keep other work off it",
        )
    return found.replace(noise=noise, warnings=warnings)


def segment(history: Sequence[tuple[Night, Verdict]], tonight: Night) -> Past:
    """Take what counts of a history for a night."""
    past = Past()
    for night, verdict in history:
        if night.valid and dict(night.environment) != dict(tonight.environment):
            past = Past()
            continue
        if not night.valid:
            continue
        drifted = verdict.kind in ("invalid", "quarantine")
        past.drifts = past.drifts + 1 if drifted else 0
        if verdict.kind == "regression":
            first = verdict.culprit.first_bad.at if verdict.culprit else night.at
            past.nights = [one for one in past.nights if one.at < first]
            past.open = past.open or verdict
            continue
        if verdict.kind in ("improvement", "accepted") and verdict.culprit is not None:
            past.nights = [one for one in past.nights if one.at >= verdict.culprit.first_bad.at]
        elif verdict.kind == "accepted" and not past.accepted:
            past.nights, past.accepted = [], True
        if verdict.kind == "environment_changed":
            past = Past()
        if not drifted:
            past.nights.append(night)
            past.open = None
    return past


def _of_one_night(past: Past, tonight: Night, policy: Policy) -> Verdict:
    level = Window(past.values[-policy.window :]).level
    last = past.nights[-1]
    if tonight.artifact and tonight.artifact == last.artifact:
        return _drift(past, tonight, level, policy, "with the same engine as before")
    text = "too far from the nights before for one night to decide"
    culprit = Culprit(last_good=last, first_bad=tonight)
    return _told("suspicious", tonight, level, text, rule="fast", culprit=culprit)


def _beside(found: Verdict, rerun: Rerun, past: Past, tonight: Night, policy: Policy) -> Verdict:
    """What is left of a suspicion when tonight's engine ran beside the last good one."""
    low, high = rerun.ratio_ci95
    least = policy.confirmed_change if found.rule == "fast" else policy.confirmed_change / 2
    level = found.baseline or Window(past.values[-policy.window :]).level
    if low > 1 and rerun.ratio >= 1 + least:
        kind: Kind = "regression"
    elif high < 1 and rerun.ratio <= 1 - least:
        kind = "improvement"
    else:
        return _drift(past, tonight, level, policy, f"the last good engine took as long (ratio {rerun.ratio:.2f})")
    text = f"beside the last good engine {_signed(rerun.ratio - 1)} [{_signed(low - 1)}, {_signed(high - 1)}]"
    told = _told(kind, tonight, level, text, rule=found.rule, culprit=found.culprit)
    return told.replace(change=rerun.ratio - 1, change_ci95=(low - 1, high - 1))


def _drift(past: Past, tonight: Night, level: float, policy: Policy, why: str) -> Verdict:
    if past.drifts + 1 >= policy.drifts:
        text = f"the board changed, not the code: {why}, {past.drifts + 1} nights in a row"
        return _told("quarantine", tonight, level, text, rule="fast")
    return _told("invalid", tonight, level, f"the board's doing: {why}", rule="fast")


def _of_some_nights(past: Past, tonight: Night, policy: Policy, *, can_rerun: bool) -> Verdict | None:
    nights = [*past.nights, tonight]
    deviations = policy.slow_trigger if can_rerun else policy.slow_deviations
    change = slow(policy, [one.value for one in nights], deviations)
    if change is None:
        return None
    seen = nights[-(policy.window + policy.recent) :]
    at = change_point([one.value for one in seen])
    culprit = Culprit(last_good=seen[at - 1], first_bad=seen[at])
    before = Window(tuple(one.value for one in seen[: -policy.recent])).level
    if change > 0 and tonight.artifact and all(one.artifact == tonight.artifact for one in seen[-policy.recent - 1 :]):
        text = f"the board changed, not the code: {policy.recent} nights with the same engine as before"
        return _told("quarantine", tonight, before, text, rule="slow").replace(change=change)
    text = f"the median of {policy.recent} nights against the {len(seen) - policy.recent} before"
    kind: Kind = "regression" if change > 0 else "improvement"
    return _told(kind, tonight, before, text, rule="slow", culprit=culprit).replace(change=change)


def _crept(past: Past, tonight: Night, policy: Policy, release: Night | None) -> Verdict | None:
    if release is None or not release.valid or dict(release.environment) != dict(tonight.environment):
        return None
    nights = [*past.nights, tonight]
    change = creep(policy, [one.value for one in nights], release.value)
    if change is None:
        return None
    text = f"the median of {policy.creep_nights} nights against the release of {release.at.date()}: it crept up"
    culprit = Culprit(last_good=release, first_bad=tonight)
    told = _told("regression", tonight, release.value, text, rule="creep", culprit=culprit)
    return told.replace(change=change)


def _still(past: Past, opened: Verdict, tonight: Night, level: float, policy: Policy) -> Verdict:
    """A night after a regression that nobody has accepted: over, or not."""
    change = relative(tonight.value, level)
    noise = Window(past.values[-policy.window :]).noise if past.nights else 0.0
    if change <= max(policy.slow_change, 2 * noise):
        return _told("ok", tonight, level, "back to what it was before the regression", rule=opened.rule)
    first = opened.culprit.first_bad if opened.culprit else tonight
    told = _told("regression", tonight, level, f"not over since {first.at.date()}", rule=opened.rule)
    return told.replace(culprit=opened.culprit, noise=noise)


def _new_segment(last: Night, values: Sequence[float], tonight: Night) -> Verdict:
    level = Window(tuple(values[-14:])).level
    culprit = Culprit(last_good=last, first_bad=tonight)
    text = f"a new segment begins: {'; '.join(culprit.changes)}"
    return _told("environment_changed", tonight, level, text, rule="segment", culprit=culprit)


def _told(
    kind: Kind,
    tonight: Night,
    level: float | None,
    text: str,
    *,
    rule: str | None = None,
    culprit: Culprit | None = None,
) -> Verdict:
    name, unit = WORDS[tonight.series.metric]
    change = None if level is None else relative(tonight.value, level)
    words = f"{name} {scaled(tonight.series.metric, tonight.value):,.4g} {unit}"
    words += f" ({_signed(change)})" if change is not None and level is not None else ""
    return Verdict.model_validate(
        {
            "kind": kind,
            "rule": rule,
            "sentence": f"{words}: {text}",
            "value": tonight.value,
            "baseline": level,
            "change": change,
            "culprit": culprit,
        }
    )


def _signed(change: float) -> str:
    return f"{100 * change:+.1f} %"


def _ended(text: str, reason: str) -> str:
    return f"{text}: {reason}" if reason else text
