"""A run against its history: which earlier runs count, and what is said where there are too few."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
import pytest

sys.path.append(str(Path(__file__).parents[1] / "history"))

from history_runs import made

from pillm.bench.compare.baseline import against
from pillm.bench.compare.options import CompareOptions
from pillm.bench.compare.run import run
from pillm.core.errors import GateError, UsageError
from pillm.core.events import Output, silent
from pillm.history import store
from pillm.history.document import State


def history(count: int = 12, spread: float = 0.004, **fields):
    chance = random.Random(2)
    return [
        made(n, decode=20 * chance.gauss(1, spread), prefill=90 * chance.gauss(1, spread), **fields)
        for n in range(count)
    ]


def judged(new, earlier, *more, **fields):
    """One run stands for three alike, unless `more` says otherwise."""
    again = more or [msgspec.structs.replace(new, id=f"again-{number}") for number in (1, 2)]
    return against([new, *again], earlier, **{"build": None, "needed": 8, "error": 0.01, "least": 1.03, **fields})


def test_a_slower_run_is_worse_and_a_like_one_the_same():
    assert judged(made(99, decode=18.0, prefill=81.0), history()).verdict == "worse"
    found = judged(made(99), history())
    assert (found.verdict, found.earlier) == ("same", 12)
    assert set(found.tests) == {
        "decode of 64 tokens at depth 0, 4 threads", "prefill of 256 tokens at depth 0, 4 threads",
    }  # fmt: skip
    assert judged(made(99, decode=22.0, prefill=99.0), history()).verdict == "better"


def test_one_or_two_slow_runs_are_no_alarm_and_the_median_of_three_stands_up_to_an_odd_one():
    slow, like = made(99, decode=15.0, prefill=70.0), made(98)
    for new in ([slow], [slow, made(100, decode=15.0, prefill=70.0)]):
        found = against(new, history(), build=None, needed=8, error=0.01, least=1.03)
        assert found.verdict == "cannot tell"
        assert found.reasons == (
            f"this looks worse, but odd runs happen: {3 - len(new)} more new {'runs tell' if len(new) == 1 else 'run tells'}",
        )
    assert against([like], history(), build=None, needed=8, error=0.01, least=1.03).verdict == "same"
    assert judged(slow, history(), like, made(97)).verdict == "same"
    assert judged(like, history(), slow, made(100, decode=15.0)).verdict == "worse"


@pytest.mark.parametrize("other", [made(100, build="bbb"), made(100, board="Raspberry Pi 4 Model B")])
def test_new_runs_of_two_series_are_not_judged_together(other):
    with pytest.raises(UsageError, match="cannot be judged together"):
        judged(made(99), history(), other)


def test_a_history_that_spreads_gives_no_alarm():
    assert judged(made(99, decode=18.0), history(spread=0.15)).verdict == "cannot tell"


def test_too_few_earlier_runs_say_how_many_are_missing():
    found = judged(made(99, decode=10.0), history(5))
    assert found.verdict == "cannot tell"
    assert found.reasons == ("8 earlier runs that can be compared are needed, there are 5: 3 more",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"valid": False}, "not valid"),
        ({"emulated": "qemu"}, "emulated"),
        ({"warnings": ("other programs used 40% of the processors",)}, "other programs"),
        ({"before": State(at_s=0.0, temperature_c=75.0)}, "warmer or colder"),
    ],
)
def test_earlier_runs_in_another_state_do_not_count(change, reason):
    earlier = [*history(8), made(50, decode=1.0, **change)]
    found = judged(made(99), earlier)
    assert (found.verdict, found.earlier) == ("same", 8)
    assert [count for why, count in found.left_out.items() if reason in why] == [1]


@pytest.mark.parametrize(
    ("field", "value", "reason"), [("governor", "powersave", "governor"), ("max_mhz", 1500.0, "clock")]
)
def test_other_settings_of_the_board_do_not_count(field, value, reason):
    other = made(50, decode=1.0)
    other = msgspec.structs.replace(other, board=msgspec.structs.replace(other.board, **{field: value}))
    found = judged(made(99), [*history(8), other])
    assert found.earlier == 8
    assert any(reason in why for why in found.left_out)


def test_a_test_with_another_cache_is_another_test():
    other = made(50, decode=1.0)
    other = msgspec.structs.replace(
        other, speeds=tuple(msgspec.structs.replace(speed, type_v="q8_0") for speed in other.speeds)
    )
    found = judged(made(99), [*history(8), other])
    assert found.verdict == "same"
    assert all(test.runs == 8 for test in found.tests.values())


def test_another_board_model_or_later_run_is_no_part_of_the_series():
    strangers = [made(50, decode=1.0, board="Raspberry Pi 4 Model B"), made(200, decode=1.0)]
    other = made(51, decode=1.0)
    strangers.append(msgspec.structs.replace(other, model=msgspec.structs.replace(other.model, weight_bytes=7)))
    found = judged(made(99), [*history(8), *strangers])
    assert (found.earlier, found.left_out) == (8, {})


def test_a_model_trained_anew_is_the_same_series():
    again = [
        msgspec.structs.replace(run, model=msgspec.structs.replace(run.model, sha256="cd" * 32)) for run in history(8)
    ]
    assert judged(made(99), again).earlier == 8


def test_other_threads_and_depths_are_other_tests():
    found = judged(made(99, threads=2, decode=10.0), history(12))
    assert found.verdict == "cannot tell"
    assert found.reasons == ("8 earlier runs that can be compared are needed, there are 0: 8 more",)


def test_a_new_build_is_compared_with_the_newest_build_that_has_enough_runs():
    earlier = [
        *history(9, build="old"),
        *(made(20 + n, decode=25.0 + 0.01 * n, prefill=110 + 0.1 * n, build="mid") for n in range(9)),
    ]
    found = judged(made(99, build="new", decode=20.0, prefill=90.0), earlier)
    assert (found.build, found.verdict) == ("llama.cpp mid", "worse")
    assert found.left_out == {"of another build (llama.cpp old)": 9}
    assert judged(made(99, build="new"), earlier, build="old").verdict == "same"


def test_a_run_that_does_not_count_itself_is_not_judged():
    found = judged(made(99, decode=5.0, valid=False, invalid=("throttled",)), history())
    assert (found.verdict, found.tests) == ("cannot tell", {})
    assert found.reasons == ("the run does not count itself: throttled",)


def test_a_run_on_a_busy_machine_is_no_alarm():
    found = judged(
        made(99, decode=5.0, warnings=("other programs used 90% of the processors during the run",)), history()
    )
    assert found.verdict == "cannot tell"
    assert found.reasons[0].startswith("other programs used 90%")


def test_the_command_reads_the_history_and_fails_where_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("PILLM_HISTORY", str(tmp_path / "history.sqlite"))
    store.add_all([(each, None) for each in history()])
    path = tmp_path / "bench.json"
    path.write_bytes(msgspec.json.encode(made(99, decode=17.0)))
    lines: list[str] = []
    others = [tmp_path / "bench2.json", tmp_path / "bench3.json"]
    for number, each in enumerate(others):
        each.write_bytes(msgspec.json.encode(made(100 + number, decode=17.0)))
    options = CompareOptions(models=(path, *others), baseline=True)
    result = run(options, lambda event: lines.append(event.line) if isinstance(event, Output) else None)
    assert result.metrics["verdict"] == "worse"
    assert lines[0] == "3 new runs, 12 earlier runs of this series count (llama.cpp aaaaaaa)"
    assert any(line.startswith("worse        decode of 64 tokens") for line in lines)
    with pytest.raises(GateError):
        run(CompareOptions(models=(path, *others), baseline=True, fail_on_worse=True), silent)
    assert run(CompareOptions(models=(path,), baseline=True), silent).metrics["verdict"] == "cannot tell"


def test_a_baseline_takes_runs_of_one_model():
    for models in ((Path("a.json"), Path("b.gguf")), (Path("a.gguf"), Path("b.gguf"))):
        with pytest.raises(UsageError, match="new runs of one model"):
            run(CompareOptions(models=models, baseline=True), silent)


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_model_is_measured_first_and_too_few_earlier_runs_are_told(monkeypatch, tools, smollm2_gguf, tmp_path):
    monkeypatch.setenv("PILLM_HISTORY", str(tmp_path / "history.sqlite"))
    lines: list[str] = []
    options = CompareOptions(models=(smollm2_gguf,), baseline=True, prompt_tokens=8, gen_tokens=2, threads=1)
    result = run(options, lambda event: lines.append(event.line) if isinstance(event, Output) else None)
    assert result.metrics == {"verdict": "cannot tell", "new_runs": 1, "earlier_runs": 0}
    assert any("cannot tell:" in line for line in lines)
    (kept,) = store.runs()
    assert {(speed.what, speed.tokens, speed.threads) for speed in kept.speeds} == {("prefill", 8, 1), ("decode", 2, 1)}
