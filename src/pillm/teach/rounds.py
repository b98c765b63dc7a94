"""Asking in rounds: all prompts once, then again those whose answer was rejected, until none is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pillm.core.events import Emit, Log, Metric, Progress
from pillm.core.records import Record
from pillm.teach.ask import Ask, Reason, Reply, key_of, sampling_for
from pillm.teach.journal import Entry, Journal
from pillm.teach.judge import judge
from pillm.teach.options import LabelOptions
from pillm.teach.teachers import Counts, Hired, Teacher


@dataclass
class Tally:
    """What came of the rounds. `keys` are by record id, `failed` (requests that failed) by key."""

    keys: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Reason] = field(default_factory=dict)
    reused: int = 0
    answers: int = 0
    again: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    counts: Counts | None = None
    knows_tools: bool = True
    settled: int = 0
    began: float = 0.0
    told: float = 0.0


def answer(
    options: LabelOptions, prompts: Sequence[Record], teacher: Teacher | None, book: Journal, emit: Emit
) -> Tally:
    """Ask until every prompt has a good answer or no attempt left. The teacher is hired only if it is needed."""
    tally = Tally()
    if teacher is None:
        return tally
    tally.keys = {record.id: key_of(teacher.identity, teacher.settings, record) for record in prompts}

    def is_settled(key: str) -> bool:
        last = book.last(key)
        done = last is not None and (not last.reasons or last.lasting or last.attempt >= options.attempts)
        return done or key in tally.failed

    def take(pairs: Sequence[tuple[Ask, Reply]]) -> None:
        book.add([entry for ask, reply in pairs if (entry := _entry(tally, ask, reply))])
        tally.settled += sum(is_settled(ask.key) for ask, _ in pairs)
        if time.monotonic() - tally.told >= 1:
            _tell(tally, len(prompts), emit)

    tally.settled = tally.reused = sum(map(is_settled, tally.keys.values()))
    if tally.reused:
        emit(Log(f"{tally.reused} of {len(prompts)} prompts were answered by an earlier run"))
    _tell(tally, len(prompts), emit)
    with contextlib.ExitStack() as stack:
        hired: Hired | None = None
        while todo := [record for record in prompts if not is_settled(tally.keys[record.id])]:
            if hired is None:
                hired = stack.enter_context(teacher.hire(emit))
                tally.counts, tally.knows_tools = hired.counts, hired.knows_tools
                _warn_of_tools(todo, hired, emit)
                tally.began = time.monotonic()
            hired.backend([_ask(options, tally, book, record) for record in todo], take)
            _tell(tally, len(prompts), emit)
    return tally


def _ask(options: LabelOptions, tally: Tally, book: Journal, record: Record) -> Ask:
    key = tally.keys[record.id]
    last = book.last(key)
    attempt = last.attempt + 1 if last else 1
    return Ask(key, record, attempt, sampling_for(options, record.id, attempt))


def _entry(tally: Tally, ask: Ask, reply: Reply) -> Entry | None:
    """The journal's entry for a reply, counted; None for a failure of the moment, which the next run asks again."""
    tally.again += ask.attempt > 1
    if reply.failure and reply.passing:
        tally.failed[ask.key] = reply.failure
        return None
    message, reasons = judge(ask.record, reply)
    tally.answers += 1
    tally.tokens_in += reply.tokens_in
    tally.tokens_out += reply.tokens_out
    return Entry(ask.key, ask.attempt, message, reasons, reply.lasting, reply.tokens_in, reply.tokens_out)


def _tell(tally: Tally, total: int, emit: Emit) -> None:
    tally.told = time.monotonic()
    emit(Progress("label", tally.settled, total, "prompts"))
    seconds, new = tally.told - tally.began, tally.settled - tally.reused
    if tally.began and new and seconds > 1:
        emit(Metric("rate", round(new / seconds, 3), tally.settled, "prompts/s"))
        emit(Metric("tokens", round(tally.tokens_out / seconds, 1), tally.settled, "tokens/s"))
        emit(Metric("remaining", round((total - tally.settled) * seconds / new), tally.settled, "s"))


def _warn_of_tools(todo: Sequence[Record], hired: Hired, emit: Emit) -> None:
    blind = sum(bool(record.tools) for record in todo)
    if blind and not hired.knows_tools:
        emit(
            Log(
                f"the teacher's chat template knows no tools: {blind} prompts are asked without the tools "
                "they declare (take another teacher, or give a template with --chat-template)",
                "warning",
            )
        )
