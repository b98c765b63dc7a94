"""Boards, and what to expect of a model on them."""

from pillm.devices.boards import Device, load, names
from pillm.devices.predictor import LABEL, ModelNumbers, Prediction, kv_bytes_per_token, predict

__all__ = ["LABEL", "Device", "ModelNumbers", "Prediction", "kv_bytes_per_token", "load", "names", "predict"]
