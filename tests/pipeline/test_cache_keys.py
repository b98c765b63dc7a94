"""What a stage's cache key says of code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pillm.pipeline.cache import rooms_of
from pillm.pipeline.stages import STAGES


@pytest.mark.train
@pytest.mark.parametrize("name", STAGES)
def test_every_module_that_a_stage_imports_is_in_its_key(name):
    """Modules that are imported later, while a stage works, are not seen here."""
    stage = STAGES[name]
    module = stage.run_at.partition(":")[0]
    code = f"import {module}, sys; print(*(m for m in sys.modules if m.startswith('pillm.')))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rooms = rooms_of(stage)
    assert [m for m in made.stdout.split() if not any(m == room or m.startswith(f"{room}.") for room in rooms)] == []
