"""The table of memory of a GGUF file that was added by hand, from sums of its header.

The formula is `rough_memory` of pillm's predictor (pillm.devices.memory), which says where its figures are from; a
model package brings a finer table, from every tensor.
"""

from pathlib import Path

import board
import pi_bench

CONTEXTS = (32768, 16384, 8192, 4096, 2048, 1024)
SETTINGS = (("f16", 512), ("f16", 128), ("q8_0", 512), ("q8_0", 128))
KINDS = ("plain", "dotprod", "avx2", "avx512")
"""Classes of processors. Their copies of tensors in another form replace the file's pages, so that all need the same."""
BITS = {"f16": 16.0, "q8_0": 8.5}
_FIXED = 18 * board.MIB + 24 * board.MIB // 10 + 4 * board.MIB // 4
_TOKEN = 175 + 125


def needed(facts, context, cache, ubatch):
    """Bytes that must stay in memory, of a model with these facts of `pi_bench.model_of`."""
    full = -(-max(context, 1) // 256) * 256
    batch = min(ubatch, full)
    kept = round(facts["kv_bytes_per_token"] / 16 * BITS[cache] * full)
    compute = 4 * batch * 16 * facts["width"] + 2 * batch * full
    return facts["weight_bytes"] + kept + compute + _FIXED + _TOKEN * facts["vocabulary"]


def rows(path):
    """(class of processor, context, type of the cache, ubatch, bytes), the best first. Raises Trouble for what is no GGUF file."""
    try:
        facts = pi_bench.model_of(Path(path), {}, None, hashed=False)
    except pi_bench.Refused as error:
        raise board.Trouble(str(error), "", board.EXIT_USAGE) from error
    return [
        (kind, context, cache, ubatch, needed(facts, context, cache, ubatch))
        for kind in KINDS for context in CONTEXTS for cache, ubatch in SETTINGS
    ]  # fmt: skip


def as_table(found):
    """The rows as the file `memory.tsv`."""
    return "# processor\tcontext\tcache\tubatch\tbytes\n" + "".join("\t".join(map(str, row)) + "\n" for row in found)
