"""From logits to tokens: each row with its own temperature, generator and, where a schema asks for it, grammar.

At temperature 0 the token is the likeliest. Above 0 each row draws with a generator of its own seed
(Gumbel-max trick: argmax(logits / T + g) with g ~ Gumbel(0, 1) is a draw from softmax(logits / T);
Maddison et al. 2014, https://arxiv.org/abs/1411.0030, section 2), so that a prompt's answer does not
depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pillm.teach.ask import Sampling
from pillm.teach.grammar import Matcher


@dataclass
class Row:
    """An answer in the making: its tokens so far, and the sum of their log-probabilities."""

    sampling: Sampling
    matcher: Matcher | None = None
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.sampling.seed)


def draw(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """A token for each row of `logits` [n, V]; rows take note of it.

    Log-probabilities are those of the model: before temperature, nucleus and grammar.
    """
    scores = choices = logits.float()
    if any(row.matcher for row in rows):
        choices = choices.clone()
        for number, row in enumerate(rows):
            if row.matcher:
                row.matcher.mask(choices[number])
    if any(row.sampling.temperature > 0 for row in rows):
        choices = choices.clone()
        for number, row in enumerate(rows):
            if (temperature := row.sampling.temperature) > 0:
                warm = _nucleus(choices[number] / temperature, row.sampling.top_p)
                noise = torch.empty(len(warm)).exponential_(generator=row.generator)
                choices[number] = warm - noise.log().to(warm.device)
    picked = choices.argmax(-1)
    chances = (scores.gather(1, picked[:, None])[:, 0] - scores.logsumexp(-1)).tolist()
    tokens: list[int] = picked.tolist()
    for row, token, chance in zip(rows, tokens, chances, strict=True):
        row.tokens.append(token)
        row.logprob += chance
        if row.matcher:
            row.matcher.take(token)
    return tokens


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Logits [vocabulary] with -inf outside the smallest set of tokens that holds `top_p` of the mass."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(descending=True)
    mass = ordered.softmax(-1)
    outside = order[mass.cumsum(-1) - mass >= top_p]
    return logits.index_fill(0, outside, float("-inf"))
