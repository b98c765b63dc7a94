"""Asking in rounds: all prompts once, then again those whose answer was rejected, until none is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pillm.core.events import Emit, Log, Metric, Progress
from pillm.core.records import Record
from pillm.teach.ask import Ask, Reason, Reply, key_of, sampling_for
from pillm.teach.choice import Judged, judged
from pillm.teach.journal import Entry, Journal
from pillm.teach.judge import judge
from pillm.teach.options import LabelOptions
from pillm.teach.teachers import Counts, Hired, Teacher
from pillm.teach.validators import Validator, chosen


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
    settled: set[str] = field(default_factory=set)
    """Keys that are asked no more; a set, since answers to a key that failed among several still come in."""
    began: float = 0.0
    told: float = 0.0
    template: str = ""
    """Goes into the journal where only the running teacher knows it."""
    validators: Sequence[Validator] = ()
    verdicts: dict[tuple[str, int], Judged] = field(default_factory=dict)

    def judged(self, record: Record, entry: Entry) -> Judged:
        """An answer judged by the run's validators; each is asked once."""
        place = (entry.key, entry.attempt)
        if place not in self.verdicts or self.verdicts[place].entry is not entry:
            self.verdicts[place] = judged(record, entry, self.validators)
        return self.verdicts[place]

    def good(self, record: Record, made: Sequence[Entry]) -> bool:
        """Whether one of a prompt's answers has no fault."""
        return any(not self.judged(record, entry).reasons for entry in made)


def answer(
    options: LabelOptions, prompts: Sequence[Record], teacher: Teacher | None, book: Journal, emit: Emit
) -> Tally:
    """Ask until every prompt has its answers, a good one among them, or no attempt left.

    The teacher is hired only if it is needed. Raises UsageError if a user's validator fails.
    """
    tally = Tally(validators=chosen(options))
    if teacher is None:
        return tally
    tally.keys = {record.id: key_of(teacher.identity, teacher.settings, record) for record in prompts}
    records = {tally.keys[record.id]: record for record in prompts}
    answers = max(options.attempts, options.best_of)

    def missing(key: str) -> list[int]:
        """Attempts to make in the next round: what is left of `best_of`, then one at a time until an answer is good."""
        made = book.entries.get(key, [])
        if key in tally.failed or any(entry.lasting for entry in made):
            return []
        numbers = {entry.attempt for entry in made}
        if first := [number for number in range(1, options.best_of + 1) if number not in numbers]:
            return [number for number in first if options.best_of > 1 or not tally.good(records[key], made)]
        following = max(numbers) + 1
        return [] if following > answers or tally.good(records[key], made) else [following]

    def take(pairs: Sequence[tuple[Ask, Reply]]) -> None:
        book.add([entry for ask, reply in pairs if (entry := _entry(tally, ask, reply))])
        tally.settled.update(ask.key for ask, _ in pairs if not missing(ask.key))
        if time.monotonic() - tally.told >= 1:
            _tell(tally, len(prompts), emit)

    tally.settled.update(key for key in tally.keys.values() if not missing(key))
    tally.reused = len(tally.settled)
    if tally.reused:
        emit(Log(f"{tally.reused} of {len(prompts)} prompts were answered by an earlier run"))
    _tell(tally, len(prompts), emit)
    with contextlib.ExitStack() as stack:
        hired: Hired | None = None
        while todo := [
            Ask(key, record, attempt, sampling_for(options, record.id, attempt))
            for record in prompts
            for key in (tally.keys[record.id],)
            for attempt in missing(key)
        ]:
            if hired is None:
                hired = stack.enter_context(teacher.hire(emit))
                tally.counts, tally.knows_tools = hired.counts, hired.knows_tools
                tally.template = "" if teacher.template else hired.template
                _warn_of_tools({ask.key: ask.record for ask in todo}.values(), hired, emit)
                tally.began = time.monotonic()
            hired.backend(todo, take)
            _tell(tally, len(prompts), emit)
    return tally


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
    logprob = None if reply.logprob is None else round(reply.logprob, 4)
    return Entry(
        ask.key, ask.attempt, message, reasons, reply.lasting, reply.tokens_in, reply.tokens_out, logprob,
        tally.template,
    )  # fmt: skip


def _tell(tally: Tally, total: int, emit: Emit) -> None:
    tally.told = time.monotonic()
    settled = len(tally.settled)
    emit(Progress("label", settled, total, "prompts"))
    seconds, new = tally.told - tally.began, settled - tally.reused
    if tally.began and new and seconds > 1:
        emit(Metric("rate", round(new / seconds, 3), settled, "prompts/s"))
        emit(Metric("tokens", round(tally.tokens_out / seconds, 1), settled, "tokens/s"))
        emit(Metric("remaining", round((total - settled) * seconds / new), settled, "s"))


def _warn_of_tools(todo: Collection[Record], hired: Hired, emit: Emit) -> None:
    blind = sum(bool(record.tools) for record in todo)
    if blind and not hired.knows_tools:
        emit(
            Log(
                f"the teacher's chat template knows no tools: {blind} prompts are asked without the tools "
                "they declare (take another teacher, or give a template with --chat-template)",
                "warning",
            )
        )
