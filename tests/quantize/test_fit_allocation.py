"""The mix is the best there is: against trying everything, and within all of its bounds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pillm.core.errors import UsageError
from pillm.quantize.fitting.allocation import Bound, TooSmall, frontier, least_bytes, least_divergence, predicted, size
from pillm.quantize.fitting.costs import Cell, Table

KINDS = ("Q8_0", "Q5_0", "Q4_K", "Q4_0")


def table(tensors: int, seed: int) -> Table:
    """Made-up costs: fewer bytes cost more, but not in step."""
    rng = np.random.default_rng(seed)
    found: Table = {}
    for number in range(tensors):
        weights = int(rng.integers(1, 20)) * 1024
        base = float(rng.lognormal(-6, 2))
        found[f"blk.{number}.w"] = {
            kind: Cell(int(weights * bits / 8 / 32) * 32, base * 4 ** (8 - bits) * float(rng.uniform(0.5, 1.5)), 1e-6)
            for kind, bits in zip(KINDS, (8.5, 5.5, 4.5, 4.5), strict=True)
        }
    return found


@pytest.mark.parametrize("seed", range(6))
def test_no_mix_of_all_that_there_are_is_better(seed: int) -> None:
    costs = table(6, seed)
    sizes = sorted(sum(c.bytes for c in choice) for choice in itertools.product(*(t.values() for t in costs.values())))
    budget = sizes[len(sizes) // 3]
    best = min(
        sum(cell.cost for cell in choice)
        for choice in itertools.product(*(cells.values() for cells in costs.values()))
        if sum(cell.bytes for cell in choice) <= budget
    )
    mix = least_divergence(costs, budget)
    assert size(costs, mix) <= budget
    assert predicted(costs, mix) <= best * (1 + 2e-4)
    assert least_divergence(costs, budget) == mix


def test_a_further_bound_is_kept_and_costs_something() -> None:
    costs = table(20, 1)
    budget = size(costs, dict.fromkeys(costs, "Q5_0"))
    free = least_divergence(costs, budget)
    seconds = {
        name: {kind: 2.0 if kind in ("Q5_0", "Q8_0") else 1.0 for kind in cells} for name, cells in costs.items()
    }
    slow = sum(seconds[name][kind] for name, kind in free.items())
    limit = 0.8 * slow
    fast = least_divergence(costs, budget, [Bound("decode", seconds, limit, "s")])
    assert sum(seconds[name][kind] for name, kind in fast.items()) <= limit + 1e-9
    assert predicted(costs, fast) >= predicted(costs, free)
    with pytest.raises(UsageError, match="decode: no mix comes below 20"):
        least_divergence(costs, budget, [Bound("decode", seconds, 19.0, "s")])


def test_a_budget_below_the_smallest_mix_says_the_smallest() -> None:
    costs = table(8, 2)
    smallest = sum(min(cell.bytes for cell in cells.values()) for cells in costs.values())
    with pytest.raises(TooSmall) as caught:
        least_divergence(costs, smallest - 1)
    assert caught.value.bytes == smallest
    assert size(costs, least_divergence(costs, smallest)) == smallest


def test_the_fewest_bytes_of_a_divergence() -> None:
    costs = table(12, 3)
    aim = predicted(costs, dict.fromkeys(costs, "Q5_0"))
    mix = least_bytes(costs, aim)
    assert predicted(costs, mix) <= aim * (1 + 1e-6)
    assert size(costs, mix) <= size(costs, dict.fromkeys(costs, "Q5_0"))
    with pytest.raises(UsageError, match="no mix is predicted below"):
        least_bytes(costs, 1e-12)


def test_larger_files_are_never_predicted_worse() -> None:
    costs = table(15, 4)
    mixes = frontier(costs, 8)
    found = [predicted(costs, mix) for mix in mixes]
    assert found == sorted(found, reverse=True)
