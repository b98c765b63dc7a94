"""What counts as right: names and arguments as JSON, words that decline or ask, and broken answers."""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillm.core import jsonl, records
from pillm.core.errors import FindingsError, UsageError
from pillm.core.records import Function, FunctionCall, Message, Record, Tool, ToolCall
from pillm.evaluate.judge import canonical, cases, evenly, judge
from pillm.evaluate.report import Call, Said

TIMER = Tool(
    Function(
        "set_timer",
        "Start a timer",
        {
            "type": "object",
            "properties": {"minutes": {"type": "integer"}, "label": {"type": "string"}},
            "required": ["minutes"],
            "additionalProperties": False,
        },
    )
)
PATH = Path("heldout.jsonl")


def call(name: str = "set_timer", **arguments: object) -> Message:
    return Message("assistant", tool_calls=(ToolCall(FunctionCall(name, arguments)),))


def record(*turns: Message, tags: tuple[str, ...] = (), name: str = "r1") -> Record:
    return Record(name, (Message("user", "five minutes please"), *turns), (TIMER,), locale="en-US", tags=tags)


def one(item: Record):
    (case,) = cases([item], PATH)
    return case


def verdict(item: Record, got: Said):
    return judge(one(item), got)


CALLED = record(call(minutes=5, label="thé"), tags=("kind:call", "tool:set_timer"))


def got(arguments: object, name: str = "set_timer") -> Said:
    return Said(calls=(Call(name, arguments),))


@pytest.mark.parametrize(
    "arguments",
    [
        {"minutes": 5, "label": "thé"},
        {"label": "thé", "minutes": 5},
        {"minutes": 5.0, "label": unicodedata.normalize("NFD", "thé")},
    ],
    ids=["as expected", "other order", "5.0 and decomposed"],
)
def test_equal_json_is_an_exact_match(arguments):
    answer = verdict(CALLED, got(arguments))
    assert answer.right
    assert answer.reason == ""
    assert answer.name_right
    assert answer.tool == "set_timer"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (got({"minutes": 6, "label": "thé"}), "the argument minutes differs"),
        (got({"minutes": 5}), "the argument label is missing"),
        (got({"minutes": 5, "label": "thé", "x": 1}), "the argument x is too many"),
        (got({"minutes": True, "label": "thé"}), "the argument minutes differs"),
        (got({"minutes": "5", "label": "thé"}), "the argument minutes differs"),
        (got({}, "get_weather"), "called get_weather, expected set_timer"),
        (got('{"minutes": 5'), "the arguments are not JSON"),
        (Said("Sure, I set it."), "called nothing"),
        (Said(calls=got({"minutes": 5, "label": "thé"}).calls * 2), "2 calls, expected 1"),
        (Said("", got({"minutes": 5, "label": "thé"}).calls, "cut", "too long"), "too long"),
    ],
)
def test_anything_else_is_wrong_and_says_why(said, reason):
    answer = verdict(CALLED, said)
    assert not answer.right
    assert answer.reason == reason


def test_the_right_tool_with_wrong_arguments_still_counts_as_the_right_tool():
    assert verdict(CALLED, got({"minutes": 6})).name_right is True
    assert verdict(CALLED, got({}, "get_weather")).name_right is False
    assert verdict(CALLED, Said("words")).name_right is False
    assert verdict(record(Message("assistant", "hello"), tags=("kind:chat",)), Said("hi")).name_right is None


@pytest.mark.parametrize(
    ("said", "valid"),
    [
        (got({"minutes": 7}), True),
        (got({"minutes": "7"}), False),
        (got({"minutes": 7, "colour": "red"}), False),
        (got({"minutes": 7}, "no_such_tool"), False),
        (got("{"), False),
        (Said("words"), None),
        (Said(failure="unparsed", detail="x"), False),
        (Said('<tool_call>\n{"name": "set_', failure="cut"), False),
        (Said("a long story", failure="cut"), None),
        (Said(failure="too-long"), None),
    ],
)
def test_json_validity_is_judged_only_where_a_call_was_begun(said, valid):
    assert verdict(CALLED, said).json_valid is valid


REFUSED = record(Message("assistant", "I can't do that."), tags=("kind:refuse",))
ASKED = record(Message("assistant", "How long?"), tags=("kind:ask",))


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("I can't open the garage.", True),
        ("I can’t open the garage.", True),
        ("I CANNOT do it", True),
        ("Je ne peux pas ouvrir le garage.", True),
        ("L'assistant ne peut pas l'ouvrir.", True),
        ("Of course!", False),
        ("I can't, shall I note it?", False),
        ("", False),
    ],
)
def test_a_refusal_declines_without_asking(words, right):
    assert verdict(REFUSED, Said(words)).right is right


def test_a_refusal_that_calls_a_tool_is_wrong():
    answer = verdict(REFUSED, Said("I can't", (Call("set_timer", {"minutes": 1}),)))
    assert not answer.right
    assert "set_timer" in answer.reason


@pytest.mark.parametrize(("words", "right"), [("Pour combien de minutes ?", True), ("Done.", False)])
def test_asking_back_needs_a_question(words, right):
    assert verdict(ASKED, Said(words)).right is right


def test_a_result_dialogue_is_judged_at_its_call_and_others_at_their_last_turn():
    result = one(record(call(minutes=5), Message("tool", "ok"), Message("assistant", "Set."), tags=("kind:result",)))
    assert [turn.role for turn in result.prompt] == ["user"]
    assert result.expected.calls == (Call("set_timer", {"minutes": 5}),)
    asked_first = record(
        Message("assistant", "How long?"), Message("user", "five"), call(minutes=5), tags=("kind:call",)
    )
    assert [turn.role for turn in one(asked_first).prompt] == ["user", "assistant", "user"]


def test_without_tags_the_turns_tell_the_kind():
    assert one(record(call(minutes=5), Message("tool", "ok"), Message("assistant", "Set."))).kind == "call"
    assert one(record(Message("assistant", "hello"))).kind == "chat"


def test_tags_that_contradict_the_turns_are_findings_with_their_lines(tmp_path):
    path = tmp_path / "heldout.jsonl"
    good, bad, odd = (
        record(call(minutes=1), tags=("kind:call",), name="good"),
        record(Message("assistant", "words"), tags=("kind:call",), name="bad"),
        record(Message("assistant", "words"), tags=("kind:sing",), name="odd"),
    )
    path.write_bytes(b"\n".join([records.encode(good), b"", records.encode(bad), records.encode(odd)]))
    with pytest.raises(FindingsError) as error:
        cases(jsonl.read(path), path)
    assert [(finding.line, finding.file) for finding in error.value.findings] == [(3, str(path)), (4, str(path))]
    assert "bad" in error.value.findings[0].message


def test_only_prompts_is_a_usage_error():
    with pytest.raises(UsageError, match="no record has an answer"):
        cases([record()], PATH)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_canonical_is_equal_for_a_value_and_its_copy_in_other_order(value):
    def turned(item):
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(item)}
        return [turned(part) for part in item] if isinstance(item, list) else item

    assert canonical(value) == canonical(turned(value))


@given(st.lists(st.integers(), min_size=1, max_size=200), st.integers(1, 250))
def test_evenly_keeps_order_spread_and_count(items, limit):
    chosen = evenly(list(enumerate(items)), limit)
    places = [place for place, _ in chosen]
    assert len(chosen) == min(limit, len(items))
    assert places == sorted(set(places))
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1
