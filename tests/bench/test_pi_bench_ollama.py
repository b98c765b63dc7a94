"""The ollama endpoint. ollama itself cannot be had here, so a server on this machine imitates its API.

What it answers was written down from ollama's API documentation; that a real ollama answers so is not shown here.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from pi_bench_program import SHORT, document

from pillm.bench import pi_bench as pi_bench_parts
from pillm.history.document import Run


class Imitation(ThreadingHTTPServer):
    """What the endpoint does; a test may change it. `asked` are the bodies of all requests by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, Any]] = []
        self.fault = ""
        self.modelfile = "FROM /nowhere/blobs/sha256-abc\n"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Imitation

    def log_message(self, *about: object) -> None:
        pass

    def do_GET(self) -> None:
        self._say({"version": "0.13.0"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        fault = self.server.fault
        if self.path == "/api/show" and body["model"] == "missing":
            self._say({"error": "model 'missing' not found"}, 404)
        elif self.path == "/api/show":
            info = {
                "general.architecture": "llama",
                "general.parameter_count": 134_515_008,
                "general.basename": "SmolLM2",
            }
            self._say({"modelfile": self.server.modelfile, "model_info": info})
        elif self.path == "/api/embed":
            no = {"error": "this model does not support embeddings"}
            self._say(no, 400) if fault == "no embeddings" else self._say(
                {"embeddings": [[0.1]], "prompt_eval_count": 62}
            )
        elif "prompt" not in body:
            self._say({"done": True, "done_reason": "unload"})
        else:
            self._generate(body, fault)

    def _generate(self, body: dict[str, Any], fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        count = body["options"]["num_predict"]
        for number in range(count):
            if number == 1 and fault == "error":
                self._line({"error": "llama runner process has terminated: signal: killed"})
                return
            if number == 1 and fault == "cut":
                return
            if number == 1 and fault == "hang":
                time.sleep(600)
            self._line({"response": " a", "done": False})
            time.sleep(0.002)
        tokens = len(body["prompt"].split())
        self._line({"response": "", "done": True, "load_duration": 250_000_000, "prompt_eval_count": tokens,
                    "prompt_eval_duration": tokens * 10_000_000, "eval_count": count, "eval_duration": count * 50_000_000})  # fmt: skip

    def _line(self, event: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    def _say(self, answer: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def ollama() -> Iterator[Imitation]:
    server = Imitation()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def words(ollama: Imitation, model: str = "smollm2:135m") -> list[str]:
    return [
        "--server",
        ollama.url,
        "--ollama-model",
        model,
        *SHORT,
        "--context=128",
        "--depth=0,32",
        "--repetitions=2",
        "--json",
    ]


def test_what_ollama_tells_is_measured(ollama, pi_bench):
    done = pi_bench(*words(ollama))
    assert done.returncode == 0, done.stderr
    run = msgspec.json.decode(done.stdout, type=Run)
    assert (run.runtime.kind, run.runtime.version, run.model.architecture) == ("ollama", "0.13.0", "llama")
    decodes = [speed for speed in run.speeds if speed.what == "decode"]
    # The depth is the prompt's length as ollama counts it.
    assert [(speed.tokens, speed.mean_tps, len(speed.samples_tps)) for speed in decodes] == [(4, 20.0, 2)] * 2
    assert decodes[0].depth < decodes[1].depth
    assert {speed.mean_tps for speed in run.speeds if speed.what == "prefill"} == {100.0}
    (row,) = run.latency
    assert (row.first_token.count, row.inter_token.count, row.threads) == (2, 6, 1)
    assert run.load
    assert (run.load.cold_s, run.load.warm_s) == (None, 0.25)
    assert run.embeddings
    assert run.embeddings.tokens == 62
    assert {"load.cold_s", "memory.peak_bytes", "model.sha256", "runtime.cpu_variant"} <= set(run.absent)


def test_no_prompt_begins_like_an_earlier_one_and_threads_are_asked_for(ollama, pi_bench):
    pi_bench(*words(ollama), "--threads=1,2", "--measure=speed")
    prompts = [body for path, body in ollama.asked if path == "/api/generate"]
    beginnings = [body["prompt"].split()[0] for body in prompts]
    assert len(set(beginnings)) == len(beginnings) == 2 * 2 * 3
    assert {body["options"]["num_thread"] for body in prompts} == {1, 2}
    assert all(body["raw"] and body["options"]["num_ctx"] == 128 for body in prompts)


def test_the_context_holds_the_deepest_prompt_and_its_answer(ollama, pi_bench):
    # 128 + 512 tokens and what else has to fit; the context asked for is 128.
    done = pi_bench(*words(ollama), "--depth=0,512", "--prompt-tokens=16", "--gen-tokens=128", "--measure=speed")
    assert done.returncode == 0, done.stderr
    contexts = {body["options"]["num_ctx"] for path, body in ollama.asked if path == "/api/generate"}
    assert contexts == {512 + 16 + 128 + 16}


def test_a_model_file_that_cannot_be_looked_at_is_a_reason(ollama, pi_bench):
    # The tests may run as root, to whom no folder is closed: a name that is too long is refused in the same place.
    ollama.modelfile = f"FROM /{'x' * 300}\n"
    done = pi_bench(*words(ollama), "--measure=load")
    assert done.returncode == 0, done.stderr
    assert "cannot be read here" in document(done)["absent"]["model.sha256"]


def test_a_closed_folder_of_ollama_s_is_a_reason(ollama, monkeypatch):
    """The refusal is put in by hand, for the same reason."""

    def denied(*words: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    port = ollama.server_address[1]
    absent: dict[str, str] = {}
    pi_bench_parts.ollama_model(
        pi_bench_parts.Ollama("127.0.0.1", port, "m"), absent, pi_bench_parts.Screen("none"), 10
    )
    assert "cannot be read here" in absent["model.sha256"]


@pytest.mark.model
def test_the_model_s_own_file_is_described_where_it_can_be_read(ollama, pi_bench, smollm2_gguf, tmp_path):
    blob = tmp_path / f"sha256-{'ab' * 32}"
    blob.symlink_to(smollm2_gguf)
    ollama.modelfile = f"# Modelfile\nFROM {blob}\nTEMPLATE x\n"
    told = document(pi_bench(*words(ollama), "--measure=load"))
    assert told["model"]["sha256"] == "ab" * 32
    assert told["model"]["types"]["Q4_1"] > 50_000_000
    assert told["model"]["file"] == "smollm2:135m"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("error", "ollama: llama runner process has terminated: signal: killed"),
        ("cut", "the answer ended before its end was told"),
        ("hang", "the answer stopped: nothing came for 3 s"),
    ],
)
def test_an_answer_that_breaks_off_is_a_reason(ollama, pi_bench, fault, reason):
    ollama.fault = fault
    done = pi_bench(*words(ollama), "--limit=3", "--measure=speed,latency,embeddings", "--depth=0")
    told = document(done)
    assert (told["speeds"], told["latency"]) == ([], [])
    assert told["absent"]["speeds"] == told["absent"]["latency"] == reason
    assert told["embeddings"]["per_second"] > 0
    assert "Traceback" not in done.stderr


def test_a_model_that_embeds_nothing_is_a_reason(ollama, pi_bench):
    ollama.fault = "no embeddings"
    told = document(pi_bench(*words(ollama), "--measure=embeddings"))
    assert told["embeddings"] is None
    assert "does not support embeddings" in told["absent"]["embeddings"]


def test_a_model_that_is_not_there_is_exit_code_4(ollama, pi_bench):
    done = pi_bench(*words(ollama, "missing"))
    assert (done.returncode, done.stdout) == (4, "")
    assert "model 'missing' not found" in done.stderr


def test_no_ollama_at_all_is_exit_code_4(ollama, pi_bench):
    argv = words(ollama)
    ollama.shutdown()
    ollama.server_close()
    done = pi_bench(*argv)
    assert done.returncode == 4
    assert "Connection refused" in done.stderr
    assert "is ollama running" in done.stderr
