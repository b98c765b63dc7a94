"""What the runtime's programs decide on a board: memory, threads, heat, jobs. The programs are the packaged files."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import board_tree
import pytest

from pillm.bench import pi_bench
from pillm.deploy.package import memory, model
from pillm.devices.memory import rough_memory

MIB = 2**20


@pytest.fixture
def root(tmp_path: Path, smollm2_gguf: Path) -> Path:
    return board_tree.make(tmp_path / "root", None, smollm2_gguf)


def test_settings_are_the_best_that_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = board_tree.module(root, "board")
    monkeypatch.setattr(board, "title", lambda: "Raspberry Pi Zero 2 W Rev 1.0")
    much = board.settings("tutor", total=2000 * MIB)
    assert (much["CONTEXT"], much["KV_TYPE"], much["UBATCH"]) == (4096, "f16", 512)
    # Hardly any room: the cache loses precision before the context becomes shorter.
    little = board.settings("tutor", total=360 * MIB)
    assert little["NEEDED"] <= board.room(360 * MIB)
    assert little["KV_TYPE"] == "q8_0" or little["CONTEXT"] < 4096
    assert little["MEMORY_MAX"] < 260 * MIB
    with pytest.raises(board.Trouble, match="does not fit: it needs") as error:
        board.settings("tutor", total=250 * MIB)
    assert error.value.code == board.EXIT_RESOURCE


def test_settings_of_a_person_win_and_mistakes_have_file_and_line(root: Path) -> None:
    board = board_tree.module(root, "board")
    path = root / "etc/pillm/tutor.env"
    path.parent.mkdir(parents=True)
    path.write_text("# mine\nPORT=9001\nCONTEXT=3000\nTHREADS=1\nMEMORY_MAX=700\nKV_TYPE='q8_0'\n")
    chosen = board.settings("tutor", total=2000 * MIB)
    assert (chosen["PORT"], chosen["CONTEXT"], chosen["THREADS"], chosen["MEMORY_MAX"]) == (9001, 3000, 1, 700 * MIB)
    assert chosen["KV_TYPE"] == "q8_0"
    # A context between two rows needs what the larger one needs.
    assert chosen["NEEDED"] == next(
        row[4] for row in board.table("tutor") if row[:3] == (board.features(), 4096, "q8_0")
    )
    path.write_text("PORT=9001\nTREADS=4\n")
    with pytest.raises(board.Trouble, match=r"tutor\.env:2: not a setting"):
        board.settings("tutor")
    path.write_text("PORT=many\n")
    with pytest.raises(board.Trouble, match="PORT=many is not a whole number"):
        board.settings("tutor")


@pytest.mark.parametrize("name", ["", "Raspberry Pi Zero 2 W Rev 1.0", "Raspberry Pi 4 Model B Rev 1.4"])
@pytest.mark.parametrize("total", [420, 905, 1000, 1849, 3790, 7930, 24000])
def test_preinst_and_service_count_the_same_room(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, total: int
) -> None:
    board = board_tree.module(root, "board")
    monkeypatch.setattr(board, "title", lambda: name)
    room = board.room(total * MIB) // MIB
    (tmp_path / "meminfo").write_text(f"MemTotal:       {total * 1024} kB\n")
    (tmp_path / "model").write_text(name)
    for needed, code in ((room, 0), (room + 1, 1)):
        words = {
            "NAME": "x",
            "KEEPS": str(model.KEEPS_MIB),
            "SPARE": str(model.SPARE_MIB),
            "BOARDS": model._cases(),
            "MEMORY_MIB": str(needed),
            "DISK_MIB": "1",
        }
        script = model._filled(model.deb.sources() / "model", "preinst", words)
        script = script.replace("/proc/meminfo", f"{tmp_path}/meminfo").replace(
            "/proc/device-tree/model", f"{tmp_path}/model"
        )
        said = subprocess.run(["sh", "-c", script, "preinst", "install"], capture_output=True, text=True)
        assert said.returncode == code, (said.stderr, room)
    assert f"needs {room + 1} MB of memory, and this board has {room} MB" in said.stderr


def test_added_files_are_judged_by_the_predictors_rough_formula(root: Path, smollm2_gguf: Path) -> None:
    rough = board_tree.module(root, "rough")
    assert rough.CONTEXTS == memory.CONTEXTS
    assert set(rough.KINDS) == set(memory.CLASSES)
    facts = pi_bench.model_of(smollm2_gguf, {}, pi_bench.Screen("plain"), hashed=False)
    for kind, context, cache, ubatch, size in rough.rows(smollm2_gguf):
        there = rough_memory(
            facts["weight_bytes"], facts["types"], facts["kv_bytes_per_token"], facts["vocabulary"], facts["width"],
            memory.CLASSES[kind], context, kv_type=cache, ubatch=ubatch,
        )  # fmt: skip
        assert abs(size - there.needed_bytes) < 100_000, (kind, context, cache, ubatch)


def test_models_are_added_listed_and_removed(root: Path, tmp_path: Path, smollm2_gguf: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("models are added by root")
    program = root / "usr/bin/pillm-models"

    def models(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *words], capture_output=True, text=True)

    assert models("add", str(smollm2_gguf), "--name", "own").returncode == 0
    listed = json.loads(models("list", "--json").stdout)
    assert [(each["name"], each["from"], each["port"]) for each in listed] == [
        ("own", "file", 8080),
        ("tutor", "package", 8080),
    ]
    assert models("enable", "tutor").returncode == 0
    assert (root / "etc/pillm/tutor.env").read_text().count("\nPORT=8081\n") == 1
    assert models("default", "own").returncode == 0
    assert models("default").stdout == "own\n"
    said = models("remove", "tutor")
    assert said.returncode == 2
    assert "apt remove pillm-model-tutor" in said.stderr
    assert models("remove", "own").returncode == 0
    assert not list(root.rglob("*own*"))
    (tmp_path / "no.gguf").write_text("nothing")
    said = models("add", str(tmp_path / "no.gguf"))
    assert said.returncode == 2
    assert "not a GGUF file" in said.stderr
    assert "Traceback" not in said.stderr


def test_listening_beyond_loopback_makes_a_key(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("addresses are changed by root")
    models = root / "usr/bin/pillm-models"
    subprocess.run([models, "listen", "tutor", "0.0.0.0"], check=True, capture_output=True)
    key = root / "etc/pillm/tutor.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert (
        "IPAddressAllow=any" in (root / "etc/systemd/system/pillm-server@tutor.service.d/pillm-listen.conf").read_text()
    )
    board = board_tree.module(root, "board")
    assert board.settings("tutor")["HOST"] == "0.0.0.0"
    assert board.address("tutor") == ("127.0.0.1", 8080)
    key.unlink()
    said = subprocess.run([root / "usr/lib/pillm-runtime/pillm-serve", "tutor"], capture_output=True, text=True)
    assert said.returncode == 78
    assert "has no key" in said.stderr
    subprocess.run([models, "listen", "tutor", "127.0.0.1"], check=True, capture_output=True)
    assert not list((root / "etc/systemd").rglob("*.conf"))


def test_heat_takes_threads_and_cooling_gives_them_back(root: Path, tmp_path: Path) -> None:
    board, serve = board_tree.module(root, "board"), board_tree.module(root, "pillm-serve")
    firmware = tmp_path / "devices/platform/soc/soc:firmware/get_throttled"
    firmware.parent.mkdir(parents=True)
    for said, hot in (("0", False), ("50000", False), ("50005", True), ("8", True)):
        firmware.write_text(said + "\n")
        assert board.throttled(tmp_path) is hot
    firmware.unlink()
    zone = tmp_path / "class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "trip_point_0_type").write_text("passive\n")
    (zone / "trip_point_0_temp").write_text("80000\n")
    for now, hot in (("79000", False), ("80000", True)):
        (zone / "temp").write_text(now)
        assert board.throttled(tmp_path) is hot
    guard = serve.Guard(4)
    seen = [guard.judge(now < 100, float(now)) for now in range(0, 1400, 5)]
    assert seen[:6] == [4] * 6
    assert (min(seen), seen[-1]) == (1, 4)
    assert seen == sorted(seen[:20], reverse=True) + sorted(seen[20:])


class _Echo(http.server.BaseHTTPRequestHandler):
    """An imitation of llama-server, for the spool's bookkeeping alone: it answers with the question, slowly."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(0.01)
        said = {
            "choices": [
                {"message": {"role": "assistant", "content": body["messages"][-1]["content"]}, "finish_reason": "stop"}
            ]
        }
        data = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        # The decoder may have been killed meanwhile.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def echo() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def _spool(root: Path, port: int) -> Path:
    (root / "etc/pillm").mkdir(parents=True, exist_ok=True)
    (root / "etc/pillm/tutor.env").write_text(f"PORT={port}\n")
    spool = root / "var/spool/pillm/tutor"
    for name in ("in", "work", "out"):
        (spool / name).mkdir(parents=True)
    return spool


def _drop(spool: Path, name: str, lines: list[str]) -> None:
    path = spool / "in" / name
    path.write_text("".join(line + "\n" for line in lines))
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))


def test_every_line_is_answered_once_however_often_the_decoder_is_killed(root: Path, echo: int) -> None:
    spool, jobs = _spool(root, echo), 12
    for number in range(jobs):
        _drop(
            spool,
            f"job{number:02}.jsonl",
            [json.dumps({"id": f"{number}-{line}", "prompt": f"{number} {line}"}) for line in range(20)],
        )
    dice, kills = random.Random(8), 0
    program = root / "usr/lib/pillm-runtime/pillm-decode"
    while True:
        process = subprocess.Popen([program, "tutor"], stdout=subprocess.DEVNULL)
        try:
            code = process.wait(dice.uniform(0.1, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            # What is in out/ at any moment is whole.
            for path in (spool / "out").iterdir():
                assert len(path.read_text().splitlines()) == 20
            # A power cut leaves half a line, too.
            for part in (spool / "work").glob("*.part"):
                with part.open("ab") as file:
                    file.write(b'{"line": 3, "mess')
            continue
        assert code == 0
        break
    assert kills >= 3
    for number in range(jobs):
        results = [json.loads(line) for line in (spool / f"out/job{number:02}.jsonl").read_text().splitlines()]
        assert [each["id"] for each in results] == [f"{number}-{line}" for line in range(20)]
        assert [each["message"]["content"] for each in results] == [f"{number} {line}" for line in range(20)]
    assert not [*(spool / "in").iterdir(), *(spool / "work").iterdir()]


def test_every_step_of_publishing_can_be_the_last_before_a_power_cut(root: Path, echo: int) -> None:
    spool = _spool(root, echo)
    whole = '{"line": 1, "message": {}}\n'
    (spool / "work/a.done").write_text('{"prompt": "a"}\n')
    (spool / "work/a.part").write_text(whole)
    (spool / "work/b.done").write_text('{"prompt": "b"}\n')
    (spool / "out/b.jsonl").write_text(whole)
    subprocess.run([root / "usr/lib/pillm-runtime/pillm-decode", "tutor"], check=True)
    assert {path.name: path.read_text() for path in (spool / "out").iterdir()} == {"a.jsonl": whole, "b.jsonl": whole}
    assert not list((spool / "work").iterdir())


def test_bad_lines_same_names_and_links(root: Path, echo: int, tmp_path: Path) -> None:
    spool = _spool(root, echo)
    (spool / "out/x.jsonl").write_text("earlier\n")
    _drop(spool, "x.jsonl", ["[1]", '{"no": "question"}', "", '{"prompt": "yes", "temperature": 0.5}'])
    (tmp_path / "secret").write_text('{"prompt": "secret"}\n')
    (spool / "in/link.jsonl").symlink_to(tmp_path / "secret")
    subprocess.run([root / "usr/lib/pillm-runtime/pillm-decode", "tutor"], check=True, capture_output=True)
    assert (spool / "out/x.jsonl").read_text() == "earlier\n"
    found = [json.loads(line) for line in (spool / "out/x-2.jsonl").read_text().splitlines()]
    assert [each["line"] for each in found] == [1, 2, 3]
    assert ["error" in each for each in found] == [True, True, False]
    assert not (spool / "out/link.jsonl").exists()


@pytest.mark.llamacpp
def test_measuring_by_name_takes_the_packaged_tools_and_the_models_file(
    tmp_path: Path, smollm2_gguf: Path, tools
) -> None:
    root = board_tree.make(tmp_path / "root", tools.bin, smollm2_gguf)
    for words in ([], ["--model", "tutor"], ["--model=tutor"]):
        said = subprocess.run(
            [root / "usr/bin/pillm-bench", *words, "--dry-run"], capture_output=True, text=True, check=True
        )
        assert f"llama-bench --model {root}/usr/share/pillm/models/tutor/model.gguf " in said.stdout
    said = subprocess.run(
        [root / "usr/bin/pillm-bench", "--model", "other", "--dry-run"], capture_output=True, text=True
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert "there is: tutor" in said.stderr


@pytest.mark.llamacpp
@pytest.mark.model
def test_the_service_answers_and_comes_back_after_a_crash(tmp_path: Path, smollm2_gguf: Path, tools) -> None:
    root = board_tree.make(tmp_path / "root", tools.bin, smollm2_gguf)
    port = _free_port()
    (root / "etc/pillm").mkdir(parents=True)
    (root / "etc/pillm/tutor.env").write_text(f"PORT={port}\nCONTEXT=1024\nTHREADS=2\n")
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen([root / "usr/lib/pillm-runtime/pillm-serve", "tutor"], stdout=log, stderr=log)
        try:
            question = [root / "usr/bin/pillm-chat", "-n", "12", "-t", "0", "What is the capital of France?"]
            assert _until(question).strip()
            pids = subprocess.run(["pgrep", "-P", str(service.pid)], capture_output=True, text=True).stdout.split()
            os.kill(int(pids[0]), signal.SIGKILL)
            time.sleep(1)
            assert _until(question).strip()
            service.send_signal(signal.SIGTERM)
            assert service.wait(30) == 0
        finally:
            service.terminate()
            service.wait(60)
    said = subprocess.run(question, capture_output=True, text=True)
    assert said.returncode == 4
    assert "sudo systemctl start pillm-server@tutor" in said.stderr


def _until(argv: list[object], seconds: float = 120) -> str:
    """What a command says once it ends well."""
    began = time.monotonic()
    while True:
        said = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
        if said.returncode == 0 or time.monotonic() - began > seconds:
            return said.stdout
        time.sleep(0.3)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
