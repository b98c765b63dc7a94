"""Keys and values of many dialogues at once, and attention over them: a shared beginning is kept and read once.

Dialogues of one dataset begin alike (system message, tools). The keys and values of that beginning are
computed once, kept once, and the queries of all dialogues meet them in one product, instead of one copy a
dialogue (the split of attention into shared and own keys is that of Juravsky et al. 2024, Hydragen,
https://arxiv.org/abs/2402.05099, section 3; here both parts go through one softmax). A dialogue's own
tokens stand in a row that begins at 0, so no padding lies between; rows join and leave between two steps.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

NAME = "pillm-slots"
GRAIN = 32
"""Tokens. Rows are read up to a multiple of this: oneDNN makes and keeps a kernel for each shape of matrices."""
_SCORES = 2**25
"""Most attention scores of one layer at a time: prompts are read in pieces that stay below, 128 MiB in float32."""


class Slots:
    """The cache of one forward pass after another: `used` rows, each with a length of its own.

    Keys and values of layer l: `keys[l]` [rows, K, capacity, D]; of the shared beginning: `shared[l]`, a pair
    of [K, P, D]. Stands where transformers expects a cache: attention layers call `update`.
    """

    def __init__(self, model: Any, rows: int, shared: list[tuple[torch.Tensor, torch.Tensor]] | None = None) -> None:
        self.model = model
        self.rows = rows
        self.used = 0
        self.lengths = [0] * rows
        self.shared = shared or []
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        # Of the pass that is being made: its rows, the first place and the end of what is written and read.
        self._rows = slice(0, 0)
        self._places = torch.empty(0)
        self._end = 0
        self._hidden = torch.empty(0)

    @property
    def offset(self) -> int:
        """Tokens of the shared beginning."""
        return self.shared[0][0].shape[1] if self.shared else 0

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values [n, K, S, D] to their places; gives back all of these rows."""
        if layer == len(self.keys):
            self.keys.append(key.new_zeros(self.rows, key.shape[1], 0, key.shape[3]))
            self.values.append(value.new_zeros(self.rows, value.shape[1], 0, value.shape[3]))
        results: list[torch.Tensor] = []
        for store, new in ((self.keys, key), (self.values, value)):
            if (room := store[layer].shape[2]) < self._end:
                # Zeros, not what lay in memory: a weight of 0 times NaN is NaN.
                grown = new.new_zeros(self.rows, new.shape[1], max(self._end, room + room // 2), new.shape[3])
                grown[: self.used, :, :room] = store[layer][: self.used]
                store[layer] = grown
            rows = store[layer][self._rows, :, : self._end]
            if new.shape[2] == 1:
                rows[torch.arange(len(new), device=new.device), :, self._places[:, 0]] = new[:, :, 0]
            else:
                first = int(self._places[0, 0])
                rows[:, :, first : first + new.shape[2]] = new
            results.append(rows)
        return results[0], results[1]

    def get_seq_length(self, *_: Any) -> int:
        """What transformers asks where no positions are given; here they always are."""
        return self.offset

    def step(self, rows: slice, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Read `ids` [n, S] into `rows` at `places` [n, S] (from 0 after the shared beginning).

        Gives back the logits [n, V] after the last of them.
        """
        self._rows, self._places = rows, places
        self._end = -(-(int(places.max()) + 1) // GRAIN) * GRAIN
        keys = torch.arange(self._end, device=ids.device)
        self._hidden = keys > places[:, :, None]
        output = self.model(
            input_ids=ids, position_ids=places + self.offset, past_key_values=self, use_cache=True, logits_to_keep=1,
            slots=self,
        )  # fmt: skip
        return output.logits[:, -1]

    def read(self, prompts: list[list[int]]) -> None:
        """Take prompts (without the shared beginning) into new rows, in pieces."""
        device = self.model.device
        longest = max(map(len, prompts))
        width = -(-longest // GRAIN) * GRAIN
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            # What stands beyond a prompt's end is never seen: it is overwritten before its place is reached.
            ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        ids = ids.to(device)
        places = torch.arange(width, device=device).expand(len(prompts), width)
        rows = slice(self.used, self.used + len(prompts))
        heads = self.model.config.get_text_config().num_attention_heads
        piece = max(GRAIN, _SCORES // (len(prompts) * heads * (width + self.offset)) // GRAIN * GRAIN)
        # Before the loop: rows that are being read must survive a growing of the stores.
        self.used += len(prompts)
        for first in range(0, longest and width, piece):
            self.step(rows, ids[:, first : first + piece], places[:, first : first + piece])
        self.lengths[rows] = [len(prompt) for prompt in prompts]

    def decode(self, tokens: list[int]) -> torch.Tensor:
        """Append one token to each row; logits [used, V] after it."""
        device = self.model.device
        rows = slice(0, self.used)
        places = torch.tensor(self.lengths[rows], device=device)[:, None]
        logits = self.step(rows, torch.tensor(tokens, device=device)[:, None], places)
        for row in range(self.used):
            self.lengths[row] += 1
        return logits

    def drop(self, row: int) -> None:
        """Free a row: the last one moves into its place."""
        self.used -= 1
        if row == self.used:
            return
        end = self.lengths[self.used]
        for store in (*self.keys, *self.values):
            store[row, :, :end] = store[self.used, :, :end]
        self.lengths[row] = end


def shared_beginning(model: Any, ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values [K, P, D] of each layer for a beginning of P tokens."""
    one = Slots(model, 1)
    one.read([ids])
    length = len(ids)
    return [
        (key[0, :, :length].clone(), value[0, :, :length].clone())
        for key, value in zip(one.keys, one.values, strict=True)
    ]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    slots: Slots,
    scaling: float | None = None,
    **_more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `query` [n, H, S, D] to the rows' own `key` and `value` [n, K, L, D] and to what they share.

    Gives [n, S, H, D]. The queries that share a key-value head are rows of one product, so that nothing is repeated.
    """
    n, heads, length, width = query.shape
    groups = key.shape[1]
    query = query * (scaling if scaling is not None else width**-0.5)
    # [n, K, G, S, D]; S within a head, so that the mask is the same for each of the G.
    query = query.view(n, groups, heads // groups, length, width)
    own = query.flatten(2, 3) @ key.transpose(2, 3)
    own = own.view(*query.shape[:4], -1).masked_fill(slots._hidden[:, None, None], float("-inf"))
    if not slots.shared:
        weights = own.float().softmax(-1).to(value.dtype)
        result = weights.flatten(2, 3) @ value
    else:
        keys, values = slots.shared[module.layer_idx]
        beside = query.transpose(0, 1).reshape(groups, -1, width) @ keys.transpose(1, 2)
        beside = beside.view(groups, n, heads // groups, length, -1).transpose(0, 1)
        weights = torch.cat((beside, own), -1).float().softmax(-1).to(value.dtype)
        common = keys.shape[1]
        result = weights[..., common:].flatten(2, 3) @ value
        flat = weights[..., :common].transpose(0, 1).reshape(groups, -1, common)
        result = result.view(n, groups, -1, width) + (flat @ values).view(groups, n, -1, width).transpose(0, 1)
    return result.view(n, heads, length, width).transpose(1, 2).contiguous(), None


def use(model: Any) -> bool:
    """Make `model` attend by slots. False, and nothing changed, where its layers are of a kind that this is not for."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    odd = ("attn_logit_softcapping", "attention_chunk_size", "kv_lora_rank")
    if kinds != {"full_attention"} or any(getattr(config, name, None) for name in odd):
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    before = model.config._attn_implementation
    if before == NAME:
        return True
    AttentionInterface.register(NAME, attend)
    try:
        expected = _probe(model)
        model.set_attn_implementation(NAME)
        got = _probe_slots(model)
    except (TypeError, AttributeError, ValueError, RuntimeError, LookupError, NotImplementedError):
        model.set_attn_implementation(before)
        return False
    # Of two ways to the same logits: apart by rounding, or by something that slots know nothing of.
    spread = 0.1 if expected.dtype != torch.float32 else 1e-3
    if (got - expected).float().square().mean().sqrt() > spread * expected.float().std():
        model.set_attn_implementation(before)
        return False
    return True


_PROBE = [[3, 5, 7, 11, 13, 17, 19, 23, 29, 31], [3, 5, 7, 11, 2, 4, 6]]


def _probe(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.tensor([ids], device=model.device)).logits[:, -1] for ids in _PROBE])


def _probe_slots(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        slots = Slots(model, 2, shared_beginning(model, _PROBE[0][:4]))
        slots.read([ids[4:-1] for ids in _PROBE])
        return slots.decode([ids[-1] for ids in _PROBE])
