"""The round-trip gate: llama.cpp must see the same tokens as torch, and predict the same next ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pillm.core.errors import PillmError, UsageError
from pillm.core.events import Emit, Progress
from pillm.export.report import LogitsCheck, TokenizerCheck
from pillm.export.source import HARD_TEXT, RARE_TEXTS
from pillm.llamacpp import logits
from pillm.llamacpp.gguf_file import GgufFile
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.perplexity import kl_divergence
from pillm.llamacpp.tokenize import tokenize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONTEXT = 512
_CHECKED_CHARACTERS = 200_000
_LEAST_TOKENS = 100  # below, llama-perplexity gives no statistics


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder as transformers loads it. Raises UsageError if there is none that loads."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder}: the tokenizer cannot be loaded: {_first_line(error)}", "save it again") from error


def compare_tokenizers(tools: LlamaCpp, gguf: Path, tokenizer: Any, text: str, emit: Emit) -> TokenizerCheck:
    """The dialogues, hard text, and every special token between words must give the same ids.

    These with nothing added; then a prompt as each side begins one by itself, which shows a begin
    token that only one of them adds. Rare characters are compared too, and only told.
    """
    specials = list(dict.fromkeys([*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]))
    markers = "".join(f"{special}mot word{special}" for special in specials)
    cases = [(text[:_CHECKED_CHARACTERS], False), (HARD_TEXT + markers + HARD_TEXT, False), ("A prompt", True)]
    cases += [(rare, False) for rare in RARE_TEXTS]
    found, differences = 0, []
    for number, (case, begins) in enumerate(cases):
        emit(Progress("compare tokenizers", number, len(cases), "texts"))
        ours = tokenizer(case, add_special_tokens=begins)["input_ids"]
        theirs = tokenize(tools, gguf, case, add_bos=begins)
        found += len(ours)
        differences.append(_difference(tokenizer, ours, theirs))
    emit(Progress("compare tokenizers", len(cases), len(cases), "texts"))
    strict, rare = differences[: -len(RARE_TEXTS)], differences[-len(RARE_TEXTS) :]
    return TokenizerCheck(
        passed=not any(strict),
        texts=len(cases),
        characters=sum(len(case) for case, _ in cases),
        tokens=found,
        special_tokens=len(specials),
        difference=next(filter(None, strict), ""),
        rare_differences=tuple(filter(None, rare)),
    )


def _difference(tokenizer: Any, ours: list[int], theirs: list[int]) -> str:
    if ours == theirs:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))

    def show(ids: list[int]) -> str:
        piece = ids[at : at + 6]
        return f"{piece} {tokenizer.decode(piece)!r}" if piece else "the end"

    before = tokenizer.decode(ours[max(0, at - 8) : at])
    return f"at token {at}, after {before!r}: transformers has {show(ours)}, llama.cpp {show(theirs)}"


def compare_logits(
    tools: LlamaCpp,
    gguf: GgufFile,
    folder: Path,
    tokenizer: Any,
    text: str,
    *,
    tokens: int,
    max_kl: float,
    threads: int | None,
    scratch: Path,
    emit: Emit,
) -> LogitsCheck:
    """KL divergence between torch's and llama.cpp's predictions of at least `tokens` tokens of `text`.

    torch's logits go to a file in `scratch` in the form of llama-perplexity (100 MB for 1,000 tokens and
    50,000 words), which computes the figures; so both sides see the very same token ids, markers included.
    """
    import torch

    ids = _chunks(tools, gguf, tokenizer, text, tokens)
    saved = scratch / "logits.bin"
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        model = _load_model(folder, gguf.parameters)
        logits.write(saved, ids, _forward(model, ids, emit), gguf.vocabulary)
        dtype = str(model.dtype).removeprefix("torch.")
        del model
    finally:
        torch.set_num_threads(before)
    try:
        result = kl_divergence(tools, gguf.path, saved, threads=threads, emit=emit)
    finally:
        saved.unlink(missing_ok=True)
    return LogitsCheck(
        passed=math.isfinite(result.kl_mean) and result.kl_mean <= max_kl,
        max_kl=max_kl,
        tokens=result.tokens,
        kl_mean=result.kl_mean,
        kl_error=result.kl_error,
        kl_99=result.kl_99,
        kl_max=result.kl_max,
        same_top=result.same_top,
        same_top_error=result.same_top_error,
        perplexity_torch=result.reference_perplexity,
        perplexity_gguf=result.perplexity,
        torch_dtype=dtype,
    )


def _chunks(tools: LlamaCpp, gguf: GgufFile, tokenizer: Any, text: str, tokens: int) -> NDArray[np.int32]:
    """Token ids, [chunks, context]; a short text is repeated."""
    import numpy as np

    context = min(_CONTEXT, gguf.context_length or _CONTEXT)
    count = -(-max(tokens, _LEAST_TOKENS) // logits.measured(context))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError("the check has no text to read", "give a dataset with --check-data")
    result = np.resize(np.array(ids, dtype=np.int32), (count, context))
    # llama-perplexity begins every chunk with the begin token if the model wants one.
    begin = tokenize(tools, gguf.path, "", add_bos=True)
    if begin:
        result[:, 0] = begin[0]
    return result


def _load_model(folder: Path, parameters: int) -> Any:
    """In float32, which rounds nothing, where the machine's memory allows; else as it is stored."""
    import psutil
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    roomy = 4 * parameters < 0.5 * psutil.virtual_memory().total
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32 if roomy else "auto", local_files_only=True
        ).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"{folder}: transformers cannot load this model: {_first_line(error)}", "save the model again"
        ) from error


def _forward(model: Any, ids: NDArray[np.int32], emit: Emit) -> Iterator[NDArray[np.float32]]:
    """Logits of each chunk at the positions that are compared, [measured, vocabulary]."""
    import torch

    first = ids.shape[1] // 2
    with torch.inference_mode():
        for number, chunk in enumerate(ids):
            emit(Progress("torch's logits", number, len(ids), "chunks"))
            tokens = torch.from_numpy(chunk.astype("int64"))[None]
            # Only the compared positions go through the head: logits are the larger part of the memory.
            output = model(input_ids=tokens, use_cache=False, logits_to_keep=ids.shape[1] - first)
            block = output.logits[0, -(ids.shape[1] - first) : -1].float().numpy()
            if not bool((block == block).all()):
                raise PillmError(
                    "torch computes not-a-number with this model",
                    "train again with a lower learning rate or in float32",
                )
            yield block


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
