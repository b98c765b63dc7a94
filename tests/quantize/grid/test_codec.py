"""The codecs against gguf's own decoder: random bytes reach every bit of every type; a real file, every tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from pillm.core.errors import UsageError
from pillm.quantize.grid.codec import GRIDS, pack, unpack


def _random(kind: GGMLQuantizationType, rows: int = 24, blocks: int = 5) -> np.ndarray:
    """Random bytes with finite scales: a float16 is not finite only if bits 2 to 6 of its high byte are all set."""
    raw = np.random.default_rng(kind.value).integers(0, 256, (rows, blocks, GRIDS[kind].size), dtype=np.uint8)
    for at in {"Q6_K": (209,), "Q3_K": (109,), "Q2_K": (81, 83)}.get(kind.name, (1, 3)):
        raw[:, :, at] &= 0xBF
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", GRIDS, ids=lambda kind: kind.name)
def test_random_bytes_come_back_and_decode_to_the_same_bits_as_ggufs_decoder(kind):
    raw = _random(kind)
    packed = unpack(raw, kind)
    assert packed.codes.max() == GRIDS[kind].levels - 1
    assert np.array_equal(pack(packed), raw)
    assert packed.decode().tobytes() == dequantize(raw, kind).tobytes()


@pytest.mark.model
def test_every_tensor_of_a_real_file_comes_back(smollm2_gguf: Path):
    seen = set()
    for tensor in GGUFReader(smollm2_gguf).tensors:
        if tensor.tensor_type not in GRIDS:
            continue
        seen.add(tensor.tensor_type.name)
        raw = tensor.data[:256]
        packed = unpack(raw, tensor.tensor_type)
        assert np.array_equal(pack(packed), raw), tensor.name
        assert packed.decode().tobytes() == dequantize(raw, tensor.tensor_type).tobytes(), tensor.name
    assert seen == {"Q4_1", "Q8_0"}


def test_types_without_a_codec_and_cut_rows_are_named():
    with pytest.raises(UsageError, match="IQ2_XXS: this type cannot be taken apart"):
        unpack(np.zeros((1, 66), np.uint8), GGMLQuantizationType.IQ2_XXS)
    with pytest.raises(UsageError, match="Q4_0: rows of 17 bytes are no whole blocks of 18"):
        unpack(np.zeros((1, 17), np.uint8), GGMLQuantizationType.Q4_0)
