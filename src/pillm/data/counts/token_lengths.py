"""Lengths of dialogues in a tokenizer's tokens. Large files are sampled, since tokenizing is slow.

The sample depends on the seed, the file's place in the list and its number of records alone: not on
the number of workers, and not on where the files lie.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.errors import MissingError, UsageError
from pillm.core.events import Emit, Progress, silent
from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.data import inputs, parallel
from pillm.data.counts.figures import lengths
from pillm.data.counts.statistics import Measured, decoded, texts
from pillm.data.inputs import Block

SAMPLE = 2_000
"""Records that are tokenized of a file which has more."""
SEED = 0

Wanted = tuple[str, dict[tuple[str, int], tuple[int, ...]]]


def added(measured: Measured, tokenizer: Path, workers: int | None = None, emit: Emit = silent) -> Measured:
    """The same figures with lengths in `tokens`, or `tokens_of_a_sample`, in the place of words.

    A dialogue's length is that of its texts and calls, without a chat template's markers. Raises
    UsageError if `tokenizer` is none, MissingError if the package tokenizers is not installed.
    """
    path = file_of(tokenizer)
    # By now the file may be another one than when it was read last.
    load.cache_clear()
    load(str(path))
    wanted = _sample(measured)
    total = sum(map(len, wanted.values()))
    counts: Counter[int] = Counter()
    blocks = inputs.blocks([file.source for file in measured.files])
    asked = (block for block in blocks if (block.source.name, block.start) in wanted)
    for _, found in parallel.mapped(asked, count, (str(path), wanted), workers):
        counts.update(found)
        emit(Progress("token lengths", counts.total(), total, "records"))
    whole = all(file.records <= SAMPLE for file in measured.files)
    known = {name: figures for name, figures in measured.statistics.lengths.items() if name != "words"}
    known["tokens" if whole else "tokens_of_a_sample"] = lengths(counts)
    return measured._replace(statistics=msgspec.structs.replace(measured.statistics, lengths=known))


def file_of(tokenizer: Path) -> Path:
    """The tokenizer.json that a file or a folder means."""
    return tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer


def count(block: Block, given: Wanted) -> Counter[int]:
    """How often each length occurs among the wanted records of a block."""
    path, wanted = given
    numbers = frozenset(wanted[block.source.name, block.start])
    said = []
    seen = 0
    for line in block.lines():
        try:
            record = None if line.size > MAX_LINE_BYTES else decoded(line.data, line.byte)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        if record is None:
            continue
        if seen in numbers:
            said.append("\n".join(texts(record)))
        seen += 1
    return Counter(len(encoded.ids) for encoded in load(path).encode_batch(said, add_special_tokens=False))


@lru_cache(maxsize=1)
def load(path: str) -> Any:
    """The tokenizer of a tokenizer.json. Raises MissingError or UsageError."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise MissingError(
            "tokenizers is not installed", "run: pip install 'pi-llm-optimizer[train]', or leave --tokenizer out"
        ) from error
    try:
        return Tokenizer.from_buffer(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror})", "give a tokenizer.json, or its folder"
        ) from error
    except Exception as error:  # the package raises nothing more exact
        raise UsageError(f"{path}: this is no tokenizer ({error})", "give a tokenizer.json, or its folder") from error


def _sample(measured: Measured) -> dict[tuple[str, int], tuple[int, ...]]:
    """Numbers of the wanted records in each block, by name of its source and first byte."""
    wanted: dict[tuple[str, int], tuple[int, ...]] = {}
    for place, file in enumerate(measured.files):
        drawn: Sequence[int] = range(file.records)
        if file.records > SAMPLE:
            # Not for secrets: the same seed must draw the same records.
            drawn = sorted(random.Random(f"{SEED}/{place}").sample(drawn, SAMPLE))  # noqa: S311
        first, cursor = 0, 0
        for (name, start), rows in measured.blocks.items():
            if name != file.source.name:
                continue
            end = cursor
            while end < len(drawn) and drawn[end] < first + rows:
                end += 1
            if end > cursor:
                wanted[name, start] = tuple(number - first for number in drawn[cursor:end])
            first, cursor = first + rows, end
    return wanted
