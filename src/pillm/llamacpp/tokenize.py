"""llama-tokenize: text to token ids with the tokenizer inside a GGUF file."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pillm.core.errors import PillmError
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call, telling_line

_LIST = re.compile(r"^\[([\d, ]*)\]\s*$", re.MULTILINE)


def tokenize(
    tools: LlamaCpp, model: Path, text: str, *, parse_special: bool = True, add_bos: bool = False
) -> list[int]:
    """Token ids of `text`. With `parse_special`, `<|im_start|>` and the like become one token.

    `add_bos` puts the begin token first if the model wants one. Raises PillmError.
    """
    with tempfile.TemporaryDirectory(prefix="pillm-tokenize-") as folder:
        file = Path(folder) / "text.txt"
        file.write_bytes(text.encode())
        arguments = ["--model", str(model), "--file", str(file), "--ids", "--no-escape", "--log-disable"]
        if not parse_special:
            arguments.append("--no-parse-special")
        if not add_bos:
            arguments.append("--no-bos")
        said = call(tools, "llama-tokenize", arguments)
    found = _LIST.findall(said)
    if not found:
        raise PillmError(f"llama-tokenize gives no token ids: {telling_line(said)}")
    return [int(item) for item in found[-1].split(",") if item.strip()]
