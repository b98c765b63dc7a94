"""Expected against said: what of a dialogue is asked, and whether the answer is right. No network, no model."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import jsonschema_rs
import msgspec

from pillm.core import jsonl
from pillm.core.errors import FindingsError, UsageError
from pillm.core.findings import Finding
from pillm.core.records import Message, Record
from pillm.evaluate.report import Answer, Call, Kind, Said

# Marks that an assistant declines, in English and French. Compared after typographic apostrophes are made plain.
NEGATIONS = ("can't", "cannot", "can not", "unable to", "ne peux pas", "ne peut pas", "peux pas", "impossible")

# What tool calls begin with in the formats that llama-server parses; a call that was cut off stays in the words.
CALL_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=", "<|tool_call")


class Case(msgspec.Struct, frozen=True):
    """One question to the model: the record, the turns it reads, and the turn it should write."""

    record: Record
    kind: Kind
    tool: str
    prompt: tuple[Message, ...]
    expected: Said


def cases(records: Sequence[Record], path: Path) -> list[Case]:
    """A case for each record that has an answer; prompts without one are left out.

    The judged turn is the last assistant turn; for `kind:result` (a tool's result is read out after
    the call) the first assistant turn, the call. Without a `kind:` tag, a dialogue with a call is
    judged at its first call, any other as chat. Raises FindingsError where tag and turns disagree,
    UsageError where nothing is left to judge.
    """
    found: list[Finding] = []
    result: list[Case] = []
    for record in records:
        turns = [index for index, message in enumerate(record.messages) if message.role == "assistant"]
        if not turns or record.is_prompt:
            continue
        calling = [index for index in turns if record.messages[index].tool_calls]
        tags = dict(tag.split(":", 1) for tag in record.tags if ":" in tag)
        kind = tags.get("kind", "call" if calling else "chat")
        if kind not in get_args(Kind):
            found.append(_finding(path, record, f"kind:{kind} is not known", "use " + ", ".join(get_args(Kind))))
            continue
        at = turns[-1]
        if kind == "result" or ("kind" not in tags and calling):
            at = calling[0] if calling else turns[0]
        expected = said(record.messages[at])
        if (kind in ("call", "result")) != bool(expected.calls):
            is_what = "calls a tool" if expected.calls else "calls no tool"
            found.append(_finding(path, record, f"tagged kind:{kind}, but the turn {is_what}", "mend the tag"))
            continue
        tool = expected.calls[0].name if expected.calls else tags.get("tool", "")
        result.append(Case(record, cast(Kind, kind), tool, record.messages[:at], expected))
    if found:
        raise FindingsError(
            f"{path}: {len(found)} records cannot be judged", _with_lines(found[: jsonl.MAX_FINDINGS], path)
        )
    if not result:
        raise UsageError(f"{path}: no record has an answer to compare with", "label the prompts first: pillm label")
    return result


def _finding(path: Path, record: Record, message: str, hint: str) -> Finding:
    return Finding(file=str(path), path=record.id, code="kind", message=message, hint=hint)


def _with_lines(found: Sequence[Finding], path: Path) -> list[Finding]:
    """The findings with their lines, which are looked up only now: `path` still holds the record's id."""
    places = {item.id: line for line, item in jsonl.scan(path) if isinstance(item, Record)} if path.is_file() else {}
    return [
        msgspec.structs.replace(
            finding, line=places[finding.path].number, byte=places[finding.path].byte, path="$.tags",
            message=f"{finding.path}: {finding.message}",
        )
        if finding.path in places
        else finding
        for finding in found
    ]  # fmt: skip


def evenly(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` of the items, evenly spread over them, in order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def said(message: Message) -> Said:
    """A record's turn in the words of an answer."""
    return Said(
        message.content or "",
        tuple(Call(call.function.name, call.function.arguments) for call in message.tool_calls),
    )


def judge(case: Case, got: Said) -> Answer:
    """The verdict on one answer. A cut, unparsed or impossible answer is wrong whatever it begins with."""
    right, reason = _verdict(case, got)
    name_right = None
    if case.expected.calls:
        whole = got.failure == ""
        name_right = whole and [call.name for call in got.calls] == [call.name for call in case.expected.calls]
    question = next((turn.content or "" for turn in reversed(case.prompt) if turn.role == "user"), "")
    return Answer(
        id=case.record.id,
        kind=case.kind,
        locale=case.record.locale or "unknown",
        tool=case.tool,
        question=question,
        expected=case.expected,
        got=got,
        right=right,
        reason=reason,
        name_right=name_right,
        json_valid=_json_valid(case, got),
    )


def _verdict(case: Case, got: Said) -> tuple[bool, str]:
    if got.failure:
        return False, got.detail or got.failure
    if case.expected.calls:
        return _same_calls(case.expected.calls, got.calls)
    if got.calls:
        return False, f"called {got.calls[0].name} where no call was expected"
    words = got.content.replace("’", "'").replace("\u02bc", "'").casefold()
    if not words.strip():
        return False, "said nothing"
    if case.kind == "ask":
        return ("?" in words, "" if "?" in words else "asked nothing back")
    if case.kind == "refuse":
        if "?" in words:
            return False, "asked back instead of declining"
        declined = any(mark in words for mark in NEGATIONS)
        return declined, "" if declined else "did not say that it cannot"
    return True, ""


def _same_calls(expected: Sequence[Call], got: Sequence[Call]) -> tuple[bool, str]:
    if not got:
        return False, "called nothing"
    if len(got) != len(expected):
        return False, f"{len(got)} calls, expected {len(expected)}"
    for want, have in zip(expected, got, strict=True):
        if have.name != want.name:
            return False, f"called {have.name}, expected {want.name}"
        if isinstance(have.arguments, str):
            return False, "the arguments are not JSON"
        if canonical(have.arguments) != canonical(want.arguments):
            return False, _difference(want.arguments, have.arguments)
    return True, ""


def _difference(want: Any, have: dict[str, Any]) -> str:
    """The first argument that differs, in words."""
    for name in want:
        if name not in have:
            return f"the argument {name} is missing"
        if canonical(want[name]) != canonical(have[name]):
            return f"the argument {name} differs"
    return "the argument " + next(name for name in have if name not in want) + " is too many"


def canonical(value: Any) -> str:
    """JSON text that is equal for equal JSON values: sorted keys, Unicode NFC, 5.0 the same as 5 (but not as true)."""
    return json.dumps(_normal(value), sort_keys=True, ensure_ascii=False)


def _normal(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {unicodedata.normalize("NFC", key): _normal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    return value


def _json_valid(case: Case, got: Said) -> bool | None:
    if got.failure == "unparsed":
        return False
    if not got.calls:
        begun = got.failure == "cut" and any(mark in got.content for mark in CALL_MARKS)
        return False if begun else None
    schemas = {tool.function.name: tool.function.parameters for tool in case.record.tools}
    return not got.failure and all(_fits(schemas.get(call.name), call.arguments) for call in got.calls)


def _fits(schema: dict[str, Any] | None, arguments: dict[str, Any] | str) -> bool:
    if schema is None or isinstance(arguments, str):
        return False
    try:
        return jsonschema_rs.is_valid(schema, arguments)
    except jsonschema_rs.ValidationError:
        # The declared schema itself is wrong; that is the dataset's fault (pillm validate) and not the model's.
        return True
