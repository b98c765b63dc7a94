"""The journal after kills, torn lines and damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pillm.core.errors import ResourceError, UsageError
from pillm.core.events import Log, silent
from pillm.core.records import FunctionCall, Message, ToolCall
from pillm.teach.ask import Reason
from pillm.teach.journal import Entry, Journal, opened

ENTRIES = [
    Entry("k1", 1, Message("assistant", "Grüß dich\n"), tokens_in=3, tokens_out=4),
    Entry("k2", 1, None, (Reason("empty", "the answer is empty"),)),
    Entry("k2", 2, Message("assistant", tool_calls=(ToolCall(FunctionCall("f", {"a": [1, None]})),))),
]


def filled(path: Path) -> bytes:
    with opened(path, silent) as book:
        book.add(ENTRIES[:1])
        book.add(ENTRIES[1:])
    return path.read_bytes()


def test_entries_come_back_by_key_in_order(tmp_path):
    filled(tmp_path / "j")
    with opened(tmp_path / "j", silent) as book:
        assert book.entries == {"k1": ENTRIES[:1], "k2": ENTRIES[1:]}


def test_a_journal_torn_at_any_byte_loses_only_what_was_not_whole_and_goes_on(tmp_path):
    path = tmp_path / "j"
    data = filled(path)
    whole = 0
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        with opened(path, silent) as book:
            assert sum(map(len, book.entries.values())) == whole, cut
            book.add([Entry("k9", 1)])
        with opened(path, silent) as book:
            assert sum(map(len, book.entries.values())) == whole + 1, cut


def test_a_damaged_line_is_left_out_and_told(tmp_path):
    path = tmp_path / "j"
    lines = filled(path).splitlines(keepends=True)
    path.write_bytes(lines[0].replace(b"dich", b"sich") + b"\xff\xfe\n" + b"".join(lines[1:]))
    events = []
    with opened(path, events.append) as book:
        assert list(book.entries) == ["k2"]
    assert [event.level for event in events if isinstance(event, Log)] == ["warning"]
    assert "2 damaged lines" in events[0].message


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        opened(tmp_path / "j", silent),
        pytest.raises(UsageError, match="another run"),
        opened(tmp_path / "j", silent),
    ):
        pass


def test_a_full_disk_is_an_error_with_a_way_out():
    handle = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(ResourceError, match="disk is full"):
            Journal(Path("/dev/full"), handle, {}).add(ENTRIES)
    finally:
        os.close(handle)


def test_a_folder_that_is_a_file_is_an_error_with_a_way_out(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError) as caught, opened(tmp_path / "file" / "j", silent):
        pass
    assert "--out" in caught.value.hint
