"""What llama-server takes of a machine's memory, part by part.

    file       all tensors, mapped; the whole file becomes resident when it is loaded
    repacked   a second copy of the tensors that the processor's kernels want in another form (`repack`)
    cache      keys and values: every layer's width, times its cells, in the cache's type; sliding layers keep
               only the window and a batch, in multiples of 256; recurrent layers keep a fixed state
    snapshots  copies of the sliding or recurrent layers' state that the server keeps to go back to
    compute    the graph's intermediate results for a batch of `ubatch` tokens, and the attention masks
    base       program code, threads, sampling; the vocabulary's tables

The parts are facts of llama.cpp 0.5.0 (llama-kv-cache-iswa.cpp, llama-context.cpp, server-context.cpp); the figures
in capitals were read off its own messages and the kernel's, on a PC. Pages of the file whose tensors were repacked
are resident at the peak, but not needed: the system takes them back where memory is short. The server is taken to run
with `--cache-ram 0`; otherwise it keeps up to 8 GiB of old prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pillm.devices.formats import BLOCKS, KvType
from pillm.devices.model import Model, Shape
from pillm.devices.repack import is_repacked, repacks

_MIB = 2**20
CODE = 12 * _MIB
"""Resident pages of the server's own code and its libraries'."""
HEAP = 6 * _MIB
"""What the server has on its heap and stacks with hardly a vocabulary or layer."""
LAYER = _MIB // 10
"""What a layer adds to it: nodes of the graph, names, views."""
TOKEN = 175
"""Bytes a token of the vocabulary takes: its text, a score, a place in a map, the piece it is written as."""
MERGE = 125
"""Bytes a merge rule of a BPE vocabulary takes."""
THREAD = _MIB // 4
"""What a thread of the pool touches of its stack."""
_CHECKPOINT_EVERY = 8192
_F32, _F16 = 4, 2


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes, part by part."""

    weight_bytes: int
    repacked_bytes: int
    reclaimable_bytes: int
    """Pages of the file that are not needed once the server runs."""
    kv_bytes: int
    snapshot_bytes: int
    compute_bytes: int
    base_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Peak resident memory (VmHWM), with the whole context used."""
        return self.needed_bytes + self.reclaimable_bytes

    @property
    def needed_bytes(self) -> int:
        """What must stay in memory for the server not to read from disk."""
        own = self.repacked_bytes + self.kv_bytes + self.snapshot_bytes + self.compute_bytes + self.base_bytes
        return self.weight_bytes - self.reclaimable_bytes + own


def memory(
    model: Model,
    features: Iterable[str],
    context: int,
    *,
    kv_type: KvType = "f16",
    ubatch: int = 512,
    slots: int = 1,
    threads: int = 4,
) -> Memory:
    """Memory of llama-server with `slots` of `context` tokens each on a processor with these `features`."""
    features = frozenset(features)
    shape = model.shape
    repacked = sum(tensor.bytes for tensor in model.tensors if is_repacked(tensor, features))
    unread = 0 if model.tied else sum(t.bytes for t in model.tensors if t.name == "token_embd.weight")
    cache, snapshots = kv_cache(shape, context, kv_type=kv_type, ubatch=ubatch, slots=slots)
    return Memory(
        weight_bytes=model.weight_bytes,
        repacked_bytes=repacked,
        reclaimable_bytes=repacked + unread,
        kv_bytes=cache,
        snapshot_bytes=snapshots,
        compute_bytes=compute(shape, context, ubatch=ubatch, slots=slots),
        base_bytes=base(shape.vocabulary, merges(model), shape.layers, threads),
    )


def padded(tokens: int) -> int:
    """Contexts are rounded up to a multiple of 256."""
    return -(-max(tokens, 1) // 256) * 256


def cells(shape: Shape, context: int, ubatch: int) -> tuple[int, int]:
    """Cells of a slot in layers that see all, and in layers that slide (0 where none does)."""
    full = padded(context)
    return full, padded(min(full, shape.sliding_window + ubatch)) if any(shape.sliding) else 0


def kv_cache(shape: Shape, context: int, *, kv_type: KvType, ubatch: int, slots: int) -> tuple[int, int]:
    """Bytes of the cache, and of the snapshots that a slot collects: one a prompt's end, one before it, and one every 8192 tokens."""
    block, size = BLOCKS[kv_type.upper()]
    full, sliding = cells(shape, context, ubatch)
    both = shape.key_length + shape.value_length

    def width(slides: bool) -> float:
        heads = sum(h for layer, h in enumerate(shape.kv_heads) if shape.is_sliding(layer) == slides)
        return heads * both * size / block

    cache = width(False) * full + width(True) * sliding + shape.recurrent_bytes
    state = width(True) * min(shape.sliding_window, context) + shape.recurrent_bytes
    kept = 2 + context // _CHECKPOINT_EVERY
    return round(cache * slots), round(state * kept * slots)


def compute(shape: Shape, context: int, *, ubatch: int, slots: int) -> int:
    """The graph's buffer: intermediate results for a batch, and the attention masks (f16)."""
    full, sliding = cells(shape, context, ubatch)
    batch = min(ubatch, full * slots)
    return _F32 * batch * _floats_a_token(shape) + _F16 * batch * (full + sliding)


def _floats_a_token(shape: Shape) -> int:
    """Numbers that live at once for a token, at the widest place of the graph: gate, up and their product, and residuals.

    Read off the server's own figures for 14 shapes, which they match exactly but for shapes whose feed-forward layer
    is no wider than the others.
    """
    wide = 3 * shape.feed_forward * (shape.experts_used or 1)
    if shape.experts:
        return wide + 5 * shape.width
    if shape.architecture in ("lfm2", "phi3"):
        return wide + 3 * shape.width
    if shape.architecture.startswith("gemma"):
        return wide + 3 * shape.width + shape.heads * shape.key_length
    return wide + 4 * shape.width


def base(vocabulary: int, merge_rules: int, layers: int, threads: int) -> int:
    """The program itself and its tables."""
    return CODE + HEAP + TOKEN * vocabulary + MERGE * merge_rules + LAYER * layers + THREAD * threads


# Families whose tokenizer is SentencePiece's, which has no list of merges.
_NO_MERGES = frozenset({"gemma", "gemma2", "gemma3", "phi3"})


def merges(model: Model) -> int:
    """Merge rules: as the file says, else as many as tokens where the family's tokenizer has them."""
    if model.merges is not None:
        return model.merges
    shape = model.shape
    without = shape.architecture in _NO_MERGES or (shape.architecture == "llama" and shape.vocabulary <= 32_768)
    return 0 if without else shape.vocabulary


def rough_memory(
    weight_bytes: int,
    types: Mapping[str, int],
    kv_bytes_per_token: int,
    vocabulary: int,
    width: int,
    features: Iterable[str],
    context: int,
    *,
    kv_type: KvType = "f16",
    ubatch: int = 512,
    slots: int = 1,
) -> Memory:
    """The same from sums alone: no layer slides, and the feed-forward layer is four times as wide as the others."""
    features = frozenset(features)
    block, size = BLOCKS[kv_type.upper()]
    repacked = sum(count for kind, count in types.items() if repacks(kind, features))
    full = padded(context)
    batch = min(ubatch, full)
    return Memory(
        weight_bytes=weight_bytes,
        repacked_bytes=min(repacked, weight_bytes),
        reclaimable_bytes=min(repacked, weight_bytes),
        kv_bytes=round(kv_bytes_per_token / _F16 * size / block * full * slots),
        snapshot_bytes=0,
        compute_bytes=_F32 * batch * 16 * width + _F16 * batch * full,
        base_bytes=base(vocabulary, vocabulary, 24, 4),
    )
