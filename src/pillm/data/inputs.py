"""Dataset files as blocks of whole lines: plain, gzip or zstd, of any size, in flat memory.

Files that are not compressed are cut at line ends without being read, so that every worker reads
its own part of the disk. Compressed ones are unpacked once, in order, and the blocks are handed out.
"""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

from pillm.core import shipped
from pillm.core.errors import UsageError
from pillm.core.jsonl import MAX_LINE_BYTES, Line, lines_of

BLOCK_BYTES = 8 * 2**20
_PIECE = 2**16
_UNPACKED = 2**20
_PACKED = 2**10
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_SKIPPABLE = b"\x2a\x4d\x18"
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class Source(NamedTuple):
    """One file: where it is, what it is called in findings, how it is packed, its bytes on disk."""

    path: Path
    name: str
    packing: str
    size: int


class Block(NamedTuple):
    """Whole lines of one source: [start, end) of its unpacked bytes; `data` only where it was packed.

    Where `data` is shorter than that, the block is one line which is too long to be held.
    """

    source: Source
    start: int
    end: int
    data: bytes | None = None
    broken: str = ""
    """What is wrong with the compressed file, if it ends here because of that."""

    def lines(self, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
        """The lines, numbered from 1 within the block; a line longer than `max_bytes` is cut."""
        length = self.end - self.start
        if self.data is not None and len(self.data) < length:
            yield Line(1, self.start, self.data[:max_bytes], length)
            return
        if self.data is None and length > BLOCK_BYTES + max_bytes:
            with self.source.path.open("rb") as file:
                yield from lines_of(file, self.start, self.end, max_bytes)
            return
        data = _read(self.source.path, self.start, self.end) if self.data is None else self.data
        offset = self.start
        for number, line in enumerate(data.split(b"\n"), 1):
            size = len(line)
            # What stands after the last line end is no line if it is empty.
            if size or offset < self.end:
                yield Line(number, offset, line[:max_bytes] if size > max_bytes else line, size)
            offset += size + 1


def sources(paths: Sequence[str | Path]) -> list[Source]:
    """Every dataset file of `paths`, which are files, folders (searched for .jsonl, .gz and .zst) or `dataset:` names.

    Raises UsageError for what is not there, cannot be read, or holds no dataset.
    """
    found: list[Source] = []
    for given in paths:
        path = shipped.data_path(Path(given))
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_data(file, path))
            if not inside:
                raise UsageError(f"{path}: there is no .jsonl, .jsonl.gz or .jsonl.zst file in this folder")
            found += [_source(file, str(file)) for file in inside]
        else:
            found.append(_source(path, str(given)))
    if not found:
        raise UsageError("there is nothing to read", "give files or folders with JSON lines")
    seen: dict[Path, str] = {}
    for source in found:
        real = source.path.resolve()
        if real in seen:
            raise UsageError(f"{source.name}: this is the same file as {seen[real]}", "name each file once")
        seen[real] = source.name
    return found


def blocks(found: Iterable[Source], block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The sources cut into blocks, in order. Holds one block of a packed file at a time."""
    for source in found:
        if source.packing:
            yield from _unpacked(source, block_bytes)
        else:
            yield from _cut(source, block_bytes)


def _is_data(file: Path, folder: Path) -> bool:
    # Hidden folders hold other things: caches, version control, checkouts of tools.
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.name.endswith(_SUFFIXES) and not hidden and file.is_file()


def _source(path: Path, name: str) -> Source:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{name}: this is no regular file", "data is read in parts: write it to a file first")
        with path.open("rb") as file:
            head = file.read(4)
            size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror})", "check the path and its permissions") from error
    packing = next((word for magic, word in _MAGIC.items() if head.startswith(magic)), "")
    if head[1:] == _SKIPPABLE and head[0] & 0xF0 == 0x50:
        packing = "zstd"
    return Source(path, name, packing, size)


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _cut(source: Source, block_bytes: int) -> Iterator[Block]:
    with source.path.open("rb") as file:
        start = 0
        while start < source.size:
            end = min(start + block_bytes, source.size)
            file.seek(end)
            # On to the end of the line, however long, a piece at a time.
            while end < source.size and (piece := file.readline(_PIECE)):
                end += len(piece)
                if piece.endswith(b"\n"):
                    break
            yield Block(source, start, end)
            start = end


def _unpacked(source: Source, block_bytes: int) -> Iterator[Block]:
    start, kept, broken = 0, b"", ""
    with source.path.open("rb") as file:
        pieces = _gzip(file) if source.packing == "gzip" else _zstd(file)
        while True:
            try:
                data = next(pieces, None)
            except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
                data, broken = None, f"the {source.packing} data is cut off or damaged ({error})"
            if data is None:
                break
            kept += data
            if len(kept) < block_bytes:
                continue
            cut = kept.rfind(b"\n") + 1
            if cut:
                yield Block(source, start, start + cut, kept[:cut])
                start, kept = start + cut, kept[cut:]
            elif len(kept) > MAX_LINE_BYTES + block_bytes:
                # A line without an end: what is beyond the limit is only counted.
                skipped, rest = _to_line_end(pieces)
                end = start + len(kept) + skipped
                yield Block(source, start, end, kept[: MAX_LINE_BYTES + 1])
                start, kept = end, rest
    if kept or broken:
        yield Block(source, start, start + len(kept), kept, broken)


def _to_line_end(pieces: Iterator[bytes]) -> tuple[int, bytes]:
    """Skip to the next line: how many bytes were skipped, and what was read beyond."""
    skipped = 0
    for data in pieces:
        cut = data.find(b"\n") + 1
        if cut:
            return skipped + cut, data[cut:]
        skipped += len(data)
    return skipped, b""


def _gzip(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(file, "rb") as stream:
        while data := stream.read1(_UNPACKED):
            yield data


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    # The library's own file reader takes a frame that is cut off for one that ends there.
    frame = zstandard.ZstdDecompressor().decompressobj()
    begun = False
    # A kilobyte can unpack to 32 megabytes.
    while data := file.read(_PACKED):
        while data:
            begun = True
            yield frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    if begun:
        raise EOFError("the last frame has no end")
