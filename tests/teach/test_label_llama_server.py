"""Labelling with the real llama-server on SmolLM2, and kill -9 in the middle of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from pillm.core import jsonl
from pillm.core.errors import PillmError, UsageError
from pillm.core.events import Log, silent
from pillm.llamacpp.server import Server, serve
from pillm.teach import journal, report
from pillm.teach.ask import key_of
from pillm.teach.label import run
from pillm.teach.options import LabelOptions
from pillm.teach.teachers import choose

pytestmark = [pytest.mark.llamacpp, pytest.mark.model]
YES_NO = {"type": "string", "enum": ["yes", "no"]}
TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    },
}


def test_llama_server_is_started_asked_and_ended(tools, smollm2_gguf, dataset, rows, tmp_path):
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
    asked = {"messages": [{"role": "user", "content": "How many legs has a dog?"}], "response_schema": schema}
    blind = {"id": "tool", "messages": [{"role": "user", "content": "Five minutes!"}], "tools": [TIMER]}
    path = dataset("word " * 300, {"id": "legs", **asked}, blind, {"id": "same", **asked})
    options = LabelOptions(
        prompts=path, teacher=str(smollm2_gguf), out=tmp_path / "out", max_tokens=24, context=256, attempts=1,
        prompt_cache=False,
    )  # fmt: skip
    events = []
    result = run(options, events.append)
    labelled = {record.id: record for record in rows(result.outputs["labelled"])}
    rejected = {record.id: record for record in rows(result.outputs["rejected"])}
    assert isinstance(json.loads(labelled["legs"].messages[-1].content)["legs"], int)
    # The same question, another slot of the server: the same answer.
    assert labelled["same"].messages[-1] == labelled["legs"].messages[-1]
    (long,) = [record for name, record in rejected.items() if name.startswith("word")]
    assert long.meta["rejected"]["reasons"][0]["code"] == "too-long"
    figures = report.load(result.outputs["report"])
    assert (figures.backend, figures.requests, figures.without_tools) == ("llama-server", 4, 1)
    assert figures.tokens_out > 0
    assert any("knows no tools" in event.message for event in events if isinstance(event, Log))
    published = result.outputs["labelled"].read_bytes()
    again = run(options, silent)
    assert again.metrics["reused"] == 4
    assert report.load(again.outputs["report"]).requests == 0
    assert again.outputs["labelled"].read_bytes() == published


def test_what_prompts_share_is_read_once_unless_switched_off(tools, smollm2_gguf, dataset, tmp_path, monkeypatch):
    from pillm.teach import wire

    bodies, plain = [], wire.request

    def request(*given):
        bodies.append(plain(*given))
        return bodies[-1]

    monkeypatch.setattr(wire, "request", request)
    for cache in (True, False):
        options = LabelOptions(
            prompts=dataset("Say one word."), teacher=str(smollm2_gguf), out=tmp_path / str(cache), max_tokens=200,
            context=256, attempts=1, prompt_cache=cache,
        )  # fmt: skip
        assert run(options, silent).metrics["labelled"] == 1
    assert [body["cache_prompt"] for body in bodies] == [True, False]


@pytest.mark.parametrize("template", ["model", "chatml-tools"])
def test_tools_are_shown_by_a_template_that_knows_them_and_missed_aloud_otherwise(
    tools, smollm2_gguf, dataset, tmp_path, template
):
    prompt = {"id": "with", "messages": [{"role": "user", "content": "Yes or no?"}], "tools": [TIMER]}
    without = {**prompt, "id": "without", "tools": [], "response_schema": YES_NO}
    options = LabelOptions(
        prompts=dataset(prompt, without), teacher=str(smollm2_gguf), out=tmp_path / "out",
        chat_template=template, max_tokens=8, context=256, attempts=1, concurrency=1,
    )  # fmt: skip
    events = []
    run(options, events.append)
    with journal.opened(tmp_path / "out" / journal.NAME, silent) as book:
        # Prompts are asked in the order of their beginnings, and a list without tools comes first.
        (second,), (first,) = book.entries.values()
    missed = any("knows no tools" in event.message for event in events if isinstance(event, Log))
    assert missed == (template == "model")
    assert (first.tokens_in == second.tokens_in) == missed
    assert missed or first.tokens_in > second.tokens_in + 15


def test_a_file_that_is_cut_in_half_is_said_so(smollm2_gguf, dataset, tmp_path):
    half = tmp_path / "half.gguf"
    with Path(smollm2_gguf).open("rb") as file:
        half.write_bytes(file.read(3_000_000))
    with pytest.raises(PillmError, match=r"half\.gguf"):
        run(LabelOptions(prompts=dataset("a"), teacher=str(half), out=tmp_path / "out"), silent)


def test_a_model_without_a_chat_template_is_refused(smollm2_gguf, dataset, tmp_path):
    bare = tmp_path / "bare.gguf"
    # The same file with the key renamed: a reader finds no template, and nothing moves.
    bare.write_bytes(Path(smollm2_gguf).read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_tomplate", 1))
    with pytest.raises(UsageError, match="no chat template"):
        run(LabelOptions(prompts=dataset("a"), teacher=str(bare), out=tmp_path / "out"), silent)


def test_a_server_that_dies_under_us_is_said_so_and_the_answers_are_kept(tools, smollm2_gguf, dataset, tmp_path):
    texts = [f"Is {number} an odd number?" for number in range(12)]
    path = dataset(*(
        {"id": text, "messages": [{"role": "user", "content": text}], "response_schema": YES_NO} for text in texts
    ))  # fmt: skip
    options = LabelOptions(
        prompts=path, teacher=str(smollm2_gguf), out=tmp_path / "out", context=256, concurrency=1, attempts=1
    )
    book = tmp_path / "out" / journal.NAME

    def assassin() -> None:
        while not (book.exists() and book.stat().st_size):
            time.sleep(0.002)
        for child in psutil.Process().children():
            if "llama-server" in child.name():
                child.send_signal(signal.SIGABRT)

    thread = threading.Thread(target=assassin)
    thread.start()
    with pytest.raises(PillmError, match=r"llama-server on .*\.gguf"):
        run(options, silent)
    thread.join()
    kept = book.read_bytes().count(b"\n")
    assert 0 < kept < 12
    metrics = run(options, silent).metrics
    assert (metrics["labelled"], metrics["reused"]) == (12, kept)


class Counting:
    """A relay in front of the real server: passes requests on and counts them by prompt."""

    def __init__(self, server: Server) -> None:
        self.server, self.seen, self.relayed = server, Counter[str](), 0
        self.url = ""

    def post(self, body: bytes) -> tuple[int, bytes]:
        self.seen[json.loads(body)["messages"][-1]["content"]] += 1
        headers = {"Authorization": f"Bearer {self.server.api_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.server.url + "/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()


@pytest.fixture
def counting(tools, smollm2_gguf) -> Iterator[Counting]:
    with serve(tools, smollm2_gguf, context=256, parallel=2, emit=silent) as server:
        relay = Counting(server)

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                status, data = relay.post(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                    self.wfile.flush()
                except OSError:
                    return  # who asked was killed meanwhile
                relay.relayed += 1

        listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        listener.daemon_threads = True
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        relay.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
        yield relay
        listener.shutdown()
        listener.server_close()
        thread.join()


CHILD = """
import sys
from pillm.core.events import silent
from pillm.teach.label import run
from pillm.teach.options import LabelOptions
run(LabelOptions.model_validate_json(sys.argv[1]), silent)
"""


def test_kill_9_at_any_moment_loses_no_answer_and_repeats_none(counting, dataset, rows, tmp_path):
    texts = [f"Is {number} an even number?" for number in range(14)]
    path = dataset(*(
        {"id": text, "messages": [{"role": "user", "content": text}], "response_schema": YES_NO} for text in texts
    ))  # fmt: skip
    out = tmp_path / "out"
    options = LabelOptions(
        prompts=path, teacher=counting.url, model_name="m", out=out, concurrency=2, max_tokens=8, timeout=60
    )
    kills = 0
    for moment, delay in ((1, 0.0), (4, 0.0), (7, 0.02), (10, 0.05)):
        before = dict(counting.seen)
        kept = answered(options)
        child = subprocess.Popen([sys.executable, "-c", CHILD, options.model_dump_json()])
        while counting.relayed < moment and child.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        child.kill()
        child.wait()
        kills += child.returncode == -9
        assert not (out / "labelled.jsonl").exists()
        for text in kept:
            assert counting.seen[text] == before[text], f"{text!r} was answered before, and asked again"
    kept, before = answered(options), dict(counting.seen)
    result = run(options, silent)
    assert kills == 4
    assert result.metrics == {**result.metrics, "labelled": 14, "rejected": 0, "reused": len(kept)}
    records = rows(result.outputs["labelled"])
    assert [record.id for record in records] == texts
    assert all(counting.seen[text] == before[text] for text in kept)
    # At each kill at most the two answers in flight were lost.
    assert sum(counting.seen.values()) <= len(texts) + kills * options.concurrency
    # A rerun asks for nothing and publishes the same bytes.
    asked, published = sum(counting.seen.values()), result.outputs["labelled"].read_bytes()
    assert run(options, silent).metrics["reused"] == 14
    assert sum(counting.seen.values()) == asked
    assert result.outputs["labelled"].read_bytes() == published


def answered(options: LabelOptions) -> set[str]:
    """Prompts whose answer is in the journal. Reads a copy, since opening a journal mends its torn end."""
    path = options.out / journal.NAME
    if not path.exists():
        return set()
    copy = options.out.parent / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    with journal.opened(copy, silent) as book:
        known = set(book.entries)
    teacher = choose(options, silent)
    return {
        record.id
        for record in jsonl.read(options.prompts)
        if key_of(teacher.identity, teacher.settings, record) in known
    }
