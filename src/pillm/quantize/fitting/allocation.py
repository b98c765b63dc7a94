"""The mix: one type for each tensor, so that the predicted divergence is least within what a file may take.

A multiple-choice knapsack, solved exactly (to a relative gap of 1e-4) by HiGHS through scipy:

    minimize   sum of cost[t, q] x[t, q]
    subject to sum over q of x[t, q] = 1 for each tensor t,   sum of bytes[t, q] x[t, q] <= budget,
               and further sums of the same kind (seconds of a token on a board)

or least bytes subject to a bound on the predicted divergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from scipy import optimize, sparse

from pillm.core.errors import PillmError, UsageError
from pillm.quantize.fitting.costs import Table

_GAP = 1e-4
# Nodes and not seconds, so that the same problem gives the same answer on a busy machine.
_NODES = 50_000

Mix = dict[str, str]
"""Type by tensor."""


class Bound(msgspec.Struct, frozen=True):
    """A sum over tensors that may not go above `limit`: `amounts[tensor][type]`, and what it is in words."""

    name: str
    amounts: Mapping[str, Mapping[str, float]]
    limit: float
    unit: str = ""


def least_divergence(table: Table, budget: int, bounds: Sequence[Bound] = ()) -> Mix:
    """The mix of at most `budget` bytes in the table's tensors with the least predicted KL, within all bounds.

    Raises UsageError where there is none, with the smallest that there is.
    """
    if not table:
        return {}
    smallest = sum(min(cell.bytes for cell in cells.values()) for cells in table.values())
    if budget < smallest:
        raise TooSmall(smallest)
    for bound in bounds:
        least = sum(min(_amount(bound, name, kind) for kind in cells) for name, cells in table.items())
        if least > bound.limit:
            raise UsageError(
                f"{bound.name}: no mix comes below {least:.4g} {bound.unit}, and {bound.limit:.4g} is asked for",
                "ask for less, or take a smaller model or a faster board",
            )
    size = Bound("bytes", {n: {k: c.bytes for k, c in cells.items()} for n, cells in table.items()}, budget, "bytes")
    costs = {name: {kind: cell.cost for kind, cell in cells.items()} for name, cells in table.items()}
    return _solve(costs, [size, *bounds])


def least_bytes(table: Table, divergence: float, bounds: Sequence[Bound] = ()) -> Mix:
    """The mix with the fewest bytes whose predicted KL is at most `divergence` nats a token."""
    least = sum(min(cell.cost for cell in cells.values()) for cells in table.values())
    if divergence < least:
        raise UsageError(
            f"--max-kld {divergence:g}: no mix is predicted below {least:.3g} nats a token",
            "ask for a larger divergence",
        )
    costs = {name: {kind: cell.cost for kind, cell in cells.items()} for name, cells in table.items()}
    sizes = {name: {kind: float(cell.bytes) for kind, cell in cells.items()} for name, cells in table.items()}
    return _solve(sizes, [Bound("divergence", costs, divergence, "nats"), *bounds])


class TooSmall(UsageError):
    """The budget is below the smallest mix; `bytes` are those of its tensors."""

    def __init__(self, size: int) -> None:
        super().__init__(f"no mix has fewer than {size:,} bytes of tensors", "ask for more")
        self.bytes = size


def predicted(table: Table, mix: Mapping[str, str]) -> float:
    """Predicted mean KL of the mix, in nats a token."""
    return sum(cells[mix[name]].cost for name, cells in table.items())


def size(table: Table, mix: Mapping[str, str]) -> int:
    """Bytes of the table's tensors in the mix, aligned."""
    return sum(cells[mix[name]].bytes for name, cells in table.items())


def frontier(table: Table, steps: int) -> list[Mix]:
    """Mixes of evenly spaced sizes from the smallest to the largest: the lower hull of cost over bytes, and between."""
    low = sum(min(cell.bytes for cell in cells.values()) for cells in table.values())
    high = sum(
        cells["Q8_0"].bytes if "Q8_0" in cells else max(c.bytes for c in cells.values()) for cells in table.values()
    )
    return [least_divergence(table, round(low + (high - low) * step / (steps - 1))) for step in range(steps)]


def _solve(objective: Mapping[str, Mapping[str, float]], bounds: Sequence[Bound]) -> Mix:
    names = list(objective)
    choices = [(row, kind) for row, name in enumerate(names) for kind in _undominated(objective[name], bounds, name)]
    values = np.array([objective[names[row]][kind] for row, kind in choices])
    rows = np.array([row for row, _ in choices])
    one = sparse.csr_matrix((np.ones(len(choices)), (rows, np.arange(len(choices)))), shape=(len(names), len(choices)))
    constraints = [optimize.LinearConstraint(one, 1, 1)]  # pyright: ignore[reportArgumentType]
    for bound in bounds:
        # In parts of the limit: HiGHS' tolerances are absolute.
        scale = abs(bound.limit) or 1.0
        amounts = np.array([[_amount(bound, names[row], kind) / scale for row, kind in choices]])
        constraints.append(optimize.LinearConstraint(amounts, -np.inf, bound.limit / scale))
    found = optimize.milp(
        values / (np.abs(values).max() or 1.0), integrality=np.ones(len(choices)), bounds=optimize.Bounds(0, 1),
        constraints=constraints, options={"mip_rel_gap": _GAP, "node_limit": _NODES},
    )  # fmt: skip
    if found.x is None:
        raise UsageError(
            "no mix keeps all of the limits at once: " + ", ".join(f"{b.name} {b.limit:.4g} {b.unit}" for b in bounds),
            "loosen one of them",
        )
    mix = {names[row]: kind for (row, kind), taken in zip(choices, found.x, strict=True) if taken > 0.5}
    for bound in bounds:
        total = sum(_amount(bound, name, kind) for name, kind in mix.items())
        if len(mix) != len(names) or total > bound.limit * (1 + 1e-6):
            raise PillmError(f"the solver's mix breaks a limit: {bound.name} {total:.6g} of {bound.limit:.6g}")
    return mix


def _amount(bound: Bound, name: str, kind: str) -> float:
    return bound.amounts.get(name, {}).get(kind, 0.0)


def _undominated(costs: Mapping[str, float], bounds: Sequence[Bound], name: str) -> list[str]:
    """Types that no other of the tensor's types is at least as good as in everything."""
    points = {kind: (cost, *(_amount(bound, name, kind) for bound in bounds)) for kind, cost in costs.items()}
    kept: list[str] = []
    for kind, point in sorted(points.items(), key=lambda item: (item[1], item[0])):
        if not any(all(a <= b for a, b in zip(points[other], point, strict=True)) for other in kept):
            kept.append(kind)
    return kept
