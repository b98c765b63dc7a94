"""`pillm bench --host`: `pi_bench.py` and the model go over by ssh, the run happens there, its document comes home.

Everything is done by the system's ssh with the user's configuration, keys and known hosts; a host key is never
accepted by us. Whatever is cut off is gone on with by the same command: half of a model is kept and continued, and
a run that had ended (or is still going) when the connection broke is fetched and not repeated, as long as the model,
the options, pi_bench itself and the tools there are the same.

On the host, below `~/.cache/pillm`: `pi_bench-HASH.py`, `models/HASH/FILE`, `runs/KEY.json` until it is kept at home.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from pillm.bench.options import BenchOptions
from pillm.bench.program import PATH, Ended, arguments, document_of, follow
from pillm.core.artifacts import sha256_file
from pillm.core.command import Command
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError
from pillm.core.events import Emit, Log, Progress, silent

_SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15",
    "-o", "ServerAliveCountMax=4",
)  # fmt: skip
_LOST = 255
"""ssh's own exit code; any other is the command's."""
_NOT_KEPT = 5
"""pi_bench's exit code where its document found no room there: then it comes on stdout alone."""
_BLOCK = 1 << 18
_SPARE_BYTES = 32 * 2**20
_OLDEST_PYTHON = (3, 9)

_LOOK = """
mkdir -p "$HOME/.cache/pillm/models/{folder}" "$HOME/.cache/pillm/runs" || exit 1
cd "$HOME/.cache/pillm" || exit 1
size() {{ wc -c < "$1" 2>/dev/null || echo 0; }}
echo "python=$(python3 -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)"
echo "free=$(df -Pk . | tail -n 1 | awk '{{ print $4 }}')"
echo "whole=$(size {model})"
echo "part=$(size {model}.part)"
echo "program=$(size {program})"
# The tools where pi_bench finds them, and the libraries beside them, by path, time and size.
about() {{ stat -L -c '%n %Y %s' "$1"/llama-bench "$1"/llama-server "$1"/lib*.so* 2>/dev/null; }}
said={llama}
if [ -n "$said" ]; then set -- "$said" "$said/bin" "$said/build/bin"
else set -- "$(dirname "$(readlink -f "$(command -v llama-bench || command -v llama-server)")")" /usr/lib/pillm* /usr/lib/pillm*/bin
fi 2>/dev/null
echo "tools=$(for folder; do about "$folder"; done | cksum)"
"""
# What waits for a run that was begun earlier and lost its connection, or begins one.
_RUN = """
cd "$HOME/.cache/pillm" || exit 1
going() {{ pid=$(cat runs/{key}.pid 2>/dev/null) && grep -q pi_bench "/proc/$pid/cmdline" 2>/dev/null; }}
if going; then
  echo '{{"log": "a run that was begun earlier is still going there; waiting for it", "level": "info"}}' >&2
  while going; do sleep 1; done
fi
if [ -s runs/{key}.json ]; then
  started=$(awk -F '"' '$2 == "started" {{ print $4; exit }}' runs/{key}.json)
  echo '{{"log": "this run had ended there when the connection broke: its figures are of '"$started"'", "level": "warning"}}' >&2
  exec cat runs/{key}.json
fi
echo $$ > runs/{key}.pid
exec python3 {program} --model {model} --sha256 {sha256} --out runs/{key}.json {words}
"""


class There(msgspec.Struct, frozen=True):
    """What the host has; sizes in bytes. `tools` is a checksum that changes when llama.cpp's tools there do."""

    python: str
    free: int
    whole: int
    part: int
    program: int
    tools: str


def measure(options: BenchOptions, emit: Emit) -> tuple[bytes, Callable[[], None]]:
    """The document of a run on `options.host`, and what deletes it there: to be called once it is kept here.

    Raises NetworkError (unreachable, unknown host key, refused key, connection lost), MissingError (no ssh here; no
    python3 or llama.cpp there), ResourceError (disk full there), and what pi_bench itself ends with.
    """
    sha256, size = sha256_file(options.model), options.model.stat().st_size
    program = f"pi_bench-{sha256_file(PATH)[:12]}.py"
    model = f"models/{sha256[:16]}/{options.model.name}"
    emit(Progress(f"look at {options.host}", 0))
    there = _look(options, sha256[:16], model, program)
    if there.program != PATH.stat().st_size:
        _send(options, PATH, program, 0, there, silent)
    if there.whole != size:
        _send(options, options.model, model, min(there.part, size), there, emit)
        _publish(options, model, sha256)
    words = arguments(options)
    if options.host_llama:
        words.append(f"--llama-bin={options.host_llama}")
    key = hashlib.sha256("\n".join((sha256, program, there.tools, *words)).encode()).hexdigest()[:16]
    script = _RUN.format(
        key=key, program=program, model=shlex.quote(model), sha256=sha256, words=" ".join(map(shlex.quote, words))
    )
    try:
        ended = follow(_command(options, script), emit)
    except KeyboardInterrupt:
        # Without a terminal there, nobody tells the program of our Ctrl-C.
        with contextlib.suppress(PillmError):
            _ask(options, f'cd "$HOME/.cache/pillm" && kill -TERM "$(cat runs/{key}.pid)"; rm -f runs/{key}.pid')
        raise
    if ended.code == _LOST:
        raise _lost(options, ended, "the connection was lost while it measured")
    try:
        document = document_of(ended)
    except PillmError as error:
        raise type(error)(f"{options.host}: {error.message}", error.hint) from error
    if ended.code == _NOT_KEPT:
        emit(Log(f"{options.host}: {'; '.join(ended.errors)}", "warning"))

    def forget() -> None:
        with contextlib.suppress(PillmError):
            _ask(options, f'cd "$HOME/.cache/pillm" && rm -f runs/{key}.json runs/{key}.pid')

    return document, forget


def _command(options: BenchOptions, script: str) -> Command:
    """How ssh runs a script of the POSIX shell, whatever shell the user has there."""
    config = ("-F", str(options.ssh_config)) if options.ssh_config else ()
    return Command((*_SSH, *config, "--", options.host or "", f"exec sh -c {shlex.quote(script)}"))


def _ask(options: BenchOptions, script: str) -> str:
    """What a short script says. Raises as `measure`."""
    ended = follow(_command(options, script), silent)
    if ended.code == _LOST:
        raise _lost(options, ended, "the connection was lost")
    if ended.code:
        raise _refused(options, ended.code, "\n".join(ended.noise))
    return ended.stdout.decode("utf-8", "replace")


def _look(options: BenchOptions, folder: str, model: str, program: str) -> There:
    said: dict[str, str] = {}
    llama = shlex.quote(options.host_llama or "")
    script = _LOOK.format(folder=folder, model=shlex.quote(model), program=program, llama=llama)
    for line in _ask(options, script).splitlines():
        name, _, value = line.partition("=")
        said[name] = value.strip()
    python = said.get("python", "")
    numbers = tuple(map(int, re.findall(r"\d+", python)))
    if numbers < _OLDEST_PYTHON:
        raise MissingError(
            f"{options.host}: {f'its python3 is {python}' if python else 'there is no python3'}",
            "pi_bench needs Python 3.9 or newer there; Debian, Raspberry Pi OS: sudo apt install python3",
        )
    whole, part, sent, free = (int(said.get(name) or 0) for name in ("whole", "part", "program", "free"))
    return There(python, free * 1024, whole, part, sent, said.get("tools", ""))


def _send(options: BenchOptions, file: Path, name: str, begin: int, there: There, emit: Emit) -> None:
    """Append what is missing of `file` to `NAME.part` (from byte `begin` on); pi_bench itself is put in its place at once."""
    size = file.stat().st_size
    if size - begin + (_SPARE_BYTES if size > _SPARE_BYTES else 0) > there.free:
        raise ResourceError(
            f"{options.host}: the disk is too full for {file.name}: {there.free / 1e6:.0f} MB are free, "
            f"{(size - begin) / 1e6:.0f} MB are missing",
            "free some space there, for instance in ~/.cache/pillm/models, then run the same command again",
        )
    if begin:
        emit(Log(f"{begin / 1e6:.0f} MB of {file.name} are on {options.host} already; going on from there"))
    quoted = shlex.quote(name)
    script = f'cd "$HOME/.cache/pillm" && cat >> {quoted}.part'
    if file == PATH:
        script = f'cd "$HOME/.cache/pillm" && cat > {quoted}.part && mv {quoted}.part {quoted}'
    command = _command(options, script)
    try:
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise MissingError("ssh: no such program", "Debian: sudo apt install openssh-client") from error
    with process:
        if process.stdin is None or process.stderr is None:
            raise AssertionError("the child was started with pipes")
        try:
            _pour(file, begin, size, process.stdin, f"copy {file.name}", emit)
            said = process.stderr.read().decode("utf-8", "replace")
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    if code:
        ended = Ended(code, b"", (), tuple(said.splitlines()))
        if code == _LOST:
            raise _lost(options, ended, f"the connection was lost while {file.name} was copied")
        raise _refused(options, code, said)


def _pour(file: Path, begin: int, size: int, sink: IO[bytes], label: str, emit: Emit) -> None:
    """Write the file from `begin` on. A pipe that breaks ends it: ssh says why."""
    done = begin
    with contextlib.suppress(BrokenPipeError), file.open("rb") as source:
        source.seek(begin)
        while block := source.read(_BLOCK):
            sink.write(block)
            done += len(block)
            emit(Progress(label, done, size, "bytes"))
        sink.flush()
    with contextlib.suppress(BrokenPipeError):
        sink.close()


def _publish(options: BenchOptions, model: str, sha256: str) -> None:
    """Give the copied model its name, if every byte of it is right."""
    code = (
        "import hashlib, os, sys\nname, wanted = sys.argv[1:]\ndigest = hashlib.sha256()\n"
        "with open(name + '.part', 'rb') as file:\n"
        "    for block in iter(lambda: file.read(1 << 20), b''):\n        digest.update(block)\n"
        "if digest.hexdigest() == wanted:\n    os.replace(name + '.part', name)\n    print('right')\n"
        "else:\n    os.unlink(name + '.part')\n"
    )
    script = f'cd "$HOME/.cache/pillm" && exec python3 -c {shlex.quote(code)} {shlex.quote(model)} {sha256}'
    if _ask(options, script).strip() != "right":
        raise NetworkError(
            f"{options.host}: the copied model has another hash than the file here; the copy was deleted",
            "run the same command again; if it happens again, its disk or memory card may be damaged",
        )


def _refused(options: BenchOptions, code: int, said: str) -> PillmError:
    """The error for a script of ours that failed there."""
    last = said.strip().splitlines()[-1] if said.strip() else "it did not say why"
    if re.search(r"No space left|quota exceeded", said, re.IGNORECASE):
        return ResourceError(
            f"{options.host}: the disk is full ({last})", "free some space there, then run the same command again"
        )
    if re.search(r"Permission denied|Read-only file system", said):
        return ResourceError(
            f"{options.host}: ~/.cache/pillm cannot be written to ({last})", "change its permissions there"
        )
    return PillmError(f"{options.host}: a command failed there (exit code {code}): {last}", "try it by hand with ssh")


def _lost(options: BenchOptions, ended: Ended, otherwise: str) -> NetworkError:
    """The error for ssh itself, from what it says (OpenSSH's words)."""
    said, host = "\n".join(ended.noise), options.host
    last = ended.noise[-1] if ended.noise else "ssh did not say why"
    if "IDENTIFICATION HAS CHANGED" in said:
        return NetworkError(
            f"{host}: its host key is not the one that is known: another machine may be answering",
            f"if you know why (a board set up anew): ssh-keygen -R {host}, then ssh {host} once by hand",
        )
    if "Host key verification failed" in said or "No matching host key" in said:
        return NetworkError(
            f"{host}: its host key is not known here, so nobody can tell whether it is the right machine",
            f"run `ssh {host}` once by hand and compare the fingerprint that it shows",
        )
    if "Permission denied" in said or "Too many authentication failures" in said:
        return NetworkError(
            f"{host}: it accepts none of your keys ({last})",
            f"ssh-copy-id {host} puts your key there; pillm asks for no password",
        )
    if re.search(r"Could not resolve|Name or service not known", said):
        return NetworkError(
            f"{host}: no machine of this name is known ({last})", "check the name, or use the board's address"
        )
    if re.search(r"connect to host|Connection timed out|No route to host|banner exchange", said):
        return NetworkError(
            f"{host}: cannot be reached ({last})", "is it on, in this network, and is ssh enabled there (raspi-config)?"
        )
    if re.search(r"Bad configuration|Can't open user config|no such identity", said, re.IGNORECASE):
        return NetworkError(f"ssh cannot be used: {last}", "correct ssh's configuration")
    return NetworkError(f"{host}: {otherwise} ({last})", "run the same command again: it goes on from where it was")
