"""What is imported to parse and to draw stays light: help must be quick on a Pi too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pillm
from pillm.pipeline.stages import COMMANDS

HEAVY = ("torch", "transformers", "peft", "accelerate", "tokenizers", "huggingface_hub", "matplotlib", "textual", "numpy",
         "gguf", "httpx", "safetensors")  # fmt: skip
ROOT = Path(pillm.__file__).parent

_EACH = """
import importlib, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    new = [heavy for heavy in json.loads(sys.argv[2]) if heavy in sys.modules and heavy not in sum(found.values(), [])]
    if new:
        found[name] = new
print(json.dumps(found))
"""


def modules(folder: str) -> list[str]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [
        ".".join(("pillm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__") for path in paths
    ]


def test_no_light_module_brings_a_heavy_package_along() -> None:
    light = [
        *modules("core"),
        *modules("cli"),
        *sorted({stage.options_at.partition(":")[0] for stage in COMMANDS.values()}),
        *[name for name in modules("pipeline") if not name.endswith((".report", ".plots"))],
    ]
    argv = [sys.executable, "-c", _EACH, json.dumps(light), json.dumps(HEAVY)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["doctor", "--help"],
        ["run", "--help"],
        *([*stage.words, "--help"] for stage in COMMANDS.values()),
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom pillm.cli.main import main\n"
        f"assert main({words!r}) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_help_at_the_top_does_without_pydantic_and_every_stage() -> None:
    code = (
        "import sys\nfrom pillm.cli.main import main\nmain(['--help'])\n"
        "print([n for n in sys.modules if n == 'pydantic' or n.endswith('.options') and n.startswith('pillm.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
