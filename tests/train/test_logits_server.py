"""A teacher behind a server: the real llama-server, and an imitation for faults that a real one has only by accident."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pillm.core import jsonl  # noqa: E402
from pillm.core.errors import NetworkError, PillmError, UsageError  # noqa: E402
from pillm.core.events import Log, silent  # noqa: E402
from pillm.llamacpp.server import serve  # noqa: E402
from pillm.logit_cache import open_cache  # noqa: E402
from pillm.train import student  # noqa: E402
from pillm.train.dialogues import encode  # noqa: E402
from pillm.train.logits import report  # noqa: E402
from pillm.train.logits.options import LogitsOptions  # noqa: E402
from pillm.train.logits.run import run  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.model]


@pytest.fixture(scope="module")
def few(dialogues: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short dialogues with a plain answer."""
    path = tmp_path_factory.mktemp("few") / "few.jsonl"
    jsonl.write(path, [dialogues[0], dialogues[4]])
    return path


def options(data: Path, url: str, tokenizer: Path, out: Path, **more: object) -> LogitsOptions:
    given = {"data": data, "teacher": url, "tokenizer": str(tokenizer), "out": out, "top": 10, "attempts": 2}
    return LogitsOptions.model_validate(given | more)


class Imitation:
    """Answers as a llama-server does; `fault` changes the n-th completion, `headers` go with what is no success."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.fault: Callable[[int, dict[str, Any]], tuple[int, bytes] | None] = lambda number, body: None
        self.completions = 0
        self.url = ""
        self.headers: dict[str, str] = {}
        self.props: dict[str, Any] = {
            "total_slots": 2,
            "model_path": "a.gguf",
            "build_info": "b1",
            "chat_template": "{}",
        }
        self.size = 1000

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        if path == "/props":
            return 200, json.dumps(self.props).encode()
        if path == "/v1/models":
            return 200, json.dumps({"data": [{"id": "a", "meta": {"size": self.size}}]}).encode()
        if path == "/tokenize":
            ids = self.tokenizer(body["content"], add_special_tokens=False).input_ids
            return 200, json.dumps({"tokens": ids}).encode()
        self.completions += 1
        return self.fault(self.completions, body) or (200, answer(range(body["n_probs"])))


def answer(ids: Any, each: float = 0.05) -> bytes:
    top = [{"id": i, "token": "x", "logprob": math.log(each)} for i in ids]
    return json.dumps({"content": "x", "completion_probabilities": [{"id": 0, "top_logprobs": top}]}).encode()


@pytest.fixture
def imitation(tiny_student: Path) -> Iterator[Imitation]:
    from transformers import AutoTokenizer

    state = Imitation(AutoTokenizer.from_pretrained(tiny_student))

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            status, data = state.reply(self.path, body)
            cut = data.removesuffix(b"<cut>")
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for key, value in (state.headers if status != 200 else {}).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(cut)
            except OSError:
                return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.llamacpp
def test_the_real_server_gives_the_top_of_the_models_own_distribution(
    tools: object, smollm2_gguf: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list = []
    with serve(tools, smollm2_gguf, context=512, parallel=2) as server:  # type: ignore[arg-type]
        monkeypatch.setenv("TEST_KEY", server.api_key)
        run(options(few, server.url, smollm2_gguf, tmp_path, api_key_env="TEST_KEY"), said.append)
    assert any(isinstance(e, Log) and "biased" in e.message and e.level == "warning" for e in said)
    cache = open_cache(tmp_path)
    assert cache.manifest.kind == "server-top-k"
    assert cache.manifest.biased
    assert cache.manifest.teacher.startswith(server.url.removesuffix("/v1") + "#")
    model, tokenizer, _ = student.load(smollm2_gguf, torch.float32)
    template = student.chat_template("auto", tokenizer, True)
    item = encode(jsonl.read(few), template, tokenizer)[0]
    found = cache.read(cache.find(item.ids, item.learned) or 0)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([item.ids])).logits[0], -1).numpy()
    for row, place in enumerate(i - 1 for i in range(1, len(item.ids)) if item.learned[i]):
        # llama.cpp computes with the 4-bit weights and 8-bit activations: near, not equal.
        assert np.abs(found.weights[row] - p[place, found.ids[row]]).max() < 0.1
    assert found.weights.shape[1] == 10


def test_an_imitated_server_fills_a_cache_that_says_it_is_biased(
    imitation: Imitation, tiny_student: Path, few: Path, tmp_path: Path
) -> None:
    run(options(few, imitation.url + "/v1", tiny_student, tmp_path), silent)
    cache = open_cache(tmp_path)
    found = cache.read(0)
    assert np.allclose(found.weights, 0.05, atol=1e-4)
    assert imitation.completions == cache.manifest.positions


BAD: dict[str, tuple[Callable[..., tuple[int, bytes]], str]] = {
    "wrong JSON": (lambda: (200, b"<html>"), "not the answer of a llama-server"),
    "another form": (lambda: (200, b'{"choices": []}'), "not the answer of a llama-server"),
    "too few entries": (lambda: (200, answer(range(4))), "4 of 10 probabilities"),
    "no tokens": (lambda: (200, b'{"completion_probabilities": []}'), "0 tokens instead of 1"),
    "huge ids": (lambda: (200, answer(range(2**63, 2**63 + 10))), "not the answer of a llama-server"),
    "no end": (lambda: (200, b" " * (2**24 + 1)), "a body of more than 16 MiB"),
    "foreign ids": (lambda: (200, answer(range(10**6, 10**6 + 10))), "not in the vocabulary"),
    "one id twice": (lambda: (200, answer([1] * 10)), "one twice"),
    "more than all": (lambda: (200, answer(range(10), 0.5)), "sum to 5"),
    "HTTP 500": (lambda: (500, b"out of order"), "500: out of order"),
    "HTTP 404": (lambda: (404, b""), "404"),
    "HTTP 401": (lambda: (401, b"no"), "401"),
    "a cut answer": (lambda: (200, answer(range(10))[:40] + b"<cut>"), "the connection failed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_server_is_a_clear_error_and_a_later_run_goes_on(
    name: str, imitation: Imitation, tiny_student: Path, few: Path, tmp_path: Path
) -> None:
    bad, words = BAD[name]
    given = options(few, imitation.url, tiny_student, tmp_path, shard_tokens=64, micro_tokens=64, timeout=2.0)
    imitation.fault = lambda number, body: bad() if number > 15 else None
    with pytest.raises(NetworkError, match=words):
        run(given, silent)
    assert not (tmp_path / "cache" / "manifest.json").exists()
    imitation.fault = lambda number, body: None
    run(given, silent)
    assert len(open_cache(tmp_path)) == 2


def test_a_server_that_recovers_is_asked_again(
    imitation: Imitation, tiny_student: Path, few: Path, tmp_path: Path
) -> None:
    imitation.fault = lambda number, body: (503, b"loading") if number == 3 else None
    run(options(few, imitation.url, tiny_student, tmp_path), silent)
    assert imitation.completions == open_cache(tmp_path).manifest.positions + 1


def test_retry_after_is_honoured_and_a_pause_beyond_patience_ends_the_run(
    imitation: Imitation, tiny_student: Path, few: Path, tmp_path: Path
) -> None:
    imitation.fault = lambda number, body: (429, b"slow down") if number == 3 else None
    imitation.headers = {"Retry-After": "86400"}
    with pytest.raises(NetworkError, match="429, and asks for 86400 s of pause: slow down"):
        run(options(few, imitation.url, tiny_student, tmp_path, concurrency=1), silent)
    assert imitation.completions == 3
    imitation.completions, imitation.headers = 0, {"Retry-After": "1"}
    said: list = []
    run(options(few, imitation.url, tiny_student, tmp_path), said.append)
    assert any(isinstance(e, Log) and "asks for 1 s" in e.message for e in said)


@pytest.mark.parametrize("other", ["model_path", "build_info", "chat_template", "size"])
def test_a_killed_run_does_not_go_on_with_another_model_behind_the_same_address(
    other: str, imitation: Imitation, tiny_student: Path, dialogues: list, tmp_path: Path
) -> None:
    jsonl.write(tmp_path / "d.jsonl", dialogues[:12])
    given = options(
        tmp_path / "d.jsonl", imitation.url, tiny_student, tmp_path, shard_tokens=64, micro_tokens=64, attempts=1
    )
    shards = tmp_path / "cache"
    imitation.fault = lambda number, body: (400, b"over") if list(shards.glob("shard-*.bin")) else None
    with pytest.raises(NetworkError):
        run(given, silent)
    assert list(shards.glob("shard-*.bin"))
    if other == "size":
        imitation.size += 1
    else:
        imitation.props[other] = "another"
    imitation.fault, imitation.completions = lambda number, body: None, 0
    run(given, silent)
    assert imitation.completions == open_cache(tmp_path).manifest.positions


def test_another_spelling_of_the_address_and_more_slots_are_the_same_run(
    imitation: Imitation, tiny_student: Path, few: Path, tmp_path: Path
) -> None:
    run(options(few, imitation.url, tiny_student, tmp_path), silent)
    done = imitation.completions
    imitation.props["total_slots"] = 1
    run(options(few, imitation.url + "/v1/", tiny_student, tmp_path), silent)
    assert imitation.completions == done
    teacher = open_cache(tmp_path).manifest.teacher
    assert teacher.startswith(imitation.url + "#")
    assert report.load(tmp_path / "logits.json").teacher == teacher
    imitation.size += 1
    with pytest.raises(UsageError, match="holds a finished cache"):
        run(options(few, imitation.url, tiny_student, tmp_path), silent)
    assert open_cache(tmp_path).manifest.teacher == teacher


@pytest.mark.parametrize("address", ["http://me:pw-4711@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key=pw-4711"])
def test_an_address_with_a_secret_in_it_is_refused_without_showing_it(
    address: str, tiny_student: Path, few: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a name, a password or a query") as caught:
        run(options(few, address, tiny_student, tmp_path), silent)
    assert "pw-4711" not in caught.value.message + caught.value.hint
    assert all(b"pw-4711" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_that_cannot_be_one_is_refused_without_showing_it(
    tiny_student: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "schlüssel mit")
    with pytest.raises(UsageError, match=r"the key in \$TEST_KEY") as caught:
        run(options(few, "http://127.0.0.1:9", tiny_student, tmp_path, api_key_env="TEST_KEY"), silent)
    assert "schlüssel" not in caught.value.message


def test_a_slow_server_ends_at_the_timeout(imitation: Imitation, tiny_student: Path, few: Path, tmp_path: Path) -> None:
    def slow(number: int, body: dict[str, Any]) -> None:
        time.sleep(1.0)

    imitation.fault = slow
    with pytest.raises(NetworkError, match=r"no answer within 0.2 s"):
        run(options(few, imitation.url, tiny_student, tmp_path, timeout=0.2, attempts=1), silent)


def test_another_tokenizer_is_refused(imitation: Imitation, tiny_student: Path, few: Path, tmp_path: Path) -> None:
    right = imitation.tokenizer
    imitation.tokenizer = lambda text, add_special_tokens: type(right("x"))(
        {"input_ids": [i + 1 for i in right(text, add_special_tokens=False).input_ids]}
    )
    with pytest.raises(UsageError, match="tokenizer is not that of"):
        run(options(few, imitation.url, tiny_student, tmp_path), silent)


def test_what_a_server_cannot_do_is_refused_at_once(tiny_student: Path, few: Path, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(UsageError, match="needs --tokenizer"):
        run(LogitsOptions(data=few, teacher=nowhere, out=tmp_path), silent)
    with pytest.raises(UsageError, match="temperature 1 only"):
        run(options(few, nowhere, tiny_student, tmp_path, temperature=2.0), silent)
    with pytest.raises(PillmError, match="cannot be reached"):
        run(options(few, nowhere, tiny_student, tmp_path, attempts=1), silent)
