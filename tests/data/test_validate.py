"""Validation on the planted faults, on clean data, and where the quick and the full judgement must agree."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pillm.cli.main import main
from pillm.core import records
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Event, Output
from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.data.inputs import blocks, sources
from pillm.data.options import ValidateOptions
from pillm.data.validation import characters, check, judge, schemas, validate
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
    found, value = judge.faults(given_line)
    if judge.sound(given_line) is not None:
        assert found == []
        json.loads(given_line)
    # The full judgement asks for characters only where the quick test of bytes is not sure.
    if value is not None and characters.plain(given_line):
        assert not any(characters.faults(value))


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
            place = Place(number % 3, number * 10, number)
            ids.add(place.source, 0, check.id_entry(str(key), place.line, place.byte))
        for number, key in sorted(enumerate(keys), key=lambda item: (item[0] % 3, item[0])):
            place = Place(number % 3, number * 10, number)
            if key in first:
                expected.append((place, first[key]))
            else:
                first[key] = place
        assert ids.doubled(len(keys)) == (expected, len(expected))
        assert ids.doubled(2) == (expected[:2], len(expected))


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


U, A = '{"role":"user","content":"x"}', '{"role":"assistant","content":"y"}'
CALL = '{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":ARGS},"id":"ID"}]}'
TOOL = '{"type":"function","function":{"name":"f","description":"","parameters":{"type":"object"}}}'


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        # Keys that are counted wrongly, because of a blank before the colon or a colon written as a number.
        ('{"id" :"a","id":"b","messages":[U,A]}', ["duplicate-key"]),
        ('{"id":"a","id":"b","messages":[U,{"role":"assistant","content":"x\\"\\u003a y"}]}', ["duplicate-key"]),
        ('{"id":"a","messages":[U,A],"meta":{"a" :1,"a":2}}', ["duplicate-key"]),
        # Markup and mojibake behind escapes.
        ('{"id":"a","messages":[{"role":"user","content":"x<\\/s>"}]}', ["chat-markup"]),
        ('{"id":"a","messages":[{"role":"user","content":"x<\\u007cim_start|>"}]}', ["chat-markup"]),
        ('{"id":"a","messages":[{"role":"user","content":"[INST\\u005d"}]}', ["chat-markup"]),
        ('{"id":"a","messages":[{"role":"user","content":"\\u00ef\\u00bb\\u00bf"}]}', ["mojibake"]),
        # Arguments that no validator descends into.
        ('{"id":"a","messages":[U,' + CALL.replace("ARGS", '{"a":' * 252 + "1" + "}" * 252) + '],"tools":[TOOL]}', ["too-deep"]),
        # A call without an id, answered under the id of another.
        ('{"id":"a","messages":[U,CALL,{"role":"tool","content":"x","tool_call_id":"c"},A,U,CALL2,'
         '{"role":"tool","content":"x","tool_call_id":"c"},A],"tools":[TOOL]}', ["answered-twice", "unanswered-call"]),
        # Schemas that are no objects: training takes none.
        ('{"id":"a","messages":[U,A],"response_schema":true}', ["invalid-schema"]),
        ('{"id":"a","messages":[U,A],"tools":[{"type":"function","function":{"name":"f","parameters":true}}]}', ["invalid-schema"]),
    ],
)  # fmt: skip
def test_what_once_slipped_past_the_quick_judgement(line: str, codes: list[str]) -> None:
    line = line.replace("CALL2", CALL.replace(',"id":"ID"', "")).replace("CALL", CALL).replace("ARGS", "{}")
    data = line.replace("ID", "c").replace("U,", U + ",").replace(",A", "," + A).replace("TOOL", TOOL).encode()
    assert [fault.code for fault in judge.faults(data)[0]] == codes
    assert judge.sound(data) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"q": {"$id": "#x", "type": "integer"}}, "properties": {"n": {"$ref": "#x"}}},
        {"$schema": "https://json-schema.org/draft-07/schema#", "properties": {"n": {"type": "integer"}}},
        {"$schema": "http://json-schema.org/draft-04/schema#", "id": "http://e.com/root.json", "definitions": {"i": {"type": "integer"}}, "properties": {"n": {"$ref": "http://e.com/root.json#/definitions/i"}}},
        {"$defs": {"inner": {"$id": "http://e.com/inner", "properties": {"n": {"$ref": "#/$defs/i"}}, "$defs": {"i": {"type": "integer"}}}}, "$ref": "http://e.com/inner"},
        {"$id": "https://e.com/root", "$defs": {"a": {"$id": "/schemas/i", "type": "integer"}}, "properties": {"n": {"$ref": "https://e.com/schemas/i"}}},
        {"$id": "https://e.com/s/root.json", "$defs": {"x": {"type": "integer"}}, "properties": {"n": {"$ref": "/s/root.json#/$defs/x"}}},
        {"$defs": {"café": {"type": "integer"}, "a/b": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/caf%C3%A9"}, "m": {"$ref": "#/$defs/a~1b"}}},
        {"$defs": {"i": {"$anchor": "here", "type": "integer"}}, "properties": {"n": {"$ref": "#here"}}},
        {"properties": {"n": {"type": "integer"}, "schema": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}},
        {"properties": {"n": {"type": "integer"}, "t": {"type": "string", "pattern": "^.{1,1500}$"}, "u": {"pattern": "^\\p{L}{1,100}$"}}},
        {"properties": {"n": {"type": "integer"}, "f": {"$ref": "#/$defs/filter"}}, "$defs": {"filter": {"anyOf": [{"properties": {"and": {"items": {"$ref": "#/$defs/filter"}}}}, {"properties": {"or": {"items": {"$ref": "#/$defs/filter"}}}}]}}},
    ],
)  # fmt: skip
def test_schemas_as_people_write_them_are_used_and_not_refused(schema: dict[str, Any]) -> None:
    judged = schemas.judge({"type": "object", **schema}, "$.response_schema")
    assert judged.faults == ()
    assert judged.validator.is_valid({"n": 1})
    assert not judged.validator.is_valid({"n": "one"})


def doubling(levels: int, pointer: str) -> dict[str, Any]:
    """A schema outside of all keywords, in which every level judges the next one twice."""
    steps = {f"a{n}": {"allOf": [{"$ref": f"{pointer}/a{n + 1}"}] * 2} for n in range(1, levels)}
    return {"a0": {"properties": {"p": {"$ref": f"{pointer}/a1"}}}, **steps, f"a{levels}": {"type": "integer"}}


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ({"type": "object", "$ref": "#/x/a0", "x": doubling(40, "#/x")}, "costly-schema"),
        ({"$id": "http://e.com/s", "type": "object", "$ref": "http://e.com/s#/x/a0", "x": doubling(40, "http://e.com/s#/x")}, "costly-schema"),
        ({"$id": "http://e.com/s", "$ref": "http://e.com/s"}, "ref-loop"),
    ],
)  # fmt: skip
def test_no_way_of_writing_a_reference_hides_what_takes_for_ever(schema: dict[str, Any], code: str) -> None:
    assert [fault.code for fault in schemas.judge(schema, "$").faults] == [code]


@pytest.mark.parametrize(
    "record",
    [
        {"id": "a", "messages": [{"role": "user", "content": "a" * 300_000 + " a\u0430"}]},
        {"id": "a", "messages": [{"role": "user", "content": "x"}], "tags": [""] * 60_000},
        {"id": "a", "messages": [{"role": "user", "content": "a" + "\u0301\u0316" * 150_000}]},
        {"id": "a", "messages": [{"role": "user", "content": "x"}], "meta": {"k" * 400_000: [1] * 400_000}},
        {"id": "a", "messages": [{"role": "user", "content": "x"}], "tags": [str(n) for n in range(200_000)] + ["0"]},
    ],
    ids=["long word", "many tags", "many marks", "long key", "one tag twice"],
)
@pytest.mark.timeout(120)
def test_a_line_made_to_take_long_is_judged_and_mended(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    # With the square of its length, each takes from minutes to hours; the mark ends it.
    findings(path, fix=tmp_path / "y.jsonl")
    assert (tmp_path / "y.jsonl").stat().st_size


def test_in_a_windows_file_the_other_faults_are_shown_too(tmp_path: Path) -> None:
    good = '{"id":"%d","messages":[{"role":"user","content":"x"}]}'
    lines = [good % number for number in range(2000)]
    lines[1500] = '{"id":"bad","messages":[]}'
    path = tmp_path / "x.jsonl"
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    said: list[Event] = []
    with contextlib.suppress(FindingsError):
        validate.run(ValidateOptions(data=(path,), max_findings=5), said.append)
    shown = [event.line.split()[2] for event in said if isinstance(event, Output)]
    assert shown == ["windows-line-end", "no-messages"]


def test_what_is_not_shown_is_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"id":"{number}","messages":[]}}\n' for number in range(5000)))
    assert main(["dataset", "validate", str(path), "--max-findings=2"]) == 1
    assert "4,998 more than are shown" in capfd.readouterr().err


def test_a_mended_copy_is_judged_by_the_same_rules(tmp_path: Path) -> None:
    path, target = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    template = tmp_path / "t.jinja"
    template.write_text("{{ raise_exception('no') }}")
    path.write_text('{"id":"a","messages":[{"role":"user","content":"x"}]}\n')
    assert main(["dataset", "validate", str(path), f"--fix={target}", f"--chat-template={template}"]) == 1
    path.write_text('{"id":"a","messages":[]}\n')
    assert main(["dataset", "validate", str(path), f"--fix={target}", "--ignore=no-messages"]) == 0
    path.write_text("")
    assert main(["dataset", "validate", str(path), f"--fix={target}"]) == 1
    doubled = '{"id":"a","messages":[{"role":"user","content":"x"},CALL],"tools":[TOOL]}\n'
    path.write_text(doubled.replace("CALL", CALL).replace("ARGS", r'"{\"a\":1,\"a\":2}"').replace("TOOL", TOOL))
    assert main(["dataset", "validate", str(path), f"--fix={target}"]) == 1
    assert target.read_bytes() == path.read_bytes()


def test_a_mended_copy_of_many_files_needs_few_at_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(40):
        (data / f"{number:02}.jsonl").write_text(f'{{"id":"{number}","messages":[{U}]}}\r\n')
    code = (
        "import resource, sys\nfrom pillm.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))\n"
        f"sys.exit(main(['dataset', 'validate', {str(data)!r}, '--fix={tmp_path / 'mended'}', '--workers=1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "mended").iterdir())) == 40


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", []),
        ("a\U000e0067b", ["invisible-character"]),
        ("\u05e9\u05dc\u05d5\u05dd\u200f!", []),
        ("\u05e9\u05dc\u05d5\u05dd\u202e!", ["bidi-control"]),
        ("a\u200fb", ["bidi-control"]),
        ("<s>old</s>", []),
        ("end</s>", ["chat-markup"]),
    ],
)
def test_unusual_characters_are_told_only_where_they_do_harm(text: str, codes: list[str]) -> None:
    line = json.dumps({"id": "a", "messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()
    assert [fault.code for fault in judge.faults(line)[0]] == codes


def test_files_that_cannot_be_read_in_parts_or_begin_unusually(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.jsonl"
    os.mkfifo(fifo)
    with pytest.raises(UsageError, match="no regular file"):
        sources([fifo])
    line = b'{"id":"a","messages":[{"role":"user","content":"x"}]}\n'
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
    packed = tmp_path / "x.jsonl.zst"
    packed.write_bytes(skippable + zstandard.ZstdCompressor().compress(line))
    assert findings(packed) == []
    only_mark = tmp_path / "mark.jsonl"
    only_mark.write_bytes(b"\xef\xbb\xbf")
    assert "empty" in [item["code"] for item in findings(only_mark)]
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/b\xff.jsonl"))
    odd.write_bytes(b"{}\n")
    assert all("\\xff" in item["file"] or "udcff" in item["file"] for item in findings(odd))
    hidden = tmp_path / "folder/.cache"
    hidden.mkdir(parents=True)
    (hidden / "x.jsonl").write_bytes(line)
    (tmp_path / "folder/y.jsonl").write_bytes(line)
    assert [source.path.name for source in sources([tmp_path / "folder"])] == ["y.jsonl"]


def test_a_packed_file_that_unpacks_to_a_thousandfold_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.zst"
    compressor = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        for _ in range(256):
            file.write(compressor.compress(b" " * 2**22))
        file.write(compressor.flush())
    code = (
        "from pathlib import Path\nfrom pillm.cli.main import main\n"
        f"assert main(['dataset', 'validate', {str(path)!r}, '--workers=1']) == 1\n"
        # Not getrusage, which counts what the parent had before it became this program.
        "peak = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))\n"
        "print(int(peak.split()[1]) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 600, "MiB"


def test_what_has_no_error_is_what_training_reads() -> None:
    for path in (FAULTS / "records.jsonl", CLEAN):
        for line in lines_of(path):
            found, _ = judge.faults(line) if line else ([], None)
            if line and not any(CODES[fault.code].severity == "error" for fault in found):
                records.decoder.decode(line)


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
