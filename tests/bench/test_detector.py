"""The detector on numbers: what is exact is held exactly, what is a rate is counted on noise of bad kinds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pillm.bench.compare import detector
from pillm.bench.compare.detector import Look, drift, follow, interval, judge, looks, overall, walsh

LEAST = math.log(1.03)


def test_the_exact_distribution_is_that_of_all_patterns_of_signs():
    sums = [
        sum(rank for rank, sign in zip(range(1, 9), signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=8)
    ]
    expected = [sum(value <= w for value in sums) / 256 for w in range(37)]
    assert detector._cumulative(8) == pytest.approx(expected, abs=1e-15)


def test_the_interval_excludes_zero_just_when_scipys_signed_rank_test_rejects():
    rng = np.random.default_rng(3)
    for _ in range(200):
        d = rng.normal(0.02, 0.03, 15)
        tail = float(rng.uniform(0.0005, 0.05))
        low, high = interval(walsh(d), 15, tail)
        assert (low > 0) == (stats.wilcoxon(d, alternative="greater", method="exact").pvalue <= tail)
        assert (high < 0) == (stats.wilcoxon(d, alternative="less", method="exact").pvalue <= tail)


def test_the_estimate_is_the_median_of_the_walsh_averages():
    d = [0.1, 0.3, 1.0]
    assert walsh(d).tolist() == pytest.approx(sorted([0.1, 0.3, 1.0, 0.2, 0.55, 0.65]))
    found = judge(d, Look(3, 0.2, 0.2), LEAST)
    assert found.ratio == pytest.approx(math.exp((0.3 + 0.55) / 2))


def test_too_few_pairs_give_no_interval_and_no_verdict():
    found = judge([0.5] * 5, looks(5, 0.005)[-1], LEAST)
    assert (found.verdict, found.low, found.high) == ("cannot tell", 0.0, math.inf)


@pytest.mark.parametrize("pairs", [6, 10, 11, 14, 20, 40, 100])
@pytest.mark.parametrize("error", [0.2, 0.01, 0.005])
def test_the_looks_share_the_error_and_end_with_the_last_pair(pairs, error):
    plan = looks(pairs, error)
    assert [look.pairs for look in plan] == sorted({look.pairs for look in plan})
    assert plan[-1].pairs == pairs
    assert sum(look.alarm_tail for look in plan) == pytest.approx(error / 2)
    assert all(0.5**look.pairs <= look.alarm_tail for look in plan[:-1])


def test_the_error_over_all_looks_is_exact_for_every_size_of_the_noise():
    """All 2^12 patterns of signs of given sizes, as the coin makes them alike: the share of verdicts is the error."""
    plan = (Look(8, 0.01, 0.0), Look(12, 0.015, 0.0))
    for sizes in (np.linspace(0.05, 0.2, 12), np.exp(np.linspace(-2.5, 2.0, 12)), np.array([0.05] * 6 + [5.0] * 6)):
        false = 0
        for signs in itertools.product((-1, 1), repeat=12):
            false += follow(sizes * np.array(signs), plan, 1e-9).verdict in ("worse", "better")
        assert false / 2**12 <= 2 * (0.01 + 0.015)


NOISES = {
    "normal": lambda rng, n: rng.normal(0, 0.04, n),
    "spikes": lambda rng, n: rng.normal(0, 0.02, n) + (rng.random(n) < 0.2) * rng.exponential(0.7, n),
    "heavy tails": lambda rng, n: rng.standard_t(1.5, n) * 0.02,
    "drift": lambda rng, n: np.linspace(0, 0.4, n) + rng.normal(0, 0.02, n),
}


@pytest.mark.parametrize("noise", NOISES)
def test_false_alarms_stay_below_the_error_under_noise_of_bad_kinds(noise):
    rng = np.random.default_rng(11)
    plan = looks(20, 0.01)
    false = 0
    for _ in range(2000):
        # Times of 40 samples in a row; a coin says which of each two is B.
        times = NOISES[noise](rng, 40).reshape(20, 2)
        d = (times[:, 1] - times[:, 0]) * rng.choice((-1, 1), 20)
        false += follow(d, plan, LEAST).verdict in ("worse", "better")
    # At most 1 %: fewer than 35 of 2000 have a chance of more than 99.9 % then.
    assert false < 35


@pytest.mark.parametrize(("slower", "least_caught"), [(1.05, 0.80), (1.10, 0.95)])
def test_slow_downs_are_caught_at_a_noise_of_four_percent(slower, least_caught):
    rng = np.random.default_rng(5)
    plan = looks(20, 0.005)
    found = [follow(rng.normal(math.log(slower), 0.04, 20), plan, LEAST) for _ in range(300)]
    assert sum(one.verdict == "worse" for one in found) / 300 >= least_caught
    assert sum(one.verdict == "better" for one in found) == 0
    mirrored = [follow(rng.normal(-math.log(slower), 0.04, 20), plan, LEAST) for _ in range(300)]
    assert sum(one.verdict == "better" for one in mirrored) / 300 >= least_caught


def test_a_clear_answer_stops_early():
    rng = np.random.default_rng(5)
    plan = looks(20, 0.005)
    assert follow(rng.normal(0.1, 0.01, 20), plan, LEAST).pairs == plan[0].pairs
    assert follow(rng.normal(0.0, 0.005, 20), plan, LEAST).verdict == "same"


def test_a_change_that_is_sure_but_too_small_to_matter_is_the_same():
    d = np.random.default_rng(1).normal(0.01, 0.002, 20)
    found = judge(d, looks(20, 0.01)[-1], LEAST)
    assert found.low > 1
    assert found.verdict == "same"


def test_what_may_last_without_meaning_is_no_alarm():
    """An interval that ends just above 0 is news only if it ends above half a percent."""
    look = looks(20, 0.01)[-1]
    d = np.linspace(-0.01, 0.09, 20)
    low = math.log(judge(d, look, LEAST).low)
    assert judge(d - low + 0.007, look, LEAST).verdict != "worse"
    assert judge(d - low + 0.008, look, LEAST).verdict == "worse"


def test_a_machine_that_is_too_noisy_gives_no_verdict_and_says_how_many_pairs_it_would_take():
    d = np.random.default_rng(1).normal(0.0, 0.5, 20)
    found = judge(d, looks(20, 0.01)[-1], LEAST)
    assert found.verdict == "cannot tell"
    assert found.needed is not None
    assert found.needed > 1000
    assert judge(np.full(20, 0.2) + d / 1000, looks(20, 0.01)[-1], LEAST).needed is None


def test_one_spike_does_not_change_the_verdict():
    rng = np.random.default_rng(4)
    d = rng.normal(0.1, 0.01, 20)
    d[7] = -3.0
    found = follow(d, looks(20, 0.01), LEAST)
    assert found.verdict == "worse"
    assert found.ratio == pytest.approx(math.exp(0.1), rel=0.02)


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["same", "worse"], "worse"),
        (["better", "worse"], "worse"),
        (["cannot tell", "worse"], "worse"),
        (["better", "cannot tell"], "cannot tell"),
        (["better", "same"], "better"),
        (["same", "same"], "same"),
    ],
)
def test_one_word_for_both_measures(verdicts, word):
    assert overall(verdicts) == word


def test_a_new_run_is_judged_by_the_spread_from_run_to_run():
    rng = np.random.default_rng(2)
    steady, shaky = 20 * np.exp(rng.normal(0, 0.004, 10)), 20 * np.exp(rng.normal(0, 0.08, 10))
    assert drift(20 / 1.06, steady, 0.01, LEAST).verdict == "worse"
    assert drift(20 * 1.06, steady, 0.01, LEAST).verdict == "better"
    assert drift(20, steady, 0.01, LEAST).verdict == "same"
    assert drift(20 / 1.06, shaky, 0.01, LEAST).verdict == "cannot tell"
    assert drift(20 / 1.01, steady, 0.01, LEAST).verdict == "same"


def test_the_false_alarms_of_a_baseline_are_what_was_asked_for():
    rng = np.random.default_rng(8)
    false = 0
    for _ in range(4000):
        y = np.exp(rng.normal(3, 0.05, 9))
        false += drift(y[8], y[:8], 0.02, 1e-9).verdict in ("worse", "better")
    # 2 % of 4000 is 80, with a standard deviation of 9.
    assert 50 < false < 112
