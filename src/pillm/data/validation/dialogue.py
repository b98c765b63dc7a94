"""What no schema says of a dialogue: who may speak when, and which result belongs to which call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pillm.data.validation.codes import Fault
from pillm.data.validation.schemas import Schema, Tools, argument_faults
from pillm.data.validation.structure import ROLES

_SYSTEM = ("system", "developer")


def faults(record: dict[str, Any], tools: Tools | None, response: Schema | None) -> Iterator[Fault]:
    """What is wrong with the dialogue of a record. Messages that are malformed are left out of account."""
    given = record.get("messages")
    if not isinstance(given, list):
        return
    turns = [turn if isinstance(turn, dict) and turn.get("role") in ROLES else None for turn in given]
    yield from order([turn["role"] if turn else "" for turn in turns])
    yield from _results(turns)
    if tools is not None:
        yield from _calls(turns, tools)
    if response is not None and response.validator is not None:
        yield from _answer(turns, response)


def order(roles: Sequence[str]) -> Iterator[Fault]:
    """What is wrong with the order of the roles. An empty role stands for a message that is malformed."""
    spoken = [(index, role) for index, role in enumerate(roles) if role not in _SYSTEM]
    first = spoken[0][0] if spoken else len(roles)
    systems = [index for index, role in enumerate(roles) if role in _SYSTEM]
    for place, index in enumerate(systems):
        path = f"$.messages[{index}]"
        if index > first:
            yield Fault("system-not-first", path, f"the {roles[index]}'s message comes after the dialogue has begun")
        elif place:
            yield Fault("second-system", path, "there are two system messages")
    if not roles:
        return
    if roles[-1] in _SYSTEM:
        yield Fault("ends-on-system", f"$.messages[{len(roles) - 1}]", "nobody says anything after the system message")
    if spoken and "user" not in roles and "" not in roles:
        yield Fault("no-user-turn", "$.messages", "the user says nothing")
    elif spoken and spoken[0][1] == "assistant":
        yield Fault("assistant-first", f"$.messages[{first}]", "the assistant speaks first")
    for (_, before), (index, role) in itertools.pairwise(spoken):
        if role == before and role in ("user", "assistant"):
            yield Fault(f"{role}-twice", f"$.messages[{index}]", f"the {role} speaks twice in a row")


def _results(turns: Sequence[dict[str, Any] | None]) -> Iterator[Fault]:
    """Every call that is followed by anything has one result, by id, or by order where nobody gives ids."""
    open_calls: dict[str, tuple[str, str]] = {}
    unnamed: list[tuple[str, str]] = []
    answered: set[str] = set()
    known: set[str] = set()
    blind = False
    for index, turn in enumerate(turns):
        path = f"$.messages[{index}]"
        if turn and turn["role"] == "tool":
            if not blind:
                yield from _result(turn, path, open_calls, unnamed, answered)
            continue
        calls = _calls_of(turn)
        if not blind and turn:
            yield from _unanswered(open_calls, unnamed)
        # What a malformed message or call was meant to be is not known: nothing is said of its results.
        blind = turn is None or None in calls or not isinstance(turn.get("tool_calls", []), list)
        open_calls, unnamed = {}, []
        for place, call in enumerate(calls):
            if call is None:
                continue
            where = f"{path}.tool_calls[{place}]"
            name = call["function"].get("name")
            key = call.get("id")
            if not isinstance(key, str):
                unnamed.append((where, str(name)))
            elif key in known:
                yield Fault("duplicate-call-id", f"{where}.id", f"another call has the id {key[:60]!r}")
                # Which of the two a result answers cannot be told.
                open_calls[key] = (where, str(name))
                answered.discard(key)
            else:
                known.add(key)
                open_calls[key] = (where, str(name))


def _result(
    turn: dict[str, Any],
    path: str,
    open_calls: dict[str, tuple[str, str]],
    unnamed: list[tuple[str, str]],
    answered: set[str],
) -> Iterator[Fault]:
    key = turn.get("tool_call_id")
    if isinstance(key, str):
        if key in open_calls:
            _, called = open_calls.pop(key)
            answered.add(key)
        elif key in answered:
            yield Fault("answered-twice", f"{path}.tool_call_id", f"the call {key[:60]!r} has a result already")
            return
        elif len(unnamed) == 1 and not open_calls:
            _, called = unnamed.pop()
        elif unnamed:
            yield Fault(
                "missing-call-id", f"{path}.tool_call_id", f"no call has the id {key[:60]!r}, and some have none"
            )
            unnamed.pop(0)
            return
        else:
            yield Fault("orphan-result", f"{path}.tool_call_id", f"no open call has the id {key[:60]!r}")
            return
    elif unnamed and not open_calls:
        _, called = unnamed.pop(0)
    elif len(open_calls) == 1 and not unnamed:
        _, (_, called) = open_calls.popitem()
    elif open_calls or unnamed:
        yield Fault("missing-call-id", path, "this result says not which of several calls it answers")
        # Some call is answered; the first stands for it.
        if open_calls:
            open_calls.pop(next(iter(open_calls)))
        else:
            unnamed.pop(0)
        return
    else:
        yield Fault("orphan-result", path, "there is no open call that this result could answer")
        return
    name = turn.get("name")
    if isinstance(name, str) and name != called:
        yield Fault("result-name-differs", f"{path}.name", f"the result of {called[:60]!r} is named {name[:60]!r}")


def _unanswered(open_calls: dict[str, tuple[str, str]], unnamed: list[tuple[str, str]]) -> Iterator[Fault]:
    for where, name in sorted([*open_calls.values(), *unnamed]):
        yield Fault("unanswered-call", where, f"the call of {name[:60]!r} has no result, and the dialogue goes on")


def _calls(turns: Sequence[dict[str, Any] | None], tools: Tools) -> Iterator[Fault]:
    lowered = {known.lower(): known for known in tools.validators}
    for index, turn in enumerate(turns):
        for place, call in enumerate(_calls_of(turn)):
            if call is None:
                continue
            path = f"$.messages[{index}].tool_calls[{place}].function"
            name, arguments = call["function"].get("name"), call["function"].get("arguments")
            if not isinstance(name, str) or not name.strip():
                continue
            if name not in tools.validators:
                said = f"the tool {name[:60]!r} is not declared"
                near = lowered.get(name.lower(), "")
                yield Fault("undeclared-tool", f"{path}.name", said, f"did you mean {near!r}?" if near else "")
                continue
            validator = tools.validators[name]
            if not isinstance(arguments, dict):
                continue
            if validator is None:
                said = f"the schema of {name[:60]!r} cannot be used, so these arguments were not checked"
                yield Fault("unchecked-arguments", f"{path}.arguments", said)
            else:
                yield from argument_faults(validator, arguments, f"{path}.arguments", "wrong-arguments")


def _answer(turns: Sequence[dict[str, Any] | None], response: Schema) -> Iterator[Fault]:
    last = turns[-1] if turns else None
    if last is None or last["role"] != "assistant" or _calls_of(last):
        return
    path, content = f"$.messages[{len(turns) - 1}].content", last.get("content")
    if not isinstance(content, str) or not content.strip():
        return
    try:
        value = msgspec.json.decode(content)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        yield Fault("answer-not-json", path, f"there is a response_schema, and the answer is no JSON: {error}")
        return
    yield from argument_faults(response.validator, value, path, "answer-misfit")


def _calls_of(turn: dict[str, Any] | None) -> list[dict[str, Any] | None]:
    """The calls of an assistant's turn in their places; None for a malformed one, which `structure` tells of."""
    calls = turn.get("tool_calls") if turn and turn["role"] == "assistant" else None
    if not isinstance(calls, list):
        return []
    return [call if isinstance(call, dict) and isinstance(call.get("function"), dict) else None for call in calls]
