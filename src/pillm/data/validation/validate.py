"""`pillm dataset validate`: every fault of a dataset, in one pass over its lines on every core.

Memory does not grow with the data: findings beyond the limit are only counted, and ids wait on disk
as 128-bit hashes until those that stand twice are looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Emit, Log, Progress
from pillm.core.findings import Finding
from pillm.core.stage import MetricValue, Result
from pillm.data.inputs import Source, blocks, sources
from pillm.data.options import ValidateOptions
from pillm.data.parallel import mapped
from pillm.data.validation import mend, reporting
from pillm.data.validation.check import Judged, check_block
from pillm.data.validation.codes import CODES, Fault, finding
from pillm.data.validation.ids import Ids, Place
from pillm.data.validation.rules import Rules, template_of
from pillm.models.chat import load_template


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
            pairs, doubled = ids.doubled(options.max_findings)
            if doubled:
                total["duplicate-id"] = doubled
            for again, first in pairs:
                report.add(_doubled(again, first, found))
    report.close()
    severities = Counter[str]()
    for code, number in total.items():
        severities[CODES[code].severity] += number
    errors, warnings = severities["error"], severities["warning"]
    metrics: dict[str, MetricValue] = {"records": count, "files": len(found), "errors": errors, "warnings": warnings}
    emit(Log(_summary(total, count, len(found), total.total() - report.shown)))
    if options.fix:
        errors, warnings = mend.write(options.fix, found, rules, options.workers, emit)
        # Which of two records with one id is the wrong one is a guess, so they stay.
        errors += total["duplicate-id"]
    if errors or (options.strict and warnings):
        what = "are left in the mended copy" if options.fix else "in the data"
        bad = _many(errors, "error") + (f" and {_many(warnings, 'warning')}" if options.strict and warnings else "")
        mendable = not options.fix and any(CODES[code].mendable for code in total)
        hint = "mend what is listed" + ("; --fix=FILE writes a copy with what needs no guessing" if mendable else "")
        raise FindingsError(f"{bad} {what}", (), hint)
    return Result({"fixed": options.fix} if options.fix else {}, metrics)


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
    """The result without this fault, which is true of the file, if it was told for an earlier block."""
    if not told or not judged.counts[code]:
        return judged
    counts = Counter({key: number for key, number in judged.counts.items() if key != code})
    return judged._replace(faults=[item for item in judged.faults if item[2].code != code], counts=counts)


def _rules(options: ValidateOptions, emit: Emit) -> Rules:
    for code in options.ignore:
        if code not in CODES:
            raise UsageError(f"--ignore={code}: there is no such code", "see the table in docs/dataset.md")
    if options.model and options.chat_template:
        raise UsageError("--model and --chat-template both name a template", "give one of them")
    spoken = None
    if options.model:
        from pillm.data.validation import model_text  # the readers of models take long to import

        spoken = model_text.of(options.model, emit)
    template = (load_template(options.chat_template), "", "") if options.chat_template else spoken and spoken.template
    if template:
        template_of(*template)
    from pillm.data.counts import token_lengths

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


def _doubled(again: Place, first: Place, found: list[Source]) -> Finding:
    place = f"{found[first.source].name}:{first.line}" if first.source != again.source else f"line {first.line}"
    fault = Fault("duplicate-id", "$.id", f"this id stands already in {place}")
    return finding(fault, found[again.source].name, again.line, again.byte)


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
