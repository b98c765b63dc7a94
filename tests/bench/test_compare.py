"""Comparisons: real llama-bench processes on the real SmolLM2, kept short; and the rules of pairing on made-up samples."""

from __future__ import annotations

import itertools
import math
import random
import shutil
from pathlib import Path

import pytest

from pillm.bench.compare.options import CompareOptions
from pillm.bench.compare.pairing import Design, compare, disturbed, log_ratio, take
from pillm.bench.compare.run import run, tools_in
from pillm.bench.compare.sampling import Lengths, Pair, Sample, Side, default_threads, sample
from pillm.core.errors import GateError, MissingError, PillmError, UsageError
from pillm.core.events import Log, Output, silent
from pillm.core.host import cores
from pillm.llamacpp.install import LlamaCpp

LENGTHS = Lengths(prompt_tokens=8, gen_tokens=2, depth=0, threads=1, repetitions=2)
NOWHERE = Side("A", LlamaCpp(Path("/nowhere"), Path("/nowhere"), "0"), Path("/nowhere/m.gguf"))


def design(**fields) -> Design:
    values = {"lengths": LENGTHS, "pairs": 20, "error": 0.01, "least": 1.03, "seed": 1, "wait_s": 0.0}
    return Design(**{**values, **fields})


def made(prefill: float, decode: float, others: float = 0.0) -> Sample:
    return Sample(
        prefill_ns=(int(prefill * 1e9), int(prefill * 2e9)), decode_ns=(int(decode * 1.5e9), int(decode * 1e9)),
        seconds=1.0, others=others,
    )  # fmt: skip


def imitation(slower: float = 1.0, noise: float = 0.02, busy: float = 0.0):
    """Samples of no real process: B takes `slower` times as long; a share `busy` of the pairs is disturbed."""
    chance = random.Random(9)

    def pair(a, b, lengths, coin) -> Pair:
        others = cores() * 1.0 if chance.random() < busy else 0.0
        times = [math.exp(chance.gauss(0, noise)) for _ in range(4)]
        return Pair(
            a=made(times[0], times[1]),
            b=made(times[2] * slower, times[3] * slower, others),
            b_first=coin.random() < 0.5,
        )

    return pair


def test_the_figure_of_a_pair_is_the_log_of_the_fastest_repetitions():
    taken = Pair(a=made(1.0, 2.0), b=made(1.1, 1.0), b_first=False)
    assert log_ratio(taken, "prefill") == pytest.approx(math.log(1.1))
    assert log_ratio(taken, "decode") == pytest.approx(math.log(0.5))


def test_the_coin_orders_pairs_independently_and_again_with_the_same_seed():
    def orders(seed: int) -> list[bool]:
        return [
            taken.b_first for taken, _ in take(NOWHERE, NOWHERE, design(seed=seed, pairs=200), measured=imitation())
        ]

    first = orders(3)
    assert first == orders(3) != orders(4)
    assert 70 < sum(first) < 130
    # No block is balanced on purpose: runs of equal orders are as long as a coin makes them.
    assert max(len(list(group)) for _, group in itertools.groupby(first)) >= 4


def test_disturbed_pairs_are_taken_again_as_often_as_pairs_count():
    taken = list(take(NOWHERE, NOWHERE, design(pairs=20), measured=imitation(busy=0.3)))
    counted = [pair for pair, counts in taken if counts]
    assert len(counted) == 20
    assert not any(disturbed(pair, 1) for pair in counted)
    assert len(taken) > 20


def test_on_a_machine_that_is_never_calm_disturbed_pairs_count_in_the_end():
    taken = list(take(NOWHERE, NOWHERE, design(pairs=10), measured=imitation(busy=1.0)))
    assert [counts for _, counts in taken] == [False] * 10 + [True] * 10


def test_whether_a_pair_is_disturbed_does_not_depend_on_which_side_saw_it():
    loud, calm = made(1, 1, others=99.0), made(1, 1)
    assert (
        disturbed(Pair(a=loud, b=calm, b_first=False), 1) == disturbed(Pair(a=calm, b=loud, b_first=False), 1) is True
    )


@pytest.mark.parametrize(("slower", "verdict"), [(1.2, "worse"), (0.8, "better"), (1.0, "same")])
def test_a_clear_answer_ends_the_comparison_early(slower, verdict):
    found = compare(NOWHERE, NOWHERE, design(), measured=imitation(slower=slower, noise=0.004))
    assert found.verdict == verdict
    assert len(found.pairs) == 10
    assert {name: judged.verdict for name, judged in found.measures.items()} == dict.fromkeys(
        ("decode", "prefill"), verdict
    )


def test_noise_uses_every_pair_and_ends_without_an_alarm():
    found = compare(NOWHERE, NOWHERE, design(), measured=imitation(noise=0.5))
    assert (found.verdict, len(found.pairs)) == ("cannot tell", 20)
    assert all(judged.needed > 20 for judged in found.measures.values())


def test_a_length_of_zero_leaves_a_measure_out():
    only = Lengths(prompt_tokens=0, gen_tokens=2, depth=0, threads=1, repetitions=2)
    assert list(compare(NOWHERE, NOWHERE, design(lengths=only), measured=imitation()).measures) == ["decode"]


def test_by_default_one_core_is_left_to_others():
    assert default_threads() == max(cores() - 1, 1)


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_sample_is_a_process_with_the_repetitions_asked_for(tools, smollm2_gguf):
    taken = sample(Side("A", tools, smollm2_gguf), LENGTHS)
    assert len(taken.prefill_ns) == len(taken.decode_ns) == 2
    assert min(*taken.prefill_ns, *taken.decode_ns) > 0
    assert 0 <= taken.others <= cores()


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_model_and_its_copy_are_compared_and_the_answer_is_told(tools, smollm2_gguf, tmp_path):
    copy = shutil.copy(smollm2_gguf, tmp_path / "copy.gguf")
    options = CompareOptions(
        models=(smollm2_gguf, Path(copy)), pairs=6, prompt_tokens=4, gen_tokens=1, repetitions=1, wait=0, seed=5
    )  # fmt: skip
    events: list[object] = []
    result = run(options, events.append)
    lines = [event.line for event in events if isinstance(event, Output)]
    assert lines[0].startswith(f"A  {smollm2_gguf}")
    assert any(line.startswith("decode") for line in lines)
    assert any(line.startswith("prefill") for line in lines)
    assert any(line.startswith("verdict") for line in lines)
    # Six pairs cannot show anything with 1 % false alarms, and that is said beforehand.
    assert any(isinstance(event, Log) and "6 pairs cannot show" in event.message for event in events)
    assert result.metrics["verdict"] in ("same", "cannot tell")
    assert isinstance(result.document, dict)
    assert len(result.document["pairs"]) == 6


@pytest.fixture
def slow_build(tools, tmp_path) -> Path:
    """The real llama-bench, but the nanoseconds it gives are four times as long: an imitation of a slow build."""
    script = tmp_path / "slow" / "bin" / "llama-bench"
    script.parent.mkdir(parents=True)
    script.write_text(
        f"""#!/bin/sh
case "$*" in *--help*|*--version*) exec {tools.tool("llama-bench")} "$@";; esac
{tools.tool("llama-bench")} "$@" > "$0.$$" || exit 1
python3 -c '
import json, sys
rows = json.load(open(sys.argv[1]))
for row in rows: row["samples_ns"] = [4 * value for value in row["samples_ns"]]
print(json.dumps(rows))' "$0.$$"
"""
    )
    script.chmod(0o755)
    return tmp_path / "slow"


@pytest.mark.llamacpp
@pytest.mark.model
def test_two_builds_are_compared_and_a_slow_one_fails_the_gate(tools, smollm2_gguf, slow_build):
    options = CompareOptions(
        models=(smollm2_gguf,), tools_b=slow_build, pairs=10, prompt_tokens=0, gen_tokens=1, repetitions=1, wait=0,
        fail_on_worse=True,
    )  # fmt: skip
    lines: list[str] = []
    with pytest.raises(GateError, match="worse"):
        run(options, lambda event: lines.append(event.line) if isinstance(event, Output) else None)
    assert any(line.startswith("decode   worse") for line in lines)


def test_the_tools_of_another_build_must_be_there(tmp_path):
    with pytest.raises(MissingError, match="no llama-bench"):
        tools_in(tmp_path)


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_build_that_does_not_measure_is_told(tools, smollm2_gguf, tmp_path):
    script = tmp_path / "llama-bench"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    with pytest.raises(PillmError, match="gives no results"):
        sample(Side("B", tools_in(tmp_path), smollm2_gguf), LENGTHS)


def test_one_model_alone_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="nothing to compare with"):
        run(CompareOptions(models=(tmp_path / "a.gguf",)), silent)
    with pytest.raises(UsageError, match="more than two"):
        run(CompareOptions(models=(tmp_path / "a.gguf",) * 3), silent)


def test_what_is_no_gguf_file_is_a_usage_error(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"PK not a model")
    with pytest.raises(UsageError, match="not a GGUF file"):
        run(CompareOptions(models=(tmp_path / "a.gguf", tmp_path / "b.gguf")), silent)


@pytest.mark.model
def test_nothing_to_measure_is_a_usage_error(tools, smollm2_gguf):
    with pytest.raises(UsageError, match="nothing to measure"):
        run(CompareOptions(models=(smollm2_gguf, smollm2_gguf), prompt_tokens=0, gen_tokens=0), silent)
