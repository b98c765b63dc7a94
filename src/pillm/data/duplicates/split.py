"""`pillm dataset split`: parts that each hold the same share of every stratum, with what belongs together kept together.

A stratum is one combination of the values that `--stratify` names, a group what must not be torn apart:
near duplicates, and records with the same value of `--group`. Each stratum's records are dealt out by
largest remainders, so that a part's count is the exact share rounded up or down; groups of more than one
record come first, each to the part that has most room for its strata (after Sechidis, Tsoumakas, Vlahavas:
On the stratification of multi-label data, ECML PKDD 2011). Only the lines' bytes and the seed decide which
record goes where, not the order of lines or files.
"""

from __future__ import annotations

import hashlib
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pillm.core import records
from pillm.core.artifacts import artifact_of
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Emit, Log, Made, Output, Progress
from pillm.core.findings import Finding
from pillm.core.jsonl import MAX_FINDINGS
from pillm.core.stage import Result
from pillm.data import inputs, wire
from pillm.data.counts import statistics
from pillm.data.duplicates import rewrite
from pillm.data.duplicates.dedup import table
from pillm.data.duplicates.near import near_duplicates
from pillm.data.duplicates.set_join import Array, components
from pillm.data.inputs import Block, Source
from pillm.data.options import SplitOptions
from pillm.data.parallel import mapped

_SHOWN = 60
_json = msgspec.json.Encoder(order="sorted").encode


class _Wanted(NamedTuple):
    """What the workers read: the names of the keys to stratify by, the key to group by, the seed."""

    stratify: tuple[str, ...]
    group: str | None
    seed: int


class _Read(NamedTuple):
    """Of a block's records: strata, groups (empty for none), hashes of their lines; lines in all, and bad ones."""

    strata: list[tuple[str, ...]]
    groups: list[str]
    hashes: Array
    lines: int
    bad: list[tuple[int, int]]


class _Records(NamedTuple):
    """All records in order: numbers of their strata (named by `names`) and groups (-1 for none), hashes of lines."""

    strata: Array
    names: list[tuple[str, ...]]
    groups: Array
    hashes: Array


def run(options: SplitOptions, emit: Emit) -> Result:
    """Write the parts and print how many records of each stratum each has.

    Raises UsageError for shares that are none or do not sum to 1, and FindingsError for lines that are no records.
    """
    parts = shares(options.parts)
    sources = inputs.sources(options.data)
    targets = {options.out / f"{name}.jsonl": "" for name in parts}
    rewrite.check_targets(list(targets), sources)
    read = _records(sources, _Wanted(options.stratify, options.group, options.seed), emit)
    if not len(read.strata):
        raise UsageError("there is no record in the data", "give files with one record a line")
    found = near_duplicates(sources, near=options.near, emit=emit)
    units = _units(found.clusters(), read.groups)
    chosen = deal(read.strata, units, read.hashes, list(parts.values()))
    counts = np.zeros((len(read.names), len(parts)), np.int64)
    np.add.at(counts, (read.strata, chosen), 1)
    _write(options, targets, sources, chosen, emit)
    for line in _table(options.stratify, read.names, counts, parts):
        emit(Output(line))
    for name, total in zip(parts, counts.sum(axis=0), strict=True):
        if not total:
            emit(Log(f"{name} has no records: there are too few, or too many of them hang together", "warning"))
    ideal = counts.sum(axis=1, keepdims=True) * np.array([float(share) for share in parts.values()])
    return Result(
        {path.stem: path for path in targets},
        {name: int(total) for name, total in zip(parts, counts.sum(axis=0), strict=True)}
        | {"groups": len(np.unique(units)), "largest_deviation": round(float(np.abs(counts - ideal).max()), 2)},
    )


def shares(parts: Sequence[str]) -> dict[str, Fraction]:
    """`NAME=SHARE` of each part. Raises UsageError unless names differ and shares are above 0 and sum to 1."""
    found: dict[str, Fraction] = {}
    for part in parts:
        name, equals, share = part.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UsageError(f"--parts={part}: this is not NAME=SHARE", "write it like train=0.9")
        if name in found:
            raise UsageError(f"--parts={part}: there are two parts called {name}", "give each its own name")
        try:
            found[name] = Fraction(share.strip())
        except (ValueError, ZeroDivisionError) as error:
            raise UsageError(f"--parts={part}: {share!r} is no number", "write it like 0.9 or 1/3") from error
        if not 0 < found[name] <= 1:
            raise UsageError(f"--parts={part}: a share is above 0 and at most 1", "write it like 0.9 or 1/3")
    if sum(found.values()) != 1:
        total = float(sum(found.values()))
        raise UsageError(f"--parts: the shares sum to {total:g}, not to 1", "for thirds, write 1/3")
    return found


def deal(strata: Array, units: Array, hashes: Array, shares: Sequence[Fraction]) -> Array:
    """The number of the part of each record. Records with the same entry in `units` get the same part.

    `strata` are numbers from 0; `hashes` (uint64) decide the order in which units are dealt.
    """
    count = int(strata.max()) + 1
    need = _quotas(np.bincount(strata, minlength=count), shares)
    chosen = np.full(len(strata), -1, np.int64)
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    alone = sizes[unit] == 1
    key = np.full(len(sizes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(key, unit, hashes)
    members = np.argsort(unit, kind="stable")
    starts = np.concatenate(([0], np.cumsum(sizes)))
    ideal = np.array([float(share) for share in shares])
    for number in np.lexsort((key, -sizes)):
        if sizes[number] == 1:
            break
        own = members[starts[number] : starts[number + 1]]
        which, amounts = np.unique(strata[own], return_counts=True)
        # Where most of it fits; among equals, where most is still wanted for its size.
        fits = np.minimum(amounts[:, None], np.maximum(need[which], 0)).sum(axis=0)
        part = int(np.lexsort((-need[which].sum(axis=0) / ideal, -fits))[0])
        chosen[own] = part
        need[which, part] -= amounts
    rest = np.flatnonzero(alone)
    rest = rest[np.lexsort((hashes[rest], strata[rest]))]
    bounds = np.searchsorted(strata[rest], np.arange(count + 1))
    for stratum in range(count):
        own = rest[bounds[stratum] : bounds[stratum + 1]]
        if len(own):
            quota = _remainders(
                len(own), [Fraction(int(n)) for n in np.maximum(need[stratum], 0)], [Fraction(0)] * len(shares)
            )
            chosen[own] = np.repeat(np.arange(len(shares)), quota)
    return chosen


def _quotas(totals: Array, shares: Sequence[Fraction]) -> Array:
    """How many records of each stratum each part should have: the exact share, rounded up or down."""
    carried = [Fraction(0)] * len(shares)
    quotas = np.zeros((len(totals), len(shares)), np.int64)
    for stratum, total in enumerate(totals.tolist()):
        quotas[stratum] = _remainders(total, shares, carried)
        # What rounding took from a part in one stratum is given to it in a later one, so that the whole fits, too.
        carried = [
            old + total * share - int(quota) for old, share, quota in zip(carried, shares, quotas[stratum], strict=True)
        ]
    return quotas


def _remainders(total: int, weights: Sequence[Fraction], carried: Sequence[Fraction]) -> list[int]:
    whole = sum(weights, Fraction(0))
    exact = [total * weight / whole for weight in weights]
    quota = [int(share) for share in exact]
    order = sorted(
        range(len(weights)),
        key=lambda part: (exact[part] == quota[part], -(exact[part] - quota[part] + carried[part]), part),
    )
    for part in order[: total - sum(quota)]:
        quota[part] += 1
    return quota


def _records(sources: list[Source], wanted: _Wanted, emit: Emit) -> _Records:
    names: dict[tuple[str, ...], int] = {}
    groups: dict[str, int] = {"": -1}
    strata: list[Array] = []
    grouped: list[Array] = []
    hashes: list[Array] = []
    bad: list[Finding] = []
    wrong, before, done = 0, 0, 0
    total = None if any(source.packing for source in sources) else sum(source.size for source in sources) / 1e6
    last: Source | None = None
    for block, read in mapped(inputs.blocks(sources), _read, wanted):
        before, last = before if block.source is last else 0, block.source
        wrong += len(read.bad)
        bad += [_no_record(block, before + line, byte) for line, byte in read.bad[: MAX_FINDINGS - len(bad)]]
        strata.append(np.array([names.setdefault(name, len(names)) for name in read.strata], np.int64))
        grouped.append(np.array([groups.setdefault(name, len(groups)) for name in read.groups], np.int64))
        hashes.append(read.hashes)
        before += read.lines
        done += block.end - block.start
        emit(Progress("reading strata", done / 1e6, total, "MB"))
    if bad:
        raise FindingsError(
            f"{wrong:,} line{'' if wrong == 1 else 's'} cannot be read as records", bad, "see: pillm dataset validate"
        )
    # Strata in the order of their names: that of the files must not matter.
    order = sorted(names)
    place = np.empty(len(names), np.int64)
    place[[names[name] for name in order]] = np.arange(len(order))
    return _Records(place[np.concatenate(strata)], order, np.concatenate(grouped), np.concatenate(hashes))


def _read(block: Block, wanted: _Wanted) -> _Read:
    strata: list[tuple[str, ...]] = []
    groups: list[str] = []
    hashes: list[bytes] = []
    bad: list[tuple[int, int]] = []
    total = 0
    seed = hashlib.blake2b(str(wanted.seed).encode(), digest_size=16).digest()
    for line in block.lines():
        total += 1
        try:
            record = statistics.decoded(line.data, line.byte) if line.size == len(line.data) else None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            record = None
        if record is None:
            if line.data.strip():
                bad.append((line.number, line.byte))
            continue
        strata.append(tuple(_value(record, name) for name in wanted.stratify))
        groups.append(_group(record, wanted.group) if wanted.group else "")
        hashes.append(hashlib.blake2b(line.data.strip(), digest_size=8, key=seed).digest())
    return _Read(strata, groups, np.frombuffer(b"".join(hashes), np.uint64), total, bad)


def _value(record: wire.Line | records.Record, name: str) -> str:
    if name in ("locale", "register", "source"):
        return getattr(record, name)
    prefix = f"{name}:"
    tagged = sorted({tag.removeprefix(prefix) for tag in record.tags if tag.startswith(prefix)})
    if name == "tool" and not tagged:
        turns = (getattr(turn, "tool_calls", None) or () for turn in record.messages)
        tagged = sorted({call.function.name for calls in turns for call in calls})
    return "+".join(tagged)


def _group(record: wire.Line | records.Record, name: str) -> str:
    """The value to group by; an empty text if the record has none."""
    if name in ("source", "tool"):
        return _value(record, name)
    meta: Any = (
        msgspec.json.decode(record.meta) if isinstance(record.meta, msgspec.Raw) and record.meta else record.meta
    )
    if not isinstance(meta, dict) or meta.get(name) is None:
        return ""
    value = meta[name]
    return value if isinstance(value, str) else _json(value).decode()


def _no_record(block: Block, line: int, byte: int) -> Finding:
    return Finding(
        file=block.source.name, line=line, byte=byte, path="$", code="not-a-record",
        message="this line cannot be read as a record", hint="pillm dataset validate says why",
    )  # fmt: skip


def _units(clusters: Array, groups: Array) -> Array:
    """For each record, a number that is the same for all records that must stay together."""
    grouped = np.flatnonzero(groups >= 0)
    first = np.full(int(groups.max(initial=-1)) + 1, len(groups), np.int64)
    np.minimum.at(first, groups[grouped], grouped)
    left = np.concatenate((np.arange(len(groups)), grouped))
    return components(len(groups), left, np.concatenate((clusters, first[groups[grouped]])))


def _write(options: SplitOptions, targets: dict[Path, str], sources: list[Source], chosen: Array, emit: Emit) -> None:
    number = 0
    lines = rewrite.reader(sources, emit)
    with rewrite.files(options.out, targets) as files:
        for source in sources:
            for line, content in lines(source):
                if line == 1:
                    content = content.removeprefix(BOM_UTF8)
                if not content.strip():
                    continue
                files[chosen[number]].write(content if content.endswith(b"\n") else content + b"\n")
                number += 1
    for path in targets:
        emit(Made(path.stem, artifact_of(path)))


def _table(
    keys: tuple[str, ...], names: list[tuple[str, ...]], counts: Array, parts: dict[str, Fraction]
) -> Iterator[str]:
    rows = [[" ".join(keys) or "all", "records", *parts]]
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    for stratum in order[:_SHOWN]:
        name = " ".join(value or "-" for value in names[stratum]) or "all"
        rows.append([name, *(f"{number:,}" for number in (counts[stratum].sum(), *counts[stratum]))])
    if len(order) > _SHOWN:
        rest = counts[order[_SHOWN:]].sum(axis=0)
        rows.append([f"... {len(order) - _SHOWN:,} more", *(f"{number:,}" for number in (rest.sum(), *rest))])
    total = counts.sum(axis=0)
    rows.append(["all together", *(f"{number:,}" for number in (total.sum(), *total))])
    rows.append(["share", "", *(f"{100 * number / total.sum():.2f} %" for number in total)])
    yield from table(rows)
