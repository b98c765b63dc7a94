"""The hand-written material: YAML files beside this module, read into typed structures.

    tools.yaml            the system line, the tools, the lists of tools
    answers/LOCALE.yaml   the assistant's words, shared by all splits
    SPLIT/LOCALE.yaml     phrasings and value lists of one split
    SPLIT/common.yaml     value lists that the locales of a split share
    unlabelled.yaml       prompts that a teacher is to answer

The splits have files of their own, so that nothing can slip from one into another unseen.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import yaml

LOCALES = ("en-US", "fr-FR", "fr-CA")
SPLITS = ("train", "development", "heldout")
Register = Literal["informal", "formal"]
T = TypeVar("T")
HERE = Path(__file__).parent
_WEIGHTED = re.compile(r"(\d+) \* (.+)")


class Registers(msgspec.Struct, frozen=True):
    """Phrasings by register, one a line."""

    informal: str = ""
    formal: str = ""

    def lines(self) -> list[tuple[Register, str]]:
        """(register, phrasing) in the order of the file."""
        both: tuple[tuple[Register, str], ...] = (("informal", self.informal), ("formal", self.formal))
        return [(register, line.strip()) for register, text in both for line in text.splitlines() if line.strip()]


class Refusal(msgspec.Struct, frozen=True):
    """A topic that no tool covers: how people ask, and what the assistant says."""

    answer: str
    user: str


class Phrases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One split in one locale.

    `call` is keyed by tool, `ask` by `tool.missing_argument`; a line of `chat` is `said => answer`.
    """

    preambles: Registers
    closers: Registers
    call: dict[str, Registers]
    ask: dict[str, Registers]
    refuse: tuple[Refusal, ...]
    chat: str
    values: dict[str, str]


class Common(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Value lists for all locales of a split, and what made-up words and codes are composed of."""

    values: dict[str, str]
    syllables: str
    letters: str


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tool gives back (values may hold slots), and the sentence the assistant makes of it."""

    result: dict[str, Any]
    answer: str


class Answers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The assistant's words in one locale, and the grammar that slots need."""

    leads: tuple[str, ...]
    units: dict[str, tuple[str, str]]
    ask: dict[str, str]
    missing_tool: dict[str, str]
    outcome: dict[str, tuple[Outcome, ...]]


class ToolList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tools that are declared together, in order, and the share of records that declare them."""

    share: float
    tools: tuple[str, ...]


class Declarations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The system line, each tool's description, required and properties, and the lists of tools."""

    system: str
    tools: dict[str, dict[str, Any]]
    lists: dict[str, ToolList]


class SchemaPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prompts whose answer is to be a JSON object of one schema."""

    schema: dict[str, Any]
    prompts: tuple[str, ...]


class Unlabelled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prompts without an answer."""

    chat: tuple[str, ...]
    structured: tuple[SchemaPrompt, ...]


def _load(name: str, kind: type[T]) -> T:
    with (HERE / name).open(encoding="utf-8") as file:
        return msgspec.convert(yaml.safe_load(file), kind)


@cache
def declarations() -> Declarations:
    """tools.yaml."""
    return _load("tools.yaml", Declarations)


@cache
def answers(locale: str) -> Answers:
    """answers/LOCALE.yaml."""
    return _load(f"answers/{locale}.yaml", Answers)


@cache
def phrases(split: str, locale: str) -> Phrases:
    """SPLIT/LOCALE.yaml."""
    return _load(f"{split}/{locale}.yaml", Phrases)


@cache
def common(split: str) -> Common:
    """SPLIT/common.yaml."""
    return _load(f"{split}/common.yaml", Common)


@cache
def unlabelled() -> Unlabelled:
    """unlabelled.yaml."""
    return _load("unlabelled.yaml", Unlabelled)


def items(text: str) -> list[str]:
    """The items of a value list: one a line, or several on a line between ` ; `. `3 * item` counts three times."""
    written = [item.strip() for line in text.splitlines() for item in line.split(" ; ") if item.strip()]
    weighted = [(_WEIGHTED.fullmatch(item), item) for item in written]
    return [kept for match, item in weighted for kept in ([match[2]] * int(match[1]) if match else [item])]
