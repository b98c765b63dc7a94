"""`pillm dataset dedup`: name records that stand there already, and write the data without them.

Of records that repeat each other the first one stays. Held-out files come first, whatever their place on
the command line: those of `--heldout`, and those of the data whose name says test, validation or the like
(see `statistics.split_of`). A record that repeats one of another part is leakage, and it is always the
record that is trained on which is at fault.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pillm.core.artifacts import artifact_of
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Emit, Log, Made, Output
from pillm.core.findings import Finding
from pillm.core.jsonl import MAX_FINDINGS
from pillm.core.stage import Result
from pillm.data import inputs
from pillm.data.counts.statistics import split_of
from pillm.data.duplicates import rewrite
from pillm.data.duplicates.near import Duplicates, Repeat, near_duplicates
from pillm.data.duplicates.set_join import Array
from pillm.data.inputs import Source
from pillm.data.options import DedupOptions

_SHOWN = 1000
_TESTS = ("test", "testing", "heldout", "eval", "evaluation")
_VALIDATIONS = ("validation", "valid", "val", "dev", "development")


class _Faults(NamedTuple):
    """Records to leave out: which ones, and which of them are leakage; arrays with one entry for each record."""

    repeats: list[tuple[Repeat, bool]]
    out: Array
    leaked: Array


def run(options: DedupOptions, emit: Emit) -> Result:
    """Report duplicates and leakage; with `out`, write the data without them.

    Raises FindingsError for leakage unless `out` is given, in which case what leaks is left out.
    """
    held = inputs.sources(options.heldout) if options.heldout else []
    data = inputs.sources([*options.heldout, *options.data])[len(held) :]
    if not data:
        raise UsageError("there is no data beside the held-out files", "give the files to look through")
    targets = {options.out / source.path.name: source.packing for source in data} if options.out else {}
    if options.out:
        rewrite.check_targets([options.out / source.path.name for source in data], [*held, *data])
    parts = dict.fromkeys(held, 0) | dict(zip(data, _parts(data), strict=True))
    # Earlier means more protected: of two records that repeat each other, the later one is left out.
    ordered = sorted([*held, *data], key=lambda source: parts[source])
    found = near_duplicates(
        ordered, options.similarity, options.near, [parts[source] for source in ordered], options.workers, emit
    )
    faults = _faults(found, np.array([parts[source] for source in ordered]), len(held))
    for line in _report(found, faults, len(held)):
        emit(Output(line))
    if found.invalid:
        emit(Log(f"{_many(found.invalid, 'line')} cannot be read as records; see pillm dataset validate", "warning"))
    leaks = int(faults.leaked.sum())
    if leaks and not options.out:
        raise FindingsError(
            f"{_many(leaks, 'record')} of the data repeat held-out records",
            [_leak(found, repeat) for repeat, leaked in faults.repeats if leaked][:MAX_FINDINGS],
            "leave them out: give a folder with --out",
        )
    if options.out:
        _write(options.out, targets, found, faults, data, emit)
    return Result(
        {"data": options.out} if options.out else {},
        {
            "records": int((found.source >= len(held)).sum()),
            "exact": sum(repeat.exact for repeat, leak in faults.repeats if not leak),
            "near": sum(not repeat.exact for repeat, leak in faults.repeats if not leak),
            "leakage": leaks,
            "kept": int(((found.source >= len(held)) & ~faults.out).sum()),
            "invalid": found.invalid,
        },
    )


def _parts(data: Sequence[Source]) -> list[int]:
    """What each file is for, the most protected first; 0 is --heldout. What is not held out is trained on.

    Only that part of a path counts in which the files differ: nobody means the folder above all of them.
    """
    paths = [source.path.resolve() for source in data]
    above = os.path.commonpath([path.parent for path in paths])
    splits = [split_of(path.relative_to(above)) for path in paths]
    return [1 if split in _TESTS else 2 if split in _VALIDATIONS else 3 for split in splits]


def _faults(found: Duplicates, parts: Array, held: int) -> _Faults:
    """What is to be left out. Leakage is told even where a record is more like another one of its own part."""
    part = parts[found.source]
    first = np.where(found.is_exact, found.repeats, np.arange(found.records))
    later, earlier, similarity = found.pairs.later, found.pairs.earlier, found.pairs.similarity
    across = part[later] != part[earlier]
    later, earlier, similarity = later[across], earlier[across], similarity[across]
    best = np.lexsort((earlier, -similarity, later))
    leaking, chosen = np.unique(later[best], return_index=True)
    leak_of = np.full(found.records, -1, np.int64)
    alike = found.similarity.copy()
    leak_of[leaking], alike[leaking] = earlier[best][chosen], similarity[best][chosen]
    # A copy leaks as what it is a copy of does, which stands in the same part or in a more protected one.
    leak_of = np.where(part[first] != part, first, leak_of[first])
    exact = found.is_exact & (part[first] != part)
    repeats = []
    data = found.source >= held
    leaked = data & (leak_of >= 0)
    out = data & ((found.repeats >= 0) | leaked)
    for number in np.flatnonzero(out):
        leak = bool(leaked[number])
        of = leak_of[number] if leak else found.repeats[number]
        is_exact = bool(exact[number] if leak else found.is_exact[number])
        repeat = Repeat(
            int(found.source[number]), int(found.line[number]), int(found.source[of]), int(found.line[of]),
            1.0 if is_exact else float(alike[first[number]]), is_exact,
        )  # fmt: skip
        repeats.append((repeat, leak))
    return _Faults(repeats, out, leaked)


def _report(found: Duplicates, faults: _Faults, held: int) -> Iterator[str]:
    for repeat, leak in faults.repeats[:_SHOWN]:
        yield f"{_place(found, repeat.source, repeat.line)}: {'leakage: ' if leak else ''}{_what(found, repeat)}"
    if (more := len(faults.repeats) - _SHOWN) > 0:
        yield f"... and {more:,} more"
    counts = Counter(
        (repeat.source, "leakage" if leak else "exact" if repeat.exact else "near") for repeat, leak in faults.repeats
    )
    totals = np.bincount(found.source, minlength=len(found.sources))
    rows = [["file", "records", "exact", "near", "leakage", "kept"]]
    for index, source in enumerate(found.sources[held:], held):
        figures = [counts[index, name] for name in ("exact", "near", "leakage")]
        total = int(totals[index])
        rows.append([source.name, *(f"{number:,}" for number in (total, *figures, total - sum(figures)))])
    yield from table(rows)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows with a head as aligned columns, the first one of words and the others of figures."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells)


def _leak(found: Duplicates, repeat: Repeat) -> Finding:
    return Finding(
        file=found.sources[repeat.source].name,
        line=repeat.line,
        path="$",
        code="leakage",
        message=_what(found, repeat),
        hint="take it out of what is trained on",
    )


def _what(found: Duplicates, repeat: Repeat) -> str:
    of = _place(found, repeat.of_source, repeat.of_line)
    return (
        f"the same dialogue as {of}"
        if repeat.exact
        else f"nearly the dialogue of {of} (similarity {repeat.similarity:.2f})"
    )


def _place(found: Duplicates, source: int, line: int) -> str:
    return f"{found.sources[source].name}:{line}"


def _write(
    folder: Path, targets: dict[Path, str], found: Duplicates, faults: _Faults, data: list[Source], emit: Emit
) -> None:
    number = {source: index for index, source in enumerate(found.sources)}
    lines = rewrite.reader(data, emit)
    with rewrite.files(folder, targets) as files:
        for source, file in zip(data, files, strict=True):
            left_out = set(found.line[faults.out & (found.source == number[source])].tolist())
            for line, content in lines(source):
                if line not in left_out:
                    file.write(content)
    for path in targets:
        emit(Made(path.name, artifact_of(path)))


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
