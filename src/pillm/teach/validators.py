"""Further demands on an answer, by name (`--require`, `--min-chars`, `--max-chars`, `--validator`).

`judge` says whether an answer can be used at all, and what it says is kept in the journal. What stands here
is a matter of taste and of the dataset: it is asked of stored answers in every run, so that another
choice needs no teacher. All but `calls` are heuristics.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pillm.core.errors import UsageError
from pillm.core.options import split_function
from pillm.core.records import Message, Record, plain
from pillm.teach.ask import Reason
from pillm.teach.options import LabelOptions

_REFUSAL_WITHIN = 160

_REFUSALS = re.compile(
    r"""\b(?:
    # English
    i['’]?m\ (?:very\ |so\ )?sorry,?\ (?:but\ )?(?:i|as)\b | i\ apologi[sz]e,?\ but\ i\b
    | i\ (?:can(?:['’]t|not|\ not)|am\ (?:not\ able|unable)|won['’]t\ be\ able)\ (?:to\ )?(?:help|assist|comply|fulfill?|provide|answer|do\ that)
    | i['’]m\ (?:not\ able|unable)\ to\ (?:help|assist|comply|fulfill?|provide|answer|do\ that)
    | as\ an?\ (?:ai|artificial\ intelligence)(?:\ language)?\ (?:model|assistant)?
    # German
    | (?:es\ )?tut\ mir\ leid,?\ (?:aber\ )?(?:ich|da|das|als)\b
    | ich\ kann\ (?:ihnen|dir|euch)\ (?:dabei|damit|hierbei|da)?\ ?(?:leider\ )?nicht\ (?:helfen|weiterhelfen)
    | als\ (?:eine?\ )?(?:ki|künstliche\ intelligenz|sprachmodell)\b
    # French
    | (?:je\ suis\ )?désolée?,?\ (?:mais\ )?je\ ne\b
    | je\ ne\ (?:peux|suis\ pas\ en\ mesure)\ (?:pas\ )?(?:d['’]|de\ |vous\ |t['’])?(?:aider|répondre|fournir|faire)
    | en\ tant\ qu['’](?:ia|intelligence\ artificielle|assistante?\ (?:ia|virtuel))
    # Spanish
    | lo\ siento,?\ (?:pero\ )?(?:no|como)\b
    | no\ puedo\ (?:ayudarte?|ayudarle|ayudar\ con|responder|cumplir|proporcionar)
    | como\ (?:una?\ )?(?:ia|inteligencia\ artificial|modelo\ de\ lenguaje)\b
    # Portuguese
    | (?:desculpe|lamento|sinto\ muito),?\ (?:mas\ )?(?:não|eu\ não|como)\b
    | não\ posso\ (?:ajudar|ajudá-lo|responder|fornecer|cumprir)
    | como\ (?:uma?\ )?(?:inteligência\ artificial|modelo\ de\ linguagem)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)

Demand = Callable[[Record, Message], Sequence[Reason]]
"""What is wrong with an answer, if anything."""


class Validator(NamedTuple):
    """A demand by name; `source` is a hash of the user's code, or empty."""

    name: str
    demand: Demand
    source: str = ""


def chosen(options: LabelOptions) -> list[Validator]:
    """The validators that the options name. Raises UsageError (a user's function that cannot be loaded)."""
    result = [Validator(name, _BY_NAME[name]) for name in dict.fromkeys(options.require)]
    if options.min_chars or options.max_chars:
        result.append(Validator("length", functools.partial(length, options.min_chars, options.max_chars)))
    if options.validator:
        result.append(_own(options.validator))
    return result


def calls(record: Record, message: Message) -> list[Reason]:
    """Tool calls that fit their schemas and yet make no sense."""
    reasons: list[Reason] = []
    if record.response_schema is not None and message.tool_calls:
        reasons.append(Reason("call-for-schema", "the prompt asks for JSON, and the answer calls a tool"))
    seen: set[str] = set()
    declared = {tool.function.name: tool.function.parameters for tool in record.tools}
    for call in message.tool_calls:
        name, arguments = call.function.name, call.function.arguments
        if (text := json.dumps([name, arguments], sort_keys=True)) in seen:
            reasons.append(Reason("same-call", f"{name} is called twice with the same arguments"))
        seen.add(text)
        for wanted in declared.get(name, {}).get("required", ()):
            value = arguments.get(wanted)
            if value is None or (isinstance(value, str) and not value.strip()):
                reasons.append(Reason("empty-argument", f"{name} is called with an empty {wanted}"))
    return reasons


def in_language(record: Record, message: Message) -> list[Reason]:
    """Text in another language than the record's locale; no opinion without a locale, on JSON, or on short text."""
    text = message.content or ""
    if not record.locale or record.response_schema is not None:
        return []
    from pillm.models.language import language, same  # its model takes a tenth of a second to load

    code = language(text).code
    if not code or same(record.locale, code):
        return []
    return [Reason("language", f"the answer seems to be in {code}, and the record's locale is {record.locale}")]


def no_refusal(_: Record, message: Message) -> list[Reason]:
    """An answer that begins by declining, by its words in English, German, French, Spanish and Portuguese."""
    found = _REFUSALS.search((message.content or "")[:_REFUSAL_WITHIN]) if not message.tool_calls else None
    return [Reason("refusal", f"the answer declines: {found[0]!r}")] if found else []


def length(least: int, most: int, _: Record, message: Message) -> list[Reason]:
    """Text with too few or too many characters; an answer that is tool calls alone has no length."""
    text = message.content or ""
    if not text and message.tool_calls:
        return []
    if len(text) < least:
        return [Reason("too-short", f"the answer has {len(text)} characters (--min-chars {least})")]
    if most and len(text) > most:
        return [Reason("too-long-answer", f"the answer has {len(text)} characters (--max-chars {most})")]
    return []


_BY_NAME: dict[str, Demand] = {"calls": calls, "language": in_language, "no-refusal": no_refusal}


def _own(name: str) -> Validator:
    """The function in `file.py:function`. Raises UsageError with file and line of what is wrong with it."""
    file, function = split_function(name)
    function = function or "validate"
    path = Path(file)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror})", "write the validator as file.py:function"
        ) from None
    hint = "a validator takes the record and the answer as dicts, and returns None or a reason"
    spec = importlib.util.spec_from_file_location("pillm_users_validator", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file", "write the validator as file.py:function")
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{_place(path, error)}: {_words(error)}", hint) from None
    finally:
        sys.dont_write_bytecode = written
    call = getattr(module, function, None)
    if not callable(call):
        raise UsageError(f"{path}: there is no function {function}", "write the validator as file.py:function")

    def demand(record: Record, message: Message) -> list[Reason]:
        try:
            # An answer that is calls alone has no `content` in JSONL; a function may ask for it all the same.
            reason = call(msgspec.to_builtins(record), {"content": None, **plain(message)})
        except Exception as error:
            raise UsageError(
                f"{_place(path, error)}: {_words(error)} (for record {record.id})",
                f"{hint}; answers so far are kept",
            ) from None
        if reason is None or isinstance(reason, str):
            return [Reason("own", reason)] if reason else []
        line = getattr(getattr(call, "__code__", None), "co_firstlineno", 1)
        raise UsageError(f"{path}:{line}: {function} gave a {type(reason).__name__} for record {record.id}", hint)

    return Validator(f"{path.name}:{function}", demand, hashlib.sha256(source).hexdigest())


def _place(path: Path, error: Exception) -> str:
    """`file:line` where the user's code went wrong: the last line of it on the way to the error."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{path}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == path.name]
    return f"{path}:{frames[-1].lineno}" if frames else str(path)


def _words(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
