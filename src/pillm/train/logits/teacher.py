"""A teacher in this process: packs of dialogues in, sparse distributions out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pillm.core.errors import ResourceError
from pillm.logit_cache.rows import Rows
from pillm.train.dialogues import Pack, tensors
from pillm.train.head_loss import bare, plain_head
from pillm.train.logits.sampling import joined, sparse

CHUNK = 64
"""Tokens whose logits exist at one time: 13 MB for each float32 copy with a vocabulary of 49,152."""


class Teacher:
    """A loaded model that answers packs. `vocabulary_size` cuts off the head's rows that no token has."""

    def __init__(self, model: Any, device: str, vocabulary_size: int) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        self.vocabulary_size = vocabulary_size
        self._plain = plain_head(self.model)
        self._head = bare(self.model).get_output_embeddings().weight[:vocabulary_size] if self._plain else None
        if self._head is not None and device != "cuda":
            # bfloat16 logits near 20 are steps of 0.125 apart: an eighth of a probability.
            self._head = self._head.float()

    # Not inference_mode: masks of pillm.train.attention are kept, and training in the same process may meet them.
    @torch.no_grad()
    def rows(
        self, item: Pack, u: Sequence[np.ndarray], top: int, samples: int, temperature: float
    ) -> tuple[Rows, float]:
        """The learned tokens' distributions in the pack's order, and the sum of their entropies in nats.

        `u` has the random numbers of each dialogue of the pack.
        """
        batch = tensors(item)
        inputs = {
            "input_ids": batch["input_ids"].to(self.device),
            "position_ids": batch["position_ids"].to(self.device),
            "pieces": batch["pieces"],
        }
        predict = batch["predict"].to(self.device)
        wide = torch.float32 if self.device == "mps" else torch.float64
        points = torch.from_numpy(np.concatenate(u)).to(self.device, wide)
        parts: list[Rows] = []
        entropy = 0.0
        try:
            source = self._hidden(inputs, predict) if self._plain else self._logits(inputs, predict)
            for start in range(0, len(predict), CHUNK):
                part = source[start : start + CHUNK]
                logits = self._product(part) if self._plain else part.float()
                made = sparse(logits, points[start : start + CHUNK], top, samples, temperature)
                parts.append(made.rows)
                entropy += made.entropy
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"the teacher needs more memory than {self.device} has for {len(item.ids)} tokens",
                "lower --micro-tokens, or take --device cpu; finished shards are kept",
            ) from error
        return joined(parts), entropy

    def _hidden(self, inputs: dict[str, Any], predict: torch.Tensor) -> torch.Tensor:
        return bare(self.model).get_decoder()(**inputs, use_cache=False).last_hidden_state[0, predict]

    def _logits(self, inputs: dict[str, Any], predict: torch.Tensor) -> torch.Tensor:
        """Heads that are more than one matrix make all logits of a pack at once."""
        return self.model(**inputs, logits_to_keep=predict, use_cache=False).logits[0, :, : self.vocabulary_size]

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self._head is not None  # noqa: S101
        if hidden.dtype != torch.float32 and self._head.dtype == hidden.dtype:
            return torch.mm(hidden, self._head.T, out_dtype=torch.float32)
        with _products_of(hidden.dtype):
            return F.linear(hidden.float(), self._head)


@contextlib.contextmanager
def _products_of(dtype: torch.dtype) -> Iterator[None]:
    """On a CPU, let products of float32 use bfloat16 factors where these are bfloat16 numbers anyway.

    Sums stay float32, so nothing is lost; with 64 rows it is three times as fast. Older torch has no such setting.
    """
    backend = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if dtype != torch.bfloat16 or backend is None:
        yield
        return
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before
