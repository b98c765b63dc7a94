"""Evidence for varieties of a language: words and spellings that one variety has and another has not.

It never labels. Each marker of `lexicons/LANGUAGE.yaml` names the varieties whose standard usage has
it, with its source; what remains after all markers of a text is what they are evidence for. It abstains if
there is no marker, only weak ones of one line, or if they exclude every variety.

A text is searched as Latin-1 in lower case, split at all that is no letter or digit, which is one pass
of C over it; every word is then one look-up. Phrases and patterns are only tried where a word of theirs is.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Literal, NamedTuple

import msgspec
import yaml

State = Literal["evidence", "silent", "conflict"]


class Marker(NamedTuple):
    """A word, phrase or pattern with the varieties that it is evidence for, as bits of their order in the lexicon."""

    name: str
    varieties: int
    acronym: bool = False
    weak: bool = False
    """Says nothing alone, only beside a marker of another line."""
    entry: str = ""
    """The line of the lexicon that it is from."""


class Pattern(NamedTuple):
    """A marker that no list of words can hold, over words in lower case with one blank around each.

    It is only tried where a word of `needs` is.
    """

    marker: Marker
    match: re.Pattern[bytes]
    needs: frozenset[bytes] = frozenset()


class Typography(NamedTuple):
    """A marker in the text as it is, only tried where one of the characters `needs` is."""

    marker: Marker
    match: re.Pattern[str]
    needs: tuple[str, ...]


class Known(dict[bytes, bool]):
    """Whether a word is in a marker. Words are looked at once, since there are far fewer than there is text."""

    def __init__(self, keys: Iterable[bytes], patterns: tuple[Pattern, ...]) -> None:
        super().__init__()
        self.keys_, self.patterns = frozenset(keys), patterns

    def __missing__(self, word: bytes) -> bool:
        if len(self) >= _WORDS_KEPT:
            self.clear()
        self[word] = known = word in self.keys_ or any(item.match.search(b" %b " % word) for item in self.patterns)
        return known


class Lexicon(NamedTuple):
    """All markers of a language. Phrases stand under their longest word, with its place."""

    language: str
    varieties: tuple[str, ...]
    words: dict[bytes, Marker]
    phrases: dict[bytes, list[tuple[int, list[bytes], Marker]]]
    single: tuple[Pattern, ...]
    """Patterns over one word."""
    several: tuple[Pattern, ...]
    typography: tuple[Typography, ...]
    known: Known
    entries: int
    """Lines of the file, before their endings are spelled out."""


class Evidence(msgspec.Struct, frozen=True):
    """What a text shows.

    `markers` are the forms found with how often; `counts` the markers for each variety; `possible` the varieties
    that no marker speaks against. `verdict` is `possible` where a marker was found and something remains, else empty.
    """

    language: str
    state: State
    markers: dict[str, int] = {}
    counts: dict[str, int] = {}
    possible: tuple[str, ...] = ()

    @property
    def verdict(self) -> tuple[str, ...]:
        """The varieties that the text is evidence for; empty where it abstains."""
        return self.possible if self.state == "evidence" else ()


LANGUAGES = ("de", "en", "es", "fr", "pt")
# Latin-1 in lower case; what is neither letter nor digit is a blank.
_FOLD = bytes(
    ord(chr(code).lower()) if chr(code).isalnum() and ord(chr(code).lower()) < 256 else 32 for code in range(256)
)
_WORDS_KEPT = 50_000
_BRACES = re.compile(r"\{([^{}]*)\}")


def evidence(text: str, language: str) -> Evidence:
    """Which varieties of `language` (a code such as fr) the words of `text` are evidence for.

    A language without a lexicon gives silence with no possible varieties. A word written all in capitals does not
    count, since ß is SS there and names of constants are; an acronym does.
    """
    if language not in LANGUAGES:
        return Evidence(language, "silent")
    book = lexicon(language)
    found = _found(text, book)
    if all(marker.weak for marker in found) and len({marker.entry for marker in found}) < 2:
        return Evidence(language, "silent", possible=book.varieties)
    left, counts = (1 << len(book.varieties)) - 1, dict.fromkeys(book.varieties, 0)
    for marker, count in found.items():
        left &= marker.varieties
        for variety in _named(marker.varieties, book):
            counts[variety] += count
    return Evidence(
        language,
        "evidence" if left else "conflict",
        {marker.name: count for marker, count in sorted(found.items())},
        counts,
        _named(left, book),
    )


@functools.cache
def lexicon(language: str) -> Lexicon:
    """The markers of a language, read once. Raises ValueError for a file that contradicts itself."""
    data = yaml.safe_load((resources.files("pillm") / "data" / "lexicons" / f"{language}.yaml").read_bytes())
    varieties = tuple(data["varieties"])
    words: dict[bytes, Marker] = {}
    phrases: dict[bytes, list[tuple[int, list[bytes], Marker]]] = {}
    entries = 0
    for group in [*data["groups"], *data.get("patterns", ())]:
        if unknown := (set(group["for"]) - set(varieties)) | (set(group["source"]) - set(data["sources"])):
            raise ValueError(f"lexicons/{language}.yaml: {', '.join(sorted(unknown))} is not declared at its head")
    for group in data["groups"]:
        bits = _bits(group["for"], varieties)
        for entry in group["words"]:
            entries += 1
            for form in _expanded(entry):
                marker, parts = (
                    Marker(form.lower(), bits, form != form.lower(), group.get("weak", False), entry),
                    _folded(form).split(),
                )
                if len(parts) > 1:
                    key = max(parts, key=len)
                    phrases.setdefault(key, []).append((parts.index(key), parts, marker))
                elif words.setdefault(parts[0], marker).varieties != bits:
                    raise ValueError(f"lexicons/{language}.yaml: {form} stands for different varieties")
    single, several, typography = [], [], []
    for item in data.get("patterns", ()):
        marker = Marker(item["name"], _bits(item["for"], varieties))
        if "typography" in item:
            typography.append(Typography(marker, re.compile(item["typography"]), tuple(item["needs"])))
        elif "word" in item:
            single.append(Pattern(marker, re.compile(item["word"].encode("latin-1"))))
        else:
            needs = frozenset(_folded(form).strip() for entry in item["needs"] for form in _expanded(entry))
            several.append(Pattern(marker, re.compile(item["match"].encode("latin-1")), needs))
    known = Known(itertools.chain(words, phrases, *(item.needs for item in several)), tuple(single))
    entries += len(data.get("patterns", ()))
    return Lexicon(
        language, varieties, words, phrases, tuple(single), tuple(several), tuple(typography), known, entries
    )


def _found(text: str, book: Lexicon) -> Counter[Marker]:
    found: Counter[Marker] = Counter()
    words = _folded(text).split()
    if hits := Counter(filter(book.known.__getitem__, words)):
        for word, count in hits.items():
            if marker := book.words.get(word):
                found[marker] = count
            if phrases := book.phrases.get(word):
                place = -1
                for _ in range(count):
                    place = words.index(word, place + 1)
                    for before, parts, whole in phrases:
                        if place >= before and words[place - before : place - before + len(parts)] == parts:
                            found[whole] += 1
        if found and not text.islower():
            for marker in [marker for marker in found if not marker.acronym and marker.name.upper() in text]:
                del found[marker]
        for pattern in book.single:
            for word, count in hits.items():
                if times := len(pattern.match.findall(b" %b " % word)):
                    found[pattern.marker] += times * count
        several = [pattern for pattern in book.several if not pattern.needs.isdisjoint(hits)]
        line = b" %b " % b" ".join(words) if several else b""
        for pattern in several:
            if times := len(pattern.match.findall(line)):
                found[pattern.marker] = times
    for mark in book.typography:
        if any(need in text for need in mark.needs) and (times := len(mark.match.findall(text))):
            found[mark.marker] = times
    return found


def _folded(text: str) -> bytes:
    if not text.isascii():
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        text = text.replace("œ", "oe").replace("Œ", "Oe")
    return text.encode("latin-1", "replace").translate(_FOLD)


def _expanded(entry: str) -> Iterator[str]:
    """`colour{,s,ed}` as colour, colours, coloured; of several braces every combination."""
    parts = _BRACES.split(entry)
    for chosen in itertools.product(*(part.split(",") if index % 2 else [part] for index, part in enumerate(parts))):
        yield "".join(chosen)


def _bits(names: list[str], varieties: tuple[str, ...]) -> int:
    return sum(1 << varieties.index(name) for name in names)


def _named(bits: int, book: Lexicon) -> tuple[str, ...]:
    return tuple(name for index, name in enumerate(book.varieties) if bits >> index & 1)
