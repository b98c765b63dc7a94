"""The whole stage on the real SmolLM2 and the real llama.cpp, with a handful of dialogues."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillm.core import jsonl
from pillm.core.errors import FindingsError, GateError, UsageError
from pillm.core.events import Log, silent
from pillm.core.records import Function, FunctionCall, Message, Record, Tool, ToolCall
from pillm.evaluate import run as stage
from pillm.evaluate.journal import NAME as JOURNAL
from pillm.evaluate.options import EvaluateOptions
from pillm.evaluate.report import load, load_answers
from pillm.llamacpp.tool import call as run_tool

TIMER = Tool(
    Function(
        "set_timer",
        "Start a timer",
        {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    )
)


def call(minutes: int) -> Message:
    return Message("assistant", tool_calls=(ToolCall(FunctionCall("set_timer", {"minutes": minutes})),))


def dialogue(number: int, *turns: Message, tags: tuple[str, ...], locale: str = "en-US") -> Record:
    """Two earlier calls in the dialogue are example enough for the untrained model to call too."""
    before = []
    for earlier in (3, 8):
        before += [Message("user", f"Set a timer for {earlier} minutes"), call(earlier), Message("tool", "ok")]
    return Record(f"r{number}", (*before, *turns), (TIMER,), locale=locale, tags=tags)


RECORDS = [
    dialogue(0, Message("user", "Set a timer for 5 minutes"), call(5), tags=("kind:call", "tool:set_timer")),
    dialogue(
        1, Message("user", "Set a timer for 7 minutes"), call(70), tags=("kind:call", "tool:set_timer"), locale="fr-CA"
    ),
    dialogue(2, Message("user", "Set a timer"), Message("assistant", "How long?"), tags=("kind:ask",)),
    Record("r3", (Message("user", "hello " * 1500), Message("assistant", "hi")), tags=("kind:chat",)),
    Record("p", (Message("user", "a prompt nobody answered"),)),
]


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "heldout.jsonl"
    jsonl.write(path, RECORDS)
    return path


def options(model: Path, data: Path, out: Path, **more: object) -> EvaluateOptions:
    settings = {"chat_template": "chatml-tools", "max_tokens": 40, "context": 512, "chunk_tokens": 64, "chunks": 4}
    return EvaluateOptions(model=str(model), data=data, out=out, **settings | more)  # type: ignore[arg-type]


@pytest.mark.llamacpp
@pytest.mark.model
def test_quality_and_answers_are_published_with_every_verdict(tools, smollm2_gguf, data, tmp_path):
    out = tmp_path / "out"
    result = stage.run(options(smollm2_gguf, data, out), silent)
    quality, answers = load(out / "quality.json"), load_answers(out / "answers.jsonl")
    assert [answer.id for answer in answers] == ["r0", "r1", "r2", "r3"]
    assert [answer.right for answer in answers] == [True, False, False, False]
    assert answers[1].reason == "the argument minutes differs"
    assert answers[1].name_right
    assert answers[3].got.failure == "too-long"
    assert quality.failures == {"too-long": 1}
    assert (quality.records, quality.asked) == (5, 4)
    assert (quality.overall.exact_match.hits, quality.overall.exact_match.n) == (1, 2)
    assert quality.by_locale["fr-CA"].exact_match.hits == 0
    assert quality.by_tool["set_timer"].tool_name.value == 1
    assert quality.overall.json_validity.value == 1
    assert quality.overall.ask_back.value == 0
    assert quality.model.chat_template == "chatml-tools"
    (row,) = quality.closeness
    assert (row.role, row.kl_mean) == ("model", None)
    assert row.perplexity > 1
    assert result.metrics["exact_match"] == 0.5
    assert not (out / JOURNAL).exists()
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "quality.json"]


@pytest.mark.llamacpp
@pytest.mark.model
def test_closeness_is_measured_against_the_reference_for_the_model_and_the_others(tools, smollm2_gguf, data, tmp_path):
    coarse, others, out = tmp_path / "coarse.gguf", tmp_path / "others", tmp_path / "out"
    run_tool(tools, "llama-quantize", ["--allow-requantize", str(smollm2_gguf), str(coarse), "Q2_K"])
    others.mkdir()
    (others / "same.gguf").symlink_to(smollm2_gguf)
    (others / "copy.gguf").write_bytes(smollm2_gguf.read_bytes())
    stage.run(options(coarse, data, out, limit=2, chunk_tokens=96, reference=smollm2_gguf, also=others), silent)
    reference, model, also = load(out / "quality.json").closeness
    assert (reference.role, model.role, also.role) == ("reference", "model", "also")
    assert also.file == "copy.gguf"
    assert also.kl_mean == pytest.approx(0, abs=1e-3)
    assert also.same_top > 0.99
    assert model.kl_mean > 10 * max(also.kl_mean, 1e-3)
    assert model.kl_p99 > model.kl_mean
    assert model.same_top < 0.95
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "quality.json"]


@pytest.mark.llamacpp
@pytest.mark.model
def test_too_little_text_skips_the_closeness_and_says_so(tools, smollm2_gguf, tmp_path):
    data = tmp_path / "short.jsonl"
    jsonl.write(data, [Record("a", (Message("user", "Say hello."), Message("assistant", "hello")))])
    events: list[object] = []
    stage.run(options(smollm2_gguf, data, tmp_path / "out", max_tokens=2, chunk_tokens=512), events.append)
    quality = load(tmp_path / "out/quality.json")
    assert quality.closeness == []
    assert "shorter than two chunks of 512 tokens" in quality.closeness_text
    assert any(isinstance(event, Log) and "no perplexity" in event.message for event in events)


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_gate_fails_after_the_report_is_published(tools, smollm2_gguf, data, tmp_path):
    with pytest.raises(GateError, match=r"50\.0%, lower than the 75\.0%") as error:
        stage.run(
            options(smollm2_gguf, data, tmp_path / "out", limit=3, min_exact_match=0.75, chunk_tokens=4096), silent
        )
    assert "answers.jsonl" in error.value.hint
    assert load(tmp_path / "out/quality.json").overall.exact_match.value == 0.5


@pytest.mark.llamacpp
@pytest.mark.model
def test_answers_of_a_killed_run_are_not_asked_again(tools, smollm2_gguf, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as broken:
        # The run ends between the answers and the rest, as a kill would end it.
        broken.setattr(stage.closeness, "measure", _stop)
        with pytest.raises(_Stopped):
            stage.run(options(smollm2_gguf, data, out, limit=2, chunk_tokens=4096), silent)
    assert (out / JOURNAL).is_file()
    assert not (out / "quality.json").exists()
    # An answer that the model would not give shows whether it was asked again.
    journal = (out / JOURNAL).read_text()
    (out / JOURNAL).write_text(journal.replace('"minutes":5', '"minutes":55'))
    stage.run(options(smollm2_gguf, data, out, limit=2, chunk_tokens=4096), silent)
    kept = load_answers(out / "answers.jsonl")[0]
    assert kept.got.calls[0].arguments == {"minutes": 55}


class _Stopped(BaseException):
    pass


def _stop(*_: object) -> None:
    raise _Stopped


@pytest.mark.llamacpp
@pytest.mark.model
@pytest.mark.parametrize("role", ["model", "reference", "also"])
def test_a_file_cut_in_half_is_a_usage_error_before_anything_is_asked(tools, smollm2_gguf, data, tmp_path, role):
    half = tmp_path / "others/half.gguf"
    half.parent.mkdir()
    whole = smollm2_gguf.read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    model = half if role == "model" else smollm2_gguf
    more = {"reference": half} if role == "reference" else {"reference": smollm2_gguf, "also": half.parent}
    with pytest.raises(UsageError, match=r"half\.gguf: the file is cut off"):
        stage.run(options(model, data, tmp_path / "out", **({} if role == "model" else more)), silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_reference_of_another_model_is_a_usage_error(tools, smollm2_gguf, data, tmp_path):
    from gguf import GGUFWriter

    other = tmp_path / "other.gguf"
    writer = GGUFWriter(other, "llama")
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UsageError, match="has 2 tokens"):
        stage.run(options(smollm2_gguf, data, tmp_path / "out", reference=other), silent)


def test_a_folder_of_safetensors_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="evaluate measures GGUF files"):
        stage.gguf(tmp_path)


def test_bad_lines_are_findings_before_anything_is_started(tmp_path):
    data = tmp_path / "bad.jsonl"
    data.write_text('{"id": 1}\nnot json\n')
    with pytest.raises(FindingsError) as error:
        stage.run(options(tmp_path / "no.gguf", data, tmp_path / "out"), silent)
    assert [finding.line for finding in error.value.findings] == [1, 2]
