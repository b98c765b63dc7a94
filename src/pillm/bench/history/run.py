"""`pillm bench history`: the command over the store."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pillm.bench.history.options import HistoryOptions
from pillm.bench.trends.series import series
from pillm.bench.trends.sparkline import lines, plain
from pillm.core.artifacts import artifact_of, atomic_file
from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Log, Made, Output
from pillm.core.stage import MetricValue, Result
from pillm.history import document, store
from pillm.history.imports import import_file
from pillm.history.retention import Policy, superfluous
from pillm.history.schema import COLUMNS, Summary, summary
from pillm.history.store import Wanted

_NAMED = 20


def run(options: HistoryOptions, emit: Emit) -> Result:
    """Do what is asked for: add files, prune, export, else list. Only the first two change the history.

    Raises UsageError (files, options, a history that is not one), FindingsError (lines that are no runs; the others
    were added), ResourceError, PillmError (damaged).
    """
    _check(options)
    if options.import_ or options.add:
        return Result({}, _add(options, emit))
    wanted = _wanted(options)
    if options.prune:
        return _prune(options, wanted, emit)
    if options.export:
        return _export(options, wanted, emit)
    return _list(options, wanted, emit)


def _check(options: HistoryOptions) -> None:
    policy = [name for name in ("keep_days", "keep_per_series", "thin") if getattr(options, name) is not None]
    if (policy or options.yes) and not options.prune:
        name = policy[0].replace("_", "-") if policy else "yes"
        raise UsageError(f"--{name} belongs to --prune", "add --prune: it names the runs; --yes deletes them")
    if options.output and not options.export:
        raise UsageError("--output belongs to --export", "add --export csv, json or jsonl")
    if sum(map(bool, (options.import_ or options.add, options.prune, options.export))) > 1:
        raise UsageError("--import/--add, --prune and --export are commands of their own", "give one at a time")


def _wanted(options: HistoryOptions) -> Wanted:
    return Wanted(
        board=options.board,
        model=options.model,
        build=options.build,
        since=options.since,
        until=options.until,
        valid=None if options.invalid is None else not options.invalid,
    )


def _add(options: HistoryOptions, emit: Emit) -> dict[str, MetricValue]:
    total, fresh = 0, 0
    if options.add:
        total, fresh = 1, int(store.add(document.load(options.add)))
        emit(Output(f"{options.add}: {'added' if fresh else 'is there already'}"))
    for path in options.import_:
        found = import_file(path)
        emit(Output(f"{path}: {_runs(found.runs)}, {found.new:,} new"))
        total, fresh = total + found.runs, fresh + found.new
    return {"runs": total, "new": fresh}


def _prune(options: HistoryOptions, wanted: Wanted, emit: Emit) -> Result:
    policy = Policy(days=options.keep_days, per_series=options.keep_per_series, thin=options.thin)
    gone = superfluous(store.summaries(wanted), policy, datetime.datetime.now(datetime.UTC))
    for row in gone[:_NAMED]:
        emit(Output(_row(row)))
    if len(gone) > _NAMED:
        emit(Output(f"... and {len(gone) - _NAMED:,} more"))
    if not options.yes:
        emit(
            Output(
                f"{_runs(len(gone))} would be deleted ({policy}); nothing was. Add --yes to delete, --export first to keep a copy"
            )
        )
        return Result({}, {"deleted": 0, "superfluous": len(gone)})
    count = store.remove([row.id for row in gone], str(policy)) if gone else 0
    emit(Output(f"{_runs(count)} deleted ({policy})"))
    return Result({}, {"deleted": count, "superfluous": len(gone)})


def _export(options: HistoryOptions, wanted: Wanted, emit: Emit) -> Result:
    forms = {"csv": _csv, "json": _json, "jsonl": _jsonl}
    pieces = forms[options.export or "json"](wanted)
    if options.output is None:
        for piece in pieces:
            emit(Output(piece))
        return Result({})
    with writing(options.output), atomic_file(options.output) as file:
        for piece in pieces:
            file.write(piece.encode() + b"\n")
    emit(Made("export", artifact_of(Path(options.output))))
    return Result({"export": options.output})


def _jsonl(wanted: Wanted) -> Iterator[str]:
    for text in store.documents(wanted):
        yield text.decode()


def _json(wanted: Wanted) -> Iterator[str]:
    """One list; a document a line, so that it is written without being held."""
    before = "["
    for text in store.documents(wanted):
        yield before
        yield text.decode()
        before = ","
    yield "]" if before == "," else "[]"


def _csv(wanted: Wanted) -> Iterator[str]:
    """The columns for a spreadsheet; the last one is the document, so that nothing is lost on the way back."""
    yield ",".join((*COLUMNS, "document"))
    decoder = msgspec.json.Decoder(document.Run)
    for text in store.documents(wanted):
        buffer = io.StringIO()
        columns = msgspec.structs.astuple(summary(decoder.decode(text)))
        csv.writer(buffer, lineterminator="").writerow((*columns, text.decode()))
        yield buffer.getvalue()


def _list(options: HistoryOptions, wanted: Wanted, emit: Emit) -> Result:
    rows = list(store.summaries(wanted))
    if not rows:
        place = store.location()
        emit(
            Log("no run fits" if place.exists() else f"there is no history yet ({place}): pillm bench MODEL begins one")
        )
        return Result({}, {"runs": 0})
    emit(Output(f"{'started (UTC)':<20} {'decode':>8} {'prefill':>8}  {'':<7} model, board, build"))
    for row in rows[-options.limit :]:
        emit(Output(_row(row)))
    if 0 < options.limit < len(rows):
        emit(Output(f"({len(rows) - options.limit:,} older; --limit 0 lists all)"))
    emit(Output(""))
    drawn = list(lines(series(rows)))
    for line in drawn[: options.limit or None]:
        emit(Output(line))
    if 0 < options.limit < len(drawn):
        emit(Output(f"({len(drawn) - options.limit:,} more series)"))
    return Result({}, {"runs": len(rows), "invalid": sum(not row.valid for row in rows)}, rows)


def _row(row: Summary) -> str:
    decode, prefill = (f"{value:.2f}" if value else "-" for value in (row.decode_tps, row.prefill_tps))
    mark = "" if row.valid else "invalid"
    quant = f" {row.quant}" if row.quant and row.quant.lower() not in row.model_name.lower() else ""
    return f"{row.started:<20} {decode:>8} {prefill:>8}  {mark:<7} {plain(row.model_name)}{quant}, {plain(row.board)}, {plain(row.build)}"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"
