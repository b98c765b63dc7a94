"""The sparse distribution: sums to 1, expectation is the distribution, and is exact where it says so."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pillm.logit_cache.rows import Targets, targets  # noqa: E402
from pillm.train.logits.sampling import LEFT, joined, offsets, sparse, split  # noqa: E402

pytestmark = pytest.mark.train


def made(logits: object, u: np.ndarray, top: int, samples: int, temperature: float = 1.0) -> Targets:
    return targets(sparse(logits.clone(), torch.from_numpy(u), top, samples, temperature).rows)  # type: ignore[attr-defined]


def dense(found: Targets, vocabulary: int) -> np.ndarray:
    result = np.zeros((len(found.ids), vocabulary))
    np.add.at(result, (np.arange(len(found.ids))[:, None], found.ids), found.weights)
    return result


def spread(rows: int, vocabulary: int, seed: int = 0) -> object:
    """Logits of distributions from nearly sure to nearly flat."""
    torch.manual_seed(seed)
    return torch.randn(rows, vocabulary) * torch.linspace(0.1, 12, rows)[:, None]


@pytest.mark.parametrize(("top", "samples"), [(100, 100), (8, 40), (3, 5), (20, 1)])
def test_rows_sum_to_one_and_have_no_more_entries_than_stated(top: int, samples: int) -> None:
    logits = spread(60, 800)
    p = torch.softmax(logits, -1).numpy()
    rows = sparse(logits.clone(), torch.rand(60, dtype=torch.float64), top, samples).rows
    assert rows.exact.max() <= top
    assert rows.samples.max() <= samples
    if top >= samples:
        assert (rows.exact + rows.samples).max() <= samples + 1
    found = targets(rows)
    assert np.allclose(found.weights.sum(1), 1, atol=1e-5)
    for row in range(60):
        ids = found.ids[row][found.weights[row] > 0]
        assert len(set(ids.tolist())) == len(ids)
        exact = found.ids[row, : found.exact[row]]
        assert np.allclose(found.weights[row, : found.exact[row]], p[row, exact], atol=1e-6)
        if top >= samples:
            assert sorted(exact.tolist()) == np.flatnonzero(p[row] >= 1 / samples).tolist()


@pytest.mark.parametrize(("top", "samples"), [(100, 20), (2, 7)])
def test_the_mean_over_all_offsets_is_the_distribution(top: int, samples: int) -> None:
    """Systematic sampling over the offsets of a fine grid: an integral over u, so the error is that of the grid."""
    logits = spread(6, 40)
    p = torch.softmax(logits, -1).numpy()
    grid = 4000
    total = np.zeros((6, 40))
    for number in range(grid):
        total += dense(made(logits, np.full(6, (number + 0.5) / grid), top, samples), 40)
    # A token is hit for one stretch of offsets, whose ends the grid misses by up to half a step each; a hit weighs at most 1.
    assert np.abs(total / grid - p).max() < 1.1 / grid


def test_the_mean_over_seeds_is_the_distribution_within_its_standard_error() -> None:
    logits = spread(8, 3000)
    p = torch.softmax(logits, -1).numpy()
    draws = 600
    one, two = np.zeros(p.shape), np.zeros(p.shape)
    for seed in range(draws):
        got = dense(made(logits, offsets(seed, b"0123456789abcdef", 8), 50, 50), 3000)
        one += got
        two += got**2
    mean = one / draws
    error = np.sqrt(np.maximum(two / draws - mean**2, 0) / draws)
    seen = error > 1e-9
    z = (mean - p)[seen] / error[seen]
    often = p[seen] * 50 * draws > 20
    # Hits are near to normal where a token is expected more than 20 times; 24,000 numbers stay within 5 deviations.
    assert np.abs(z[often]).max() < 5
    assert abs(z[often].mean()) < 0.2
    assert np.allclose(mean[~seen & (one > 0)], p[~seen & (one > 0)], atol=1e-6)


def test_systematic_samples_have_less_variance_than_independent_ones() -> None:
    logits = spread(10, 2000)
    p = torch.softmax(logits, -1).double().numpy()
    rng = np.random.default_rng(0)
    ours = theirs = 0.0
    for seed in range(60):
        found = sparse(logits.clone(), torch.from_numpy(offsets(seed, b"k" * 16, 10)), 40, 40).rows
        entries = found.exact + found.samples
        ours += ((dense(targets(found), 2000) - p) ** 2).sum()
        drawn = np.stack([rng.multinomial(n, row / row.sum()) / n for n, row in zip(entries, p, strict=True)])
        theirs += ((drawn - p) ** 2).sum()
    assert ours < theirs / 2


def test_without_samples_the_top_is_kept_until_little_is_left() -> None:
    logits = spread(40, 500)
    p = torch.softmax(logits, -1).numpy()
    rows = sparse(logits.clone(), torch.zeros(40, dtype=torch.float64), 30, 0).rows
    assert rows.samples.sum() == 0
    got = dense(targets(rows), 500)
    for row in range(40):
        order = np.argsort(-p[row])
        count = int(rows.exact[row])
        assert set(np.flatnonzero(got[row])) == set(order[:count].tolist())
        assert count == 30 or 1 - p[row, order[:count]].sum() < LEFT * 1.01
        assert count == 1 or 1 - p[row, order[: count - 1]].sum() >= LEFT * 0.99
    assert np.allclose(got.sum(1) + rows.mass, 1, atol=1e-5)


def test_temperature_is_that_of_the_distribution() -> None:
    logits = spread(5, 60)
    p = torch.softmax(logits / 2.5, -1).numpy()
    found = made(logits, np.full(5, 0.3), 255, 255, 2.5)
    for row in range(5):
        exact = found.ids[row, : found.exact[row]]
        assert np.allclose(found.weights[row, : found.exact[row]], p[row, exact], atol=1e-6)


def test_a_sure_token_and_forbidden_tokens() -> None:
    logits = torch.full((2, 50), float("-inf"))
    logits[0, 7] = 3.0
    logits[1, 4] = logits[1, 5] = 0.0
    found = sparse(logits, torch.tensor([0.0, 0.999999], dtype=torch.float64), 10, 10)
    assert found.rows.exact.tolist() == [1, 2]
    assert found.rows.samples.tolist() == [0, 0]
    assert found.entropy == pytest.approx(np.log(2), abs=1e-5)


def test_the_last_offset_hits_a_token_of_the_tail() -> None:
    logits = torch.zeros(1, 300)
    logits[0, 250:] = float("-inf")
    rows = sparse(logits, torch.tensor([np.nextafter(1.0, 0)], dtype=torch.float64), 50, 50).rows
    assert rows.samples.tolist()[0] in (49, 50)  # 50 masses of about 1/50
    assert rows.sample_ids.max() == 249


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = torch.zeros(3, 20)
    logits[1, 2] = bad
    with pytest.raises(FloatingPointError):
        sparse(logits, torch.zeros(3, dtype=torch.float64), 5, 5)


def test_joined_rows_split_into_what_they_were() -> None:
    parts = [sparse(spread(n, 90, n), torch.rand(n, dtype=torch.float64), 10, 10).rows for n in (3, 1, 4)]
    for part, again in zip(parts, split(joined(parts), [3, 1, 4]), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(part, again, strict=True))
