"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillm.core.errors import UsageError
from pillm.core.paths import expanded


def test_a_home_folder_is_found_and_one_of_nobody_is_told() -> None:
    assert expanded("~/models") == Path.home() / "models"
    assert expanded("models") == Path("models")
    with pytest.raises(UsageError, match=r"~nobody-of-this-name/m\.gguf: the home folder of this user"):
        expanded("~nobody-of-this-name/m.gguf")
