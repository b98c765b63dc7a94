"""`pillm bench history`: what is listed, exported, brought back, and let go."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parents[1] / "history"))

from history_runs import made, moment

from pillm.bench.history.options import HistoryOptions
from pillm.bench.history.run import run
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Log, Output
from pillm.history import store

RUNS = [
    made(1), made(2, valid=False, invalid=("throttled",)), made(3, build="bbbbbbb", decode=22.0),
    made(4, model='Odd "name", with a comma.gguf', board="Raspberry Pi 4 Model B"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def history(monkeypatch, tmp_path) -> Path:
    path = tmp_path / "data" / "history.sqlite"
    monkeypatch.setenv("PILLM_HISTORY", str(path))
    return path


def said(**options) -> list[str]:
    lines: list[str] = []
    run(
        HistoryOptions.model_validate(options),
        lambda event: lines.append(event.line) if isinstance(event, Output) else None,
    )
    return lines


def filled(runs=RUNS) -> None:
    store.add_all([(each, None) for each in runs])


def test_no_history_is_no_error_and_says_how_it_begins():
    events: list[object] = []
    run(HistoryOptions(), events.append)
    assert any(isinstance(event, Log) and "pillm bench MODEL begins one" in event.message for event in events)


def test_the_newest_runs_are_listed_with_lines_of_their_series():
    filled()
    lines = said(limit=3)
    assert [line[:20].strip() for line in lines[1:4]] == [moment(2), moment(3), moment(4)]
    assert "invalid" in lines[1]
    assert lines[4] == "(1 older; --limit 0 lists all)"
    assert any(line.startswith("▅") and "(1 run)" in line for line in lines)
    assert lines[-1] == "(3 more series)"
    everything = said(limit=0)
    assert sum(line.startswith("2026-") for line in everything) == 4
    assert any("2 runs, 1 invalid" in line for line in everything)


@pytest.mark.parametrize(
    ("options", "count"),
    [({"board": "pi 4"}, 1), ({"model": "smol"}, 3), ({"invalid": True}, 1), ({"invalid": False}, 3),
     ({"since": moment(3)}, 2), ({"until": moment(3)}, 2), ({"build": "bbb"}, 1)],
)  # fmt: skip
def test_filters(options, count):
    filled()
    assert sum(line.startswith("2026-") for line in said(**options)) == count
    assert len(said(export="jsonl", **options)) == count


@pytest.mark.parametrize("form", ["csv", "json", "jsonl"])
def test_an_export_brings_back_every_run_as_it_was(monkeypatch, tmp_path, form):
    filled()
    before = list(store.documents())
    path = tmp_path / f"export.{form}"
    assert said(export=form, output=path) == []
    printed = tmp_path / f"printed.{form}"
    printed.write_text("\n".join(said(export=form)) + "\n")
    assert printed.read_bytes() == path.read_bytes()
    monkeypatch.setenv("PILLM_HISTORY", str(tmp_path / "other.sqlite"))
    assert said(import_=(path,)) == [f"{path}: 4 runs, 4 new"]
    assert list(store.documents()) == before
    assert said(import_=(path,)) == [f"{path}: 4 runs, 0 new"]


def test_an_export_is_what_other_programs_read():
    filled()
    rows = list(csv.DictReader(said(export="csv")))
    assert [row["decode_tps"] for row in rows] == ["20.0", "20.0", "22.0", "20.0"]
    assert rows[3]["model_name"] == 'Odd "name", with a comma'
    assert [each["id"] for each in json.loads("\n".join(said(export="json")))] == [each.id for each in RUNS]
    assert json.loads("\n".join(said(export="json", board="nothing"))) == []


def test_one_document_is_added(tmp_path):
    path = tmp_path / "bench.json"
    path.write_bytes(msgspec.json.encode(made(7)))
    assert said(add=path) == [f"{path}: added"]
    assert said(add=path) == [f"{path}: is there already"]
    assert list(store.runs()) == [made(7)]


def test_lines_that_are_no_runs_are_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(msgspec.json.encode(made(7)) + b"\nnonsense\n" + msgspec.json.encode(made(8)))
    with pytest.raises(FindingsError, match="1 of 3"):
        said(import_=(path,))
    assert [each.id for each in store.runs()] == [made(7).id, made(8).id]


def test_pruning_names_what_would_go_and_deletes_only_when_told():
    filled()
    lines = said(prune=True, keep_per_series=1)
    assert lines[0].startswith(moment(1))
    assert lines[-1].startswith("1 run would be deleted (keep-per-series=1); nothing was")
    assert len(list(store.runs())) == 4
    assert said(prune=True, keep_per_series=1, yes=True)[-1] == "1 run deleted (keep-per-series=1)"
    assert [each.id for each in store.runs()] == [each.id for each in RUNS[1:]]


def test_pruning_keeps_to_the_filter():
    filled()
    said(prune=True, keep_days=0, board="Pi 4", yes=True)
    assert [each.id for each in store.runs()] == [each.id for each in RUNS[:3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_days": 3}, "belongs to --prune"),
        ({"yes": True}, "belongs to --prune"),
        ({"prune": True}, "what is kept"),
        ({"output": "x"}, "belongs to --export"),
        ({"prune": True, "keep_days": 1, "export": "csv"}, "one at a time|commands of their own"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    filled()
    with pytest.raises(UsageError, match=message):
        said(**options)
    assert len(list(store.runs())) == 4


def test_a_day_that_is_none_is_refused():
    with pytest.raises(ValidationError):
        HistoryOptions(since="yesterday")


def test_control_codes_in_a_name_do_not_reach_the_terminal():
    filled([made(1, model="bad\x1b[2Jname.gguf")])
    assert not any("\x1b" in line for line in said())
