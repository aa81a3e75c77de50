"""Runs one stage in a process of its own: for stages that load an inference runtime, which must not meet torch.

    python -m pipeline.isolated JOB.json

Parent and child speak through the job file, progress lines (JSON) on the child's stdout, and a result file. The child
ends when its stdin closes, so that it does not outlive a parent that was killed.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.keys import ROOT
from stages.data.images import open_images
from stages.data.source import DataSource
from stages.stage import Role, StageContext, StageResult
from targets import errors
from targets.profile import TargetProfile
from targets.record import Record

PROGRESS = "@vitrim "
"""marks our lines among what libraries print"""


def run_isolated(
    stage: str, options: Record, context: StageContext, sources: Mapping[Role, DataSource], index: Path
) -> StageResult:
    """Run a stage in a fresh process. Raises what the stage raised; Ctrl-C ends the child with its children."""
    with TemporaryDirectory(prefix="vitrim-job-") as folder:
        job = Path(folder, "job.json")
        answer = Path(folder, "answer.json")
        said = Path(folder, "stderr.txt")
        job.write_text(
            json.dumps(
                {
                    "stage": stage,
                    "options": options.model_dump(mode="json"),
                    "input": str(context.input),
                    "source": str(context.source),
                    "output": str(context.output),
                    "scratch": str(context.scratch),
                    "seed": context.seed,
                    "profile": context.profile.model_dump(mode="json") if context.profile else None,
                    "images": {role.value: sources[role].model_dump(mode="json") for role in context.images},
                    "index": str(index),
                    "answer": str(answer),
                }
            )
        )
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.isolated", str(job)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(PROGRESS):
                    message, share = json.loads(line.removeprefix(PROGRESS))
                    context.tell(message, share)
            process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        if not answer.exists():
            raise errors.StageError(f"{stage}: its process ended with {_ending(process.returncode)}{_last_lines(said)}")
        told = json.loads(answer.read_text())
    if "error" in told:
        kind = getattr(errors, told["error"]["kind"], errors.StageError)
        error = (
            errors.StageError(told["error"]["message"])
            if kind in (errors.RecipeError, errors.UnknownNameError)
            else kind(told["error"]["message"])
        )
        raise error
    return StageResult(facts=told["facts"], bound_to=told["bound_to"])


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "signal 9 (killed, probably out of memory: use fewer images or a smaller batch)"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_lines(file: Path, count: int = 8) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()][-count:]
    return "; it said last:\n  " + "\n  ".join(lines) if lines else ""


def _run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    from stages.catalog import get_stage

    def tell(message: str, share: float | None) -> None:
        print(PROGRESS + json.dumps([message, share]), file=progress, flush=True)

    progress = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    stage = get_stage(job["stage"])
    options = stage.options.model_validate(job["options"])
    context = StageContext(
        input=Path(job["input"]),
        source=Path(job["source"]),
        output=Path(job["output"]),
        scratch=Path(job["scratch"]),
        images={
            Role(role): open_images(DataSource.model_validate(source), Role(role), index_cache=Path(job["index"]))
            for role, source in job["images"].items()
        },
        seed=job["seed"],
        profile=TargetProfile.model_validate(job["profile"]) if job["profile"] else None,
        tell=tell,
    )
    result = stage.run(options, context)
    return {"facts": dict(result.facts), "bound_to": dict(result.bound_to)}


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock would be held while the interpreter ends
        pass
    os._exit(1)


def main() -> None:
    """Entry of the child process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        told = _run_job(job)
    except errors.VitrimError as error:
        told = {"error": {"kind": type(error).__name__, "message": str(error)}}
    Path(job["answer"]).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
