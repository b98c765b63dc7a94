"""The figures that are kept of a dataset: exact, and small however large the data is."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

MAX_VALUES = 200
"""So many values of a distribution are kept by name; the rarer ones are summed up."""


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of `count` dialogues. Percentiles are nearest-rank: the least length that so many do not exceed."""

    count: int
    min: int
    median: int
    p95: int
    max: int
    mean: float


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """How often which value stands there, most frequent first.

    `missing` counts records that have none. Beyond MAX_VALUES, `others` is the sum of the rest.
    """

    counts: dict[str, int]
    distinct: int
    others: int = 0
    missing: int = 0


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the dataset."""

    files: int
    records: int
    labelled: int
    prompts: int


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a dataset. `bytes` is that of the lines, unpacked; `turns` are messages by role.

    `lengths` are those of dialogues: `characters` and `words` of every message's text and of tool calls
    as JSON (words are what stands between blanks), `messages`, and with a tokenizer `tokens` instead of
    words, or `tokens_of_a_sample` where a file has more records than were looked at.
    """

    records: int
    labelled: int
    prompts: int
    invalid: int
    bytes: int
    turns: dict[str, int]
    splits: dict[str, Split]
    locales: Distribution
    registers: Distribution
    tools_declared: Distribution
    tools_called: Distribution
    tags: Distribution
    sources: Distribution
    licenses: Distribution
    lengths: dict[str, Lengths]


def lengths(counts: Mapping[int, int]) -> Lengths:
    """Figures of lengths given by how often each occurs; all 0 if there are none."""
    total = sum(counts.values())
    if not total:
        return Lengths(count=0, min=0, median=0, p95=0, max=0, mean=0.0)
    order = sorted(counts)

    def percentile(share: int) -> int:
        # Whole numbers, so that 95 % of 100 is 95 and not 95.00000000000001.
        rank, seen = -(-total * share // 100), 0
        for value in order:
            seen += counts[value]
            if seen >= rank:
                return value
        return order[-1]

    mean = round(sum(value * times for value, times in counts.items()) / total, 2)
    return Lengths(count=total, min=order[0], median=percentile(50), p95=percentile(95), max=order[-1], mean=mean)


def distribution(counts: Mapping[str, int], missing: int = 0) -> Distribution:
    """The distribution of counted values; the empty value counts as missing."""
    named = sorted(((name, n) for name, n in counts.items() if name), key=lambda item: (-item[1], item[0]))
    others = sum(n for _, n in named[MAX_VALUES:])
    missing += counts.get("", 0)
    return Distribution(counts=dict(named[:MAX_VALUES]), distinct=len(named), others=others, missing=missing)
