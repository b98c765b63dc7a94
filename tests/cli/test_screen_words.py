"""Numbers, amounts and durations as people read them."""

from __future__ import annotations

import pytest

from pillm.core.amounts import amount, duration, share


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "B", "0 B"), (999, "B", "999 B"), (98_362_432, "B", "98.4 MB"), (2_500_000_000, "bytes", "2.50 GB"),
     (1200, "steps", "1,200 steps"), (0.5, "", "0.5")],
)  # fmt: skip
def test_amounts(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_shares() -> None:
    assert share(12, 40, "steps") == "12 of 40 steps"
    assert share(1_200_000, 98_362_432, "B") == "1.2 MB of 98.4 MB"
    assert share(3, None, "lines") == "3 lines"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.97, "1 min 0 s"), (192, "3 min 12 s"), (3599.7, "1 h 0 min"), (3900, "1 h 5 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
