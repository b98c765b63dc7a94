"""Lines as bytes, to be written again elsewhere: all files appear, or none, and never over what is read."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

import zstandard

from pillm.core.artifacts import atomic_file
from pillm.core.errors import FindingsError, UsageError, writing
from pillm.core.events import Emit, Progress
from pillm.data.inputs import Source, blocks
from pillm.data.validation import codes

Lines = Callable[[Source], Iterator[tuple[int, bytes]]]


def reader(sources: Sequence[Source], emit: Emit) -> Lines:
    """A function that gives every line of one of `sources`, with its number from 1 and its line end, if it has one.

    Blank lines are given, too. The function raises FindingsError for what cannot be copied: a damaged
    compressed file, a line that is too long. How much of all the sources was read is told as "writing".
    """
    total = None if any(source.packing for source in sources) else sum(source.size for source in sources) / 1e6
    done = 0

    def lines(source: Source) -> Iterator[tuple[int, bytes]]:
        nonlocal done
        before = 0
        for block in blocks([source]):
            if block.broken:
                raise damaged(source, block.broken)
            number = before
            for line in block.lines():
                number = before + line.number
                if line.size > len(line.data):
                    fault = codes.Fault("line-too-long", "$", f"the line is {line.size:,} bytes long")
                    found = codes.finding(fault, source.name, number, line.byte)
                    raise FindingsError(f"{source.name}: a line is too long", [found])
                yield number, line.data if line.byte + line.size == block.end else line.data + b"\n"
            before = number
            done += block.end - block.start
            emit(Progress("writing", done / 1e6, total, "MB"))

    return lines


def damaged(source: Source, reason: str) -> FindingsError:
    """The error for a compressed file that is cut off."""
    fault = codes.Fault("broken-archive", "$", reason)
    return FindingsError(f"{source.name}: the file is damaged", [codes.finding(fault, source.name, 0, 0)])


def check_targets(targets: Sequence[Path], sources: Sequence[Source]) -> None:
    """Raise UsageError if two targets are one file, or if one of them is a file that is read."""
    read = {source.path.resolve(): source.name for source in sources}
    seen: set[Path] = set()
    for target in targets:
        real = target.resolve()
        if real in read:
            raise UsageError(f"{target}: this is {read[real]}, which is read", "choose another folder with --out")
        if real in seen:
            raise UsageError(
                f"{target}: two files would be written under this name", "rename one of them, or take them one by one"
            )
        if target.is_dir():
            raise UsageError(f"{target}: this is a folder", "choose another folder with --out")
        seen.add(real)


@contextlib.contextmanager
def files(folder: Path, targets: Mapping[Path, str]) -> Iterator[list[IO[bytes]]]:
    """The targets, opened in order and packed as they say ("", "gzip" or "zstd"); published when the block ends well."""
    with writing(folder), contextlib.ExitStack() as published:
        opened = [published.enter_context(atomic_file(path)) for path in targets]
        with contextlib.ExitStack() as packers:
            yield [
                packers.enter_context(_packed(file, packing)) if packing else file
                for file, packing in zip(opened, targets.values(), strict=True)
            ]


def _packed(file: IO[bytes], packing: str) -> IO[bytes]:
    if packing == "gzip":
        # No name and no time inside, so that the same lines give the same bytes.
        return cast("IO[bytes]", gzip.GzipFile("", "wb", 6, file, mtime=0))
    return cast("IO[bytes]", zstandard.ZstdCompressor().stream_writer(file, closefd=False))
