"""`pillm package runtime`: llama.cpp for a kind of board as a Debian package, with services, tools, manuals and SBOM."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pillm import __version__
from pillm.bench import pi_bench
from pillm.core.artifacts import artifact_of
from pillm.core.errors import PillmError
from pillm.core.events import Emit, Log, Made
from pillm.core.stage import Result
from pillm.deploy.package import deb, elf
from pillm.deploy.package.options import RuntimeOptions
from pillm.deploy.package.sbom import sbom
from pillm.devices.boards import MIB, shipped
from pillm.llamacpp import pin
from pillm.llamacpp.portable import TARGETS, TOOLS, Target, ensure

PACKAGE = "pillm-runtime"
_LIB = Path("usr/lib") / PACKAGE
_UNITS = Path("usr/lib/systemd/system")
_LLAMACPP = ".".join(map(str, pin.VERSION))


def run(options: RuntimeOptions, emit: Emit) -> Result:
    """Publish `pillm-runtime_VERSION_ARCHITECTURE.deb`.

    Raises MissingError (compiler, binutils, dpkg-deb), PillmError (a program that is not hardened, or a broken build), ResourceError.
    """
    path = build(options.target, options.out, emit, version=options.package_version, maintainer=options.maintainer)
    made = artifact_of(path)
    emit(Made("package", made))
    return Result({"package": path}, {"bytes": made.bytes, "sha256": made.sha256})


def build(target: str, out: Path, emit: Emit, *, version: str | None = None, maintainer: str | None = None) -> Path:
    """The package of one architecture; builds llama.cpp if it is not in the cache. The same inputs give the same bytes. Raises as `run`."""
    kind = TARGETS[target]
    tools = ensure(kind, emit)
    source = deb.sources() / "runtime"
    words = {
        "VERSION": version or __version__,
        "ARCHITECTURE": kind.name,
        "MAINTAINER": deb.maintainer(maintainer),
        "DATE": deb.date(),
        "LLAMACPP": f"{_LLAMACPP} ({pin.COMMIT})",
        "RELEASE": pin.RELEASE,
        "SHA256": pin.SHA256,
    }
    with deb.tree(out) as folder:
        programs = _programs(folder / _LIB, tools, kind)
        if missing := elf.unhardened(programs, kind.triplet):
            raise PillmError(f"not hardened: {'; '.join(missing)}", "this is a fault of the build; please report it")
        _scripts(folder, source)
        _units(folder / _UNITS, source / "units")
        _documents(folder, source, words)
        deb.write(folder / _LIB / "boards.tsv", boards())
        share = folder / "usr/share/doc" / PACKAGE
        deb.write(share / "sbom.cdx.json", sbom(folder, words["VERSION"], kind.name))
        words |= {"SIZE": str(deb.installed_kib(folder)), "LIBRARIES": elf.dependencies(programs, kind.triplet)}
        control = deb.filled((source / "debian/control").read_text("utf-8"), words)
        scripts = {name: (source / "debian" / name).read_text("utf-8") for name in ("postinst", "prerm", "postrm")}
        place = out / f"{PACKAGE}_{words['VERSION']}_{kind.name}.deb"
        deb.build(folder, control, scripts, place, compression="xz")
    emit(Log(f"{place}: {place.stat().st_size / 1e6:.1f} MB"))
    return place


def boards() -> str:
    """The table by which a board chooses: how its device tree begins, memory that the system keeps (MiB), threads for decoding."""
    rows = {
        (device.device_tree, device.reserved_bytes // MIB, device.soc.decode_threads) for device in shipped().values()
    }
    return "# device tree\tkept MiB\tthreads\n" + "".join(
        f"{name}\t{kept}\t{threads}\n" for name, kept, threads in sorted(rows) if name
    )


def _programs(lib: Path, tools: Path, target: Target) -> list[Path]:
    """Tools and libraries without what only debuggers read; links stay links. Returns the files."""
    lib.mkdir(parents=True)
    for path in sorted(tools.iterdir()):
        if path.name in TOOLS or (path.name.startswith("lib") and ".so" in path.name):
            shutil.copy2(path, lib / path.name, follow_symlinks=False)
    files = sorted(path for path in lib.iterdir() if not path.is_symlink())
    for path in files:
        path.chmod(0o755 if path.name in TOOLS else 0o644)
    elf.strip(files, target.triplet)
    return files


def _scripts(folder: Path, source: Path) -> None:
    for path in sorted((source / "bin").iterdir()):
        deb.write(folder / "usr/bin" / path.name, path.read_bytes(), 0o755)
    for path in sorted((source / "lib").iterdir()):
        if path.is_file():
            deb.write(folder / _LIB / path.name, path.read_bytes(), 0o644 if path.suffix == ".py" else 0o755)
    text = Path(pi_bench.__file__).read_bytes()
    # Debian's Python by its path: what stands first on somebody's PATH may be another.
    text = text.replace(b"#!/usr/bin/env python3\n", b"#!/usr/bin/python3\n", 1)
    deb.write(folder / _LIB / "pi_bench.py", text, 0o755)
    names = sorted(path.name for path in (source / "bin").iterdir())
    completions = folder / "usr/share/bash-completion/completions"
    deb.write(completions / "pillm-models", (source / "completion/pillm-models.bash").read_bytes())
    for name in names:
        if name != "pillm-models":
            (completions / name).symlink_to("pillm-models")


def _units(folder: Path, source: Path) -> None:
    """The units; what all services have in common is written once."""
    common = (source / "common.conf").read_text("utf-8").rstrip("\n")
    for path in sorted(source.glob("pillm-*")):
        deb.write(folder / path.name, deb.filled(path.read_text("utf-8"), {"COMMON": common}))


def _documents(folder: Path, source: Path, words: Mapping[str, str]) -> None:
    for path in sorted((source / "man").iterdir()):
        deb.write(folder / f"usr/share/man/man1/{path.name}.gz", deb.zipped(path.read_text("utf-8")))
    share = folder / "usr/share/doc" / PACKAGE
    deb.write(share / "copyright", deb.filled((source / "debian/copyright").read_text("utf-8"), words))
    deb.write(folder / "usr/share/lintian/overrides" / PACKAGE, (source / "debian/lintian-overrides").read_bytes())
    deb.write(share / "changelog.gz", deb.zipped(deb.filled((source / "debian/changelog").read_text("utf-8"), words)))
