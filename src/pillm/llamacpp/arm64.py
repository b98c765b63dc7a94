"""llama.cpp for boards: cross-built with Debian's compiler, with a CPU backend for each kind of core.

llama.cpp picks the backend when it starts, by what the processor says it can do: `armv8.0_1` for a Cortex-A53
or A72 (Pi 3, Zero 2 W, Pi 4), `armv8.2_2` for a Cortex-A76 (Pi 5).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from pillm.core.artifacts import atomic_folder
from pillm.core.errors import MissingError, PillmError, writing
from pillm.core.events import Emit
from pillm.llamacpp import pin
from pillm.llamacpp.build import build
from pillm.llamacpp.fetch import fetch_source
from pillm.llamacpp.install import CONVERTER, alone

VARIANTS = ("armv8.0_1", "armv8.2_1", "armv8.2_2")
"""The CPU backends that are built. llama.cpp's list goes on with cores that no Pi has, and GCC 12 cannot compile the last ones."""

COMPILER = "aarch64-linux-gnu"
OPTIONS = (
    *(option for option in pin.OPTIONS if "BUILD_SHARED_LIBS" not in option and "AMX" not in option),
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_C_COMPILER={COMPILER}-gcc",
    f"-DCMAKE_CXX_COMPILER={COMPILER}-g++",
    # Libraries and headers of this machine are for another processor.
    "-DCMAKE_FIND_ROOT_PATH_MODE_LIBRARY=ONLY",
    "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY",
    f"-DCMAKE_FIND_ROOT_PATH=/usr/{COMPILER}",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    # The tools find their libraries beside them, wherever the folder is copied to.
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)
_LIST = Path("ggml/src/CMakeLists.txt")
_VARIANT = re.compile(r"^ *ggml_add_cpu_backend_variant\((armv[\w.]+)[^)]*\)\n", re.MULTILINE)


def key() -> str:
    """Name of this build in the cache."""
    digest = hashlib.sha256("\n".join((pin.SHA256, *OPTIONS, *pin.TOOLS, *VARIANTS)).encode()).hexdigest()
    return f"{pin.RELEASE}-linux-aarch64-{digest[:10]}"


def ensure(emit: Emit) -> Path:
    """The folder of llama.cpp's tools and libraries for arm64; builds them if they are not there (10 minutes on 2 cores, once).

    Raises MissingError (no cross compiler), and as `install.ensure`.
    """
    home = pin.home()
    folder = home / key() / "bin"
    if all((folder / name).is_file() for name in (*pin.TOOLS, *(f"libggml-cpu-{name}.so" for name in VARIANTS))):
        return folder
    if shutil.which(f"{COMPILER}-g++") is None:
        raise MissingError(
            f"{COMPILER}-g++: there is no compiler for arm64 on this machine",
            "Debian, Ubuntu: sudo apt install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu",
        )
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        with alone(home / "lock", emit):
            if not (pin.source_dir() / CONVERTER).is_file():
                fetch_source(pin.source_dir(), home / "logs", emit)
            source = home / f"source-{key()}"
            if not source.is_dir():
                _trimmed(pin.source_dir(), source)
            build(source, home, key(), emit, options=OPTIONS, foreign=True)
            shutil.rmtree(source, ignore_errors=True)
    return folder


def _trimmed(source: Path, target: Path) -> None:
    """The source again, by hard links, with only VARIANTS in its list of CPU backends: every tool is built after all of them."""
    text = (source / _LIST).read_text()
    found = {match[1] for match in _VARIANT.finditer(text)}
    if missing := set(VARIANTS) - found:
        raise PillmError(f"{source / _LIST}: {', '.join(sorted(missing))} is not in the list of CPU backends")
    with atomic_folder(target) as folder:
        shutil.copytree(source, folder, copy_function=os.link, dirs_exist_ok=True, symlinks=True)
        # The link is cut first, so that the pinned source stays as it is.
        (folder / _LIST).unlink()
        (folder / _LIST).write_text(_VARIANT.sub(lambda match: match[0] if match[1] in VARIANTS else "", text))
