"""The card of a dataset: one source, four readers (people, the Hub, Croissant, CI), and no figure that is not counted."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from pillm.core.errors import FindingsError, ProfileError, UsageError
from pillm.core.events import silent
from pillm.core.findings import Finding
from pillm.core.shipped import data_path
from pillm.data.card import about as card_about
from pillm.data.card import check as card_check
from pillm.data.card import hub as card_hub
from pillm.data.card import source as card_source
from pillm.data.dataset_card import main, run
from pillm.data.options import CardOptions

ABOUT = """\
name: home-assistant
title: Dialogues for a home assistant
version: 1.2.0
published: 2026-11-22
description: Short dialogues in three varieties.
license: CC0-1.0
citation: "@misc{home, title = {Dialogues}}"
homepage: https://example.org/home
creators: [The makers]
collection: Composed by a generator out of phrasings that were written by hand.
biases: [Three varieties only, Seven tools only]
personal_data: [None; names are invented.]
intended_uses: [Training small models]
uses_to_avoid: [Emergency calls]
known_gaps: [One call a turn]
social_impact: Small.
maintenance: Mended where faults are found.
varieties:
  fr-CA: The French of Quebec
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with data/train.jsonl (60 dialogues), data/heldout.jsonl (20) and data/about.yaml."""
    return lay_out(tmp_path / "place")


def lay_out(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    for split, rows in (("train", 60), ("heldout", 20)):
        lines = data_path(f"dataset:home-assistant/{split}").read_bytes().splitlines(keepends=True)
        (folder / "data" / f"{split}.jsonl").write_bytes(b"".join(lines[:rows]))
    (folder / "data" / "about.yaml").write_text(ABOUT)
    return folder


def make(place: Path, **options: Any) -> Path:
    out = options.pop("out", place / "card")
    run(CardOptions(**{"data": (place / "data",), "out": out, "workers": 1, **options}), silent)
    return out


def checked(card: Path, **options: Any) -> list[Finding]:
    return card_check.check(card, CardOptions(validate_=card, workers=1, **options), silent)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def codes(found: list[Finding]) -> set[str]:
    return {finding.code for finding in found}


# The files.


def test_the_same_data_gives_the_same_bytes_elsewhere_and_with_other_workers(place: Path, tmp_path: Path):
    other = lay_out(tmp_path / "quite" / "elsewhere")
    one, two = make(place, workers=1), make(other, workers=2)
    assert files(one) == files(two)
    assert set(files(one)) == {"README.md", "croissant.json", "dataset_card.json"}
    assert all(str(tmp_path).encode() not in data for data in files(one).values())


def test_figures_are_those_of_the_data(place: Path):
    card = json.loads((make(place) / "dataset_card.json").read_bytes())
    assert card["statistics"]["records"] == 80
    assert {name: split["records"] for name, split in card["statistics"]["splits"].items()} == {
        "train": 60,
        "heldout": 20,
    }
    assert [file["path"] for file in card["files"]] == ["../data/heldout.jsonl", "../data/train.jsonl"]
    assert card["duplicates"]["records"] == 80


def test_repeats_across_splits_are_counted_as_leakage(place: Path):
    train, heldout = place / "data" / "train.jsonl", place / "data" / "heldout.jsonl"
    line = heldout.read_bytes().splitlines(keepends=True)[0].replace(b"ha-heldout", b"copy")
    train.write_bytes(train.read_bytes() + line)
    card = json.loads((make(place) / "dataset_card.json").read_bytes())
    assert (card["duplicates"]["exact"], card["duplicates"]["across_splits"]) == (1, 1)
    assert card["duplicates"]["exact_rate"] == round(1 / 81, 6)
    assert any("another split" in gap for gap in card["gaps"]["found"])


def test_a_tokenizer_is_named_with_its_hash_and_used_again(place: Path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(place / "tokenizer.json"))
    card = make(place, tokenizer=place)
    says = json.loads((card / "dataset_card.json").read_bytes())
    assert says["settings"]["tokenizer"]["path"] == "../tokenizer.json"
    assert says["statistics"]["lengths"]["tokens"]["count"] == 80
    assert checked(card) == []
    made.pre_tokenizer = tokenizers.pre_tokenizers.CharDelimiterSplit("a")
    made.save(str(place / "tokenizer.json"))
    paths = {finding.path for finding in checked(card)}
    assert {"$.settings.tokenizer.sha256", "$.statistics.lengths.tokens.mean"} <= paths


def test_the_card_may_lie_beside_other_files(place: Path):
    keep = place / "data" / "notes.txt"
    keep.write_text("mine")
    make(place, out=place / "data")
    assert keep.read_text() == "mine"
    assert len(files(place / "data")) == 7
    assert checked(place / "data") == []
    card = json.loads((place / "data" / "dataset_card.json").read_bytes())
    assert [file["path"] for file in card["files"]] == ["heldout.jsonl", "train.jsonl"]


@pytest.mark.parametrize("name", ["README.md", "croissant.json"])
def test_what_others_wrote_is_not_replaced(name: str, place: Path):
    mine = place / name
    mine.write_text("mine")
    with pytest.raises(UsageError, match="not made by pillm"):
        make(place, out=place)
    assert mine.read_text() == "mine"
    assert not (place / "dataset_card.json").exists()
    mine.unlink()
    make(place, out=place)
    make(place, out=place)
    mine.unlink()
    assert codes(checked(place)) == {"missing-file"}


def test_the_exported_schema_is_that_of_the_card_and_cards_fit_it(place: Path):
    exported = json.loads(resources.files("pillm.data.card").joinpath("card.schema.json").read_text())
    assert exported == card_source.schema(), (
        "run: python -m pillm.data.card.source > src/pillm/data/card/card.schema.json"
    )
    card = json.loads((make(place) / "dataset_card.json").read_bytes())
    jsonschema_rs.validate(exported, card)
    card["statistics"]["records"] = "80"
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(exported, card)


def test_lines_that_are_no_records_stop_the_card(place: Path):
    with (place / "data" / "train.jsonl").open("ab") as file:
        file.write(b"{oops\n")
    with pytest.raises(FindingsError) as caught:
        make(place)
    assert caught.value.findings[0].line == 61
    assert "pillm dataset validate" in caught.value.hint
    assert not (place / "card").exists()


def test_targets_that_are_not_met_are_known_gaps(place: Path):
    targets = place / "targets.yaml"
    targets.write_text("targets:\n  - {locale: fr-CA, records: 5}\n  - {locale: de-CH, register: formal, records: 7}\n")
    card = make(place, targets=targets)
    says = json.loads((card / "dataset_card.json").read_bytes())
    assert [target["found"] >= target["wanted"] for target in says["coverage"]["targets"]] == [True, False]
    assert any("de-CH, formal: 0 of 7 records" in gap for gap in says["gaps"]["found"])
    assert "\n| de-CH, formal | 7 | 0 | 7 | 0 | 0 |\n" in (card / "README.md").read_text()
    assert checked(card) == []
    targets.write_text("targets:\n  - {locale: fr-CA, records: 5000}\n")
    assert "$.coverage.targets[0].wanted" in {finding.path for finding in checked(card)}
    targets.write_text("targets:\n  - {local: fr-CA, records: 5}\n")
    with pytest.raises(ProfileError):
        make(place, targets=targets)


def test_what_the_text_shows_of_varieties_stands_beside_what_is_declared(place: Path):
    says = json.loads((make(place) / "dataset_card.json").read_bytes())
    varieties = {variety["locale"]: variety for variety in says["coverage"]["varieties"]}
    assert set(varieties) == set(says["statistics"]["locales"]["counts"]) == {"en-US", "fr-CA", "fr-FR"}
    assert varieties["fr-CA"]["records"] == says["statistics"]["locales"]["counts"]["fr-CA"]
    assert sum(cell["records"] for cell in says["coverage"]["cells"]) == 80


# README.md.


def front_matter(readme: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", readme, re.DOTALL)
    assert match
    return yaml.safe_load(match[1])


def test_the_hub_finds_what_it_looks_for(place: Path):
    repocard = pytest.importorskip("huggingface_hub.repocard")
    readme = (make(place) / "README.md").read_text()
    data = repocard.DatasetCard(readme).data
    assert data.language == ["en", "fr"]
    assert data.license == "cc0-1.0"
    assert data.size_categories == ["n<1K"]
    assert data.pretty_name == "Dialogues for a home assistant"
    matter = front_matter(readme)
    assert matter["language_details"] == ["en-US", "fr-CA", "fr-FR"]
    paths = {entry["split"]: entry["path"] for config in matter["configs"] for entry in config["data_files"]}
    assert paths == {"heldout": "../data/heldout.jsonl", "train": "../data/train.jsonl"}


def test_splits_with_other_fields_get_a_configuration_of_their_own(place: Path):
    (place / "data" / "heldout.jsonl").write_text('{"id": "a", "messages": [{"role": "user", "content": "Hi"}]}\n')
    configs = front_matter((make(place) / "README.md").read_text())["configs"]
    assert {config["config_name"]: config.get("default") for config in configs} == {"heldout": None, "train": True}


@pytest.mark.parametrize(
    ("spdx", "hub"),
    [("CC0-1.0", "cc0-1.0"), ("MIT", "mit"), ("GPL-3.0-or-later", "gpl-3.0"), ("ODbL-1.0", "odbl"),
     ("MIT AND CC-BY-4.0", "other"), ("LicenseRef-Mine", "other")],
)  # fmt: skip
def test_licences_have_the_hubs_names(spdx: str, hub: str):
    assert card_hub.hub_license(spdx) == hub


@pytest.mark.parametrize(
    ("records", "size"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12, "n>1T"), (10**12 - 1, "100B<n<1T")],
)
def test_sizes_have_the_hubs_names(records: int, size: str):
    assert card_hub.size_category(records) == size


def test_datasheet_and_data_statement_have_the_answers_and_say_what_is_not_stated(place: Path):
    readme = (make(place) / "README.md").read_text()
    for heading in ("Motivation", "Composition", "Collection", "Uses", "Distribution", "Maintenance", "Language variety",
                    "Curation rationale", "Speaker demographic", "Annotator demographic", "Speech situation"):  # fmt: skip
        assert f"\n### {heading}\n" in readme
    assert "Composed by a generator out of phrasings" in readme
    assert "The French of Quebec" in readme
    card = json.loads((place / "card" / "dataset_card.json").read_bytes())
    assert {"speakers", "consent", "contact"} < set(card["gaps"]["not_stated"])
    assert not {"title", "biases", "varieties"} & set(card["gaps"]["not_stated"])
    assert readme.count("*not stated*") > 10
    known_gaps = readme.partition("## Known gaps")[2].partition("\n## ")[0]
    assert "One call a turn" in known_gaps
    assert "`speakers`" in known_gaps


HOSTILE = [
    "a | b\n| c |",
    "---\n# heading\n===\n",
    "\x1b[31m`code` <script>alert(1)</script> -->",
    "yes: no # {comment}",
    "```\nfence",
    "![x](y) \\| \u2028 end",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_the_readme(text: str, place: Path):
    plain = make(place)
    before = (plain / "README.md").read_text()
    record = json.loads((place / "data" / "train.jsonl").read_text().splitlines()[0])
    record.update(id="hostile", source=text, tags=[text], register=text)
    (place / "data" / "train.jsonl").write_text(json.dumps(record) + "\n")
    stated = yaml.safe_load(ABOUT.replace("1.2.0", '"1.2.0"').replace("2026-11-22", '"2026-11-22"'))
    answer = "".join(letter for letter in text if letter.isprintable() or letter == "\n")
    stated.update(title=answer, description=answer, known_gaps=[answer], varieties={"fr-CA": answer}, contact=answer)
    (place / "data" / "about.yaml").write_text(yaml.safe_dump(stated), "utf-8")
    out = make(place)
    readme = (out / "README.md").read_text()
    assert front_matter(readme)["pretty_name"] == " ".join(answer.split())
    headings = [line for line in readme.splitlines() if line.startswith("#")]
    assert headings[1:] == [line for line in before.splitlines() if line.startswith("#")][1:]
    for table in re.findall(r"(?:^\|.*\n)+", readme, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
    assert "<script>" not in readme.split("\n---\n", 1)[1]
    assert not re.search(r"^(```|===)", readme, re.MULTILINE)
    assert "\x1b" not in readme
    assert checked(out) == []


# croissant.json.


@pytest.mark.filterwarnings("ignore")
def test_croissant_loads_without_a_warning_and_gives_the_records(place: Path):
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(str(make(place) / "croissant.json"))
    issues = dataset.metadata.ctx.issues
    assert (issues.errors, issues.warnings) == (set(), set())
    assert str(dataset.metadata.ctx.conforms_to.value).endswith("croissant/1.1")
    assert dataset.metadata.data_collection.startswith("Composed by a generator")
    assert dataset.metadata.data_biases == ["Three varieties only", "Seven tools only"]
    assert dataset.metadata.personal_sensitive_information == ["None; names are invented."]
    assert dataset.metadata.data_use_cases == ["Training small models"]
    assert "Not for: Emergency calls" in dataset.metadata.data_limitations
    rows = [json.loads(line) for line in (place / "data" / "train.jsonl").read_text().splitlines()]
    read = list(dataset.records("dialogues/train"))
    assert [row["dialogues/train/id"].decode() for row in read] == [row["id"] for row in rows]
    assert [row["dialogues/train/locale"].decode() for row in read] == [row["locale"] for row in rows]
    for got, row in zip(read, rows, strict=True):
        said = [turn["dialogues/train/messages/content"] for turn in got["dialogues/train/messages"]]
        assert [text and text.decode() for text in said] == [message.get("content") for message in row["messages"]]


@pytest.mark.filterwarnings("ignore")
def test_a_split_of_several_files_is_one_record_set(place: Path):
    mlcroissant = pytest.importorskip("mlcroissant")
    train = place / "data" / "train.jsonl"
    lines = train.read_bytes().splitlines(keepends=True)
    train.unlink()
    (place / "data" / "train-[1].jsonl").write_bytes(b"".join(lines[:40]))
    (place / "data" / "train-2.jsonl").write_bytes(b"".join(lines[40:]))
    dataset = mlcroissant.Dataset(str(make(place, out=place) / "croissant.json"))
    assert (dataset.metadata.ctx.issues.errors, dataset.metadata.ctx.issues.warnings) == (set(), set())
    assert len(list(dataset.records("dialogues/train"))) == 60
    assert len(list(dataset.records("dialogues/heldout"))) == 20


@pytest.mark.filterwarnings("ignore")
def test_croissant_refuses_changed_data(place: Path):
    mlcroissant = pytest.importorskip("mlcroissant")
    card = make(place)
    with (place / "data" / "train.jsonl").open("ab") as file:
        file.write(b"\n")
    dataset = mlcroissant.Dataset(str(card / "croissant.json"))
    with pytest.raises(mlcroissant.GenerationError) as caught:
        list(dataset.records("dialogues/train"))
    assert "not identical" in str(caught.value.__cause__)


# The about file.


@pytest.mark.parametrize(
    ("text", "line", "code", "words"),
    [
        ("title: A\nlicence: MIT\n", 2, "unknown-key", "license"),
        ("title: A\n\nversion: 1.0\n", 3, "wrong-type", "quotes"),
        ("creators: Me\n", 1, "wrong-type", "list"),
        ("creators:\n  - A\n  - [B]\n", 3, "wrong-type", "text"),
        ("published: '2026-13-01'\n", 1, "wrong-value", "month"),
        ("homepage: example.org\n", 1, "wrong-value", "https"),
        ("version: '1.0'\n", 1, "wrong-value", "MAJOR.MINOR.PATCH"),
        ("name: my data\n", 1, "wrong-value", "letters"),
        ("license: Free for all\n", 1, "wrong-value", "SPDX"),
        ("title: A\ntitle: B\n", 2, "duplicate-key", "line 1"),
        ("- a\n", 1, "wrong-type", "keys"),
        ("title: 'A\n", 1, "not-yaml", ""),
        ("annotations_creators: [robots]\n", 1, "wrong-value", "machine-generated"),
    ],
)
def test_mistakes_in_the_about_file_have_a_line(text: str, line: int, code: str, words: str, place: Path):
    about = place / "data" / "about.yaml"
    about.write_text(text)
    with pytest.raises(FindingsError) as caught:
        make(place)
    (finding,) = caught.value.findings
    assert (finding.file, finding.code) == (str(about), code)
    assert finding.line >= line
    assert code == "not-yaml" or finding.line == line
    assert words in finding.message


def test_an_about_file_that_is_named_goes_before_the_one_beside_the_data(place: Path):
    mine = place / "mine.yaml"
    mine.write_text("title: Mine\ncontact:\n")
    card = json.loads((make(place, about=mine) / "dataset_card.json").read_bytes())
    assert card["about"] == {"title": "Mine"}
    assert "contact" in card["gaps"]["not_stated"]


def test_the_template_has_every_key_and_answers_nothing(tmp_path: Path):
    lines = list(card_about.template())
    path = tmp_path / "about.yaml"
    path.write_text("\n".join(lines))
    assert card_about.read(path) == {}
    keys = "\n".join(line.removeprefix("# ") for line in lines if re.match(r"# \w+: ", line))
    path.write_text(keys)
    assert keys.count("\n") + 1 == len(card_about.questions())
    assert card_about.read(path) == {}


# --validate.


def test_a_card_holds_offline(place: Path, monkeypatch: pytest.MonkeyPatch):
    card = make(place)

    def refuse(*_: object) -> None:
        raise AssertionError("the check asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert checked(card) == []


@pytest.mark.parametrize("at", [0, 1000, -2])
def test_one_flipped_byte_names_the_file_and_both_hashes(at: int, place: Path):
    card = make(place)
    says = json.loads((card / "dataset_card.json").read_bytes())["files"][1]["sha256"]
    path = place / "data" / "train.jsonl"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    changed = [finding for finding in checked(card) if finding.code == "changed-file"]
    assert len(changed) == 1
    assert "train.jsonl" in changed[0].message
    assert says in changed[0].message
    assert card_source.sha256_file(path) in changed[0].message
    assert changed[0].path == "$.files[1].sha256"


def test_missing_new_and_moved_files_are_named(place: Path):
    card = make(place)
    data = place / "data"
    shutil.copy(data / "train.jsonl", place / "kept")
    (data / "train.jsonl").rename(data / "extra.jsonl")
    found = checked(card)
    assert {"missing-file", "new-file", "drift"} == codes(found)
    assert any("train.jsonl is not there" in finding.message for finding in found)
    assert any("extra.jsonl is not in the card" in finding.message for finding in found)
    shutil.rmtree(data)
    assert any("train.jsonl" in finding.message for finding in checked(card) if finding.code == "missing-file")


def test_data_that_was_moved_is_found_where_it_is_said_to_be(place: Path, tmp_path: Path):
    card = make(place)
    moved = tmp_path / "moved"
    (place / "data").rename(moved)
    assert "missing-file" in codes(checked(card))
    assert checked(card, data=(moved,), about=moved / "about.yaml") == []
    with pytest.raises(UsageError, match="made of 1 paths"):
        checked(card, data=(moved, place))


def leaves(value: Any, path: str = "$") -> Iterator[tuple[str, Any, Any]]:
    """JSONPath, container and key of every number and text."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        where = f"{path}[{key}]" if isinstance(value, list) else card_check.member(path, key)
        if isinstance(item, dict | list):
            yield from leaves(item, where)
        else:
            yield where, value, key


def test_every_field_that_is_changed_by_hand_is_named(place: Path):
    card = make(place)
    path = card / "dataset_card.json"
    raw = path.read_bytes()
    says = json.loads(raw)
    options = CardOptions(data=(place / "data",), out=card, workers=1)
    now = card_source.measure(card_source.inputs_of(options), silent)
    missed = []
    for where, container, key in leaves(says):
        if where.startswith(("$.settings", "$.schema_version")):
            continue
        kept = container[key]
        container[key] = (
            not kept if isinstance(kept, bool) else kept + 1 if isinstance(kept, int | float) else f"{kept}x"
        )
        if where.endswith(".packing"):
            container[key] = "gzip"
        changed = card_source.decode(json.dumps(says).encode())
        found = {finding.path for finding in card_check.drift(path, changed, now)}
        # A file by another name is one that is missing and one that is new.
        if where not in found and not (where.endswith(".path") and "$.files" in found):
            missed.append(where)
        container[key] = kept
    assert not missed
    path.write_bytes(raw.replace(b'"records": 80', b'"records": 81', 1))
    assert {"drift", "edited"} <= codes(checked(card))


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b"[" * 10**5, b'{"schema_version": 2}'])
def test_what_is_no_card_is_said_to_be_none(raw: bytes, place: Path):
    card = make(place)
    (card / "dataset_card.json").write_bytes(raw)
    assert codes(checked(card)) == {"not-a-card"}


def test_edits_by_hand_are_named(place: Path):
    card = make(place)
    readme = card / "README.md"
    text = readme.read_text()
    readme.write_text(text.replace("The French of Quebec", "The French of Canada"))
    (finding,) = checked(card)
    line = 1 + next(n for n, line in enumerate(text.splitlines()) if "The French of Quebec" in line)
    assert (finding.file, finding.line, finding.code) == (str(readme), line, "edited")
    assert "about.yaml" in finding.hint
    readme.write_text(text)
    croissant = card / "croissant.json"
    document = json.loads(croissant.read_text())
    document["version"] = "9.9.9"
    croissant.write_text(json.dumps(document))
    (finding,) = checked(card)
    assert (finding.path, "9.9.9" in finding.message, "1.2.0" in finding.message) == ("$.version", True, True)
    croissant.write_text("{")
    assert codes(checked(card)) == {"not-json"}


def test_a_changed_about_file_is_drift_and_so_is_a_new_one(place: Path):
    card = make(place)
    about = place / "data" / "about.yaml"
    about.write_text(ABOUT.replace("Seven tools only", "Eight tools only"))
    paths = {finding.path for finding in checked(card)}
    assert {"$.about.biases[1]", "$.settings.about.sha256"} <= paths
    about.unlink()
    assert codes(checked(card)) == {"missing-file"}
    card = make(place)
    about.write_text("title: New\n")
    assert "$.about.title" in {finding.path for finding in checked(card)}


# As CI calls it.


def test_the_module_is_the_command_for_ci(place: Path):
    argv = [sys.executable, "-m", "pillm.data.dataset_card"]

    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*argv, *words], capture_output=True, text=True, cwd=place, check=False)

    made = ran("data", "--out=card")
    assert (made.returncode, made.stderr) == (0, "")
    held = ran("--validate=card")
    assert (held.returncode, held.stdout) == (0, "card: the card holds\n")
    with (place / "data" / "train.jsonl").open("ab") as file:
        file.write(b"\n")
    drifted = ran("--validate", "card")
    assert drifted.returncode == 1
    assert re.search(
        r"^card/dataset_card\.json: \$\.files\[1\]\.sha256 changed-file: .*train\.jsonl", drifted.stdout, re.MULTILINE
    )
    assert ran("--validate=nothing").returncode == 2
    assert ran("--similarity=2", "data").returncode == 2
    assert ran().returncode == 2


def test_the_command_line_gives_the_same_as_the_module(place: Path):
    argv = [sys.executable, "-m", "pillm", "dataset", "card"]
    out = place / "card"
    done = subprocess.run([*argv, str(place / "data"), f"--out={out}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first = files(out)
    assert main([str(place / "data"), f"--out={out}"]) == 0
    assert files(out) == first
    (place / "data" / "heldout.jsonl").unlink()
    done = subprocess.run([*argv, f"--validate={out}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "heldout.jsonl" in done.stderr
