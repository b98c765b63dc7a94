"""Varieties, registers and tools: what records declare, what their text shows, and what is wanted.

Every record is looked at: the language of what user and assistant say, and the evidence for its variety.
Neither labels anything. What contradicts the declared locale is a finding, for a person to judge.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from pillm.core import records as core_records
from pillm.core.errors import FindingsError, GateError
from pillm.core.events import Emit, Found, Log, Output, Progress
from pillm.core.findings import Finding
from pillm.core.jsonl import MAX_LINE_BYTES, Line
from pillm.core.stage import MetricValue, Result
from pillm.data import targets as target_files
from pillm.data import varieties, wire
from pillm.data.coverage_table import table
from pillm.data.inputs import BLOCK_BYTES, Block, Source, blocks, sources
from pillm.data.options import CoverageOptions
from pillm.data.parallel import mapped
from pillm.data.targets import Cell, Met, Target, met
from pillm.models.language import language, same

MAX_FINDINGS = 100


class Tool(msgspec.Struct, frozen=True):
    """How many records declare a tool, and how many call it."""

    name: str
    declared: int
    called: int


class Identified(msgspec.Struct, frozen=True):
    """How many records of a declared locale are in a language; an empty code is where the model abstains."""

    locale: str
    language: str
    records: int


class Variety(msgspec.Struct, frozen=True):
    """Records of a locale by what their words are evidence for.

    `shown` is evidence that the declared variety fits, `against` evidence for others only, `mixed` markers that
    exclude each other, `silent` no marker or only a weak one; records in another language are not looked at. `judged`
    tells whether there is a lexicon with this variety at all.
    `evidence` counts the verdicts, as `fr-CA` or `de-DE/de-AT`.
    """

    locale: str
    judged: bool
    records: int
    shown: int
    against: int
    mixed: int
    silent: int
    other_language: int
    evidence: dict[str, int]


class Coverage(msgspec.Struct, frozen=True):
    """What a dataset covers. `findings` are the first of all that speaks against a declared locale."""

    records: int
    invalid: int
    cells: tuple[Cell, ...]
    tools: tuple[Tool, ...]
    tags: dict[str, int]
    languages: tuple[Identified, ...]
    varieties: tuple[Variety, ...]
    targets: tuple[Met, ...]
    warnings: tuple[str, ...]
    findings: tuple[Finding, ...]
    findings_in_all: int


class Record(NamedTuple):
    """What counts of one line."""

    locale: str
    register: str
    tags: Sequence[str]
    declared: tuple[str, ...]
    called: frozenset[str]
    text: str


class Part(NamedTuple):
    """The counts of one block; line numbers in `findings` begin at its first line."""

    lines: int
    invalid: int
    cells: Counter[tuple[str, str, str | None, str]]
    """By locale, register, called tool (None for all records) and what the text shows."""
    declared: Counter[str]
    tags: Counter[str]
    languages: Counter[tuple[str, str]]
    evidence: Counter[tuple[str, str, str]]
    """By locale, state and verdict."""
    findings: list[Finding]
    against: int


def measure(
    found: Sequence[Source], targets: Sequence[Target] = (), workers: int | None = None, emit: Emit | None = None
) -> Coverage:
    """Coverage of all records in one pass. Raises FindingsError if there is none."""
    total, done, line = sum(source.size for source in found), 0, {source.name: 0 for source in found}
    sums = Part(0, 0, Counter(), Counter(), Counter(), Counter(), Counter(), [], 0)
    invalid = against = 0
    for block, part in mapped(blocks(found), count, None, workers):
        for ours, theirs in zip(sums[2:7], part[2:7], strict=True):
            ours.update(theirs)  # type: ignore[union-attr, arg-type]
        invalid, against = invalid + part.invalid, against + part.against
        room = MAX_FINDINGS - len(sums.findings)
        before = line[block.source.name]
        sums.findings.extend(msgspec.structs.replace(item, line=item.line + before) for item in part.findings[:room])
        line[block.source.name] += part.lines
        done += block.end - block.start
        if emit and total > BLOCK_BYTES:
            emit(Progress("coverage", done, total if not block.source.packing else None, "bytes"))
    return _coverage(sums, invalid, against, targets, found)


def count(block: Block, _: None = None) -> Part:
    """The counts of one block of lines."""
    part = Part(0, 0, Counter(), Counter(), Counter(), Counter(), Counter(), [], 0)
    number = invalid = against = 0
    for line in block.lines():
        number = line.number
        data = line.data if line.byte else line.data.removeprefix(BOM_UTF8)
        if not data.strip():
            continue
        record = _record(data) if line.size <= MAX_LINE_BYTES else None
        if record is None:
            invalid += 1
            continue
        shows, item = _look(record, part)
        if item:
            against += 1
            if len(part.findings) < MAX_FINDINGS:
                part.findings.append(_finding(item, block.source.name, line))
        for tool in (None, *record.called):
            part.cells[record.locale, record.register, tool, shows] += 1
        part.declared.update(record.declared)
        part.tags.update(set(record.tags))
    return part._replace(lines=number, invalid=invalid, against=against)


def run(options: CoverageOptions, emit: Emit) -> Result:
    """`pillm dataset coverage`. Raises GateError with --strict if a target is not met."""
    wanted = target_files.read(options.targets) if options.targets else ()
    found = sources(options.data)
    coverage = measure(found, wanted, options.workers, emit)
    if options.format == "json":
        emit(Output(msgspec.json.encode(coverage).decode()))
    else:
        for row in table(coverage):
            emit(Output(row))
    for finding in coverage.findings:
        emit(Found(finding))
    if coverage.findings_in_all > len(coverage.findings):
        emit(Log(f"{coverage.findings_in_all - len(coverage.findings):,} more findings are not shown", "warning"))
    for warning in coverage.warnings:
        emit(Log(warning, "warning"))
    missed = sum(1 for item in coverage.targets if item.missing)
    if missed and options.strict:
        raise GateError(
            f"{options.targets}: {missed} of {len(coverage.targets)} targets {'is' if missed == 1 else 'are'} not met",
            "add the records that the warnings name, or lower the targets",
        )
    metrics: dict[str, MetricValue] = {
        "records": coverage.records,
        "invalid": coverage.invalid,
        "against_locale": coverage.findings_in_all,
        "targets": len(coverage.targets),
        "targets_missed": missed,
    }
    return Result({}, metrics)


def _record(data: bytes) -> Record | None:
    try:
        line = wire.decode(data)
        said = [turn.content for turn in line.messages if isinstance(turn, wire.User | wire.Assistant) and turn.content]
        called = frozenset(
            call.function.name
            for turn in line.messages
            if isinstance(turn, wire.Assistant) and turn.tool_calls
            for call in turn.tool_calls
        )
        declared = _names(bytes(line.tools))
        return Record(line.locale, line.register, line.tags, declared, called, "\n".join(said))  # type: ignore[arg-type]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        record = core_records.decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    said = [turn.content for turn in record.messages if turn.role in ("user", "assistant") and turn.content]
    called = frozenset(call.function.name for turn in record.messages for call in turn.tool_calls)
    declared = tuple(sorted({tool.function.name for tool in record.tools}))
    return Record(record.locale, record.register, record.tags, declared, called, "\n".join(said))


class _Name(msgspec.Struct):
    name: str


class _Declared(msgspec.Struct):
    function: _Name


_decode_tools = msgspec.json.Decoder(list[_Declared]).decode


@lru_cache(4096)
def _names(tools: bytes) -> tuple[str, ...]:
    return tuple(sorted({tool.function.name for tool in _decode_tools(tools)})) if tools else ()


def _look(record: Record, part: Part) -> tuple[str, tuple[str, str] | None]:
    """What the text shows (shown, against, other, or nothing), and a finding's code and message."""
    locale = record.locale
    told = language(record.text)
    part.languages[locale, told.code] += 1
    if told.code and locale and not same(locale, told.code):
        message = f"declared {locale}, but the text is most likely {told.code} ({100 * told.confidence:.0f} %)"
        return "other", ("other-language", message)
    shown = varieties.evidence(record.text, locale.split("-")[0].lower())
    verdict = shown.verdict
    part.evidence[locale, shown.state, "/".join(verdict)] += 1
    if not verdict or not _judged(locale):
        return "", None
    if locale in verdict:
        return "shown", None
    forms = ", ".join(shown.markers)
    message = f"declared {locale}, but this is evidence for {' or '.join(verdict)}: {forms}"
    return "against", ("other-variety", message)


@lru_cache(4096)
def _judged(locale: str) -> bool:
    code = locale.split("-")[0].lower()
    return code in varieties.LANGUAGES and locale in varieties.lexicon(code).varieties


def _finding(item: tuple[str, str], file: str, line: Line) -> Finding:
    return Finding(
        file=file,
        line=line.number,
        byte=line.byte,
        path="$.locale",
        code=item[0],
        severity="warning",
        message=item[1],
        hint="check the locale and the text; neither was changed",
    )


def _coverage(sums: Part, invalid: int, against: int, targets: Sequence[Target], found: Sequence[Source]) -> Coverage:
    shows: dict[tuple[str, str, str | None], Counter[str]] = {}
    for (locale, register, tool, state), number in sums.cells.items():
        shows.setdefault((locale, register, tool), Counter())[state] += number
    ordered = sorted(shows, key=lambda key: (key[0], key[1], key[2] is not None, key[2] or ""))
    cells = tuple(
        Cell(*key, sum(shows[key].values()), shows[key]["shown"], shows[key]["against"], shows[key]["other"])
        for key in ordered
    )
    total = sum(cell.records for cell in cells if cell.tool is None)
    if not total:
        empty = [
            Finding(file=source.name, line=1, code="empty", message="there is no record in this file")
            for source in found
        ]
        raise FindingsError("there is no record in the data", empty, "pillm dataset validate names every bad line")
    called: Counter[str] = Counter()
    for cell in cells:
        if cell.tool is not None:
            called[cell.tool] += cell.records
    rows = tuple(met(target, cells, total) for target in targets)
    gaps = [row.warning for row in rows if row.missing]
    undeclared = sum(cell.records for cell in cells if cell.tool is None and not cell.locale)
    if undeclared:
        gaps.append(f"{undeclared:,} of {total:,} records declare no locale")
    return Coverage(
        total,
        invalid,
        cells,
        tuple(Tool(name, sums.declared[name], called[name]) for name in sorted(sums.declared.keys() | called.keys())),
        dict(sorted(sums.tags.items())),
        tuple(Identified(*key, number) for key, number in sorted(sums.languages.items())),
        tuple(_variety(locale, cells, sums) for locale in sorted({cell.locale for cell in cells})),
        rows,
        tuple(gaps),
        tuple(sums.findings),
        against,
    )


def _variety(locale: str, cells: Sequence[Cell], sums: Part) -> Variety:
    whole = [cell for cell in cells if cell.locale == locale and cell.tool is None]
    verdicts: Counter[str] = Counter()
    states: Counter[str] = Counter()
    for (where, state, verdict), number in sums.evidence.items():
        if where == locale:
            states[state] += number
            if verdict:
                verdicts[verdict] += number
    judged = _judged(locale)
    shown = sum(number for verdict, number in verdicts.items() if locale in verdict.split("/"))
    return Variety(
        locale,
        judged,
        sum(cell.records for cell in whole),
        shown,
        states["evidence"] - shown if judged else 0,
        states["conflict"],
        states["silent"],
        sum(cell.other_language for cell in whole),
        dict(sorted(verdicts.items(), key=lambda item: (-item[1], item[0]))),
    )
