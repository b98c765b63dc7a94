"""The results: answered records and rejected prompts in the dataset's order, and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from pillm.core import records
from pillm.core.artifacts import artifact_of, atomic_file, write_atomic
from pillm.core.errors import GateError, writing
from pillm.core.events import Emit, Log, Made
from pillm.core.records import Record
from pillm.core.stage import Result
from pillm.teach.ask import Reason, sampling_for
from pillm.teach.choice import Choice, Judged, choose
from pillm.teach.journal import Journal
from pillm.teach.options import LabelOptions
from pillm.teach.report import LabelReport
from pillm.teach.rounds import Tally
from pillm.teach.teachers import Teacher


class Item(msgspec.Struct, frozen=True):
    """A record of the dataset. One that passes through keeps its `line`'s bytes; a prompt has None."""

    record: Record
    line: bytes | None


def publish(
    options: LabelOptions,
    items: Sequence[Item],
    prompts: Sequence[Record],
    teacher: Teacher | None,
    tally: Tally,
    book: Journal,
    seconds: float,
    emit: Emit,
) -> Result:
    """Write the three files, each in one step.

    Raises GateError if there were prompts and all were rejected; labelled.jsonl is not written then.
    """
    name = teacher.identity if teacher else ""
    good: dict[str, bytes] = {}
    bad: list[bytes] = []
    codes: Counter[str] = Counter()
    first = ""
    faults: Counter[str] = Counter()
    by_validator: Counter[str] = Counter()
    chosen: Counter[str] = Counter()
    stored = [0, 0]
    template = teacher.template if teacher else ""
    for record in prompts:
        entries = book.entries.get(tally.keys[record.id], [])
        tried = [tally.judged(record, entry) for entry in sorted(entries, key=lambda entry: entry.attempt)]
        for item in tried:
            stored[0] += item.entry.tokens_in
            stored[1] += item.entry.tokens_out
            faults.update({reason.code for _, reason in item.reasons})
            by_validator.update({validator or "basic" for validator, _ in item.reasons})
        failure = tally.failed.get(tally.keys[record.id])
        if choice := choose(record, tried, options.best_of):
            good[record.id] = _labelled(options, name, template, record, choice)
            chosen[choice.why] += 1
        else:
            reason = failure or tried[-1].reasons[0][1]
            codes[reason.code] += 1
            first = first or reason.message
            bad.append(_rejected(options, name, template, record, tried, failure))
    passed = sum(item.line is not None for item in items)
    report = LabelReport(
        teacher=name,
        backend=teacher.backend if teacher else "",
        sampling=teacher.settings if teacher else {},
        passed=passed,
        prompts=len(items) - passed,
        labelled=len(good),
        rejected=len(bad),
        unasked=len(items) - passed - len(prompts),
        reused=tally.reused,
        answers=tally.answers,
        requests=tally.counts.requests if tally.counts else tally.answers,
        retries=tally.again + (tally.counts.retries if tally.counts else 0),
        tokens_in=tally.tokens_in,
        tokens_out=tally.tokens_out,
        seconds=round(seconds, 3),
        reasons=dict(codes.most_common()),
        settings=_settings(options, tally),
        answer_reasons=dict(faults.most_common()),
        validators=dict(by_validator.most_common()),
        chosen=dict(chosen.most_common()) if options.best_of > 1 else {},
        stored_tokens_in=stored[0],
        stored_tokens_out=stored[1],
        cost=_cost(options, tally.tokens_in, tally.tokens_out),
        stored_cost=_cost(options, *stored),
        without_tools=0 if tally.knows_tools else sum(bool(record.tools) for record in prompts),
    )
    outputs = {
        "labelled": options.out / "labelled.jsonl",
        "rejected": options.out / "rejected.jsonl",
        "report": options.out / "label.json",
    }
    with writing(options.out):
        write_atomic(outputs["rejected"], b"".join(bad))
        write_atomic(outputs["report"], msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        if bad and not good:
            raise GateError(
                f"all {len(bad)} prompts were rejected; the first one: {first}",
                f"{outputs['rejected']} holds each prompt with its reasons and its last answer",
            )
        with atomic_file(outputs["labelled"]) as file:
            for item in items:
                if item.line is not None:
                    file.write(item.line + b"\n")
                elif item.record.id in good:
                    file.write(good[item.record.id])
    if bad:
        emit(Log(f"{len(bad)} of {len(prompts)} prompts were rejected: see {outputs['rejected']}", "warning"))
    for output, path in outputs.items():
        emit(Made(output, artifact_of(path)))
    figures = {"labelled": len(good), "rejected": len(bad), "passed": passed, "reused": tally.reused}
    return Result(outputs, {**figures, "tokens_out": tally.tokens_out, "seconds": report.seconds})


def _settings(options: LabelOptions, tally: Tally) -> dict[str, object]:
    own = {validator.name: validator.source for validator in tally.validators if validator.source}
    return {
        "require": list(options.require),
        "min_chars": options.min_chars,
        "max_chars": options.max_chars,
        "validator": own,
        "best_of": options.best_of,
    }


def _cost(options: LabelOptions, tokens_in: int, tokens_out: int) -> float | None:
    if not (options.price_in or options.price_out):
        return None
    return round((tokens_in * options.price_in + tokens_out * options.price_out) / 1e6, 6)


def _provenance(options: LabelOptions, teacher: str, template: str, record: Record, attempt: int) -> dict[str, object]:
    # A prompt that another teacher failed on before carries that story; a new one begins here.
    meta = {key: value for key, value in record.meta.items() if key not in ("rejected", "template", "best_of")}
    used: dict[str, object] = {"template": template} if template else {}
    sampling = msgspec.to_builtins(sampling_for(options, record.id, attempt))
    return {**meta, "teacher": teacher, **used, "sampling": sampling, "attempt": attempt}


def _labelled(options: LabelOptions, teacher: str, template: str, record: Record, choice: Choice) -> bytes:
    entry = choice.entry
    if entry.message is None:
        raise AssertionError("an accepted answer has a message")
    meta = _provenance(options, teacher, entry.template or template, record, entry.attempt)
    if options.best_of > 1:
        told = {"answers": choice.answers, "passed": choice.passed, "agree": choice.agree, "why": choice.why}
        meta["best_of"] = told if entry.logprob is None else {**told, "logprob": entry.logprob}
    answered = msgspec.structs.replace(record, messages=(*record.messages, entry.message), meta=meta)
    return records.encode(answered) + b"\n"


def _rejected(
    options: LabelOptions,
    teacher: str,
    template: str,
    record: Record,
    tried: Sequence[Judged],
    failure: Reason | None,
) -> bytes:
    """The prompt as it came, with the story in `meta.rejected`: it can be given to another teacher as it is."""
    attempt = (tried[-1].entry.attempt if tried else 0) + (failure is not None)
    reasons = [(item.entry.attempt, reason) for item in tried for _, reason in item.reasons]
    reasons += [(attempt, failure)] if failure else []
    answer = next((item.entry.message for item in reversed(tried) if item.entry.message), None)
    story = {
        "reasons": [{"attempt": number, **msgspec.to_builtins(reason)} for number, reason in reasons],
        "answer": msgspec.to_builtins(answer),
    }
    used = next((item.entry.template for item in reversed(tried) if item.entry.template), template)
    meta = {**_provenance(options, teacher, used, record, attempt), "rejected": story}
    return records.encode(msgspec.structs.replace(record, meta=meta)) + b"\n"
