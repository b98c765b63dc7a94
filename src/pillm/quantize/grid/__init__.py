"""Choosing codes and scales inside ggml's block grids: exact codecs, error-compensated rounding, distillation."""

from pillm.quantize.grid.method import improve

__all__ = ["improve"]
