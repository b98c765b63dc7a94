"""Questions to a real llama-server with the real SmolLM2, which was never taught these tools."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pillm.core.errors import PillmError
from pillm.core.events import Progress, silent
from pillm.core.records import Function, FunctionCall, Message, Record, Tool, ToolCall
from pillm.evaluate.ask import ask, ask_all, connect
from pillm.evaluate.journal import journal
from pillm.evaluate.judge import cases
from pillm.llamacpp.server import Server, serve
from pillm.models.chat import template_path

TIMER = Tool(
    Function(
        "set_timer",
        "Start a timer",
        {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    )
)


def call(minutes: int) -> Message:
    return Message("assistant", tool_calls=(ToolCall(FunctionCall("set_timer", {"minutes": minutes})),))


def taught(name: str, minutes: int) -> Record:
    """Two earlier calls in the dialogue are example enough for the untrained model to call too."""
    turns = []
    for earlier in (3, 8):
        turns += [Message("user", f"Set a timer for {earlier} minutes"), call(earlier), Message("tool", "ok")]
    return Record(name, (*turns, Message("user", f"Set a timer for {minutes} minutes"), call(minutes)), (TIMER,))


def one(item: Record):
    (case,) = cases([item], Path("x.jsonl"))
    return case


@pytest.fixture(scope="module")
def server(tools, smollm2_gguf):
    with serve(
        tools, smollm2_gguf, context=512, parallel=2, threads=1, chat_template=template_path("chatml-tools")
    ) as running:
        yield running


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_call_comes_back_as_a_call_with_json_arguments(server):
    record = taught("a", 5)
    case = one(Record("a", record.messages, record.tools, tags=("kind:call",)))
    with connect(server, 1) as client:
        said = ask(client, server, case, 48)
    assert said.failure == ""
    assert [answer.name for answer in said.calls] == ["set_timer"]
    assert said.calls[0].arguments == {"minutes": 5}


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_prompt_longer_than_the_context_is_an_answer_that_failed_and_the_rest_goes_on(server, tmp_path):
    long = Record("long", (Message("user", "hello " * 2000), Message("assistant", "hi")))
    short = Record("short", (Message("user", "Say hello."), Message("assistant", "hello")))
    asked = cases([long, short], Path("x.jsonl"))
    with journal(tmp_path / "j", "s") as kept:
        first, second = ask_all(server, asked, max_tokens=3, parallel=2, journal=kept, emit=silent)
    assert first.failure == "too-long"
    assert "context" in first.detail
    assert second.failure == "cut"
    assert second.content


@pytest.mark.llamacpp
@pytest.mark.model
def test_answers_in_the_journal_are_not_asked_again_and_come_in_the_data_s_order(server, tmp_path):
    asked = cases(
        [
            Record(f"r{i}", (Message("user", f"Say {word}."), Message("assistant", word)))
            for i, word in enumerate("zab")
        ],
        Path("x.jsonl"),
    )
    with journal(tmp_path / "j", "s") as kept:
        fresh = ask_all(server, asked[1:], max_tokens=2, parallel=2, journal=kept, emit=silent)
    events = []
    with journal(tmp_path / "j", "s") as kept:
        before = dict(kept.done)
        everything = ask_all(server, asked, max_tokens=2, parallel=2, journal=kept, emit=events.append)
    assert everything[1:] == fresh
    assert len(before) == 2
    assert next(event.done for event in events if isinstance(event, Progress)) == 2
    lines = (tmp_path / "j").read_text().splitlines()
    assert len(lines) == 1 + 3


class _Broken(BaseHTTPRequestHandler):
    status, body = 500, b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def broken():
    """A server that answers with `status` and `body`, and none at all once it is stopped."""
    handler = type("Handler", (_Broken,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield handler, Server(f"http://127.0.0.1:{running.server_port}/v1", "key", Path("server.log"))
        running.shutdown()


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (
            b'{"error": {"code": 500, "message": "The model produced output that does not match the expected x format"}}',
            "unparsed",
        ),
        (b'{"error": {"code": 500, "message": "template: no tools here", "type": "server_error"}}', "refused"),
        (b"bad gateway", "refused"),
    ],
)
def test_an_error_of_the_server_is_a_wrong_answer_with_its_reason(broken, body, failure):
    handler, server = broken
    handler.body = body
    with connect(server, 1) as client:
        said = ask(client, server, one(taught("a", 5)), 8)
    assert said.failure == failure
    assert said.detail


def test_an_answer_that_is_no_chat_completion_is_a_plain_error(broken):
    handler, server = broken
    handler.status, handler.body = 200, b"<html>hello</html>"
    with connect(server, 1) as client, pytest.raises(PillmError, match="not a chat completion"):
        ask(client, server, one(taught("a", 5)), 8)


def test_a_server_that_is_gone_is_a_plain_error_that_names_its_log(tmp_path):
    server = Server("http://127.0.0.1:9/v1", "key", Path("/logs/server.log"))
    with journal(tmp_path / "j", "s") as kept, pytest.raises(PillmError, match="stopped answering") as error:
        ask_all(server, [one(taught("a", 5))], max_tokens=8, parallel=2, journal=kept, emit=silent)
    assert "/logs/server.log" in error.value.hint
