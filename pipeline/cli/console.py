"""How the command line shows a build: a live display in a terminal, plain lines in a log, JSON lines for programs."""

import json
import shutil
import sys
import textwrap
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.events import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


def make_watcher(*, as_json: bool, console: "Console") -> "JsonLines | PlainLines | LiveDisplay":
    """Pick the display that fits where the output goes."""
    if as_json:
        return JsonLines()
    return LiveDisplay(console) if console.is_terminal else PlainLines()


class JsonLines:
    """One JSON object per event on stdout."""

    def __call__(self, event: Event) -> None:
        """Print one event."""
        told = {name: value for name, value in asdict(event).items() if value not in (None, "", 0) or name == "cached"}
        print(json.dumps(told), flush=True)  # noqa: T201

    def __enter__(self) -> "JsonLines":
        """Nothing to set up."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to clean up."""


class PlainLines:
    """A line when a step starts and ends, and progress at most every ten seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        """Print one event where it is worth a line."""
        if event.kind == "progress" and time.monotonic() - self._last < 10:
            return
        text = _line(event, shutil.get_terminal_size().columns)
        if text:
            self._last = time.monotonic()
            stream = sys.stderr if event.kind == "warning" else sys.stdout
            print(text, file=stream, flush=True)

    def __enter__(self) -> "PlainLines":
        """Nothing to set up."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to clean up."""


class LiveDisplay:
    """Finished steps as lines, the running one with a bar and the time it will still take."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "LiveDisplay":
        """Start the live part of the screen."""
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[place]}"),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
            BarColumn(bar_width=12),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the screen back."""
        if self._progress:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        from rich.markup import escape

        assert self._progress is not None
        place = f"{event.index}/{event.total}" if event.total else ""
        if event.kind in ("step_started", "progress", "waiting"):
            text = escape(event.step + (f": {event.message}" if event.message else ""))
            if self._task is None or event.kind == "step_started":
                self._drop()
                self._task = self._progress.add_task(text, total=None, place=place)
            if event.share is None:
                self._progress.update(self._task, description=text, place=place)
            else:
                self._progress.update(self._task, description=text, total=1.0, completed=event.share, place=place)
            return
        if event.kind == "step_finished":
            self._drop()
        text = _line(event, self._console.width)
        if text:
            style = {"warning": "yellow"}.get(event.kind, "dim" if event.cached else "")
            self._console.print(text, style=style or None, markup=False, highlight=False)

    def _drop(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def shorten_right(text: str, columns: int) -> str:
    """Cut what does not fit on a line."""
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def wrapped(text: str, columns: int) -> str:
    """Break a text that does not fit on a line between its words; what follows is indented."""
    return textwrap.fill(text, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _line(event: Event, columns: int) -> str:
    place = f"[{event.index:>2}/{event.total}] " if event.total else ""
    if event.kind == "step_finished":
        took = "reused" if event.cached else f"{event.seconds:.1f} s"
        return f"{place}{event.step:<46.46} {took:>9}" + (f"  {event.message}" if event.message else "")
    if event.kind == "progress":
        done = f" {event.share:.0%}" if event.share is not None else ""
        return shorten_right(f"{place}{event.step}{done} {event.message}".rstrip(), columns)
    if event.kind in ("note", "warning", "waiting"):
        return wrapped(f"{'warning: ' if event.kind == 'warning' else ''}{event.message}", columns)
    return ""
