"""Where two tokenizers begin a token at the same character of the assistant's text.

The idea that distributions of two vocabularies can be compared at such places is GOLD's (Patiño et al. 2025,
"Unlocking On-Policy Distillation for Any Model Family"). GOLD also merges the tokens between two such places
into one, with a probability that is their product; here only the prediction of the first is compared, which
needs no assumption about what the others would have been, and leaves the places between to cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pillm.core.records import Record
from pillm.models.chat import ChatTemplate


class Turn(NamedTuple):
    """One assistant turn as a tokenizer cuts it."""

    text: str
    starts: list[int]
    """For each token the character that it begins at; -1 for one that begins within a character."""


def turns(record: Record, template: ChatTemplate, tokenizer: Any, loss_on: str = "assistant") -> list[Turn]:
    """The learned turns of a dialogue, in order; the tokens are those of `dialogues.encode`."""
    text, spans = template.assistant_spans(record.messages, record.tools)
    result: list[Turn] = []
    for start, end in spans[-1:] if loss_on == "last" else spans:
        piece = text[start:end]
        offsets = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        starts: list[int] = []
        before = 0
        for first, last in offsets:
            # A token begins where the one before it ends: some tokenizers leave spaces out of what they report.
            # One that begins before that is the next part of a character of several bytes.
            starts.append(before if first >= before and last > before else -1)
            before = max(before, last)
        result.append(Turn(piece, starts))
    return result


def pairs(student: Sequence[Turn], teacher: Sequence[Turn]) -> list[int]:
    """For each token of the student's turns the teacher's token (counted through its turns) that begins at the same
    place of the same text, or -1.

    The turns' texts may end differently, as templates close a turn differently; what is compared ends there.
    """
    result: list[int] = []
    base = 0
    for mine, other in zip(student, teacher, strict=True):
        common = _common(mine.text, other.text)
        places: dict[int, int] = {}
        for index, start in enumerate(other.starts):
            if start >= 0:
                places.setdefault(start, base + index)
        result += [places.get(start, -1) if 0 <= start <= common else -1 for start in mine.starts]
        base += len(other.starts)
    return result


def _common(one: str, other: str) -> int:
    shortest = min(len(one), len(other))
    return next((i for i in range(shortest) if one[i] != other[i]), shortest)
