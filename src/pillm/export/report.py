"""What `export.json` holds. Light: the report and the faces read it. No times: equal runs give equal files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from pillm.core.stage import read_report


class TokenizerCheck(msgspec.Struct, frozen=True):
    """Both tokenizers on the same text. `difference` shows the first place where they part; empty if none."""

    passed: bool
    texts: int
    characters: int
    tokens: int
    special_tokens: int
    """Markers such as `<|im_start|>` that the text holds, each of which must become one token."""
    difference: str = ""
    rare_differences: tuple[str, ...] = ()
    """Rare characters (fractions, joined emoji) that are split otherwise; they do not fail the check."""


class LogitsCheck(msgspec.Struct, frozen=True):
    """KL(torch || llama.cpp) in nats a token, with the standard errors that llama-perplexity gives."""

    passed: bool
    max_kl: float
    tokens: int
    kl_mean: float
    kl_error: float
    kl_99: float
    kl_max: float
    same_top: float
    """Share of tokens for which both find the same likeliest next token."""
    same_top_error: float
    perplexity_torch: float
    """A little low: saved probabilities are at least e^-16 of the largest."""
    perplexity_gguf: float
    torch_dtype: str
    """Arithmetic of the torch side."""


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """`export.json`. Written also when a check failed; the GGUF file is published only if all passed."""

    passed: bool
    check: Literal["full", "off"]
    file: str
    sha256: str
    bytes: int
    dtype: str
    architecture: str
    name: str
    parameters: int
    vocabulary: int
    context_length: int | None
    chat_template: Literal["kept", "none", "changed"]
    tokenizer: TokenizerCheck | None = None
    logits: LogitsCheck | None = None
    failures: tuple[str, ...] = ()
    llamacpp: str
    version: int = 1


def load(path: Path) -> Export:
    """Read an `export.json`. Raises UsageError if it is not one."""
    return read_report(path, Export, "export")
