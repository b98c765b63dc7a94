"""`pillm dataset stats`: counts and lengths as tables, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pillm.core.events import Emit, Log, Output
from pillm.core.stage import Result
from pillm.data.counts import statistics, token_lengths
from pillm.data.counts.figures import Distribution, Statistics
from pillm.data.counts.statistics import Measured
from pillm.data.options import StatsOptions

_SHOWN = 20


def run(options: StatsOptions, emit: Emit) -> Result:
    """Print what the data holds. Raises UsageError if nothing can be read, or if there is no record."""
    measured = measure(options, emit)
    if measured.statistics.invalid:
        emit(
            Log(
                f"{measured.statistics.invalid:,} lines are no records and were left out; see: pillm dataset validate",
                "warning",
            )
        )
    if options.format == "json":
        emit(Output(as_json(measured)))
    else:
        for line in as_text(measured):
            emit(Output(line))
    return Result({})


def measure(options: StatsOptions, emit: Emit) -> Measured:
    """Statistics with lengths in tokens, if a tokenizer is given, else in words."""
    measured = statistics.measure(options.data, options.workers, emit)
    statistics.require_records(measured)
    if options.tokenizer is None:
        return measured
    return token_lengths.added(measured, options.tokenizer, options.workers, emit)


def as_json(measured: Measured) -> str:
    """`{"statistics": ..., "files": [...]}` on one line."""
    files = [
        {
            "file": file.source.name,
            "split": file.split,
            "records": file.records,
            "labelled": file.records - file.prompts,
            "prompts": file.prompts,
            "invalid": file.invalid,
        }
        for file in measured.files
    ]
    return msgspec.json.encode({"statistics": measured.statistics, "files": files}).decode()


def as_text(measured: Measured) -> Iterator[str]:
    """Tables for a terminal."""
    counts = measured.statistics
    yield from _table(("records", "labelled", "prompts", "invalid lines", "bytes"), [
        (counts.records, counts.labelled, counts.prompts, counts.invalid, counts.bytes)
    ])  # fmt: skip
    yield ""
    rows = [
        (file.source.name, file.split, file.records, file.records - file.prompts, file.prompts)
        for file in measured.files
    ]
    yield from _table(("file", "split", "records", "labelled", "prompts"), rows)
    yield ""
    kinds = [(name, f.min, f.median, f.p95, f.max, f.mean, f.count) for name, f in counts.lengths.items()]
    yield from _table(("length in", "min", "median", "p95", "max", "mean", "dialogues"), kinds)
    yield ""
    yield from _table(("role", "turns"), list(counts.turns.items()))
    for title, found in _distributions(counts):
        yield ""
        yield from _distribution(title, found)


def _distributions(counts: Statistics) -> list[tuple[str, Distribution]]:
    return [
        ("locale", counts.locales),
        ("register", counts.registers),
        ("declared tool", counts.tools_declared),
        ("called tool", counts.tools_called),
        ("tag", counts.tags),
        ("source", counts.sources),
        ("license", counts.licenses),
    ]


def _distribution(title: str, found: Distribution) -> Iterator[str]:
    rows: list[tuple[object, ...]] = [(_plain(name), n) for name, n in list(found.counts.items())[:_SHOWN]]
    if rest := found.distinct - len(rows):
        shown = sum(list(found.counts.values())[:_SHOWN])
        rows.append((f"({rest:,} more)", sum(found.counts.values()) + found.others - shown))
    if found.missing:
        rows.append(("(records without)", found.missing))
    yield from _table((title, "count"), rows)


def _plain(name: str) -> str:
    # A tag may hold anything, a line end or a terminal's control codes, too.
    return name if name.isprintable() else repr(name)


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> Iterator[str]:
    cells = [[f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    numeric = [all(isinstance(row[place], int | float) for row in rows) and bool(rows) for place in range(len(head))]
    for row in (list(head), *cells):
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        yield "  ".join(parts).rstrip()
