"""How a named model writes a dialogue: its chat template, its begin and end tokens, its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pillm.core.errors import UsageError
from pillm.core.events import Emit
from pillm.llamacpp import gguf_file
from pillm.models import refs

_HINT = "give another model, or a template with --chat-template"


class ModelText(NamedTuple):
    """Template source with begin and end token, and the tokenizer.json if the model has one."""

    template: tuple[str, str, str]
    tokenizer: Path | None


def of(reference: str, emit: Emit) -> ModelText:
    """Fetch the model if need be. Raises UsageError if it has no chat template."""
    path = refs.resolve(reference, emit)
    if path.is_file():
        header = gguf_file.describe(path)
        template = (header.chat_template, header.token_text(header.bos), header.token_text(header.eos))
        tokenizer = None
    else:
        template = _of_folder(path)
        tokenizer = path / "tokenizer.json" if (path / "tokenizer.json").is_file() else None
    if not template[0]:
        raise UsageError(f"{reference}: the model has no chat template", _HINT)
    return ModelText(template, tokenizer)


def _of_folder(folder: Path) -> tuple[str, str, str]:
    """What transformers would take: the template's own file, else that in tokenizer_config.json."""
    config: dict[str, Any] = {}
    file = folder / "tokenizer_config.json"
    alone = folder / "chat_template.jinja"
    try:
        if file.is_file():
            config = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        source = alone.read_text(encoding="utf-8") if alone.is_file() else config.get("chat_template", "")
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise UsageError(f"{folder}: the chat template cannot be read ({error})", _HINT) from error
    if isinstance(source, list):
        # Several, by name.
        named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default", "")
    return str(source or ""), _token(config, "bos_token"), _token(config, "eos_token")


def _token(config: dict[str, Any], name: str) -> str:
    token = config.get(name)
    return str(token.get("content", "") if isinstance(token, dict) else token or "")
