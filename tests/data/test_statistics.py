"""Counts of a dataset: those that a plain loop over json.loads gives, however the data is cut, packed or shared out."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePath

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pillm.core.errors import UsageError
from pillm.core.events import Event, Output, silent
from pillm.core.shipped import data_path
from pillm.data import inputs
from pillm.data.counts import figures, statistics, stats, token_lengths
from pillm.data.counts.statistics import Tally
from pillm.data.options import StatsOptions

TRAIN, SMOKE = (data_path(f"dataset:home-assistant/{split}") for split in ("train", "smoke"))


def dicts(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def printed(options: StatsOptions) -> list[str]:
    seen: list[Event] = []
    stats.run(options, seen.append)
    return [event.line for event in seen if isinstance(event, Output)]


def test_counts_are_those_of_a_plain_loop():
    rows = dicts(TRAIN)
    found = statistics.measure([TRAIN]).statistics
    assert found.records == len(rows) == 2400
    assert found.prompts == sum(row["messages"][-1]["role"] in ("user", "tool") for row in rows) > 0
    assert found.labelled == found.records - found.prompts
    assert found.bytes == TRAIN.stat().st_size
    assert found.turns == Counter(message["role"] for row in rows for message in row["messages"])
    for name, counts in (("locale", found.locales), ("register", found.registers), ("license", found.licenses)):
        assert counts.counts == Counter(row[name] for row in rows)
    assert found.tags.counts == Counter(tag for row in rows for tag in row["tags"])
    declared = Counter(tool["function"]["name"] for row in rows for tool in row["tools"])
    calls = [
        call["function"]["name"]
        for row in rows
        for message in row["messages"]
        for call in message.get("tool_calls", [])
    ]
    assert found.tools_declared.counts == declared
    assert found.tools_called.counts == Counter(calls)
    silent_rows = [row for row in rows if not any(message.get("tool_calls") for message in row["messages"])]
    assert found.tools_called.missing == len(silent_rows)


def test_lengths_are_those_of_texts_and_calls():
    lengths, words = [], []
    for row in dicts(SMOKE):
        texts = [message["content"] for message in row["messages"] if message.get("content")]
        texts += [
            json.dumps(call["function"], ensure_ascii=False, separators=(",", ":"))
            for message in row["messages"]
            for call in message.get("tool_calls", [])
        ]
        lengths.append(sum(map(len, texts)))
        words.append(sum(len(text.split()) for text in texts))
    found = statistics.measure([SMOKE]).statistics.lengths
    for name, values in (("characters", sorted(lengths)), ("words", sorted(words))):
        assert (found[name].min, found[name].max, found[name].count) == (values[0], values[-1], len(values))
        assert found[name].median == values[math.ceil(0.5 * len(values)) - 1]
        assert found[name].p95 == values[math.ceil(0.95 * len(values)) - 1]
        assert found[name].mean == round(sum(values) / len(values), 2)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=300))
def test_percentiles_are_the_least_length_that_so_many_do_not_exceed(values: list[int]):
    found = figures.lengths(Counter(values))
    for share, value in ((0.5, found.median), (0.95, found.p95)):
        assert sum(other <= value for other in values) >= share * len(values)
        assert value == min(values) or sum(other < value for other in values) < share * len(values)


@pytest.mark.parametrize("block_bytes", [1, 3_000, 100_000])
def test_counts_do_not_depend_on_where_the_data_is_cut(block_bytes: int):
    (source,) = inputs.sources([SMOKE])
    joined = Tally()
    for block in inputs.blocks([source], block_bytes):
        joined.add(statistics.count(block))
    (whole,) = inputs.blocks([source])
    assert joined == statistics.count(whole)


def test_counts_do_not_depend_on_the_number_of_workers():
    one, two = (statistics.measure([TRAIN, SMOKE], workers) for workers in (1, 2))
    assert one == two
    assert one.statistics.records == 2440


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_packed_files_give_the_same_counts(suffix: str, tmp_path: Path):
    data = SMOKE.read_bytes()
    path = tmp_path / f"smoke.jsonl.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "gz" else zstandard.compress(data))
    assert statistics.measure([path]).statistics == statistics.measure([SMOKE]).statistics


def test_bad_lines_are_counted_and_named_and_harmless_ones_are_not(tmp_path: Path):
    good = SMOKE.read_bytes().splitlines()
    lines = [
        b"\xef\xbb\xbf" + good[0], b"", good[1] + b"\r", b"{}", good[2], b"\xff", b'{"id": "a", "messages": []}',
        b"[" * 100_000, good[3].replace(b'"tools":[', b'"unknown":1,"tools":['), good[4].replace(b'"tools":[{', b'"tools":[7,{'),
    ]  # fmt: skip
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    measured = statistics.measure([path])
    assert [finding.line for finding in measured.findings] == [4, 6, 7, 8, 10]
    assert measured.findings[0].byte == sum(len(line) + 1 for line in lines[:3])
    # A field that pillm does not know is no reason to leave a record out: training takes it, too.
    assert (measured.statistics.records, measured.statistics.invalid) == (4, 5)
    assert all("pillm dataset validate" in finding.hint for finding in measured.findings)


def test_a_damaged_archive_is_named(tmp_path: Path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(SMOKE.read_bytes())[:-200])
    measured = statistics.measure([path])
    assert "damaged" in measured.findings[-1].message


def test_values_beyond_the_limit_are_summed_up():
    counts = {f"source {number:04}": 1000 - number for number in range(500)}
    found = figures.distribution({**counts, "": 7})
    assert len(found.counts) == figures.MAX_VALUES
    assert found.distinct == 500
    assert sum(found.counts.values()) + found.others == sum(counts.values())
    assert found.missing == 7
    assert next(iter(found.counts)) == "source 0000"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"), ("train-00001-of-00002.jsonl.gz", "train"), ("my_validation.jsonl", "validation"),
        ("Held-Out.jsonl.zst", "heldout"), ("test/part1.jsonl", "test"), ("test/train.jsonl", "train"),
        ("pretraining.jsonl", "data"), ("dialogues.jsonl", "data"), ("latest.jsonl", "data"),
    ],
)  # fmt: skip
def test_splits_are_told_by_names(path: str, split: str):
    assert statistics.split_of(PurePath(path)) == split


def test_the_folders_above_the_given_path_say_nothing_of_splits(tmp_path: Path):
    folder = tmp_path / "test" / "dialogues"
    folder.mkdir(parents=True)
    (folder / "part.jsonl").write_bytes(SMOKE.read_bytes())
    for given_path in (folder, folder / "part.jsonl"):
        assert list(statistics.measure([given_path]).statistics.splits) == ["data"]
    assert list(statistics.measure([tmp_path]).statistics.splits) == ["test"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A real tokenizer, but of blanks and signs only, so that its tokens can be counted by hand."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_lengths_in_tokens_take_the_place_of_words(tokenizer: Path):
    words = statistics.measure([SMOKE])
    tokens = token_lengths.added(words, tokenizer)
    assert tokens.statistics.lengths["tokens"] == words.statistics.lengths["words"]
    assert "words" not in tokens.statistics.lengths


def test_a_sample_is_said_to_be_one_and_is_the_same_for_any_number_of_workers(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(token_lengths, "SAMPLE", 50)
    measured = statistics.measure([TRAIN, SMOKE])
    one, two = (token_lengths.added(measured, tokenizer, workers) for workers in (1, 2))
    assert one == two
    found = one.statistics.lengths
    assert "tokens" not in found
    assert found["tokens_of_a_sample"].count == 50 + 40
    words = measured.statistics.lengths["words"]
    assert words.min <= found["tokens_of_a_sample"].median <= words.max


@pytest.mark.parametrize("content", [None, b"no json"])
def test_what_is_no_tokenizer_is_refused(content: bytes | None, tmp_path: Path):
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    if content:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        stats.run(StatsOptions(data=(SMOKE,), tokenizer=path), silent)


def test_the_table_shows_every_part():
    lines = printed(StatsOptions(data=(TRAIN,)))
    table = "\n".join(lines)
    for words in (
        "2,400",
        "fr-CA",
        "informal",
        "set_timer",
        "kind:refuse",
        "CC0-1.0",
        "characters",
        "p95",
        "assistant",
    ):
        assert words in table


def test_json_can_be_read_again():
    (line,) = printed(StatsOptions(data=(TRAIN, SMOKE), format="json"))
    found = json.loads(line)
    assert found["statistics"]["records"] == sum(file["records"] for file in found["files"]) == 2440


def test_the_command_refuses_data_without_records(tmp_path: Path):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    argv = [sys.executable, "-m", "pillm", "dataset", "stats", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no record" in done.stderr
    assert "Traceback" not in done.stderr
