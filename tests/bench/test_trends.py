"""Series, lines and the page. Figures are made up; what is checked is what is shown of them."""

from __future__ import annotations

import random
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

sys.path.append(str(Path(__file__).parents[1] / "history"))

from history_runs import made

from pillm.bench.trends.changes import changes
from pillm.bench.trends.drawing import Ceiling, Mark, roofline, trend
from pillm.bench.trends.options import ReportOptions
from pillm.bench.trends.run import ceilings, page, run
from pillm.bench.trends.series import Group, Point, by_build, groups, series, spots
from pillm.bench.trends.sparkline import lines, sparkline
from pillm.core.errors import UsageError
from pillm.core.events import silent
from pillm.history import store
from pillm.history.schema import summary


def points(*speeds: float, build: str = "b", valid: bool = True) -> list[Point]:
    return [Point(f"2026-01-{day + 1:02d}T00:00:00Z", speed, build, valid) for day, speed in enumerate(speeds)]


def rows(count: int = 20, slower_from: int = 10, by: float = 1.1, **fields):
    chance = random.Random(3)
    for number in range(count):
        late = number >= slower_from
        yield summary(
            made(
                number,
                decode=20 * chance.gauss(1, 0.01) / (by if late else 1),
                build="new" if late else "old",
                **fields,
            )
        )


def test_runs_of_other_boards_models_and_threads_are_other_series():
    found = series(map(summary, [made(1), made(2), made(3, threads=2), made(4, board="Raspberry Pi 4 Model B")]))
    assert [(whole.key.what, whole.key.threads, len(whole.points)) for whole in found] == [
        ("decode", 4, 1), ("prefill", 4, 1), ("decode", 2, 1), ("prefill", 2, 1), ("decode", 4, 2), ("prefill", 4, 2),
    ]  # fmt: skip


def test_a_series_falls_apart_into_its_builds():
    (whole,) = (each for each in series(rows()) if each.key.what == "decode")
    assert [(part.builds, len(part.points)) for part in by_build(whole)] == [
        (("llama.cpp old",), 10),
        (("llama.cpp new",), 10),
    ]


def test_groups_hold_every_run_of_one_build_and_are_few():
    many = points(*[20.0] * 31, build="a") + points(*[30.0] * 31, build="b") + points(99.0, valid=False)
    found = groups(many, 10)
    assert sum(cell.runs for cell in found) == 63
    assert len(found) <= 12
    assert {(cell.build, cell.median) for cell in found[:-1]} == {("a", 20.0), ("b", 30.0)}
    # The run that does not count stands in the last group, and moves no figure of it.
    assert (found[-1].invalid, found[-1].high) == (1, 30.0)


def test_the_heights_follow_the_speeds_and_invalid_runs_are_crosses():
    assert sparkline(points(10, 15, 20)) == "▁▅█"
    assert sparkline(points(10.0) + points(99.0, valid=False) + points(20.0)) == "▁×█"
    assert sparkline(points(5.0, valid=False)) == "×"
    assert sparkline([]) == ""
    assert len(sparkline(points(*range(1, 29)) * 40, width=32)) <= 32


def test_noise_of_one_percent_is_no_mountain():
    heights = {"▁▂▃▄▅▆▇█".index(height) for height in sparkline(points(100, 100.5, 99.5, 100))}
    assert max(heights) - min(heights) <= 1


def test_a_line_has_its_latest_figure_its_runs_and_its_name():
    found = list(lines(series(rows(4, slower_from=99))))
    assert len(found) == 2
    assert re.search(
        r" tokens/s decode  SmolLM2-135M-Instruct Q4_K_M on Raspberry Pi 5 Model B Rev 1.0 8 GB, 4 threads, llama.cpp old \(4 runs\)$",
        found[0],
    )


def test_a_slower_build_is_found_and_a_like_one_is_not():
    found = series(rows())
    told = dict(zip([whole.key.what for whole in found], changes(found, error=0.01, least=1.03), strict=True))
    first, second = told["decode"]
    assert (first.change, first.why_not) == (None, "")
    assert second.change is not None
    assert second.change.verdict == "worse"
    assert 1.08 < second.change.ratio < 1.12
    assert told["prefill"][1].change.verdict == "same"


def test_invalid_runs_do_not_count_for_a_verdict():
    found = [whole for whole in series(rows(valid=False)) if whole.key.what == "decode"]
    (builds,) = changes(found, error=0.01, least=1.03)
    assert builds[1].change is None
    assert builds[1].why_not == "4 valid runs of each build are needed; there are 0 and 0"


def test_a_spot_is_the_fastest_valid_run():
    (spot,) = spots(map(summary, [made(1, decode=10.0), made(2, decode=12.0), made(3, decode=99.0, valid=False)]))
    assert spot.decode_tps == 12.0
    assert spot.bandwidth == 12.0 * 100_000_000
    assert spot.operations == 90.0 * 2 * 134_515_008


def test_plots_are_whole_svg_with_their_text_and_no_other_file():
    cells = groups(
        points(10, 11, 12, build="<a>") + points(9, 8, build="b&b") + points(3, valid=False, build="b&b"), 50
    )
    drawn = trend(cells, "Decode & more", "six <runs>")
    tree = ElementTree.fromstring(drawn)
    assert tree.attrib["role"] == "img"
    assert tree.attrib["aria-label"] == "Decode & more. six <runs>"
    assert len(re.findall('class="cross"', drawn)) == 1
    assert len(re.findall('class="build"', drawn)) == 1
    assert "http" not in drawn


def test_a_single_run_can_be_drawn():
    ElementTree.fromstring(trend([Group("2026-01-01T00:00:00Z", "b", 5.0, 5.0, 5.0, 1, 0)], "t", "d"))
    ElementTree.fromstring(
        roofline(
            [Mark("m", 1e8, 20.0)], [Ceiling("c", 3e9)], unit="MB", per_s="GB/s", scale=1e6, title="t", description="d"
        )
    )


def test_a_roof_is_a_line_of_constant_bandwidth():
    drawn = roofline(
        [Mark("small", 1e8, 30.0), Mark("large", 1e9, 3.0)], [Ceiling("board", 5e9)], unit="MB", per_s="GB/s", scale=1e6,
        title="t", description="d",
    )  # fmt: skip
    tree = ElementTree.fromstring(drawn)
    circles = [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in tree.iter("circle")]
    path = next(each.attrib["d"] for each in tree.iter("path") if each.attrib["class"] == "roof")
    (xa, ya), (xb, yb) = [tuple(map(float, place.split())) for place in path.removeprefix("M").split("L")]
    # Both marks have 3 GB/s: they lie on a line parallel to the roof, and below it (y grows downwards).
    (x1, y1), (x2, y2) = sorted(circles)
    assert (yb - ya) / (xb - xa) == pytest.approx((y2 - y1) / (x2 - x1), rel=0.02)
    assert y1 > ya + (yb - ya) * (x1 - xa) / (xb - xa)


class Outline(HTMLParser):
    """Open tags, to see that all are closed, and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.fetched += [
            value for name, value in given.items() if name in ("src", "href") and not (value or "").startswith("#")
        ]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def written(text: str) -> Outline:
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    return outline


def test_the_page_needs_nothing_but_itself_and_shows_the_verdicts(monkeypatch, tmp_path):
    monkeypatch.setenv("PILLM_HISTORY", str(tmp_path / "history.sqlite"))
    chance = random.Random(3)
    runs = [
        made(
            n,
            decode=20 * chance.gauss(1, 0.01) / (1.2 if n > 11 else 1),
            build="new" if n > 11 else "old",
            valid=n != 3,
        )
        for n in range(24)
    ]
    store.add_all([(each, None) for each in runs])
    out = tmp_path / "deep" / "bench.html"
    assert run(ReportOptions(out=out), silent).outputs == {"report": out}
    text = out.read_text()
    outline = written(text)
    assert outline.fetched == []
    assert "script" not in outline.tags
    assert 'class="worse">worse</span>' in text
    assert "1 run does not count" in text
    assert text.count('class="cross"') == 2
    # Every picture has words of its own.
    assert text.count("<svg") == text.count('role="img" aria-label="') == text.count("<desc>")


def test_names_out_of_files_are_no_markup():
    text = page(
        [summary(made(n, model="<script>alert(1)</script>.gguf", board='"><img src=x>', build="<b>")) for n in range(9)],
        ceilings=[], drawn=5, error=0.01, least=1.03,
    )  # fmt: skip
    outline = written(text)
    assert "script" not in outline.tags
    assert "img" not in outline.tags
    assert "b" not in outline.tags


def test_runs_without_speeds_and_sizes_make_a_page():
    run_ = made(1, speeds=())
    bare = msgspec.structs.replace(
        made(2), model=msgspec.structs.replace(made(2).model, read_bytes=None, parameters=None)
    )
    written(page([summary(run_), summary(bare)], ceilings=[], drawn=5, error=0.01, least=1.03))
    written(page([summary(run_)], ceilings=ceilings(), drawn=5, error=0.01, least=1.03))


def test_what_is_drawn_does_not_grow_with_the_history():
    def size(count: int) -> int:
        chance = random.Random(1)
        every = (summary(made(n, decode=chance.gauss(20, 1), prefill=90.0)) for n in range(count))
        return len(page(list(every), ceilings=[], drawn=5, error=0.01, least=1.03))

    assert size(20_000) < 1.5 * size(400)


def test_the_ceilings_are_the_predictors_figures():
    assert {roof.label.split()[0] for roof in ceilings()} >= {"BCM2711", "BCM2712"}
    assert all(1e9 < roof.per_s < 1e11 for roof in ceilings())


def test_no_run_is_a_usage_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PILLM_HISTORY", str(tmp_path / "history.sqlite"))
    with pytest.raises(UsageError, match="no run to report"):
        run(ReportOptions(out=tmp_path / "x.html"), silent)
    assert not (tmp_path / "x.html").exists()
