"""The one llama.cpp this tool stands on: which source, how it is configured, where it lives in the cache."""

from __future__ import annotations

import hashlib
import platform
import re
from pathlib import Path

from pillm.core.paths import cache_dir

DISTRIBUTION = "llama-cpp-python"
RELEASE = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SDIST_BYTES = 76_589_250
"""The source distribution on the package index that carries llama.cpp, its converter and gguf-py."""

COMMIT = "0c1e57098"
VERSION = (0, 5, 0)
"""llama.cpp's own version; a build of the user's must be at least as new to be used instead."""

TOOLS = (
    "llama-quantize",
    "llama-imatrix",
    "llama-perplexity",
    "llama-bench",
    "llama-server",
    "llama-tokenize",
    "llama-completion",
)

OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    # The web page of the server would be fetched from a hub while building.
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
    # GCC 12.2 drops the stores of the AMX tile configuration (seen in a debugger; other releases were not
    # tried), so that every tool crashes on a server CPU with AMX. No Pi has AMX, and measurements should not
    # depend on it.
    "-DCMAKE_C_FLAGS=-U__AMX_INT8__",
    "-DCMAKE_CXX_FLAGS=-U__AMX_INT8__",
    # Without these, cmake asks git, and finds whatever repository the cache happens to lie in.
    f"-DLLAMA_BUILD_COMMIT={COMMIT}",
    "-DLLAMA_BUILD_NUMBER=0",
)

# What ggml's native build looks at. Other flags come and go with the kernel's version.
_INSTRUCTION_SET = re.compile(r"\b(?:avx\w*|fma|f16c|bmi2|amx\w*|sse\w*|asimd\w*|sve\w*|sme\w*|i8mm|bf16)\b")


def _cpu() -> str:
    """The instruction sets that a native build may use: a cache carried to another machine must not match."""
    try:
        info = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return platform.processor()
    flags = next((line for line in info.splitlines() if line.startswith(("flags", "Features"))), "")
    return " ".join(sorted(set(_INSTRUCTION_SET.findall(flags))))


def key() -> str:
    """Name of this build: release, machine, and a hash of the options and of the CPU's instruction sets."""
    machine = f"{platform.system()}-{platform.machine()}".lower()
    digest = hashlib.sha256("\n".join((SHA256, *OPTIONS, *TOOLS, machine, _cpu())).encode()).hexdigest()
    return f"{RELEASE}-{machine}-{digest[:10]}"


def home() -> Path:
    """The folder of everything of llama.cpp in the cache."""
    return cache_dir() / "llamacpp"


def source_dir() -> Path:
    """Where the pinned source stands once fetched; the name carries the hash, so a new pin is a new folder."""
    return home() / f"source-{RELEASE}-{SHA256[:10]}"
