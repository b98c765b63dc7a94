"""Records whose dialogue stands in an earlier record already, exactly or nearly.

What is compared is the dialogue: what user, assistant and tools say, and the names and arguments of calls.
System prompt and declared tools do not count: they are the same in thousands of records. A
`response_schema` does, since it changes what the right answer is.

- exact: the same turns, after NFC and with every run of blanks as one; keys of arguments in any order.
- near: the Jaccard similarity of the sets of word triples reaches a threshold. Case and the marks of a
  sentence do not count, other signs do. In scripts without spaces a character is a word. The dialogue's
  beginning and end count as words, so one changed word changes 3 of n + 2 triples: at 0.8, dialogues with
  one other word are near duplicates from 25 words on, those with one word more from 21 on.

All pairs above the threshold are found (see `set_join`). Triples are compared by 32-bit hashes: two
dialogues of 100 words have one chance in 400,000 of being taken for 1 % more alike than they are.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pillm.core.events import Emit, Log, Progress, silent
from pillm.core.jsonl import Line
from pillm.core.records import Message
from pillm.data.counts import statistics
from pillm.data.duplicates import set_join
from pillm.data.duplicates.rewrite import damaged
from pillm.data.duplicates.set_join import Array
from pillm.data.inputs import Block, Source, blocks
from pillm.data.parallel import mapped

_MARK = "\x02"
_WORD = re.compile(
    f"{_MARK}[a-z]+"
    # Thai, Lao, Burmese, Khmer, Japanese and Chinese are written without spaces.
    "|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    r"|[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
    r"""|[^\w\s.,;:!?'"()\[\]{}¿¡«»‹›“”„‘’…。、，！？]"""
)
_EDGE = "\x03"
_TRIPLE = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_sorted_json = msgspec.json.Encoder(order="sorted").encode


class Repeat(NamedTuple):
    """A record that repeats an earlier one: numbers of their sources and lines, and how alike they are."""

    source: int
    line: int
    of_source: int
    of_line: int
    similarity: float
    exact: bool


class Duplicates(msgspec.Struct, frozen=True):
    """What `near_duplicates` found. Records are numbered from 0 over all sources; arrays have one entry for each.

    `repeats` is the number of the earlier record that a record repeats, or -1; `similarity` is how alike
    the two are. An exact duplicate repeats the first such record; a near one the most similar of those
    before it, whether that one is a duplicate itself or not. `pairs` are near pairs of which neither is an
    exact duplicate of an earlier record.
    """

    sources: tuple[Source, ...]
    records: int
    invalid: int
    """Lines that are no records."""
    exact: int
    """Records that are an exact duplicate of an earlier one."""
    near: int
    """Other records that are a near duplicate of an earlier one."""
    source: Array
    line: Array
    repeats: Array
    similarity: Array
    is_exact: Array
    pairs: set_join.Pairs

    def found(self) -> Iterator[Repeat]:
        """Every record that repeats an earlier one, in order."""
        for number in np.flatnonzero(self.repeats >= 0):
            of = self.repeats[number]
            yield Repeat(
                int(self.source[number]), int(self.line[number]), int(self.source[of]), int(self.line[of]),
                float(self.similarity[number]), bool(self.is_exact[number]),
            )  # fmt: skip

    def clusters(self) -> Array:
        """For each record, the number of the first record that it hangs together with, over any chain of pairs."""
        copies = np.flatnonzero(self.is_exact)
        left = np.concatenate((self.pairs.later, copies))
        return set_join.components(self.records, left, np.concatenate((self.pairs.earlier, self.repeats[copies])))


class _Content(NamedTuple):
    """Of one block: line numbers, digests (n, 2), sizes of the sets, their members; lines in all, and bad ones."""

    line: Array
    digest: Array
    sizes: Array
    members: Array
    lines: int
    invalid: int


def near_duplicates(
    sources: Sequence[Source],
    similarity: float = 0.8,
    near: bool = True,
    groups: Sequence[int] | None = None,
    workers: int | None = None,
    emit: Emit = silent,
) -> Duplicates:
    """Records of `sources` that repeat an earlier one. The result is the same for any number of workers.

    `similarity` is the Jaccard similarity of word triples from which two dialogues are near duplicates; without
    `near` only exact duplicates are looked for. `groups` says which sources belong together (by default each is
    on its own): where nearly everything is alike and only some pairs are kept, those between groups are kept
    as well as those within. Lines that are no records are counted and left alone. Raises FindingsError if a
    compressed file is damaged.
    """
    content = _gather(sources, near, workers, emit)
    count = len(content.line)
    first = _first_with(content.digest)
    is_exact = first != np.arange(count)
    repeats = np.where(is_exact, first, -1)
    alike = np.where(is_exact, np.float32(1), np.float32(0)).astype(np.float32)
    group = np.array(groups if groups is not None else range(len(sources)))[content.source]
    pairs = _near_pairs(content, is_exact, similarity, group, emit) if near else set_join.none()
    # Sorted by record, then the most similar first, then the earliest.
    best = np.lexsort((pairs.earlier, -pairs.similarity, pairs.later))
    later, chosen = np.unique(pairs.later[best], return_index=True)
    repeats[later] = pairs.earlier[best][chosen]
    alike[later] = pairs.similarity[best][chosen]
    return Duplicates(
        tuple(sources), count, content.invalid, int(is_exact.sum()), len(later),
        content.source, content.line, repeats, alike, is_exact, pairs,
    )  # fmt: skip


def dialogue(turns: Sequence[Any], schema: bytes = b"") -> str:
    """What is compared of a record's turns, as one text; of `wire` or of `core.records`."""
    parts: list[str] = []
    for turn in turns:
        role = turn.role if isinstance(turn, Message) else type(turn).__struct_config__.tag
        # A record of nothing but a system prompt is its prompt.
        if role in ("system", "developer") and len(turns) > 1:
            continue
        parts.append(f"{_MARK}{role}")
        if turn.content:
            parts.append(turn.content)
        for call in getattr(turn, "tool_calls", None) or ():
            arguments = _sorted_json(call.function.arguments).decode()
            parts.append(f"{_MARK}call {call.function.name} {arguments}")
    if schema:
        parts.append(f"{_MARK}schema {hashlib.blake2b(schema, digest_size=8).hexdigest()}")
    text = " ".join(" ".join(parts).split())
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def words(text: str) -> list[str]:
    """The words of a dialogue, as near duplicates are told by them."""
    return _WORD.findall(text.casefold())


class _Gathered(NamedTuple):
    line: Array
    source: Array
    digest: Array
    sizes: Array
    members: Array
    invalid: int


def _gather(sources: Sequence[Source], near: bool, workers: int | None, emit: Emit) -> _Gathered:
    number = {source.path: index for index, source in enumerate(sources)}
    held: list[tuple[Array, Array, Array, Array]] = []
    # One growing buffer: a list of arrays would be there twice while it is joined.
    members = bytearray()
    before, invalid, done = 0, 0, 0
    total = None if any(source.packing for source in sources) else sum(source.size for source in sources) / 1e6
    last: Source | None = None
    for block, content in mapped(blocks(sources), _content, near, workers):
        if block.broken:
            raise damaged(block.source, block.broken)
        before = before if block.source is last else 0
        last = block.source
        index = np.full(len(content.line), number[block.source.path], np.int32)
        held.append((content.line + np.uint32(before), index, content.digest, content.sizes))
        members += content.members.tobytes()
        before += content.lines
        invalid += content.invalid
        done += block.end - block.start
        emit(Progress("reading dialogues", done / 1e6, total, "MB"))
    if not held:
        held.append(
            (np.zeros(0, np.uint32), np.zeros(0, np.int32), np.zeros((0, 2), np.uint64), np.zeros(0, np.uint32))
        )
    line, source, digest, sizes = (np.concatenate(column) for column in zip(*held, strict=True))
    return _Gathered(line, source, digest, sizes, np.frombuffer(members, np.uint32), invalid)


def _content(block: Block, near: bool) -> _Content:
    lines, digests, texts, total, invalid = [], [], [], 0, 0
    for line in block.lines():
        total += 1
        if not (text := _text(line)):
            invalid += text is None
            continue
        lines.append(line.number)
        digests.append(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
        texts.append(text)
    sizes, members = _triples(texts) if near else (np.zeros(len(texts), np.uint32), np.zeros(0, np.uint32))
    digest = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    return _Content(np.array(lines, np.uint32), digest, sizes, members, total, invalid)


def _text(line: Line) -> str | None:
    """The dialogue of a line; an empty text for a blank line, None for what is no record."""
    if line.size > len(line.data):
        return None
    try:
        record = statistics.decoded(line.data, line.byte)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if record is None:
        return ""
    schema = record.response_schema
    if not isinstance(schema, msgspec.Raw):
        schema = b"" if schema is None else _sorted_json(schema)
    return dialogue(record.messages, bytes(schema))


class _Hashes(dict[str, int]):
    """64-bit hashes of words, the same in every process (Python's own `hash` is not)."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


def _triples(texts: list[str]) -> tuple[Array, Array]:
    """For each text, the hashes of its word triples, sorted and each once; how many, then all in a row."""
    if not texts:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
    hashes = _Hashes()
    edge = [hashes[_EDGE]] * 2
    flat: list[int] = []
    lengths = []
    for text in texts:
        found = words(text)
        flat += edge
        flat += [hashes[word] for word in found]
        # Two edges before each text are also those after the one before it: every place begins one triple.
        lengths.append(len(found) + 2)
    word = np.array(flat + edge, np.uint64)
    triple = word[:-2] * _TRIPLE[0] + word[1:-1] * _TRIPLE[1] + word[2:] * _TRIPLE[2]
    triple = ((triple ^ (triple >> np.uint64(32))) * _MIX) >> np.uint64(32)
    rows = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
    keys = set_join.distinct((rows << np.uint64(32)) | triple)
    sizes = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(texts)).astype(np.uint32)
    return sizes, (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _first_with(digest: Array) -> Array:
    """For each record, the number of the first one with the same digest."""
    count = len(digest)
    order = np.lexsort((np.arange(count), digest[:, 1], digest[:, 0]))
    new = np.ones(count, bool)
    new[1:] = (digest[order][1:] != digest[order][:-1]).any(axis=1)
    first = np.empty(count, np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1] if count else order
    return first


def _near_pairs(content: _Gathered, is_exact: Array, similarity: float, group: Array, emit: Emit) -> set_join.Pairs:
    own = np.flatnonzero(~is_exact)
    sizes, members = content.sizes, content.members
    if len(own) < len(sizes):
        members = members[np.repeat(~is_exact, sizes)]
        sizes = sizes[own]

    def tell(share: float) -> None:
        emit(Progress("comparing dialogues", round(100 * share), 100, "%"))

    pairs = set_join.alike(members, sizes, similarity, group[own], tell)
    if pairs.windowed:
        emit(
            Log(
                f"more than {set_join.WINDOW:,} dialogues differ in a few words only: each of them was compared to the "
                f"{set_join.WINDOW:,} nearest in length, and near duplicates among the others may be missing",
                "warning",
            )
        )
    return pairs._replace(later=own[pairs.later], earlier=own[pairs.earlier])
