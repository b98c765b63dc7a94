"""Material to records. Everything is drawn from one seeded generator per split and locale."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

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
    "development": {
        "en-US": {"call": 86, "refuse": 12, "ask": 12, "result": 6, "chat": 4},
        "fr-FR": {"call": 64, "refuse": 9, "ask": 9, "result": 5, "chat": 3},
        "fr-CA": {"call": 64, "refuse": 9, "ask": 9, "result": 5, "chat": 3},
    },
    "heldout": {
        "en-US": {"call": 86, "refuse": 12, "ask": 12, "result": 6, "chat": 4},
        "fr-FR": {"call": 64, "refuse": 9, "ask": 9, "result": 5, "chat": 3},
        "fr-CA": {"call": 64, "refuse": 9, "ask": 9, "result": 5, "chat": 3},
    },
}
"""Records by split, locale and kind; the unlabelled prompts come on top."""

# Development is a former held-out split; it keeps the seed it had then, so that its dialogues are still the same ones.
SEED_NAMES = {"train": "train", "development": "heldout-2", "heldout": "heldout-3"}

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


def _lists_without(name: str) -> list[str]:
    return [key for key, entry in _declared.lists.items() if name not in entry.tools]


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


def _call(name: str, arguments: dict[str, Any]) -> Message:
    return Message("assistant", tool_calls=(ToolCall(FunctionCall(name, arguments)),))


@dataclass(frozen=True)
class _Desk:
    """What the records of one split and locale are written with. All chance comes from `rng`."""

    where: str
    locale: str
    rng: random.Random
    phrases: Phrases
    words: Answers
    draw: Draw
    tools: Iterator[str]
    calls: dict[str, Iterator[tuple[int, tuple[Register, str]]]]
    seen: set[str]

    def user(self, register: Register, phrasing: str) -> tuple[str, dict[str, Any]]:
        """A user's turn that this locale does not have yet, and the arguments it sets."""
        for _ in range(50):
            spelled = has_number_words(self.phrases)
            filled = fill(phrasing, self.draw, self.rng, self.words, number_words=spelled)
            text = _dress(filled, register, self.phrases, self.rng)
            if text not in self.seen:
                self.seen.add(text)
                return text, filled.arguments
        raise AssertionError(f"{self.where}: {phrasing!r} gives no new text")

    def request(self) -> tuple[str, Register, str, dict[str, Any], str]:
        """(tool, register, user's text, arguments, phrasing's place) of the next request that a tool serves."""
        name = next(self.tools)
        index, (register, phrasing) = next(self.calls[name])
        text, arguments = self.user(register, phrasing)
        return name, register, text, _arguments(name, arguments), f"call/{name}/{index}"

    def record(
        self, turns: Turns, lists: Sequence[str], register: Register, tags: tuple[str, ...], origin: str
    ) -> Record:
        """A record without an id that declares one of `lists`."""
        tool_list = _pick_list(self.rng, lists)
        return Record(
            id="",
            messages=(Message("system", _declared.system), *turns),
            tools=LISTS[tool_list],
            locale=self.locale,
            register=register,
            tags=tags,
            source=SOURCE,
            license=LICENSE,
            meta={"phrasing": origin, "tools": tool_list},
        )


def _desk(split: str, locale: str) -> _Desk:
    rng = random.Random(f"{SEED}/{SEED_NAMES[split]}/{locale}")  # noqa: S311 - not for secrets
    phrases = material.phrases(split, locale)
    draw = drawer(rng, phrases, material.common(split))
    calls = {name: deck(rng, list(enumerate(phrases.call[name].lines()))) for name in TOOLS}
    words = material.answers(locale)
    return _Desk(f"{split}/{locale}", locale, rng, phrases, words, draw, deck(rng, list(TOOLS)), calls, set())


def _call_records(desk: _Desk, count: int) -> Iterator[Record]:
    for _ in range(count):
        name, register, text, arguments, origin = desk.request()
        turns = (Message("user", text), _call(name, arguments))
        yield desk.record(turns, _lists_with(name), register, ("kind:call", f"tool:{name}"), origin)


def _result_records(desk: _Desk, count: int) -> Iterator[Record]:
    for _ in range(count):
        name, register, text, arguments, origin = desk.request()
        outcome = pick(desk.rng, desk.words.outcome[name])
        result, answer = _outcome(outcome, arguments, desk.draw, desk.words)
        turns = (
            Message("user", text),
            _call(name, arguments),
            Message("tool", json.dumps(result, ensure_ascii=False), name=name),
            Message("assistant", answer),
        )
        yield desk.record(turns, _lists_with(name), register, ("kind:result", f"tool:{name}"), origin)


def _ask_records(desk: _Desk, count: int) -> Iterator[Record]:
    asks = [(key, index, line) for key, lines in desk.phrases.ask.items() for index, line in enumerate(lines.lines())]
    drawn = deck(desk.rng, asks)
    for _ in range(count):
        key, index, (register, phrasing) = next(drawn)
        name = key.partition(".")[0]
        text, _ = desk.user(register, phrasing)
        turns = (Message("user", text), Message("assistant", desk.words.ask[key]))
        yield desk.record(turns, _lists_with(name), register, ("kind:ask", f"tool:{name}"), f"ask/{key}/{index}")


def _refuse_records(desk: _Desk, count: int) -> Iterator[Record]:
    """Requests whose tool is not declared in the record, then topics that no tool covers."""
    missing = round(count * MISSING_TOOL)
    for _ in range(missing):
        name, register, text, _, origin = desk.request()
        turns = (Message("user", text), Message("assistant", desk.words.missing_tool[name]))
        yield desk.record(turns, _lists_without(name), register, ("kind:refuse",), origin)
    topics = [
        (topic.answer, f"refuse/{at}.{index}", line.strip())
        for at, topic in enumerate(desk.phrases.refuse)
        for index, line in enumerate(topic.user.splitlines())
    ]
    drawn = deck(desk.rng, topics)
    for _ in range(count - missing):
        answer, origin, phrasing = next(drawn)
        text, _ = desk.user("informal", phrasing)
        turns = (Message("user", text), Message("assistant", answer))
        yield desk.record(turns, list(LISTS), "informal", ("kind:refuse",), origin)


def _chat_records(desk: _Desk, count: int) -> Iterator[Record]:
    drawn = deck(desk.rng, list(enumerate(desk.phrases.chat.splitlines())))
    for _ in range(count):
        index, line = next(drawn)
        said, _, answer = line.partition(" => ")
        values = {
            slot["name"]: expand(desk.draw(slot["name"]), desk.draw, desk.words.leads) for slot in SLOT.finditer(said)
        }
        turns = (Message("user", _substitute(said, values)), Message("assistant", _substitute(answer, values)))
        yield desk.record(turns, list(LISTS), "informal", ("kind:chat",), f"chat/{index}")


_KINDS: dict[str, Callable[[_Desk, int], Iterator[Record]]] = {
    "call": _call_records,
    "result": _result_records,
    "ask": _ask_records,
    "refuse": _refuse_records,
    "chat": _chat_records,
}


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
    """All records of `train`, `development` or `heldout`, in their final order, with ids."""
    made: list[Record] = []
    for locale in material.LOCALES:
        desk = _desk(split, locale)
        for kind, write in _KINDS.items():
            made += write(desk, COUNTS[split][locale][kind])
    if split == "train":
        made += _unlabelled()
    rng = random.Random(f"{SEED}/{SEED_NAMES[split]}")  # noqa: S311 - not for secrets
    return [
        msgspec.structs.replace(record, id=f"ha-{split}-{number:04}")
        for number, record in enumerate(shuffled(rng, made), 1)
    ]


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
