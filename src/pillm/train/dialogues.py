"""Dialogues as tokens with a mask, and dialogues packed into sequences that share their beginning.

Most dialogues of an assistant begin alike: the system message and the declared tools, often
longer than all that follows. A `Pack` holds such a beginning once and many continuations after
it; each continuation attends to the beginning and to itself, at the positions it would have
alone. Loss and gradients are those of training the dialogues one by one (a test compares them),
for the price of the beginning once a pack: with 150 tokens of tools and 60 tokens of dialogue,
that is three times the dialogues in the same time.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pillm.core.errors import FindingsError
from pillm.core.findings import Finding
from pillm.core.records import Record, plain
from pillm.models.chat import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_PIECE, _LENGTH = 8, 64
"""Continuations are padded to multiples of the one, packs of the other. Kernels are made for each shape that they
meet: with every length its own, oneDNN made them anew all the time, speed fell from 378 to 240 tokens/s in 180
steps and memory grew by a gigabyte. Padding is never learned and never seen."""


class Encoded(NamedTuple):
    """A dialogue: token ids, for each whether it is the assistant's to write, and what it begins with."""

    ids: list[int]
    learned: list[bool]
    group: bytes
    """Equal for dialogues with the same system message and tools."""
    number: int = -1
    """Its place among the records; what a pack says it holds."""


class Pack(NamedTuple):
    """One sequence. All lists have one entry a token.

    `segment` is 0 for the shared beginning and 1, 2, ... for the continuations; `position` is the
    token's place in its own dialogue; `learned` marks tokens whose prediction is trained;
    `previous` is the index of the token before it in its own dialogue.
    """

    ids: list[int]
    segment: list[int]
    position: list[int]
    learned: list[bool]
    previous: list[int]
    dialogues: tuple[int, ...] = ()
    """`Encoded.number` of each continuation, in order: so are the learned tokens."""

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return sum(self.learned)


def encode(
    records: Sequence[Record], template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, loss_on: str = "assistant"
) -> list[Encoded]:
    """Each record's tokens in the chat template, with the assistant's marked.

    Text is cut where an assistant turn starts and ends before it is tokenized, as it is when a
    server continues a prompt, so no token lies across that border. `loss_on="last"` marks the last
    assistant turn only.
    """
    result: list[Encoded] = []
    # What the tokenizer puts before any text, llama.cpp puts there too; a template may write it itself.
    begin = [token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id]
    for number, record in enumerate(records):
        text, spans = template.assistant_spans(record.messages, record.tools)
        if loss_on == "last":
            spans = spans[-1:]
        ids: list[int] = list(begin)
        learned: list[bool] = [False] * len(begin)
        at = 0
        for start, end in [*spans, (len(text), len(text))]:
            for piece, mine in ((text[at:start], False), (text[start:end], True)):
                if piece:
                    tokens = tokenizer(piece, add_special_tokens=False).input_ids
                    ids += tokens
                    learned += [mine] * len(tokens)
            at = end
        if begin and ids[1:2] == begin:
            ids, learned = ids[1:], learned[1:]
        head = record.messages[:1] if record.messages[0].role in ("system", "developer") else ()
        result.append(Encoded(ids, learned, msgspec.json.encode([plain(head), plain(record.tools)]), number))
    return result


def check(records: Sequence[Record], encoded: Sequence[Encoded], file: str, max_length: int, long: str) -> list[int]:
    """Indices of the dialogues to train on. Raises FindingsError for those that cannot be learned from."""
    found: list[Finding] = []
    keep: list[int] = []
    for index, (record, item) in enumerate(zip(records, encoded, strict=True)):
        if not any(item.learned):
            message = f"record {record.id!r} has no assistant turn to learn from"
            found.append(Finding(file=file, path=f"record {record.id}", code="nothing-to-learn", message=message,
                                 hint="label it first (pillm label), or take it out"))  # fmt: skip
        elif len(item.ids) > max_length:
            if long == "drop":
                continue
            message = f"record {record.id!r} has {len(item.ids)} tokens, more than max_length {max_length}"
            found.append(Finding(file=file, path=f"record {record.id}", code="too-long", message=message,
                                 hint="raise --max-length, or leave such records out with --long drop"))  # fmt: skip
        else:
            keep.append(index)
    if found:
        raise FindingsError(f"{file}: {len(found)} records cannot be trained on", found[:100])
    if not keep:
        raise FindingsError(f"{file}: every record is longer than {max_length} tokens", [], "raise --max-length")
    return keep


def shared_beginnings(encoded: Sequence[Encoded]) -> dict[bytes, int]:
    """For each group, how many tokens all its dialogues begin with; learned tokens are never shared."""
    groups: dict[bytes, list[Encoded]] = defaultdict(list)
    for item in encoded:
        groups[item.group].append(item)
    result: dict[bytes, int] = {}
    for group, items in groups.items():
        length = min(item.learned.index(True) for item in items)
        first = items[0].ids
        for item in items[1:]:
            common = next((i for i in range(length) if item.ids[i] != first[i]), length)
            length = min(length, common)
        result[group] = length
    return result


def pack(
    encoded: Sequence[Encoded], shared: dict[bytes, int], max_tokens: int, rng: random.Random | None = None
) -> list[Pack]:
    """Dialogues into sequences of at most `max_tokens` (a longer dialogue gets a sequence of its own).

    With `rng` the order of dialogues and of packs is shuffled.
    """
    order = list(range(len(encoded)))
    if rng:
        rng.shuffle(order)
    open_packs: dict[bytes, list[Encoded]] = {}
    sizes: dict[bytes, int] = {}
    packs: list[Pack] = []
    for index in order:
        item = encoded[index]
        start = shared.get(item.group, 0)
        extra = _rounded(len(item.ids) - start, _PIECE)
        if item.group in open_packs and sizes[item.group] + extra > max_tokens:
            packs.append(built(open_packs.pop(item.group), start, max_tokens))
        if item.group not in open_packs:
            open_packs[item.group], sizes[item.group] = [], start
        open_packs[item.group].append(item)
        sizes[item.group] += extra
    packs += [built(items, shared.get(group, 0), max_tokens) for group, items in open_packs.items()]
    if rng:
        rng.shuffle(packs)
    return packs


def _rounded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def built(items: Sequence[Encoded], start: int, max_tokens: int) -> Pack:
    """One pack of these dialogues, whose first `start` tokens are the same. Padded where that leaves it in `max_tokens`."""
    ids = items[0].ids[:start]
    result = Pack(ids, [0] * start, list(range(start)), [False] * start, [max(0, i - 1) for i in range(start)],
                  tuple(item.number for item in items))  # fmt: skip
    for segment, item in enumerate(items, 1):
        base = len(result.ids)
        count = len(item.ids) - start
        result.ids.extend(item.ids[start:])
        result.segment.extend([segment] * count)
        result.position.extend(range(start, start + count))
        # The first token of a dialogue is predicted from nothing, so it cannot be learned.
        result.learned.extend(item.learned[i] and i > 0 for i in range(start, start + count))
        result.previous.extend([max(0, start - 1), *range(base, base + count - 1)])
        last = segment == len(items)
        to_fit = _rounded(base + count, _LENGTH if last else 1)
        end = max(base + _rounded(count, _PIECE), to_fit if to_fit <= max_tokens else 0)
        _pad(result, end - base - count)
    return result


def _pad(result: Pack, count: int) -> None:
    """Lengthen the last dialogue by tokens that come after all of its own, so that none of them sees these."""
    at = len(result.ids)
    result.ids.extend(result.ids[-1:] * count)
    result.segment.extend(result.segment[-1:] * count)
    result.position.extend(range(result.position[-1] + 1, result.position[-1] + 1 + count))
    result.learned.extend([False] * count)
    result.previous.extend(range(at - 1, at - 1 + count))


def tensors(pack_: Pack) -> dict[str, Any]:
    """A pack as model inputs, batch of one.

    Returns `input_ids` and `position_ids` [1, L], `pieces` (bounds of the shared beginning and of
    each continuation, see pillm.train.attention), `predict` [T] (indices whose next token is
    learned) and `targets` [T].
    """
    import torch

    ids = torch.tensor(pack_.ids)
    learned = torch.tensor(pack_.learned)
    ends = [i for i in range(1, len(pack_.ids)) if pack_.segment[i] != pack_.segment[i - 1]]
    bounds = [0, *ends, len(pack_.ids)]
    return {
        "input_ids": ids[None],
        "position_ids": torch.tensor(pack_.position)[None],
        "pieces": bounds if pack_.segment[0] == 0 else [0, *bounds],
        "predict": torch.tensor(pack_.previous)[learned],
        "targets": ids[learned],
    }
