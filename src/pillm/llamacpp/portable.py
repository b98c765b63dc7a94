"""llama.cpp for packages: shared libraries, Debian's hardening, and a CPU backend for each kind of core.

llama.cpp picks the backend when it starts, by what the processor says it can do: `armv8.0_1` for a Cortex-A53
or A72 (Pi 3, Zero 2 W, Pi 4), `armv8.2_2` for a Cortex-A76 (Pi 5). A target that is not this machine's is cross-built.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from pathlib import Path

import msgspec

from pillm.core.artifacts import atomic_folder
from pillm.core.errors import MissingError, PillmError, writing
from pillm.core.events import Emit
from pillm.llamacpp import pin
from pillm.llamacpp.build import build
from pillm.llamacpp.fetch import fetch_source
from pillm.llamacpp.install import CONVERTER, alone

TOOLS = ("llama-server", "llama-completion", "llama-bench", "llama-embedding", "llama-quantize")
"""What a board needs; the other tools of `pin.TOOLS` stay on the desktop."""


class Target(msgspec.Struct, frozen=True):
    """A kind of machine: Debian's name for it, its compilers' prefix, and the CPU backends that are built."""

    name: str
    triplet: str
    variants: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def processor(self) -> str:
        """What `uname -m` says there."""
        return self.triplet.partition("-")[0]


TARGETS = {
    target.name: target
    for target in (
        # llama.cpp's list goes on with cores that no Pi has, and GCC 12 cannot compile the last ones.
        Target(
            "arm64",
            "aarch64-linux-gnu",
            ("armv8.0_1", "armv8.2_1", "armv8.2_2"),
            ("-mbranch-protection=standard",),
        ),
        # Without sapphirerapids: see AMX in `pin.OPTIONS`.
        Target(
            "amd64",
            "x86_64-linux-gnu",
            ("x64", "sse42", "sandybridge", "haswell", "skylakex", "icelake", "zen4", "alderlake"),
            ("-fcf-protection",),
        ),
    )
}

_HARDENING = (
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-D_FORTIFY_SOURCE=2",
    "-Wformat",
    "-Werror=format-security",
)
_LINKER = "-Wl,-z,relro,-z,now,--as-needed"
_REPLACED = ("BUILD_SHARED_LIBS", "LLAMA_BUILD_EXAMPLES", "CMAKE_C_FLAGS", "CMAKE_CXX_FLAGS")
_LIST = Path("ggml/src/CMakeLists.txt")
_VARIANT = re.compile(r"^ *ggml_add_cpu_backend_variant\(([\w.]+)[^)\n]*\)\n", re.MULTILINE)


def options(target: Target) -> tuple[str, ...]:
    """What cmake is told, but for the place of the source."""
    told = [option for option in pin.OPTIONS if not any(name in option for name in _REPLACED)]
    told += [
        f"-DCMAKE_C_COMPILER={target.triplet}-gcc",
        f"-DCMAKE_CXX_COMPILER={target.triplet}-g++",
        "-DBUILD_SHARED_LIBS=ON",
        # llama-embedding is one of the examples; the others are not built.
        "-DLLAMA_BUILD_EXAMPLES=ON",
        "-DGGML_NATIVE=OFF",
        "-DGGML_BACKEND_DL=ON",
        "-DGGML_CPU_ALL_VARIANTS=ON",
        "-DCMAKE_POSITION_INDEPENDENT_CODE=ON",
        # The tools find their libraries beside them, wherever the folder is copied to.
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        "-DCMAKE_INSTALL_RPATH=$ORIGIN",
        *(f"-DCMAKE_{kind}_LINKER_FLAGS={_LINKER}" for kind in ("EXE", "SHARED", "MODULE")),
    ]
    if platform.machine() != target.processor:
        told += [
            "-DCMAKE_SYSTEM_NAME=Linux",
            f"-DCMAKE_SYSTEM_PROCESSOR={target.processor}",
            # Libraries and headers of this machine are for another processor.
            "-DCMAKE_FIND_ROOT_PATH_MODE_LIBRARY=ONLY",
            "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY",
            f"-DCMAKE_FIND_ROOT_PATH=/usr/{target.triplet}",
        ]
    return tuple(told)


def key(target: Target) -> str:
    """Name of this build in the cache."""
    parts = (pin.SHA256, *options(target), *_HARDENING, *target.flags, *TOOLS, *target.variants)
    return f"{pin.RELEASE}-linux-{target.processor}-portable-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:10]}"


def ensure(target: Target, emit: Emit) -> Path:
    """The folder of llama.cpp's tools and libraries for `target`; builds them if they are not there (10 minutes on 2 cores, once).

    Raises MissingError (no compiler for it), and as `install.ensure`.
    """
    home = pin.home()
    folder = home / key(target) / "bin"
    if all((folder / name).is_file() for name in (*TOOLS, *(f"libggml-cpu-{name}.so" for name in target.variants))):
        return folder
    if shutil.which(f"{target.triplet}-g++") is None:
        raise MissingError(
            f"{target.triplet}-g++: there is no compiler for {target.name} on this machine",
            f"Debian, Ubuntu: sudo apt install gcc-{target.triplet} g++-{target.triplet}".replace("x86_64", "x86-64"),
        )
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        with alone(home / "lock", emit):
            if not (pin.source_dir() / CONVERTER).is_file():
                fetch_source(pin.source_dir(), home / "logs", emit)
            source = home / f"source-{key(target)}"
            if not source.is_dir():
                _trimmed(pin.source_dir(), source, target)
            # Paths of this machine would make every machine's package another one.
            flags = " ".join((*_HARDENING, *target.flags, f"-ffile-prefix-map={source}=llama.cpp"))
            told = (*options(target), f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}")
            build(source, home, key(target), emit, options=told, tools=TOOLS, shared=True)
            shutil.rmtree(source, ignore_errors=True)
    return folder


def _trimmed(source: Path, place: Path, target: Target) -> None:
    """The source again, by hard links, with only the target's variants in its list of CPU backends: every tool is built after all of them."""
    text = (source / _LIST).read_text()
    found = {match[1] for match in _VARIANT.finditer(text)}
    if missing := set(target.variants) - found:
        raise PillmError(f"{source / _LIST}: {', '.join(sorted(missing))} is not in the list of CPU backends")
    with atomic_folder(place) as folder:
        shutil.copytree(source, folder, copy_function=os.link, dirs_exist_ok=True, symlinks=True)
        # The link is cut first, so that the pinned source stays as it is.
        (folder / _LIST).unlink()
        (folder / _LIST).write_text(_VARIANT.sub(lambda match: match[0] if match[1] in target.variants else "", text))
