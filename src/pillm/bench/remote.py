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
from collections.abc import Callable

import msgspec

from pillm.bench.options import BenchOptions
from pillm.bench.program import PATH, arguments, document_of
from pillm.core import ssh
from pillm.core.artifacts import sha256_file
from pillm.core.errors import MissingError, PillmError
from pillm.core.events import Emit, Log, Progress
from pillm.core.follow import follow

_NOT_KEPT = 5
"""pi_bench's exit code where its document found no room there: then it comes on stdout alone."""
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
    host = _host(options)
    if there.program != PATH.stat().st_size:
        ssh.replace(host, PATH, program)
    if there.whole != size:
        ssh.send(host, options.model, model, sha256, min(there.part, size), there.free, emit)
    words = arguments(options)
    if options.host_llama:
        words.append(f"--llama-bin={options.host_llama}")
    key = hashlib.sha256("\n".join((sha256, program, there.tools, *words)).encode()).hexdigest()[:16]
    script = _RUN.format(
        key=key, program=program, model=shlex.quote(model), sha256=sha256, words=" ".join(map(shlex.quote, words))
    )
    try:
        ended = follow(ssh.command(host, script), emit)
    except KeyboardInterrupt:
        # Without a terminal there, nobody tells the program of our Ctrl-C.
        with contextlib.suppress(PillmError):
            ssh.ask(host, f'cd "$HOME/.cache/pillm" && kill -TERM "$(cat runs/{key}.pid)"; rm -f runs/{key}.pid')
        raise
    if ended.code == ssh.LOST:
        raise ssh.lost(host, ended, "the connection was lost while it measured")
    try:
        document = document_of(ended)
    except PillmError as error:
        raise type(error)(f"{options.host}: {error.message}", error.hint) from error
    if ended.code == _NOT_KEPT:
        emit(Log(f"{options.host}: {'; '.join(ended.errors)}", "warning"))

    def forget() -> None:
        with contextlib.suppress(PillmError):
            ssh.ask(host, f'cd "$HOME/.cache/pillm" && rm -f runs/{key}.json runs/{key}.pid')

    return document, forget


def _host(options: BenchOptions) -> ssh.Host:
    return ssh.Host(options.host or "", options.ssh_config)


def _look(options: BenchOptions, folder: str, model: str, program: str) -> There:
    said: dict[str, str] = {}
    llama = shlex.quote(options.host_llama or "")
    script = _LOOK.format(folder=folder, model=shlex.quote(model), program=program, llama=llama)
    for line in ssh.ask(_host(options), script).splitlines():
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
