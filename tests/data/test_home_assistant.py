"""The shipped dataset: valid, unambiguous, made by its generator, and split without overlap."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path

import jsonschema_rs
import pytest

from pillm.core import jsonl, shipped
from pillm.core.records import FunctionCall, Record
from pillm.data.home_assistant import compose, material
from pillm.data.home_assistant.phrasing import OPTIONAL, SLOT, split_lead

SPLITS = material.SPLITS
PAIRS = tuple(combinations(SPLITS, 2))
MARKERS = ("can't", "cannot", "ne peux pas", "ne peut pas")
CLOSED = ("unit", "state")  # enums: the same words in every split by definition


@cache
def dataset(split: str) -> list[Record]:
    return jsonl.read(shipped.data_path(f"dataset:home-assistant/{split}"))


def kind(record: Record) -> str:
    return record.tags[0].removeprefix("kind:")


def said(record: Record) -> str:
    return next(message.content or "" for message in record.messages if message.role == "user")


def calls(record: Record) -> list[FunctionCall]:
    return [call.function for message in record.messages for call in message.tool_calls]


def answer(record: Record) -> str:
    return record.messages[-1].content or ""


def phrasings(split: str, locale: str) -> list[str]:
    """Every user phrasing of a split."""
    phrases = material.phrases(split, locale)
    lines = [line for group in (phrases.call, phrases.ask) for lines in group.values() for _, line in lines.lines()]
    lines += [line.strip() for topic in phrases.refuse for line in topic.user.splitlines()]
    return lines + [line.partition(" => ")[0] for line in phrases.chat.splitlines()]


def words(phrasing: str) -> frozenset[str]:
    """The words of a phrasing with its slots blanked and its optional parts there."""
    body = phrasing.rpartition(" :: ")[2]
    body = SLOT.sub(lambda match: (match["choices"] or "").replace("|", " "), body)
    return frozenset(re.findall(r"\w+", body.casefold()))


def test_the_generator_rewrites_the_shipped_files_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "pillm.data.home_assistant", str(tmp_path)], check=True)
    for name in (*SPLITS, "smoke"):
        made, there = tmp_path / f"{name}.jsonl", shipped.data_path(f"dataset:home-assistant/{name}")
        assert made.read_bytes() == there.read_bytes(), f"{name} differs: run python -m pillm.data.home_assistant"


def test_the_generator_says_in_one_line_that_its_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    command = [sys.executable, "-m", "pillm.data.home_assistant", str(tmp_path / "file" / "below")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_kinds_are_there_in_their_shares() -> None:
    unlabelled = [record for record in dataset("train") if record.is_prompt]
    assert len(unlabelled) == 70
    assert sum(record.response_schema is not None for record in unlabelled) == 20
    assert {split: len(dataset(split)) for split in SPLITS} == {"train": 2400, "development": 300, "heldout": 300}
    assert not any(record.is_prompt for split in ("development", "heldout") for record in dataset(split))
    for split, total in (("train", 2330), ("development", 300), ("heldout", 300)):
        counts = Counter(map(kind, dataset(split)))
        assert 0.70 < counts["call"] / total < 0.74
        assert 0.09 < counts["refuse"] / total < 0.11
        assert 0.09 < counts["ask"] / total < 0.11
        assert 0.04 < counts["result"] / total < 0.06


@pytest.mark.parametrize("split", SPLITS)
def test_locales_registers_tools_and_tool_lists_are_mixed(split: str) -> None:
    records = [record for record in dataset(split) if not record.is_prompt]
    locales = Counter(record.locale for record in records)
    assert locales["en-US"] / len(records) == pytest.approx(0.4, abs=0.01)
    assert locales["fr-FR"] / len(records) == pytest.approx(0.3, abs=0.01)
    for locale in material.LOCALES:
        mine = [record for record in records if record.locale == locale]
        formal = sum(record.register == "formal" for record in mine) / len(mine)
        assert 0.15 < formal < 0.4
        tools = Counter(function.name for record in mine for function in calls(record))
        assert set(tools) == set(compose.TOOLS)
        assert max(tools.values()) - min(tools.values()) <= 5
    lists = Counter(tuple(tool.function.name for tool in record.tools) for record in records)
    assert len(lists) == 6
    assert 0.5 < lists[tuple(compose.TOOLS)] / len(records) < 0.7


@pytest.mark.parametrize("split", SPLITS)
def test_every_record_has_source_licence_and_the_one_system_line(split: str) -> None:
    for record in dataset(split):
        assert record.source == "pillm home-assistant generator v1"
        assert record.license == "CC0-1.0"
        assert record.messages[0].role == "system"
        assert record.messages[0].content == material.declarations().system
        assert record.id.startswith(f"ha-{split}-")


@pytest.mark.parametrize("split", SPLITS)
def test_every_call_names_a_declared_tool_and_fits_its_schema(split: str) -> None:
    for record in dataset(split):
        schemas = {tool.function.name: tool.function.parameters for tool in record.tools}
        for function in calls(record):
            jsonschema_rs.validator_for(schemas[function.name]).validate(function.arguments)
            order = list(schemas[function.name]["properties"])
            assert list(function.arguments) == [name for name in order if name in function.arguments]


@pytest.mark.parametrize("split", SPLITS)
def test_every_string_argument_stands_in_the_users_words_without_its_article(split: str) -> None:
    for record in dataset(split):
        leads = material.answers(record.locale).leads
        for function in calls(record):
            for name, value in function.arguments.items():
                if name in CLOSED or not isinstance(value, str):
                    continue
                assert value in said(record), record.id
                assert value == value.strip()
                assert name == "text" or split_lead(value, leads)[0] == "", record.id


@pytest.mark.parametrize("split", SPLITS)
def test_every_number_stands_in_the_users_words(split: str) -> None:
    for record in dataset(split):
        number_words = material.phrases(split, record.locale).values.get("number_words", "")
        spelled = {int(number): word for word, _, number in (w.partition("=") for w in material.items(number_words))}
        for function in calls(record):
            for value in function.arguments.values():
                if isinstance(value, int):
                    assert re.search(rf"\b({value}|{spelled.get(value, value)})\b", said(record)), record.id


@pytest.mark.parametrize("split", SPLITS)
def test_brightness_comes_only_with_dim(split: str) -> None:
    lights = [f.arguments for record in dataset(split) for f in calls(record) if f.name == "set_lights"]
    assert {arguments["state"] for arguments in lights if "brightness" in arguments} == {"dim"}
    assert any(arguments["state"] == "dim" and "brightness" not in arguments for arguments in lights)


@pytest.mark.parametrize("split", SPLITS)
def test_answers_without_a_call_can_be_told_apart_by_their_marks(split: str) -> None:
    for record in dataset(split):
        if record.is_prompt or kind(record) == "call":
            continue
        marked = any(marker in answer(record) for marker in MARKERS)
        assert marked == (kind(record) == "refuse"), record.id
        assert ("?" in answer(record)) == (kind(record) == "ask"), record.id
        assert bool(calls(record)) == (kind(record) == "result"), record.id


@pytest.mark.parametrize("split", SPLITS)
def test_a_refusal_for_want_of_a_tool_declares_no_such_tool(split: str) -> None:
    wanting = [r for r in dataset(split) if kind(r) == "refuse" and str(r.meta["phrasing"]).startswith("call/")]
    assert wanting
    for record in wanting:
        assert str(record.meta["phrasing"]).split("/")[1] not in {tool.function.name for tool in record.tools}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("locale", material.LOCALES)
def test_a_phrasing_has_every_required_slot_and_an_ask_lacks_exactly_one(split: str, locale: str) -> None:
    phrases = material.phrases(split, locale)

    def slots(phrasing: str) -> set[str]:
        fixed, _, body = phrasing.rpartition(" :: ")
        names = {match["name"] for match in SLOT.finditer(OPTIONAL.sub("", body))} | {fixed.partition("=")[0]}
        return names | ({"amount", "unit"} if names & {"duration", "duration_adj"} else set())

    for name, lines in phrases.call.items():
        required = set(material.declarations().tools[name]["required"])
        for _, phrasing in lines.lines():
            assert required <= slots(phrasing), phrasing
    for key, lines in phrases.ask.items():
        name, missing = key.split(".")
        # Of the lights only the room is ever asked for: "lights at 40 %" leaves the state to the tool's default.
        required = set(material.declarations().tools[name]["required"]) - {missing, "unit", "state"}
        for _, phrasing in lines.lines():
            assert required <= slots(phrasing), phrasing
            assert missing not in slots(phrasing), phrasing


def test_there_are_enough_phrasings_and_names_to_learn_from() -> None:
    for locale in material.LOCALES:
        assert min(len(lines.lines()) for lines in material.phrases("train", locale).call.values()) >= 50
        for split in ("development", "heldout"):
            assert min(len(lines.lines()) for lines in material.phrases(split, locale).call.values()) >= 5
    real = [name for name in material.items(material.common("train").values["name"]) if "{" not in name]
    assert len(set(real)) >= 150


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_phrasing_is_near_one_of_another_split(one: str, other: str) -> None:
    """Word-set similarity (Jaccard, slots blanked) stays below 0.75 across all locales."""
    there = {line: words(line) for locale in material.LOCALES for line in phrasings(one, locale)}
    for locale in material.LOCALES:
        for line in phrasings(other, locale):
            mine = words(line)
            for near, theirs in there.items():
                assert line.casefold() != near.casefold()
                assert len(mine & theirs) < 0.75 * len(mine | theirs), f"{line!r} is near {near!r}"


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_value_is_in_the_value_lists_of_two_splits(one: str, other: str) -> None:
    """Entries that are slots alone are left out: what they stand for is in other lists, and compared there."""

    def entries(split: str) -> set[tuple[str, str]]:
        found = set()
        for locale in material.LOCALES:
            leads = material.answers(locale).leads
            lists = {**material.common(split).values, **material.phrases(split, locale).values}
            for name, text in lists.items():
                for item in material.items(text):
                    bare = split_lead(item, leads)[1].casefold()
                    if re.search(r"[^\W_]", SLOT.sub("", bare)):
                        # A number means something only in its list: 7 hours are not 7 percent.
                        found.add((name if bare.isdigit() else "", bare))
        return found

    assert entries(one) & entries(other) == set()
    mine, theirs = material.common(one), material.common(other)
    assert not set(material.items(mine.syllables)) & set(material.items(theirs.syllables))
    assert not set(material.items(mine.letters)) & set(material.items(theirs.letters))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_argument_value_and_no_users_text_is_in_two_splits(one: str, other: str) -> None:
    def values(split: str) -> set[tuple[str, object]]:
        return {
            (name if isinstance(value, int) else "", f"{value} {function.arguments.get('unit', '')}".casefold())
            for record in dataset(split)
            for function in calls(record)
            for name, value in function.arguments.items()
            if name not in CLOSED
        }

    def texts(split: str) -> set[str]:
        return {said(record).casefold() for record in dataset(split)}

    assert not values(one) & values(other)
    assert not texts(one) & texts(other)


@pytest.mark.parametrize("split", SPLITS)
def test_each_french_has_its_own_words_and_typography(split: str) -> None:
    france = re.compile(r"\b(mail|week-end|minuteur|parking)\b", re.IGNORECASE)
    quebec = re.compile(r"\b(courriel|minuterie|fin de semaine|stationnement|souper|cédule|à soir)\b", re.IGNORECASE)
    french = {locale: [r for r in dataset(split) if r.locale == locale] for locale in ("fr-FR", "fr-CA")}
    assert not [said(r) for r in french["fr-CA"] if france.search(said(r) + answer(r))]
    assert not [said(r) for r in french["fr-FR"] if quebec.search(said(r) + answer(r))]
    assert sum(bool(quebec.search(said(r))) for r in french["fr-CA"]) > len(french["fr-CA"]) / 10
    # A space stands before ? and ! in France, none in Quebec.
    assert not [said(r) for r in french["fr-FR"] if re.search(r"\w[?!]", said(r) + answer(r))]
    assert not [said(r) for r in french["fr-CA"] if re.search(r" [?!]", said(r) + answer(r))]


def test_smoke_is_a_small_part_of_train_with_every_tool_and_kind() -> None:
    smoke = dataset("smoke")
    assert len(smoke) == 40
    assert sum(record.is_prompt for record in smoke) == 3
    train = {record.id: record for record in dataset("train")}
    assert all(train[record.id] == record for record in smoke)
    assert {kind(record) for record in smoke} == {"call", "refuse", "ask", "chat", "result"}
    pairs = {(record.locale, calls(record)[0].name) for record in smoke if kind(record) == "call"}
    assert pairs == {(locale, name) for locale in material.LOCALES for name in compose.TOOLS}
