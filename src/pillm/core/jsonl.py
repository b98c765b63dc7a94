"""Lines of JSON, with their place in the file. Reads a stream: memory does not grow with the file."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from pillm.core import records
from pillm.core.artifacts import atomic_file
from pillm.core.errors import FindingsError, UsageError, writing
from pillm.core.findings import Finding
from pillm.core.records import Record

MAX_LINE_BYTES = 16 * 2**20
MAX_FINDINGS = 100
_SKIP_BYTES = 2**16


class Line(NamedTuple):
    """A line: number from 1, offset of its first byte, its bytes without the newline.

    A line longer than the limit is cut: `data` holds its beginning and `size` its true length.
    """

    number: int
    byte: int
    data: bytes
    size: int


def lines(path: Path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """The lines of `path`; at most `max_bytes` of each are held in memory."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from error
    with file:
        for line in lines_of(file, 0, None, max_bytes):
            yield line._replace(data=line.data.rstrip(b"\r\n"))


def lines_of(file: IO[bytes], start: int, end: int | None, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """The lines of an open file from offset `start` to `end` (or its end), numbered from 1; `start` begins a line.

    A carriage return at the end of a line is kept.
    """
    file.seek(start)
    number, offset = 0, start
    while (end is None or offset < end) and (data := file.readline(max_bytes + 1)):
        number, size = number + 1, len(data)
        ended = data.endswith(b"\n")
        while not ended and (rest := file.readline(_SKIP_BYTES)):
            size += len(rest)
            ended = rest.endswith(b"\n")
        yield Line(number, offset, data[:max_bytes].removesuffix(b"\n"), size - ended)
        offset += size


def scan(path: Path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[Line, Record | Finding]]:
    """Each line that is not blank, as a record or as the first thing wrong with it."""
    seen: dict[str, int] = {}
    for line in lines(path, max_bytes):
        if line.size > max_bytes:
            message = f"the line is {line.size:,} bytes long, more than {max_bytes:,}"
            yield line, _finding(path, line, "line-too-long", message, "split it into records")
            continue
        if not line.data.strip():
            continue
        result = _parse(path, line)
        if isinstance(result, Record):
            if first := seen.get(result.id):
                message = f"the id {result.id!r} stands already in line {first}"
                result = _finding(path, line, "duplicate-id", message, "give each record an id of its own", "$.id")
            else:
                seen[result.id] = line.number
        yield line, result


def read(path: Path) -> list[Record]:
    """All records of `path`. Raises FindingsError with every bad line (up to a limit), or if none is there."""
    found: list[Finding] = []
    result: list[Record] = []
    bad = 0
    for _, item in scan(path):
        if isinstance(item, Record):
            result.append(item)
            continue
        bad += 1
        if len(found) < MAX_FINDINGS:
            found.append(item)
    if bad:
        count = "1 bad line" if bad == 1 else f"{bad:,} bad lines"
        shown = f" (the first {len(found)} are shown)" if bad > len(found) else ""
        raise FindingsError(f"{path}: {count}{shown}", found, "mend what is listed, then run again")
    if not result:
        finding = Finding(file=str(path), line=1, code="empty", message="there is no record in this file")
        raise FindingsError(f"{path}: no records", [finding], "give a JSONL file with one record a line")
    return result


def write(path: Path, items: Iterable[Record]) -> int:
    """Publish `items` as `path` in one step; returns how many there were."""
    count = 0
    with writing(path), atomic_file(path) as file:
        for item in items:
            file.write(records.encode(item) + b"\n")
            count += 1
    return count


def _finding(path: Path, line: Line, code: str, message: str, hint: str = "", where: str = "$") -> Finding:
    return Finding(file=str(path), line=line.number, byte=line.byte, path=where, code=code, message=message, hint=hint)


def _parse(path: Path, line: Line) -> Record | Finding:
    # Editors on Windows put a mark before the first line; it is no part of the JSON.
    data = line.data if line.byte else line.data.removeprefix(BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"byte {error.start} of the line is not UTF-8 (0x{data[error.start]:02x})"
        return _finding(path, line, "not-utf8", message, "save the file as UTF-8")
    try:
        record = records.decoder.decode(text)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `")
        return _finding(path, line, "not-a-record", message, "see docs/dataset.md", where.rstrip("`") or "$")
    except RecursionError:
        return _finding(path, line, "not-json", "the JSON is nested too deeply", "each line is one JSON object")
    except msgspec.DecodeError as error:
        return _finding(path, line, "not-json", str(error), "each line is one JSON object")
    if not record.messages:
        return _finding(path, line, "no-messages", "the record has no messages", "", "$.messages")
    for index, message in enumerate(record.messages):
        if not message.content and not message.tool_calls:
            return _finding(
                path,
                line,
                "empty-message",
                f"the {message.role}'s message is empty",
                "give it content or tool_calls",
                f"$.messages[{index}]",
            )
    return record
