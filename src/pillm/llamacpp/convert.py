"""llama.cpp's own converter: a Hugging Face folder to an unquantized GGUF file."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Literal

from pillm.core.command import Command
from pillm.core.errors import MissingError, PillmError, UsageError, writing
from pillm.core.events import Emit, Progress, silent
from pillm.llamacpp.install import CONVERTER, LlamaCpp
from pillm.llamacpp.tool import watch

_TENSORS = re.compile(r"hf-to-gguf:(\S+),\s+torch\.")
_WRITTEN = re.compile(r"Writing:\s+(\d+)%")
_UNKNOWN_TOKENIZER = "pre-tokenizer was not recognized"
_UNSUPPORTED = re.compile(r"Model (\S+) is not supported")


def convert(
    tools: LlamaCpp,
    folder: Path,
    target: Path,
    dtype: Literal["f16", "bf16", "f32"],
    *,
    name: str = "",
    emit: Emit = silent,
) -> None:
    """Write the model of `folder` (config.json, safetensors, tokenizer) as `target`, matrices in `dtype`.

    `name` is the model's name in the file; without it the converter derives one from the folder's.

    The file is written in place: give a temporary name and publish it when it is checked.
    Raises UsageError (no such model, architecture or tokenizer that llama.cpp does not know), MissingError (no torch,
    no converter), ResourceError (disk), PillmError.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: not a model folder (there is no config.json)", "give what `pillm train` published")
    script = tools.source / CONVERTER
    if not script.is_file():
        raise MissingError(f"{script}: llama.cpp's converter is not there", "run: pillm doctor")
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise MissingError(f"{module} is not installed", "run: pip install 'pi-llm-optimizer[train]'")

    tensors = 0

    def told(text: str) -> None:
        nonlocal tensors
        if found := _TENSORS.findall(text):
            tensors += len(found)
            emit(Progress("read tensors", tensors, None, "tensors"))
        if percents := _WRITTEN.findall(text):
            emit(Progress(f"write {dtype} GGUF", int(percents[-1]), 100, "%"))

    argv = [sys.executable, "-u", str(script), str(folder), "--outfile", str(target), "--outtype", dtype]
    if name:
        argv += ["--model-name", name]
    with writing(target):
        try:
            watch(Command(tuple(argv), {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}), "convert", told)
        except PillmError as error:
            if match := _UNSUPPORTED.search(error.message):
                raise UsageError(
                    f"{folder}: llama.cpp's converter does not know the architecture {match[1]}",
                    "choose a student that llama.cpp runs",
                ) from error
            if _UNKNOWN_TOKENIZER in error.message:
                raise UsageError(
                    f"{folder}: llama.cpp's converter does not know this tokenizer",
                    f"export with the tokenizer of the base model, unchanged but for added tokens; {error.hint}",
                ) from error
            raise
    if not target.is_file():
        raise PillmError(f"{folder}: the converter wrote no file")
