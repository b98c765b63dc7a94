"""Stages that are quick and real enough to run, kill and resume: a table of their own, in real processes.

python fake_stages.py STAGE --flags        as the command line would with this table
python fake_stages.py run PROFILE RUN_DIR  a whole run
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pillm.core import errors
from pillm.core.artifacts import write_atomic
from pillm.core.command import Command
from pillm.core.events import Log, Progress
from pillm.core.findings import Finding
from pillm.core.options import InputFile, NameOrFile, NoEffect, StageOptions
from pillm.core.stage import Result
from pillm.pipeline.stages import Stage


class CopyOptions(StageOptions):
    """Copy lines one by one; a journal of those that are done makes it go on where it was."""

    data: Annotated[Path, InputFile()] = Field(description="Lines to copy")
    prefix: str = Field("", description="What to put before each line")
    style: Annotated[str, NameOrFile()] = Field("plain", description="plain, or a file")
    pause: Annotated[float, NoEffect()] = Field(0.0, ge=0, description="Wait after each line")
    fail: Annotated[Literal["", "findings", "missing", "bug", "kill", "mute", "extra"], NoEffect()] = Field(
        "", description="How to fail"
    )


class JoinOptions(StageOptions):
    """Put two files one after the other."""

    left: Annotated[Path, InputFile()] = Field(description="First file")
    right: Annotated[Path | None, InputFile()] = Field(None, description="Second file")
    sizes: tuple[int, ...] = Field((1,), description="Numbers of no importance")
    loud: bool = Field(False, description="In capitals")
    cap: int | None = Field(5, ge=1, description="Longest line")

    @model_validator(mode="after")
    def _not_both(self) -> JoinOptions:
        if self.sizes == (6, 6, 6):
            raise ValueError("sizes of 6, 6 and 6 do not go with anything")
        return self


def copy(options: CopyOptions, emit) -> Result:
    _fail(options.fail)
    options.out.mkdir(parents=True, exist_ok=True)
    journal = options.out / "journal.txt"
    text = journal.read_text() if journal.exists() else ""
    # A line that a full disk or a kill cut short is not done.
    journal.write_text(text := text[: text.rfind("\n") + 1])
    done = text.splitlines()
    emit(Log(f"{len(done)} lines were done before", "debug"))
    lines = options.data.read_text().splitlines()
    with journal.open("a") as file:
        for index, line in enumerate(lines):
            if index >= len(done):
                file.write(f"{options.prefix}{line}\n")
                file.flush()
                time.sleep(options.pause)
            emit(Progress("lines", index + 1, len(lines), "lines"))
    write_atomic(options.out / "copied.txt", journal.read_text())
    return Result({"copied": options.out / "copied.txt"}, {"lines": len(lines)})


def join(options: JoinOptions, emit) -> Result:
    sys.stdout.write("a library that talks on stdout\n")
    text = options.left.read_text() + (options.right.read_text() if options.right else "")
    write_atomic(options.out / "joined.txt", text.upper() if options.loud else text)
    return Result({"joined": options.out / "joined.txt"}, {"bytes": len(text)})


def _fail(how: str) -> None:
    if how == "findings":
        found = [Finding(file="x.jsonl", line=3, code="bad", message="this line is bad")]
        raise errors.FindingsError("x.jsonl: 1 bad line", found, "mend it")
    if how == "missing":
        raise errors.MissingError("no such tool", "get it")
    if how == "bug":
        raise ZeroDivisionError("nobody thought of this")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "mute":
        os._exit(9)
    if how == "extra":
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


TABLE = {
    stage.name: stage
    for stage in (
        Stage("copy", "Copy lines", "fake_stages:CopyOptions", "fake_stages:copy", {"copied": "copied.txt"}),
        Stage("join", "Join two files", "fake_stages:JoinOptions", "fake_stages:join",
              {"joined": "joined.txt", "rest": "rest.txt"}),
    )
}  # fmt: skip


def launch(command: Command) -> Command:
    return Command((sys.executable, __file__, *command.argv[1:]))


def run(profile: Path, run_dir: Path, emit, **more):
    from pillm.pipeline import engine
    from pillm.pipeline.profile import load

    sets = more.pop("sets", ())
    return engine.run(load(profile, sets, TABLE), run_dir, emit, launch=launch, **more)


def whole_run() -> None:
    from pillm.cli.failures import tell
    from pillm.cli.screen import Screen

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = Screen()
    try:
        run(Path(sys.argv[2]), Path(sys.argv[3]), screen.emit)
    except BaseException as error:
        raise SystemExit(tell(error, sys.argv[1:], screen)) from error


if __name__ == "__main__":
    import fake_stages

    if sys.argv[1] == "run":
        fake_stages.whole_run()
    else:
        from pillm.cli.main import main

        raise SystemExit(main(table=fake_stages.TABLE))
