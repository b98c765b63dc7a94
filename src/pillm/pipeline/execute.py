"""One step of a run in a process of its own, from an empty (or half-done) folder to its record."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.artifacts import PARTIAL, clear_partials, write_atomic
from pillm.core.command import Command
from pillm.core.errors import (
    EXIT_INTERRUPTED,
    MissingError,
    NetworkError,
    PillmError,
    ResourceError,
    UsageError,
    writing,
)
from pillm.core.events import Emit, Failed, Finished, Log, StageEnded, StageStarted, decode
from pillm.core.options import StageOptions
from pillm.core.process import child
from pillm.core.stage import MetricValue
from pillm.models.redact import redact
from pillm.pipeline import cache, manifest
from pillm.pipeline.licenses import license_of
from pillm.pipeline.manifest import StageRecord
from pillm.pipeline.memory import PeakMemory
from pillm.pipeline.pipeline_ops import build
from pillm.pipeline.profile import Step

LOG = "stage.log"
Launch = Callable[[Command], Command]

_KINDS: dict[int, type[PillmError]] = {2: UsageError, 3: MissingError, 4: NetworkError, 5: ResourceError}


def prepare(out: Path, key: str, *, fresh: bool) -> None:
    """Make the stage's folder ready: empty, unless it holds unfinished work on the very same inputs.

    Raises UsageError if the folder holds something that no run put there.
    """
    with writing(out):
        ours = (out / cache.STARTED).is_file() or (out / cache.RECORD).is_file()
        if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: is there already, and no run made it", "move it, or choose another --run-dir")
        if ours and (fresh or (out / cache.RECORD).exists() or started_with(out) != key):
            # Moved away in one step: half of a folder must never look like unfinished work.
            away = Path(tempfile.mkdtemp(prefix=PARTIAL, suffix=out.name, dir=out.parent))
            out.rename(away / out.name)
            shutil.rmtree(away)
        out.mkdir(parents=True, exist_ok=True)
        clear_partials(out)
        write_atomic(out / cache.STARTED, key + "\n")


def started_with(out: Path) -> str | None:
    """The key of the work in a stage's folder; None if there is none."""
    try:
        return (out / cache.STARTED).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def execute(step: Step, options: StageOptions, key: cache.Key, tell: Emit, launch: Launch) -> StageRecord:
    """Run the stage, hash what it made, and leave its record. Raises the stage's error, with its exit code."""
    command = build(step.stage, options)
    shown = redact(str(command))
    tell(StageStarted(step.id, shown))
    started, clock = manifest.now(), time.monotonic()
    try:
        metrics, peak = _watch(step, command, options.out / LOG, tell, launch)
        outputs = {
            name: cache.described(path, path.relative_to(options.out.parent).as_posix(), tell)
            for name, path in step.stage.output_paths(options).items()
            if path.exists()
        }
        if not outputs:
            raise PillmError(f"{step.id}: the stage ended but made none of its outputs", f"see {options.out / LOG}")
    except BaseException as error:
        status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        tell(StageEnded(step.id, status, round(time.monotonic() - clock, 3)))
        raise
    seconds = round(time.monotonic() - clock, 3)
    record = StageRecord(
        id=step.id,
        stage=step.stage.name,
        key=key.key,
        command=shown,
        options=_shown(options.model_dump(mode="json")),
        inputs=key.inputs,
        # Only now: before the stage ran, the model may not have been on this machine.
        models={
            name: msgspec.structs.replace(used, license=license_of(getattr(options, name)))
            for name, used in key.models.items()
        },
        outputs=outputs,
        metrics=metrics,
        started=started,
        ended=manifest.now(),
        seconds=seconds,
        peak_memory_bytes=peak,
    )
    with writing(options.out):
        cache.write_record(options.out, record)
    tell(StageEnded(step.id, "ran", seconds))
    return record


def _watch(step: Step, command: Command, log: Path, tell: Emit, launch: Launch) -> tuple[dict[str, MetricValue], int]:
    """Run the command with its events passed on; returns its metrics and its peak memory in bytes."""
    asked = launch(msgspec.structs.replace(command, argv=(*command.argv, "--json")))
    finished, failed = None, None
    with writing(log), log.open("ab") as sink, child(asked, stderr=sink) as process, PeakMemory(process.pid) as memory:
        if process.stdout is None:
            raise AssertionError("the child was started with a pipe")
        for line in process.stdout:
            try:
                event = decode(line)
            except msgspec.MsgspecError:
                event = Log(line.decode("utf-8", "replace").rstrip(), "debug")
            if isinstance(event, Failed):
                failed = event
            elif isinstance(event, Finished):
                finished = event
            tell(event)
        code = process.wait()
    if code == 0 and finished:
        return dict(finished.metrics), memory.bytes
    raise _error(step.id, failed, code, log)


def _error(step: str, failed: Failed | None, code: int, log: Path) -> PillmError:
    if failed:
        error = _KINDS.get(failed.exit_code, PillmError)(f"{step}: {failed.message}", failed.hint)
        error.exit_code = failed.exit_code
        return error
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = "if the machine had no memory left, give the stage less to do at once; then run the same again"
            return PillmError(f"{step}: the stage was killed ({name})", f"{hint}. Its log: {log}")
    if code == EXIT_INTERRUPTED:
        return PillmError(f"{step}: the stage was stopped from outside", "run the same command again to go on")
    return PillmError(f"{step}: the stage ended with exit code {code} and did not say why", f"see {log}")


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shown(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return redact(value) if isinstance(value, str) else value
