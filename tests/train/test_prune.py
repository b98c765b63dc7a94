"""Pruning: what is cut is what matters least, the rest is untouched, and other programs read the result."""

from __future__ import annotations

import pytest

from pillm.core.errors import UsageError
from pillm.core.events import Log, silent
from pillm.train.shape import Shape, parse

pytestmark = [pytest.mark.train]

LLAMA = {"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "tie_word_embeddings": True}
QWEN3 = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
         "tie_word_embeddings": False}  # fmt: skip
GEMMA3 = {"num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
          "sliding_window": 16}  # fmt: skip


def _model(kind="Llama", **more):
    import torch
    import transformers

    torch.manual_seed(0)
    base = {"vocab_size": 300, "hidden_size": 96, "intermediate_size": 128, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "max_position_embeddings": 128}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**base, **more)
    name = "Gemma3ForCausalLM" if kind == "Gemma3Text" else f"{kind}ForCausalLM"
    return getattr(transformers, name)(config).eval()


@pytest.fixture(scope="module")
def packs():
    import random

    from pillm.train.dialogues import Encoded, pack, shared_beginnings

    rng = random.Random(0)
    start = [rng.randrange(3, 300) for _ in range(12)]
    items = [
        Encoded(start + [rng.randrange(3, 300) for _ in range(20)], [False] * 12 + [True] * 20, b"") for _ in range(12)
    ]
    return pack(items, shared_beginnings(items), 128)


@pytest.fixture
def settings():
    from pillm.train.settings import Settings

    return Settings("cpu", "float32", 1e-3, False, {})


def _logits(model, ids=tuple(range(3, 40))):
    import torch

    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


@pytest.mark.parametrize("text", ["prune:layers=20", "prune:layers=20,ffn=1024,heads=6,hidden=512", ""])
def test_a_shape_is_read(text):
    shape = parse(text)
    assert shape is None if not text else shape.layers == 20


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shrink:layers=2", "unknown way"), ("prune:", "unknown way"), ("prune:depth=3", "possible are layers, ffn, heads"),
        ("prune:layers=0", "not a whole number"), ("prune:layers=two", "not a whole number"), ("prune:layers=-1", "not a whole"),
        ("prune:layers=2,layers=3", "twice"), ("prune:layers", "not a whole number"), ("prune:layers=²", "not a whole number"),
    ],
)  # fmt: skip
def test_a_shape_that_means_nothing_is_refused(text, says):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert says in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (Shape(layers=5), "give layers from 1 to 4"), (Shape(ffn=129), "give ffn from 1 to 128"),
        (Shape(heads=3), "possible are 2, 4, 6"), (Shape(hidden=97), "give hidden from 1 to 96"), (Shape(hidden=32), "not a multiple of the number of attention heads"),
    ],
)  # fmt: skip
def test_what_the_student_cannot_become_names_what_is_possible(shape, says, packs, settings):
    from pillm.train.prune import pruned

    with pytest.raises(UsageError) as error:
        pruned(_model(**LLAMA), shape, packs, settings, silent)
    assert says in f"{error.value.message} {error.value.hint}"


def test_parts_that_do_nothing_are_cut_and_the_logits_stay(packs, settings):
    # The real check of every index: kill parts of a model so that they have no effect, and let pruning find them.
    import torch

    from pillm.train.prune import pruned

    model = _model(**LLAMA, rms_norm_eps=1e-12)  # the epsilon would not scale with the width, below
    layers = model.model.layers
    dead_ffn, dead_channels = torch.arange(1, 128, 4), torch.arange(0, 96, 4)
    with torch.no_grad():
        for matrix in (layers[2].self_attn.o_proj.weight, layers[2].mlp.down_proj.weight):
            matrix.zero_()  # layer 2 adds nothing
        for number, layer in enumerate(layers):
            layer.mlp.up_proj.weight[dead_ffn] = 0
            group = number % 3
            layer.self_attn.v_proj.weight[group * 16 : (group + 1) * 16] = 0
            layer.self_attn.o_proj.weight[dead_channels] = 0
            layer.mlp.down_proj.weight[dead_channels] = 0
        model.model.embed_tokens.weight[:, dead_channels] = 0
    before = _logits(model)
    events = []
    result = pruned(model, Shape(layers=3, ffn=96, heads=4), packs, settings, events.append)
    torch.testing.assert_close(_logits(result.eval()), before, rtol=1e-4, atol=1e-5)
    said = [e.message for e in events if isinstance(e, Log)]
    assert any("pruned 1 of 4 layers" in line and ": 2 (0.000)" in line for line in said)
    assert any("pruned 32 of 128 feed-forward neurons" in line for line in said)
    # Fewer channels change the norms' mean: of 96 only 72 lived, so that each was sqrt(96/72) as large after a norm.
    narrow = pruned(model, Shape(hidden=72), packs, settings, silent).eval()
    with torch.no_grad():
        for name, parameter in narrow.named_parameters():
            if "norm" in name:
                parameter.mul_((96 / 72) ** 0.5)
    torch.testing.assert_close(_logits(narrow), before, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "given", "shape"),
    [
        ("Llama", LLAMA, Shape(layers=2, ffn=64, heads=4, hidden=64)),
        ("Llama", LLAMA, Shape(hidden=48)),
        ("Qwen3", QWEN3, Shape(layers=3, ffn=64, heads=2, hidden=64)),
        ("Qwen2", {**LLAMA}, Shape(layers=3, ffn=64, heads=2, hidden=64)),
        ("Gemma3Text", GEMMA3, Shape(layers=7, ffn=64)),
    ],
)
def test_the_result_is_an_ordinary_model(kind, given, shape, packs, settings, tmp_path):
    import torch
    import transformers

    from pillm.train.prune import pruned

    model = _model(kind, **given)
    result = pruned(model, shape, packs, settings, silent)
    again = pruned(model, shape, packs, settings, silent)
    assert all(torch.equal(a, b) for a, b in zip(result.parameters(), again.parameters(), strict=True))
    result.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    torch.testing.assert_close(_logits(loaded), _logits(result.eval()))
    config = loaded.config
    assert config.num_hidden_layers == (shape.layers or given["num_hidden_layers"])
    assert config.hidden_size == (shape.hidden or 96)
    assert config.intermediate_size == (shape.ffn or 128)
    assert (
        config.num_attention_heads // config.num_key_value_heads
        == given["num_attention_heads"] // given["num_key_value_heads"]
    )
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == config.tie_word_embeddings


def test_the_pattern_of_kinds_of_layers_stays(packs, settings):
    from pillm.train.prune import best_layers, pruned

    model = _model("Gemma3Text", **GEMMA3)
    kinds = list(model.config.layer_types)
    assert len(set(kinds)) == 2
    result = pruned(model, Shape(layers=8), packs, settings, silent)
    assert list(result.config.layer_types) == kinds[:8], "llama.cpp tells a layer's kind from its number"
    # The best that keep the pattern, by trying all.
    import itertools

    scores = [0.3, 0.9, 0.1, 0.5, 0.2, 0.8, 0.4]
    pattern = [0, 0, 1, 0, 0, 1, 0]
    fits = [c for c in itertools.combinations(range(7), 4) if [pattern[i] for i in c] == pattern[:4]]
    best = max(fits, key=lambda c: sum(scores[i] for i in c))
    assert best_layers(scores, pattern, 4) == list(best)
    assert best_layers(scores, [0] * 7, 3) == [1, 3, 5]


def test_gemma_keeps_its_width_and_unknown_parts_keep_theirs(packs, settings):
    from pillm.train.prune import pruned

    with pytest.raises(UsageError, match="scaled by their width"):
        pruned(_model("Gemma3Text", **GEMMA3), Shape(hidden=64), packs, settings, silent)
    phi = _model("Phi3", num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(UsageError, match=r"qkv_proj|gate_up_proj") as error:
        pruned(phi, Shape(ffn=64), packs, settings, silent)
    assert "prune its layers alone" in error.value.hint
    assert pruned(phi, Shape(layers=1), packs, settings, silent).config.num_hidden_layers == 1


def test_a_width_that_cannot_be_quantized_is_told(packs, settings):
    from pillm.train.prune import pruned

    events = []
    pruned(_model(**LLAMA), Shape(hidden=84, ffn=64), packs, settings, events.append)
    warned = [e.message for e in events if isinstance(e, Log) and e.level == "warning"]
    assert any("hidden=84 is no multiple of 32" in line for line in warned)
    assert any("ffn=64 is no multiple of 256" in line for line in warned)


@pytest.mark.model
@pytest.mark.llamacpp
def test_a_pruned_student_is_trained_merged_and_converted(tiny_student, dialogues_file, tools, tmp_path):
    from pillm.export.options import ExportOptions
    from pillm.export.run import run as export
    from pillm.llamacpp.gguf_file import describe
    from pillm.train.options import TrainOptions
    from pillm.train.run import run

    options = TrainOptions(
        student=str(tiny_student), data=dialogues_file, out=tmp_path / "t", init="prune:layers=1,ffn=96,heads=2,hidden=32",
        max_steps=3, micro_tokens=256, batch_tokens=512, dtype="float32",
    )  # fmt: skip
    made = run(options, silent)
    exported = export(ExportOptions(model=str(made.outputs["model"]), out=tmp_path / "e"), silent)
    file = describe(exported.outputs["gguf"])
    assert (file.metadata["llama.block_count"], file.metadata["llama.embedding_length"]) == (1, 32)
    assert (file.metadata["llama.attention.head_count"], file.metadata["llama.attention.key_length"]) == (2, 16)


@pytest.mark.model
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_merged_model_generates_as_the_student_was_set_to(method, tiny_student, packs, tmp_path):
    from pathlib import Path

    import torch

    from pillm.train import run, student
    from pillm.train.loop import Plan
    from pillm.train.options import TrainOptions
    from pillm.train.settings import Settings

    options = TrainOptions(
        student=str(tiny_student), data=Path("x"), out=tmp_path, init="prune:layers=1", method=method
    )
    settings = Settings("cpu", "float32", 1e-3, False, {}, method)
    model = student.load(tiny_student, torch.float32)[0]
    model.generation_config.repetition_penalty = 1.25
    model.generation_config.eos_token_id = [2, 7]
    small, base = run._made_smaller(model, tiny_student, options, settings, Plan([packs], []), silent)
    published = small if method == "full" else base()
    assert published.config.num_hidden_layers == 1
    assert published.generation_config.repetition_penalty == 1.25
    assert published.generation_config.eos_token_id == [2, 7]
