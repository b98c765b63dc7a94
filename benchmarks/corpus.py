"""A dataset of any size for benchmarks, out of the shipped dialogues: seeded, each line with an id and values of its own."""

from __future__ import annotations

import random
from pathlib import Path

SHIPPED = Path(__file__).parent.parent / "src/pillm/data/shipped/home-assistant/train.jsonl"
_MARK = b'{"id":"'


def write(path: Path, size: int, seed: int = 1) -> int:
    """Write at least `size` bytes of valid records to `path`; returns how many records there are."""
    lines = SHIPPED.read_bytes().splitlines()
    draw = random.Random(seed)
    count = written = 0
    with path.open("wb") as file:
        while written < size:
            line = draw.choice(lines)
            # Numbers inside of the user's words, and so of the arguments, would have to be changed in step.
            line = _MARK + b"%d-" % count + line.removeprefix(_MARK) + b"\n"
            file.write(line)
            count, written = count + 1, written + len(line)
    return count
