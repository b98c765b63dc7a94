"""Answers as tokens: many prompts at once, each leaving when it is done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pillm.core.events import Emit, Progress
from pillm.core.records import Record
from pillm.teach.ask import Ask
from pillm.teach.grammar import Matcher
from pillm.teach.sampling import Row, draw
from pillm.teach.slots import Slots, shared_beginning

if TYPE_CHECKING:
    from pillm.teach.in_process import Teacher

MakeMatcher = Callable[[Record], Matcher | None]


class Made(NamedTuple):
    """A finished answer: `tokens` with the one that ended it, if one did; `logprob` is the sum of theirs."""

    ask: Ask
    tokens: list[int]
    tokens_in: int
    logprob: float


def by_slots(
    teacher: Teacher,
    prompts: Sequence[tuple[Ask, list[int]]],
    shared: int,
    size: int,
    matcher: MakeMatcher,
    emit: Emit,
) -> Iterator[list[Made]]:
    """Answer prompts whose first `shared` tokens are the same, at most `size` at a time.

    A finished answer leaves at once; waiting prompts come in when a quarter of the places is free, so that
    reading them, too, is done for several at a time.
    """
    waiting = deque(prompts)
    size = min(size, len(prompts))
    rows: list[tuple[Ask, int, Row]] = []
    following: list[int] = []
    tell = _teller(emit)
    with torch.inference_mode():
        slots = Slots(teacher.model, size, shared_beginning(teacher.model, prompts[0][1][:shared]) if shared else None)
        while waiting or rows:
            if waiting and (not rows or size - len(rows) >= max(1, size // 4)):
                coming = [waiting.popleft() for _ in range(min(len(waiting), size - len(rows)))]
                # The last token is not read but decoded, so that the first token of all answers comes in one step.
                slots.read([ids[shared:-1] for _, ids in coming])
                rows += [(ask, len(ids), Row(ask.sampling, matcher(ask.record))) for ask, ids in coming]
                following += [ids[-1] for _, ids in coming]
            following = draw(slots.decode(following), [row for _, _, row in rows])
            tell(len(following))
            finished: list[Made] = []
            for place in reversed(range(len(rows))):
                ask, tokens_in, row = rows[place]
                if following[place] in teacher.ends or len(row.tokens) >= ask.sampling.max_tokens:
                    finished.append(Made(ask, row.tokens, tokens_in, row.logprob))
                    slots.drop(place)
                    rows[place], following[place] = rows[-1], following[-1]
                    rows.pop()
                    following.pop()
            if finished:
                yield finished


def by_generate(
    teacher: Teacher, prompts: Sequence[tuple[Ask, list[int]]], size: int, matcher: MakeMatcher, emit: Emit
) -> Iterator[list[Made]]:
    """The same with transformers' own loop, for models whose layers it alone knows: whole batches, padded on the left."""
    for first in range(0, len(prompts), size):
        yield _generate(teacher, prompts[first : first + size], matcher, emit)


def _generate(teacher: Teacher, batch: Sequence[tuple[Ask, list[int]]], matcher: MakeMatcher, emit: Emit) -> list[Made]:
    import transformers

    longest = max(len(ids) for _, ids in batch)
    device = teacher.model.device
    padded = torch.full((len(batch), longest), teacher.pad, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, (_, ids) in enumerate(batch):
        padded[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = 1
    rows = [Row(ask.sampling, matcher(ask.record)) for ask, _ in batch]
    tell = _teller(emit)

    def choose(_: Any, scores: torch.Tensor) -> torch.Tensor:
        open_rows = [n for n, row in enumerate(rows) if not _is_over(teacher, row)]
        tokens = draw(scores[open_rows], [rows[n] for n in open_rows])
        tell(len(tokens))
        chosen = torch.full_like(scores, float("-inf"))
        chosen[:, teacher.ends[0]] = 0
        for number, token in zip(open_rows, tokens, strict=True):
            chosen[number, teacher.ends[0]] = float("-inf")
            chosen[number, token] = 0
        return chosen

    with torch.inference_mode():
        teacher.model.generate(
            input_ids=padded.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max(ask.sampling.max_tokens for ask, _ in batch),
            do_sample=False,
            eos_token_id=list(teacher.ends),
            pad_token_id=teacher.pad,
            logits_processor=transformers.LogitsProcessorList([choose]),
        )
    return [Made(ask, row.tokens, len(ids), row.logprob) for (ask, ids), row in zip(batch, rows, strict=True)]


def _is_over(teacher: Teacher, row: Row) -> bool:
    return bool(row.tokens) and (row.tokens[-1] in teacher.ends or len(row.tokens) >= row.sampling.max_tokens)


def _teller(emit: Emit) -> Callable[[int], None]:
    """Tells of tokens written, once a second, from the third second on: until then an answer may have come."""
    began = told = time.monotonic()
    written = 0

    def tell(tokens: int) -> None:
        nonlocal told, written
        written += tokens
        if (now := time.monotonic()) - told > 1 and now - began > 2:
            told = now
            emit(Progress("writing", written, None, "tokens"))

    return tell
