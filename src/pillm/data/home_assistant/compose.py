"""Material to records. Everything is drawn from one seeded generator per split and locale."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pillm.core.records import Function, FunctionCall, Message, Record, Tool, ToolCall
from pillm.data.home_assistant import material
from pillm.data.home_assistant.material import Answers, Outcome, Phrases, Register
from pillm.data.home_assistant.phrasing import (
    SLOT,
    Draw,
    Filled,
    deck,
    drawer,
    expand,
    fill,
    has_number_words,
    pick,
    shuffled,
)

SOURCE = "pillm home-assistant generator v1"
LICENSE = "CC0-1.0"
SEED = 20240
COUNTS: dict[str, dict[str, dict[str, int]]] = {
    "train": {
        "en-US": {"call": 672, "refuse": 93, "ask": 93, "result": 47, "chat": 27},
        "fr-FR": {"call": 504, "refuse": 70, "ask": 70, "result": 35, "chat": 20},
        "fr-CA": {"call": 504, "refuse": 70, "ask": 70, "result": 35, "chat": 20},
    },
    "heldout": {
        "en-US": {"call": 86, "refuse": 12, "ask": 12, "result": 6, "chat": 4},
        "fr-FR": {"call": 64, "refuse": 9, "ask": 9, "result": 5, "chat": 3},
        "fr-CA": {"call": 64, "refuse": 9, "ask": 9, "result": 5, "chat": 3},
    },
}
"""Records by split, locale and kind; the unlabelled prompts come on top."""

PREAMBLE, CLOSER, CASUAL, MISSING_TOOL = 0.12, 0.08, 0.2, 0.4
"""Shares: a greeting before, a thank-you after, careless typing; refusals for want of a tool."""

Turns = tuple[Message, ...]
_declared = material.declarations()


def tool(name: str) -> Tool:
    """The declaration of a tool, with the JSON Schema of its arguments."""
    spec = _declared.tools[name]
    schema = {
        "type": "object",
        "properties": spec["properties"],
        "required": spec["required"],
        "additionalProperties": False,
    }
    return Tool(Function(name, spec["description"], schema))


TOOLS: dict[str, Tool] = {name: tool(name) for name in _declared.tools}
LISTS: dict[str, tuple[Tool, ...]] = {
    name: tuple(TOOLS[tool] for tool in entry.tools) for name, entry in _declared.lists.items()
}


def _pick_list(rng: random.Random, fits: Sequence[str]) -> str:
    total = sum(_declared.lists[name].share for name in fits)
    at = rng.random() * total
    for name in fits:
        at -= _declared.lists[name].share
        if at < 0:
            return name
    return fits[-1]


def _lists_with(name: str) -> list[str]:
    return [key for key, entry in _declared.lists.items() if name in entry.tools]


def _arguments(name: str, filled: dict[str, Any]) -> dict[str, Any]:
    """The arguments a tool takes, in the order of its schema; other slots are only text."""
    return {key: filled[key] for key in _declared.tools[name]["properties"] if key in filled}


def _dress(filled: Filled, register: Register, phrases: Phrases, rng: random.Random) -> str:
    """The user's text with a greeting before or a thank-you after it now and then, or typed carelessly."""
    text = filled.text
    if rng.random() < CLOSER and text[-1] in ".?!":
        closers = material.items(getattr(phrases.closers, register))
        text = f"{text} {pick(rng, closers)}"
    elif register == "informal" and text[-1] in ".?" and rng.random() < CASUAL:
        text = text.rstrip(" .?")
        text = text if filled.starts_with_slot else _lower_first(text)
    if rng.random() < PREAMBLE:
        preamble = pick(rng, material.items(getattr(phrases.preambles, register)))
        if preamble.endswith(("!", ".", "?")) or filled.starts_with_slot:
            return f"{preamble} {text}"
        return f"{preamble} {_lower_first(text)}"
    return text


def _lower_first(text: str) -> str:
    return text if re.match(r"I\b", text) else text[0].lower() + text[1:]


def _record(
    turns: Turns, tool_list: str, locale: str, register: Register, tags: tuple[str, ...], origin: str
) -> Record:
    return Record(
        id="",
        messages=(Message("system", _declared.system), *turns),
        tools=LISTS[tool_list],
        locale=locale,
        register=register,
        tags=tags,
        source=SOURCE,
        license=LICENSE,
        meta={"phrasing": origin, "tools": tool_list},
    )


def _call(name: str, arguments: dict[str, Any]) -> Message:
    return Message("assistant", tool_calls=(ToolCall(FunctionCall(name, arguments)),))


def _locale_records(split: str, locale: str) -> Iterator[Record]:
    rng = random.Random(f"{SEED}/{split}/{locale}")  # noqa: S311 - not for secrets
    phrases, words = material.phrases(split, locale), material.answers(locale)
    draw = drawer(rng, phrases, material.common(split))
    counts, seen = COUNTS[split][locale], set[str]()
    number_words = has_number_words(phrases)

    def user(register: Register, phrasing: str) -> tuple[str, dict[str, Any]]:
        """A user's turn that this locale does not have yet."""
        for _ in range(50):
            filled = fill(phrasing, draw, rng, words, number_words=number_words)
            text = _dress(filled, register, phrases, rng)
            if text not in seen:
                seen.add(text)
                return text, filled.arguments
        raise AssertionError(f"{split}/{locale}: {phrasing!r} gives no new text")

    calls = {name: deck(rng, list(enumerate(phrases.call[name].lines()))) for name in TOOLS}
    names = deck(rng, list(TOOLS))

    for _ in range(counts["call"]):
        name = next(names)
        index, (register, phrasing) = next(calls[name])
        text, arguments = user(register, phrasing)
        turns = (Message("user", text), _call(name, _arguments(name, arguments)))
        tags = ("kind:call", f"tool:{name}")
        yield _record(turns, _pick_list(rng, _lists_with(name)), locale, register, tags, f"call/{name}/{index}")

    for _ in range(counts["result"]):
        name = next(names)
        index, (register, phrasing) = next(calls[name])
        text, arguments = user(register, phrasing)
        arguments = _arguments(name, arguments)
        outcome = pick(rng, words.outcome[name])
        result, answer = _outcome(outcome, arguments, draw, words)
        turns = (
            Message("user", text),
            _call(name, arguments),
            Message("tool", json.dumps(result, ensure_ascii=False), name=name),
            Message("assistant", answer),
        )
        tags = ("kind:result", f"tool:{name}")
        yield _record(turns, _pick_list(rng, _lists_with(name)), locale, register, tags, f"call/{name}/{index}")

    asks = [(key, index, line) for key, lines in phrases.ask.items() for index, line in enumerate(lines.lines())]
    ask_deck = deck(rng, asks)
    for _ in range(counts["ask"]):
        key, index, (register, phrasing) = next(ask_deck)
        name = key.partition(".")[0]
        text, _ = user(register, phrasing)
        turns = (Message("user", text), Message("assistant", words.ask[key]))
        tags = ("kind:ask", f"tool:{name}")
        yield _record(turns, _pick_list(rng, _lists_with(name)), locale, register, tags, f"ask/{key}/{index}")

    topics = [
        (topic.answer, f"{at}.{index}", line.strip())
        for at, topic in enumerate(phrases.refuse)
        for index, line in enumerate(topic.user.splitlines())
    ]
    topic_deck = deck(rng, topics)
    missing = round(counts["refuse"] * MISSING_TOOL)
    for at in range(counts["refuse"]):
        if at < missing:
            name = next(names)
            index, (register, phrasing) = next(calls[name])
            tool_list = _pick_list(rng, [key for key in LISTS if key not in _lists_with(name)])
            answer, origin = words.missing_tool[name], f"call/{name}/{index}"
        else:
            answer, place, phrasing = next(topic_deck)
            register, tool_list, origin = "informal", _pick_list(rng, list(LISTS)), f"refuse/{place}"
        text, _ = user(register, phrasing)
        turns = (Message("user", text), Message("assistant", answer))
        yield _record(turns, tool_list, locale, register, ("kind:refuse",), origin)

    chat_deck = deck(rng, list(enumerate(phrases.chat.splitlines())))
    for _ in range(counts["chat"]):
        index, line = next(chat_deck)
        said, _, answer = line.partition(" => ")
        drawn: dict[str, str] = {
            slot["name"]: expand(draw(slot["name"]), draw, words.leads) for slot in SLOT.finditer(said)
        }
        text, reply = _substitute(said, drawn), _substitute(answer, drawn)
        turns = (Message("user", text), Message("assistant", reply))
        tool_list = _pick_list(rng, list(LISTS))
        yield _record(turns, tool_list, locale, "informal", ("kind:chat",), f"chat/{index}")


def _substitute(text: str, values: dict[str, Any]) -> str:
    return SLOT.sub(lambda match: str(values[match["name"]]), text)


def _outcome(outcome: Outcome, arguments: dict[str, Any], draw: Draw, words: Answers) -> tuple[dict[str, Any], str]:
    """What the tool gives back with its slots drawn, and the sentence about it."""
    drawn = dict(arguments)
    result: dict[str, Any] = {}
    for key, value in outcome.result.items():
        slot = SLOT.fullmatch(value) if isinstance(value, str) else None
        if slot:
            value = drawn[slot["name"]] = expand(draw(slot["name"]), draw, words.leads)
        result[key] = int(value) if isinstance(value, str) and value.isdigit() else value
    return result, _substitute(outcome.answer, drawn)


def _unlabelled() -> Iterator[Record]:
    prompts = material.unlabelled()
    rows: list[tuple[str, dict[str, Any] | None]] = [(text, None) for text in prompts.chat]
    rows += [(text, group.schema) for group in prompts.structured for text in group.prompts]
    for index, (text, schema) in enumerate(rows):
        yield Record(
            id="",
            messages=(Message("system", _declared.system), Message("user", text)),
            tools=LISTS["all"],
            response_schema=schema,
            locale="en-US",
            register="informal",
            tags=("kind:chat", "unlabelled"),
            source=SOURCE,
            license=LICENSE,
            meta={"phrasing": f"unlabelled/{index}", "tools": "all"},
        )


def records(split: str) -> list[Record]:
    """All records of `train` or `heldout`, in their final order, with ids."""
    made = [record for locale in material.LOCALES for record in _locale_records(split, locale)]
    if split == "train":
        made += _unlabelled()
    rng = random.Random(f"{SEED}/{split}")  # noqa: S311 - not for secrets
    return [
        Record(**{**_fields(record), "id": f"ha-{split}-{number:04}"})
        for number, record in enumerate(shuffled(rng, made), 1)
    ]


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


SMOKE = {"call": 21, "refuse": 5, "ask": 6, "result": 3, "chat": 2, "unlabelled": 3}


def smoke(train: Sequence[Record]) -> list[Record]:
    """A small part of `train` with every tool in every locale, every kind, and unlabelled prompts."""
    left = dict(SMOKE)
    chosen, have = [], set[tuple[str, ...]]()
    for record in train:
        kind = "unlabelled" if record.is_prompt else record.tags[0].removeprefix("kind:")
        key = (record.locale, *record.tags)
        if left[kind] and (kind != "call" or key not in have):
            left[kind] -= 1
            have.add(key)
            chosen.append(record)
    return chosen
