"""The transformers backend on the real SmolLM2.

Not covered here: GPUs, and a model that really does not fit in memory (the error is imitated).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from pillm.core.errors import UsageError
from pillm.core.events import Log, Progress, silent
from pillm.core.records import Message, Record
from pillm.models.chat import ChatTemplate
from pillm.teach.ask import Ask, Call, Reply, Sampling, with_schema
from pillm.teach.label import run
from pillm.teach.options import LabelOptions

pytest.importorskip("transformers")

from pillm.teach import generation, in_process
from pillm.teach.parsing import parse
from pillm.teach.sampling import Row, draw

pytestmark = pytest.mark.train
GREEDY = Sampling(8, 0.0, 1.0, 0)


def ask(text: str, sampling: Sampling = GREEDY, **more) -> Ask:
    return Ask(text, Record(text, (Message("user", text),), **more), 1, sampling)


def answers(teacher, asks, batch_size: int) -> dict[str, Reply]:
    got: dict[str, Reply] = {}
    in_process.backend(teacher, batch_size, silent)(asks, lambda pairs: got.update((a.key, r) for a, r in pairs))
    return got


@functools.cache
def load_once(path: Path, template: str) -> in_process.Teacher:
    """Reading the GGUF file takes transformers 16 CPU seconds."""
    return in_process.load(path, template, silent)


@pytest.fixture
def teacher(smollm2_gguf) -> in_process.Teacher:
    return load_once(smollm2_gguf, "model")


@pytest.mark.model
def test_the_whole_stage_labels_in_process_and_shows_no_bars_of_others(
    smollm2_gguf, dataset, rows, tmp_path, capfd, monkeypatch
):
    # Nothing is imitated here: the first test in this file really loads the model.
    loaded = load_once(smollm2_gguf, "model")
    monkeypatch.setattr(in_process, "load", lambda path, template, emit: loaded)
    path = dataset("Name a colour.", "What is the capital of France? Answer in one word.", "Say hi.")
    options = LabelOptions(
        prompts=path, teacher=str(smollm2_gguf), backend="transformers", out=tmp_path / "out", max_tokens=8, attempts=1
    )
    events = []
    result = run(options, events.append)
    told = [event for event in events if isinstance(event, Progress) and event.label == "label"]
    assert (told[-1].done, told[-1].total) == (3, 3)
    labelled, rejected = rows(result.outputs["labelled"]), rows(result.outputs["rejected"])
    assert len(labelled) + len(rejected) == 3
    assert all(record.messages[-1].content for record in labelled)
    assert capfd.readouterr() == ("", "")
    again = run(options, silent)
    assert again.metrics["reused"] == 3
    assert again.outputs["labelled"].read_bytes() == result.outputs["labelled"].read_bytes()


@pytest.mark.model
def test_an_answer_does_not_depend_on_its_neighbours_nor_on_the_batch(teacher):
    import torch

    # In bfloat16 another batch may tip a near tie. transformers refuses to cast what came from a GGUF file.
    torch.nn.Module.float(teacher.model)
    warm = Sampling(8, 0.8, 0.9, 1234)
    asks = [ask("Hi"), ask("Say a word.", warm), ask("Which animal barks, and which one meows? Tell me both, please.")]
    together = answers(teacher, asks, 3)
    alone = answers(teacher, asks, 1)
    for key, reply in alone.items():
        assert together[key].logprob == pytest.approx(reply.logprob, abs=1e-3)
        assert msgspec.structs.replace(together[key], logprob=reply.logprob) == reply
    assert all(reply.tokens_in > 10 and 0 < reply.tokens_out <= 8 for reply in alone.values())
    reseeded = msgspec.structs.replace(asks[1], sampling=Sampling(8, 0.8, 0.9, 99))
    assert answers(teacher, [reseeded], 1)[asks[1].key].content != alone[asks[1].key].content


@pytest.mark.model
def test_a_prompt_longer_than_the_context_fails_and_the_others_go_on(teacher):
    got = answers(teacher, [ask("word " * 9000), ask("Hi")], 2)
    long = got["word " * 9000]
    assert long.failure
    assert (long.failure.code, long.lasting) == ("too-long", True)
    assert "8192" in long.failure.message
    assert got["Hi"].failure is None


@pytest.mark.model
def test_a_template_that_refuses_a_dialogue_fails_that_prompt_alone(teacher):
    strict = ChatTemplate(
        "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}Q: {{ messages[0].content }}\nA:"
    )
    two = Ask("two", Record("two", (Message("system", "s"), Message("user", "u"))), 1, GREEDY)
    got = answers(msgspec.structs.replace(teacher, template=strict), [two, ask("Hi")], 2)
    assert got["two"].failure
    assert "one turn only" in got["two"].failure.message
    assert got["Hi"].failure is None


@pytest.mark.model
def test_a_batch_that_does_not_fit_is_halved(teacher, monkeypatch):
    sizes = []

    def cramped(_teacher, prompts, _shared, size, _matcher, _emit):
        sizes.append(min(size, len(prompts)))
        if size > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (imitated)")
        if size > 2:
            # One answer comes out before memory is short: it is kept, and not asked for again.
            yield [generation.Made(prompts[0][0], [teacher.ends[0]], 1, 0.0)]
            raise RuntimeError("out of memory (imitated)")
        for ask, _ in prompts:
            yield [generation.Made(ask, [teacher.ends[0]], 1, 0.0)]

    monkeypatch.setattr(generation, "by_slots", cramped)
    events, got = [], []
    in_process.backend(teacher, 8, events.append)([ask(str(i)) for i in range(9)], got.extend)
    assert sorted(a.key for a, _ in got) == [str(i) for i in range(9)]
    assert sizes == [8, 4, 2]
    assert [event.level for event in events if isinstance(event, Log)] == ["warning", "warning"]


@pytest.mark.model
def test_a_file_that_is_no_model_is_said_so(smollm2_gguf, tmp_path):
    half = tmp_path / "half.gguf"
    with Path(smollm2_gguf).open("rb") as file:
        half.write_bytes(file.read(1_000_000))
    with pytest.raises(UsageError, match=r"half\.gguf"):
        in_process.load(half, "model", silent)


def test_draws_follow_the_softmax_within_the_nucleus():
    import torch

    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    counts = Counter(draw(logits, [Row(Sampling(1, 0.5, 0.95, seed))])[0] for seed in range(2000))
    # At T = 0.5 the masses are 0.867, 0.117, 0.016, 0: the nucleus of 0.95 holds the first two.
    expected = 2000 / (1 + math.exp(-2))
    assert set(counts) == {0, 1}
    assert abs(counts[0] - expected) < 5 * math.sqrt(2000 * 0.88 * 0.12)


def test_rows_at_temperature_zero_are_left_alone_beside_rows_that_draw():
    import torch

    scores = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    rows = [(Row(GREEDY), Row(Sampling(8, 2.0, 1.0, seed))) for seed in range(50)]
    drawn = [draw(scores, pair) for pair in rows]
    assert {first for first, _ in drawn} == {1}
    assert {second for _, second in drawn} == {0, 1, 2}
    # The model's own log-probability, whatever the temperature.
    assert rows[0][0].logprob == pytest.approx(scores[0].log_softmax(-1)[1].item())


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (" Hello.\n", "Hello.", ()),
        ('On it.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "On it.", (Call("f", '{"a": 1}'),)),
        (
            '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>',
            "",
            (Call("f", "{}"), Call("g", "{}")),
        ),
        ("<tool_call>{broken</tool_call>", "", (Call("", "{broken"),)),
        ('{"name": "f", "parameters": {"a": "é"}}', "", (Call("f", '{"a": "é"}'),)),
        ('{"name": "Ann", "parameters": 3}', '{"name": "Ann", "parameters": 3}', ()),
        ('{"age": 3}', '{"age": 3}', ()),
        ('```json\n{"age": 3}\n```', '{"age": 3}', ()),
        ("<think>\nhm, {\n</think>\n\nYes.", "Yes.", ()),
    ],
)
def test_what_a_model_writes_is_read(text, content, calls):
    assert parse(text, {"f", "g"}) == (content, calls)


def test_a_schema_is_shown_to_the_teacher_but_not_stored():
    schema = {"type": "object"}
    record = Record("p", (Message("system", "Be kind."), Message("user", "hi")), response_schema=schema)
    shown = with_schema(record)
    assert shown[0].content.startswith("Be kind.")
    assert shown[0].content.endswith('{"type": "object"}')
    bare = with_schema(msgspec.structs.replace(record, messages=record.messages[1:]))
    assert [message.role for message in bare] == ["system", "user"]
    assert record.messages[0].content == "Be kind."


@pytest.mark.model
def test_a_folder_whose_weights_are_cut_is_said_so(smollm2_gguf, tmp_path):
    import transformers

    folder = tmp_path / "cut"
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    tokenizer.save_pretrained(folder)
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                 num_attention_heads=2)
    ).save_pretrained(folder)  # fmt: skip
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UsageError, match="transformers cannot load this model"):
        in_process.load(folder, "model", silent)
