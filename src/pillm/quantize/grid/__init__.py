"""Choosing codes and scales inside ggml's block grids: exact codecs, error-compensated rounding, distillation."""
