"""Which dialogues go through the teacher in which pass, and into which shard: the same for the same data and options."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pillm.logit_cache.rows import dialogue_key
from pillm.train.dialogues import Encoded, Pack, pack, shared_beginnings
from pillm.train.logits.options import LogitsOptions


class Plan(NamedTuple):
    """All passes. Dialogues that are equal are one; `Pack.dialogues` are places in `dialogues` and `keys`."""

    dialogues: list[Encoded]
    keys: list[bytes]
    shards: list[list[Pack]]

    @property
    def positions(self) -> int:
        """Learned tokens in all."""
        return sum(item.targets for packs in self.shards for item in packs)


def plan(encoded: Sequence[Encoded], options: LogitsOptions) -> Plan:
    """Pack what begins alike, and cut the packs into shards of about `shard_tokens` learned tokens."""
    unique: dict[bytes, Encoded] = {}
    for item in encoded:
        # The first token of a dialogue is predicted from nothing.
        if any(item.learned[1:]):
            unique.setdefault(dialogue_key(item.ids, item.learned), item)
    sizes = Counter(item.group for item in unique.values())
    # Dialogues without a partner share a pass, too, behind what all of them begin with.
    together = options.packing == "prefix"
    dialogues = [
        item._replace(number=number, group=b"" if together and sizes[item.group] == 1 else item.group)
        for number, item in enumerate(unique.values())
    ]
    shared = shared_beginnings(dialogues) if together else {}
    shards: list[list[Pack]] = []
    room = 0
    for item in pack(dialogues, shared, options.micro_tokens):
        if room <= 0:
            shards.append([])
            room = options.shard_tokens
        shards[-1].append(item)
        room -= item.targets
    return Plan(dialogues, list(unique), shards)


def learned_count(item: Encoded) -> int:
    """Learned tokens of a dialogue."""
    return sum(item.learned[1:])


def identity(work: Plan, facts: dict[str, object]) -> str:
    """Hex sha256 of all that the shards' bytes depend on: every pass with its tokens, and `facts`."""
    digest = hashlib.sha256(msgspec.json.encode(sorted(facts.items())))
    for packs in work.shards:
        digest.update(len(packs).to_bytes(4, "little"))
        for item in packs:
            digest.update(msgspec.msgpack.encode([item.ids, item.segment, item.learned, item.dialogues]))
    return digest.hexdigest()
