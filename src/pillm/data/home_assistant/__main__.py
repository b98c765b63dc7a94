"""`python -m pillm.data.home_assistant [FOLDER]`: write every split and smoke, by default over the shipped ones."""

from __future__ import annotations

import sys
from pathlib import Path

from pillm.core import jsonl, shipped
from pillm.core.errors import PillmError
from pillm.data.home_assistant import compose, material


def main(folder: Path) -> None:
    """Write the four files into `folder`. Raises ResourceError or UsageError if it cannot be written."""
    splits = {split: compose.records(split) for split in material.SPLITS}
    for split, records in splits.items():
        jsonl.write(folder / f"{split}.jsonl", records)
    jsonl.write(folder / "smoke.jsonl", compose.smoke(splits["train"]))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else shipped.root() / "home-assistant")
    except PillmError as error:
        sys.stderr.write(f"{error.message}\n    {error.hint}\n")
        sys.exit(error.exit_code)
