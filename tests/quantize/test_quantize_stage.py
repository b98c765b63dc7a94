"""The stage on the real SmolLM2, whose rows of 576 make most tensors fall back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pillm.core.artifacts import sha256_file
from pillm.core.errors import FindingsError, GateError, PillmError, UsageError
from pillm.core.events import Event, Log, Progress, silent
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.quantize import quantize
from pillm.llamacpp.tokenize import tokenize
from pillm.quantize import report
from pillm.quantize.calibration import calibration
from pillm.quantize.options import QuantizeOptions
from pillm.quantize.run import run

pytestmark = [pytest.mark.llamacpp, pytest.mark.model]


def dialogues(path: Path, count: int, words: int = 40) -> Path:
    lines = []
    for number in range(count):
        said = " ".join(f"word{number * 31 % 97} lamp{n * number % 11}" for n in range(words // 2))
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": f"Done, {number}."}]
        lines.append(json.dumps({"id": f"d{number}", "messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_report_tells_the_files_as_they_are(f16: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    data = dialogues(tmp_path / "data.jsonl", 30)
    options = QuantizeOptions(
        model=f16, out=tmp_path / "out", type="Q4_0", also=("Q8_0", "Q3_K_M"),
        imatrix_data=data, imatrix_chunks=2, imatrix_context=64,
    )  # fmt: skip
    result = run(options, events.append)
    told = report.load(result.outputs["report"])

    assert [file.file for file in told.files] == [
        "model-Q4_0.gguf",
        "others/model-Q8_0.gguf",
        "others/model-Q3_K_M.gguf",
    ]
    for file in told.files:
        found = describe(options.out / file.file)
        assert sha256_file(found.path) == file.sha256
        assert {share.type: share.bytes for share in file.types} == found.bytes_by_type
        assert file.bytes == found.bytes == found.path.stat().st_size
        assert file.bits_per_weight == pytest.approx(8 * found.tensor_bytes / 134515008, abs=1e-3)
        types = {tensor.name: tensor.type for tensor in found.tensors}
        for group in file.fallbacks:
            assert {types[name] for name in group.tensors} == {group.got}
            assert group.wanted != group.got
            assert group.reason == "rows of 576 weights are no multiple of 256"

    plain, large, mixed = told.files
    assert large.fallbacks == ()
    assert large.fallback_share == 0
    assert sum(len(group.tensors) for group in mixed.fallbacks) == 180
    assert {(group.wanted, group.got) for group in mixed.fallbacks} >= {("Q3_K", "Q4_0"), ("Q4_K", "Q5_0")}
    assert 0.5 < mixed.fallback_share < 1
    # The embedding serves as the output too, and no importance is measured for it.
    assert plain.without_imatrix == ("token_embd.weight",)

    assert told.imatrix is not None
    assert (told.imatrix.chunks, told.imatrix.context, told.imatrix.chat_template) == (2, 64, True)
    assert (options.out / "imatrix.gguf").is_file()
    assert result.metrics["bits_per_weight"] == plain.bits_per_weight
    assert any(isinstance(event, Log) and "fell back" in event.message for event in events)
    labels = {event.label for event in events if isinstance(event, Progress)}
    assert {"importance matrix", "quantize to Q4_0", "quantize to Q8_0"} <= labels
    assert not [path for path in options.out.rglob("*") if "partial" in path.name]


def test_the_same_inputs_give_the_same_bytes_anywhere(f16: Path, tmp_path: Path) -> None:
    hashes = set()
    for folder in ("one", "another"):
        data = dialogues(tmp_path / f"{folder}.jsonl", 12)
        result = run(
            QuantizeOptions(model=f16, out=tmp_path / folder, type="Q8_0", imatrix_data=data, imatrix_chunks=1, imatrix_context=64),
            silent,
        )  # fmt: skip
        assert list(result.outputs["others"].iterdir()) == []
        hashes.add((sha256_file(result.outputs["gguf"]), sha256_file(tmp_path / folder / "imatrix.gguf")))
    assert len(hashes) == 1


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(emit: object) -> LlamaCpp:
        raise AssertionError("work began")

    monkeypatch.setattr("pillm.quantize.run.ensure", refuse)


@pytest.mark.usefixtures("no_tools")
def test_types_that_need_an_importance_matrix_are_refused_before_work(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="IQ2_XS: cannot be made without an importance matrix") as caught:
        run(QuantizeOptions(model=f16, out=tmp_path / "out", type="Q8_0", also=("IQ2_XS",)), silent)
    assert "--imatrix-data" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_tools")
def test_a_quantized_source_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"already quantized \(Q4_1") as caught:
        run(QuantizeOptions(model=smollm2_gguf, out=tmp_path / "out", type="Q4_0"), silent)
    assert "f16" in caught.value.hint


@pytest.mark.usefixtures("no_tools")
def test_a_source_cut_in_half_is_refused(f16: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with f16.open("rb") as source:
        cut.write_bytes(source.read(f16.stat().st_size // 2))
    with pytest.raises(UsageError, match="cut off or damaged"):
        run(QuantizeOptions(model=cut, out=tmp_path / "out"), silent)


def test_too_few_dialogues_are_told_with_a_context_that_would_do(f16: Path, tmp_path: Path) -> None:
    data = dialogues(tmp_path / "data.jsonl", 2)
    with pytest.raises(UsageError, match="tokens are too few") as caught:
        run(QuantizeOptions(model=f16, out=tmp_path / "out", type="Q8_0", imatrix_data=data), silent)
    assert "--imatrix-context" in caught.value.hint
    assert not list((tmp_path / "out").glob("*.gguf"))


def test_bad_lines_of_the_data_are_all_told(f16: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"id": "a"}\nnot json\n')
    with pytest.raises(FindingsError) as caught:
        run(QuantizeOptions(model=f16, out=tmp_path / "out", type="Q8_0", imatrix_data=data), silent)
    assert [finding.line for finding in caught.value.findings] == [1, 2]


def test_calibration_has_the_asked_tokens_in_the_models_template(tools: LlamaCpp, f16: Path, tmp_path: Path) -> None:
    data = dialogues(tmp_path / "data.jsonl", 400)
    found = calibration(tools, describe(f16), data, chunks=4, context=128)
    ids = tokenize(tools, f16, found.text)
    assert found.chat_template
    assert found.chunks == 4
    assert len(ids) >= 4 * 128
    assert found.dialogues < 400
    assert ids.count(1) >= 2 * found.dialogues  # <|im_start|>, as one token
    # Evenly over the data, not its beginning.
    assert found.text.count("Done, 0.") == 1
    assert any(f"Done, {number}." in found.text for number in range(300, 400))


def test_dialogues_that_the_template_refuses_are_read_as_plain_words(
    tools: LlamaCpp, f16: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    call = {"type": "function", "function": {"name": "lamp", "arguments": {"on": True}}}
    lines = []
    for number in range(40):
        messages = [{"role": "user", "content": f"Turn lamp {number} on, please, since it is dark in here."}]
        messages.append({"role": "assistant", "tool_calls": [call]})  # type: ignore[dict-item]
        lines.append(json.dumps({"id": str(number), "messages": messages}))
    data.write_text("\n".join(lines))
    found = calibration(tools, describe(f16), data, chunks=2, context=32)
    assert not found.chat_template
    assert "Turn lamp 3 on" in found.text
    assert "<|im_start|>" not in found.text


# --- what llama-quantize wrote is checked, whatever it says ---


def fake_quantize(folder: Path, script: str) -> LlamaCpp:
    """A llama-quantize that does `script` with $1 source, $2 target."""
    folder.mkdir()
    tool = folder / "llama-quantize"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return LlamaCpp(folder, folder, "fake")


def test_a_truncated_file_is_not_published_though_the_tool_says_all_is_well(f16: Path, tmp_path: Path) -> None:
    tools = fake_quantize(tmp_path / "bin", 'head -c 100000000 "$1" > "$2"')
    with pytest.raises(GateError, match="wrote a broken file"):
        quantize(tools, f16, tmp_path / "out" / "small.gguf", "Q8_0")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_of_another_model_is_not_published(smollm2_gguf: Path, f16: Path, tmp_path: Path) -> None:
    import gguf

    other = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(other, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tools = fake_quantize(tmp_path / "bin", f'cp {other} "$2"')
    with pytest.raises(GateError, match="272 tensors are missing"):
        quantize(tools, f16, tmp_path / "out" / "small.gguf", "Q8_0")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_keeps_the_file_that_was_there(f16: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "small.gguf"
    target.parent.mkdir()
    target.write_bytes(b"the old one")
    tools = fake_quantize(tmp_path / "bin", 'head -c 1000 "$1" > "$2"; echo "error: no luck"; exit 1')
    with pytest.raises(PillmError, match="error: no luck"):
        quantize(tools, f16, target, "Q8_0")
    assert target.read_bytes() == b"the old one"
