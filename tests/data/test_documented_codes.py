"""The table of codes in the documentation is that of the code."""

from __future__ import annotations

import re
from pathlib import Path

from pillm.data.validation.codes import CODES

PAGE = Path(__file__).parent.parent.parent / "docs/dataset.md"


def test_the_table_of_codes_is_complete_and_true() -> None:
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| (\w+) \| (.*) \| (yes)? ?\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    told = {code: (severity, meaning, bool(mended)) for code, severity, meaning, mended in rows}
    assert told == {code: (about.severity, about.meaning, about.mendable) for code, about in CODES.items()}
