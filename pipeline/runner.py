"""Runner: brings planned steps into the store, one after the other, and tells a watcher what happens."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.events import Event, Watcher, ignore
from pipeline.follow import send
from pipeline.isolated import run_isolated
from pipeline.keys import tool_versions
from pipeline.planner import SOURCE_STAGES, PlannedStep
from pipeline.store import Holder, Store
from stages.artifact import Artifact
from stages.catalog import get_stage
from stages.data.images import ImageSet
from stages.data.source import DataSource
from stages.stage import Role, StageContext, StageResult
from targets.errors import StageError
from targets.record import digest_of


@dataclass(kw_only=True)
class Runner:
    """Runs steps against a store; what is finished there is not run again."""

    store: Store
    images: Mapping[Role, ImageSet]
    sources: Mapping[Role, DataSource]
    seed: int
    watch: Watcher = ignore
    fresh: bool = False
    """run every step anew, once"""
    total: int = 0
    """steps and checks of the whole build, for the display"""
    target: str = ""
    done: dict[str, Artifact] = field(default_factory=dict)
    """what this run brought in or found, by key"""
    position: int = 0

    def bring(self, step: PlannedStep) -> Artifact:
        """Return a step's artifact; runs it, and first what it builds on, where the store does not have it."""
        if step.key in self.done:
            return self.done[step.key]
        for earlier in step.line()[:-1]:
            self.bring(earlier)
        self.position += 1
        self._tell(step, "step_started")
        found = None if self.fresh else self.store.find(step.key)
        artifact = found or self._run(step)
        self.done[step.key] = artifact
        self._tell(step, "step_finished", seconds=artifact.manifest.seconds, cached=artifact.cached)
        return artifact

    def contents(self, step: PlannedStep) -> str:
        """Digest of a step's files. What was measured belongs to it: a step that is made again has its key, but an
        engine built anew may hold other kernels."""
        return digest_of({name: one.sha256 for name, one in self.bring(step).manifest.files.items()})

    def _run(self, step: PlannedStep) -> Artifact:
        stage = get_stage(step.stage)
        with self.store.write(step.key, waiting=self._waiting(step), replace=self.fresh) as writing:
            if writing.finished:
                return writing.finished
            context = StageContext(
                input=self._input(step) or writing.output,
                source=self._source(step) or writing.output,
                output=writing.output,
                scratch=writing.scratch,
                images={role: self.images[role] for role in step.roles},
                seed=self.seed,
                profile=step.profile,
                tell=self._progress(step),
            )
            started = time.monotonic()
            result = self._call(step, context)
            return writing.commit(
                stage=step.stage,
                holds=stage.produces,
                facts=dict(result.facts),
                seconds=time.monotonic() - started,
                inputs={
                    **({"previous": step.previous.key} if step.previous else {}),
                    **{f"images.{role.value}": self.images[role].fingerprint for role in step.roles},
                    **{f"tool.{name}": version for name, version in tool_versions(stage.tools).items()},
                },
                options=step.options.model_dump(mode="json"),
                bound_to=dict(result.bound_to),
            ).replace(cached=False)

    def _call(self, step: PlannedStep, context: StageContext) -> StageResult:
        stage = get_stage(step.stage)
        try:
            if stage.isolated:
                return run_isolated(step.stage, step.options, context, self.sources, self.store.root / "images.index")
            send(step.stage, step.options, context, self.sources, self.store.root / "images.index")
            return stage.run(step.options, context)
        except MemoryError as error:
            raise StageError(f"{step.title}: out of memory; use fewer images or a smaller batch") from error

    def _input(self, step: PlannedStep) -> Path | None:
        return self.bring(step.previous).folder if step.previous else None

    def _source(self, step: PlannedStep) -> Path | None:
        """Folder of the last step of the source line, for whoever compares with the unpruned model."""
        before = [one for one in step.line()[:-1] if one.stage in SOURCE_STAGES]
        return self.bring(before[-1]).folder if before else None

    def _progress(self, step: PlannedStep) -> Callable[[str, float | None], None]:
        last = 0.0

        def tell(message: str, share: float | None) -> None:
            nonlocal last
            if time.monotonic() - last > 0.1:  # a terminal shows no more
                last = time.monotonic()
                self._tell(step, "progress", message=message, share=share)

        return tell

    def _waiting(self, step: PlannedStep) -> Callable[[Holder | None], None]:
        def tell(holder: Holder | None) -> None:
            self._tell(
                step, "waiting", message=f"{step.title} is being made by {holder or 'another process'}; waiting for it"
            )

        return tell

    def _tell(
        self,
        step: PlannedStep,
        kind: str,
        *,
        message: str = "",
        share: float | None = None,
        seconds: float | None = None,
        cached: bool = False,
    ) -> None:
        self.watch(
            Event(
                kind=kind,
                target=self.target,
                step=step.title,
                index=self.position,
                total=max(self.total, self.position),
                message=message,
                share=share,
                seconds=seconds,
                cached=cached,
            )
        )
