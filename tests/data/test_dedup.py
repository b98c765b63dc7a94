import gzip
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillm.core import jsonl
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Log, Output
from pillm.core.records import FunctionCall, Message, Record, ToolCall
from pillm.core.shipped import data_path
from pillm.data import inputs
from pillm.data.duplicates import dedup, near, set_join
from pillm.data.options import DedupOptions

NOUNS = [
    "kettle",
    "lantern",
    "harbour",
    "violin",
    "cupboard",
    "meadow",
    "tractor",
    "pillow",
    "anchor",
    "biscuit",
    "ladder",
    "window",
    "garden",
    "bottle",
    "cedar",
]


def dialogue(number: int, words: int = 40, seed: int = 0) -> Record:
    rng = random.Random(f"{number}-{seed}")
    text = " ".join(f"{rng.choice(NOUNS)}{rng.randint(0, 99)}" for _ in range(words))
    return Record(f"r{number}", (Message("user", text), Message("assistant", f"Noted, {number}.")))


def with_word(record: Record, place: int, word: str, ident: str) -> Record:
    words = (record.messages[0].content or "").split()
    words[place] = word
    return Record(ident, (Message("user", " ".join(words)), *record.messages[1:]))


def run(options: DedupOptions) -> tuple[list[str], dict]:
    events: list = []
    result = dedup.run(options, events.append)
    return [event.line for event in events if isinstance(event, Output)], result.metrics


def triples(text: str) -> frozenset:
    words = ["<", "<", *near.words(text), ">", ">"]
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def similarity(one: frozenset, other: frozenset) -> float:
    return len(one & other) / len(one | other)


@given(
    st.lists(st.frozensets(st.integers(0, 40), min_size=1, max_size=25), max_size=30),
    st.sampled_from([0.2, 0.5, 0.75, 0.8, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_the_join_finds_exactly_the_pairs_that_comparing_all_finds(sets, threshold):
    # Spread over 32 bits, as hashes are.
    members = [sorted(number * 2654435761 % 2**32 for number in one) for one in sets]
    flat = np.array([number for one in members for number in one], np.uint32)
    sizes = np.array([len(one) for one in sets], np.uint32)
    found = set_join.alike(flat, sizes, threshold, np.arange(len(sets)))
    expected = {
        (later, earlier): similarity(sets[earlier], sets[later])
        for earlier, later in itertools.combinations(range(len(sets)), 2)
        if similarity(sets[earlier], sets[later]) >= threshold - 1e-12
    }
    got = {
        (int(later), int(earlier)): float(alike)
        for later, earlier, alike in zip(found.later, found.earlier, found.similarity, strict=True)
    }
    # Sets with more than KEPT like them may lose pairs; there are too few sets here for that in both groups.
    if len(sets) <= set_join.KEPT:
        assert got.keys() == expected.keys()
    assert got.keys() <= expected.keys()
    assert {later for later, _ in got} == {later for later, _ in expected}
    assert all(abs(got[pair] - expected[pair]) < 1e-6 for pair in got)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60))
def test_components_are_those_of_a_walk_over_the_pairs(count, pairs):
    pairs = [(a % count, b % count) for a, b in pairs]
    leader = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            leader[a] = leader[b] = min(leader[a], leader[b])
    left, right = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert set_join.components(count, left, right).tolist() == leader


@pytest.mark.parametrize("threshold", [0.8, 0.4])
def test_on_the_shipped_data_the_near_pairs_are_those_of_comparing_all_triples(threshold):
    sources = inputs.sources(["dataset:home-assistant/development", "dataset:home-assistant/heldout"])
    found = near.near_duplicates(sources, threshold)
    records = [record for source in sources for record in jsonl.read(source.path)]
    sets = [triples(near.dialogue(record.messages)) for record in records]
    expected = {
        (later, earlier)
        for earlier, later in itertools.combinations(range(len(sets)), 2)
        if similarity(sets[earlier], sets[later]) >= threshold
    }
    assert found.records == len(records)
    assert set(zip(found.pairs.later.tolist(), found.pairs.earlier.tolist(), strict=True)) == expected
    assert found.near == len({later for later, _ in expected})


def test_copies_and_dialogues_with_one_other_word_are_found_at_their_lines(tmp_path):
    records = [dialogue(number) for number in range(50)]
    copy = Record("copy", records[7].messages)
    changed = with_word(records[3], 20, "giraffe", "changed")
    jsonl.write(tmp_path / "a.jsonl", [*records, copy])
    jsonl.write(tmp_path / "b.jsonl", [changed, dialogue(99)])
    found = near.near_duplicates(inputs.sources([tmp_path]))
    exact, nearly = found.found()
    assert exact == (0, 51, 0, 8, 1.0, True)
    assert nearly[:4] == (1, 1, 0, 4)
    assert not nearly.exact
    both = [triples(near.dialogue(record.messages)) for record in (records[3], changed)]
    assert nearly.similarity == pytest.approx(similarity(*both))
    assert (found.records, found.exact, found.near) == (53, 1, 1)


def test_the_system_prompt_and_the_tools_make_no_difference_but_a_schema_does(tmp_path):
    turns = dialogue(1).messages
    jsonl.write(
        tmp_path / "a.jsonl",
        [
            Record("a", turns),
            Record("b", (Message("system", "You are terse."), *turns)),
            Record("c", turns, response_schema={"type": "object"}),
        ],
    )
    found = near.near_duplicates(inputs.sources([tmp_path]), near=False)
    assert found.repeats.tolist() == [-1, 0, -1]


def test_the_order_of_arguments_makes_no_difference_and_their_values_do(tmp_path):
    def call(ident, arguments):
        return Record(
            ident, (Message("user", "Go"), Message("assistant", tool_calls=(ToolCall(FunctionCall("f", arguments)),)))
        )

    jsonl.write(
        tmp_path / "a.jsonl", [call("a", {"x": 1, "y": 2}), call("b", {"y": 2, "x": 1}), call("c", {"x": 2, "y": 1})]
    )
    found = near.near_duplicates(inputs.sources([tmp_path]))
    assert found.repeats.tolist() == [-1, 0, -1]


def test_short_dialogues_are_near_duplicates_only_if_their_words_are_the_same(tmp_path):
    texts = ["Turn on the hall light", "turn on the hall light!", "Turn on the attic light", "👍", "👎"]
    jsonl.write(tmp_path / "a.jsonl", [Record(f"r{n}", (Message("user", text),)) for n, text in enumerate(texts)])
    found = near.near_duplicates(inputs.sources([tmp_path]))
    assert found.repeats.tolist() == [-1, 0, -1, -1, -1]
    assert not found.is_exact.any()


def test_scripts_without_spaces_are_compared_by_character(tmp_path):
    long = "明日の朝七時に台所の明かりをつけて、それから居間の暖房を二十度にしてください。"
    texts = [long, long.replace("七", "八"), long.replace("台所の明かりをつけて", "")]
    jsonl.write(tmp_path / "a.jsonl", [Record(f"r{n}", (Message("user", text),)) for n, text in enumerate(texts)])
    assert near.near_duplicates(inputs.sources([tmp_path])).repeats.tolist() == [-1, 0, -1]


def test_the_result_is_the_same_for_any_number_of_workers_and_size_of_blocks(tmp_path, monkeypatch):
    records = [dialogue(number % 500, words=80) for number in range(3000)]
    records = [with_word(record, n % 40, "otter", f"x{n}") for n, record in enumerate(records)]
    jsonl.write(tmp_path / "a.jsonl", records)
    found = []
    for workers, size in ((1, 2**23), (2, 2**17), (1, 999)):
        monkeypatch.setattr(near, "blocks", lambda sources, size=size: inputs.blocks(sources, size))
        found.append(near.near_duplicates(inputs.sources([tmp_path]), workers=workers))
    for other in found[1:]:
        assert other.line.tolist() == found[0].line.tolist()
        assert other.repeats.tolist() == found[0].repeats.tolist()
        assert other.similarity.tolist() == found[0].similarity.tolist()
    assert found[0].near > 100


def test_thousands_of_dialogues_that_are_all_alike_take_no_quadratic_time(tmp_path):
    base = dialogue(1, words=60)
    jsonl.write(tmp_path / "a.jsonl", [with_word(base, 30, f"number{n}", f"r{n}") for n in range(6000)])
    events: list = []
    found = near.near_duplicates(inputs.sources([tmp_path]), emit=events.append)
    assert found.near == 5999
    assert len(found.pairs.later) < 6000 * 5999 / 4
    assert any(isinstance(event, Log) and "may be missing" in event.message for event in events)


def test_files_are_written_without_later_duplicates_and_other_bytes_stay(tmp_path):
    records = [dialogue(number) for number in range(6)]
    lines = [json.dumps(json.loads(jsonl.records.encode(record)), indent=None).encode() for record in records]
    first = b"\r\n".join([lines[0], lines[1], lines[0], b"", b"{broken", lines[2]])
    second = b"\n".join([lines[3], lines[1], lines[4]]) + b"\n"
    (tmp_path / "a.jsonl").write_bytes(first)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(second))
    report, metrics = run(DedupOptions(data=(tmp_path,), out=tmp_path / "out"))
    assert (tmp_path / "out" / "a.jsonl").read_bytes() == b"\r\n".join([lines[0], lines[1], b"", b"{broken", lines[2]])
    assert gzip.decompress((tmp_path / "out" / "b.jsonl.gz").read_bytes()) == lines[3] + b"\n" + lines[4] + b"\n"
    assert f"{tmp_path / 'b.jsonl.gz'}:2: the same dialogue as {tmp_path / 'a.jsonl'}:2" in report
    assert metrics == {"records": 7, "exact": 2, "near": 0, "leakage": 0, "kept": 5, "invalid": 1}


def test_what_was_written_has_no_duplicates_any_more(tmp_path):
    records = [with_word(dialogue(n % 40), n % 40, f"w{n % 9}", f"r{n}") for n in range(400)]
    jsonl.write(tmp_path / "a.jsonl", records)
    _, first = run(DedupOptions(data=(tmp_path / "a.jsonl",), out=tmp_path / "out"))
    _, second = run(DedupOptions(data=(tmp_path / "out" / "a.jsonl",)))
    assert first["near"] > 0
    assert second["kept"] == second["records"] == first["kept"]


def test_leakage_from_held_out_files_is_an_error_that_names_both_places(tmp_path):
    records = [dialogue(number) for number in range(20)]
    jsonl.write(tmp_path / "mine.jsonl", [*records, records[0]])
    jsonl.write(tmp_path / "exam.jsonl", [with_word(records[4], 9, "zebra", "q"), Record("e", records[6].messages)])
    with pytest.raises(FindingsError) as caught:
        run(DedupOptions(data=(tmp_path / "mine.jsonl",), heldout=(tmp_path / "exam.jsonl",)))
    assert [(finding.file, finding.line) for finding in caught.value.findings] == [
        (str(tmp_path / "mine.jsonl"), 5),
        (str(tmp_path / "mine.jsonl"), 7),
    ]
    nearly, exact = (finding.message for finding in caught.value.findings)
    assert f"{tmp_path / 'exam.jsonl'}:1" in nearly
    assert exact == f"the same dialogue as {tmp_path / 'exam.jsonl'}:2"
    assert caught.value.exit_code == 1


def test_with_out_leakage_is_left_out_and_the_held_out_file_is_not_written(tmp_path):
    records = [dialogue(number) for number in range(20)]
    jsonl.write(tmp_path / "mine.jsonl", records)
    jsonl.write(tmp_path / "exam.jsonl", [Record("e", records[6].messages)])
    _, metrics = run(
        DedupOptions(data=(tmp_path / "mine.jsonl",), heldout=(tmp_path / "exam.jsonl",), out=tmp_path / "o")
    )
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["mine.jsonl"]
    assert [record.id for record in jsonl.read(tmp_path / "o" / "mine.jsonl")] == [
        r.id for r in records if r.id != "r6"
    ]
    assert (metrics["leakage"], metrics["exact"], metrics["kept"]) == (1, 0, 19)


def test_leakage_shows_even_if_a_record_is_more_like_another_one_of_its_own_file(tmp_path):
    base = dialogue(1, words=80)
    twin = with_word(base, 5, "zebra", "twin")
    jsonl.write(tmp_path / "train.jsonl", [base, Record("copy", base.messages), twin])
    jsonl.write(tmp_path / "test.jsonl", [with_word(base, 60, "lynx", "exam")])
    with pytest.raises(FindingsError) as caught:
        run(DedupOptions(data=(tmp_path,)))
    assert [finding.line for finding in caught.value.findings] == [1, 2, 3]
    assert all("test.jsonl:1" in finding.message for finding in caught.value.findings)


def test_of_files_named_train_and_test_the_test_file_keeps_its_records(tmp_path):
    records = [dialogue(number) for number in range(9)]
    jsonl.write(tmp_path / "train.jsonl", records)
    jsonl.write(tmp_path / "heldout.jsonl", records[:2])
    jsonl.write(tmp_path / "validation.jsonl", records[1:4])
    _, metrics = run(DedupOptions(data=(tmp_path,), out=tmp_path / "o"))
    kept = {path.name: [r.id for r in jsonl.read(path)] for path in (tmp_path / "o").iterdir()}
    assert kept == {
        "heldout.jsonl": ["r0", "r1"],
        "validation.jsonl": ["r2", "r3"],
        "train.jsonl": ["r4", "r5", "r6", "r7", "r8"],
    }
    assert metrics["leakage"] == 5


def test_duplicates_in_files_that_are_all_trained_on_are_no_leakage(tmp_path):
    jsonl.write(tmp_path / "train-1.jsonl", [dialogue(1)])
    jsonl.write(tmp_path / "more.jsonl", [dialogue(1), dialogue(2)])
    _, metrics = run(DedupOptions(data=(tmp_path,)))
    assert (metrics["leakage"], metrics["exact"]) == (0, 1)


def test_planted_leaks_in_the_shipped_data_are_all_found(tmp_path):
    train = jsonl.read(data_path("dataset:home-assistant/train"))
    heldout = jsonl.read(data_path("dataset:home-assistant/heldout"))
    rng = random.Random(3)
    taken = sorted(rng.sample(range(len(heldout)), 25))
    places = sorted(rng.sample(range(len(train)), 25))
    mixed = list(train)
    for place, index in zip(reversed(places), reversed(taken), strict=True):
        mixed.insert(place, heldout[index])
    jsonl.write(tmp_path / "train.jsonl", mixed)
    with pytest.raises(FindingsError) as caught:
        run(DedupOptions(data=(tmp_path / "train.jsonl",), heldout=(Path("dataset:home-assistant/heldout"),)))
    expected = {(place + shift + 1, index + 1) for shift, (place, index) in enumerate(zip(places, taken, strict=True))}
    assert {(f.line, int(f.message.rpartition(":")[2])) for f in caught.value.findings} == expected


@pytest.mark.parametrize(
    ("out", "word"), [(".", "which is read"), ("o", "two files would be written")], ids=["an input", "one name twice"]
)
def test_nothing_is_overwritten(tmp_path, monkeypatch, out, word):
    monkeypatch.chdir(tmp_path)
    jsonl.write(tmp_path / "a.jsonl", [dialogue(1)])
    jsonl.write(tmp_path / "deep" / "a.jsonl", [dialogue(2)])
    before = (tmp_path / "a.jsonl").read_bytes()
    data = (Path("a.jsonl"), Path("deep/a.jsonl"))
    with pytest.raises(UsageError, match=word):
        run(DedupOptions(data=data, out=Path(out)))
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert not (tmp_path / "o").exists()


def test_a_damaged_archive_is_an_error_and_leaves_nothing_behind(tmp_path):
    whole = gzip.compress(b"\n".join(jsonl.records.encode(dialogue(n)) for n in range(500)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FindingsError, match="damaged"):
        run(DedupOptions(data=(tmp_path,), out=tmp_path / "o"))
    assert not list(tmp_path.glob("o/*"))


def test_the_folder_above_all_files_does_not_say_what_they_are_for(tmp_path):
    for name, record in (("a", dialogue(1)), ("b", dialogue(1))):
        jsonl.write(tmp_path / "dev" / f"{name}.jsonl", [record])
    _, metrics = run(DedupOptions(data=(tmp_path / "dev",)))
    assert (metrics["leakage"], metrics["exact"]) == (0, 1)
    for name in ("train", "test"):
        jsonl.write(tmp_path / "dev" / name / "part.jsonl", [dialogue(2)])
    with pytest.raises(FindingsError) as caught:
        run(DedupOptions(data=(tmp_path / "dev",)))
    assert [finding.file for finding in caught.value.findings] == [str(tmp_path / "dev" / "train" / "part.jsonl")]
