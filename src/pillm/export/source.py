"""The folder to export: what must be in it, its chat template, and the text that the check reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pillm.core import jsonl
from pillm.core.errors import UsageError
from pillm.core.shipped import data_path
from pillm.models.chat import ChatTemplate

DEFAULT_DATA = "dataset:home-assistant/smoke"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

# What dialogues seldom hold, but a user may well say: other scripts, numbers, code, blanks.
HARD_TEXT = """\
Zażółć gęślą jaźń. Où est l'œuvre, déjà ? «Ça», c'est 3 000,50 € — l'été… ÅÄÖ ÿ
Привет, мир! Ελλάδα. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก 你好，世界。こんにちは世界！ 안녕하세요
1234567890 0x7f 3.14159 1,000,000 12:34:56 +33 6 12 34 56 78 #42 -7°C 50% 🙂 👍🏽
def f(x):\n\treturn {"a": [1, 2, None], 'b': x**2}  # tabs\tand   spaces
   leading, trailing   \n\n\n\r\nI'm you'll WE'VE don'T C'EST https://example.org/a?b=c&d=%20 user@example.org
"""

# Where tokenizers of the same model are known to part on a character or two. Told, but no reason to stop.
RARE_TEXTS = ("½ cup, add ½ of x² or ①", "ﬁ e\u0301 \u00a0\u200b\ufeff", "👩‍👩‍👧‍👦 🏳️‍🌈", "１２ ٣٤ १२ Ⅷ")


def validate(folder: Path) -> None:
    """Raises UsageError unless `folder` has a configuration, safetensors and a tokenizer."""
    hint = "give the folder that `pillm train` published, or one in the form of transformers' save_pretrained"
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder", hint)
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: not a model folder: config.json is missing", hint)
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder}: there are no weights (*.safetensors)", hint)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UsageError(f"{folder}: there is no tokenizer ({', '.join(_TOKENIZERS)})", hint)
    _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: not JSON that can be read: {error}", "save the model again") from error
    return found if isinstance(found, dict) else {}


def model_name(folder: Path) -> str:
    """What the model calls itself; the folder's name where it does not say."""
    config = _json(folder / "config.json")
    named = str(config.get("_name_or_path") or config.get("_model_name_or_path") or "")
    return Path(named).name or folder.resolve().name


def chat_template(folder: Path) -> str:
    """The model's chat template; empty if it has none. Of several, the one called `default`."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    named = _json(folder / "tokenizer_config.json").get("chat_template") or ""
    if isinstance(named, list):
        named = {item["name"]: item["template"] for item in named}.get("default", "")
    return str(named)


def check_text(template: str, bos: str, eos: str, data: Path | None) -> str:
    """Dialogues as the model reads them. Where it has no template, or its template refuses one, their plain words."""
    records = jsonl.read(data_path(data or DEFAULT_DATA))
    chat = ChatTemplate(template, bos, eos) if template else None
    parts = []
    for record in records:
        try:
            if chat is None:
                raise UsageError("no template")
            parts.append(chat.render(record.messages, record.tools))
        except UsageError:
            parts.append("\n".join(message.content or "" for message in record.messages) + "\n")
    return "".join(parts)
