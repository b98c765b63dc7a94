"""Another machine by the system's ssh: short scripts, files that go on where they were cut off, errors in plain words.

The user's configuration, keys and known hosts count; a host key is never accepted by us, and no password is asked for.
Files lie below `~/.cache/pillm` there; their names are relative to it.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import IO

import msgspec

from pillm.core.command import Command
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError
from pillm.core.events import Emit, Log, Progress, silent
from pillm.core.follow import Ended, follow

_SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15",
    "-o", "ServerAliveCountMax=4",
)  # fmt: skip
LOST = 255
"""ssh's own exit code; any other is the command's."""
_BLOCK = 1 << 18
_SPARE_BYTES = 32 * 2**20
_PUBLISH = """import hashlib, os, sys
name, size, wanted = sys.argv[1:]
if os.path.getsize(name + ".part") < int(size):
    sys.exit("the copy was cut off")
digest = hashlib.sha256()
with open(name + ".part", "rb") as file:
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
if digest.hexdigest() == wanted:
    os.replace(name + ".part", name)
    print("right")
else:
    os.unlink(name + ".part")
"""


class Host(msgspec.Struct, frozen=True):
    """Where to: `pi@raspberrypi` or a name of ssh's configuration, and the file of it where it is not ssh's own."""

    name: str
    config: Path | None = None


def command(host: Host, script: str) -> Command:
    """How ssh runs a script of the POSIX shell, whatever shell the user has there."""
    config = ("-F", str(host.config)) if host.config else ()
    return Command((*_SSH, *config, "--", host.name, f"exec sh -c {shlex.quote(script)}"))


def ask(host: Host, script: str) -> str:
    """What a short script says.

    Raises NetworkError (unreachable, unknown host key, refused key, connection lost), MissingError (no ssh here),
    ResourceError (disk full there, no right to write), PillmError (the script failed).
    """
    ended = follow(command(host, script), silent)
    if ended.code == LOST:
        raise lost(host, ended, "the connection was lost")
    if ended.code:
        raise refused(host, ended.code, "\n".join(ended.noise))
    return ended.stdout.decode("utf-8", "replace")


def send(host: Host, file: Path, name: str, sha256: str, begin: int, free: int, emit: Emit) -> None:
    """Append what is missing of `file` to `NAME.part` there, from byte `begin` on, and give it its name if every byte is right.

    `free` bytes are free there. Raises as `ask`, and NetworkError for wrong bytes, which are deleted.
    """
    size = file.stat().st_size
    if size - begin + (_SPARE_BYTES if size > _SPARE_BYTES else 0) > free:
        raise ResourceError(
            f"{host.name}: the disk is too full for {file.name}: {free / 1e6:.0f} MB are free, "
            f"{(size - begin) / 1e6:.0f} MB are missing",
            "free some space there, for instance in ~/.cache/pillm, then run the same command again",
        )
    if begin:
        emit(Log(f"{begin / 1e6:.0f} MB of {file.name} are on {host.name} already; going on from there"))
    quoted = shlex.quote(name)
    script = (
        f'mkdir -p "$HOME/.cache/pillm/"{shlex.quote(name.rpartition("/")[0])} && cd "$HOME/.cache/pillm" && cat >> {quoted}.part '
        f"&& exec python3 -c {shlex.quote(_PUBLISH)} {quoted} {size} {sha256}"
    )
    if _stream(host, file, begin, script, emit).strip() != b"right":
        what = "model" if name.endswith(".gguf") else "file"
        raise NetworkError(
            f"{host.name}: the copied {what} has another hash than the file here; the copy was deleted",
            "run the same command again; if it happens again, its disk or memory card may be damaged",
        )


def replace(host: Host, file: Path, name: str) -> None:
    """Put a small file in its place at once. Raises as `ask`."""
    quoted = shlex.quote(name)
    _stream(host, file, 0, f'cd "$HOME/.cache/pillm" && cat > {quoted}.part && mv {quoted}.part {quoted}', silent)


def _stream(host: Host, file: Path, begin: int, script: str, emit: Emit) -> bytes:
    try:
        process = subprocess.Popen(
            command(host, script).argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise MissingError("ssh: no such program", "Debian: sudo apt install openssh-client") from error
    with process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError("the child was started with pipes")
        try:
            _pour(file, begin, process.stdin, f"copy {file.name}", emit)
            said = process.stderr.read().decode("utf-8", "replace")
            answer = process.stdout.read()
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    if code:
        ended = Ended(code, b"", (), tuple(said.splitlines()))
        if code == LOST:
            raise lost(host, ended, f"the connection was lost while {file.name} was copied")
        raise refused(host, code, said)
    return answer


def _pour(file: Path, begin: int, sink: IO[bytes], label: str, emit: Emit) -> None:
    """Write the file from `begin` on. A pipe that breaks ends it: ssh says why."""
    done, size = begin, file.stat().st_size
    with contextlib.suppress(BrokenPipeError), file.open("rb") as source:
        source.seek(begin)
        while block := source.read(_BLOCK):
            sink.write(block)
            done += len(block)
            emit(Progress(label, done, size, "bytes"))
        sink.flush()
    with contextlib.suppress(BrokenPipeError):
        sink.close()


def refused(host: Host, code: int, said: str) -> PillmError:
    """The error for a script of ours that failed there."""
    last = said.strip().splitlines()[-1] if said.strip() else "it did not say why"
    if re.search(r"No space left|quota exceeded", said, re.IGNORECASE):
        return ResourceError(
            f"{host.name}: the disk is full ({last})", "free some space there, then run the same command again"
        )
    if re.search(r"Permission denied|Read-only file system", said):
        return ResourceError(
            f"{host.name}: ~/.cache/pillm cannot be written to ({last})", "change its permissions there"
        )
    return PillmError(f"{host.name}: a command failed there (exit code {code}): {last}", "try it by hand with ssh")


def lost(host: Host, ended: Ended, otherwise: str) -> NetworkError:
    """The error for ssh itself, from what it says (OpenSSH's words)."""
    said, name = "\n".join(ended.noise), host.name
    last = ended.noise[-1] if ended.noise else "ssh did not say why"
    if "IDENTIFICATION HAS CHANGED" in said:
        return NetworkError(
            f"{name}: its host key is not the one that is known: another machine may be answering",
            f"if you know why (a board set up anew): ssh-keygen -R {name}, then ssh {name} once by hand",
        )
    if "Host key verification failed" in said or "No matching host key" in said:
        return NetworkError(
            f"{name}: its host key is not known here, so nobody can tell whether it is the right machine",
            f"run `ssh {name}` once by hand and compare the fingerprint that it shows",
        )
    if "Permission denied" in said or "Too many authentication failures" in said:
        return NetworkError(
            f"{name}: it accepts none of your keys ({last})",
            f"ssh-copy-id {name} puts your key there; pillm asks for no password",
        )
    if re.search(r"Could not resolve|Name or service not known", said):
        return NetworkError(
            f"{name}: no machine of this name is known ({last})", "check the name, or use the board's address"
        )
    if re.search(r"connect to host|Connection timed out|No route to host|banner exchange", said):
        return NetworkError(
            f"{name}: cannot be reached ({last})", "is it on, in this network, and is ssh enabled there (raspi-config)?"
        )
    if re.search(r"Bad configuration|Can't open user config|no such identity", said, re.IGNORECASE):
        return NetworkError(f"ssh cannot be used: {last}", "correct ssh's configuration")
    return NetworkError(f"{name}: {otherwise} ({last})", "run the same command again: it goes on from where it was")
