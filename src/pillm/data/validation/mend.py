"""`pillm dataset validate --fix`: a copy of the data with what can be mended without guessing.

Lines with nothing to mend keep their bytes. A record that has other faults, too, is mended as far as
it goes and kept: nothing is dropped but blank lines.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pillm.core.artifacts import PARTIAL, publish
from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Log, Progress
from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.data.inputs import Block, Source, blocks
from pillm.data.parallel import mapped
from pillm.data.validation import characters, structure
from pillm.data.validation.codes import CODES, Fault
from pillm.data.validation.keys import duplicate_keys
from pillm.data.validation.rules import Rules, faults

_encode = msgspec.json.Encoder().encode


class Mended(NamedTuple):
    """A block's lines after mending, what was mended, and what is still wrong, by code."""

    data: bytes
    mended: Counter[str]
    left: Counter[str]


def check_target(target: Path, found: list[Source]) -> None:
    """Raise UsageError unless the copy can be written there without touching the data."""
    if len(found) == 1 and target.is_dir():
        raise UsageError(f"--fix={target}: this is a folder", "name the file for the mended copy")
    if len(found) > 1 and target.is_file():
        raise UsageError(f"--fix={target}: there are {len(found)} files", "name a folder for the mended copies")
    for source in found:
        if source.packing:
            raise UsageError(f"{source.name}: packed files are not mended", "unpack it first")
    for path in _targets(target, found):
        if any(path.resolve() == source.path.resolve() for source in found):
            raise UsageError(f"--fix={target}: this is the data itself", "name another place for the copy")


def write(target: Path, found: list[Source], rules: Rules, workers: int | None, emit: Emit) -> tuple[int, int]:
    """Write the mended copy; returns how many errors and warnings are left in it."""
    mended, left, lines = Counter[str](), Counter[str](), Counter[Source]()
    size, done = sum(source.size for source in found), 0
    paths = dict(zip(found, _targets(target, found), strict=True))
    # All are written in full before the first gets its name.
    with writing(target), contextlib.ExitStack() as stack:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent)))
        parts = {source: staging / str(number) for number, source in enumerate(found)}
        for part in parts.values():
            part.touch()
        for block, result in mapped(blocks(found), mend_block, rules, workers):
            with parts[block.source].open("ab") as file:
                file.write(result.data)
            mended += result.mended
            left += result.left
            lines[block.source] += bool(result.data)
            done += block.end - block.start
            emit(Progress("mend", done, size, "B"))
        for source, path in paths.items():
            with parts[source].open("rb") as file:
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            publish(parts[source], path)
    if "empty" not in rules.ignore:
        left["empty"] += sum(not lines[source] for source in found)
    said = ", ".join(f"{code} {count:,}" for code, count in sorted(mended.items()))
    emit(Log(f"{target}: mended {said}" if mended else f"{target}: there was nothing to mend"))
    by = Counter[str]()
    for code, count in left.items():
        by[CODES[code].severity] += count
    return by["error"], by["warning"]


def mend_block(block: Block, rules: Rules) -> Mended:
    """The mended lines of a block."""
    out = bytearray()
    mended, left = Counter[str](), Counter[str]()
    for _, byte, data, size in block.lines():
        if size > MAX_LINE_BYTES:
            raise UsageError(
                f"{block.source.name}: a line is {size:,} bytes long", "split it into records, then mend the rest"
            )
        if byte == 0 and data.startswith(BOM_UTF8):
            data = data[len(BOM_UTF8) :]
            mended["byte-order-mark"] += 1
        if data.endswith(b"\r"):
            data = data[:-1]
            mended["windows-line-end"] += 1
        if not data.strip():
            mended["blank-line"] += 1
            continue
        found, value = faults(data, len(data), 1, rules)
        done = _mend(value, found)
        if done:
            mended += done
            data = _encode(value)
            found, _ = faults(data, len(data), 1, rules)
        for fault in found:
            left[fault.code] += 1
        out += data + b"\n"
    return Mended(bytes(out), mended, left)


def _mend(value: Any, found: list[Fault]) -> Counter[str]:
    """Mend a decoded record in place, fault by fault; says what was mended."""
    done = Counter[str]()
    # A doubled key would be lost on writing, and which one counts is a guess.
    if any(fault.code == "duplicate-key" for fault in found):
        return done
    codes = {fault.code for fault in found}
    if not isinstance(value, dict):
        return done
    for code, mending in _MENDINGS.items():
        if code in codes and (count := mending(value)):
            done[code] += count
    return done


def _parts(record: dict[str, Any]) -> int:
    count = 0
    for turn in _messages(record):
        parts = turn.get("content")
        texts = [part.get("text") for part in parts if _is_text(part)] if isinstance(parts, list) else []
        if isinstance(parts, list) and parts and len(texts) == len(parts):
            turn["content"] = "".join(texts)
            count += 1
    return count


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _arguments(record: dict[str, Any]) -> int:
    count = 0
    for turn in _messages(record):
        calls = turn.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(text := function.get("arguments"), str):
                continue
            try:
                arguments = msgspec.json.decode(text or "{}")
            except (msgspec.MsgspecError, RecursionError):
                continue
            # Of a key that stands twice, which one counts is a guess.
            if isinstance(arguments, dict) and not duplicate_keys(text.encode() or b"{}"):
                function["arguments"] = arguments
                count += 1
    return count


def _locale(record: dict[str, Any]) -> int:
    for fault in structure.locale_faults(record["locale"]):
        if fault.code == "locale-form":
            record["locale"] = fault.hint.removeprefix("write ")
            return 1
    return 0


def _blank_tags(record: dict[str, Any]) -> int:
    return _keep_tags(record, [not isinstance(tag, str) or bool(tag.strip()) for tag in record["tags"]])


def _repeated_tags(record: dict[str, Any]) -> int:
    seen: set[str] = set()
    kept = []
    for tag in record["tags"]:
        # Blank ones are another fault.
        is_new = not isinstance(tag, str) or not tag.strip() or tag not in seen
        kept.append(is_new)
        if isinstance(tag, str):
            seen.add(tag)
    return _keep_tags(record, kept)


def _keep_tags(record: dict[str, Any], kept: list[bool]) -> int:
    record["tags"] = [tag for tag, keep in zip(record["tags"], kept, strict=True) if keep]
    return len(kept) - len(record["tags"])


def _composed(record: dict[str, Any]) -> int:
    """Texts of messages, never keys, names or arguments: those are compared with others letter for letter."""
    count = 0
    for turn in _messages(record):
        content = turn.get("content")
        if isinstance(content, str) and characters.nfc(content) != content:
            turn["content"] = characters.nfc(content)
            count += 1
    return count


def _messages(record: dict[str, Any]) -> list[dict[str, Any]]:
    messages = record.get("messages")
    return [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []


_MENDINGS: dict[str, Callable[[dict[str, Any]], int]] = {
    "content-parts": _parts,
    "arguments-as-text": _arguments,
    "locale-form": _locale,
    "duplicate-tag": _repeated_tags,
    "blank-tag": _blank_tags,
    "not-nfc": _composed,
}


def _targets(target: Path, found: list[Source]) -> list[Path]:
    if len(found) == 1:
        return [target]
    names = [source.path.name for source in found]
    if len(set(names)) < len(names):
        raise UsageError(f"--fix={target}: two of the files have the same name", "mend them one by one")
    return [target / name for name in names]
