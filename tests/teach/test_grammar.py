"""JSON under a grammar, with a random model that would never write JSON by itself, and the real tokenizer of SmolLM2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("llguidance")

import torch
import transformers

from pillm.core.events import Log, silent
from pillm.core.records import Message, Record
from pillm.models.chat import ChatTemplate
from pillm.teach import in_process
from pillm.teach.ask import Ask, Reply, Sampling
from pillm.teach.judge import judge

pytestmark = [pytest.mark.train, pytest.mark.model]
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
LAMP = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}, "level": {"enum": [0, 50, 100]}},
    "required": ["room", "on", "level"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(smollm2_gguf: Path):
    return transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)


@pytest.fixture
def teacher(tokenizer) -> in_process.Teacher:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        # More logits than tokens, as padded vocabularies have.
        vocab_size=len(tokenizer) + 64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return in_process.Teacher(model, tokenizer, ChatTemplate(TEMPLATE), (tokenizer.eos_token_id,), 0, 4096)


def answers(teacher, records, emit=silent, structured="auto", temperature=0.8) -> dict[str, Reply]:
    got: dict[str, Reply] = {}
    asks = [Ask(r.id, r, 1, Sampling(60, temperature, 1.0, number)) for number, r in enumerate(records)]
    in_process.backend(teacher, 4, emit, structured)(asks, lambda pairs: got.update((a.key, r) for a, r in pairs))
    return got


def record(name: str, schema: object) -> Record:
    return Record(name, (Message("user", f"Lamp {name}?"),), response_schema=schema)  # pyright: ignore[reportArgumentType]


def test_a_model_that_knows_nothing_writes_json_that_fits(teacher):
    records = [record(str(n), LAMP) for n in range(6)]
    got = answers(teacher, records)
    for item in records:
        assert judge(item, got[item.id])[1] == ()
    assert len({got[item.id].content for item in records}) > 1
    # Beside them, a prompt without a schema is as free as it was.
    mixed = answers(teacher, [records[0], Record("free", (Message("user", "Lamp?"),))])
    assert json.loads(mixed["0"].content)
    assert mixed["free"].finish == "length"


def test_without_the_grammar_it_does_not(teacher):
    got = answers(teacher, [record("0", LAMP)], structured="prompt")
    assert [reason.code for reason in judge(record("0", LAMP), got["0"])[1]] == ["cut-off", "not-json"]


def test_without_llguidance_the_answer_is_checked_only_and_that_is_told_once(teacher, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    events = []
    got = answers(teacher, [record("0", LAMP), record("1", LAMP)], events.append)
    assert judge(record("0", LAMP), got["0"])[1]
    (told,) = [event.message for event in events if isinstance(event, Log) and event.level == "warning"]
    assert "llguidance is not installed" in told


def test_a_schema_that_the_grammar_does_not_know_is_told_and_checked_only(teacher):
    events = []
    odd = {"type": "object", "not": {"required": ["a"]}}
    got = answers(teacher, [record("odd", odd), record("0", LAMP)], events.append)
    assert judge(record("0", LAMP), got["0"])[1] == ()
    assert judge(record("odd", odd), got["odd"])[1]
    (told,) = [event.message for event in events if isinstance(event, Log) and event.level == "warning"]
    assert "no grammar for JSON answers" in told
