"""How events, results and failures look: bars on a terminal, plain lines elsewhere, or JSON lines.

stdout is for results (and, with --json, for events); stderr is for people.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pillm.core.amounts import duration, figure, share
from pillm.core.events import (
    Event,
    Failed,
    Finished,
    Found,
    Log,
    Made,
    Metric,
    Output,
    Progress,
    StageEnded,
    StageStarted,
    encode,
)
from pillm.core.findings import Finding

if TYPE_CHECKING:  # rich takes long to import, and plain or JSON output does without it
    from pillm.cli.bars import Bars

_PLAIN_EVERY_SECONDS = 5.0
_FINDINGS_SHOWN = 30


class Screen:
    """Where everything that a command says goes; `emit` is what stages get."""

    def __init__(self, *, json: bool = False, verbose: bool = False) -> None:
        self.json, self.verbose = json, verbose
        self.document = False
        """Whether stdout is for one JSON object alone, where it is for JSON at all."""
        self._out = sys.stdout
        self._stage = ""
        self._told: dict[str, float] = {}
        self._shown: set[Finding] = set()
        self._bars: Bars | None = None

    def emit(self, event: Event) -> None:
        """Show an event."""
        if self.json:
            if not self.document or isinstance(event, Failed):
                self._write(encode(event).decode())
            return
        match event:
            case Progress():
                self._progress(event)
            case Metric() if self.verbose:
                step = f" at step {event.step}" if event.step is not None else ""
                self.say(f"{event.name} = {figure(event.value)} {event.unit}".rstrip() + step)
            case Log() if self.verbose or event.level != "debug":
                self.say(event.message if event.level in ("debug", "info") else f"{event.level}: {event.message}")
            case Found():
                self.findings([event.finding])
            case Output():
                self.result(event.line)
            case Made() if self.verbose:
                self.say(f"made {event.artifact.path}")
            case StageStarted():
                self._stage = ""
                self.say(f"== {event.stage}")
                if self.verbose:
                    self.say(event.command)
                self._stage = event.stage
            case StageEnded():
                self._stage = ""
                self._clear()
                words = {"ran": "done", "cached": "unchanged, taken from the last run"}.get(event.status, event.status)
                self.say(f"== {event.stage}: {words} ({duration(event.seconds)})")
            case _:
                pass

    def say(self, line: str) -> None:
        """A line for a person, on stderr."""
        prefix = f"{self._stage}: " if self._stage and not self._bars else ""
        if self._bars:
            self._bars.line(line)
        else:
            sys.stderr.write(f"{prefix}{line}\n")
            sys.stderr.flush()

    def result(self, line: str = "") -> None:
        """A line of the command's result, on stdout."""
        self._clear()
        self._write(line)

    def findings(self, found: list[Finding] | tuple[Finding, ...]) -> None:
        """Findings that were not shown yet; beyond a screenful they are counted."""
        fresh = [finding for finding in found if finding not in self._shown]
        for finding in fresh[:_FINDINGS_SHOWN]:
            self._shown.add(finding)
            self.say(str(finding))
        if len(fresh) > _FINDINGS_SHOWN:
            self.say(f"... and {len(fresh) - _FINDINGS_SHOWN} more like these")

    def finish(self, metrics: dict[str, Any], document: object = None) -> None:
        """The command ended well."""
        self._clear()
        if self.json and self.document:
            import msgspec

            self._write(msgspec.json.encode(document).decode())
        elif self.json:
            self.emit(Finished(metrics))

    def fail(self, message: str, hint: str, exit_code: int, found: tuple[Finding, ...] = ()) -> int:
        """The command ends with an error; returns its exit code."""
        self._clear()
        self._stage = ""
        if self.json:
            for finding in found:
                self.emit(Found(finding))
            self.emit(Failed(message, hint, exit_code))
            return exit_code
        self.findings(found)
        self.say(f"pillm: {message}")
        for line in hint.splitlines():
            self.say(f"    {line}")
        return exit_code

    @contextlib.contextmanager
    def results_only(self) -> Iterator[None]:
        """Keep stdout for us: whatever libraries print there while the block runs goes to stderr."""
        sys.stdout.flush()
        kept = os.dup(1)
        before, self._out = self._out, os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
        os.dup2(2, 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            self._out.close()
            self._out = before
            os.dup2(kept, 1)
            os.close(kept)

    def _write(self, line: str) -> None:
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except BrokenPipeError:
            # The reader of our stdout went away (`pillm ... | head`): stop, there is nobody to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            raise SystemExit(1) from None

    def _progress(self, event: Progress) -> None:
        if self._bars is None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from pillm.cli.bars import Bars

            self._bars = Bars()
        if self._bars:
            self._bars.update(event)
            return
        ended = event.total is not None and event.done >= event.total
        now = time.monotonic()
        # The first line comes late: what is over at once needs none.
        if now - self._told.setdefault(event.label, now) < _PLAIN_EVERY_SECONDS and not (
            ended and self._told.get(f"{event.label} told")
        ):
            return
        self._told[event.label] = self._told[f"{event.label} told"] = now
        self.say(f"{event.label}: {share(event.done, event.total, event.unit)}")

    def _clear(self) -> None:
        if self._bars:
            self._bars.close()
            self._bars = None
        self._told.clear()
