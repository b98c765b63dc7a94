"""The text that the importance matrix is measured on: dialogues as the model will read them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pillm.core import jsonl
from pillm.core.errors import UsageError
from pillm.core.records import Record
from pillm.core.shipped import data_path
from pillm.llamacpp.gguf_file import GgufFile
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tokenize import tokenize
from pillm.models.chat import ChatTemplate

# Characters of dialogue that surely hold a token: what is taken at first, before the tokens are counted.
_CHARACTERS_A_TOKEN = 8


class Calibration(msgspec.Struct, frozen=True):
    """`text` has at least `chunks` times the context's tokens."""

    text: str
    chunks: int
    dialogues: int
    chat_template: bool


def calibration(tools: LlamaCpp, model: GgufFile, data: Path, *, chunks: int, context: int) -> Calibration:
    """Whole dialogues, evenly over the data, for up to `chunks` pieces of `context` tokens.

    In the model's chat template if it has one that takes them, else their plain words. Fewer chunks
    if the data has no more. Raises FindingsError (bad data), UsageError (less than two chunks' text).
    """
    path = data_path(data)
    records = jsonl.read(path)
    parts, templated = rendered(model, records)
    wanted = max(chunks, 2) * context
    text, used = "", 0
    # Where a dialogue has few tokens for its length, take more and count again.
    for factor in (_CHARACTERS_A_TOKEN, 2 * _CHARACTERS_A_TOKEN, 8 * _CHARACTERS_A_TOKEN):
        taken = _evenly(parts, wanted * factor)
        text, used = "".join(taken), len(taken)
        found = len(tokenize(tools, model.path, text))
        if found >= wanted or used == len(parts):
            break
    # llama-imatrix wants text for two chunks, also to read one.
    if found < 2 * context:
        raise UsageError(
            f"{path}: {found} tokens are too few for an importance matrix of {context}-token chunks",
            f"give more dialogues, or --imatrix-context {max(32, found // 2)}"
            if found >= 64
            else "give more dialogues",
        )
    return Calibration(text, min(chunks, found // context), used, templated)


def rendered(model: GgufFile, records: list[Record]) -> tuple[list[str], bool]:
    """Each dialogue's text, in the model's chat template if it has one that takes them (True), else the plain words."""
    if model.chat_template:
        template = ChatTemplate(model.chat_template, model.token_text(model.bos), model.token_text(model.eos))
        try:
            return [template.render(record.messages, record.tools) for record in records], True
        except UsageError:
            # SmolLM2's own template, for one, refuses a turn that is a tool call.
            pass
    words = ("\n".join(message.content or "" for message in record.messages) for record in records)
    return [text + "\n" for text in words if text.strip()], False


def _evenly(parts: list[str], characters: int) -> list[str]:
    """Parts at equal distances, as many as hold so many characters on the mean."""
    mean = max(1, sum(map(len, parts)) // max(1, len(parts)))
    count = min(len(parts), -(-characters // mean))
    return [parts[index * len(parts) // count] for index in range(count)] if count else []
