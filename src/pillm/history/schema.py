"""The tables of the history, and what of a run stands in columns of its own.

A history of version N was made by the first N steps. A new one is made by all of them, so an old one takes the
same way. Columns only repeat what the document says: they are there to look up without decoding documents.
"""

from __future__ import annotations

import datetime
import math
import re

import msgspec

from pillm.history.document import Run, Speed, best

APPLICATION_ID = 0x50494C4D
"""`PRAGMA application_id` of a history ("PILM"): tells it from any other SQLite file."""

STEPS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE runs (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            started TEXT NOT NULL,
            board TEXT NOT NULL,
            ram_bytes INTEGER,
            model_name TEXT NOT NULL,
            model_sha256 TEXT,
            model_shape TEXT NOT NULL,
            quant TEXT NOT NULL,
            build TEXT NOT NULL,
            valid INTEGER NOT NULL,
            decode_tps REAL,
            decode_threads INTEGER,
            prefill_tps REAL,
            prefill_threads INTEGER,
            read_bytes INTEGER,
            tool TEXT NOT NULL,
            document TEXT NOT NULL
        )
        """,
        "CREATE INDEX runs_started ON runs (started)",
        "CREATE INDEX runs_series ON runs (board, ram_bytes, model_shape, started)",
        """
        CREATE TRIGGER runs_never_change BEFORE UPDATE ON runs
        BEGIN SELECT RAISE(ABORT, 'a history only grows'); END
        """,
    ),
    (
        # What was pruned leaves a trace: when, and by which policy.
        "CREATE TABLE pruned (id TEXT NOT NULL, started TEXT NOT NULL, pruned TEXT NOT NULL, policy TEXT NOT NULL)",
    ),
)

VERSION = len(STEPS)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of one run: what lists, lines and plots need. Speeds are in tokens/s, at the smallest depth."""

    id: str
    started: str
    board: str
    ram_bytes: int | None
    model_name: str
    model_sha256: str | None
    model_shape: str
    quant: str
    build: str
    valid: bool
    decode_tps: float | None
    decode_threads: int | None
    prefill_tps: float | None
    prefill_threads: int | None
    read_bytes: int | None
    tool: str


COLUMNS = Summary.__struct_fields__


def summary(run: Run) -> Summary:
    """The columns of `run`. Raises ValueError, with the field, if a time, a size or a speed cannot be."""
    sizes = {"board.ram_bytes": run.board.ram_bytes, "model.read_bytes": run.model.read_bytes}
    for name, size in sizes.items():
        if size is not None and not 0 <= size < 2**63:
            raise ValueError(f"`{name}`: {size} is no number of bytes")
    for speed in run.speeds:
        if not 0 < speed.mean_tps < math.inf:
            raise ValueError(f"`speeds`: {speed.mean_tps} tokens/s is no speed")
    decode, prefill = best(run, "decode"), best(run, "prefill")
    return Summary(
        id=run.id,
        started=_started(run),
        board=board_name(run),
        ram_bytes=run.board.ram_bytes,
        model_name=run.model.name or run.model.file,
        model_sha256=run.model.sha256,
        model_shape=model_shape(run),
        quant=quant(run) + _cache(decode),
        build=build_name(run),
        valid=run.valid,
        decode_tps=decode.mean_tps if decode else None,
        decode_threads=decode.threads if decode else None,
        prefill_tps=prefill.mean_tps if prefill else None,
        prefill_threads=prefill.threads if prefill else None,
        read_bytes=run.model.read_bytes,
        tool=run.tool,
    )


def _cache(decode: Speed | None) -> str:
    """The types of cached keys and values, where they are not the usual ones: such runs are a series of their own."""
    types = (decode.type_k, decode.type_v) if decode else ("f16", "f16")
    return "" if types == ("f16", "f16") else f" with KV {'/'.join(dict.fromkeys(types))}"


def _started(run: Run) -> str:
    try:
        return utc(run.started)
    except ValueError as error:
        raise ValueError(f"`started`: {error}") from None


def utc(moment: str) -> str:
    """RFC 3339 to UTC with seconds, so that text sorts as time does. Without an offset it is UTC already.

    Raises ValueError for what is no time, or none that a measurement was taken at (before 1970).
    """
    try:
        when = datetime.datetime.fromisoformat(moment)
        when = when.replace(tzinfo=datetime.UTC) if when.tzinfo is None else when.astimezone(datetime.UTC)
        if when.year < 1970:
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{moment!r} is no time; RFC 3339 is wanted, as 2026-11-22T19:05:00Z") from None
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def board_name(run: Run) -> str:
    """The board by its own name, else by its processor's."""
    return run.board.model or run.board.cpu or run.board.architecture


def build_name(run: Run) -> str:
    """The program that answered, as `llama.cpp 832db06` or `ollama 0.6.2`."""
    runtime = run.runtime
    return f"{runtime.kind} {runtime.commit or runtime.version or 'of an unknown build'}"


def model_shape(run: Run) -> str:
    """What decides speed of a file: its number of weights and their bytes. Training it anew changes neither."""
    model = run.model
    if model.parameters and model.weight_bytes:
        return f"{model.parameters}/{model.weight_bytes}"
    return f"{model.name or model.file}/{model.bytes or 0}"


_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_IN_NAME = re.compile(r"(?<![A-Za-z0-9])(I?Q\d(?:_(?:\d|K|NL|XXS|XS|S|M|L))*|TQ\d_0|BF16|F16|F32)(?![A-Za-z0-9])", re.I)


def quant(run: Run) -> str:
    """The quantization as people call it: from the file's name where its types agree, else the type with most bytes."""
    types = {kind.upper(): size for kind, size in run.model.types.items()}
    named = _IN_NAME.search(run.model.file) or _IN_NAME.search(run.model.name or "")
    label = named[1].upper() if named else ""
    if not types:
        return label
    packed = {kind: size for kind, size in types.items() if kind not in _FLOATS}
    largest = max(packed or types, key=lambda kind: types[kind])
    # Q4_K_M is a recipe of types whose names begin with Q4_K; a name that says anything else is not believed.
    family = "_".join(label.split("_")[:2])
    return label if family and any(kind.startswith(family) for kind in types) else largest
