"""`python -m pillm.data.home_assistant [FOLDER]`: write train, heldout and smoke, by default over the shipped ones."""

from __future__ import annotations

import sys
from pathlib import Path

from pillm.core import jsonl, shipped
from pillm.data.home_assistant import compose


def main(folder: Path) -> None:
    """Write the three files into `folder`."""
    train = compose.records("train")
    jsonl.write(folder / "train.jsonl", train)
    jsonl.write(folder / "heldout.jsonl", compose.records("heldout"))
    jsonl.write(folder / "smoke.jsonl", compose.smoke(train))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else shipped.root() / "home-assistant")
