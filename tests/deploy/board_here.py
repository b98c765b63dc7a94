"""A board for the tests of `pillm deploy`: this machine's own Debian under an overlay, behind a real sshd.

dpkg, apt, python3, ssh and the file system are real. **Stand-ins**, since nothing here is process 1: `systemctl` (a shell
script that starts and kills), and the packages (a small HTTP server in place of llama.cpp, bytes in place of a model).
The real ones meet in an emulated machine (test_board_machine.py, benchmarks/board_vm.py).
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pillm.deploy.options import DeployOptions

SYSTEMCTL = r"""#!/bin/sh
# A stand-in: units are files, a start is a process.
word=$1; shift
now= unit=
for one; do case $one in --now) now=1;; --quiet|--no-block) ;; *) unit=$one;; esac; done
name=${unit#*@}; name=${name%.service}; pid=/run/units/$unit.pid; mark=/etc/enabled-units/$unit
mkdir -p /run/units /etc/enabled-units
alive() { [ -s "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; }
stop() { if alive; then kill -9 "$(cat "$pid")"; fi; rm -f "$pid"; }
start() { alive || { setsid /usr/lib/pillm-runtime/serve "$name" >/dev/null 2>&1 </dev/null & echo $! > "$pid"; }; }
case $word in
is-enabled) [ -e "$mark" ];;
is-active) alive;;
is-failed) [ -s "$pid" ] && ! alive;;
enable) [ -e /usr/lib/pillm-runtime/serve ] || exit 1; touch "$mark"; [ -z "$now" ] || start;;
disable) rm -f "$mark"; rmdir /etc/enabled-units; [ -z "$now" ] || stop;;
start) start;;
stop) stop;;
restart) stop; start;;
esac
"""
SERVE = r"""#!/usr/bin/python3
import http.server, json, os, sys
settings = dict(line.strip().split("=") for line in open(f"/etc/pillm/{sys.argv[1]}.env"))
model = open(f"/usr/share/pillm/models/{sys.argv[1]}/model.gguf", "rb").read(9).decode()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.path.exists("/run/hold") else 200)
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        for word in ("from ", model):
            self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}).encode() + b"\n\n")
http.server.ThreadingHTTPServer(("127.0.0.1", int(settings["PORT"])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer. Fails when the time is up."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return answer


def key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


class Board:
    """The other end: a root of its own, and ssh's configuration for getting there."""

    def __init__(self, folder: Path, name: str = "board") -> None:
        self.folder, self.name, self.root, self.config = folder, name, folder / "root", folder / "ssh_config"
        self.port, self.sshd, self.http = free_port(), 0, free_port()

    def options(self, **more: Any) -> DeployOptions:
        values = {"host": [self.name], "ssh_config": self.config, "limit": 20, "wait": 0, **more}
        return DeployOptions.model_validate(values)

    def login(self, user: str = "root", path: str = "/usr/sbin:/usr/bin:/sbin:/bin") -> None:
        """What a command finds there."""
        place = self.folder / "login"
        place.write_text(
            f"#!/bin/sh\nexec chroot --userspec={user} {self.root} /usr/bin/env -i HOME=/home/pi PATH={path} "
            'sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        place.chmod(0o755)

    def client(self, **more: str) -> None:
        """ssh's configuration. Nothing in it is weaker than the default: the host key was learned beforehand."""
        values = {"HostName": "127.0.0.1", "Port": str(self.port), "User": getpass.getuser(), "IdentitiesOnly": "yes",
                  "IdentityFile": str(self.folder / "user_key"), "UserKnownHostsFile": str(self.folder / "known_hosts"),
                  "GlobalKnownHostsFile": "/dev/null", **more}  # fmt: skip
        self.config.write_text(f"Host {self.name}\n" + "".join(f"  {name} {value}\n" for name, value in values.items()))

    def cut(self) -> None:
        """The connection breaks: the server's processes for it are gone."""
        for one in psutil.Process(self.sshd).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "sshd" in one.name():
                    one.kill()

    def workers(self) -> list[psutil.Process]:
        """What works there."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                if os.readlink(f"/proc/{one.pid}/root") == str(self.root):
                    found.append(one)
        return found

    def names(self) -> set[str]:
        """The names of what works there."""
        found = set()
        for one in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                found.add(one.name())
        return found

    def power_off(self) -> None:
        """Everything there ends at once, and what it had in /run is gone."""
        self.cut()
        for one in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        subprocess.run(["umount", "-l", self.root / "run"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.root / "run"], check=True)
        (self.root / "run/systemd/system").mkdir(parents=True)

    def files(self) -> dict[str, str]:
        """What is there of pillm: files by content, packages, units that are enabled."""
        found = {}
        for name in (
            "usr/lib/pillm-runtime",
            "usr/share/pillm",
            "etc/pillm",
            "var/lib/pillm",
            "etc/enabled-units",
            "home/pi",
        ):
            for file in sorted((self.root / name).rglob("*")):
                digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
                found[str(file.relative_to(self.root))] = digest
        said = self.run("dpkg-query -W -f '${Package} ${db:Status-Status} ${Version}\\n' 'pillm-*' 2>/dev/null; true")
        return {**found, "packages": "\n".join(line for line in said.splitlines() if "not-installed" not in line)}

    def run(self, script: str) -> str:
        return subprocess.run(
            ["chroot", self.root, "sh", "-c", script], capture_output=True, text=True, check=True
        ).stdout

    def server(self) -> str:
        """Process number of the stand-in server."""
        return self.run("cat /run/units/*.pid 2>/dev/null; true").strip()


def deb(folder: Path, package: str, version: str, architecture: str, files: dict[str, str], scripts: dict[str, str] | None = None, packing: str = "none",
        **fields: object) -> Path:  # fmt: skip
    """A package of these files."""
    tree = folder / f"{package}-{version}-{architecture}"
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    control = {"Package": package, "Version": version, "Architecture": architecture, "Maintainer": "A <a@example.org>",
               "Installed-Size": 10, "Description": "stand-in", **{name.replace("_", "-"): value for name, value in fields.items()}}  # fmt: skip
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text("".join(f"{name}: {value}\n" for name, value in control.items()))
    for name, text in (scripts or {}).items():
        (tree / "DEBIAN" / name).write_text(f"#!/bin/sh\nset -e\n{text}\n")
        (tree / "DEBIAN" / name).chmod(0o755)
    path = folder / f"{package}_{version}_{architecture}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", f"-Z{packing}", "-b", tree, path], check=True, capture_output=True
    )
    return path


def architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def runtime(folder: Path, version: str = "1.0", serve: str = SERVE, **more: Any) -> Path:
    return deb(folder, "pillm-runtime", version, more.pop("architecture", architecture()),
               {"usr/lib/pillm-runtime/serve": serve, **more.pop("files", {})}, **more)  # fmt: skip


def model(folder: Path, board: Board, version: str = "1.0", name: str = "tutor", **more: Any) -> Path:
    files = {
        f"usr/share/pillm/models/{name}/model.gguf": f"model {version}",
        f"etc/pillm/{name}.env": f"PORT={board.http}\n",
    }
    return deb(folder, f"pillm-model-{name}", version, "all", files, Depends="pillm-runtime", Pillm_Name=name, **more)


@contextlib.contextmanager
def board_here(folder: Path, name: str = "board", upper_mb: int = 0) -> Iterator[Board]:
    """Such a board. Its disk is as large as this machine's, or of `upper_mb` MB. Skips the test where it cannot be made."""
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if not sshd or not shutil.which("ssh") or not shutil.which("apt-get") or os.geteuid():
        pytest.skip("this needs root, Debian, and sshd (Debian: apt install openssh-server)")
    Path("/run/sshd").mkdir(exist_ok=True)
    made = Board(folder / name, name)
    made.folder.mkdir(parents=True)
    disk = made.folder / "disk"
    disk.mkdir()
    with contextlib.ExitStack() as stack:

        def mount(*words: object) -> None:
            done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"cannot mount here: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", "-l", str(words[-1])], check=True)

        if upper_mb:
            mount("-t", "tmpfs", "-o", f"size={upper_mb}m", "tmpfs", disk)
        for part in ("upper", "work"):
            (disk / part).mkdir()
        made.root.mkdir()
        mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={disk}/upper,workdir={disk}/work", made.root)
        mount("-t", "proc", "proc", made.root / "proc")
        mount("--bind", "/dev", made.root / "dev")
        # Else what is mounted below it would show in this machine's own /dev, too.
        subprocess.run(["mount", "--make-private", made.root / "dev"], check=True)
        mount("-t", "devpts", "devpts", made.root / "dev/pts")
        mount("-t", "tmpfs", "tmpfs", made.root / "run")
        (made.root / "run/systemd/system").mkdir(parents=True)
        for one in ("usr/bin/systemctl", "bin/systemctl"):
            (made.root / one).unlink(missing_ok=True)
        (made.root / "usr/bin/systemctl").write_text(SYSTEMCTL)
        (made.root / "usr/bin/systemctl").chmod(0o755)
        home = made.root / "home/pi"
        home.mkdir(parents=True)
        # What this machine's apt is told to run after it works has nothing to do with a board.
        for file in (made.root / "etc/apt/apt.conf.d").iterdir():
            file.unlink()
        # A board with few packages: dpkg reads the list of every package's files, each time.
        dpkg = made.root / "var/lib/dpkg"
        mount("-t", "tmpfs", "tmpfs", dpkg)
        mount("-t", "tmpfs", "tmpfs", made.root / "var/lib/apt/lists")
        for name in ("info", "updates", "triggers", "alternatives", "parts"):
            (dpkg / name).mkdir()
        (dpkg / "info/format").write_text("1\n")
        for name in ("status", "available"):
            (dpkg / name).touch()
        for file in (made.root / "var/cache/apt").glob("*.bin"):
            file.unlink()
        # A test's disk may lose what it has when the power goes.
        (made.root / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True, exist_ok=True)
        (made.root / "etc/dpkg/dpkg.cfg.d/quick").write_text("force-unsafe-io\n")
        made.login()
        (made.folder / "authorized_keys").write_text(key(made.folder / "user_key"))
        (made.folder / "known_hosts").write_text(f"[127.0.0.1]:{made.port} {key(made.folder / 'host_key')}")
        (made.folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {made.port}\nHostKey {made.folder}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {made.folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            f"PermitRootLogin yes\nForceCommand {made.folder}/login\n"
        )
        made.client()
        server = subprocess.Popen([sshd, "-D", "-e", "-f", made.folder / "sshd_config"], stderr=subprocess.DEVNULL)
        made.sshd = server.pid

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", made.port)) == 0

        until(lambda: answers() or server.poll() is not None, 20)
        try:
            if server.poll() is not None:
                pytest.skip("sshd does not start for this user on this machine")
            yield made
        finally:
            made.cut()
            server.terminate()
            server.wait(20)
            for one in made.workers():
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
