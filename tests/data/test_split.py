import json
import random
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillm.core import jsonl
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Log, Output
from pillm.core.records import Message, Record
from pillm.core.shipped import data_path
from pillm.data import inputs
from pillm.data.duplicates import near, split
from pillm.data.options import SplitOptions

TRAIN = Path("dataset:home-assistant/train")
WORDS = [
    "amber",
    "birch",
    "cobalt",
    "dune",
    "ember",
    "fjord",
    "garnet",
    "hazel",
    "indigo",
    "juniper",
    "kelp",
    "lilac",
    "maple",
    "nickel",
    "opal",
]


def run(**options) -> tuple[list[str], dict, list]:
    events: list = []
    result = split.run(SplitOptions(**options), events.append)
    return [event.line for event in events if isinstance(event, Output)], result.metrics, events


def lines_of(folder: Path) -> dict[str, list[bytes]]:
    return {path.stem: path.read_bytes().splitlines(keepends=True) for path in sorted(folder.iterdir())}


def record(number: int, **fields) -> Record:
    rng = random.Random(number)
    text = " ".join(f"{rng.choice(WORDS)}{rng.randint(0, 999)}" for _ in range(30))
    return Record(f"r{number}", (Message("user", text), Message("assistant", "Noted.")), **fields)


def stratum(line: bytes) -> tuple:
    value = json.loads(line)
    kinds = sorted(tag for tag in value.get("tags", []) if tag.startswith("kind:"))
    return value.get("locale"), value.get("register"), *kinds


def test_every_line_of_the_shipped_data_is_in_one_part_with_its_bytes(tmp_path):
    run(data=(TRAIN,), out=tmp_path)
    parts = lines_of(tmp_path)
    assert sorted(line for lines in parts.values() for line in lines) == sorted(
        data_path(TRAIN).read_bytes().splitlines(keepends=True)
    )
    assert {name: len(lines) for name, lines in parts.items()} == {"train": 2160, "validation": 120, "test": 120}


def test_each_stratum_of_the_shipped_data_has_its_exact_share_rounded_up_or_down(tmp_path):
    shares = {"train": 0.8, "validation": 0.15, "test": 0.05}
    run(data=(TRAIN,), out=tmp_path, parts=tuple(f"{name}={share}" for name, share in shares.items()), near=False)
    counts = {name: Counter(map(stratum, lines)) for name, lines in lines_of(tmp_path).items()}
    totals = sum(counts.values(), Counter())
    assert len(totals) > 25
    for key, total in totals.items():
        for name, share in shares.items():
            assert abs(counts[name][key] - total * share) < 1, (key, name)


def test_near_duplicates_are_in_the_same_part(tmp_path):
    rng = random.Random(5)
    records = []
    for number in range(300):
        base = record(number)
        words = (base.messages[0].content or "").split()
        for copy in range(rng.choice([1, 1, 1, 2, 5])):
            changed = [*words]
            if copy:
                changed[rng.randrange(30)] = f"other{copy}"
            records.append(Record(f"r{number}-{copy}", (Message("user", " ".join(changed)), base.messages[1])))
    rng.shuffle(records)
    jsonl.write(tmp_path / "all.jsonl", records)
    run(data=(tmp_path / "all.jsonl",), out=tmp_path / "o", parts=("train=0.5", "test=0.5"))
    whole = [tmp_path / "o" / "train.jsonl", tmp_path / "o" / "test.jsonl"]
    found = near.near_duplicates(inputs.sources(whole))
    assert found.near > 100
    assert not (found.source[found.pairs.later] != found.source[found.pairs.earlier]).any()
    run(data=(tmp_path / "all.jsonl",), out=tmp_path / "apart", parts=("train=0.5", "test=0.5"), near=False)
    torn = near.near_duplicates(inputs.sources([tmp_path / "apart"]))
    assert (torn.source[torn.pairs.later] != torn.source[torn.pairs.earlier]).any()


@pytest.mark.parametrize("group", ["user", "source"])
def test_groups_are_never_torn_apart(tmp_path, group):
    rng = random.Random(2)
    records = []
    for number in range(600):
        person = f"p{rng.randint(0, 60)}"
        fields = {"source": person} if group == "source" else {"meta": {"user": person}}
        records.append(record(number, locale=rng.choice(["fr-CA", "en-US"]), **fields))
    jsonl.write(tmp_path / "all.jsonl", records)
    run(data=(tmp_path / "all.jsonl",), out=tmp_path / "o", parts=("train=3/4", "test=1/4"), group=group)
    where = defaultdict(set)
    sizes = Counter()
    for name, lines in lines_of(tmp_path / "o").items():
        for line in lines:
            value = json.loads(line)
            where[value["source"] if group == "source" else value["meta"]["user"]].add(name)
            sizes[name] += 1
    assert all(len(parts) == 1 for parts in where.values())
    # A group has ten records on average, so the shares can be met within one group's size.
    assert abs(sizes["test"] - 150) <= 10


def test_a_group_is_kept_together_with_near_duplicates_in_other_groups(tmp_path):
    base = record(1)
    words = (base.messages[0].content or "").split()
    twin = Record("twin", (Message("user", " ".join(["changed", *words[1:]])), base.messages[1]), meta={"user": "b"})
    chain = [record(1, meta={"user": "a"}), twin, record(2, meta={"user": "b"}), record(3, meta={"user": "a"})]
    rest = [record(number) for number in range(10, 30)]
    jsonl.write(tmp_path / "all.jsonl", [*chain, *rest])
    for seed in range(6):
        run(data=(tmp_path / "all.jsonl",), out=tmp_path / "o", parts=("x=0.5", "y=0.5"), group="user", seed=seed)
        places = {
            name for name, lines in lines_of(tmp_path / "o").items() for line in lines
            if json.loads(line)["id"] in {"r1", "twin", "r2", "r3"}
        }  # fmt: skip
        assert len(places) == 1


def test_neither_the_order_of_lines_nor_that_of_files_decides_where_a_record_goes(tmp_path):
    lines = data_path(TRAIN).read_bytes().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    (tmp_path / "b.jsonl").write_bytes(b"".join(lines[:900]))
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines[900:]))
    run(data=(TRAIN,), out=tmp_path / "one")
    run(data=(tmp_path / "a.jsonl", tmp_path / "b.jsonl"), out=tmp_path / "two")
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert {name: sorted(lines) for name, lines in one.items()} == {name: sorted(lines) for name, lines in two.items()}


def test_the_seed_decides_and_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2**80)):
        run(data=(TRAIN,), out=tmp_path / name, seed=seed)
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "b")
    assert len({tuple(lines_of(tmp_path / name)["test"]) for name in "acd"}) == 3


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=120),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_units_stay_whole_and_single_records_are_dealt_to_the_rounded_share(rows, weights):
    strata = np.unique([row[0] for row in rows], return_inverse=True)[1]
    units = np.array([row[1] for row in rows])
    hashes = np.array([hash((3, n)) % 2**63 for n in range(len(rows))], np.uint64)
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    chosen = split.deal(strata, units, hashes, shares)
    assert ((chosen >= 0) & (chosen < len(shares))).all()
    assert all(len(set(chosen[units == unit].tolist())) == 1 for unit in set(units.tolist()))
    alone = split.deal(strata, np.arange(len(rows)), hashes, shares)
    for value in set(strata.tolist()):
        total = int((strata == value).sum())
        for part, share in enumerate(shares):
            assert abs(((strata == value) & (alone == part)).sum() - total * share) < 1


def test_many_small_strata_do_not_shift_the_whole(tmp_path):
    jsonl.write(tmp_path / "all.jsonl", [record(number, source=f"book {number}") for number in range(400)])
    _, metrics, _ = run(data=(tmp_path / "all.jsonl",), out=tmp_path / "o", stratify=("source",))
    assert (metrics["train"], metrics["validation"], metrics["test"]) == (360, 20, 20)


def test_tools_tags_and_sources_can_be_strata_and_the_table_shows_their_counts(tmp_path):
    table, metrics, _ = run(data=(TRAIN,), out=tmp_path, parts=("train=0.5", "test=0.5"), stratify=("tool",))
    counts = {name: Counter() for name in ("train", "test")}
    for name, lines in lines_of(tmp_path).items():
        for line in lines:
            tools = [tag.removeprefix("tool:") for tag in json.loads(line).get("tags", []) if tag.startswith("tool:")]
            counts[name]["+".join(tools) or "-"] += 1
    shown = {row.split()[0]: row.split()[1:] for row in table[1:-2]}
    assert shown.keys() == counts["train"].keys() | counts["test"].keys()
    for tool, (total, train, test) in shown.items():
        assert int(train.replace(",", "")) == counts["train"][tool]
        assert int(test.replace(",", "")) == counts["test"][tool]
        assert int(total.replace(",", "")) == counts["train"][tool] + counts["test"][tool]
    assert metrics["largest_deviation"] < 1.5


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        (("train=0.9", "test=0.2"), "sum to 1.1, not to 1"),
        (("train=0.9", "test"), "not NAME=SHARE"),
        (("train=0.5", "train=0.5"), "two parts"),
        (("train=half", "test=0.5"), "no number"),
        (("train=1/0", "test=0.5"), "no number"),
        (("train=1.5", "test=-0.5"), "above 0"),
        (("../train=0.5", "test=0.5"), "not NAME=SHARE"),
        (("train=nan", "test=0.5"), "no number"),
    ],
)
def test_parts_that_cannot_be_are_refused(tmp_path, parts, word):
    with pytest.raises(UsageError, match=word):
        run(data=(TRAIN,), out=tmp_path / "o", parts=parts)
    assert not (tmp_path / "o").exists()


def test_thirds_can_be_written_as_fractions():
    assert sum(split.shares(("a=1/3", "b=1/3", "c=1/3")).values()) == 1


def test_an_input_is_never_overwritten(tmp_path):
    jsonl.write(tmp_path / "train.jsonl", [record(1), record(2)])
    before = (tmp_path / "train.jsonl").read_bytes()
    with pytest.raises(UsageError, match="which is read"):
        run(data=(tmp_path / "train.jsonl",), out=tmp_path)
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_lines_that_are_no_records_are_named_and_nothing_is_written(tmp_path):
    good = jsonl.records.encode(record(1))
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, b"{oops", b"", b'{"id": 4}', good]))
    with pytest.raises(FindingsError, match="2 lines") as caught:
        run(data=(tmp_path,), out=tmp_path / "o")
    assert [finding.line for finding in caught.value.findings] == [2, 4]
    assert not (tmp_path / "o").exists()


def test_odd_line_ends_marks_and_blank_lines_do_not_shift_records(tmp_path):
    lines = [jsonl.records.encode(record(number)) for number in range(40)]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines))
    run(data=(tmp_path,), out=tmp_path / "o", parts=("x=0.5", "y=0.5"))
    parts = lines_of(tmp_path / "o")
    assert sorted(line.strip() for part in parts.values() for line in part) == sorted(lines)
    assert all(line.endswith(b"\n") for part in parts.values() for line in part)
    assert len(parts["x"]) == 20


def test_a_part_without_records_is_told(tmp_path):
    jsonl.write(tmp_path / "a.jsonl", [record(1), record(2)])
    _, metrics, events = run(data=(tmp_path,), out=tmp_path / "o")
    assert metrics["test"] == 0 or metrics["validation"] == 0
    assert any(isinstance(event, Log) and "has no records" in event.message for event in events)
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"train.jsonl", "validation.jsonl", "test.jsonl"}


def test_data_without_records_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    with pytest.raises(UsageError, match="no record"):
        run(data=(tmp_path,), out=tmp_path / "o")
