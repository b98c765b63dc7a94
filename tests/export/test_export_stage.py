"""The stage with the real converter and the real llama.cpp; a wrong export must never be published.

Covers llama only: other architectures go the same way through the converter, but are not tried here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pillm.core.errors import GateError, PillmError, UsageError
from pillm.core.events import Event, Log, Progress, silent
from pillm.export import check, report
from pillm.export import run as stage
from pillm.export.options import ExportOptions
from pillm.llamacpp.convert import convert
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp

pytestmark = [pytest.mark.llamacpp, pytest.mark.model, pytest.mark.train]


@pytest.fixture(scope="module")
def right_gguf(tools: LlamaCpp, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("right") / "right.gguf"
    convert(tools, small_model, path, "f16")
    return path


def test_a_right_export_is_published_with_its_proof(small_model: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    options = ExportOptions(model=small_model, out=tmp_path / "out", check_tokens=200)
    result = stage.run(options, events.append)
    told = report.load(result.outputs["report"])
    found = describe(result.outputs["gguf"])

    assert result.outputs["gguf"] == tmp_path / "out" / "model-f16.gguf"
    assert told.passed
    assert (told.chat_template, told.architecture, told.vocabulary) == ("kept", "llama", 49152)
    assert found.chat_template == (small_model / "chat_template.jinja").read_text()
    assert (told.bytes, told.parameters) == (found.bytes, found.parameters)
    assert told.tokenizer is not None
    assert told.tokenizer.passed
    assert told.tokenizer.tokens > 1000
    assert told.tokenizer.special_tokens >= 3
    assert told.logits is not None
    assert told.logits.tokens >= 200
    assert told.logits.kl_mean < 0.005
    assert told.logits.same_top > 0.95
    labels = {event.label for event in events if isinstance(event, Progress)}
    assert {"write f16 GGUF", "compare tokenizers", "torch's logits"} <= labels
    assert sorted(path.name for path in options.out.iterdir()) == ["export.json", "model-f16.gguf"]


def test_another_dtype_passes_too(small_model: Path, tmp_path: Path) -> None:
    result = stage.run(ExportOptions(model=small_model, out=tmp_path / "out", dtype="bf16", check_tokens=100), silent)
    found = describe(result.outputs["gguf"])
    assert found.path.name == "model-bf16.gguf"
    assert set(found.bytes_by_type) == {"BF16", "F32"}
    assert found.name == "model"


# --- wrong exports: the folder differs in one thing from what the converter has read ---


def swapped_heads(folder: Path) -> None:
    """Two attention heads change places in one layer's queries."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    query = tensors["model.layers.1.self_attn.q_proj.weight"]
    query[:32] = query[:32].flip(0)
    save_file(tensors, path, metadata={"format": "pt"})


def other_rope(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["rope_parameters"].update(rope_theta=500.0))


def other_norm(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(rms_norm_eps=0.5))


def lost_merge(folder: Path) -> None:
    """Two words are split otherwise, as when a tokenizer is trained on and not saved."""

    def change(tokenizer: dict[str, Any]) -> None:
        merges = tokenizer["model"]["merges"]
        kept = [merge for merge in merges if "".join(merge) not in ("Ġminutes", "Ġlights")]
        assert len(kept) == len(merges) - 2
        tokenizer["model"]["merges"] = kept

    edit(folder / "tokenizer.json", change)


def plain_marker(folder: Path) -> None:
    """The end of a turn is no special token any more."""

    def change(tokenizer: dict[str, Any]) -> None:
        for token in tokenizer["added_tokens"]:
            if token["content"] == "<|im_end|>":
                token["content"] = "<|turn_end|>"
        tokenizer["model"]["vocab"]["<|turn_end|>"] = tokenizer["model"]["vocab"].pop("<|im_end|>")

    edit(folder / "tokenizer.json", change)
    text = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(text.replace("<|im_end|>", "<|turn_end|>"))


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (swapped_heads, "the predictions differ: mean KL divergence"),
        (other_rope, "the predictions differ: mean KL divergence"),
        (other_norm, "the predictions differ: mean KL divergence"),
        (lost_merge, "the tokenizers differ at token"),
        (plain_marker, "the tokenizers differ at token"),
        (other_template, "its chat template is not the model's"),
    ],
)
def test_a_wrong_export_is_caught_and_not_published(
    small_model: Path,
    right_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path], None],
    message: str,
) -> None:
    other = tmp_path / "model"
    shutil.copytree(small_model, other)
    fault(other)

    def converted(tools: LlamaCpp, folder: Path, target: Path, *_: Any, **__: Any) -> None:
        shutil.copy(right_gguf, target)

    monkeypatch.setattr(stage, "convert", converted)
    options = ExportOptions(model=other, out=tmp_path / "out", check_tokens=100)
    with pytest.raises(GateError, match=message):
        stage.run(options, silent)
    assert [path.name for path in options.out.iterdir()] == ["export.json"]
    told = report.load(options.out / "export.json")
    assert not told.passed
    assert any(message in failure for failure in told.failures)


# --- input that cannot be exported ---


def test_a_model_without_a_chat_template_is_exported_unchecked_with_a_warning(
    small_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(small_model, bare)
    (bare / "chat_template.jinja").unlink()
    events: list[Event] = []
    result = stage.run(ExportOptions(model=bare, out=tmp_path / "out", check="off"), events.append)
    told = report.load(result.outputs["report"])
    assert (told.passed, told.chat_template) == (True, "none")
    assert (told.check, told.logits, told.tokenizer) == ("off", None, None)
    assert any(isinstance(event, Log) and "no chat template" in event.message for event in events)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_part_is_told(small_model: Path, tmp_path: Path, missing: str) -> None:
    part = tmp_path / "part"
    shutil.copytree(small_model, part)
    (part / missing).unlink()
    with pytest.raises(UsageError, match=r"config\.json is missing|no weights|no tokenizer"):
        stage.run(ExportOptions(model=part, out=tmp_path / "out"), silent)
    with pytest.raises(UsageError, match="no such folder"):
        stage.run(ExportOptions(model=tmp_path / "none", out=tmp_path / "out"), silent)


def test_an_architecture_that_the_converter_does_not_know_is_told(small_model: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(small_model, odd)
    edit(odd / "config.json", lambda config: config.update(architectures=["NobodysForCausalLM"]))
    with pytest.raises(UsageError, match="does not know the architecture NobodysForCausalLM"):
        stage.run(ExportOptions(model=odd, out=tmp_path / "out"), silent)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tokenizer_that_the_converter_does_not_know_is_told(small_model: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(small_model, odd)
    edit(odd / "tokenizer.json", lambda tokenizer: tokenizer["model"]["merges"].__delitem__(slice(0, 40)))
    with pytest.raises(UsageError, match="does not know this tokenizer"):
        stage.run(ExportOptions(model=odd, out=tmp_path / "out"), silent)


def test_weights_cut_in_half_are_told(small_model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(small_model, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(PillmError) as caught:
        stage.run(ExportOptions(model=cut, out=tmp_path / "out"), silent)
    assert "Traceback" not in caught.value.message
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(UsageError, match="cut: transformers cannot load this model"):
        check._load_model(cut, 1)


def test_a_full_disk_is_told(small_model: Path, small_disk: Path) -> None:
    from pillm.core.errors import ResourceError

    with pytest.raises(ResourceError, match="disk is full"):
        stage.run(ExportOptions(model=small_model, out=small_disk / "out"), silent)
