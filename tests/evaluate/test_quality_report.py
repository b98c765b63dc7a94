"""Intervals against published values, and the journal against a kill."""

from __future__ import annotations

import pytest

from pillm.core.errors import UsageError
from pillm.evaluate.journal import journal
from pillm.evaluate.report import Call, Said, load, load_answers, rate


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score, no continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(hits, n, low, high):
    share = rate(hits, n)
    assert share is not None
    assert share.value == pytest.approx(hits / n, abs=1e-6)
    assert (share.low, share.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_nothing_counted_is_no_rate():
    assert rate(0, 0) is None


def test_a_journal_gives_back_what_was_kept(tmp_path):
    path, said = tmp_path / "j", Said("é", (Call("t", {"a": [1, None]}),), "cut", "x")
    with journal(path, "s1") as first:
        first.keep("a", said)
        first.keep("b", Said("words"))
    with journal(path, "s1") as again:
        assert again.done == {"a": said, "b": Said("words")}
        again.keep("c", Said())
    with journal(path, "s1") as third:
        assert set(third.done) == {"a", "b", "c"}


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_line_cut_anywhere_costs_that_line_alone(tmp_path, cut):
    path = tmp_path / "j"
    with journal(path, "settings") as first:
        first.keep("a", Said("one"))
        first.keep("b", Said("two, with some length"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with journal(path, "settings") as again:
        assert set(again.done) == {"a"}
        again.keep("b", Said("two, with some length"))
    assert path.read_bytes() == whole


def test_a_journal_of_other_settings_is_begun_anew(tmp_path):
    path = tmp_path / "j"
    with journal(path, "model one") as first:
        first.keep("a", Said("one"))
    with journal(path, "model two") as second:
        assert second.done == {}
    with journal(path, "model one") as third:
        assert third.done == {}


@pytest.mark.parametrize("load_it", [load, load_answers])
@pytest.mark.parametrize("content", [b"{", b'{"model": 1}', b"\xff"])
def test_a_broken_report_is_a_usage_error_with_its_path(tmp_path, load_it, content):
    path = tmp_path / "quality.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"quality\.json"):
        load_it(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_it(tmp_path / "none.json")
