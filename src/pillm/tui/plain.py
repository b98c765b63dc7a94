"""`pillm ui --plain`: the UI as plain lines, numbered menus and questions. No cursor moves, no colours, no redraws.

For screen readers, dumb terminals and scripts: it reads lines from stdin and writes lines to stdout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.command import Command
from pillm.core.errors import PillmError, UsageError
from pillm.pipeline.pipeline_ops import launcher
from pillm.pipeline.stages import COMMANDS, STAGES, Stage
from pillm.tui import state
from pillm.tui.forms.asked import Talk, fill
from pillm.tui.home import entries
from pillm.tui.home.entries import Entry
from pillm.tui.profiles import plan
from pillm.tui.profiles.plan import WORDS, Shown, StepLine


def main(ask: Callable[[str], str] = input, tell: Callable[[str], None] | None = None) -> None:
    """Talk until the user leaves, or stdin ends."""
    talk = Talk(ask, tell or _line)
    kept = state.load()
    talk.tell("pillm. Answer with a number and Enter; an empty answer goes back. Ctrl-C leaves.")
    places: list[tuple[str, Callable[[], None]]] = [
        ("Profiles: see, change and run", lambda: _profiles(talk)),
        ("Stages and tools: forms", lambda: _forms(talk, kept)),
        ("Runs: how they stand, stop, resume", lambda: _runs(talk)),
        ("Datasets", lambda: _entries(talk, kept, "Datasets", entries.datasets)),
        ("Boards", lambda: _entries(talk, kept, "Boards", entries.boards)),
    ]
    try:
        while (place := menu(talk, "Home", [title for title, _ in places], leave="quit")) is not None:
            _guarded(talk, places[place][1])
    except (EOFError, KeyboardInterrupt):
        talk.tell("")
    state.save(kept)


def menu(talk: Talk, title: str, items: Sequence[str], leave: str = "go back") -> int | None:
    """A numbered list and a question; None for an empty answer."""
    talk.tell(f"{title}:")
    for place, item in enumerate(items, 1):
        talk.tell(f"  {place} {item}")
    while True:
        answer = talk.ask(f"Number, or empty to {leave}: ").strip()
        if not answer:
            return None
        if answer.isdecimal() and 0 < int(answer) <= len(items):
            return int(answer) - 1
        talk.tell(f"{answer}: a number from 1 to {len(items)}" if items else "there is nothing to choose from")


def _line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _guarded(talk: Talk, do: Callable[[], Any]) -> None:
    """Say what went wrong, and go on."""
    try:
        do()
    except (PillmError, OSError) as error:
        _told(talk, error)


def _told(talk: Talk, error: Exception) -> None:
    for found in getattr(error, "findings", ()):
        talk.tell(str(found))
    talk.tell(f"error: {error}")
    if hint := getattr(error, "hint", ""):
        talk.tell(f"  {hint}")


def _words(entry: Entry) -> str:
    return f"{entry.name}: {entry.about}" if entry.about else entry.name


def _forms(talk: Talk, kept: state.State) -> None:
    known = entries.commands()
    while (place := menu(talk, "Stages and tools", [_words(entry) for entry in known])) is not None:
        stage = COMMANDS[known[place].key]
        _guarded(talk, lambda stage=stage: form(talk, stage, kept))


def form(talk: Talk, stage: Stage, kept: state.State, values: dict[str, Any] | None = None) -> None:
    """The form of a stage or tool, and what is done with it."""
    words = "-".join(stage.words)
    now = {**kept.forms.get(words, {}), **(values or {})}
    while True:
        action, checked = fill(talk, stage, now)
        kept.forms[words] = dict(now)
        if action == "back" or checked.command is None:
            return
        run(talk, checked.command, dry=action == "dry")


def run(talk: Talk, command: Command, *, dry: bool = False) -> None:
    """Run a command here, its lines as they come; Ctrl-C stops it and comes back."""
    if dry:
        command = msgspec.structs.replace(command, argv=(*command.argv, "--dry-run"))
    talk.tell(f"$ {command}")
    asked = launcher(command)
    # TERM=dumb makes bars into lines.
    env = {**os.environ, **asked.env, "TERM": "dumb"}
    with subprocess.Popen(asked.argv, env=env, cwd=asked.cwd) as child:
        while child.poll() is None:
            try:
                child.wait()
            except KeyboardInterrupt:
                talk.tell("stopping")
    talk.tell("done" if child.returncode == 0 else f"ended with exit code {child.returncode}")


def _entries(talk: Talk, kept: state.State, title: str, read: Callable[[], list[Entry]]) -> None:
    found = read()
    while (place := menu(talk, title, [_words(entry) for entry in found])) is not None:
        entry = found[place]
        for line in entries.facts(entry.key) if entry.kind == "board" else []:
            talk.tell(line)
        taking = entries.taking(entry.kind)
        chosen = menu(talk, f"Use {entry.name} in", [f"{' '.join(s.words)}: {s.summary}" for s, _ in taking])
        if chosen is not None:
            stage, field = taking[chosen]
            is_list = stage.options.model_fields[field].annotation is not Path and entry.kind == "dataset"
            form(talk, stage, kept, {field: [entry.key] if is_list else entry.key})


def _profiles(talk: Talk) -> None:
    found = entries.profiles()
    while (place := menu(talk, "Profiles", [_words(entry) for entry in found])) is not None:
        _guarded(talk, lambda place=place: profile(talk, Path(found[place].key)))


def profile(talk: Talk, path: Path) -> None:
    """A profile: its steps with what a run would do, and what can be done."""
    while True:
        # Anew each time: after a change was saved elsewhere, it is that file which is changed further.
        shown = plan.read(path)
        for finding in shown.findings:
            talk.tell(str(finding))
        if shown.findings:
            return
        shown = plan.judged(shown)
        talk.tell(f"Profile {shown.name}: {shown.description} ({path})")
        for place, step in enumerate(shown.steps, 1):
            reads = f", reads {' and '.join(step.needs)}" if step.needs else ""
            talk.tell(f"  {place} {step.id}: {step.about}; {WORDS[step.action]}{reads}")
        talk.tell(f"Command: {plan.run_command(shown)}")
        word = talk.ask("What now? (run, stop, a number to change a stage's options, or back): ").strip()
        if word in ("", "back"):
            return
        if word == "run":
            run(talk, plan.run_command(shown))
        elif word == "stop":
            from pillm.tui.runs.start import stop

            talk.tell("asked to stop" if stop(shown.run_dir) else "nothing is running")
        elif word.isdecimal() and 0 < int(word) <= len(shown.steps):
            step = shown.steps[int(word) - 1]
            values = plan.values_in(shown.text, step.id)
            action, _ = fill(talk, STAGES[step.stage], values, step=True)
            if action == "keep":
                path = _saved(talk, shown, step, values)


def _saved(talk: Talk, shown: Shown, step: StepLine, values: dict[str, Any]) -> Path:
    """Save a step with other values, asking for a file's name until one is taken. Returns the profile's file then."""
    try:
        text = plan.changed(shown.text, step.id, STAGES[step.stage], values)
    except UsageError as error:
        _told(talk, error)
        return shown.path
    target = plan.target(shown.path)
    while True:
        word = talk.ask(f"Save as (empty: {target}; back: drop the change): ").strip()
        if word == "back":
            talk.tell("the change is dropped")
            return shown.path
        try:
            path = plan.save(shown, text, Path(word or target).expanduser())
        except (PillmError, OSError) as error:
            _told(talk, error)
        else:
            talk.tell(f"saved: {path}")
            return path


def _runs(talk: Talk) -> None:
    from pillm.tui.runs.find import ago, runs

    while True:
        found = runs()
        lines = [f"{item.name}: {item.state} {item.detail}, {ago(item.changed)}" for item in found]
        place = menu(talk, "Runs" if found else "There are no runs in ./runs", lines)
        if place is None:
            return
        _guarded(talk, lambda run_dir=found[place].run_dir: _run(talk, run_dir))


def _run(talk: Talk, run_dir: Path) -> None:
    from pillm.pipeline import manifest
    from pillm.tui.runs.find import state_of
    from pillm.tui.runs.start import resume, stop

    standing, detail = state_of(run_dir)
    talk.tell(f"{run_dir}: {standing} {detail}".rstrip())
    try:
        for record in manifest.read(run_dir).stages:
            talk.tell(f"  {record.id}: {record.seconds:.1f} s")
    except PillmError:
        pass
    verb = "stop" if standing == "running" else "resume"
    if talk.ask(f"{verb}? (yes, or empty to go back): ").strip() == "yes":
        if verb == "stop":
            stop(run_dir)
        else:
            resume(run_dir)
        talk.tell(f"asked to {verb}")
