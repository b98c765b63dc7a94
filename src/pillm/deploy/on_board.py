"""The half of `pillm deploy` that runs on the board: one file of the standard library (Python 3.9), sent over ssh.

    python3 on_board.py facts '{"files": [...], "packages": [...]}'    what the board is and has; writes nothing
    python3 on_board.py install '{"key": ..., "release": ..., ...}'    as root
    python3 on_board.py rollback '{"key": ..., ...}'                   as root

The answer is one JSON object on stdout; stderr has a JSON object a line (core/follow.py). `install` and `rollback` work
in a session of their own, so that a connection that breaks does not leave the board half changed: the work goes on to
its end, forwards or back, and the same command attaches to it.

What was there before is written down before anything is touched (`begun` in state.json), so that a run after a power
cut still knows where back is. Below /var/lib/pillm/deploy: state.json, and the packages to roll back to. It is the
second module above 400 lines, since it travels alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Optional

# Python 3.9 evaluates this line.
Release = Optional[dict[str, Any]]  # noqa: UP045

HOME = Path("/var/lib/pillm")
STATE = HOME / "deploy"
RUNS = Path("/run/pillm-deploy")
SETTINGS = Path("/etc/pillm")
DPKG_LOCK = Path("/var/lib/dpkg/lock-frontend")
FIRST_PORT = "8080"
APT = (
    "apt-get", "-q", "-y", "--no-install-recommends", "--allow-downgrades", "-o", "DPkg::Lock::Timeout=60", "-o",
    "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold", "-o", "APT::Sandbox::User=root",
)  # fmt: skip


class Failed(Exception):
    """What is wrong, what to do, and pillm's exit code for it."""

    def __init__(self, message: str, hint: str = "", code: int = 1) -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


def tell(**event: Any) -> None:
    """A line for whoever follows; nobody may be there any more."""
    with contextlib.suppress(OSError):
        os.write(2, json.dumps(event).encode() + b"\n")


def log(text: str, level: str = "info") -> None:
    """A line for a person."""
    tell(log=text, level=level)


def step(label: str) -> None:
    """What begins now."""
    tell(progress=label, done=0, total=None, unit="")


def run(*argv: str | Path, limit: float = 1800) -> tuple[int, str]:
    """Exit code and all that a program says, in English."""
    env = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, timeout=limit,
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return 127, f"{argv[0]}: no such program"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]}: took longer than {limit:.0f} s"
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def read(path: Path, otherwise: str = "") -> str:
    """The text of a small file."""
    try:
        return path.read_text("utf-8", "replace").strip("\0\n ")
    except OSError:
        return otherwise


def write(path: Path, text: str) -> None:
    """Replace a file in one step, so that a power cut leaves the old one or the new one."""
    beside = path.with_name(f"{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def free(path: Path) -> tuple[int, int]:
    """Bytes that are free where `path` is or would be, and which disk that is."""
    while not path.exists():
        path = path.parent
    told = os.statvfs(path)
    return told.f_bavail * told.f_frsize, path.stat().st_dev


def facts(asked: dict[str, Any]) -> dict[str, Any]:
    """What the board is and has; sizes in bytes."""
    system = dict(line.split("=", 1) for line in read(Path("/etc/os-release")).splitlines() if "=" in line)
    memory = dict(re.findall(r"^(\w+): +(\d+) kB", read(Path("/proc/meminfo")), re.MULTILINE))
    code, architecture = run("dpkg", "--print-architecture")
    at_home, home_disk = free(Path.home())
    at_usr, usr_disk = free(Path("/usr"))
    base = Path.home() / ".cache/pillm"
    state = load()
    return {
        "architecture": "" if code else architecture,
        "machine": os.uname().machine,
        "system": system.get("PRETTY_NAME", "").strip('"'),
        "board": read(Path("/proc/device-tree/model")),
        "memory_bytes": int(memory.get("MemTotal", 0)) * 1024,
        "base": str(base),
        "home_free_bytes": at_home,
        "usr_free_bytes": at_usr,
        "one_disk": home_disk == usr_disk,
        "root": os.geteuid() == 0 or run("sudo", "-n", "true", limit=30)[0] == 0,
        "systemd": Path("/run/systemd/system").is_dir(),
        "packages": {name: installed(name) for name in asked.get("packages", ())},
        "release": state.get("current"),
        "previous": state.get("previous"),
        "sizes": {name: size(base / name) for name in asked.get("files", ())},
    }


def installed(package: str) -> list[str]:
    """Status and version as dpkg has them; two empty words where it knows nothing of the package."""
    code, said = run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package)
    status, _, version = said.partition(" ")
    return ["", ""] if code or status in ("not-installed", "config-files") else [status, version]


def load() -> dict[str, Any]:
    """What deploy did here before."""
    try:
        return json.loads(read(STATE / "state.json") or "{}")
    except ValueError:
        return {}


def save(state: dict[str, Any]) -> None:
    """Write that down."""
    STATE.mkdir(parents=True, exist_ok=True)
    write(STATE / "state.json", json.dumps(state, indent=1) + "\n")


def kept(package: dict[str, str]) -> Path:
    """Where the file of a package is kept."""
    return STATE / "debs" / f"{package['sha256'][:16]}-{package['file']}"


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes; empty where there is none."""
    if not path.exists():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def take(package: dict[str, str], base: Path) -> None:
    """Move a copied file to where only root writes, and look at every byte again there."""
    target = kept(package)
    if sha256(target) != package["sha256"]:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(base / "debs" / package["sha256"][:16] / package["file"]), str(target))
    os.chown(target, 0, 0)
    target.chmod(0o644)
    if sha256(target) != package["sha256"]:
        target.unlink()
        raise Failed(
            f"{package['file']}: its bytes changed after it was copied",
            "run the same command again; if it happens again, the disk or memory card may be damaged", 4,
        )  # fmt: skip


def holder() -> str:
    """Who holds dpkg's lock, in words."""
    inode = f":{DPKG_LOCK.stat().st_ino} "
    for line in read(Path("/proc/locks")).splitlines():
        if inode in line:
            pid = line.split()[4]
            return f"{read(Path('/proc', pid, 'comm'), 'a program')}, process {pid}"
    return "another program"


def wait_for_dpkg(seconds: float) -> None:
    """Return when nobody else installs. apt waits itself, too, but does not say for whom."""
    end, said = time.monotonic() + seconds, False
    while True:
        with DPKG_LOCK.open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                who = holder()
        if time.monotonic() >= end:
            raise Failed(
                f"apt is busy there ({who}); waited {seconds:.0f} s, and nothing was changed",
                "run the same command again when it is done, or give a longer --wait", 5,
            )  # fmt: skip
        if not said:
            said = True
            log(f"apt is busy there ({who}); waiting for it")
        time.sleep(0.5)


def install(paths: list[str | Path]) -> None:
    """Install packages, from files or by PACKAGE=VERSION. Raises Failed with the reason out of what apt and dpkg say."""
    code, said = run(*APT, "install", *paths)
    if code:
        raise refusal(said, "the packages could not be installed")


def purge(names: list[str]) -> None:
    """Take packages away with all that is theirs. Raises Failed."""
    code, said = run("dpkg", "--purge", *names)
    if code:
        raise refusal(said, "the packages could not be removed")


def refusal(said: str, what: str) -> Failed:
    """What of apt's and dpkg's many words says why."""
    if "No space left on device" in said:
        return Failed(f"the disk is full: {what}", "free some space there, then run the same command again", 5)
    # What dpkg says of a file stands on the line after it.
    words = [line.strip() for line in re.sub(r":\n +", ": ", said).splitlines() if "Can not write log" not in line]
    # What a package's own script says, then what is missing, then apt's and dpkg's errors.
    for pattern in (r"pillm[\w-]*: ", r".*Depends: |.*does not match system", r"E: |dpkg: error"):
        if why := [line for line in words if re.match(pattern, line)]:
            break
    else:
        why = words[-1:] or ["apt did not say why"]
    hint = "if a package that is needed was not found: sudo apt-get update there" if "Depends: " in said else ""
    return Failed(f"{what}: {'; '.join(why[:3])}", hint)


def systemctl(*words: str) -> tuple[int, str]:
    """What systemctl says."""
    return run("systemctl", *words)


def unit_is(word: str, unit: str) -> bool:
    """Whether a unit is enabled, active, failed."""
    return systemctl(f"is-{word}", "--quiet", unit)[0] == 0


def before(state: dict[str, Any], release: Release) -> dict[str, Any]:
    """What would have to be put back: written down before the first change, and kept if the power is cut."""
    begun = state.get("begun")
    if begun:
        log("an earlier deploy was interrupted here; what was before it still counts as before", "warning")
        run("dpkg", "--configure", "-a")
    both = [one for one in (state.get("current"), release) if one]
    names = {package["package"] for one in both for package in one["packages"]}
    units = {one["unit"] for one in both}
    found = {
        "release": state.get("current"),
        "packages": {name: installed(name) for name in sorted(names)},
        "units": {unit: [unit_is("enabled", unit), unit_is("active", unit)] for unit in sorted(units)},
    }
    if not begun:
        return found
    # What only this deploy brings counts as it is now.
    packages, units = ({**found[name], **begun[name]} for name in ("packages", "units"))
    return {"release": begun["release"], "packages": packages, "units": units}


def put_back(was: dict[str, Any]) -> None:
    """The packages and units as they were. Raises Failed."""
    log("putting back what was there before", "warning")
    packages = (was["release"] or {}).get("packages", ())
    files = {(package["package"], package["version"]): kept(package) for package in packages}
    for unit in was["units"]:
        systemctl("disable", "--now", unit)
    if new := [name for name, (status, _) in was["packages"].items() if not status and installed(name)[0]]:
        purge(new)
    changed = [(name, had[1]) for name, had in was["packages"].items() if had[0] and installed(name) != had]
    if changed:
        install([files.get(one, "=".join(one)) for one in changed])
    systemctl("daemon-reload")
    for unit, (enabled, active) in was["units"].items():
        for word in ("enable",) * enabled + ("start",) * active:
            systemctl(word, unit)


def change(plan: dict[str, Any], state: dict[str, Any], release: Release) -> dict[str, Any]:
    """From what is installed to `release` (None: nothing of ours), or back. Returns what the service answered."""
    wait_for_dpkg(plan["wait"])
    was = before(state, release)
    try:
        for package in release["packages"] if release else ():
            take(package, Path(plan.get("base", "/")))
        save({**state, "begun": was})
        told = forwards(plan, was, release)
    except (Failed, OSError) as error:
        fault = error if isinstance(error, Failed) else Failed(f"{error.filename}: {error.strerror}", "", 5)
        try:
            put_back(was)
        except Failed as worse:
            raise Failed(
                f"{fault.message}; and what was before could not be put back: {worse.message}",
                "look at it there: sudo dpkg --audit; sudo apt-get -f install", fault.code,
            ) from error  # fmt: skip
        settle({**state, "begun": None})
        fault.message += "; the board is as it was before"
        raise fault from error
    settle({"current": release, "previous": {"release": was["release"]}} if release else {})
    return told


def forwards(plan: dict[str, Any], was: dict[str, Any], release: Release) -> dict[str, Any]:
    """Install, start, ask; or, without a release, take everything away."""
    old = was["release"]
    if old and (not release or old["unit"] != release["unit"]):
        systemctl("disable", "--now", old["unit"])
    elif old:
        # Its memory is for the new one, which is not the old one's answer either.
        systemctl("stop", old["unit"])
    if not release:
        step("remove")
        purge([name for name, (status, _) in was["packages"].items() if status])
        systemctl("daemon-reload")
        return {}
    step("install")
    install([kept(package) for package in release["packages"]])
    systemctl("daemon-reload")
    code, said = systemctl("enable", release["unit"])
    if code:
        raise Failed(f"{release['unit']} cannot be enabled: {said.splitlines()[-1] if said else 'no reason told'}")
    # Whether it is ready in time is for us to find out, not for systemctl.
    systemctl("start", "--no-block", release["unit"])
    return check(plan, release)


def settle(state: dict[str, Any]) -> None:
    """Write down how it ended, and keep only files that may be needed again; nothing where nothing is installed."""
    if not state.get("current"):
        shutil.rmtree(STATE, ignore_errors=True)
        with contextlib.suppress(OSError):
            HOME.rmdir()
        return
    save({name: value for name, value in state.items() if value})
    releases = (state["current"], (state.get("previous") or {}).get("release"))
    wanted = {kept(package) for one in releases if one for package in one["packages"]}
    for file in (STATE / "debs").iterdir():
        if file not in wanted:
            file.unlink()


def settings(name: str) -> dict[str, str]:
    """What /etc/pillm/NAME.env sets."""
    lines = read(SETTINGS / f"{name}.env").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def check(plan: dict[str, Any], release: dict[str, Any]) -> dict[str, Any]:
    """Wait until the server is healthy, ask it something, and time that. Raises Failed."""
    url = f"http://127.0.0.1:{settings(release['name']).get('PORT') or FIRST_PORT}"
    key = read(SETTINGS / f"{release['name']}.key").partition("\n")[0]
    step("wait for the server")
    began, why = time.monotonic(), ""
    while True:
        try:
            with ask(f"{url}/health", key, 10) as said:
                if said.status == 200:
                    break
        except (OSError, ValueError) as error:
            why = str(error)
        taken = time.monotonic() - began
        if unit_is("failed", release["unit"]) or taken > plan["limit"]:
            code, said = run("journalctl", "-q", "-n", "8", "-o", "cat", "--no-pager", "-u", release["unit"])
            last = "" if code else " | ".join(said.splitlines()[-3:])
            raise Failed(f"the server is not healthy after {taken:.0f} s: {last or why}")
        time.sleep(0.3)
    healthy = time.monotonic() - began
    step("first answer")
    words = {"messages": [{"role": "user", "content": plan["prompt"]}], "max_tokens": plan["tokens"], "temperature": 0}
    began, first, text = time.monotonic(), 0.0, ""
    try:
        with ask(f"{url}/v1/chat/completions", key, plan["limit"], {**words, "stream": True}) as lines:
            for line in lines:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:]).get("choices") or [{}]
                    text += choices[0].get("delta", {}).get("content") or ""
                    first = first or (time.monotonic() - began if text else 0.0)
    except (OSError, ValueError) as error:
        raise Failed(f"the server is healthy, but does not answer: {error}") from error
    if not text.strip():
        raise Failed("the server is healthy, but its answer is empty")
    seconds = {"healthy_s": healthy, "first_token_s": first, "answer_s": time.monotonic() - began}
    return {"url": url, "answer": text, **{name: round(value, 3) for name, value in seconds.items()}}


def ask(url: str, key: str, limit: float, words: dict[str, Any] | None = None) -> Any:
    """The response of a server on this machine. Raises OSError, ValueError."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, json.dumps(words).encode() if words else None, headers)  # noqa: S310
    # No proxy: it is on this machine.
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=limit)


def work(action: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The answer of `install` and `rollback`. Raises Failed, OSError."""
    state = load()
    if action == "rollback":
        if "previous" not in state:
            raise Failed("deploy has nothing to go back to there", "there was no deploy before the last one", 2)
        target = state["previous"]["release"]
        return {**change(plan, state, target), "changed": True, "release": target}
    release = plan["release"]
    there = all(installed(one["package"]) == ["installed", one["version"]] for one in release["packages"])
    if there and state.get("current") == release and not state.get("begun") and unit_is("enabled", release["unit"]):
        return {**check(plan, release), "changed": False, "release": release}
    return {**change(plan, state, release), "changed": True, "release": release}


def answer(action: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The same, with what went wrong as part of the answer."""
    try:
        return {"ok": True, **work(action, plan)}
    except Failed as error:
        return {"ok": False, "message": error.message, "hint": error.hint, "code": error.code}
    except OSError as error:
        return {"ok": False, "message": f"{error.filename}: {error.strerror}", "hint": "", "code": 5}


def detached(action: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Have the work done by a process that outlives the connection, and pass on what it says until it is done."""
    RUNS.mkdir(mode=0o700, exist_ok=True)
    pid_file, said, ended = (RUNS / f"{plan['key']}.{kind}" for kind in ("pid", "log", "json"))
    # Held by the working process, too, until it ends.
    lock = os.open(RUNS / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if not pid_file.exists():
            return {"ok": False, "message": "another deploy is at work there", "hint": "wait for it to end", "code": 1}
        log("the same deploy was begun earlier and is still at work there; waiting for it", "warning")
        return passed_on(said, ended, int(read(pid_file, "0") or 0))
    for old in (pid_file, said, ended):
        with contextlib.suppress(FileNotFoundError):
            old.unlink()
    said.touch()
    pid = os.fork()
    if not pid:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number, place in ((0, "/dev/null"), (1, "/dev/null"), (2, said)):
            os.dup2(os.open(place, os.O_RDWR | os.O_APPEND), number)
        try:
            write(pid_file, str(os.getpid()))
            write(ended, json.dumps(answer(action, plan)))
        finally:
            os._exit(0)
    os.close(lock)
    return passed_on(said, ended, pid)


def passed_on(said: Path, ended: Path, pid: int) -> dict[str, Any]:
    """What the working process says, as it says it, then its answer."""
    with said.open("rb") as words:
        while True:
            done = ended.exists()
            if more := words.read():
                os.write(2, more)
            if done:
                return json.loads(read(ended))
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
            if not Path("/proc", str(pid)).exists() and not ended.exists():
                return {"ok": False, "message": "the work there ended without an answer", "hint": "", "code": 1}
            time.sleep(0.1)


def main(argv: list[str]) -> None:
    """Do what the first word says, with the JSON of the second."""
    action, plan = argv[0], json.loads(argv[1])
    told = facts(plan) if action == "facts" else detached(action, plan)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
