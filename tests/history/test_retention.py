"""Policies on summaries: pure decisions."""

from __future__ import annotations

import datetime

import pytest
from history_runs import START, made

from pillm.core.errors import UsageError
from pillm.history.retention import Policy, superfluous
from pillm.history.schema import summary

DAY = 24.0


def gone(policy: Policy, runs, days: float) -> list[int]:
    now = START + datetime.timedelta(days=days)
    return [int(run.id[-3:]) for run in superfluous(map(summary, runs), policy, now)]


def test_runs_that_are_young_stay():
    runs = [made(number, hours=number * DAY) for number in range(10)]
    assert gone(Policy(days=4), runs, days=10) == [0, 1, 2, 3, 4, 5]


def test_the_newest_of_each_series_stay_however_old():
    runs = [made(number) for number in range(5)] + [made(10 + n, hours=n, build="bbb") for n in range(3)]
    assert gone(Policy(per_series=2), runs, days=1000) == [0, 10, 1, 2]


def test_each_rule_only_keeps_more():
    runs = [made(number, hours=number * DAY) for number in range(10)]
    assert gone(Policy(days=2, per_series=5), runs, days=10) == [0, 1, 2, 3, 4]
    assert gone(Policy(days=7, per_series=2), runs, days=10) == [0, 1, 2]


def test_older_runs_are_thinned_to_one_a_day_the_newest_that_is_valid():
    runs = [made(number, hours=number * 8.0, valid=number != 5) for number in range(9)]
    # Days of runs 0-2, 3-5 and 6-8: the newest valid ones stay.
    assert gone(Policy(days=0, thin="day"), runs, days=100) == [0, 1, 3, 5, 6, 7]


def test_a_period_without_a_valid_run_keeps_its_newest():
    runs = [made(number, hours=number, valid=False) for number in range(3)]
    assert gone(Policy(days=0, thin="week"), runs, days=100) == [0, 1]


def test_thinning_to_a_week_counts_weeks_from_monday():
    # 1 March 2026 is a Sunday.
    runs = [made(number, hours=number * DAY) for number in range(9)]
    assert gone(Policy(days=0, thin="week"), runs, days=100) == [1, 2, 3, 4, 5, 6]


def test_a_policy_that_keeps_nothing_is_refused():
    with pytest.raises(UsageError, match="what is kept"):
        gone(Policy(thin="day"), [made(1)], days=1)


def test_it_says_itself_as_options():
    assert str(Policy(days=90, per_series=20, thin="week")) == "keep-days=90,keep-per-series=20,thin=week"
