"""All pairs of sets that are alike: an exact similarity join, in flat arrays.

No pair is missed and none is reported wrongly, unlike with MinHash and LSH, which estimate both. Two sets
with a Jaccard similarity of at least t share one of their |x| - ceil(t |x|) + 1 rarest members (the prefix
filter of Bayardo, Ma, Srikant: Scaling up all pairs similarity search, WWW 2007), so only sets that meet
in such a rare member are looked at. Of those, parity bitmaps rule out nearly all that are too different
(Sandes, Teodoro, Melo: Bitmap filter, Information Systems 88, 2020). What is left is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
WINDOW = 400
"""A member that is among the rarest of more sets than this has each of them compared to so many of the next
smaller ones only. That keeps the time linear where thousands of sets differ in hardly anything."""
KEPT = 16
"""Once a set has so many pairs with earlier ones of its own group, no more of these are looked for; and the same
for pairs with other groups. Where everything is alike, memory would not hold all pairs."""
_TABLE_BITS = 22
_WORDS = 4
_BATCH = 2**22


class Pairs(NamedTuple):
    """Pairs of alike sets: `later` > `earlier` are numbers of sets, sorted; `similarity` is their Jaccard similarity."""

    later: Array
    earlier: Array
    similarity: Array
    windowed: bool
    """Whether `WINDOW` cut comparisons off, so that pairs may be missing."""


def alike(
    members: Array, sizes: Array, similarity: float, groups: Array, tell: Callable[[float], None] | None = None
) -> Pairs:
    """Pairs of sets with a Jaccard similarity of at least `similarity`, which is above 0 and at most 1.

    `members` (uint32) holds the sets one after the other, each sorted and without repeats; `sizes` says how
    many each has, none of them 0; `groups` is a number for each set (see `KEPT`). `tell` is called with the
    share of the work that is done.
    """
    sizes = sizes.astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    kept = _Kept(len(sizes), groups)
    if len(sizes) < 2:
        return kept.pairs(False)
    # By size, so that a set meets the next smaller ones first and can stop at those that are too small.
    order = np.argsort(sizes, kind="stable")
    postings = _postings(members, sizes, offsets, similarity, order)
    bitmaps = _bitmaps(members, offsets)
    for share, left, right in _candidates(postings, sizes[order], similarity):
        x, y = order[left], order[right]
        earlier, later = np.minimum(x, y), np.maximum(x, y)
        wanted = kept.wanted(later, earlier)
        keys = distinct((later[wanted].astype(np.uint64) << np.uint64(32)) | earlier[wanted].astype(np.uint64))
        later, earlier = (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        both = sizes[later] + sizes[earlier]
        # |x and y| >= t / (1 + t) (|x| + |y|) is the same as J >= t.
        needed = np.ceil(similarity / (1 + similarity) * both - 1e-9).astype(np.int64)
        apart = np.bitwise_count(bitmaps[later] ^ bitmaps[earlier]).sum(axis=1, dtype=np.int64)
        near = apart <= both - 2 * needed
        later, earlier, both, needed = later[near], earlier[near], both[near], needed[near]
        common = _common(members, offsets, later, earlier)
        found = common >= needed
        kept.add(later[found], earlier[found], common[found] / (both - common)[found])
        if tell:
            tell(share)
    return kept.pairs(bool(len(postings) > WINDOW and _longest_run(postings) > WINDOW))


def none() -> Pairs:
    """No pairs."""
    return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), False)


def distinct(keys: Array) -> Array:
    """The sorted keys, each once. Sorts `keys` in place: `np.unique` hashes, which takes several times as long."""
    keys.sort()
    return keys[np.concatenate((np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]))]


def components(count: int, left: Array, right: Array) -> Array:
    """For each of `count` things, the lowest number of those it hangs together with over pairs (left, right)."""
    leader = np.arange(count)
    while True:
        one, other = leader[left], leader[right]
        apart = one != other
        if not apart.any():
            return leader
        np.minimum.at(leader, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while not np.array_equal(shorter := leader[leader], leader):
            leader = shorter


class _Kept:
    """The pairs found so far, with how many each set has already."""

    def __init__(self, count: int, groups: Array) -> None:
        self.groups = groups
        self.counts = np.zeros((2, count), np.int64)
        self.found: list[tuple[Array, Array, Array]] = []

    def wanted(self, later: Array, earlier: Array) -> Array:
        return self.counts[(self.groups[later] != self.groups[earlier]).astype(np.int64), later] < KEPT

    def add(self, later: Array, earlier: Array, similarity: Array) -> None:
        other = (self.groups[later] != self.groups[earlier]).astype(np.int64)
        np.add.at(self.counts, (other, later), 1)
        self.found.append((later, earlier, similarity.astype(np.float32)))

    def pairs(self, windowed: bool) -> Pairs:
        if not self.found:
            return none()
        later, earlier, similarity = (np.concatenate(column) for column in zip(*self.found, strict=True))
        # A pair meets once for each rare member that both have, maybe in different batches.
        _, first = np.unique((later.astype(np.uint64) << np.uint64(32)) | earlier.astype(np.uint64), return_index=True)
        return Pairs(later[first], earlier[first], similarity[first], windowed)


def _postings(members: Array, sizes: Array, offsets: Array, similarity: float, order: Array) -> Array:
    """The rarest members of each set as sorted (member << 32 | rank of the set)."""
    # Members are counted by their highest bits: it is no harm if a few share a count.
    bits = min(_TABLE_BITS, len(members).bit_length() + 2)
    shift = 32 - bits
    counts = np.zeros(2**bits, np.int64)
    for start in range(0, len(members), _BATCH):
        counts += np.bincount(members[start : start + _BATCH] >> shift, minlength=2**bits)
    # In steps of a quarter octave: any order will do, as long as it is the same for all sets.
    rarity = (np.log2(np.maximum(counts, 1)) * 4).astype(np.uint64)
    ranks = np.empty(len(order), np.uint64)
    ranks[order] = np.arange(len(order), dtype=np.uint64)
    prefix = sizes - np.ceil(similarity * sizes - 1e-9).astype(np.int64) + 1
    parts = []
    for first, last in _chunks(offsets, _BATCH):
        part = members[offsets[first] : offsets[last]]
        rows = np.repeat(np.arange(last - first, dtype=np.uint64), sizes[first:last])
        # 24 bits of row, 8 of rarity, 32 of member.
        keys = (rows << np.uint64(40)) | (rarity[part >> shift] << np.uint64(32)) | part.astype(np.uint64)
        keys.sort()
        place = np.arange(len(part)) - np.repeat(offsets[first:last] - offsets[first], sizes[first:last])
        chosen = place < np.repeat(prefix[first:last], sizes[first:last])
        own = ranks[first:last][(keys[chosen] >> np.uint64(40)).astype(np.int64)]
        parts.append(((keys[chosen] & np.uint64(0xFFFFFFFF)) << np.uint64(32)) | own)
    found = np.concatenate(parts)
    found.sort()
    return found


def _bitmaps(members: Array, offsets: Array) -> Array:
    """For each set, 256 bits: whether it has an odd number of members that fall on the bit."""
    result = np.zeros((len(offsets) - 1, _WORDS), np.uint64)
    for first, last in _chunks(offsets, _BATCH):
        part = members[offsets[first] : offsets[last]]
        bits = np.uint64(1) << (part & 63).astype(np.uint64)
        word = (part >> 6) % _WORDS
        starts = offsets[first:last] - offsets[first]
        for number in range(_WORDS):
            result[first:last, number] = np.bitwise_xor.reduceat(np.where(word == number, bits, np.uint64(0)), starts)
    return result


def _candidates(postings: Array, sizes: Array, similarity: float) -> Iterator[tuple[float, Array, Array]]:
    """Ranks of sets that share a rare member and are of like size, in batches; with the share that is done."""
    member, rank = postings >> np.uint64(32), (postings & np.uint64(0xFFFFFFFF)).astype(np.int64)
    for start in range(0, len(postings), _BATCH):
        left: list[Array] = []
        right: list[Array] = []
        count = 0
        end = min(start + _BATCH, len(postings))
        alive = np.arange(max(start, 1), end)
        for shift in range(1, WINDOW + 1):
            alive = alive[alive >= shift]
            other = alive - shift
            meets = (member[alive] == member[other]) & (sizes[rank[other]] >= similarity * sizes[rank[alive]] - 1e-9)
            alive, other = alive[meets], other[meets]
            if not len(alive):
                break
            left.append(rank[alive])
            right.append(rank[other])
            count += len(alive)
            if count >= _BATCH:
                yield start / len(postings), np.concatenate(left), np.concatenate(right)
                left, right, count = [], [], 0
        if left:
            yield end / len(postings), np.concatenate(left), np.concatenate(right)


def _common(members: Array, offsets: Array, left: Array, right: Array) -> Array:
    """How many members the sets of each pair have in common."""
    result = np.zeros(len(left), np.int64)
    sizes = np.diff(offsets)
    edges = np.concatenate(([0], np.cumsum(sizes[left] + sizes[right])))
    for first, last in _chunks(edges, _BATCH):
        pair = np.arange(last - first, dtype=np.uint64)
        sides = []
        for side in (left[first:last], right[first:last]):
            lengths = sizes[side]
            inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            where = np.repeat(offsets[side], lengths) + inside
            sides.append((np.repeat(pair, lengths) << np.uint64(32)) | members[where].astype(np.uint64))
        keys = np.concatenate(sides)
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]]
        result[first:last] = np.bincount((twice >> np.uint64(32)).astype(np.int64), minlength=last - first)
    return result


def _chunks(offsets: Array, size: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of sets with about `size` members each, at least one set in each range."""
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last


def _longest_run(postings: Array) -> int:
    member = postings >> np.uint64(32)
    starts = np.flatnonzero(np.concatenate(([True], member[1:] != member[:-1])))
    return int(np.diff(np.concatenate((starts, [len(member)]))).max())
