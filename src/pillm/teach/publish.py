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
from pillm.teach.journal import Entry, Journal
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
    for record in prompts:
        tried = book.entries.get(tally.keys[record.id], [])
        failure = tally.failed.get(tally.keys[record.id])
        if tried and not tried[-1].reasons:
            good[record.id] = _labelled(options, name, record, tried[-1])
        else:
            reason = failure or tried[-1].reasons[0]
            codes[reason.code] += 1
            first = first or reason.message
            bad.append(_rejected(options, name, record, tried, failure))
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


def _provenance(options: LabelOptions, teacher: str, record: Record, attempt: int) -> dict[str, object]:
    # A prompt that another teacher failed on before carries that story; a new one begins here.
    meta = {key: value for key, value in record.meta.items() if key != "rejected"}
    sampling = msgspec.to_builtins(sampling_for(options, record.id, attempt))
    return {**meta, "teacher": teacher, "sampling": sampling, "attempt": attempt}


def _labelled(options: LabelOptions, teacher: str, record: Record, entry: Entry) -> bytes:
    if entry.message is None:
        raise AssertionError("an accepted answer has a message")
    meta = _provenance(options, teacher, record, entry.attempt)
    answered = msgspec.structs.replace(record, messages=(*record.messages, entry.message), meta=meta)
    return records.encode(answered) + b"\n"


def _rejected(
    options: LabelOptions, teacher: str, record: Record, tried: Sequence[Entry], failure: Reason | None
) -> bytes:
    """The prompt as it came, with the story in `meta.rejected`: it can be given to another teacher as it is."""
    attempt = (tried[-1].attempt if tried else 0) + (failure is not None)
    reasons = [(entry.attempt, reason) for entry in tried for reason in entry.reasons]
    reasons += [(attempt, failure)] if failure else []
    answer = next((entry.message for entry in reversed(tried) if entry.message), None)
    story = {
        "reasons": [{"attempt": number, **msgspec.to_builtins(reason)} for number, reason in reasons],
        "answer": msgspec.to_builtins(answer),
    }
    meta = {**_provenance(options, teacher, record, attempt), "rejected": story}
    return records.encode(msgspec.structs.replace(record, meta=meta)) + b"\n"
