"""The tokens that a model is fitted on, and those that it is judged on. Never the same ones.

Three sources: the dataset's dialogues in the model's chat template, what the model itself writes, and a general part.
Every source is divided into whole pieces (dialogues, answers, chapters), and each piece goes to one side only, by a
hash of its words: one in five is kept for the gate.

The general part, if no file is given, is the language reference that every Python installation carries
(`pydoc_data.topics`): prose of half a million characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pillm.core import jsonl
from pillm.core.errors import UsageError
from pillm.core.events import Emit, Progress
from pillm.core.shipped import data_path
from pillm.llamacpp.gguf_file import GgufFile
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tokenize import tokenize
from pillm.models.chat import ChatTemplate
from pillm.quantize.calibration import rendered

Tokens = NDArray[np.int32]
"""[chunks, context]; the begin token first where the model wants one."""

_HELD_ONE_IN = 5
_WRITERS = 32
_OWN_TOKENS = 6144
_MINIMUM_CHUNKS = 8
_UNKNOWN_SHARE = 0.2


class Sides(msgspec.Struct, frozen=True):
    """Tokens to fit on (in a fixed mixed order), and held-out tokens in and out of the domain."""

    fit: Tokens
    inside: Tokens
    outside: Tokens
    shares: dict[str, int]
    """Tokens of each source in `fit`."""


def gather(
    tools: LlamaCpp, model: GgufFile, own: Callable[[Sequence[list[int]], int], list[list[int]]], *, data: Path | None,
    general: Path | None, tokens: int, held_chunks: int, context: int, emit: Emit,
) -> Sides:  # fmt: skip
    """At least `tokens` tokens to fit on if the sources have them, and `held_chunks` chunks on each side of the gate.

    `own(prompts, length)` lets the model write. Raises UsageError: a source that is empty, too short or in none of
    the model's characters; FindingsError: bad data.
    """
    emit(Progress("calibration text", 0, 3, "sources"))
    special = {"parse_special": True}
    domain = _domain(model, data) if data else []
    talked = [tokenize(tools, model.path, text, **special) for text in _joined(domain)]
    emit(Progress("calibration text", 1, 3, "sources"))
    chapters = _chapters(general)
    prose = [tokenize(tools, model.path, text, parse_special=False) for text in _joined(chapters)]
    emit(Progress("calibration text", 2, 3, "sources"))
    prompts = _prompts(tools, model, data)
    # A fifth of what a mix is fitted on; more would take long to write.
    wanted_own = max(2 * held_chunks * context if not data else 0, min(_OWN_TOKENS, tokens // 8))
    rows = own(prompts, wanted_own)
    cut = max(1, len(rows) // _HELD_ONE_IN) if not data else 0
    written = [[token for row in part for token in row] for part in (rows[cut:], rows[:cut])]
    bos = model.bos if model.adds_bos else None
    parts = {"dataset": _chunks(talked[0], context, bos), "own writing": _chunks(written[0], context, bos),
             "general": _chunks(prose[0], context, bos)}  # fmt: skip
    inside = _chunks(talked[1] if data else written[1], context, bos)
    outside = _chunks(prose[1], context, bos)
    for name, found, where in (("in", inside, data), ("out of", outside, general)):
        if len(found) < 2:
            raise UsageError(
                f"{where or 'the text'}: too little of it to judge {name} the domain ({len(found)} chunks of {context} tokens)",
                "give more text, or a smaller --imatrix-context",
            )
    _check_foreign(model, tools, data, "".join(domain[:200]))
    fit, shares = _mixed(parts, -(-tokens // context))
    if len(fit) < _MINIMUM_CHUNKS:
        raise UsageError(
            f"{len(fit)} chunks of {context} tokens are too few to fit on; {_MINIMUM_CHUNKS} are needed",
            "give more dialogues, or a smaller --imatrix-context",
        )
    emit(Progress("calibration text", 3, 3, "sources"))
    return Sides(
        fit, inside[:held_chunks], outside[:held_chunks], {name: count * context for name, count in shares.items()}
    )


def write_own(model: Any, prompts: Sequence[list[int]], wanted: int, *, seed: int, emit: Emit) -> list[list[int]]:
    """What the model writes after each prompt (with the prompt), sampled at temperature 1: `wanted` tokens or more.

    Rows of one length are written together, so prompts are cut or repeated to that; nothing is stopped at an end
    token, since a chat goes on after it. The same seed gives the same text on one machine.
    """
    generator = torch.Generator().manual_seed(seed)
    steps, rows = 192, []
    together = min(_WRITERS, -(-wanted // steps))
    for start in range(0, 64):
        if sum(map(len, rows)) >= wanted:
            break
        batch = [prompts[(start * together + n) % len(prompts)] for n in range(together)]
        length = min(len(row) for row in batch)
        ids = torch.tensor([row[:length] for row in batch], device=model.device)
        text, cache = ids, None
        with torch.inference_mode():
            for step in range(steps):
                out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                chances = out.logits[:, -1].float().softmax(-1)
                ids = torch.multinomial(chances.cpu(), 1, generator=generator).to(text.device)
                text = torch.cat([text, ids], 1)
                if step % 16 == 0:
                    emit(
                        Progress(
                            "the model writes", start * steps + step, -(-wanted // (steps * together)) * steps, "tokens"
                        )
                    )
        rows += text.tolist()
    return rows


def _domain(model: GgufFile, data: Path) -> list[str]:
    path = data_path(data)
    parts, _ = rendered(model, jsonl.read(path))
    if not parts:
        raise UsageError(f"{path}: has no text to fit on", "give a dataset with dialogues in it")
    return parts


def _chapters(general: Path | None) -> list[str]:
    if general is None:
        from pydoc_data import topics

        return [topics.topics[name] + "\n" for name in sorted(topics.topics)]
    try:
        text = general.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{general}: cannot be read as text ({error})", "give a file of plain text in UTF-8"
        ) from error
    found = [part + "\n\n" for part in text.split("\n\n") if part.strip()]
    if len(text.strip()) < 10_000:
        raise UsageError(f"{general}: {len(text):,} characters are too few for the general part", "give 10,000 or more")
    return found


def _joined(parts: Sequence[str]) -> tuple[str, str]:
    """Pieces to fit on, and held-out ones. Equal pieces have equal hashes, so that no copy is on both sides."""
    sides: tuple[list[str], list[str]] = ([], [])
    for part in parts:
        held = hashlib.sha256(part.strip().encode()).digest()[0] % _HELD_ONE_IN == 0
        sides[held].append(part)
    return "".join(sides[0]), "".join(sides[1])


def _prompts(tools: LlamaCpp, model: GgufFile, data: Path | None) -> list[list[int]]:
    """Beginnings for the model to go on from: in its chat template where it has one, else what a text begins with."""
    begin = [model.bos] if model.bos is not None else [0]
    if not model.chat_template:
        # One token of the vocabulary each, evenly: a base model writes about anything.
        return [[*begin, 100 + n * 97 % max(1, model.vocabulary - 200)] for n in range(_WRITERS)]
    template = ChatTemplate(model.chat_template, model.token_text(model.bos), model.token_text(model.eos))
    # The model asks the questions, too: the template up to where the user speaks.
    try:
        text = template.render([{"role": "user", "content": "\x00"}]).split("\x00")[0]
    except UsageError:
        return [begin] * _WRITERS
    return [tokenize(tools, model.path, text)] * _WRITERS


def _check_foreign(model: GgufFile, tools: LlamaCpp, data: Path | None, sample: str) -> None:
    """Text of a script that the tokenizer has no words for comes out as bytes: two tokens and more a character."""
    if not sample.strip():
        return
    sample = sample[:20_000]
    found = len(tokenize(tools, model.path, sample))
    if found > 1.5 * len(sample):
        raise UsageError(
            f"{data}: is in a script that the model's tokenizer hardly knows ({found / len(sample):.1f} tokens a character)",
            "give text in a language of the model",
        )


def _chunks(tokens: Sequence[int], context: int, bos: int | None) -> Tokens:
    body = context - (bos is not None)
    count = len(tokens) // body
    found = np.array(tokens[: count * body], dtype=np.int32).reshape(count, body)
    return found if bos is None else np.concatenate([np.full((count, 1), bos, np.int32), found], axis=1)


def _mixed(parts: dict[str, Tokens], wanted: int) -> tuple[Tokens, dict[str, int]]:
    """Half from the dataset, the rest from the others; what one has not, the others give. In turn, so that any beginning is mixed."""
    weights = {"dataset": 0.5, "own writing": 0.2, "general": 0.3}
    left = {name: len(found) for name, found in parts.items()}
    taken: dict[str, int] = dict.fromkeys(parts, 0)
    order: list[NDArray[np.int32]] = []
    while len(order) < wanted and any(left.values()):
        name = min((n for n in parts if left[n]), key=lambda n: (taken[n] + 1) / weights[n])
        # Evenly over the source, not its beginning.
        order.append(
            parts[name][taken[name] * 7919 % len(parts[name])]
            if _coprime(len(parts[name]))
            else parts[name][taken[name]]
        )
        taken[name] += 1
        left[name] -= 1
    return np.stack(order) if order else np.zeros((0, 1), np.int32), taken


def _coprime(count: int) -> bool:
    return count % 7919 != 0
