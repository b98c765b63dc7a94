"""Phrasings to text: slots, optional parts, leading words.

A phrasing is a line such as `state=dim :: Dim {+room}[ to {brightness} percent].`

    state=dim ::      an argument that the phrasing itself fixes
    [ ... ]           there half of the time
    {room}            the value without its leading article or possessive: "kitchen"
    {+room}           the value as it is written in the list: "the kitchen"
    {de:room}         French de + value, contracted: "du salon", "de l'entrée", "d'Anaïs"
    {à:room}          French à + value, contracted: "au salon", "aux toilettes"
    {state=on|off}    one of these, by the position of the value in the schema's enum
    {duration}        "12 minutes": sets amount and unit; {duration_adj} is "12-minute"

Values may hold slots themselves; those are part of the value.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from pillm.data.home_assistant.material import Answers, Common, Phrases, items

T = TypeVar("T")
Draw = Callable[[str], str]

SLOT = re.compile(r"\{(?P<form>\+|de:|à:)?(?P<name>\w+)(?:=(?P<choices>[^}]*))?\}")
OPTIONAL = re.compile(r"\[([^\]]*)\]")
STATES = ("on", "off", "dim")
WORD_SHARE = 0.1
"""How often a timer's amount is said in a word where the split has such words."""

_AN = re.compile(r"\ba (?=(8\d?|11|18|eight|eleven|eighteen)-)")
"""English: an 8-minute timer."""
_ELIDES = tuple("aeiouâàéèêëîïôöûùüœæ")


class Filled(NamedTuple):
    """A phrasing with its slots filled, the arguments it sets, and whether it starts with a slot."""

    text: str
    arguments: dict[str, Any]
    starts_with_slot: bool


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`. Only `random()` is used: its sequence is the one Python promises to keep."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: random.Random, options: Sequence[T]) -> list[T]:
    """`options` in a random order."""
    keyed = [(rng.random(), index) for index in range(len(options))]
    return [options[index] for _, index in sorted(keyed)]


def deck(rng: random.Random, options: Sequence[T]) -> Iterator[T]:
    """`options` dealt like cards: each is drawn once before any comes again."""
    while True:
        yield from shuffled(rng, options)


def drawer(rng: random.Random, phrases: Phrases, common: Common) -> Draw:
    """A function that draws from the value list of a name; `odd`, `Odd`, `num` and `code` are made up."""
    lists = {**common.values, **phrases.values}
    decks = {name: deck(rng, items(text)) for name, text in lists.items()}
    syllables, letters = items(common.syllables), items(common.letters)
    # A made-up word begins with a consonant, so that "a", "le" and "de" stand before it unchanged.
    openings = [syllable for syllable in syllables if not syllable.startswith(_ELIDES)]

    def draw(name: str) -> str:
        if name in ("odd", "Odd"):
            rest = (pick(rng, syllables) for _ in range(1 + int(rng.random() * 1.6)))
            word = pick(rng, openings) + "".join(rest)
            return word.capitalize() if name == "Odd" else word
        if name == "num":
            return str(10 + int(rng.random() * pick(rng, (90, 990, 9000))))
        if name == "code":
            return f"{pick(rng, letters)}{pick(rng, ('', '-'))}{10 + int(rng.random() * 90)}"
        return next(decks[name])

    return draw


def has_number_words(phrases: Phrases) -> bool:
    """Whether the split says some amounts in words."""
    return "number_words" in phrases.values


def split_lead(value: str, leads: Sequence[str]) -> tuple[str, str]:
    """(leading article or possessive, rest): ("la ", "cuisine"), ("l'", "entrée"), ("", "Zoe's room")."""
    for lead in leads:
        if value.startswith(lead):
            return lead, value[len(lead) :]
    return "", value


def with_de(value: str, leads: Sequence[str]) -> str:
    """French `de` + value, contracted."""
    lead, rest = split_lead(value, leads)
    match lead:
        case "le ":
            return f"du {rest}"
        case "les ":
            return f"des {rest}"
        case "un " | "une ":
            return f"d'{value}"
        case "" if value.casefold().startswith(_ELIDES) or value.startswith(("Hé", "Hu", "Yv")):
            return f"d'{value}"
    return f"de {value}"


def with_a(value: str, leads: Sequence[str]) -> str:
    """French `à` + value, contracted."""
    lead, rest = split_lead(value, leads)
    return f"au {rest}" if lead == "le " else f"aux {rest}" if lead == "les " else f"à {value}"


def _in_form(value: str, form: str | None, leads: Sequence[str]) -> str:
    if form == "+":
        return value
    if form == "de:":
        return with_de(value, leads)
    if form == "à:":
        return with_a(value, leads)
    return split_lead(value, leads)[1]


def expand(value: str, draw: Draw, leads: Sequence[str]) -> str:
    """A value with its own slots filled, to any depth."""

    def replace(match: re.Match[str]) -> str:
        inner = expand(draw(match["name"]), draw, leads)
        # Inside a value a plain slot is the word as its list has it; the forms still apply.
        return _in_form(inner, match["form"] or "+", leads)

    return SLOT.sub(replace, value)


def fill(phrasing: str, draw: Draw, rng: random.Random, words: Answers, *, number_words: bool = False) -> Filled:
    """The text of a phrasing, and the arguments its slots set.

    A string argument is the drawn value without its leading article or possessive, except a
    note's text, which is kept whole; so it always stands in the text letter for letter.
    """
    fixed, mark, body = phrasing.rpartition(" :: ")
    arguments: dict[str, Any] = dict([fixed.split("=", 1)]) if mark else {}
    body = OPTIONAL.sub(lambda match: match[1] if rng.random() < 0.5 else "", body)

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if match["choices"]:
            choices = match["choices"].split("|")
            index = int(rng.random() * len(choices))
            arguments[name] = STATES[index]
            return choices[index]
        if name in ("duration", "duration_adj"):
            return _duration(name == "duration_adj", draw, rng, words, arguments, number_words)
        value = expand(draw(name), draw, words.leads)
        if name == "brightness":
            arguments[name] = int(value)
            return value
        if name == "text":
            arguments[name] = value
            return value
        arguments[name] = split_lead(value, words.leads)[1]
        return _in_form(value, match["form"], words.leads)

    text = _AN.sub("an ", SLOT.sub(replace, body))
    return Filled(text, arguments, body.startswith("{"))


def _duration(
    adjective: bool, draw: Draw, rng: random.Random, words: Answers, arguments: dict[str, Any], number_words: bool
) -> str:
    unit = pick(rng, ("seconds", "minutes", "minutes", "minutes", "minutes", "hours"))
    said = draw(unit)
    amount = int(said)
    if number_words and unit == "minutes" and rng.random() < WORD_SHARE:
        said, _, number = draw("number_words").partition("=")
        amount = int(number)
    arguments["amount"], arguments["unit"] = amount, unit
    one, many = words.units[unit]
    if adjective:
        return f"{said}-{one}"
    return f"{said} {one if amount == 1 else many}"
