"""Boards, and what to expect of a model on them."""

from pillm.devices.boards import Device, load, names
from pillm.devices.predictor import LABEL, Measured, ModelNumbers, Prediction, predict

__all__ = [
    "LABEL",
    "Device",
    "Measured",
    "ModelNumbers",
    "Prediction",
    "kv_bytes_per_token",
    "load",
    "names",
    "predict",
]


def kv_bytes_per_token(layers: int, kv_heads: int, key_length: int, value_length: int) -> int:
    """Bytes that a token adds to llama.cpp's f16 cache. For a model whose layers differ, the sum of kv heads over them is layers · kv_heads."""
    return layers * kv_heads * (key_length + value_length) * 2
