"""llama-perplexity: how well a file predicts a text, and how far it is from another file (KL divergence).

Both are measured on the second half of each chunk, so that every token has a context. The text's
special tokens are read as plain text: llama-perplexity has no way to parse them. A logits file made
by `llamacpp.logits` can hold any tokens.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec

from pillm.core.errors import PillmError, ResourceError, UsageError
from pillm.core.events import Emit, Progress, silent
from pillm.llamacpp import logits as logits_file
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call, no_room, telling_line

_CHUNK = re.compile(r"\[(\d+)\]-?[\dn]")
_ROW = re.compile(r"^\s*(\d+)\s.*±", re.MULTILINE)
_KL_ROW = re.compile(r"^\s*\d+\s+\S+ ±\s+\S+\s+\S+ ±\s+\S+\s+(\S+) ±", re.MULTILINE)
_FINAL = re.compile(r"Final estimate: PPL = (\S+) \+/- (\S+)")
_MINIMUM_TOKENS = 100


class Perplexity(msgspec.Struct, frozen=True):
    """exp of the mean negative log-likelihood of `tokens` tokens, and its standard error."""

    value: float
    error: float
    chunks: int
    tokens: int


class Divergence(msgspec.Struct, frozen=True):
    """A file against the one whose logits were saved. KL in nats a token; `same_top` is a share of 1.

    `..._error` are standard errors. `log_ratio` is ln(perplexity / reference perplexity), whose error
    takes into account that both were measured on the same tokens.
    """

    kl_mean: float
    kl_error: float
    kl_median: float
    kl_99: float
    kl_max: float
    same_top: float
    same_top_error: float
    perplexity: float
    perplexity_error: float
    reference_perplexity: float
    reference_perplexity_error: float
    log_ratio: float
    log_ratio_error: float
    tokens: int
    kl_chunks: tuple[float, ...] = ()
    """Mean of each chunk. From running means with five decimals, so each is off by up to its number times 1e-5."""


def perplexity(
    tools: LlamaCpp,
    model: Path,
    text: Path,
    *,
    context: int,
    chunks: int | None = None,
    save_logits: Path | None = None,
    threads: int | None = None,
    emit: Emit = silent,
) -> Perplexity:
    """Perplexity of `model` on `chunks` (all, if None) pieces of `context` tokens of `text`.

    `save_logits` keeps the logits for `kl_divergence` (2 bytes a vocabulary entry and measured token;
    the caller deletes the file). The text must have at least two chunks.
    Raises UsageError (not a whole GGUF file, text too short), PillmError, ResourceError.
    """
    describe(model)
    label = f"perplexity of {model.name}"

    def told(piece: str) -> None:
        if found := _CHUNK.findall(piece):
            emit(Progress(label, int(found[-1]), chunks, "chunks"))

    emit(Progress(label, 0, chunks, "chunks"))
    arguments = [
        "--model", str(model), "--file", str(text), "--no-escape", "--ctx-size", str(context),
        "--chunks", str(chunks or -1), *_small(context, threads),
    ]  # fmt: skip
    if save_logits:
        arguments += ["--save-all-logits", str(save_logits)]
    said = call(tools, "llama-perplexity", arguments, on_output=told)
    final = _FINAL.search(said)
    if "you need at least" in said:
        raise UsageError(f"{text}: {telling_line(said)}", "give more text, or a smaller context")
    if not final or not math.isfinite(float(final[1])):
        raise PillmError(f"{model}: llama-perplexity gives no number: {final[0] if final else telling_line(said)}")
    if save_logits:
        _check_saved(save_logits)
    done = int(_CHUNK.findall(said)[-1])
    return Perplexity(float(final[1]), float(final[2]), done, done * logits_file.measured(context))


def _check_saved(path: Path) -> None:
    """llama-perplexity goes on, and ends well, if it cannot write."""
    try:
        logits_file.read_header(path)
    except UsageError as error:
        if no_room(path.parent):
            raise ResourceError(f"{path}: the disk is full", "free some space, or measure fewer chunks") from error
        raise PillmError(f"llama-perplexity saved no whole logits: {error.message}") from error


def kl_divergence(
    tools: LlamaCpp, model: Path, saved: Path, *, threads: int | None = None, emit: Emit = silent
) -> Divergence:
    """KL(saved || model) over the tokens whose logits are in `saved`, and the shares that go with it.

    Raises UsageError (not a logits file, another vocabulary, too few tokens), PillmError, ResourceError.
    """
    header = logits_file.read_header(saved)
    vocabulary = describe(model).vocabulary
    # llama-perplexity only warns of these, and goes on with wrong numbers or none.
    if vocabulary and vocabulary != header.vocabulary:
        raise UsageError(
            f"{model}: has {vocabulary} tokens, the saved logits have {header.vocabulary}",
            "compare files of the same model only",
        )
    if header.tokens < _MINIMUM_TOKENS:
        raise UsageError(
            f"{saved}: holds {header.tokens} tokens, a comparison needs {_MINIMUM_TOKENS}", "take longer or more chunks"
        )
    label = f"divergence of {model.name}"

    def told(piece: str) -> None:
        if found := _ROW.findall(piece):
            emit(Progress(label, int(found[-1]), header.chunks, "chunks"))

    emit(Progress(label, 0, header.chunks, "chunks"))
    arguments = [
        "--model", str(model), "--kl-divergence", "--kl-divergence-base", str(saved),
        "--ctx-size", str(header.context), *_small(header.context, threads),
    ]  # fmt: skip
    return parse_divergence(call(tools, "llama-perplexity", arguments, on_output=told), header.tokens)


def parse_divergence(said: str, tokens: int) -> Divergence:
    """The numbers in llama-perplexity's output. Raises PillmError if one is not there or not finite."""

    def number(label: str, *, share: bool = False) -> tuple[float, float]:
        pattern = rf"^{re.escape(label)}\s*:\s+(\S+?)%?(?:\s+±\s+(\S+))?(?:\s+%)?$"
        match = re.search(pattern, said, re.MULTILINE)
        values = (float(match[1]), float(match[2] or 0)) if match else (math.nan, math.nan)
        if not math.isfinite(values[0]):
            raise PillmError(
                f"llama-perplexity gives no {label!r}: {match[0] if match else telling_line(said)}",
                "the model may compute not-a-number: try another type",
            )
        return (values[0] / 100, values[1] / 100) if share else values

    mean, top = number("Mean    KLD"), number("Same top p", share=True)
    own, reference = number("Mean PPL(Q)"), number("Mean PPL(base)")
    ratio = number("Mean ln(PPL(Q)/PPL(base))")
    return Divergence(
        kl_mean=mean[0],
        kl_error=mean[1],
        kl_median=number("Median  KLD")[0],
        kl_99=number("99.0%   KLD")[0],
        kl_max=number("Maximum KLD")[0],
        same_top=top[0],
        same_top_error=top[1],
        perplexity=own[0],
        perplexity_error=own[1],
        reference_perplexity=reference[0],
        reference_perplexity_error=reference[1],
        log_ratio=ratio[0],
        log_ratio_error=ratio[1],
        tokens=tokens,
        kl_chunks=_chunk_means([float(mean) for mean in _KL_ROW.findall(said)]),
    )


def _chunk_means(running: list[float]) -> tuple[float, ...]:
    return tuple(
        mean * (number + 1) - (running[number - 1] * number if number else 0.0) for number, mean in enumerate(running)
    )


def _small(context: int, threads: int | None) -> list[str]:
    """One chunk at a time: logits of a whole batch of 2048 take a gigabyte with a large vocabulary."""
    return ["--batch-size", str(min(context, 2048)), *(["--threads", str(threads)] if threads else [])]
