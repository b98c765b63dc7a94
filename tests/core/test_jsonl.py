"""Bad input: every line that is no record is named with its place, and nothing crashes or grows."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillm.core import jsonl
from pillm.core.errors import FindingsError, ResourceError, UsageError
from pillm.core.findings import Finding
from pillm.core.records import Message, Record, encode


def record(name: str, content: str = "hello") -> bytes:
    return encode(Record(name, (Message("user", content),)))


def scanned(path: Path) -> list[tuple[int, int, str]]:
    """(line, byte, finding's code or the record's id) of each line."""
    return [
        (line.number, line.byte, item.code if isinstance(item, Finding) else item.id) for line, item in jsonl.scan(path)
    ]


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (b"{", "not-json", "truncated"),
        (b'{"id": "x", "messages": [{"role": "us', "not-json", "truncated"),
        (b"{'id': 1}", "not-json", "malformed"),
        (b"id,messages", "not-json", "malformed"),
        (b'{"id":"x","messages":[{"role":"user","content":"a"}]} {}', "not-json", "trailing"),
        (b'{"id":"x","messages":[{"role":"user","content":"caf\xe9"}]}', "not-utf8", "0xe9"),
        (record("x").decode().encode("utf-16"), "not-utf8", "0xff"),
        (b"[1, 2]", "not-a-record", "object"),
        (b"null", "not-a-record", "object"),
        (b"{}", "not-a-record", "`id`"),
        (b'{"id":7,"messages":[]}', "not-a-record", "str"),
        (b'{"id":"x","messages":"hi"}', "not-a-record", "array"),
        (b'{"id":"x","messages":[{"role":"boss","content":"a"}]}', "not-a-record", "boss"),
        (b'{"id":"x","messages":[{"role":"user","content":"a"}],"meta":{"n":1e999}}', "not-a-record", "range"),
        (b'{"id":"x","messages":[]}', "no-messages", "no messages"),
        (b'{"id":"x","messages":[{"role":"user","content":""}]}', "empty-message", "user"),
        (b'{"id":"x","messages":[{"role":"assistant"}]}', "empty-message", "assistant"),
        (b'{"id":"x","meta":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "not-json", "deeply"),
    ],
)
def test_a_bad_line_is_named_with_its_place_and_the_others_are_read(
    tmp_path: Path, line: bytes, code: str, says: str
) -> None:
    path = tmp_path / "data.jsonl"
    before, after = record("before"), record("after")
    path.write_bytes(b"\n".join([before, line, after]) + b"\n")
    at = len(before) + 1
    if b"\n" not in line:
        assert scanned(path) == [(1, 0, "before"), (2, at, code), (3, at + len(line) + 1, "after")]
    finding = next(item for _, item in jsonl.scan(path) if isinstance(item, Finding))
    assert (finding.line, finding.byte, finding.code) == (2, at, code)
    assert says in finding.message
    assert str(finding).startswith(f"{path}:2:")


def test_a_finding_points_into_the_record(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b'{"id":"a","messages":[{"role":"user","content":"x"},{"role":"user","content":""}]}\n'
        b'{"id":"b","messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}]}\n'
    )
    places = [item.path for _, item in jsonl.scan(path) if isinstance(item, Finding)]
    assert places == ["$.messages[1]", "$.messages[0].tool_calls[0].function.arguments"]


def test_a_file_cut_off_in_its_last_line_gives_the_others(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(record("a") + b"\n" + record("b")[:20])
    assert [what for *_, what in scanned(path)] == ["a", "not-json"]


def test_a_repeated_id_names_the_line_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([record("a"), b"", record("b"), record("a", "again"), record("a")]))
    findings = [item for _, item in jsonl.scan(path) if isinstance(item, Finding)]
    assert [(finding.line, finding.code) for finding in findings] == [(4, "duplicate-id"), (5, "duplicate-id")]
    assert all("line 1" in finding.message for finding in findings)


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_no_findings(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + record("a") + b"\r\n\r\n  \n" + record("b"))
    assert [item.id for item in jsonl.read(path)] == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(FindingsError) as caught:
        jsonl.read(path)
    assert [finding.code for finding in caught.value.findings] == ["empty"]
    assert caught.value.hint


def test_all_bad_lines_are_counted_and_the_first_hundred_shown(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"?\n" * 1234 + record("a"))
    with pytest.raises(FindingsError, match="1,234 bad lines") as caught:
        jsonl.read(path)
    assert [finding.line for finding in caught.value.findings] == list(range(1, 101))


@pytest.mark.parametrize("name", ["not-there.jsonl", "."])
def test_a_path_that_is_no_file_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        jsonl.read(tmp_path / name)
    assert str(tmp_path) in caught.value.message


def test_a_line_of_100_mb_is_a_finding_and_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    first = record("a") + b"\n"
    with path.open("wb") as file:
        file.write(first)
        file.seek(100 * 2**20, os.SEEK_CUR)  # a hole in the file reads as zeros
        file.write(b"\n" + record("b") + b"\n")
    tracemalloc.start()
    try:
        found = scanned(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [(1, 0, "a"), (2, len(first), "line-too-long"), (3, len(first) + 100 * 2**20 + 1, "b")]
    assert peak < 4 * jsonl.MAX_LINE_BYTES
    finding = next(item for _, item in jsonl.scan(path) if isinstance(item, Finding))
    assert f"{100 * 2**20:,}" in finding.message


def test_a_line_of_exactly_the_limit_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    line = record("a")
    path.write_bytes(line + b"\n" + record("bb"))
    codes = [item.code if isinstance(item, Finding) else item.id for _, item in jsonl.scan(path, max_bytes=len(line))]
    assert codes == ["a", "line-too-long"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from([record("a"), record("b"), b"", b"\r", b"{}", record("c")[:-3]]),
        ),
        max_size=8,
    )
)
def test_no_bytes_make_it_crash_and_the_offsets_always_lead_back_to_the_lines(
    tmp_path: Path, parts: list[bytes]
) -> None:
    path = tmp_path / "data.jsonl"
    data = b"\n".join(parts)
    path.write_bytes(data)
    for line, item in jsonl.scan(path, max_bytes=64):
        assert data[line.byte :].startswith(line.data)
        assert data.count(b"\n", 0, line.byte) == line.number - 1
        if isinstance(item, Finding):
            assert item.line == line.number
            assert item.message


def test_what_is_written_is_read_back_and_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [Record(str(n), (Message("user", f"línea {n}\u2028 {'x' * n}"),), locale="fr-CA") for n in range(20)]
    assert jsonl.write(path, records) == 20
    assert jsonl.read(path) == records
    before = path.read_bytes()

    def breaking() -> Iterator[Record]:
        yield records[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        jsonl.write(path, breaking())
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own refusal stands in for a small file system, which a test may have no right to mount."""

    def refused(handle: int) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(ResourceError, match="disk is full"):
        jsonl.write(tmp_path / "data.jsonl", [Record("a", (Message("user", "hello"),))])
    assert list(tmp_path.iterdir()) == []
