"""Measurements from elsewhere: documents, JSON lines of them, other histories, older files, llama-bench's own output.

A run without an id of its own gets one from its content, so that a file that is imported twice is kept once. What an
older form does not tell is null with its reason in `absent`; the board's state was not recorded, and a warning says so.
"""

from __future__ import annotations

import csv
import datetime
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from pillm.core.errors import FindingsError, UsageError
from pillm.core.findings import Finding
from pillm.core.jsonl import MAX_FINDINGS, MAX_LINE_BYTES, lines
from pillm.history import store
from pillm.history.document import VERSION, Board, Model, Run, Runtime, Speed, State
from pillm.history.schema import summary, utc

_ADDRESS = uuid.UUID("6f0d7a52-2f2c-5c0e-9a55-0c1f5f4f8a10")
"""The name space of ids that are made from content."""
_NO_STATE = "the board's state was not recorded"
_SQLITE = b"SQLite format 3\0"
_LARGEST_JSON = 512 * 2**20

_document = msgspec.json.Decoder(Run)


class Imported(msgspec.Struct, frozen=True):
    """How many runs a file holds, and how many of them are new."""

    runs: int
    new: int


class _OldHost(msgspec.Struct):
    cpu: str
    cores: int
    memory_bytes: int
    os: str
    architecture: str
    load_before: float
    governor: str = ""
    board: str = ""


class _OldNumbers(msgspec.Struct):
    weight_bytes: int
    read_bytes: int
    kv_bytes_per_token: int
    vocabulary: int
    width: int


class _OldModel(msgspec.Struct):
    file: str
    bytes: int
    sha256: str
    name: str
    architecture: str
    parameters: int
    numbers: _OldNumbers


class _OldSpeed(msgspec.Struct):
    what: Literal["prefill", "decode"]
    tokens: int
    depth: int
    threads: int
    mean: float
    stddev: float


class _OldBench(msgspec.Struct):
    """`bench.json` as `pillm bench` wrote it at first: no id, no time, no state."""

    host: _OldHost
    model: _OldModel
    speeds: tuple[_OldSpeed, ...]
    llamacpp: str


class _LlamaBench(msgspec.Struct):
    """A test as llama-bench writes it with `-o json` or `-o jsonl`."""

    build_commit: str
    build_number: int
    cpu_info: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_threads: int
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    avg_ts: float
    stddev_ts: float
    samples_ts: tuple[float, ...] = ()
    samples_ns: tuple[int, ...] = ()
    backends: str = ""
    gpu_info: str = ""
    n_batch: int = 2048
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"

    @property
    def setting(self) -> tuple[Any, ...]:
        """Tests that share it are one run."""
        return (
            self.build_commit, self.build_number, self.cpu_info, self.gpu_info, self.backends, self.model_filename,
            self.model_type, self.model_size, self.model_n_params, self.n_batch, self.n_ubatch, self.type_k, self.type_v,
        )  # fmt: skip


def import_file(path: Path, history: Path | None = None) -> Imported:
    """Add every run of a file to the history, in one transaction.

    Takes a document, a list of them, JSON lines of them, another history (a damaged one, too), the older
    `bench.json`, and llama-bench's json and jsonl. Raises UsageError (the file cannot be read or is none of these),
    FindingsError with every line that is no run, after the others were added, and the errors of `store.add`.
    """
    bad: list[Finding] = []
    count, wrong = 0, 0

    def good() -> Iterator[tuple[Run, bytes | None]]:
        nonlocal count, wrong
        for item in read(path):
            if isinstance(item, Finding):
                wrong += 1
                if len(bad) < MAX_FINDINGS:
                    bad.append(item)
            else:
                count += 1
                yield item

    fresh = store.add_all(good(), history)
    if wrong:
        raise FindingsError(
            f"{path}: {wrong:,} of {count + wrong:,} could not be read; {fresh:,} new of the other {count:,} were added",
            bad,
            "mend what is listed, then import the file again: runs that are there already are kept once",
        )
    if not count:
        raise UsageError(
            f"{path}: there is no run in this file", "give a bench.json, JSON lines, or llama-bench's json"
        )
    return Imported(count, fresh)


def read(path: Path) -> Iterator[tuple[Run, bytes | None] | Finding]:
    """The runs of a file with their documents as they stand there, and what is no run, one at a time."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
        changed = path.stat().st_mtime
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from error
    if head == _SQLITE:
        for number, text in enumerate(store.salvage(path), 1):
            yield _run(text, path, number)
        return
    if head.startswith(b"id,started,"):
        yield from _read_csv(path)
        return
    if _is_lines(path):
        yield from _read_lines(path)
        return
    if path.stat().st_size > _LARGEST_JSON:
        raise UsageError(f"{path}: too large for one JSON value", "give JSON lines: one run a line")
    yield from _read_value(path.read_bytes(), path, changed)


def _is_lines(path: Path) -> bool:
    """Whether the first line that is not blank is a whole JSON object, and another follows."""
    objects = 0
    for line in lines(path):
        if line.data.strip():
            try:
                whole = line.size <= MAX_LINE_BYTES and isinstance(msgspec.json.decode(line.data), dict)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                whole = False
            if not objects and not whole:
                return False
            objects += 1
            if objects == 2:
                return True
    return False


def _read_csv(path: Path) -> Iterator[tuple[Run, bytes | None] | Finding]:
    """A table as `pillm bench history --export csv` writes it: the last column is the document."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                yield _run((row.get("document") or "").encode(), path, rows.line_num)
        except (csv.Error, UnicodeDecodeError) as error:
            yield _finding(path, rows.line_num + 1, str(error))


def _read_lines(path: Path) -> Iterator[tuple[Run, bytes | None] | Finding]:
    tests: list[tuple[int, _LlamaBench]] = []
    for line in lines(path):
        if not line.data.strip():
            continue
        if line.size > MAX_LINE_BYTES:
            yield _finding(path, line.number, f"the line is {line.size:,} bytes long, more than {MAX_LINE_BYTES:,}")
        elif b'"model_n_params"' in line.data and b'"n_depth"' in line.data:
            try:
                tests.append((line.number, msgspec.json.decode(line.data, type=_LlamaBench)))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                yield _finding(path, line.number, str(error))
        else:
            yield _run(line.data, path, line.number)
    yield from _from_llama_bench(tests, path)


def _read_value(data: bytes, path: Path, changed: float) -> Iterator[tuple[Run, bytes | None] | Finding]:
    """The runs of a file that is one JSON value."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        line = data.count(b"\n") + 1 if "truncated" in str(error) else 1
        yield _finding(path, line, f"not JSON ({error})")
        return
    items = value if isinstance(value, list) else [value]
    tests: list[tuple[int, _LlamaBench]] = []
    for place, item in enumerate(items, 1):
        keys = item.keys() if isinstance(item, dict) else ()
        try:
            if "model_n_params" in keys:
                tests.append((place, msgspec.convert(item, _LlamaBench)))
            elif "llamacpp" in keys and "host" in keys:
                yield _from_old(msgspec.convert(item, _OldBench), msgspec.json.encode(item), changed), None
            else:
                yield _run(data if item is value else msgspec.json.encode(item), path, place)
        except msgspec.ValidationError as error:
            yield _finding(path, place, str(error))
    yield from _from_llama_bench(tests, path)


def _run(data: bytes, path: Path, number: int) -> tuple[Run, bytes] | Finding:
    try:
        run = _document.decode(data)
        if run.version > VERSION:
            return _finding(path, number, f"the document has version {run.version}; this pillm knows {VERSION}")
        summary(run)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _finding(path, number, str(error))
    except ValueError as error:
        return _finding(path, number, str(error))
    # On one line, as the store and exports keep it.
    return run, msgspec.json.format(data, indent=-1)


def _finding(path: Path, number: int, message: str) -> Finding:
    return Finding(
        file=str(path), line=number, code="not-a-run", message=message, hint="a run is a document of pi_bench"
    )


def _id(content: bytes) -> str:
    return str(uuid.uuid5(_ADDRESS, content.hex()))


def _from_old(old: _OldBench, content: bytes, changed: float) -> Run:
    numbers = old.model.numbers
    when = datetime.datetime.fromtimestamp(changed, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Run(
        id=_id(content),
        started=when,
        seconds=0.0,
        tool="pillm bench (bench.json, first form)",
        valid=True,
        warnings=(_NO_STATE, "the time is that of the file: this form has none"),
        board=Board(
            model=old.host.board or None,
            cpu=old.host.cpu,
            cores=old.host.cores,
            ram_bytes=old.host.memory_bytes,
            architecture=old.host.architecture,
            kernel=old.host.os,
            governor=old.host.governor or None,
        ),
        before=State(at_s=0.0, load=old.host.load_before),
        runtime=_runtime(old.llamacpp),
        model=Model(
            file=old.model.file,
            bytes=old.model.bytes,
            sha256=old.model.sha256,
            name=old.model.name or None,
            architecture=old.model.architecture,
            parameters=old.model.parameters,
            weight_bytes=numbers.weight_bytes,
            read_bytes=numbers.read_bytes,
            kv_bytes_per_token=numbers.kv_bytes_per_token,
            vocabulary=numbers.vocabulary,
            width=numbers.width,
        ),
        speeds=tuple(
            Speed(
                what=speed.what, tokens=speed.tokens, depth=speed.depth, threads=speed.threads,
                mean_tps=speed.mean, stddev_tps=speed.stddev, samples_tps=(),
            )
            for speed in old.speeds
        ),
        absent={
            "model.types": "this form counts tensors, not bytes",
            "before.temperature_c": _NO_STATE,
            "before.throttled": _NO_STATE,
            "after": _NO_STATE,
        },
    )  # fmt: skip


def _runtime(version: str) -> Runtime:
    """`0.3.36 (832db06)` as version and commit."""
    number, _, rest = version.partition(" (")
    return Runtime(kind="llama.cpp", version=number or None, commit=rest.rstrip(")") or None)


def _from_llama_bench(tests: list[tuple[int, _LlamaBench]], path: Path) -> Iterator[tuple[Run, None] | Finding]:
    """One run for the tests of one setting. A test of prefill and decode together is neither: it is told."""
    groups: dict[tuple[Any, ...], list[_LlamaBench]] = {}
    for number, test in tests:
        if bool(test.n_prompt) == bool(test.n_gen):
            yield _finding(
                path, number, f"a test of {test.n_prompt} + {test.n_gen} tokens is neither prefill nor decode"
            )
            continue
        try:
            utc(test.test_time)
        except ValueError as error:
            yield _finding(path, number, f"`test_time`: {error}")
            continue
        groups.setdefault(test.setting, []).append(test)
    for group in groups.values():
        yield _llama_bench_run(group), None


def _llama_bench_run(tests: list[_LlamaBench]) -> Run:
    first = tests[0]
    notes = [_NO_STATE]
    if (first.n_batch, first.n_ubatch) != (2048, 512):
        notes.append(f"batch {first.n_batch}, micro-batch {first.n_ubatch}")
    # A GPU is another machine: its figures are no series with those of the processor alone.
    cpu = first.cpu_info.strip()
    machine = f"{cpu} with {first.backends} on {first.gpu_info}".strip() if first.gpu_info else cpu
    return Run(
        id=_id(msgspec.json.encode(tests)),
        started=min(utc(test.test_time) for test in tests),
        seconds=round(sum(sum(test.samples_ns) for test in tests) / 1e9, 3),
        tool="llama-bench",
        valid=True,
        warnings=tuple(notes),
        board=Board(cpu=machine or None, architecture="unknown", kernel="unknown"),
        before=State(at_s=0.0),
        runtime=Runtime(
            kind="llama.cpp", version=str(first.build_number), commit=first.build_commit, build=first.build_number
        ),
        model=Model(
            file=Path(first.model_filename).name,
            name=first.model_type,
            parameters=first.model_n_params,
            weight_bytes=first.model_size,
        ),
        speeds=tuple(
            Speed(
                what="prefill" if test.n_prompt else "decode",
                tokens=test.n_prompt or test.n_gen,
                depth=test.n_depth,
                threads=test.n_threads,
                mean_tps=test.avg_ts,
                stddev_tps=test.stddev_ts,
                samples_tps=test.samples_ts,
                type_k=test.type_k,
                type_v=test.type_v,
            )
            for test in tests
        ),
        absent={
            "board.model": "llama-bench does not tell it",
            "board.ram_bytes": "llama-bench does not tell it",
            "model.sha256": "llama-bench does not tell it",
            "model.types": "llama-bench does not tell it",
            "model.read_bytes": "llama-bench does not tell it",
            "before.temperature_c": _NO_STATE,
            "before.throttled": _NO_STATE,
            "after": _NO_STATE,
        },
    )
