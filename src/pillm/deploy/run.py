"""`pillm deploy`: from a GGUF file to a service on boards, in one command; many boards at once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from pillm.core import ssh
from pillm.core.amounts import amount, duration
from pillm.core.errors import PillmError, UsageError
from pillm.core.events import Emit, Event, Log, Output, Progress, silent
from pillm.core.paths import cache_dir
from pillm.core.stage import Result
from pillm.deploy import board
from pillm.deploy.board import Done
from pillm.deploy.options import DeployOptions
from pillm.deploy.packages import Package, read

T = TypeVar("T")
_AT_ONCE = 16


class Workshop:
    """The packages that boards ask for, each made once."""

    def __init__(self, options: DeployOptions, emit: Emit) -> None:
        self.options, self.emit = options, emit
        self._lock = threading.Lock()
        self._runtimes: dict[str, Package] = {}
        self._model: Package | None = None

    def packages(self, architecture: str) -> tuple[Package, Package]:
        """Runtime and model for boards of this architecture. Raises as `pillm package`."""
        with self._lock:
            if architecture not in self._runtimes:
                self._runtimes[architecture] = self._runtime(architecture)
            if not self._model:
                self._model = self._made_model()
            return self._runtimes[architecture], self._model

    def _runtime(self, architecture: str) -> Package:
        if self.options.runtime:
            return read(self.options.runtime)
        from pillm.deploy.package import runtime

        return read(runtime.build(architecture, _kept("runtime"), self.emit))

    def _made_model(self) -> Package:
        path = self.options.model
        if path is None:
            raise AssertionError("looked at before")
        if path.suffix == ".deb":
            return read(path)
        from pillm.deploy.package import model

        name = self.options.name or name_of(path)
        return read(model.build(path, name, _kept("models"), self.emit, license=self.options.license))


def _kept(kind: str) -> Path:
    return cache_dir() / "packages" / kind


def name_of(path: Path) -> str:
    """A name for a model after its file: `SmolLM2-135M.Q4_1.gguf` is `smollm2-135m-q4-1`."""
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40].rstrip("-") or "model"


def run(options: DeployOptions, emit: Emit) -> Result:
    """Deploy to every host, or roll back there.

    Raises UsageError (nothing to deploy, wrong architecture), NetworkError (ssh), ResourceError (memory, disk, rights,
    apt is busy), MissingError, PillmError (the server there does not answer). A board that failed is as it was before.
    """
    _right(options)
    workshop = Workshop(options, emit)

    def one(host: ssh.Host, emit: Emit) -> Done:
        if options.rollback:
            board.suits(host, board.look(host, emit))
            return board.rollback(host, options, emit)
        return _deploy(host, options, workshop, emit)

    ended = _everywhere(options, one, emit)
    failed = [error for error in ended.values() if isinstance(error, PillmError)]
    for name, outcome in ended.items():
        if isinstance(outcome, Done):
            for line in _lines(name, outcome, options):
                emit(Output(line))
        elif len(ended) > 1:
            emit(Log(f"{outcome.message}" + (f" ({outcome.hint})" if outcome.hint else ""), "error"))
    if len(failed) == 1 and len(ended) == 1:
        raise failed[0]
    if failed:
        raise type(failed[0])(
            f"{len(failed)} of {len(ended)} boards failed; they are as they were before", "run the same command again"
        )
    done = [outcome for outcome in ended.values() if isinstance(outcome, Done)]
    return Result({}, {"boards": len(done), "changed": sum(outcome.changed for outcome in done)})


def preview(options: DeployOptions) -> list[str]:
    """What would be done on each board, for `--dry-run`. The boards are looked at, and nothing is written there."""
    _right(options)
    workshop = Workshop(options, silent)

    def one(host: ssh.Host, emit: Emit) -> list[str]:
        facts = board.look(host, emit)
        board.suits(host, facts)
        if options.rollback:
            back = (facts.previous or {}).get("release")
            what = _named(back) if back else ("nothing of pillm's" if facts.previous else "")
            return [f"goes back to {what}" if what else "has nothing to go back to"]
        packages = workshop.packages(facts.architecture)
        facts = board.look(host, emit, packages)
        board.check(host, facts, packages)
        release = board.release_of(packages[1].model, packages)
        if board.is_there(facts, release):
            return ["has all of it already: nothing changes"]
        return [
            f"copy {amount(package.size, 'bytes')}, install {package.name} {package.version}" for package in packages
        ]

    lines = []
    for name, outcome in _everywhere(options, one, silent).items():
        told = [f"would fail: {outcome.message}"] if isinstance(outcome, PillmError) else outcome
        lines += [f"{name}: {line}" for line in told]
    return lines


def _right(options: DeployOptions) -> None:
    if options.rollback and options.model:
        raise UsageError("--rollback goes back to what was there, so it takes no model", "leave one of them out")
    if options.rollback:
        return
    if not options.model:
        raise UsageError("which model?", "give a GGUF file, or --rollback")
    if not options.model.is_file():
        raise UsageError(f"{options.model}: there is no such file", "check the path")
    for name in ("name", "license"):
        if options.model.suffix == ".deb" and getattr(options, name):
            raise UsageError(f"--{name}: a package has its {name} already", f"leave --{name} out")
    if len(set(options.host)) < len(options.host):
        raise UsageError("--host: the same board is named twice", "name it once")


def _everywhere(options: DeployOptions, one: Callable[[ssh.Host, Emit], T], emit: Emit) -> dict[str, T | PillmError]:
    """What `one` gives, or fails with, for each host; all of them at once."""
    lock, many = threading.Lock(), len(options.host) > 1

    def guarded(name: str) -> T | PillmError:
        def tell(event: Event) -> None:
            if many and isinstance(event, Progress):
                event = msgspec.structs.replace(event, label=f"{name}: {event.label}")
            elif many and isinstance(event, Log):
                event = msgspec.structs.replace(event, message=f"{name}: {event.message}")
            with lock:
                emit(event)

        try:
            return one(ssh.Host(name, options.ssh_config), tell)
        except PillmError as error:
            return error

    with ThreadPoolExecutor(min(_AT_ONCE, len(options.host))) as pool:
        return dict(zip(options.host, pool.map(guarded, options.host), strict=True))


def _deploy(host: ssh.Host, options: DeployOptions, workshop: Workshop, emit: Emit) -> Done:
    facts = board.look(host, emit)
    board.suits(host, facts)
    emit(Log(f"{facts.title}"))
    packages = workshop.packages(facts.architecture)
    facts = board.look(host, emit, packages)
    board.check(host, facts, packages)
    release = board.release_of(packages[1].model, packages)
    if not board.is_there(facts, release):
        board.copy(host, facts, packages, emit)
    return board.install(host, facts, options, release, emit)


def _named(release: dict[str, object]) -> str:
    packages = release["packages"]
    if not isinstance(packages, Sequence):
        raise AssertionError("a release has packages")
    return ", ".join(f"{package['package']} {package['version']}" for package in packages)


def _lines(name: str, done: Done, options: DeployOptions) -> list[str]:
    """What a person wants to know of a board."""
    if not done.release:
        return [f"{name}: pillm is not installed any more, as before the deploy"]
    what = ("rolled back to" if options.rollback else "installed") if done.changed else "unchanged:"
    port = done.url.rpartition(":")[2]
    return [
        f"{name}: {what} {_named(done.release)}",
        f"{name}: {done.url} there; from here: ssh -N -L {port}:127.0.0.1:{port} {name}",
        f"{name}: healthy after {duration(done.healthy_s)}; first token after {duration(done.first_token_s)}, answer after "
        f"{duration(done.answer_s)}: {' '.join(done.answer.split())}",
    ]
