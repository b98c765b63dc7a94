"""What this machine has of what the stages need, and how to get the rest. Fetches and builds nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from pillm import __version__
from pillm.core.errors import PillmError
from pillm.core.paths import cache_dir
from pillm.pipeline.manifest import gpu_name, hardware

_TRAIN = ("torch", "transformers", "peft", "accelerate", "safetensors")
_GIB = 2**30
# The source of llama.cpp with its build, one small model in three precisions, checkpoints.
_DISK_NEEDED = 6 * _GIB
# Full fine-tuning of a 135M model in float32 with AdamW, batch included, stays below this.
_MEMORY_NEEDED = 4 * _GIB
_CPU_FLAGS = {
    "avx2": "fast quantized inference",
    "avx512_bf16": "bfloat16 training at twice the speed",
    "amx_bf16": "bfloat16 training, faster still",
    "asimddp": "fast quantized inference (arm64)",
    "i8mm": "faster prefill (arm64)",
}
_HUB = "https://huggingface.co"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `missing` stops some stage; `note` is worth knowing."""

    name: str
    state: Literal["ok", "note", "missing"]
    value: str
    hint: str = ""


def examine(*, online: bool = False) -> list[Check]:
    """Every check in order; the network is touched only if `online`."""
    return [
        *_python(),
        *_training(),
        *_tools(),
        *_machine(),
        _hub_token(),
        *(_network() if online else ()),
    ]


def _python() -> Iterator[Check]:
    yield Check("pillm", "ok", f"{__version__} in {sys.prefix}")
    fine = sys.version_info >= (3, 11)
    yield Check(
        "python", "ok" if fine else "missing", platform.python_version(), "" if fine else "install 3.11 or newer"
    )


def _training() -> Iterator[Check]:
    gone = [name for name in _TRAIN if importlib.util.find_spec(name) is None]
    if gone:
        yield Check(
            "train", "missing", f"not installed: {', '.join(gone)}", "run: pip install 'pi-llm-optimizer[train]'"
        )
        return
    yield Check("train", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in _TRAIN))
    gpu = gpu_name()
    # torch itself could tell more, but takes seconds to import.
    if gpu and "+cpu" in metadata.version("torch"):
        yield Check("gpu", "note", f"{gpu}, but torch is a CPU build", "install torch for CUDA: https://pytorch.org")
    else:
        yield Check("gpu", "ok" if gpu else "note", gpu or "none found; small models train on the CPU")


def _tools() -> Iterator[Check]:
    llamacpp = _llamacpp()
    yield llamacpp
    if llamacpp.state == "ok":
        return  # what follows is only needed to build it
    compiler = next((path for name in _compilers() if (path := shutil.which(name))), None)
    hint = "" if compiler else f"run: {_compiler_hint()}"
    yield Check("compiler", "ok" if compiler else "missing", compiler or "no C++ compiler", hint)
    for name in ("cmake", "ninja"):
        path = "from the Python package" if importlib.util.find_spec(name) else shutil.which(name)
        hint = "" if path else f"run: pip install {name}"
        yield Check(name, "ok" if path else "missing", path or "not found", hint)


def _compilers() -> tuple[str, ...]:
    own = os.environ.get("CXX", "").split()[:1]
    return (*own, "c++", "g++", "clang++")


def _compiler_hint() -> str:
    if sys.platform == "darwin":
        return "xcode-select --install"
    for tool, line in (
        ("apt-get", "sudo apt-get install build-essential"),
        ("dnf", "sudo dnf install gcc-c++"),
        ("pacman", "sudo pacman -S base-devel"),
        ("apk", "sudo apk add build-base"),
    ):
        if shutil.which(tool):
            return line
    return "your system's package manager for g++"


def _llamacpp() -> Check:
    from pillm.llamacpp import install, pin

    try:
        found = install.locate()
    except PillmError as error:
        return Check("llama.cpp", "missing", error.message, error.hint)
    if found:
        return Check("llama.cpp", "ok", f"{found.version} in {found.bin}")
    size = f"{pin.SDIST_BYTES / 1e6:.0f} MB"
    return Check(
        "llama.cpp", "note", "not built yet", f"the first stage that needs it fetches {size} and builds it (minutes)"
    )


def _machine() -> Iterator[Check]:
    machine = hardware()
    yield Check("cpu", "ok", f"{machine.cpu}, {machine.cores} cores, {machine.architecture}")
    if flags := _cpu_flags():
        useful = [f"{name} ({what})" for name, what in _CPU_FLAGS.items() if name in flags]
        yield Check("cpu features", "ok" if useful else "note", ", ".join(useful) or "none of those that help")
    import psutil

    free = psutil.virtual_memory().available
    value = f"{free / _GIB:.1f} of {machine.memory_bytes / _GIB:.1f} GiB free"
    few = free < _MEMORY_NEEDED
    yield Check("memory", "note" if few else "ok", value, "quickstart needs 4 GiB: close programs" if few else "")
    for name, folder in (("disk: cache", cache_dir()), ("disk: here", Path.cwd())):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not os.access(there, os.W_OK):
            yield Check(name, "missing", f"{folder} cannot be written to", "change its permissions, or set PILLM_CACHE")
            continue
        space = shutil.disk_usage(there).free
        few = space < _DISK_NEEDED
        hint = f"quickstart needs about {_DISK_NEEDED // _GIB} GiB in all" if few else ""
        yield Check(name, "note" if few else "ok", f"{space / _GIB:.1f} GiB free in {folder}", hint)


def _cpu_flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return set(value.split())
    return set()


def _hub_token() -> Check:
    import huggingface_hub

    # Only whether there is one: its value must not come near anything that is printed.
    if huggingface_hub.get_token():
        return Check("hub token", "ok", "yes")
    return Check("hub token", "note", "no", "only gated models need one: run hf auth login, or set HF_TOKEN")


def _index() -> str:
    """The package index that pip is set to use."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True
    )
    default = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    if address := os.environ.get("PIP_INDEX_URL") or asked.stdout.strip():
        return address
    return subprocess.run([sys.executable, "-c", default], capture_output=True, text=True).stdout.strip()


def _network() -> Iterator[Check]:
    import httpx

    for name, address in (("package index", _index()), ("hub", os.environ.get("HF_ENDPOINT", _HUB))):
        try:
            answer = httpx.head(address, timeout=10, follow_redirects=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            yield Check(
                name, "missing", f"no answer ({type(error).__name__})", "check the network, or a proxy's settings"
            )
        else:
            yield Check(name, "ok" if answer.status_code < 500 else "missing", f"answers ({answer.status_code})")
