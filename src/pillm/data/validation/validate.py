"""`pillm dataset validate`: every fault of a dataset, in one pass over its lines on every core.

Memory does not grow with the data: findings beyond the limit are only counted, and ids wait on disk
as 128-bit hashes until those that stand twice are looked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from pillm.core import records
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Emit, Log, Progress
from pillm.core.findings import Finding
from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.core.stage import MetricValue, Result
from pillm.data.counts import token_lengths
from pillm.data.inputs import Block, Source, blocks, sources
from pillm.data.options import ValidateOptions
from pillm.data.parallel import mapped
from pillm.data.validation import judge, mend, model_text, reporting
from pillm.data.validation.codes import CODES, Fault, finding
from pillm.data.validation.ids import Ids
from pillm.models.chat import ChatTemplate, load_template

_BOM = b"\xef\xbb\xbf"


class Rules(NamedTuple):
    """What a worker has to know."""

    formats: bool = False
    ignore: frozenset[str] = frozenset()
    limit: int = 1000
    template: tuple[str, str, str] | None = None
    """Source, begin and end token."""
    tokenizer: str | None = None
    context: int | None = None


class Judged(NamedTuple):
    """What a worker found in a block; lines count from 1 within the block."""

    lines: int
    records: int
    blank: int
    faults: list[tuple[int, int, Fault]]
    """Line, offset of its first byte in the file, fault; no more than the limit."""
    counts: Counter[str]
    ids: bytes
    """Of every record: 16 bytes hash, then 8 bytes each of line and offset (little endian)."""


def run(options: ValidateOptions, emit: Emit) -> Result:
    """Check the data, print findings as `options.format` says, and write a mended copy if one is asked for.

    Raises FindingsError if there are errors (with `strict`: or warnings).
    """
    rules = _rules(options, emit)
    found = sources(options.data)
    if options.fix:
        mend.check_target(options.fix, found)
    report = reporting.Report(options.format, options.max_findings, emit)
    total = Counter[str]()
    count = 0
    with Ids() as ids:
        for source, lines, judged in _judged(found, rules, options.workers, emit):
            total += judged.counts
            count += judged.records
            ids.add(found.index(source), lines, judged.ids)
            for line, byte, fault in judged.faults:
                report.add(finding(fault, source.name, lines + line, byte))
        if "duplicate-id" not in rules.ignore:
            for item in _doubled(ids, found):
                total["duplicate-id"] += 1
                report.add(item)
    report.close()
    severities = Counter[str]()
    for code, number in total.items():
        severities[CODES[code].severity] += number
    errors, warnings = severities["error"], severities["warning"]
    metrics: dict[str, MetricValue] = {"records": count, "files": len(found), "errors": errors, "warnings": warnings}
    emit(Log(_summary(total, count, len(found), report.left_out)))
    if options.fix:
        errors, warnings = mend.write(options.fix, found, rules.formats, options.workers, emit)
        # Which of two records with one id is the wrong one is a guess, so they stay.
        errors += total["duplicate-id"]
    if errors or (options.strict and warnings):
        what = "are left in the mended copy" if options.fix else "in the data"
        bad = _many(errors, "error") + (f" and {_many(warnings, 'warning')}" if options.strict and warnings else "")
        mendable = not options.fix and any(CODES[code].mendable for code in total)
        hint = "mend what is listed" + ("; --fix=FILE writes a copy with what needs no guessing" if mendable else "")
        raise FindingsError(f"{bad} {what}", (), hint)
    return Result({"fixed": options.fix} if options.fix else {}, metrics)


def check_block(block: Block, rules: Rules) -> Judged:
    """All faults of a block's lines."""
    faults: list[tuple[int, int, Fault]] = []
    counts: Counter[str] = Counter()
    ids = bytearray()
    number = good = blank = 0
    for number, byte, data, size in block.lines():
        record = judge.sound(data, rules.formats) if size <= MAX_LINE_BYTES and not data.endswith(b"\r") else None
        if record is not None and rules.template is None and rules.context is None:
            good += 1
            ids += _id_entry(record.id, number, byte)
            continue
        if not data.strip():
            blank += 1
        found, value = _in_full(data, size, byte, rules)
        if isinstance(value, dict):
            good += 1
            if isinstance(value.get("id"), str):
                ids += _id_entry(value["id"], number, byte)
        for fault in found:
            if fault.code in rules.ignore:
                continue
            counts[fault.code] += 1
            if len(faults) < rules.limit:
                faults.append((number, byte, fault))
    if block.broken:
        counts["broken-archive"] += 1
        faults.append((number or 1, block.end, Fault("broken-archive", "$", block.broken)))
    return Judged(number, good, blank, faults, counts, bytes(ids))


def _judged(found: list[Source], rules: Rules, workers: int | None, emit: Emit) -> Iterator[tuple[Source, int, Judged]]:
    """Every block's result with its source and the number of lines before it."""
    size, done = sum(source.size for source in found), 0
    packed = any(source.packing for source in found)
    lines, content = Counter[Source](), Counter[Source]()
    with_cr: set[Source] = set()
    for block, judged in mapped(blocks(found), check_block, rules, workers):
        source = block.source
        judged = _once(judged, "windows-line-end", source in with_cr)
        if judged.counts["windows-line-end"]:
            with_cr.add(source)
        yield source, lines[source], judged
        lines[source] += judged.lines
        content[source] += judged.lines - judged.blank + judged.counts["broken-archive"]
        done += block.end - block.start
        emit(Progress("check", done, None if packed else size, "B"))
    for source in found:
        if not content[source] and "empty" not in rules.ignore:
            fault = Fault("empty", "$", "there is no record in this file")
            yield source, 0, Judged(0, 0, 0, [(1, 0, fault)], Counter({"empty": 1}), b"")


def _once(judged: Judged, code: str, told: bool) -> Judged:
    """The result with at most one fault of this code, which is true of a file rather than of each line."""
    if not judged.counts[code]:
        return judged
    first = next((item for item in judged.faults if item[2].code == code), None)
    keep = [item for item in judged.faults if item[2].code != code or (item is first and not told)]
    counts = Counter(judged.counts)
    counts[code] = 0 if told else 1
    return judged._replace(faults=keep, counts=+counts)


def _in_full(data: bytes, size: int, byte: int, rules: Rules) -> tuple[list[Fault], Any]:
    if size > MAX_LINE_BYTES:
        return [Fault("line-too-long", "$", f"the line is {size:,} bytes long; {MAX_LINE_BYTES:,} is the most")], None
    found: list[Fault] = []
    if byte == 0 and data.startswith(_BOM):
        found.append(Fault("byte-order-mark", "$", "the file begins with a byte order mark"))
        data = data[len(_BOM) :]
    if data.endswith(b"\r"):
        found.append(Fault("windows-line-end", "$", "lines end with CR LF"))
        data = data[:-1]
    if not data.strip(b" \t\r"):
        return [*found, Fault("blank-line", "$", "the line is empty")], None
    faults, value = judge.faults(data, rules.formats)
    found += faults
    if (rules.template is not None or rules.context is not None) and not any(_is_error(fault) for fault in found):
        found += _as_text(data, rules)
    return found, value


def _is_error(fault: Fault) -> bool:
    return CODES[fault.code].severity == "error"


def _as_text(data: bytes, rules: Rules) -> Iterator[Fault]:
    """What is wrong with the dialogue as a model would read it."""
    record = records.decoder.decode(data)
    try:
        text = _template(*rules.template).render(record.messages, record.tools) if rules.template else None
    except UsageError as error:
        yield Fault("template-refuses", "$.messages", error.message)
        return
    if rules.context is None or rules.tokenizer is None:
        return
    if text is None:
        text = "\n".join(message.content or "" for message in record.messages)
    tokens = len(token_lengths.load(rules.tokenizer).encode(text, add_special_tokens=False).ids)
    if tokens > rules.context:
        yield Fault(
            "too-many-tokens", "$.messages", f"the dialogue is {tokens:,} tokens long; the context is {rules.context:,}"
        )


@lru_cache(maxsize=1)
def _template(source: str, bos: str, eos: str) -> ChatTemplate:
    return ChatTemplate(source, bos, eos)


def _rules(options: ValidateOptions, emit: Emit) -> Rules:
    for code in options.ignore:
        if code not in CODES:
            raise UsageError(f"--ignore={code}: there is no such code", "see the table in docs/dataset.md")
    if options.model and options.chat_template:
        raise UsageError("--model and --chat-template both name a template", "give one of them")
    spoken = model_text.of(options.model, emit) if options.model else None
    template = (load_template(options.chat_template), "", "") if options.chat_template else spoken and spoken.template
    if template:
        _template(*template)
    tokenizer = options.tokenizer and token_lengths.file_of(options.tokenizer)
    if options.context is not None and tokenizer is None:
        tokenizer = spoken and spoken.tokenizer
        if tokenizer is None:
            raise UsageError("--context needs a tokenizer", "give --tokenizer, or --model with a folder that has one")
    if options.tokenizer and options.context is None:
        raise UsageError("--tokenizer counts tokens for --context", "give both, or neither")
    if tokenizer and options.context is not None:
        token_lengths.load(str(tokenizer))
    return Rules(
        options.check_formats,
        frozenset(options.ignore),
        options.max_findings,
        template or None,
        str(tokenizer) if tokenizer else None,
        options.context,
    )


def _id_entry(key: str, line: int, byte: int) -> bytes:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return digest + line.to_bytes(8, "little") + byte.to_bytes(8, "little")


def _doubled(ids: Ids, found: list[Source]) -> Iterator[Finding]:
    for again, first in ids.doubled():
        place = f"{found[first.source].name}:{first.line}" if first.source != again.source else f"line {first.line}"
        fault = Fault("duplicate-id", "$.id", f"this id stands already in {place}")
        yield finding(fault, found[again.source].name, again.line, again.byte)


def _summary(total: Counter[str], count: int, files: int, left_out: int) -> str:
    said = f"{_many(count, 'record')} in {_many(files, 'file')}"
    if not total:
        return f"{said}: nothing is wrong"
    codes = ", ".join(
        f"{code} {number:,}" for code, number in sorted(total.items(), key=lambda item: (-item[1], item[0]))
    )
    return f"{said}: {codes}" + (f" ({left_out:,} more than are shown; see --max-findings)" if left_out else "")


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
