"""How much of what a dataset holds: exact counts, in one pass over blocks on every core.

What is counted of two blocks can be added, so the result does not depend on how the data was cut or
on the number of workers. Memory grows with the number of different values, not with the data.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import msgspec

from pillm.core import records, shipped
from pillm.core.errors import UsageError
from pillm.core.events import Emit, Progress, silent
from pillm.core.findings import Finding
from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.data import inputs, parallel, wire
from pillm.data.counts.figures import Split, Statistics, distribution, lengths
from pillm.data.inputs import Block, Source

_MAX_FINDINGS = 20
_SPLITS = frozenset(
    [
        "train",
        "training",
        "validation",
        "valid",
        "val",
        "dev",
        "development",
        "test",
        "testing",
        "heldout",
        "eval",
        "evaluation",
        "calibration",
        "smoke",
    ]
)
UNNAMED_SPLIT = "data"
"""The split of files whose name says none. (`all` has a meaning of its own in Hugging Face datasets.)"""

_ROLES: dict[type, str] = {
    wire.System: "system",
    wire.Developer: "developer",
    wire.User: "user",
    wire.Assistant: "assistant",
    wire.ToolResult: "tool",
}
_text_of_call = msgspec.json.Encoder().encode


class FileCounts(NamedTuple):
    """One file: its source, split, counts, and the fields of a record that at least one line fills.

    `root` is the index of the given path that it was found under, `inner` its path below that one
    (empty if the file itself was given).
    """

    source: Source
    root: int
    inner: str
    split: str
    records: int
    prompts: int
    invalid: int
    fields: tuple[str, ...]


class Measured(NamedTuple):
    """Statistics of all files, counts of each, and the first lines of each that are no records.

    `blocks` holds how many records each block has, by name of its source and first byte.
    """

    statistics: Statistics
    files: tuple[FileCounts, ...]
    findings: tuple[Finding, ...]
    blocks: dict[tuple[str, int], int]


class Bad(NamedTuple):
    """A line that is no record: its number and byte from the block's beginning, and why."""

    number: int
    byte: int
    message: str


class Tally(msgspec.Struct):
    """Counts of a block or of several; `add` joins two."""

    lines: int = 0
    records: int = 0
    prompts: int = 0
    invalid: int = 0
    bytes: int = 0
    bad: list[Bad] = []
    roles: Counter[str] = msgspec.field(default_factory=Counter)
    declared: Counter[str] = msgspec.field(default_factory=Counter)
    called: Counter[str] = msgspec.field(default_factory=Counter)
    locales: Counter[str] = msgspec.field(default_factory=Counter)
    registers: Counter[str] = msgspec.field(default_factory=Counter)
    tags: Counter[str] = msgspec.field(default_factory=Counter)
    untagged: int = 0
    toolless: int = 0
    callless: int = 0
    schemas: int = 0
    metas: int = 0
    sources: Counter[str] = msgspec.field(default_factory=Counter)
    licenses: Counter[str] = msgspec.field(default_factory=Counter)
    characters: Counter[int] = msgspec.field(default_factory=Counter)
    words: Counter[int] = msgspec.field(default_factory=Counter)
    messages: Counter[int] = msgspec.field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Take the other's counts in. Bad lines are left to who knows where they stand in the file."""
        for name in self.__struct_fields__:
            if name == "bad":
                continue
            mine, more = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(more)
            else:
                setattr(self, name, mine + more)


class _Tool(msgspec.Struct):
    class _Function(msgspec.Struct):
        name: str

    function: _Function


_tools = msgspec.json.Decoder(list[_Tool]).decode


def measure(paths: Sequence[Path], workers: int | None = None, emit: Emit = silent) -> Measured:
    """Count everything in these files and folders (see `inputs.sources`).

    Lines that are no records are counted as invalid and named in the findings. Raises UsageError if a
    file cannot be read.
    """
    sources = inputs.sources(paths)
    size = sum(source.size for source in sources)
    packed = any(source.packing for source in sources)
    tallies = {source: Tally() for source in sources}
    findings: list[Finding] = []
    rows: dict[tuple[str, int], int] = {}
    done = 0
    for block, tally in parallel.mapped(inputs.blocks(sources), count, None, workers):
        whole = tallies[block.source]
        if whole.invalid < _MAX_FINDINGS:
            findings += [_finding(block, whole.lines, bad) for bad in tally.bad]
        whole.add(tally)
        rows[block.source.name, block.start] = tally.records
        done += block.end - block.start
        emit(Progress("statistics", done, None if packed else size, "bytes"))
    files = tuple(_file(source, tally, paths) for source, tally in tallies.items())
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    return Measured(_statistics(total, files), files, tuple(findings), rows)


def count(block: Block, given: None = None) -> Tally:
    """The tally of a block's lines."""
    tally = Tally(bytes=block.end - block.start)
    for line in block.lines():
        tally.lines += 1
        try:
            if line.size > MAX_LINE_BYTES:
                raise ValueError(f"the line is {line.size:,} bytes long")
            record = decoded(line.data, line.byte)
            if record is not None:
                _count(tally, record)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            tally.invalid += 1
            if len(tally.bad) < _MAX_FINDINGS:
                tally.bad.append(Bad(line.number, line.byte, _reason(error)))
    if block.broken:
        tally.invalid += 1
        tally.bad.append(Bad(tally.lines + 1, block.end, block.broken))
    return tally


def decoded(data: bytes, byte: int) -> wire.Line | records.Record | None:
    """The record of a line that begins at `byte`; None if the line is blank.

    Raises MsgspecError, ValueError or RecursionError for what is no record.
    """
    try:
        return _with_messages(wire.decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = data if byte else data.removeprefix(BOM_UTF8)
        if not text.strip():
            return None
        return _with_messages(records.decoder.decode(text))


def texts(record: wire.Line | records.Record) -> list[str]:
    """What a dialogue says: every message's text, and every tool call as JSON."""
    found: list[str] = []
    for turn in record.messages:
        if content := turn.content:
            found.append(content)
        if isinstance(turn, wire.Assistant | records.Message) and turn.tool_calls:
            found += [_text_of_call(call.function).decode() for call in turn.tool_calls]
    return found


def split_of(path: PurePath) -> str:
    """The split that a file's name says, else that of the folders above it; UNNAMED_SPLIT if none does.

    `train-00001.jsonl.gz` is `train`, `test/part1.jsonl` is `test`, `held-out.jsonl` is `heldout`.
    """
    for name in (path.name.partition(".jsonl")[0], *reversed(path.parts[:-1])):
        words = re.split(r"[^a-z]+", re.sub(r"held[-_ ]out", "heldout", name.lower()))
        if known := next((word for word in words if word in _SPLITS), None):
            return known
    return UNNAMED_SPLIT


def _with_messages(record: Any) -> Any:
    if not record.messages:
        raise ValueError("the record has no messages")
    return record


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} of a text is not UTF-8"
    return "the JSON is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _count(tally: Tally, record: wire.Line | records.Record) -> None:
    # Nothing is counted before the last thing that can fail.
    names = _declared(bytes(record.tools)) if isinstance(record, wire.Line) else _names(record)
    roles = tally.roles
    called = False
    for turn in record.messages:
        roles[_ROLES.get(type(turn)) or turn.role] += 1  # type: ignore[union-attr]
        if isinstance(turn, wire.Assistant | records.Message) and turn.tool_calls:
            called = True
            for call in turn.tool_calls:
                tally.called[call.function.name] += 1
    tally.records += 1
    tally.prompts += record.is_prompt
    tally.callless += not called
    # A raw value that is not there has no bytes.
    is_raw = isinstance(record, wire.Line)
    tally.schemas += bool(bytes(record.response_schema)) if is_raw else record.response_schema is not None
    tally.metas += bool(bytes(record.meta)) if is_raw else bool(record.meta)
    if names:
        tally.declared.update(names)
    else:
        tally.toolless += 1
    tally.locales[record.locale] += 1
    tally.registers[record.register] += 1
    tally.sources[record.source] += 1
    tally.licenses[record.license] += 1
    if record.tags:
        tally.tags.update(record.tags)
    else:
        tally.untagged += 1
    said = texts(record)
    tally.messages[len(record.messages)] += 1
    tally.characters[sum(map(len, said))] += 1
    tally.words[sum([len(text.split()) for text in said])] += 1


@lru_cache(maxsize=4096)
def _declared(tools: bytes) -> tuple[str, ...]:
    return tuple(tool.function.name for tool in _tools(tools)) if tools else ()


def _names(record: records.Record) -> tuple[str, ...]:
    return tuple(tool.function.name for tool in record.tools)


def _finding(block: Block, lines_before: int, bad: Bad) -> Finding:
    return Finding(
        file=block.source.name,
        line=lines_before + bad.number,
        byte=bad.byte,
        path="$",
        code="not-a-record",
        message=bad.message,
        hint="pillm dataset validate names every fault",
    )


def _file(source: Source, tally: Tally, paths: Sequence[Path]) -> FileCounts:
    filled = {
        "tools": tally.declared,
        "response_schema": tally.schemas,
        "locale": any(tally.locales),
        "register": any(tally.registers),
        "tags": tally.tags,
        "source": any(tally.sources),
        "license": any(tally.licenses),
        "meta": tally.metas,
    }
    fields = ("id", "messages", *(name for name, found in filled.items() if found))
    root, inner = _place(source, paths)
    split = split_of(PurePath(inner or source.path.name))
    return FileCounts(source, root, inner, split, tally.records, tally.prompts, tally.invalid, fields)


def _place(source: Source, paths: Sequence[Path]) -> tuple[int, str]:
    # Only what lies below the given path may count: the folders above it differ from machine to machine.
    for index, given in enumerate(map(shipped.data_path, paths)):
        if source.path.is_relative_to(given):
            inner = source.path.relative_to(given).as_posix()
            return index, "" if inner == "." else inner
    raise ValueError(f"{source.path} is below none of {paths}")


def _splits(files: Sequence[FileCounts]) -> dict[str, Split]:
    found: dict[str, Split] = {}
    for name in sorted({file.split for file in files}):
        mine = [file for file in files if file.split == name]
        rows, prompts = sum(file.records for file in mine), sum(file.prompts for file in mine)
        found[name] = Split(files=len(mine), records=rows, labelled=rows - prompts, prompts=prompts)
    return found


def _statistics(tally: Tally, files: Sequence[FileCounts]) -> Statistics:
    return Statistics(
        records=tally.records,
        labelled=tally.records - tally.prompts,
        prompts=tally.prompts,
        invalid=tally.invalid,
        bytes=tally.bytes,
        turns=dict(sorted(tally.roles.items())),
        splits=_splits(files),
        locales=distribution(tally.locales),
        registers=distribution(tally.registers),
        tools_declared=distribution(tally.declared, tally.toolless),
        tools_called=distribution(tally.called, tally.callless),
        tags=distribution(tally.tags, tally.untagged),
        sources=distribution(tally.sources),
        licenses=distribution(tally.licenses),
        lengths={
            "characters": lengths(tally.characters),
            "messages": lengths(tally.messages),
            "words": lengths(tally.words),
        },
    )


def require_records(measured: Measured) -> None:
    """Raises UsageError if there is not one record."""
    if not measured.statistics.records:
        names = ", ".join(file.source.name for file in measured.files)
        raise UsageError(f"{names}: there is no record", "see: pillm dataset validate")
