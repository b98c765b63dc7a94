"""A tiny random Llama with SmolLM2's real tokenizer: quick to train, real to every tool."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pillm.core import jsonl
from pillm.core.records import Function as Declared
from pillm.core.records import FunctionCall, Message, Record, Tool, ToolCall


@pytest.fixture(scope="session")
def tiny_student(smollm2_gguf: Path, tmp_path_factory) -> Path:
    """Folder of a Llama of two layers with random weights."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("tiny-student")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2, bos_token_id=1, pad_token_id=2,
        max_position_embeddings=512,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TIMER = {
    "type": "object",
    "properties": {"amount": {"type": "integer"}, "unit": {"enum": ["minutes", "hours"]}, "label": {"type": "string"}},
    "required": ["amount", "unit"],
}
TOOLS = (Tool(Declared("set_timer", "Start a timer", TIMER)), Tool(Declared("add_note", "Save a note", {})))
SYSTEM = Message("system", "You are a home assistant.")


@pytest.fixture(scope="session")
def dialogues() -> list[Record]:
    """Forty dialogues: calls, plain answers, a call with its result, accents and emoji."""
    rng = random.Random(0)
    records: list[Record] = []
    for number in range(40):
        amount = rng.randint(1, 99)
        call = ToolCall(FunctionCall("set_timer", {"amount": amount, "unit": "minutes", "label": f"thé n° {number}"}))
        messages = [SYSTEM, Message("user", f"Minuterie de {amount} minutes pour « thé n° {number} » ⏲️")]
        if number % 4 == 0:
            messages.append(Message("assistant", f"Je ne peux pas. {number} 🙂"))
        else:
            messages.append(Message("assistant", tool_calls=(call,)))
        if number % 4 == 1:
            messages += [Message("tool", '{"ok": true}'), Message("assistant", "C'est parti, à tantôt !")]
        records.append(Record(f"r{number}", tuple(messages), TOOLS))
    return records


@pytest.fixture(scope="session")
def dialogues_file(dialogues: list[Record], tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    jsonl.write(path, dialogues)
    return path
