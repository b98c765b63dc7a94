"""What goes wrong on a board while it measures: hanging and dying servers, full disks, two runs at once.

Servers that hang and tools that die are stand-ins, as the real ones cannot be made to; everything else is real.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time

import msgspec
import pytest
from pi_bench_program import SHORT, document, script

from pillm.bench import pi_bench as program
from pillm.bench.program import PATH
from pillm.history.document import Run

# Takes connections and never answers; nor does it tell its version.
SILENT = """
import socket, sys, time
if "--port" in sys.argv:
    with socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1]))):
        time.sleep(600)
time.sleep(600)
"""
# Is healthy and begins an answer; what happens then is in HOW.
BEGINS = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
HOW = {how!r}
if "--port" not in sys.argv:
    print("version: 0.5.0 (build 1, commit abcdef0)")
    sys.exit()

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *about):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{{}}")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        if self.path == "/tokenize":
            self.wfile.write(json.dumps({{"tokens": [1, 2, 3]}}).encode())
            return
        self.wfile.write(b'data: {{"content": "a", "tokens": [1]}}\\n\\n')
        self.wfile.flush()
        if HOW == "hangs":
            time.sleep(600)
        if HOW == "dies":
            os._exit(7)
        if HOW == "errs":
            self.wfile.write(b'data: {{"error": {{"message": "context shift is off"}}}}\\n\\n')

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def folder(tools, tmp_path):
    """A folder of tools with the real llama-bench; llama-server is up to the test."""
    place = tmp_path / "tools"
    place.mkdir()
    (place / "llama-bench").symlink_to(tools.tool("llama-bench"))
    return place


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_server_that_hangs_is_ended_and_the_rest_is_measured(folder, smollm2_gguf, tmp_path, pi_bench):
    server = script(folder / "llama-server", SILENT)
    # A file that another program has open cannot be put out of the page cache, which would be another reason.
    model = shutil.copy(smollm2_gguf, tmp_path / "own.gguf")
    done = pi_bench("--model", model, "--llama-bin", folder, *SHORT, "--limit=10", "--json")
    told = document(done)
    assert done.returncode == 0
    assert len(told["speeds"]) == 2
    assert (told["latency"], told["embeddings"], told["memory"]["peak_bytes"]) == ([], None, None)
    for name in ("latency", "latency.1/1", "memory.peak_bytes", "embeddings", "load.cold_s", "load.warm_s"):
        assert "not ready after 10 s and was ended" in told["absent"][name], name
    assert told["runtime"]["version"] is None
    assert "said nothing for 10 s" in told["absent"]["runtime.version"]
    assert subprocess.run(["pgrep", "-f", str(server)], stdout=subprocess.DEVNULL).returncode == 1


@pytest.mark.llamacpp
@pytest.mark.model
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("hangs", "the answer stopped: nothing came for 5 s"),
        ("dies", "the answer ended before its end was told"),
        ("errs", "llama-server: {'message': 'context shift is off'}"),
    ],
)
def test_an_answer_that_breaks_off_is_a_reason(folder, smollm2_gguf, pi_bench, how, reason):
    script(folder / "llama-server", BEGINS.format(how=how))
    words = ("--limit=5", "--measure=latency,memory")
    told = document(pi_bench("--model", smollm2_gguf, "--llama-bin", folder, *SHORT, *words, "--json"))
    assert told["latency"] == []
    assert told["absent"]["latency.1/1"] == reason
    assert told["absent"]["latency"] == reason
    assert told["absent"]["speeds"] == "not asked for"
    if how != "dies":
        # A stand-in has memory, too: what it is for is that the rest goes on.
        assert told["memory"]["peak_bytes"] > 0


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_server_that_dies_tells_its_last_error(folder, smollm2_gguf, pi_bench):
    script(folder / "llama-server", "#!/bin/sh\necho 'srv load_model: failed to load model, out of luck' >&2\nexit 3\n")
    told = document(pi_bench("--model", smollm2_gguf, "--llama-bin", folder, *SHORT, "--measure=latency", "--json"))
    assert (
        told["absent"]["latency"]
        == "llama-server ended with exit code 3: srv load_model: failed to load model, out of luck"
    )


@pytest.mark.model
def test_a_bench_that_dies_midway_keeps_what_it_measured(smollm2_gguf, tmp_path, pi_bench):
    line = '{"n_prompt": 16, "n_gen": 0, "n_depth": 0, "n_threads": 1, "avg_ts": 5.5, "stddev_ts": 0.1, "samples_ts": [5.5]}'
    script(tmp_path / "llama-bench", f"#!/bin/sh\necho '{line}'\necho 'error: ran out' >&2\nkill -ABRT $$\n")
    told = document(pi_bench("--model", smollm2_gguf, "--llama-bin", tmp_path, *SHORT, "--json"))
    assert [(speed["what"], speed["mean_tps"]) for speed in told["speeds"]] == [("prefill", 5.5)]
    assert (
        told["absent"]["speeds"]
        == "1 of 2 tests were measured; then llama-bench ended with signal 6 (Aborted): error: ran out"
    )
    assert "there is no llama-server" in told["absent"]["latency"]


@pytest.mark.model
def test_nothing_measured_at_all_is_exit_code_1_with_a_document(smollm2_gguf, tmp_path, pi_bench):
    script(tmp_path / "llama-bench", "#!/bin/sh\nexit 4\n")
    done = pi_bench("--model", smollm2_gguf, "--llama-bin", tmp_path, *SHORT, "--json")
    assert done.returncode == 1
    assert "nothing could be measured" in done.stderr
    assert document(done)["absent"]["speeds"].startswith("llama-bench ended with exit code 4")


@pytest.mark.model
def test_without_llamacpp_the_exit_code_is_3(smollm2_gguf, tmp_path, pi_bench):
    done = pi_bench("--model", smollm2_gguf, "--llama-bin", tmp_path, "--wait")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no llama-bench in this folder" in done.stderr


@pytest.fixture
def quick(tmp_path):
    """A stand-in for llama-bench that is done at once, where the measurement is not the point."""
    line = '{"n_prompt": 0, "n_gen": 4, "n_depth": 0, "n_threads": 1, "avg_ts": 5.5, "stddev_ts": 0.1, "samples_ts": [5.5]}'
    return script(tmp_path / "quick" / "llama-bench", f"#!/bin/sh\necho '{line}'\n").parent


@pytest.mark.model
@pytest.mark.parametrize("disk", ["full device", "small disk"])
def test_a_full_disk_costs_no_document(disk, quick, smollm2_gguf, pi_bench, request):
    if disk == "full device":
        out = "/dev/full"
    else:
        small = request.getfixturevalue("small_disk")
        free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        (small / "filler").write_bytes(b"x" * free)
        out = small / "run.json"
    done = pi_bench("--model", smollm2_gguf, "--llama-bin", quick, *SHORT, f"--out={out}")
    assert done.returncode == 5
    assert "the disk is full" in done.stderr
    assert "Nothing is lost" in done.stderr
    assert document(done)["speeds"][0]["mean_tps"] == 5.5
    if disk == "small disk":
        assert [file.name for file in small.iterdir()] == ["filler"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_file_name_that_is_not_utf_8_costs_no_document(quick, tmp_path, pi_bench, kept):
    model = tmp_path / os.fsdecode(b"m\xff.gguf")
    model.write_bytes(program._sample_gguf())
    # The tools' folder is in the document, too.
    odd = quick.rename(tmp_path / os.fsdecode(b"tools\xff"))
    script(odd / "llama-server", "#!/bin/sh\nexit 3\n")
    out, table = tmp_path / "run.json", tmp_path / "run.csv"
    words = [f"--out={out}", f"--csv={table}"] if kept else ["--json"]
    done = subprocess.run(
        [sys.executable, PATH, "--model", model, "--llama-bin", odd, *SHORT, "--measure=speed", *words],
        capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = msgspec.json.decode(out.read_bytes() if kept else done.stdout, type=Run)
    assert told.model.file == "m?.gguf"
    assert told.runtime.path == str(tmp_path / "tools?")
    if kept:
        assert "m?.gguf" in table.read_text()


@pytest.mark.model
def test_a_folder_that_cannot_be_written_to_costs_no_document(quick, smollm2_gguf, pi_bench, read_only_folder):
    done = pi_bench("--model", smollm2_gguf, "--llama-bin", quick, *SHORT, f"--out={read_only_folder / 'x/run.json'}")
    assert done.returncode == 5
    assert "Read-only file system" in done.stderr
    assert document(done)["valid"] in (True, False)


@pytest.mark.model
def test_of_two_runs_at_once_the_second_refuses_or_waits(quick, smollm2_gguf, pi_bench):
    words = ["--model", str(smollm2_gguf), "--llama-bin", str(quick), *SHORT[:-1], "--json"]
    handle = os.open(program.lock_path(), os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        # Whatever else measures on this machine now comes first.
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = pi_bench(*words)
        assert (done.returncode, done.stdout) == (5, "")
        assert "another measurement is running" in done.stderr
        with subprocess.Popen(
            [sys.executable, str(PATH), *words, "--wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as waiting:
            assert waiting.stderr
            assert b"waiting for it to end" in waiting.stderr.readline()
            time.sleep(0.5)
            assert waiting.poll() is None
            fcntl.flock(handle, fcntl.LOCK_UN)
            out, _ = waiting.communicate(timeout=300)
        assert waiting.returncode == 0
        assert out.startswith(b"{")
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--model"),
        (["--model=a.gguf", "--server=http://x"], "--model"),
        (["--server=http://127.0.0.1"], "go together"),
        (["--model=a", "--threads=0"], "--threads"),
        (["--model=a", "--splits=2"], "--splits"),
        (["--model=a", "--measure=speed,taste"], "--measure"),
        (["--model=a", "--max-rss=lots"], "--max-rss"),
        (["--model=a", "--min-tps=nan"], "--min-tps"),
        (["--model=a", "--prompt-tokens=0", "--gen-tokens=0"], "nothing to measure"),
        (["--model=nowhere.gguf"], "nowhere.gguf: cannot be read"),
        (["--server=https://x", "--ollama-model=m"], "write it as http://"),
    ],
)
def test_wrong_options_are_exit_code_2_and_no_traceback(words, said, pi_bench):
    done = pi_bench(*words, *(["--wait"] if words else []))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    quiet = subprocess.run(f"{sys.executable} {PATH} --help | true", shell=True, capture_output=True, text=True)
    assert "Traceback" not in quiet.stderr
