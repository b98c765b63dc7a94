"""The imitated teacher, and small datasets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from imitation_teacher import Imitation, handler

from pillm.core.records import Record


@pytest.fixture
def imitation() -> Iterator[Imitation]:
    """A local server that imitates a teacher and its faults."""
    state = Imitation()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield state
    state.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., Path]:
    """Write records (dicts, or texts that become one-turn prompts) as a dataset."""

    def write(*records: dict[str, Any] | str) -> Path:
        path = tmp_path / "prompts.jsonl"
        lines = [r if isinstance(r, dict) else {"id": r, "messages": [{"role": "user", "content": r}]} for r in records]
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        return path

    return write


@pytest.fixture
def rows() -> Callable[[Path], list[Record]]:
    """Read back a published dataset; an empty file has no rows."""

    def read(path: Path) -> list[Record]:
        return [msgspec.json.decode(line, type=Record) for line in path.read_bytes().splitlines()]

    return read
