"""llama-imatrix: how much each weight's column matters on a text, for quantizing with care."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from pillm.core.artifacts import PARTIAL, publish
from pillm.core.errors import PillmError, ResourceError, UsageError, writing
from pillm.core.events import Emit, Progress, silent
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call, no_room, telling_line

_CHUNK = re.compile(r"\[(\d+)\]")
_CHUNKS = "imatrix.chunk_count"


def imatrix(
    tools: LlamaCpp,
    model: Path,
    text: Path,
    target: Path,
    *,
    context: int,
    chunks: int,
    threads: int | None = None,
    emit: Emit = silent,
) -> int:
    """Write the importance matrix of `model` on `text` as `target`; returns the chunks that were read.

    `text` is read with special tokens parsed, `chunks` pieces of `context` tokens of it; it must have at
    least two. Raises UsageError (not a whole GGUF file), PillmError with what the tool says, ResourceError
    (disk, memory).
    """
    describe(model)

    def told(piece: str) -> None:
        if found := _CHUNK.findall(piece):
            emit(Progress("importance matrix", int(found[-1]), chunks, "chunks"))

    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as name:
            folder = Path(name)
            # The name of the text goes into the file: a constant one keeps the result's bytes the same.
            shutil.copyfile(text, folder / "calibration.txt")
            emit(Progress("importance matrix", 0, chunks, "chunks"))
            arguments = [
                "--model", str(model.resolve()), "--file", "calibration.txt", "--output", target.name,
                "--parse-special", "--no-escape", "--ctx-size", str(context), "--chunks", str(chunks),
                # One chunk at a time: logits of a whole batch take a gigabyte with a large vocabulary.
                "--batch-size", str(min(context, 2048)), *(["--threads", str(threads)] if threads else []),
            ]  # fmt: skip
            said = call(tools, "llama-imatrix", arguments, cwd=folder, on_output=told)
            written = folder / target.name
            try:
                done = int(describe(written).metadata.get(_CHUNKS, 0))
            except UsageError as error:
                if no_room(folder):
                    raise ResourceError(f"{target}: the disk is full", "free some space, then run again") from error
                raise PillmError(
                    f"llama-imatrix wrote no whole file: {telling_line(said)}", "give more or longer dialogues"
                ) from error
            publish(written, target)
    return done
