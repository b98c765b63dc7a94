"""What makes an answer good, and how records and answers cross the wire."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillm.core.records import FunctionCall, Message, Record, Tool, ToolCall
from pillm.teach import wire
from pillm.teach.ask import Ask, Call, Reply, Sampling
from pillm.teach.judge import judge, loops, schema_errors

USER = (Message("user", "hi"),)
PARAMETERS = {
    "type": "object",
    "properties": {"minutes": {"type": "integer", "minimum": 1}, "label": {"type": "string"}},
    "required": ["minutes"],
    "additionalProperties": False,
}
TIMER = msgspec.convert({"type": "function", "function": {"name": "set_timer", "parameters": PARAMETERS}}, Tool)
PROMPT = Record("p", USER, (TIMER,))


def codes(record: Record, reply: Reply) -> list[str]:
    return [reason.code for reason in judge(record, reply)[1]]


def test_a_plain_answer_is_good_and_trimmed():
    message, reasons = judge(Record("p", USER), Reply(" Yes.\n"))
    assert (message, reasons) == (Message("assistant", "Yes."), ())


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply("half an", finish="length"), "cut-off"),
        (Reply("half", finish="content_filter"), "filtered"),
        (Reply(" \n "), "empty"),
        (Reply(calls=(Call("set_alarm", "{}"),)), "unknown-tool"),
        (Reply(calls=(Call("set_timer", "{"),)), "bad-arguments"),
        (Reply(calls=(Call("set_timer", "[1]"),)), "bad-arguments"),
        (Reply(calls=(Call("set_timer", '{"minutes": 0}'),)), "bad-arguments"),
        (Reply(calls=(Call("set_timer", '{"minutes": 5, "tone": "x"}'),)), "bad-arguments"),
        (Reply(calls=(Call("", "{nonsense"),)), "bad-call"),
    ],
)
def test_a_bad_answer_is_named_by_its_fault(reply, code):
    assert codes(PROMPT, reply) == [code]


def test_a_call_keeps_its_arguments_as_an_object_beside_the_text():
    message, reasons = judge(PROMPT, Reply("Sure.", (Call("set_timer", '{"minutes": 5}'),), "tool_calls"))
    assert not reasons
    assert message == Message("assistant", "Sure.", (ToolCall(FunctionCall("set_timer", {"minutes": 5})),))


def test_a_reason_says_where_the_arguments_do_not_fit():
    (reason,) = judge(PROMPT, Reply(calls=(Call("set_timer", '{"minutes": "five"}'),)))[1]
    assert reason.message == 'the arguments of set_timer do not fit: $.minutes: "five" is not of type "integer"'


def test_an_answer_to_a_schema_must_be_json_that_fits():
    record = Record("p", USER, response_schema=PARAMETERS)
    assert codes(record, Reply('{"minutes": 3}')) == []
    assert codes(record, Reply("three minutes")) == ["not-json"]
    assert codes(record, Reply('{"minutes": -1, "x": 1}')) == ["schema", "schema"]
    assert codes(record, Reply("[" * 5000))[0] == "not-json"


def test_a_call_answers_a_prompt_that_has_a_schema_too():
    record = Record("p", USER, (TIMER,), PARAMETERS)
    assert codes(record, Reply(calls=(Call("set_timer", '{"minutes": 5}'),))) == []


def test_schemas_that_are_none_are_found_without_fetching_anything():
    tool = msgspec.structs.replace(TIMER.function, parameters={"type": "thing"})
    remote = {"$ref": "http://127.0.0.1:9/schema.json"}
    found = dict(schema_errors(Record("p", USER, (TIMER, Tool(tool)), remote)))
    assert list(found) == ["$.response_schema", "$.tools[1].function.parameters"]
    assert "Retrieval is disabled" in found["$.response_schema"]


@given(st.text(min_size=1, max_size=40), st.integers(80, 120), st.text(max_size=30))
def test_a_tail_that_repeats_is_a_loop(piece, times, start):
    assert loops(start + piece * times)


@given(st.integers(0, 5000))
def test_counting_and_short_answers_are_no_loops(number):
    assert not loops(", ".join(f"{number + i * i}" for i in range(60)))
    assert not loops("ha " * 20)


def test_words_that_go_in_circles_are_a_loop():
    circle = "and so the king went to the castle and then"
    assert loops(" ".join(f"{circle} {'x' * (i % 7)}" for i in range(30)))


def test_real_prose_is_no_loop():
    assert not loops(
        "A Raspberry Pi is a small computer. It has a processor, memory and ports for a keyboard, a mouse and a "
        "screen. You can use it to learn how to program, to watch films, or to control the lights at home. It is "
        "cheap, needs little power, and many people share what they built with it. You start it from a memory card. "
        "The card holds the system and your files, so that another card makes another computer of it."
    )


def test_missing_ids_are_made_so_that_results_find_their_calls():
    call = ToolCall(FunctionCall("set_timer", {"minutes": 5, "label": "œuf"}))
    record = Record(
        "p",
        (
            Message("user", "two timers"),
            Message("assistant", None, (call, call)),
            Message("tool", "ok"),
            Message("tool", "no"),
        ),
    )
    _, assistant, first, second = wire.messages(record)
    assert [c["id"] for c in assistant["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
    assert first["tool_call_id"] != second["tool_call_id"]
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"minutes": 5, "label": "œuf"}
    assert assistant["tool_calls"][0]["type"] == "function"
    assert assistant["content"] is None


def test_ids_that_are_there_are_kept():
    call = ToolCall(FunctionCall("f", {}), id="own")
    record = Record("p", (*USER, Message("assistant", None, (call,)), Message("tool", "ok", tool_call_id="own")))
    _, assistant, result = wire.messages(record)
    assert (assistant["tool_calls"][0]["id"], result["tool_call_id"]) == ("own", "own")


def test_a_request_says_all_that_was_asked():
    body = wire.request(Ask("k", PROMPT, 1, Sampling(7, 0.5, 0.9, 3)), "m", {"cache_prompt": False})
    assert body["tools"] == [
        {"type": "function", "function": {"name": "set_timer", "parameters": PARAMETERS}},
    ]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"]) == (7, 0.5, 0.9, 3)
    assert body["cache_prompt"] is False
    assert "response_format" not in body


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b'{"error": {"message": "too\\n long", "type": "a", "code": 400}}', "a 400", "too long"),
        (b'{"error": "plain"}', "", "plain"),
        (b'{"detail": "not found"}', "", "not found"),
        (b'{"object": "error", "message": "m", "type": "t", "code": 404}', "t 404", "m"),
        (b"<html>Bad Gateway</html>", "", "<html>Bad Gateway</html>"),
        (b"[1]", "", "[1]"),
        (b"", "", ""),
        (b"\xff", "", "\ufffd"),
    ],
)
def test_errors_of_all_forms_are_read(body, kind, message):
    assert wire.error_message(body) == (kind, message)
