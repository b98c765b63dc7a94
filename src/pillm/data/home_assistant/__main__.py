"""`python -m pillm.data.home_assistant [FOLDER]`: write train, heldout and smoke, by default over the shipped ones."""

from __future__ import annotations

import sys
from pathlib import Path

from pillm.core import jsonl, shipped
from pillm.core.errors import PillmError
from pillm.data.home_assistant import compose


def main(folder: Path) -> None:
    """Write the three files into `folder`. Raises ResourceError or UsageError if it cannot be written."""
    train = compose.records("train")
    jsonl.write(folder / "train.jsonl", train)
    jsonl.write(folder / "heldout.jsonl", compose.records("heldout"))
    jsonl.write(folder / "smoke.jsonl", compose.smoke(train))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else shipped.root() / "home-assistant")
    except PillmError as error:
        sys.stderr.write(f"{error.message}\n    {error.hint}\n")
        sys.exit(error.exit_code)
