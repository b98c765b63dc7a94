"""kill -9 while a model in process labels: a tiny random one under a grammar, so that its answers can be used.

Not covered: that an answer made again after a kill has the same text (its batch is another one; see in_process.py).
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from pillm.core.events import silent
from pillm.teach import journal
from pillm.teach.label import run
from pillm.teach.options import LabelOptions

pytestmark = [pytest.mark.train, pytest.mark.model]
SCHEMA = {
    "type": "object",
    "properties": {name: {"enum": ["yes", "no", "perhaps"]} for name in ("a", "b", "c")},
    "required": ["a", "b", "c"],
    "additionalProperties": False,
}
CHILD = """
import sys
from pillm.core.events import silent
from pillm.teach.label import run
from pillm.teach.options import LabelOptions
run(LabelOptions.model_validate_json(sys.argv[1]), silent)
"""


@pytest.fixture
def tiny(smollm2_gguf: Path, tmp_path: Path) -> Path:
    import torch
    import transformers

    folder = tmp_path / "tiny"
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_kill_9_at_random_loses_no_answer_doubles_none_and_goes_on(tiny, dataset, rows, tmp_path):
    names = [f"prompt {number}" for number in range(24)]
    path = dataset(*(
        {"id": name, "messages": [{"role": "user", "content": name}], "response_schema": SCHEMA} for name in names
    ))  # fmt: skip
    options = LabelOptions(
        prompts=path, teacher=str(tiny), out=tmp_path / "out", batch_size=2, temperature=0.9, max_tokens=64, attempts=2,
        best_of=2,
    )  # fmt: skip
    book = options.out / journal.NAME
    moments = random.Random(7)
    kills, kept = 0, b""
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, options.model_dump_json()])
        more = moments.randrange(1, 8)
        while child.poll() is None and (not book.exists() or book.read_bytes().count(b"\n") < kept.count(b"\n") + more):
            time.sleep(0.001)
        time.sleep(moments.random() * 0.02)
        child.kill()
        child.wait()
        kills += child.returncode == -9
        now = book.read_bytes()
        # What was there is there; at most a torn end of the last line goes.
        whole = kept[: kept.rfind(b"\n") + 1]
        assert now.startswith(whole)
        kept = now
        assert not (options.out / "labelled.jsonl").exists()
    assert kills == 3
    result = run(options, silent)
    assert [record.id for record in rows(result.outputs["labelled"])] == names
    lines = [msgspec.json.decode(line)["entry"] for line in book.read_bytes().splitlines()]
    asked = [(line["key"], line["attempt"]) for line in lines]
    assert len(asked) == len(set(asked)) == 48
    published = result.outputs["labelled"].read_bytes()
    assert all(
        record.meta["template"] and record.meta["best_of"]["answers"] == 2
        for record in rows(result.outputs["labelled"])
    )
    assert run(options, silent).metrics["reused"] == 24
    assert result.outputs["labelled"].read_bytes() == published
