"""Which of a prompt's answers is kept, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from pillm.core.records import Message, Record
from pillm.teach.ask import Reason
from pillm.teach.journal import Entry
from pillm.teach.validators import Validator

Why = Literal["only", "agreement", "logprob", "shortest", "first"]


class Judged(msgspec.Struct, frozen=True):
    """A stored answer with all that is wrong with it: validators' names (empty for the basic checks) and reasons."""

    entry: Entry
    reasons: tuple[tuple[str, Reason], ...]


class Choice(msgspec.Struct, frozen=True):
    """The answer that is kept: one of `answers`, of which `passed` can be used and `agree` say the same as it.

    `why` is the first thing that told what it says from what others say: it was the only one, most agree on it, its
    tokens were likelier, it was shorter; "first" where nothing did, or where only one was asked for.
    """

    entry: Entry
    answers: int
    passed: int
    agree: int
    why: Why


def judged(record: Record, entry: Entry, validators: Sequence[Validator]) -> Judged:
    """An answer judged by today's validators, beside what the journal says of it."""
    reasons = [("", reason) for reason in entry.reasons]
    if not reasons and entry.message is not None:
        reasons = [(v.name, reason) for v in validators for reason in v.demand(record, entry.message)]
    return Judged(entry, tuple(reasons))


def choose(record: Record, answers: Sequence[Judged], best_of: int) -> Choice | None:
    """The best answer without a fault, or None.

    With `best_of` 1 the first that has none. Else the one that most others say the same as (Wang et al. 2022,
    self-consistency, https://arxiv.org/abs/2203.11171: calls and JSON by value, text by its words), then the
    highest mean log-probability if all have one, else the shortest; then the first.
    """
    good = [item.entry for item in answers if not item.reasons and item.entry.message is not None]
    if not good:
        return None
    if best_of == 1 or len(good) == 1:
        why: Why = "only" if best_of > 1 else "first"
        return Choice(good[0], len(answers), len(good), 0, why)
    forms = [_form(record, entry.message) for entry in good if entry.message]
    votes = Counter(forms)
    most = max(votes.values())
    left = [entry for entry, form in zip(good, forms, strict=True) if votes[form] == most]
    likely = all(entry.logprob is not None for entry in left)
    scores = [(entry.logprob or 0.0) if likely else -_size(entry) for entry in left]
    best = left[scores.index(max(scores))]
    if sum(count == most for count in votes.values()) == 1:
        why = "agreement"
    elif max(scores) > min(scores):
        why = "logprob" if likely else "shortest"
    else:
        why = "first"
    return Choice(best, len(answers), len(good), most - 1, why)


def _form(record: Record, message: Message) -> str:
    """What two answers that say the same have in common."""
    if message.tool_calls:
        made = [[call.function.name, call.function.arguments] for call in message.tool_calls]
        return "calls " + json.dumps(made, sort_keys=True)
    text = message.content or ""
    if record.response_schema is not None:
        value: Any = msgspec.json.decode(text)
        return "json " + json.dumps(value, sort_keys=True)
    return "text " + " ".join(text.split()).casefold()


def _size(entry: Entry) -> int:
    return len(msgspec.json.encode(entry.message))
