"""Every stage of the quickstart from its form in a real terminal, against the command line.

    python benchmarks/tui_quickstart.py DIR [--profile quickstart] [--stages label,card,...]

In DIR/line each stage's command, as the builder writes it, is run from a shell's place; in DIR/form the same stages
are filled into forms: tmux shows `pillm ui`, keys are sent, and the screen is read. For each stage it says whether the
command on the screen is the one of the command line, and whether each artifact has the same hash. Stages that measure
(evaluate, bench) give other figures each time: only their commands are compared. A quickstart each; what
is there already on the command line's side is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "tui"))

from terminal import Terminal  # pyright: ignore[reportMissingImports]

from pillm.core.artifacts import artifact_of
from pillm.core.command import Command
from pillm.core.options import Options
from pillm.pipeline import profile
from pillm.pipeline.pipeline_ops import build
from pillm.pipeline.profiles import find
from pillm.pipeline.stages import Stage
from pillm.tui.forms.fields import Field, fields, matches

MEASURES = ("evaluate", "bench")
SIZE = (220, 60)
ENDS = ("done", "failed", "stopped", "died")
"""How the first line of a run's screen tells that it is over."""
LONGEST = 7200.0
"""Seconds for a stage; a form that is not complete does not start one at all."""
PATIENCE = 4
"""Seconds for a whole form to be drawn, on a machine with other work."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", default="quickstart")
    parser.add_argument("--stages", default="", help="only these steps, by comma")
    given = parser.parse_args()
    plan = profile.load(find(given.profile))
    steps = [(step.id, step.stage, options) for step, options in plan.resolved(Path("made"))]
    wanted = given.stages.split(",") if given.stages else [name for name, _, _ in steps]
    line, form = given.folder.resolve() / "line", given.folder.resolve() / "form"
    for place in (line, form):
        place.mkdir(parents=True, exist_ok=True)
    bad = 0
    for name, stage, options in steps:
        if name not in wanted:
            continue
        command = build(stage, options)
        if stage.name not in MEASURES:
            by_line(stage, options, command, line)
        seen, seconds = by_form(stage, options, form)
        same = squeezed(seen) == squeezed(str(command))
        bad += not same
        print(
            f"{name}: {seconds:.0f} s from its form; the command on the screen is {'the same' if same else 'ANOTHER'}"
        )
        if not same:
            print(f"  line: {command}\n  form: {seen}")
        for output, path in stage.output_paths(options).items():
            bad += not compared(stage, output, form / path, line / path)
    sys.exit(bool(bad))


def compared(stage: Stage, output: str, form: Path, line: Path) -> bool:
    """Whether an output of a form is that of the command line; says so."""
    if stage.name in MEASURES:
        print(f"  {output}: {'is there' if form.exists() else 'MISSING'}, a measurement", flush=True)
        return form.exists()
    ours, theirs = artifact_of(form).sha256, artifact_of(line).sha256
    if ours != theirs and form.suffix == ".json":
        # Some reports tell how long it took.
        same = [{k: v for k, v in json.loads(path.read_bytes()).items() if k != "seconds"} for path in (form, line)]
        words = "the same but for the seconds it took" if same[0] == same[1] else f"ANOTHER: {theirs[:16]}"
        print(f"  {output}: {words}", flush=True)
        return same[0] == same[1]
    print(f"  {output}: {ours[:16]} {'the same' if ours == theirs else f'ANOTHER: {theirs[:16]}'}", flush=True)
    return ours == theirs


def by_line(stage: Stage, options: Options, command: Command, place: Path) -> None:
    """Run it as a shell would, unless its outputs are there."""
    if not all((place / path).exists() for path in stage.output_paths(options).values()):
        subprocess.run([sys.executable, "-m", *command.argv], cwd=place, check=True, stdout=subprocess.DEVNULL)


def by_form(stage: Stage, options: Options, place: Path) -> tuple[str, float]:
    """Fill in the form and run it. Returns the command that stood on the screen, and seconds until the run was done."""
    terminal = Terminal(["ui"], place, {}, SIZE)
    try:
        terminal.wait("Profiles")
        terminal.keys("C-p")
        time.sleep(1)
        terminal.text(f"Form: {' '.join(stage.words)}")
        time.sleep(1.5)
        terminal.keys("Enter")
        terminal.wait("$ pillm")
        # What the last form of this stage had is not wanted here.
        terminal.keys("F2")
        time.sleep(PATIENCE)
        known = fields(stage)
        for field in known:
            value = getattr(options, field.name)
            if field.name in options.model_fields_set and (field.required or value != field.default):
                fill(terminal, field, value, known)
        time.sleep(1)
        seen = shown(terminal.screen())
        began = time.monotonic()
        terminal.keys("F5")
        while not any(f" {state}" in terminal.screen().splitlines()[0] for state in ENDS):
            if time.monotonic() - began > LONGEST:
                raise ValueError(f"{stage.name} did not come to an end")
            time.sleep(1)
        return seen, time.monotonic() - began
    except (AssertionError, ValueError):
        print(terminal.screen())
        raise
    finally:
        terminal.close()


def fill(terminal: Terminal, field: Field, value: object, known: list[Field]) -> None:
    """Find the field by the filter, and type its value."""
    # What stands in the filter is selected with that, so the next words replace it.
    terminal.keys("F3")
    terminal.text(words_for(field, known))
    time.sleep(0.5)
    terminal.keys("Enter")
    time.sleep(0.5)
    if field.kind == "switch":
        terminal.keys("Enter")
    elif field.kind == "choice":
        above = 0 if field.required else 1 + (field.optional and field.default is not None)
        at = [choice.value for choice in field.choices].index(str(value))
        terminal.keys("Enter")
        time.sleep(0.3)
        terminal.keys(*["Down"] * (at + above), "Enter")
    elif field.kind == "list":
        assert isinstance(value, (list, tuple))
        for number, item in enumerate(value):
            if number:
                terminal.keys("Enter")
            terminal.text(str(item))
    else:
        terminal.text(str(value))
    time.sleep(0.2)


def words_for(field: Field, known: list[Field]) -> str:
    """A filter whose first hit is this field."""
    tries = [field.flag, *(f"{field.flag} {word}" for word in field.about.split())]
    return next(words for words in tries if next(f for f in known if matches(f, words)) is field)


def shown(screen: str) -> str:
    """The command at the bottom of a form, over all its lines."""
    lines = screen.splitlines()
    start = max(number for number, line in enumerate(lines) if line.lstrip().startswith("$ pillm"))
    return " ".join(line.strip() for line in lines[start:-1] if line.strip()).removeprefix("$ ")


def squeezed(text: str) -> str:
    """A command without white space: the screen breaks its lines anywhere."""
    return "".join(text.split())


if __name__ == "__main__":
    main()
