"""The history of measurements: one SQLite file that only grows.

Every run is one transaction of a database in WAL mode with full syncs, so a run that `add` has returned for is on
the disk: a `kill -9`, a pulled plug, a second writer or a full disk can lose only what was not finished. The whole
document is kept beside columns to look it up by. Nothing is deleted but by `remove`, which leaves a trace.

A file that is damaged, foreign, or of a newer version is never written to.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from pillm.core.errors import PillmError, ResourceError, UsageError
from pillm.core.paths import expanded
from pillm.history.document import Run
from pillm.history.schema import APPLICATION_ID, COLUMNS, STEPS, VERSION, Summary, summary, utc

VARIABLE = "PILLM_HISTORY"
NAME = "history.sqlite"
_BUSY_SECONDS = 60.0
_decode = msgspec.json.Decoder(Run).decode


def location() -> Path:
    """`$PILLM_HISTORY`, else `$XDG_DATA_HOME/pillm/history.sqlite`, else `~/.local/share/pillm/history.sqlite`."""
    if own := os.environ.get(VARIABLE):
        return expanded(own)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else expanded("~/.local/share")) / "pillm" / NAME


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs: everything that is given must hold. Text is looked for anywhere in a name, in any case."""

    board: str | None = None
    model: str | None = None
    build: str | None = None
    since: str | None = None
    """Started then or later: a date, or RFC 3339 in UTC."""
    until: str | None = None
    """Started before."""
    valid: bool | None = None
    shape: str | None = None
    """Exactly this `model_shape`."""


EVERYTHING = Wanted()


def add(run: Run, path: Path | None = None) -> bool:
    """Keep a run; False if a run of this id is there already. It is on the disk when this returns.

    Raises ResourceError (disk full, no right to write, another writer for a minute), UsageError (not a history,
    one of a newer version, a run without a time), PillmError (damaged).
    """
    return add_all([(run, None)], path) == 1


def add_all(runs: Iterable[tuple[Run, bytes | None]], path: Path | None = None) -> int:
    """Keep runs in one transaction, all or none; returns how many are new. Errors as `add`.

    The bytes are the document as it was read, which may hold more than this version of `Run` knows.
    """
    names = (*COLUMNS, "document")
    insert = f"INSERT INTO runs ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) ON CONFLICT (id) DO NOTHING"  # noqa: S608  names of columns
    fresh = 0
    with _writing(path or location()) as connection:
        for run, document in runs:
            text = (document or msgspec.json.encode(run)).decode()
            try:
                columns = msgspec.structs.astuple(summary(run))
            except ValueError as error:
                raise UsageError(f"run {run.id}: {error}", "a run is a document of pi_bench") from error
            fresh += connection.execute(insert, (*columns, text)).rowcount
    return fresh


def runs(
    board: str | None = None, *, wanted: Wanted = EVERYTHING, path: Path | None = None, newest_first: bool = False
) -> Iterator[Run]:
    """Whole documents by the time they started, one at a time: memory does not grow with the history.

    What is seen is the history at the first run asked for; a writer is not held up. A history that is not there
    has no runs. Errors as `add`.
    """
    if board is not None:
        wanted = msgspec.structs.replace(wanted, board=board)
    for (text,) in _select("document", wanted, path, newest_first):
        yield _decode(text)


def documents(wanted: Wanted = EVERYTHING, path: Path | None = None) -> Iterator[bytes]:
    """The documents as they were added, as JSON."""
    for (text,) in _select("document", wanted, path, False):
        yield text.encode()


def summaries(
    wanted: Wanted = EVERYTHING, path: Path | None = None, *, newest_first: bool = False
) -> Iterator[Summary]:
    """The columns alone, in the same order: no document is decoded."""
    for row in _select(", ".join(COLUMNS), wanted, path, newest_first):
        yield Summary(**{**dict(zip(COLUMNS, row, strict=True)), "valid": bool(row[COLUMNS.index("valid")])})


def remove(ids: Sequence[str], policy: str, path: Path | None = None) -> int:
    """Delete runs, and note each with the policy that asked for it, in one transaction. Returns how many were there."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    gone, place = 0, path or location()
    with _writing(place) as connection:
        for each in ids:
            connection.execute(
                "INSERT INTO pruned SELECT id, started, ?, ? FROM runs WHERE id = ?", (now, policy, each)
            )
            gone += connection.execute("DELETE FROM runs WHERE id = ?", (each,)).rowcount
    with _speaking(place), contextlib.closing(_connect(place, readonly=False)) as connection:
        connection.execute("PRAGMA incremental_vacuum").fetchall()
    return gone


def salvage(path: Path) -> Iterator[bytes]:
    """Every document that can still be read of a history, damaged or not, of this or an older version.

    Raises UsageError if it is not a history, PillmError if nothing of it can be read.
    """
    with _speaking(path), contextlib.closing(_connect(path, readonly=True)) as connection:
        _version(connection, path)
        seen: set[int] = set()
        found = 0
        # From both ends up to the first page that cannot be read, then one by one between them.
        for order in ("ASC", "DESC"):
            with contextlib.suppress(sqlite3.DatabaseError):
                for seq, text in connection.execute(f"SELECT seq, document FROM runs ORDER BY seq {order}"):  # noqa: S608
                    if seq in seen:
                        break
                    seen.add(seq)
                    found += 1
                    yield text.encode()
                else:
                    return
        for seq in range(min(seen, default=1), max(seen, default=0)):
            if seq not in seen:
                with contextlib.suppress(sqlite3.DatabaseError):
                    for (text,) in connection.execute("SELECT document FROM runs WHERE seq = ?", (seq,)):
                        found += 1
                        yield text.encode()
        if not found:
            raise PillmError(
                f"{path}: nothing of this damaged history can be read", "take a copy of it, if you have one"
            )


def _select(columns: str, wanted: Wanted, path: Path | None, newest_first: bool) -> Iterator[tuple]:  # type: ignore[type-arg]
    place = path or location()
    if not place.exists():
        return
    where, values = _where(wanted)
    order = "DESC" if newest_first else "ASC"
    query = f"SELECT {columns} FROM runs {where} ORDER BY started {order}, seq {order}"  # noqa: S608  no user's text
    with _speaking(place), contextlib.closing(_connect(place, readonly=True)) as connection:
        if _version(connection, place):
            yield from connection.execute(query, values)


def _where(wanted: Wanted) -> tuple[str, list[object]]:
    terms: list[tuple[str, object]] = []
    for column, text in (("board", wanted.board), ("model_name", wanted.model), ("build", wanted.build)):
        if text is not None:
            # instr, since % and _ in a name mean themselves.
            terms.append((f"instr(lower({column}), lower(?)) > 0", text))
    if wanted.since is not None:
        terms.append(("started >= ?", _moment(wanted.since)))
    if wanted.until is not None:
        terms.append(("started < ?", _moment(wanted.until)))
    if wanted.valid is not None:
        terms.append(("valid = ?", int(wanted.valid)))
    if wanted.shape is not None:
        terms.append(("model_shape = ?", wanted.shape))
    if not terms:
        return "", []
    return "WHERE " + " AND ".join(term for term, _ in terms), [value for _, value in terms]


def _moment(text: str) -> str:
    try:
        return utc(text)
    except ValueError:
        raise UsageError(
            f"{text}: there is no such day or moment", "write it as 2026-11-22 or 2026-11-22T19:05Z"
        ) from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A transaction that nobody else writes beside, on a history of this version."""
    with _speaking(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(path, readonly=False)) as connection:
            _prepare(connection, path)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _connect(path: Path, *, readonly: bool) -> sqlite3.Connection:
    if readonly:
        return _readonly(path)
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _readonly(path: Path) -> sqlite3.Connection:
    """A reader. In a folder that cannot be written to, SQLite cannot make the index of its log, and needs none."""
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA user_version").fetchone()
        return connection
    except sqlite3.DatabaseError as error:
        connection.close()
        log = path.with_name(path.name + "-wal")
        if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if log.exists() and log.stat().st_size:
            raise ResourceError(
                f"{path}: this history cannot be read where nothing can be written, since its last writer was cut off",
                f"copy it together with {log.name} to a folder of yours, and set {VARIABLE} to the copy",
            ) from error
    return sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make a new file a history, and an old history one of this version."""
    if _version(connection, path) == VERSION:
        return
    # Two that make the same file at once: switching to the log is not covered by SQLite's own waiting.
    _patiently(lambda: connection.execute("PRAGMA auto_vacuum = INCREMENTAL").execute("PRAGMA journal_mode = WAL"))
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in STEPS[_version(connection, path) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _patiently(work: Callable[[], object]) -> None:
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > until:
                raise
            time.sleep(0.05)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a history; 0 for an empty file. Raises UsageError if it is something else, or newer."""
    (kind,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if kind == 0 and version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return 0
    if kind != APPLICATION_ID:
        raise UsageError(
            f"{path}: this is a database of another program, not a history",
            f"set {VARIABLE} to another path; nothing was written",
        )
    if version > VERSION:
        raise UsageError(
            f"{path}: this history has version {version}, this pillm knows versions up to {VERSION}",
            f"use a newer pillm, or set {VARIABLE} to another path; nothing was written",
        )
    return version


@contextlib.contextmanager
def _speaking(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say into errors that a user can act on."""
    try:
        yield
    except sqlite3.Error as error:
        raise _told(path, error) from error
    except OSError as error:
        raise ResourceError(
            f"{error.filename or path}: {error.strerror}", f"set {VARIABLE} to a file in a folder of yours"
        ) from error


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _told(path: Path, error: sqlite3.Error) -> PillmError:
    match _code(error):
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return ResourceError(
                f"{path}: the disk is full or failing ({error}); the runs in it are whole",
                "free some space; a run that was not kept can be added from its bench.json: pillm bench history --add",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return ResourceError(
                f"{path}: cannot be opened or written ({error})",
                f"change its permissions, or set {VARIABLE} to a file in a folder of yours",
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return ResourceError(
                f"{path}: another program has been writing for more than {_BUSY_SECONDS:.0f} s", "try again"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return PillmError(
                f"{path}: this history is damaged ({error}); it is left as it is",
                f"save what can be read: {VARIABLE}=NEW.sqlite pillm bench history --import {path}",
            )
    return PillmError(f"{path}: {error}", "please report this with the message above")
