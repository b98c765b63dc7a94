"""Validation on the planted faults, on clean data, and where the quick and the full judgement must agree."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pillm.cli.main import main
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Event, Output
from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.data.inputs import blocks, sources
from pillm.data.options import ValidateOptions
from pillm.data.validation import judge, validate
from pillm.data.validation.codes import CODES
from pillm.data.validation.ids import Ids, Place

HERE = Path(__file__).parent
FAULTS, CLEAN = HERE / "faults", HERE / "clean.jsonl"
SHIPPED = HERE.parent.parent / "src/pillm/data/shipped/home-assistant"


def findings(*data: Path, **more: Any) -> list[dict[str, Any]]:
    """What `pillm dataset validate --format=jsonl` prints."""
    said: list[Event] = []
    options = ValidateOptions(data=data, format="jsonl", max_findings=10**6, **more)
    with contextlib.suppress(FindingsError):
        validate.run(options, said.append)
    return [json.loads(event.line) for event in said if isinstance(event, Output)]


def placed(found: list[dict[str, Any]]) -> Counter[tuple[int, str, str]]:
    return Counter((item["line"], item["code"], item["path"]) for item in found)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")


def test_every_planted_fault_is_found_at_its_line_and_path_and_nothing_else() -> None:
    expected = [json.loads(line) for line in (FAULTS / "records.expected.jsonl").read_text().splitlines()]
    assert len({item["code"] for item in expected}) >= 60
    assert placed(findings(FAULTS / "records.jsonl")) == placed(expected)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("byte-order-mark.jsonl", "byte-order-mark"),
        ("windows-line-end.jsonl", "windows-line-end"),
        ("not-utf16.jsonl", "not-utf16"),
        ("empty.jsonl", "empty"),
        ("broken-archive.jsonl.gz", "broken-archive"),
        ("broken-archive.jsonl.zst", "broken-archive"),
    ],
)
def test_a_fault_of_the_file_itself_is_told_once(file: str, code: str) -> None:
    assert [item["code"] for item in findings(FAULTS / file)].count(code) == 1


def test_every_code_is_planted_somewhere() -> None:
    planted = {json.loads(line)["code"] for line in (FAULTS / "records.expected.jsonl").read_text().splitlines()}
    planted |= {path.name.split(".")[0] for path in FAULTS.iterdir()}
    # Tested below, since they need an option or a line of 16 MiB; and with the other commands.
    elsewhere = {"line-too-long", "template-refuses", "too-many-tokens", "other-language", "other-variety"}
    elsewhere |= {"not-a-record", "leakage", "not-convertible"}
    assert set(CODES) <= planted | elsewhere


@pytest.mark.parametrize("path", [CLEAN, *sorted(SHIPPED.glob("*.jsonl"))], ids=lambda path: path.name)
def test_clean_data_has_no_findings(path: Path) -> None:
    assert findings(path) == []


def test_the_byte_leads_to_the_line_and_for_broken_json_into_it() -> None:
    path = FAULTS / "records.jsonl"
    data = path.read_bytes()
    for item in findings(path):
        start = data.rfind(b"\n", 0, item["byte"]) + 1
        assert data.count(b"\n", 0, start) == item["line"] - 1
    wrong = next(item for item in findings(path) if item["code"] == "not-utf8")
    assert data[wrong["byte"]] == 0xE9


def test_the_quick_judgement_never_takes_what_the_full_one_refuses() -> None:
    for path in (FAULTS / "records.jsonl", CLEAN):
        for line in lines_of(path):
            if line and judge.sound(line) is not None:
                assert judge.faults(line)[0] == []


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_mutated_clean_line_is_judged_alike_by_both(data: st.DataObject) -> None:
    seeds = [line for line in lines_of(CLEAN) if line]
    line = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(line) - 1))
        end = data.draw(st.integers(start, min(len(line), start + 12)))
        pieces = [
            b'"',
            b"}",
            b"{",
            b",",
            b":",
            b"null",
            b"1",
            b'"id":"x",',
            b"\\u0022",
            b"\xcc\x81",
            b"\xd0\xb0",
            b"\\ud800",
        ]
        line[start:end] = data.draw(st.one_of(st.sampled_from(pieces), st.binary(max_size=6)))
        if not line:
            return
    given_line = bytes(line).replace(b"\n", b" ")
    if judge.sound(given_line) is not None:
        assert judge.faults(given_line)[0] == []
        json.loads(given_line)


@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_and_workers_change_nothing(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FAULTS / "records.jsonl"
    whole = findings(path)
    monkeypatch.setattr("pillm.data.validation.validate.blocks", lambda found: blocks(found, 4096))
    assert findings(path, workers=workers) == whole


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files_are_judged_as_they_are_unpacked(suffix: str, tmp_path: Path) -> None:
    plain = FAULTS / "records.jsonl"
    data = plain.read_bytes()
    packed = tmp_path / f"records.jsonl{suffix}"
    middle = data.index(b"\n", len(data) // 2) - 7
    for part in (data[:middle], data[middle:]):  # two members, as `cat a.gz b.gz` makes them
        with packed.open("ab") as file:
            file.write(gzip.compress(part) if suffix == ".gz" else zstandard.ZstdCompressor().compress(part))
    assert placed(findings(packed)) == placed(findings(plain))


def test_a_line_that_is_too_long_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    good = lines_of(CLEAN)[0]
    long = b'{"id":"long","messages":[{"role":"user","content":"' + b"x" * (MAX_LINE_BYTES + 2**20) + b'"}]}'
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"\n".join([long, good, good]) + b"\n")
    assert [(item["line"], item["code"]) for item in findings(path)] == [(1, "line-too-long"), (3, "duplicate-id")]
    packed = tmp_path / "long.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert [(item["line"], item["code"]) for item in findings(packed)] == [(1, "line-too-long"), (3, "duplicate-id")]


def test_ids_that_stand_twice_are_found_across_files_and_parts(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_bytes(b"".join(b'{"id":"%d","messages":[{"role":"user","content":"x"}]}\n' % n for n in range(50)))
    two.write_bytes(b"".join(b'{"id":"%d","messages":[{"role":"user","content":"x"}]}\n' % n for n in range(49, 99)))
    found = findings(one, two)
    assert [(Path(item["file"]).name, item["line"], item["code"]) for item in found] == [
        ("two.jsonl", 1, "duplicate-id")
    ]
    assert "one.jsonl:50" in found[0]["message"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=80), st.integers(1, 20))
def test_doubled_ids_are_those_a_dictionary_finds(keys: list[int], part: int) -> None:
    first: dict[int, Place] = {}
    expected = []
    with Ids(part) as ids:
        for number, key in enumerate(keys):
            place = Place(number % 3, number, number * 10)
            ids.add(place.source, 0, validate._id_entry(str(key), place.line, place.byte))
        for number, key in sorted(enumerate(keys), key=lambda item: (item[0] % 3, item[0])):
            place = Place(number % 3, number, number * 10)
            if key in first:
                expected.append((place, first[key]))
            else:
                first[key] = place
        assert list(ids.doubled()) == expected


def test_findings_beyond_the_limit_are_counted(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "validate", str(FAULTS / "records.jsonl"), "--max-findings=3"]) == 1
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 3
    assert "more than are shown" in said.err
    errors = sum(item["severity"] == "error" for item in findings(FAULTS / "records.jsonl"))
    assert f"{errors} errors" in said.err


def test_a_finding_in_text_names_file_line_byte_path_code_and_fix(capfd: pytest.CaptureFixture[str]) -> None:
    path = FAULTS / "byte-order-mark.jsonl"
    assert main(["dataset", "validate", str(path)]) == 0  # a warning
    assert capfd.readouterr().out == (
        f"{path}:1:0 $ byte-order-mark the file begins with a byte order mark; save as UTF-8 without it\n"
    )
    assert main(["dataset", "validate", str(path), "--strict"]) == 1
    assert main(["dataset", "validate", str(path), "--strict", "--ignore=byte-order-mark"]) == 0


def test_text_and_github_lines_hold_nothing_that_a_terminal_obeys(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id":"a","messages":[{"role":"\\u001b[31m\\n::error::","content":"x"}]}\n')
    for form in ("text", "github"):
        assert main(["dataset", "validate", str(path), f"--format={form}"]) == 1
        out = capfd.readouterr().out
        assert "\x1b" not in out
        assert not any(line.startswith("::error::") for line in out.splitlines())


def test_sarif_is_valid_by_its_shape(capfd: pytest.CaptureFixture[str]) -> None:
    path = FAULTS / "records.jsonl"
    assert main(["dataset", "validate", str(path), "--format=sarif"]) == 1
    log = json.loads(capfd.readouterr().out)
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(run["results"]) == sum(placed(findings(path)).values())
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        (place,) = result["locations"]
        assert place["physicalLocation"]["region"]["startLine"] >= 1


def test_github_annotations_name_file_and_line(capfd: pytest.CaptureFixture[str]) -> None:
    path = FAULTS / "empty.jsonl"
    assert main(["dataset", "validate", str(path), "--format=github"]) == 1
    assert capfd.readouterr().out.startswith(f"::error file={path},line=1,title=empty at $::")


def test_a_template_that_refuses_a_dialogue_is_told(tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"id":"a","messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}\n'
        '{"id":"b","messages":[{"role":"system","content":"s"},{"role":"user","content":"x"}]}\n'
    )
    (item,) = findings(path, chat_template=str(template))
    assert (item["line"], item["code"]) == (2, "template-refuses")
    assert "roles must alternate" in item["message"]


def test_a_named_model_brings_its_own_template_and_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    )
    config = {"chat_template": template, "bos_token": {"content": "begin "}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"id":"a","messages":[{"role":"user","content":"one two"}]}\n'
        '{"id":"b","messages":[{"role":"user","content":"one two three"}]}\n'
        '{"id":"c","messages":[{"role":"system","content":"s"},{"role":"user","content":"x"}]}\n'
    )
    # begin user : one two
    found = findings(path, model=str(tmp_path), context=5)
    assert [(item["line"], item["code"]) for item in found] == [(2, "too-many-tokens"), (3, "template-refuses")]


@pytest.mark.model
def test_the_template_of_a_gguf_file_is_its_own(smollm2_gguf: Path) -> None:
    # SmolLM2's template knows no tools and puts `content` into the text, which a bare call has not.
    path = SHIPPED / "smoke.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    bare = [n for n, record in enumerate(records, 1) if any("content" not in turn for turn in record["messages"])]
    assert 0 < len(bare) < len(records)
    assert [(item["line"], item["code"]) for item in findings(path, model=str(smollm2_gguf))] == [
        (number, "template-refuses") for number in bare
    ]


def test_dialogues_beyond_the_context_are_told(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(f'{{"id":"{n}","messages":[{{"role":"user","content":"{"a " * n}b"}}]}}\n' for n in (3, 4, 5))
    )
    (item,) = findings(path, tokenizer=tmp_path, context=5)
    assert (item["line"], item["code"]) == (3, "too-many-tokens")
    assert "6 tokens" in item["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jsonl"], "cannot be read"),
        (["--ignore=nonsense", str(CLEAN)], "no such code"),
        (["--context=5", str(CLEAN)], "needs a tokenizer"),
        (["--tokenizer=x", str(CLEAN)], "counts tokens for --context"),
        (["--model=x", "--chat-template=chatml-tools", str(CLEAN)], "both name a template"),
        ([str(CLEAN), str(CLEAN)], "same file"),
        ([], "is required"),
    ],
)
def test_wrong_usage_is_told_in_words(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "validate", *words]) == 2
    assert said in capfd.readouterr().err


def test_what_can_be_mended_is_mended_and_all_else_keeps_its_bytes(tmp_path: Path) -> None:
    target = tmp_path / "mended.jsonl"
    path = FAULTS / "records.jsonl"
    before = findings(path)
    findings(path, fix=target)
    mendable = {code for code, about in CODES.items() if about.mendable}
    left = [(item["code"], item["path"]) for item in before if item["code"] not in mendable]
    # Text of a call which was written as a string may be mended and still not fit.
    assert Counter(left) == Counter((item["code"], item["path"]) for item in findings(target))
    untouched = [
        line
        for number, line in enumerate(lines_of(path), 1)
        if not any(item["line"] == number and item["code"] in mendable for item in before)
    ]
    assert not Counter(untouched) - Counter(lines_of(target))


def test_a_mended_file_of_warnings_is_clean(tmp_path: Path) -> None:
    for name in ("byte-order-mark.jsonl", "windows-line-end.jsonl"):
        target = tmp_path / name
        assert main(["dataset", "validate", str(FAULTS / name), f"--fix={target}", "--strict"]) == 0
        assert findings(target) == []


def test_the_data_itself_is_never_the_target_of_a_mending(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes((FAULTS / "windows-line-end.jsonl").read_bytes())
    before = path.read_bytes()
    assert main(["dataset", "validate", str(path), f"--fix={path}"]) == 2
    assert path.read_bytes() == before


def test_no_schema_makes_it_reach_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = findings(FAULTS / "records.jsonl", workers=1)
    assert [item["code"] for item in found].count("remote-ref") == 2


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":"a","messages":[{"role":"user","content":"x"}],"meta":{'
        + b",".join(b'"%d":1' % n for n in range(10**6))
        + b"}}",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    ],
    ids=["a million keys", "deep arrays", "deep objects"],
)
def test_a_huge_or_deep_line_is_judged_like_any_other(line: bytes) -> None:
    faults, _ = judge.faults(line)
    assert [fault.code for fault in faults] in ([], ["too-deep"])
    assert judge.sound(line) is None or not faults


def test_references_that_follow_one_another_for_ever_end_in_a_finding() -> None:
    defs = {"d0": {"type": "integer"}, **{f"d{n}": {"$ref": f"#/$defs/d{n - 1}"} for n in range(1, 20_000)}}
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/d19999"}}, "$defs": defs}
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}
    line = json.dumps({"id": "a", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}).encode()
    assert [fault.code for fault in judge.faults(line)[0]] == ["schema-too-deep"]
    assert judge.sound(line) is None


def test_a_record_that_is_nested_to_the_limit_passes_and_one_deeper_does_not() -> None:
    for deep, codes in ((judge.MAX_DEPTH - 1, []), (judge.MAX_DEPTH, ["too-deep"])):
        line = (
            b'{"id":"a","messages":[{"role":"user","content":"x"}],"meta":'
            + b'{"a":' * deep
            + b"1"
            + b"}" * deep
            + b"}"
        )
        assert [fault.code for fault in judge.faults(line)[0]] == codes
        assert (judge.sound(line) is not None) == (not codes)


def test_sources_in_a_folder_come_in_order_and_a_folder_without_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.jsonl"):
        sources([tmp_path])
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).write_bytes(b"{}\n")
    assert [source.path.name for source in sources([tmp_path])] == ["a.jsonl", "b.jsonl"]
