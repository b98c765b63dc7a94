"""The real llama-server on the real SmolLM2."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from pillm.core.errors import PillmError, UsageError
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.server import Server, serve

pytestmark = [pytest.mark.llamacpp, pytest.mark.model]


def ask(server: Server, **more: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4, **more}
    headers = {"Authorization": f"Bearer {server.api_key}"}
    return httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=60)


def listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", httpx.URL(url).port or 0)) == 0


def test_answers_on_loopback_with_a_key_and_the_asked_context_for_each_slot(
    tools: LlamaCpp, smollm2_gguf: Path
) -> None:
    with serve(tools, smollm2_gguf, context=512, parallel=2, threads=1) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert ask(server).json()["usage"]["completion_tokens"] > 0
        assert httpx.get(f"{server.url}/models").status_code == 401
        headers = {"Authorization": f"Bearer {server.api_key}"}
        slots = httpx.get(server.url.removesuffix("/v1") + "/slots", headers=headers).json()
        assert [slot["n_ctx"] for slot in slots] == [512, 512]
        long = ask(server, messages=[{"role": "user", "content": "word " * 600}])
        assert long.status_code == 400
        assert "exceed" in long.json()["error"]["message"]
        command = Path("/proc/self/task")  # the key must not stand where other users' `ps` shows it
        if command.exists():
            lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
            assert not any(server.api_key.encode() in line for line in lines)
    assert not listens(server.url)
    assert not server.log.exists()


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_a_chat_template_given_by_path_is_used(tools: LlamaCpp, smollm2_gguf: Path, tmp_path: Path) -> None:
    template = tmp_path / "odd.jinja"
    template.write_text("{% for m in messages %}<|im_start|>odd-{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}")
    with serve(tools, smollm2_gguf, context=256, chat_template=template) as server:
        base = server.url.removesuffix("/v1")
        headers = {"Authorization": f"Bearer {server.api_key}"}
        body = {"messages": [{"role": "user", "content": "x"}]}
        prompt = httpx.post(f"{base}/apply-template", json=body, headers=headers).json()["prompt"]
    assert "odd-user" in prompt


def test_a_broken_template_is_quoted_from_the_log(tools: LlamaCpp, smollm2_gguf: Path, tmp_path: Path) -> None:
    template = tmp_path / "broken.jinja"
    template.write_text("{% if %}")
    # llama-server's log ends on a thread of its own: on a busy machine the reason's last line is lost now and then.
    with (
        pytest.raises(PillmError, match=r"Unexpected token|chat template is not supported") as caught,
        serve(tools, smollm2_gguf, context=256, chat_template=template),
    ):
        pass
    log = Path(caught.value.hint.removeprefix("its log is "))
    assert log.is_file()


def test_missing_files_are_told_before_anything_starts(smollm2_gguf: Path, tmp_path: Path) -> None:
    no_tools = LlamaCpp(tmp_path, tmp_path, "none")
    with pytest.raises(UsageError, match=r"none\.gguf"), serve(no_tools, tmp_path / "none.gguf", context=256):
        pass
    with (
        pytest.raises(UsageError, match=r"none\.jinja"),
        serve(no_tools, smollm2_gguf, context=256, chat_template=tmp_path / "none.jinja"),
    ):
        pass


def test_a_server_that_dies_under_a_request_is_named(tools: LlamaCpp, smollm2_gguf: Path) -> None:
    def work() -> None:
        with serve(tools, smollm2_gguf, context=256) as server:
            kill_server(server)
            ask(server)

    with pytest.raises(PillmError, match=r"llama-server on .* ran out of memory") as caught:
        work()
    assert isinstance(caught.value.__cause__, httpx.HTTPError)


def kill_server(server: Server) -> None:
    """As the kernel does when memory runs out."""
    import psutil

    port = httpx.URL(server.url).port
    own = [child for child in psutil.Process().children() if str(port) in child.cmdline()]
    assert len(own) == 1
    own[0].kill()


def test_an_error_of_the_caller_passes_through(tools: LlamaCpp, smollm2_gguf: Path) -> None:
    with pytest.raises(ZeroDivisionError), serve(tools, smollm2_gguf, context=256) as server:
        raise ZeroDivisionError
    assert not listens(server.url)
    assert not server.log.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the server with its parent on Linux only")
def test_the_server_dies_with_its_killed_parent(smollm2_gguf: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom pillm.core.events import silent\n"
        "from pillm.llamacpp.install import ensure\nfrom pillm.llamacpp.server import serve\n"
        "with serve(ensure(silent), Path(sys.argv[1]), context=256) as server:\n"
        "    print(server.url, flush=True)\n    print(server.log, flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(smollm2_gguf)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url, log = parent.stdout.readline().strip(), parent.stdout.readline().strip()
        assert listens(url)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 20
    while listens(url) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not listens(url)
    Path(log).unlink()
