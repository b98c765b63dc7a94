"""The hub on this machine that the tests of models have, and a folder that holds only a config."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import fake_hub
from plan_models import QWEN


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards and history of their own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PILLM_HISTORY", str(tmp_path / "data" / "history.sqlite"))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder with nothing but the config of a Qwen2.5-0.5B, or one that differs in some keys."""

    def make(**changes: Any) -> Path:
        path = tmp_path / "model"
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps({**QWEN, **changes}))
        return path

    return make


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    from huggingface_hub import constants

    with fake_hub.running(tmp_path, monkeypatch) as hub:
        # This hub makes checksums of a whole model when it is asked what it holds.
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 60)
        yield hub
