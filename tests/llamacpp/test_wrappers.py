"""The tools' wrappers against the real tools. Speeds are not looked at, only that they are told."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from pillm.core.errors import MissingError, PillmError, ResourceError, UsageError
from pillm.core.events import Event, Progress
from pillm.llamacpp import logits, perplexity
from pillm.llamacpp.bench import bench
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.imatrix import imatrix
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.quantize import quantize
from pillm.llamacpp.tokenize import tokenize
from pillm.llamacpp.tool import call, telling_line

pytestmark = [pytest.mark.llamacpp, pytest.mark.model]


@pytest.fixture(scope="module")
def saved(tools: LlamaCpp, f16: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logits") / "logits.bin"
    perplexity.perplexity(tools, f16, text_file, context=128, chunks=2, save_logits=path)
    return path


def test_tokens_come_with_and_without_markers(tools: LlamaCpp, smollm2_gguf: Path) -> None:
    assert tokenize(tools, smollm2_gguf, "<|im_start|>user") == [1, 4093]
    assert len(tokenize(tools, smollm2_gguf, "<|im_start|>user", parse_special=False)) > 2
    assert tokenize(tools, smollm2_gguf, "") == []


def test_tokens_keep_backslashes_and_the_last_line_break(tools: LlamaCpp, smollm2_gguf: Path) -> None:
    line_break = tokenize(tools, smollm2_gguf, "\n")
    assert tokenize(tools, smollm2_gguf, r"\n") != line_break
    assert tokenize(tools, smollm2_gguf, "a\n") == tokenize(tools, smollm2_gguf, "a") + line_break


def test_a_file_does_not_diverge_from_itself(tools: LlamaCpp, f16: Path, saved: Path) -> None:
    found = perplexity.kl_divergence(tools, f16, saved)
    assert found.tokens == 2 * 63
    assert abs(found.kl_mean) < 1e-4
    assert found.same_top > 0.99
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=0.01)


def test_a_quantized_file_diverges_with_error_bars(
    tools: LlamaCpp, smollm2_gguf: Path, saved: Path, f16: Path, tmp_path: Path
) -> None:
    small = quantize(tools, f16, tmp_path / "small.gguf", "Q4_0").file.path
    events: list[Event] = []
    found = perplexity.kl_divergence(tools, small, saved, emit=events.append)
    assert 0.01 < found.kl_mean < found.kl_99 <= found.kl_max
    assert found.kl_median < found.kl_mean
    assert 0.3 < found.same_top < 1
    assert 0 < found.same_top_error < 0.1
    assert found.kl_error > 0
    assert found.log_ratio_error > 0
    assert [event.done for event in events if isinstance(event, Progress)][-1] == 2


def test_perplexity_tells_chunks_and_error(tools: LlamaCpp, f16: Path, text_file: Path) -> None:
    found = perplexity.perplexity(tools, f16, text_file, context=64, chunks=3)
    assert (found.chunks, found.tokens) == (3, 3 * 31)
    assert found.value > 1
    assert 0 < found.error < found.value


def test_a_text_too_short_for_perplexity_is_told(tools: LlamaCpp, f16: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.", encoding="utf-8")
    with pytest.raises(UsageError, match="need at least 128 tokens"):
        perplexity.perplexity(tools, f16, short, context=64)


def test_logits_of_another_vocabulary_are_refused(tools: LlamaCpp, f16: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.bin"
    rows = logits.measured(256) * (2 * 4 + 4) * 2
    path.write_bytes(b"_logits_" + struct.pack("<3i", 256, 7, 1) + bytes(4 * 256) + bytes(rows))
    with pytest.raises(UsageError, match="49152 tokens, the saved logits have 7"):
        perplexity.kl_divergence(tools, f16, path)


def test_logits_written_here_are_those_that_the_tool_saved(saved: Path, tmp_path: Path) -> None:
    import numpy as np

    header = logits.read_header(saved)

    def rows(path: Path) -> tuple[Any, Any, Any]:
        """Tokens, scales, steps."""
        raw, count = path.read_bytes()[20:], header.chunks * header.context
        table = np.frombuffer(raw, "<u2", offset=4 * count).reshape(header.tokens, header.vocabulary + 4)
        tokens = np.frombuffer(raw, "<i4", count).reshape(header.chunks, header.context)
        return tokens, table[:, :2].copy().view("<f4"), table[:, 4:].astype(np.int32)

    tokens, scale, steps = rows(saved)
    mine = tmp_path / "mine.bin"
    each_chunk = (scale * steps).astype(np.float32).reshape(header.chunks, -1, header.vocabulary)
    logits.write(mine, tokens, iter(each_chunk), header.vocabulary)
    assert logits.read_header(mine) == header
    tokens_again, scale_again, steps_again = rows(mine)
    assert (tokens_again == tokens).all()
    assert np.allclose(scale_again, scale, rtol=1e-5)
    assert np.abs(steps_again - steps).max() <= 1


def test_a_cut_or_foreign_logits_file_is_told(saved: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(UsageError, match="cut off"):
        logits.read_header(cut)
    cut.write_bytes(b"something else, long enough to hold a header")
    with pytest.raises(UsageError, match="not a file of saved logits"):
        logits.read_header(cut)


def test_output_without_numbers_is_an_error() -> None:
    with pytest.raises(PillmError, match="Mean    KLD"):
        perplexity.parse_divergence("main: something went wrong\n", 100)
    with pytest.raises(PillmError, match="nan"):
        perplexity.parse_divergence("Mean    KLD:        nan ±        nan\n", 100)


def test_an_importance_matrix_improves_a_low_bit_file(
    tools: LlamaCpp, f16: Path, text_file: Path, saved: Path, tmp_path: Path
) -> None:
    matrix = tmp_path / "imatrix.gguf"
    assert imatrix(tools, f16, text_file, matrix, context=64, chunks=6) == 6
    plain = quantize(tools, f16, tmp_path / "plain.gguf", "Q4_0")
    careful = quantize(tools, f16, tmp_path / "careful.gguf", "Q4_0", imatrix=matrix)
    assert careful.without_imatrix == ("token_embd.weight",)
    before, after = (perplexity.kl_divergence(tools, made.file.path, saved).kl_mean for made in (plain, careful))
    assert after < before
    # Nothing of where the matrix lay may enter the file: its hash would change with the folder.
    named = [value for value in careful.file.metadata.values() if isinstance(value, str) and str(tmp_path) in value]
    assert named == []


def test_a_text_too_short_for_an_importance_matrix_is_told(tools: LlamaCpp, f16: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.", encoding="utf-8")
    with pytest.raises(PillmError, match="need at least"):
        imatrix(tools, f16, short, tmp_path / "imatrix.gguf", context=64, chunks=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.txt"]


def test_logits_and_matrices_that_find_no_room_are_told(
    tools: LlamaCpp, f16: Path, text_file: Path, small_disk: Path
) -> None:
    with pytest.raises(ResourceError, match="disk is full"):
        perplexity.perplexity(tools, f16, text_file, context=64, chunks=2, save_logits=small_disk / "logits.bin")
    (small_disk / "logits.bin").unlink()
    (small_disk / "ballast").write_bytes(bytes(800_000))
    with pytest.raises(ResourceError, match="disk is full"):
        imatrix(tools, f16, text_file, small_disk / "imatrix.gguf", context=64, chunks=1)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_bench_tells_each_test(tools: LlamaCpp, smollm2_gguf: Path) -> None:
    events: list[Event] = []
    found = bench(
        tools,
        smollm2_gguf,
        prompt_tokens=8,
        gen_tokens=2,
        repetitions=2,
        threads=(1,),
        depths=(0, 4),
        emit=events.append,
    )
    assert [(t.n_prompt, t.n_gen, t.n_depth) for t in found] == [(8, 0, 0), (0, 2, 0), (8, 0, 4), (0, 2, 4)]
    assert all(t.avg_ts > 0 and len(t.samples_ts) == 2 and t.n_threads == 1 for t in found)
    assert found[0].model_n_params == describe(smollm2_gguf).parameters


def test_a_cut_model_is_told_before_any_tool_runs(smollm2_gguf: Path, text_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as source:
        cut.write_bytes(source.read(50_000_000))
    no_tools = LlamaCpp(tmp_path, tmp_path, "none")
    for work in (
        lambda: bench(no_tools, cut, prompt_tokens=8, gen_tokens=0, repetitions=1),
        lambda: perplexity.perplexity(no_tools, cut, text_file, context=64),
        lambda: imatrix(no_tools, cut, text_file, tmp_path / "imatrix.gguf", context=64, chunks=1),
        lambda: quantize(no_tools, cut, tmp_path / "small.gguf", "Q4_0"),
    ):
        with pytest.raises(UsageError, match="cut off or damaged"):
            work()


def test_what_a_tool_died_of_is_quoted_and_its_log_kept(tools: LlamaCpp, smollm2_gguf: Path) -> None:
    with pytest.raises(
        PillmError, match=r"llama-tokenize failed \(exit code 1\): error: invalid argument: --nope"
    ) as caught:
        call(tools, "llama-tokenize", ["--model", str(smollm2_gguf), "--nope"])
    log = Path(caught.value.hint.removeprefix("its log is "))
    assert "--nope" in log.read_text()


def test_a_crash_is_called_a_crash(tmp_path: Path) -> None:
    script = tmp_path / "llama-bench"
    script.write_text("#!/bin/sh\necho loading; kill -SEGV $$\n")
    script.chmod(0o755)
    with pytest.raises(PillmError, match=r"llama-bench crashed \(Segmentation fault\); its last line: loading"):
        call(LlamaCpp(tmp_path, tmp_path, "fake"), "llama-bench", [])


def test_a_tool_that_is_gone_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="llama-bench"):
        LlamaCpp(tmp_path, tmp_path, "fake").tool("llama-bench")


def test_the_telling_line_is_the_first_cause() -> None:
    said = (
        "0.00.016.024 E llama_model_load: error loading model: tensor 'x' data is not within the file bounds\n"
        "0.00.016.053 E llama_model_load_from_file_impl: failed to load model\n"
        "0.00.027.107 E srv  llama_server: exiting due to model loading error\n"
    )
    assert telling_line(said) == "llama_model_load: error loading model: tensor 'x' data is not within the file bounds"
    assert telling_line("") == "it said nothing"
    assert telling_line("all\nwell\n") == "well"
