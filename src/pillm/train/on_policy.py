"""The student writes the answers itself, so that it learns from the states that it gets into (Agarwal et al. 2024).

Which steps these are, and what is drawn in them, follows from the seed and the step's number alone, so a run that
was killed goes on to the same answers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pillm.core.errors import UsageError
from pillm.train import attention
from pillm.train.dialogues import Encoded, Pack, pack, shared_beginnings
from pillm.train.head_loss import bare
from pillm.train.options import TrainOptions

_AT_ONCE = 8
"""Answers are written for so many times `micro_tokens` at once: without gradients a token needs far less memory."""


def is_own(step: int, options: TrainOptions) -> bool:
    """Whether the student writes the answers of this step (from 0)."""
    return random.Random(f"on-policy {options.seed} {step}").random() < options.on_policy  # noqa: S311


def prompt_length(item: Encoded) -> int:
    """Where a dialogue's last learned turn begins."""
    at = len(item.learned) - 1
    while not item.learned[at]:
        at -= 1
    while at and item.learned[at - 1]:
        at -= 1
    return at


def stop_tokens(encoded: Sequence[Encoded], special: Sequence[int], eos: int | None) -> frozenset[int]:
    """Tokens that end an answer: the special ones that end a learned turn in the data, and the tokenizer's own."""
    ends = {
        item.ids[i]
        for item in encoded
        for i, mine in enumerate(item.learned)
        if mine and not (i + 1 < len(item.learned) and item.learned[i + 1])
    }
    return frozenset(ends & set(special)) | (frozenset() if eos is None else {eos})


def check_room(encoded: Sequence[Encoded], limit: int | None) -> None:
    """Raises UsageError if a prompt leaves the student no room for a single token of an answer."""
    longest = max((prompt_length(item) for item in encoded), default=0)
    if limit and longest >= limit:
        raise UsageError(
            f"--on-policy: a prompt has {longest} tokens, and the student reads {limit}",
            f"leave it out: --max-length {limit} --long drop",
        )


def answered(
    model: Any, packs: Sequence[Pack], encoded: Mapping[int, Encoded], step: int, stops: frozenset[int],
    options: TrainOptions, device: str, known: int | None = None,
) -> list[Pack]:  # fmt: skip
    """Packs of the same dialogues with the last turn as the student writes it at temperature 1; only that is learned.

    `known`: see `written`.
    """
    items = [encoded[number] for one in packs for number in one.dialogues if prompt_length(encoded[number])]
    prompts = [item.ids[: prompt_length(item)] for item in items]
    generator = torch.Generator().manual_seed(int.from_bytes(random.Random(f"{options.seed} {step}").randbytes(7)))  # noqa: S311
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    answers: dict[int, list[int]] = {}
    for some in _batches(order, prompts, options):
        answers.update(
            zip(some, written(model, [prompts[i] for i in some], stops, options, generator, device, known), strict=True)
        )
    own = [
        Encoded(prompts[i] + answers[i], [False] * len(prompts[i]) + [True] * len(answers[i]), item.group, item.number)
        for i, item in enumerate(items)
    ]
    return pack(own, shared_beginnings(own) if options.packing == "prefix" else {}, options.micro_tokens)


def written(
    model: Any, prompts: Sequence[list[int]], stops: frozenset[int], options: TrainOptions,
    generator: torch.Generator, device: str, known: int | None = None,
) -> list[list[int]]:  # fmt: skip
    """An answer to each prompt, drawn from the student's distribution at temperature 1; at least one token.

    Only the first `known` rows of the head are drawn from: the others are padding, which the teacher cannot score.
    """
    causal = bare(model)
    limit = getattr(causal.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts))
    room = min(options.on_policy_tokens, (limit or longest + options.on_policy_tokens) - longest)
    # Prompts end at the same place, so that one step writes one token of each. What is padded is never looked at.
    ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=device)
    answers: list[list[int]] = [[] for _ in prompts]
    open_ = set(range(len(prompts)))
    cache = None
    was_training = model.training
    model.eval()
    causal.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            for _ in range(max(1, room)):
                positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
                seen = causal(
                    input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                    logits_to_keep=1,
                )  # fmt: skip
                cache = seen.past_key_values
                logits = seen.logits[:, -1, :known].float().cpu()
                drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                for i in tuple(open_):
                    token = int(drawn[i, 0])
                    answers[i].append(token)
                    if token in stops:
                        open_.discard(i)
                if not open_:
                    break
                ids = drawn.to(device)
                mask = torch.cat((mask, mask.new_ones(len(prompts), 1)), -1)
    finally:
        attention.use(causal)
        model.train(was_training)
    return answers


def _batches(order: Sequence[int], prompts: Sequence[list[int]], options: TrainOptions) -> list[list[int]]:
    """Prompts in order of length, cut so that each batch's padded size stays within bounds."""
    result: list[list[int]] = [[]]
    for i in order:
        size = len(prompts[i]) + options.on_policy_tokens
        if result[-1] and (len(result[-1]) + 1) * size > _AT_ONCE * options.micro_tokens:
            result.append([])
        result[-1].append(i)
    return [some for some in result if some]
