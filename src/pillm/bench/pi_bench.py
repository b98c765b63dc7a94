#!/usr/bin/env python3
"""Measure a GGUF model on this machine with llama.cpp or ollama, and tell the state of the machine beside it.

    python3 pi_bench.py --model m.gguf                       # a table
    python3 pi_bench.py --model m.gguf --out run.json        # and the whole document
    python3 pi_bench.py --server http://127.0.0.1:11434 --ollama-model smollm2:135m
    python3 pi_bench.py --self-test

One file with the standard library only, Python 3.9 and up: copy it to a board and run it. It drives llama-bench
(prefill and decode) and llama-server (time to first token, time between tokens, load time, peak memory, embeddings).
The document is `pillm.history.document.Run`; its JSON Schema is `pi_bench.schema.json`. What could not be had is
null there, with the reason under its path in `absent`.

Exit codes: 0 measured; 1 a gate failed, or nothing could be measured; 2 wrong option or model file; 3 no llama.cpp;
4 no answer from ollama; 5 disk full, or another measurement is running; 130 stopped.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import ctypes
import errno
import fcntl
import hashlib
import http.client
import io
import json
import math
import mmap
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import stat
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

VERSION = 1
TOOL = "pi_bench 1.0.0"
MEASURES = ("speed", "latency", "load", "memory", "embeddings")
ROOT = Path("/")
"""Where the kernel's files are found; tests put a folder here."""

TOOL_FOLDERS = ("usr/lib/pillm*", "usr/lib/pillm*/bin", "usr/local/bin", "usr/bin")
HOST = "127.0.0.1"
START_LIMIT_S = 300.0
SWAP_PAGES_ALLOWED = 256
BUSY_SHARE = 0.10
SAMPLE_S = 2.0
# Idle workers of OpenMP wait in a loop before they sleep, by default for so long that any other program on the
# machine makes the measurement many times slower. The same value is used by all of pillm.
ENVIRONMENT = {"GOMP_SPINCOUNT": "20000"}
EXIT_FAILED, EXIT_USAGE, EXIT_MISSING, EXIT_NETWORK, EXIT_RESOURCE, EXIT_STOPPED = 1, 2, 3, 4, 5, 130

# The prompt of the latency test, and the texts that are embedded; repeated to the length asked for.
TEXT = (
    "The kitchen light goes on at seven, and the kettle a minute later. By half past, the radio reads the weather for "
    "the valley: fog until ten, then a light wind from the west. Somebody has to water the tomatoes, feed the cat and "
    "take the parcel to the post office before noon. In the evening the heating may stay off, as the day will be warm. "
)


class Unknown(Exception):
    """A figure could not be had; the text is the reason that goes into `absent`."""


class Hung(Unknown):
    """A server did not get ready in its time; it would not the next time either."""


class Refused(Exception):
    """The run cannot begin or its result cannot be kept; the text is for the user."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


# --- What a person or a program sees while it runs ----------------------------------------------------------


class Screen:
    """Progress on stderr: lines for people, or one JSON object a line."""

    def __init__(self, mode: str = "plain") -> None:
        self.mode = mode
        self._last = ""

    def say(self, text: str, level: str = "info") -> None:
        """A line for a person."""
        if self.mode == "json":
            self._write(json.dumps({"log": text, "level": level}))
        elif self.mode == "plain":
            self._write(f"{level}: {text}" if level != "info" else text)

    def step(self, label: str, done: float = 0, total: float | None = None, unit: str = "") -> None:
        """`done` of `total` `unit`s of the work called `label`; a person sees each label once."""
        if self.mode == "json":
            self._write(json.dumps({"progress": label, "done": done, "total": total, "unit": unit}))
        elif self.mode == "plain" and label != self._last:
            self._write(label)
        self._last = label

    def _write(self, line: str) -> None:
        # Who reads along may go away (a closed terminal, a lost connection): the measurement goes on.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def tell(absent: dict[str, str], key: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; None where it cannot be had, with the reason in `absent`."""
    try:
        return read()
    except Unknown as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or 'the system'}: {error.strerror or error}"
    except (ValueError, LookupError, struct.error) as error:
        reason = f"it cannot be read: {type(error).__name__}: {error}"
    absent.setdefault(key, reason)
    return None


# --- The board: what does not change --------------------------------------------------------------------------

_PARTS = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710",
    0xD49: "Neoverse-N2", 0xD4F: "Neoverse-V2",
}  # fmt: skip
# Linux, arch/arm64/include/uapi/asm/hwcap.h: those that llama.cpp's CPU backends ask for, and their neighbours.
_HWCAP = {0: "fp", 1: "asimd", 3: "aes", 8: "atomics", 9: "fphp", 10: "asimdhp", 20: "asimddp", 22: "sve"}
_HWCAP2 = {1: "sve2", 13: "i8mm", 14: "bf16", 23: "sme"}
# Linux, arch/arm/include/uapi/asm/hwcap.h: what a 32-bit process is told, on a 64-bit kernel too.
_HWCAP_32 = {12: "neon", 22: "fphp", 23: "asimdhp", 24: "asimddp"}
_X86 = re.compile(r"sse3|ssse3|sse4_[12]|avx\w*|fma|f16c|bmi2|amx\w*|pni")
_AT_HWCAP, _AT_HWCAP2 = 16, 26


def read_text(path: str) -> str:
    """A file of the kernel's, without its ending NUL or newline. Raises OSError."""
    return (ROOT / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def features_of(auxv: bytes, words: int = 8) -> list[str]:
    """What the kernel tells a process of its Arm core (AT_HWCAP, AT_HWCAP2); `words` is the size of a long."""
    pair = struct.Struct("=QQ" if words == 8 else "=II")
    values = dict(pair.iter_unpack(auxv[: len(auxv) // pair.size * pair.size]))
    known = _HWCAP if words == 8 else _HWCAP_32
    found = [name for bit, name in known.items() if values.get(_AT_HWCAP, 0) >> bit & 1]
    if words != 8:
        return found
    return found + [name for bit, name in _HWCAP2.items() if values.get(_AT_HWCAP2, 0) >> bit & 1]


def _features() -> list[str]:
    if platform.machine() in ("aarch64", "arm64"):
        # Not /proc/cpuinfo: under qemu-user it is the host's.
        return features_of((ROOT / "proc/self/auxv").read_bytes(), struct.calcsize("l"))
    flags = _cpuinfo().get("flags")
    if flags is None:
        raise Unknown("/proc/cpuinfo tells no flags")
    return sorted(set(_X86.findall(flags)) & set(flags.split()))


def _cpuinfo() -> dict[str, str]:
    """The first value of every name in /proc/cpuinfo."""
    found: dict[str, str] = {}
    for line in read_text("proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _cpu(emulated: str | None) -> str:
    if emulated:
        raise Unknown("the processor is emulated, and /proc/cpuinfo is the host's")
    info = _cpuinfo()
    if name := info.get("model name"):
        return name
    part = int(info["CPU part"], 16)
    return _PARTS.get(part, f"Arm part {part:#x}") if info.get("CPU implementer") == "0x41" else f"part {part:#x}"


def _device_tree(name: str) -> bytes:
    for base in ("proc/device-tree", "sys/firmware/devicetree/base"):
        with contextlib.suppress(OSError):
            return (ROOT / base / name).read_bytes()
    raise Unknown(f"/proc/device-tree/{name} does not exist: no board that has a device tree")


def _revision() -> str:
    try:
        return format(struct.unpack(">I", _device_tree("system/linux,revision")[:4])[0], "06x")
    except (Unknown, struct.error):
        if code := tell({}, "", lambda: _cpuinfo().get("Revision")):
            return code
        raise Unknown("neither the device tree nor /proc/cpuinfo has a revision code: no Raspberry Pi") from None


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d+) kB", read_text("proc/meminfo"), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def _os_name() -> str:
    match = re.search(r"^PRETTY_NAME=\"?([^\"\n]*)", read_text("etc/os-release"), re.MULTILINE)
    if match is None:
        raise Unknown("/etc/os-release has no PRETTY_NAME")
    return match[1]


def find_emulation() -> str | None:
    """What emulates the processor, where it can be told; None says only that nothing was found."""
    machine = platform.machine()
    kernel = tell({}, "", lambda: read_text("proc/sys/kernel/arch"))
    info = tell({}, "", _cpuinfo) or {}
    foreign = machine in ("aarch64", "armv7l", "armv6l") and ("vendor_id" in info or "flags" in info)
    if foreign or (kernel == "x86_64" and machine not in ("x86_64", "i686", "i386")):
        which = os.environ.get("QEMU_CPU")
        return f"qemu-user{f' as {which}' if which else ''} on {kernel or 'another processor'}"
    if "VirtualApple" in info.get("model name", ""):
        return "Rosetta"
    return None


def board(absent: dict[str, str], emulated: str | None) -> dict[str, Any]:
    """`Board` of the document."""

    def had(name: str, read: Callable[[], Any]) -> Any:
        return tell(absent, f"board.{name}", read)

    frequency = "sys/devices/system/cpu/cpu0/cpufreq/"
    return {
        "model": had("model", lambda: _device_tree("model").decode("utf-8", "replace").strip("\0\n ")),
        "revision": had("revision", _revision),
        "cpu": had("cpu", lambda: _cpu(emulated)),
        "cores": cores(),
        "features": had("features", _features) or [],
        "ram_bytes": had("ram_bytes", lambda: meminfo()["MemTotal"]),
        "architecture": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "os": had("os", _os_name),
        "governor": had("governor", lambda: read_text(frequency + "scaling_governor")),
        "max_mhz": had("max_mhz", lambda: int(read_text(frequency + "cpuinfo_max_freq")) / 1000),
    }


# --- The board: its state at a moment -------------------------------------------------------------------------

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_THROTTLING = {
    0: "under-voltage now", 1: "clock capped now", 2: "throttled now", 3: "soft temperature limit now",
    16: "under-voltage has occurred", 17: "clock was capped", 18: "throttling has occurred",
    19: "soft temperature limit was reached",
}  # fmt: skip
_NOW, _EVER = 0x0000F, 0xF0000
_GET_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"


def throttling_words(bits: int) -> list[str]:
    """The bits of get_throttled in words."""
    return [words for bit, words in _THROTTLING.items() if bits >> bit & 1]


def vcgencmd(*words: str) -> str:
    """What the firmware's tool says. Raises Unknown."""
    tool = shutil.which("vcgencmd", path=os.environ.get("PATH", "") + ":/usr/bin:/opt/vc/bin")
    if tool is None:
        raise Unknown("there is no vcgencmd on this machine")
    try:
        done = subprocess.run([tool, *words], capture_output=True, timeout=5, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Unknown("vcgencmd did not answer within 5 s") from None
    except OSError as error:
        raise Unknown(f"vcgencmd cannot be started: {error.strerror}") from None
    said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
    if done.returncode or "error" in said.lower():
        raise Unknown(f"vcgencmd {' '.join(words)}: {said or f'exit code {done.returncode}'}")
    return said


def throttled_bits(said: str) -> int:
    """The number in `throttled=0x50000`."""
    return int(said.rpartition("=")[2], 16)


def _throttled() -> int:
    try:
        return throttled_bits(vcgencmd("get_throttled"))
    except (Unknown, ValueError):
        # The kernel's file has what a driver was told when it asked last, if one asks at all.
        with contextlib.suppress(OSError, ValueError):
            return int(read_text(_GET_THROTTLED), 16)
        raise


def pmic_watts(said: str) -> float:
    """Sum of volts times amperes over the rails that tell both (`vcgencmd pmic_read_adc`): what the board's
    regulators give out, which is less than what its supply gives in. Raises Unknown.
    """
    amperes = dict(re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", said))
    volts = dict(re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", said))
    rails = sorted(set(amperes) & set(volts))
    if not rails:
        raise Unknown("the board has no PMIC that tells current and voltage")
    return round(sum(float(amperes[rail]) * float(volts[rail]) for rail in rails), 4)


def _temperature() -> float:
    zones = sorted((ROOT / "sys/class/thermal").glob("thermal_zone*"))
    kinds = {zone: tell({}, "", (zone / "type").read_text) or "" for zone in zones}
    for zone in sorted(zones, key=lambda zone: not re.search(r"cpu|x86_pkg", kinds[zone])):
        with contextlib.suppress(OSError, ValueError):
            return int((zone / "temp").read_text()) / 1000
    try:
        return float(re.findall(r"[\d.]+", vcgencmd("measure_temp"))[0])
    except Unknown as error:
        raise Unknown(f"/sys/class/thermal has no zone that can be read, and {error}") from None


def _clock() -> float:
    found = []
    for path in (ROOT / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()) / 1000)
    if found:
        return max(found)
    megahertz = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", read_text("proc/cpuinfo"), re.MULTILINE)
    if not megahertz:
        raise Unknown("neither cpufreq nor /proc/cpuinfo tells a clock")
    return max(map(float, megahertz))


def _swapped_pages() -> int:
    counts = dict(re.findall(r"^(pswp(?:in|out)) (\d+)$", read_text("proc/vmstat"), re.MULTILINE))
    return int(counts["pswpin"]) + int(counts["pswpout"])


def _swap_used() -> int:
    memory = meminfo()
    return memory["SwapTotal"] - memory["SwapFree"]


def _zram() -> int:
    # The third figure of mm_stat is all that the compressed pages and their bookkeeping take.
    return sum(int(path.read_text().split()[2]) for path in (ROOT / "sys/block").glob("zram*/mm_stat"))


def state(absent: dict[str, str], moment: str, began: float) -> dict[str, Any]:
    """`State` of the document; `moment` is `before`, `during` or `after`."""

    def had(name: str, read: Callable[[], Any]) -> Any:
        return tell(absent, f"{moment}.{name}", read)

    return {
        "at_s": round(time.monotonic() - began, 3),
        "temperature_c": had("temperature_c", _temperature),
        "clock_mhz": had("clock_mhz", _clock),
        "load": had("load", lambda: round(os.getloadavg()[0], 2)),
        "free_bytes": had("free_bytes", lambda: meminfo()["MemAvailable"]),
        "swap_used_bytes": had("swap_used_bytes", _swap_used),
        "swapped_pages": had("swapped_pages", _swapped_pages),
        "zram_bytes": had("zram_bytes", _zram),
        "throttled": had("throttled", _throttled),
        "power_w": had("power_w", lambda: pmic_watts(vcgencmd("pmic_read_adc"))),
    }


@contextlib.contextmanager
def sampling(absent: dict[str, str], began: float, found: list[dict[str, Any]]) -> Iterator[None]:
    """Add a state to `found` every few seconds; of a long run, ever fewer, so that the document stays small.

    Throttling is looked at all the same: what was seen between two states is in the next one (at the end, in the last).
    """
    stop = threading.Event()

    def add(moment: dict[str, Any], bits: int | None) -> None:
        if bits is not None:
            moment["throttled"] = (moment["throttled"] or 0) | bits

    def watch() -> None:
        looks, every = 0, 1
        between: int | None = None
        while not stop.wait(SAMPLE_S):
            looks += 1
            if looks % every:
                if (bits := tell({}, "", _throttled)) is not None:
                    between = (between or 0) | bits
                continue
            found.append(state(absent, "during", began))
            add(found[-1], between)
            between = None
            if len(found) >= 200:
                for dropped, kept in zip(found[::2], found[1::2]):  # noqa: B905  Python 3.9 has no strict
                    add(kept, dropped["throttled"])
                del found[::2]
                every *= 2
        if found:
            add(found[-1], between)

    thread = threading.Thread(target=watch, name="state", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def processor_seconds() -> tuple[float, float]:
    """Processor time that the whole machine has spent working, and that it has had, in seconds since it started."""
    fields = [int(field) for field in read_text("proc/stat").split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, waiting, interrupts, soft, stolen = fields
    busy, tick = user + nice + system + interrupts + soft + stolen, os.sysconf("SC_CLK_TCK")
    return busy / tick, (busy + idle + waiting) / tick


def own_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _others_share(earlier: tuple[float, float], own: float = 0.0) -> float:
    """Share of the machine's processor time since `earlier` that went to others than us."""
    busy, total = processor_seconds()
    spent = total - earlier[1]
    return max(0.0, busy - earlier[0] - own) / spent if spent > 0 else 0.0


def verdict(before: dict[str, Any], during: list[dict[str, Any]], after: dict[str, Any],
            emulated: str | None = None) -> tuple[list[str], list[str], list[str]]:  # fmt: skip
    """Why the run is invalid, what to be warned of, and the words of all throttling bits that were seen."""
    invalid: list[str] = [f"the processor is emulated ({emulated})"] if emulated else []
    warnings: list[str] = []
    bits = [moment["throttled"] for moment in (before, *during, after) if moment["throttled"] is not None]
    seen = 0
    for value in bits:
        seen |= value
    now = seen & _NOW
    # The upper bits stay set since the board started (or until a driver clears them): only what is new was in this run.
    fresh = 0
    for place, value in enumerate(bits[1:]):
        fresh |= value & ~bits[place] & _EVER
    invalid += [f"{words} (seen during the run)" for words in throttling_words(now)]
    invalid += [f"{words} during the run" for words in throttling_words(fresh & ~(now << 16))]
    if earlier := throttling_words(seen & _EVER & ~fresh & ~(now << 16)):
        warnings.append(
            f"since the board started, but before this run: {', '.join(earlier)}; "
            "a further event of that kind during the run, between two looks, could not be seen"
        )
    if before["swapped_pages"] is not None and after["swapped_pages"] is not None:
        pages = after["swapped_pages"] - before["swapped_pages"]
        if pages > SWAP_PAGES_ALLOWED:
            invalid.append(f"the machine swapped: {pages} pages of memory went to or from swap during the run")
        elif pages > 0:
            warnings.append(f"{pages} pages of memory went to or from swap during the run")
    return invalid, warnings, throttling_words(seen)


# --- The model: the header of a GGUF file ----------------------------------------------------------------------

# ggml's types: number, name, weights in a block, bytes of a block (ggml/src/ggml-common.h).
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Tensor(NamedTuple):
    """`shape` has the row's width first."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int


class Cursor:
    """Reads a GGUF header from `data`. Raises Refused for what is cut off or damaged."""

    def __init__(self, path: Path, data: Any, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 4

    def cut(self, what: str) -> Refused:
        """The error for a file that is not whole."""
        return Refused(
            EXIT_USAGE,
            f"{self.path}: the file is cut off or damaged: {what} (it has {self.size:,} bytes); copy or download it again",
        )

    def take(self, count: int) -> int:
        """Move on; returns where the piece began."""
        begin, self.at = self.at, self.at + count
        if self.at > self.size:
            raise self.cut("its header goes on past its end")
        return begin

    def scalar(self, form: str) -> Any:
        """A number of `struct`'s form."""
        return struct.unpack_from(f"<{form}", self.data, self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        """A string with its length before it."""
        size = self.scalar("Q")
        begin = self.take(size)
        return bytes(self.data[begin : begin + size]).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A metadata value; of an array its length."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.cut(f"metadata of an unknown kind {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            self.take(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            for _ in range(count):
                # A token's text is skipped, not made: there are a hundred thousand of them.
                if inner == _STRING:
                    self.take(self.scalar("Q"))
                else:
                    self.value(inner)
        return count

    def tensor(self) -> tuple[Tensor, int]:
        """A tensor's header, and where its data begins after the header."""
        name, dimensions = self.text(), self.scalar("I")
        if dimensions > 8:
            raise self.cut(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))
        number, offset = self.scalar("I"), self.scalar("Q")
        if number not in _TYPES:
            raise Refused(
                EXIT_USAGE, f"{self.path}: tensor {name} has the unknown type {number}; get a newer pi_bench.py"
            )
        kind, block, size = _TYPES[number]
        return Tensor(name, kind, shape, math.prod(shape) // block * size), offset


def read_header(path: Path, data: Any, size: int) -> tuple[dict[str, Any], list[Tensor]]:
    """Metadata (of arrays, the lengths) and tensors of a GGUF file. Raises Refused."""
    if size < 4 or bytes(data[:4]) != b"GGUF":
        raise Refused(EXIT_USAGE, f"{path}: not a GGUF file; give the path of a .gguf model")
    cursor = Cursor(path, data, size)
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise Refused(
            EXIT_USAGE, f"{path}: GGUF version {version} is not known; make the file again with a current llama.cpp"
        )
    n_tensors, n_values = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"))
    tensors = [cursor.tensor() for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment") or 32
    start = -(-cursor.at // alignment) * alignment
    for tensor, offset in tensors:
        if start + offset + tensor.bytes > size:
            raise cursor.cut(f"tensor {tensor.name} ends at byte {start + offset + tensor.bytes:,}")
    return metadata, [tensor for tensor, _ in tensors]


def facts(metadata: dict[str, Any], tensors: Sequence[Tensor]) -> dict[str, Any]:
    """The part of `Model` that the header tells.

    A token reads all tensors but embeddings that are only looked up (an input embedding that is not the output head too), and of a mixture's experts
    those that are used. The cache is as wide as the key and value projections of every layer.
    """
    architecture = metadata.get("general.architecture")
    tokens = metadata.get("tokenizer.ggml.tokens", 0)

    def number(key: str) -> int:
        value = metadata.get(f"{architecture}.{key}", 0)
        return int(value) if isinstance(value, (int, float)) else 0

    def text(key: str) -> str | None:
        value = metadata.get(key)
        return value if isinstance(value, str) else None

    sizes = {tensor.name: tensor.bytes for tensor in tensors}
    total = sum(sizes.values())
    unread = sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0
    experts, used = number("expert_count"), number("expert_used_count")
    # Gemma 3n's second embedding is looked up, too: a row of it for a token.
    unread += sizes.get("per_layer_token_embd.weight", 0)
    if experts:
        unread += sum(size for name, size in sizes.items() if "_exps." in name) * (experts - used) // experts
    wide = sum(tensor.shape[1] for tensor in tensors if tensor.name.endswith((".attn_k.weight", ".attn_v.weight")))
    heads, width = number("attention.head_count"), number("embedding_length")
    head = width // heads if heads else 0
    length = (number("attention.key_length") or head) + (number("attention.value_length") or head)
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.type] = types.get(tensor.type, 0) + tensor.bytes
    return {
        "name": text("general.name"),
        "architecture": text("general.architecture"),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "types": dict(sorted(types.items(), key=lambda item: -item[1])),
        "weight_bytes": total,
        "read_bytes": total - unread,
        "kv_bytes_per_token": 2 * wide
        or number("block_count") * (number("attention.head_count_kv") or heads) * length * 2,
        "vocabulary": tokens if type(tokens) is int else 0,
        "width": width,
    }


def sha256_of(path: Path, screen: Screen) -> str:
    """Hex sha256 of a file."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            screen.step(f"hash {path.name}", done, size, "bytes")
    return digest.hexdigest()


def model_of(path: Path, absent: dict[str, str], screen: Screen, *, hashed: bool = True) -> dict[str, Any]:
    """`Model` of the document. Raises Refused for a file that is missing, cut off or no GGUF file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise Refused(EXIT_USAGE, f"{path}: not a GGUF file (it is empty); give the path of a .gguf model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                try:
                    found = facts(*read_header(path, data, size))
                except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError, struct.error) as error:
                    # Values of another kind than their names promise.
                    raise Cursor(path, data, size).cut(f"its header makes no sense: {error}") from None
        digest = sha256_of(path, screen) if hashed else None
    except OSError as error:
        raise Refused(EXIT_USAGE, f"{path}: cannot be read ({error.strerror}); check the path") from None
    for name in ("name", "architecture"):
        if found[name] is None:
            absent[f"model.{name}"] = f"the file's metadata has no text general.{name}"
    return {"file": path.name.encode("utf-8", "replace").decode(), "bytes": size, "sha256": digest, **found}


# --- Child processes ------------------------------------------------------------------------------------------------

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A running program: its last lines, and when it said something last."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self.process, self.name = process, name
        self.lines: collections.deque[str] = collections.deque(maxlen=400)
        self.news = time.monotonic()

    def end(self) -> int:
        """Ask it to end, then make it; returns its exit code."""
        for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 30)):
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(patience)
        return -9

    def wait(self, limit: float) -> int:
        """Until it ends. Raises Unknown if it says nothing for `limit` seconds; it is ended then."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(0.2)
            if time.monotonic() - self.news > limit:
                self.end()
                raise Unknown(f"{self.name} said nothing for {limit:.0f} s and was ended")

    def why(self) -> str:
        """The line of its output that says most of why it failed."""
        lines = [re.sub(r"^[\d.]+ [EWID] ", "", line) for line in self.lines if line.strip()]
        telling = [line for line in lines if re.search(r"error|failed|cannot|unable|invalid|not found", line, re.I)]
        return (telling or lines or ["it said nothing"])[0 if telling else -1].strip()[:300]


@contextlib.contextmanager
def child(argv: Sequence[str], env: dict[str, str] | None = None,
          on_line: Callable[[str], None] | None = None) -> Iterator[Child]:  # fmt: skip
    """Run a program; it ends with the block, and with us. Raises Unknown if it cannot be started.

    Its output is read from pipes, never from files: a full disk must not stop a measurement.
    """
    name = Path(argv[0]).name
    try:
        process = subprocess.Popen(
            argv, env={**ENVIRONMENT, **os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
    except OSError as error:
        raise Unknown(f"{name} cannot be started: {error.strerror}") from None
    running = Child(process, name)

    def drain(stream: Any) -> None:
        for raw in iter(stream.readline, b""):
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            running.news = time.monotonic()
            running.lines.append(line)
            if on_line:
                on_line(line)

    readers = [threading.Thread(target=drain, args=(pipe,), daemon=True) for pipe in (process.stdout, process.stderr)]
    for reader in readers:
        reader.start()
    try:
        yield running
    finally:
        running.end()
        for reader, pipe in zip(readers, (process.stdout, process.stderr)):  # noqa: B905  Python 3.9 has no strict
            reader.join(2)
            # A grandchild may hold the pipe open; then the reader keeps it until the program ends.
            if pipe and not reader.is_alive():
                pipe.close()


def output_of(argv: Sequence[str], limit: float) -> str:
    """All that a short command says, on both of its streams. Raises Unknown."""
    said: list[str] = []
    with child(argv, on_line=said.append) as running:
        code = running.wait(limit)
    if code:
        raise Unknown(f"{running.name} failed (exit code {code}): {running.why()}")
    return "\n".join(said)


# --- llama.cpp: its tools and who they are ---------------------------------------------------------------------------

_VERSION_LINE = re.compile(
    r"^version: (?P<version>\S+) \((?:build (?P<build>\d+), commit )?(?P<commit>\w+)\)", re.MULTILINE
)
_LOADED = re.compile(r"load_backend: loaded CPU backend from (\S.*)")


def find_tool(name: str, folder: Path | None) -> Path:
    """A tool of llama.cpp in `folder`, on PATH or where pillm's packages put it. Raises Unknown."""
    if folder is not None:
        for place in (folder, folder / "bin", folder / "build/bin"):
            if os.access(place / name, os.X_OK) and (place / name).is_file():
                return (place / name).resolve()
        raise Unknown(f"{folder}: there is no {name} in this folder, bin/ or build/bin/")
    if found := shutil.which(name):
        return Path(found).resolve()
    for pattern in TOOL_FOLDERS:
        for place in sorted(ROOT.glob(pattern)):
            if os.access(place / name, os.X_OK):
                return (place / name).resolve()
    raise Unknown(f"{name} is not on PATH and not in {', '.join('/' + place for place in TOOL_FOLDERS[:2])}")


def version_of(said: str) -> dict[str, Any]:
    """Version, commit and build from what `llama-server --version` says. Raises Unknown.

    Builds from before llama.cpp had versions print the build's number in the version's place.
    """
    match = _VERSION_LINE.search(said)
    if match is None:
        raise Unknown("`--version` says no version")
    version, build = match["version"], match["build"]
    if build is None and version.isdigit():
        build = version
    return {"version": version, "commit": match["commit"], "build": int(build) if build else None}


def variant_of(line: str) -> str | None:
    """`armv8.2_2` from `load_backend: loaded CPU backend from /x/libggml-cpu-armv8.2_2.so`; None for other lines."""
    match = _LOADED.search(line)
    if match is None:
        return None
    name = match[1].strip().rpartition("/")[2]
    return re.sub(r"^(?:lib)?ggml-cpu-?|\.(?:so|dll|dylib)$", "", name) or "cpu"


def runtime_of(bench: Path | None, server: Path | None, variants: set[str], limit: float,
               absent: dict[str, str]) -> dict[str, Any]:  # fmt: skip
    """`Runtime` of the document, with the CPU variants that the tools were seen to load."""
    tool = server or bench
    limit = min(limit, 60)
    about: dict[str, Any] = {"version": None, "commit": None, "build": None}
    if tool:
        about = tell(absent, "runtime.version", lambda: version_of(output_of([str(tool), "--version"], limit))) or about
    for name in ("commit", "build"):
        if about[name] is None:
            absent.setdefault(f"runtime.{name}", absent.get("runtime.version", "`--version` does not say it"))
    if not variants and bench:
        # Its first act is to load the backends, and it says which.
        said = tell({}, "", lambda: output_of([str(bench), "--list-devices"], limit)) or ""
        variants |= {found for line in said.splitlines() if (found := variant_of(line))}
    if len(variants) != 1:
        absent["runtime.cpu_variant"] = (
            f"the tools loaded several: {', '.join(sorted(variants))}" if variants
            else "the tools tell of no CPU backend that was loaded: it is built in"
        )  # fmt: skip
    return {
        "kind": "llama.cpp", **about, "cpu_variant": next(iter(variants)) if len(variants) == 1 else None,
        "path": str(tool.parent) if tool else None,
    }  # fmt: skip


# --- llama-bench: prefill and decode ---------------------------------------------------------------------------------

_BENCH_STEP = re.compile(r"benchmark (\d+)/(\d+): (?:prompt|generation) run (\d+)/(\d+)")


def bench_command(tool: Path, model: Path, options: argparse.Namespace) -> list[str]:
    """llama-bench's command line."""
    return [
        str(tool), "--model", str(model), "--n-prompt", str(options.prompt_tokens), "--n-gen", str(options.gen_tokens),
        "--n-depth", ",".join(map(str, options.depth)), "--threads", ",".join(map(str, options.threads)),
        "--repetitions", str(options.repetitions), "--cache-type-k", options.type_k, "--cache-type-v", options.type_v,
        *(["--flash-attn", "on"] if options.type_v != "f16" else []), "--output", "jsonl", "--progress",
    ]  # fmt: skip


def speed_of(test: dict[str, Any]) -> dict[str, Any]:
    """`Speed` of the document from a line of llama-bench's JSON."""
    prefill = bool(test["n_prompt"])
    return {
        "what": "prefill" if prefill else "decode",
        "tokens": test["n_prompt"] if prefill else test["n_gen"],
        "depth": test.get("n_depth", 0),
        "threads": test["n_threads"],
        "mean_tps": round(test["avg_ts"], 3),
        "stddev_tps": round(test["stddev_ts"], 3),
        "samples_tps": [round(sample, 3) for sample in test["samples_ts"]],
        "type_k": test.get("type_k", "f16"),
        "type_v": test.get("type_v", "f16"),
    }


def measure_speed(tool: Path, model: Path, options: argparse.Namespace, variants: set[str],
                  absent: dict[str, str], screen: Screen) -> list[dict[str, Any]]:  # fmt: skip
    """`speeds` of the document. A test that is done is kept even if a later one fails."""
    found: list[dict[str, Any]] = []

    def heard(line: str) -> None:
        if line.startswith("{"):
            with contextlib.suppress(ValueError, LookupError, TypeError):
                found.append(speed_of(json.loads(line)))
        elif match := _BENCH_STEP.search(line):
            test, tests, run, runs = map(int, match.groups())
            screen.step("llama-bench", (test - 1) * runs + run, tests * runs, "runs")
        elif variant := variant_of(line):
            variants.add(variant)

    screen.step("llama-bench", 0, None, "runs")
    wanted = len(options.threads) * len(options.depth) * (bool(options.prompt_tokens) + bool(options.gen_tokens))

    def run() -> None:
        with child(bench_command(tool, model, options), on_line=heard) as running:
            code = running.wait(options.limit)
        if code:
            raise Unknown(f"llama-bench ended with {_ending(code)}: {running.why()}")
        if len(found) < wanted:
            raise Unknown("llama-bench gave fewer results than it was asked for")

    tell(absent, "speeds", run)
    if "speeds" in absent and found:
        absent["speeds"] = f"{len(found)} of {wanted} tests were measured; then {absent['speeds']}"
    return found


def _ending(code: int) -> str:
    return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"


# --- llama-server: what a client sees --------------------------------------------------------------------------------


class Server(NamedTuple):
    """A server that answers on `port`, ready `seconds` after it was started."""

    child: Child
    port: int
    key: str
    seconds: float


def server_command(tool: Path, model: Path, port: int, split: tuple[int, int], options: argparse.Namespace,
                   known: str, *, embeddings: bool = False) -> list[str]:  # fmt: skip
    """llama-server's command line; `known` is its help text, since older builds lack some of the flags."""
    argv = [
        str(tool), "--model", str(model), "--host", HOST, "--port", str(port), "--ctx-size", str(options.context),
        "--parallel", "1", "--threads", str(split[0]), "--threads-batch", str(split[1]),
        "--cache-type-k", options.type_k, "--cache-type-v", options.type_v,
    ]  # fmt: skip
    for flags in (["--cache-ram", "0"], ["--no-ui"], ["--offline"], ["--log-colors", "off"]):
        if flags[0] in known:
            argv += flags
    if options.type_v != "f16":
        # A quantized cache of values needs it.
        argv += ["--flash-attn", "on"]
    return [*argv, "--embeddings", "--pooling", "mean"] if embeddings else argv


def fetch(address: tuple[str, int], path: str, body: Any = None, key: str = "", limit: float = 60) -> Any:
    """One request (POST if it has a body) with a JSON answer. Raises Unknown."""
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=limit)) as connection:
        try:
            sent = None if body is None else json.dumps(body)
            connection.request("POST" if sent else "GET", path, sent, _headers(key))
            answer = connection.getresponse()
            data = answer.read()
        except socket.timeout:  # noqa: UP041  not TimeoutError in Python 3.9
            raise Unknown(f"{path}: no answer within {limit:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unknown(f"{path}: {error or type(error).__name__}") from None
    if answer.status != 200:
        raise Unknown(f"{path}: {answer.status} {data[:200].decode('utf-8', 'replace').strip()}")
    return json.loads(data)


def _headers(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


@contextlib.contextmanager
def serving(command: Callable[[int], list[str]], limit: float, heard: Callable[[str], None]) -> Iterator[Server]:
    """A llama-server for the block, on loopback, with a key of its own. Raises Unknown."""
    limit, key = min(limit, START_LIMIT_S), secrets.token_urlsafe(24)
    for attempt in range(3):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        began = time.monotonic()
        # In the environment, other users' `ps` does not show the key.
        with child(command(port), {"LLAMA_API_KEY": key}, heard) as running:
            if _ready(running, port, key, began, limit):
                yield Server(running, port, key, time.monotonic() - began)
                return
        # Another program may have taken the port between our look and the server's bind.
        if attempt == 2 or not re.search("bind|in use", " ".join(running.lines)):
            raise Unknown(f"llama-server ended with {_ending(running.process.returncode)}: {running.why()}")


def _ready(running: Child, port: int, key: str, began: float, limit: float) -> bool:
    """Wait until the server is healthy (True) or ended (False). Raises Unknown after `limit` seconds."""
    while running.process.poll() is None:
        try:
            fetch((HOST, port), "/health", key=key, limit=min(2.0, limit))
            return True
        except (Unknown, ValueError):
            if time.monotonic() - began > limit:
                raise Hung(f"llama-server was not ready after {limit:.0f} s and was ended") from None
        time.sleep(0.01)
    return False


class Answer(NamedTuple):
    """One streamed answer; times in milliseconds."""

    first_ms: float
    gaps_ms: list[float]
    prompt_tokens: int
    tokens: int
    prefill_tps: float | None
    decode_tps: float | None
    extra: dict[str, Any]


def stream(address: tuple[str, int], key: str, path: str, body: Any, limit: float,
           read: Callable[[str], tuple[int, dict[str, Any] | None] | None]) -> Answer:  # fmt: skip
    """Ask for an answer and take the time of every piece of it.

    `read` gives the tokens in a line and, with the last one, the server's own figures (None for other lines).
    Raises Unknown if nothing comes for `limit` seconds, or the answer ends early.
    """
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=limit)) as connection:
        try:
            began = time.perf_counter()
            connection.request("POST", path, json.dumps(body), _headers(key))
            answer = connection.getresponse()
            if answer.status != 200:
                raise Unknown(f"{path}: {answer.status} {answer.read(200).decode('utf-8', 'replace')}")
            first, last, tokens, gaps = 0.0, 0.0, 0, []
            while raw := answer.readline():
                now = time.perf_counter()
                piece = read(raw.decode("utf-8", "replace").strip())
                if piece is None:
                    continue
                count, figures = piece
                if count and not tokens:
                    first = (now - began) * 1000
                elif count:
                    # Tokens that came together (half of a letter is held back) share the time.
                    gaps += [(now - last) * 1000 / count] * count
                if count:
                    tokens, last = tokens + count, now
                if figures is not None:
                    if not tokens:
                        raise Unknown("the answer has no token")
                    return Answer(
                        first, gaps, figures["prompt"], tokens, figures["prefill"], figures["decode"], figures
                    )
        except socket.timeout:  # noqa: UP041  not TimeoutError in Python 3.9
            raise Unknown(f"the answer stopped: nothing came for {limit:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unknown(f"the connection broke: {error or type(error).__name__}") from None
    raise Unknown("the answer ended before its end was told")


def read_event(line: str) -> tuple[int, dict[str, Any] | None] | None:
    """A line of llama-server's event stream, for `stream`. Raises Unknown if it tells an error."""
    if line.startswith("error:"):
        raise Unknown(f"llama-server: {line[:200]}")
    if not line.startswith("data: {"):
        return None
    event = json.loads(line[6:])
    if "error" in event:
        raise Unknown(f"llama-server: {str(event['error'])[:200]}")
    count = len(event.get("tokens") or []) or (1 if event.get("content") else 0)
    if not event.get("stop"):
        return count, None
    told = event.get("timings") or {}
    return 0, {
        "prompt": event.get("tokens_evaluated", 0), "prefill": told.get("prompt_per_second"),
        "decode": told.get("predicted_per_second"),
    }  # fmt: skip


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def quantiles(values: Sequence[float]) -> dict[str, Any]:
    """`Quantiles` of the document."""
    shares = (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))
    return {"count": len(values), **{name: round(quantile(values, share), 3) for name, share in shares}}


def latency_of(split: tuple[int, int], answers: Sequence[Answer]) -> dict[str, Any]:
    """`Latency` of the document. Raises Unknown if no answer had two tokens."""
    gaps = [gap for answer in answers for gap in answer.gaps_ms]
    if not gaps:
        raise Unknown("the answers are too short to tell the time between tokens")

    def middle(values: list[float | None]) -> float | None:
        had = [value for value in values if value is not None]
        return round(quantile(had, 0.5), 3) if had else None

    return {
        "threads": split[0],
        "threads_batch": split[1],
        "prompt_tokens": answers[0].prompt_tokens,
        "answer_tokens": max(answer.tokens for answer in answers),
        "first_token": quantiles([answer.first_ms for answer in answers]),
        "inter_token": quantiles(gaps),
        "prefill_tps": middle([answer.prefill_tps for answer in answers]),
        "decode_tps": middle([answer.decode_tps for answer in answers]),
    }


def _prompt(words: Sequence[int], length: int, turn: int) -> list[int]:
    """`length` tokens of the text, begun elsewhere at each turn so that no answer repeats another."""
    begin = turn * 7 % len(words)
    return [words[(begin + place) % len(words)] for place in range(length)]


def ask(server: Server, split: tuple[int, int], options: argparse.Namespace, screen: Screen) -> dict[str, Any]:
    """Streamed answers from a running server. Raises Unknown."""
    words = fetch((HOST, server.port), "/tokenize", {"content": TEXT}, server.key, options.limit)["tokens"]
    answers = []
    for turn in range(options.requests + 1):
        # The first is a short one that nobody counts: it touches what only a first answer has to touch.
        length, predict = (options.prompt_tokens or 16, max(options.gen_tokens, 2)) if turn else (8, 2)
        body = {
            "prompt": _prompt(words, length, turn), "n_predict": predict, "stream": True, "ignore_eos": True,
            "cache_prompt": False, "return_tokens": True, "temperature": 0,
        }  # fmt: skip
        answer = stream((HOST, server.port), server.key, "/completion", body, options.limit, read_event)
        screen.step(f"answers with {split[0]}/{split[1]} threads", turn, options.requests, "answers")
        if turn:
            answers.append(answer)
    return latency_of(split, answers)


def embed(server: Server, options: argparse.Namespace, screen: Screen) -> dict[str, Any]:
    """`Embeddings` of the document: one text a request, for a second at least. Raises Unknown."""
    words = fetch((HOST, server.port), "/tokenize", {"content": TEXT}, server.key, options.limit)["tokens"]
    tokens = min(64, options.context)
    count, began = 0, 0.0
    while count < 4 or time.perf_counter() - began < options.embedding_seconds:
        body = {"content": _prompt(words, tokens, count)}
        vectors = fetch((HOST, server.port), "/embedding", body, server.key, options.limit)
        if not vectors:
            raise Unknown("/embedding: the answer is empty")
        # The first one is not counted.
        count, began = (count + 1, began) if began else (0, time.perf_counter())
        screen.step("embeddings", count, None, "texts")
    return {"per_second": round(count / (time.perf_counter() - began), 3), "tokens": tokens, "count": count}


def peak_bytes(pid: int) -> int:
    """The most resident memory that a process had. Raises Unknown where the kernel does not tell."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise Unknown(f"/proc/{pid}/status has no VmHWM")
    return int(match[1]) * 1024


def resident_share(path: Path) -> float:
    """Share of a file's pages that are in the page cache. Raises Unknown."""
    if _LIBC is None:
        raise Unknown("only Linux tells which pages of a file are in memory")
    page, size = mmap.PAGESIZE, path.stat().st_size
    pages = -(-size // page)
    flags = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file:
        # Private and writable, since ctypes takes no address of what cannot be written to; nothing is written.
        data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
    place = ctypes.c_char.from_buffer(data)
    failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(size), flags)
    number = ctypes.get_errno()
    del place
    data.close()
    if failed:
        raise Unknown(f"mincore: {os.strerror(number)}")
    return sum(flag & 1 for flag in bytes(flags)) / pages


def drop_from_cache(path: Path) -> None:
    """Make the next read of a file come from the disk; needs no rights. Raises Unknown if the file stays in memory."""
    if not hasattr(os, "posix_fadvise"):
        raise Unknown("this system has no posix_fadvise")
    with path.open("rb") as file:
        # Pages that are not written to the disk yet cannot be dropped.
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    share = resident_share(path)
    if share > 0.02:
        why = "another program has it open, it lies in memory (tmpfs), or it is another user's"
        raise Unknown(f"{share:.0%} of the file stayed in the page cache: {why}")


def measure_server(tool: Path, model: Path, options: argparse.Namespace, variants: set[str],
                   absent: dict[str, str], screen: Screen) -> dict[str, Any]:  # fmt: skip
    """`latency`, `load`, `memory` and `embeddings` of the document. What fails does not stop the rest."""
    wanted = set(options.measure)
    known = tell({}, "", lambda: output_of([str(tool), "--help"], min(options.limit, 60))) or ""
    latency: list[dict[str, Any]] = []
    peaks: list[int] = []
    warm: list[float] = []
    hung: list[str] = []
    load: dict[str, Any] = {"cold_s": None, "warm_s": None}

    def heard(line: str) -> None:
        if variant := variant_of(line):
            variants.add(variant)

    @contextlib.contextmanager
    def start(split: tuple[int, int], *, embeddings: bool = False) -> Iterator[Server]:
        def command(port: int) -> list[str]:
            return server_command(tool, model, port, split, options, known, embeddings=embeddings)

        if hung:
            raise Unknown(hung[0])
        try:
            with serving(command, options.limit, heard) as server:
                yield server
        except Hung as error:
            hung.append(str(error))
            raise

    cold = False
    if "load" in wanted:
        # True, or None with the reason why the start will not be a cold one.
        cold = tell(absent, "load.cold_s", lambda: drop_from_cache(model) or True)
    if wanted & {"latency", "load", "memory"}:
        # Without answers, one start is enough for the memory; a second one tells the load time once more.
        for number, split in enumerate(options.splits if "latency" in wanted else options.splits[:1]):
            name = f"latency.{split[0]}/{split[1]}" if "latency" in wanted else "memory.peak_bytes"
            screen.step(f"start llama-server with {split[0]}/{split[1]} threads")

            def once(split: tuple[int, int] = split, number: int = number, name: str = name) -> None:
                with start(split) as server:
                    if number == 0 and cold:
                        load["cold_s"] = round(server.seconds, 4)
                    elif number or "load" in wanted:
                        warm.append(server.seconds)
                    if "latency" in wanted:
                        found = tell(absent, name, lambda: ask(server, split, options, screen))
                        latency.extend([found] if found else [])
                    if peak := tell(absent, "memory.peak_bytes", lambda: peak_bytes(server.child.process.pid)):
                        peaks.append(peak)

            if tell(absent, name, lambda once=once: once() or True) is None and number == 0:
                for key in ("load.cold_s", "memory.peak_bytes"):
                    absent.setdefault(key, absent[name])
    if "load" in wanted and not warm and not (load["cold_s"] is None and cold):

        def again() -> None:
            with start(options.splits[0]) as server:
                warm.append(server.seconds)

        screen.step("start llama-server again")
        tell(absent, "load.warm_s", again)
    if warm:
        load["warm_s"] = round(quantile(warm, 0.5), 4)
    elif "load" in wanted:
        absent.setdefault("load.warm_s", absent.get("load.cold_s", "no second start was measured"))
    embeddings = None
    if "embeddings" in wanted:
        screen.step("embeddings")

        def embedded() -> dict[str, Any]:
            with start(options.splits[0], embeddings=True) as server:
                return embed(server, options, screen)

        embeddings = tell(absent, "embeddings", embedded)
    if peaks:
        absent.pop("memory.peak_bytes", None)
    memory = {
        "peak_bytes": max(peaks, default=None), "context": options.context, "type_k": options.type_k, "type_v": options.type_v,
    }  # fmt: skip
    return {
        "latency": latency, "load": load if "load" in wanted else None, "memory": memory if "memory" in wanted else None,
        "embeddings": embeddings,
    }  # fmt: skip


# --- ollama ----------------------------------------------------------------------------------------------------------


class Ollama(NamedTuple):
    """An endpoint, and the model that it is asked for."""

    host: str
    port: int
    model: str

    def call(self, path: str, body: Any = None, limit: float = 60) -> Any:
        """One request with a JSON answer. Raises Unknown."""
        try:
            return fetch((self.host, self.port), path, body, limit=limit)
        except Unknown as error:
            raise Unknown(f"ollama: {error}") from None


def ollama_at(url: str, model: str) -> Ollama:
    """The endpoint of `http://host:port`. Raises Refused."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port or 11434
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise Refused(EXIT_USAGE, f"--server {url}: write it as http://127.0.0.1:11434")
    return Ollama(parts.hostname, port, model)


def read_ollama(line: str) -> tuple[int, dict[str, Any] | None] | None:
    """A line of ollama's answer, for `stream`. Raises Unknown if it tells an error."""
    if not line:
        return None
    event = json.loads(line)
    if "error" in event:
        raise Unknown(f"ollama: {str(event['error'])[:200]}")
    count = 1 if event.get("response") else 0
    if not event.get("done"):
        return count, None

    def tps(count_key: str, time_key: str) -> float | None:
        nanoseconds = event.get(time_key)
        return event[count_key] / nanoseconds * 1e9 if nanoseconds and count_key in event else None

    return count, {
        "prompt": event.get("prompt_eval_count", 0), "prefill": tps("prompt_eval_count", "prompt_eval_duration"),
        "decode": tps("eval_count", "eval_duration"), "answer": event.get("eval_count", 0),
        "load_s": event["load_duration"] / 1e9 if "load_duration" in event else None,
    }  # fmt: skip


def ollama_model(server: Ollama, absent: dict[str, str], screen: Screen, limit: float) -> dict[str, Any]:
    """`Model` of the document: from the file, where this machine has it, else from what ollama says."""
    try:
        shown = server.call("/api/show", {"model": server.model}, limit)
    except (Unknown, ValueError) as error:
        raise Refused(EXIT_NETWORK, f"{error}; is ollama running, and was {server.model} pulled?") from None
    match = re.search(r"^FROM (/.+)$", shown.get("modelfile", ""), re.MULTILINE)
    # Not Path.is_file: it raises where a folder on the way is closed to this user, as ollama's is.
    if match and os.path.isfile(match[1]):  # noqa: PTH113
        blob = Path(match[1])
        try:
            found = model_of(blob, absent, screen, hashed=not blob.name.startswith("sha256-"))
            digest = found["sha256"] or blob.name.replace("sha256-", "")
            return {**found, "file": server.model, "sha256": digest}
        except Refused as error:
            reason = str(error)
    else:
        reason = "ollama's model file is not on this machine, or cannot be read here"
    info = shown.get("model_info") or {}
    absent.update({f"model.{name}": reason for name in
                   ("bytes", "sha256", "weight_bytes", "read_bytes", "kv_bytes_per_token", "vocabulary", "width", "types")})  # fmt: skip
    known = {"name": info.get("general.basename"), "architecture": info.get("general.architecture"),
             "parameters": info.get("general.parameter_count")}  # fmt: skip
    absent.update({f"model.{name}": "ollama does not say it" for name, value in known.items() if value is None})
    return {
        "file": server.model, "bytes": None, "sha256": None, **known, "types": {}, "weight_bytes": None,
        "read_bytes": None, "kv_bytes_per_token": None, "vocabulary": None, "width": None,
    }  # fmt: skip


def ollama_peak(server: Ollama) -> int:
    """Peak resident memory of the largest process that ollama runs here. Raises Unknown."""
    if server.host not in (HOST, "localhost", "::1"):
        raise Unknown("ollama is on another machine")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, Unknown):
            # The server is `ollama serve`; the model is in a child of it, `ollama runner ...`.
            if b"ollama" in (folder / "cmdline").read_bytes().split(b"\0")[0]:
                found.append(peak_bytes(int(folder.name)))
    if not found:
        raise Unknown("no process of ollama's can be seen on this machine")
    return max(found)


def measure_ollama(
    server: Ollama, options: argparse.Namespace, absent: dict[str, str], screen: Screen
) -> dict[str, Any]:
    """`speeds`, `latency`, `load`, `memory` and `embeddings` of the document, as ollama lets them be seen."""
    wanted, words = set(options.measure), TEXT.split()

    def generate(turn: int, tokens: int, predict: int, threads: int) -> Answer:
        # A number at the start keeps ollama from taking the prompt's beginning from its cache.
        count = max(1, round(tokens / 1.3))
        text = " ".join(
            [f"{turn}{secrets.randbelow(10**6)}", *(words[place % len(words)] for place in range(count - 1))]
        )
        body = {
            "model": server.model, "prompt": text, "raw": True, "stream": True, "keep_alive": "5m",
            "options": {"num_predict": predict, "num_ctx": options.context, "num_thread": threads, "temperature": 0, "seed": turn},
        }  # fmt: skip
        screen.step(f"ollama with {threads} threads", turn, None, "answers")
        return stream((server.host, server.port), "", "/api/generate", body, options.limit, read_ollama)

    def unloaded() -> float:
        server.call("/api/generate", {"model": server.model, "keep_alive": 0}, options.limit)
        seconds = generate(0, 8, 1, options.threads[0]).extra["load_s"]
        if seconds is None:
            raise Unknown("ollama does not say how long it loaded")
        return round(seconds, 4)

    load = None
    if "load" in wanted:
        load = {"cold_s": None, "warm_s": tell(absent, "load.warm_s", unloaded)}
        absent["load.cold_s"] = "ollama opens the file itself, so it cannot be dropped from the page cache first"
    speeds: list[dict[str, Any]] = []
    latency: list[dict[str, Any]] = []
    turn = 0
    for threads in options.threads if wanted & {"speed", "latency"} else ():
        for depth in options.depth:
            prompt, answers = max(options.prompt_tokens, depth, 16), []

            def some(prompt: int = prompt, threads: int = threads, answers: list[Answer] = answers) -> None:
                for repetition in range(options.repetitions + 1):
                    nonlocal turn
                    turn += 1
                    answer = generate(turn, prompt if repetition else 8, max(options.gen_tokens, 2), threads)
                    answers.extend([answer] if repetition else [])

            tell(absent, f"speeds.{threads}", some)
            if "speed" in wanted:
                speeds += _ollama_speeds(answers, threads)
            if answers and "latency" in wanted and depth == options.depth[0]:
                found = tell(
                    absent, f"latency.{threads}/{threads}", lambda t=threads, got=answers: latency_of((t, t), got)
                )
                latency.extend([found] if found else [])
    for name, rows in (("speeds", speeds), ("latency", latency)):
        if not rows:
            why = next((text for key, text in absent.items() if key.startswith("speeds.")), "ollama told no figures")
            absent.setdefault(name, why)

    def embedded() -> dict[str, Any]:
        text, count = " ".join(words[:48]), 0
        first = server.call("/api/embed", {"model": server.model, "input": text}, options.limit)
        began = time.perf_counter()
        while count < 4 or time.perf_counter() - began < options.embedding_seconds:
            server.call("/api/embed", {"model": server.model, "input": f"{count} {text}"}, options.limit)
            count += 1
        rate = round(count / (time.perf_counter() - began), 3)
        return {"per_second": rate, "tokens": first["prompt_eval_count"], "count": count}

    memory = None
    if "memory" in wanted:
        memory = {"peak_bytes": tell(absent, "memory.peak_bytes", lambda: ollama_peak(server)), "context": options.context,
                  "type_k": "f16", "type_v": "f16"}  # fmt: skip
    embeddings = tell(absent, "embeddings", embedded) if "embeddings" in wanted else None
    return {"speeds": speeds, "latency": latency, "load": load, "memory": memory, "embeddings": embeddings}


def _ollama_speeds(answers: Sequence[Answer], threads: int) -> Iterator[dict[str, Any]]:
    """Prefill and decode as ollama reckons them itself; decoding began after the whole prompt."""
    for what in ("prefill", "decode"):
        samples = [value for answer in answers if (value := getattr(answer, f"{what}_tps")) is not None]
        if not samples:
            continue
        mean, spread = statistics.mean(samples), statistics.stdev(samples) if len(samples) > 1 else 0.0
        prompt = answers[0].prompt_tokens
        yield {
            "what": what, "tokens": prompt if what == "prefill" else answers[0].extra["answer"],
            "depth": 0 if what == "prefill" else prompt, "threads": threads, "mean_tps": round(mean, 3),
            "stddev_tps": round(spread, 3), "samples_tps": [round(sample, 3) for sample in samples],
        }  # fmt: skip


# --- One run at a time -----------------------------------------------------------------------------------------------


def lock_path() -> Path:
    """The one place of this machine's lock."""
    shared = Path("/run/lock")
    return (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / "pi_bench.lock"


@contextlib.contextmanager
def alone(screen: Screen, *, wait: bool) -> Iterator[None]:
    """Hold the machine's lock; the kernel gives it back however this process ends. Raises Refused."""
    path = lock_path()
    try:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
    except OSError as error:
        screen.say(
            f"{path}: cannot be opened ({error.strerror}), so nothing keeps a second measurement away", "warning"
        )
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise Refused(
                    EXIT_RESOURCE, "another measurement is running on this machine, and each would slow the other; "
                    "give --wait to begin when it has ended",
                ) from None  # fmt: skip
            screen.say("another measurement is running on this machine; waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --- The document, its gates, and how it is shown --------------------------------------------------------------------


def gates_of(document: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """`gates` of the document. The fastest decode at the smallest depth, the peak memory, and the smallest median of
    the times to the first token are held against the limits.
    """
    decode = [(-speed["depth"], speed["mean_tps"]) for speed in document["speeds"] if speed["what"] == "decode"]
    fastest = max(decode)[1] if decode else max(
        (row["decode_tps"] for row in document["latency"] if row["decode_tps"] is not None), default=None
    )  # fmt: skip
    peak = (document["memory"] or {}).get("peak_bytes")
    first = min((row["first_token"]["p50_ms"] for row in document["latency"]), default=None)
    found = []
    for name, limit, measured, sign in (
        ("min-tps", options.min_tps, fastest, 1), ("max-rss", options.max_rss, peak, -1),
        ("max-ttft-ms", options.max_ttft_ms, first, -1),
    ):  # fmt: skip
        if limit is not None:
            passed = None if measured is None else sign * measured >= sign * limit
            found.append({"name": name, "limit": limit, "measured": measured, "passed": passed})
    return found


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a measurement, for the table and for CSV."""
    rows: list[dict[str, Any]] = []

    def add(what: str, value: float | None, unit: str, **more: Any) -> None:
        if value is not None:
            rows.append({"what": what, "value": value, "unit": unit, **more})

    for speed in document["speeds"]:
        add(speed["what"], speed["mean_tps"], "tokens/s", stddev=speed["stddev_tps"], count=len(speed["samples_tps"]),
            **{name: speed[name] for name in ("tokens", "depth", "threads")})  # fmt: skip
    for row in document["latency"]:
        about = {"threads": row["threads"], "threads_batch": row["threads_batch"]}
        for name, tokens in (("first_token", row["prompt_tokens"]), ("inter_token", row["answer_tokens"])):
            for share in ("p50", "p95", "p99"):
                add(f"{name}_{share}", row[name][f"{share}_ms"], "ms", count=row[name]["count"], tokens=tokens, **about)
        for name in ("prefill", "decode"):
            add(f"server_{name}", row[f"{name}_tps"], "tokens/s", **about)
    for name in ("cold", "warm"):
        add(f"load_{name}", (document["load"] or {}).get(f"{name}_s"), "s")
    if document["memory"]:
        add("peak_memory", document["memory"]["peak_bytes"], "bytes", tokens=document["memory"]["context"])
    if document["embeddings"]:
        found = document["embeddings"]
        add("embeddings", found["per_second"], "1/s", tokens=found["tokens"], count=found["count"])
    return rows


_COLUMNS = ("what", "threads", "threads_batch", "tokens", "depth", "value", "unit", "stddev", "count")


def csv_of(document: dict[str, Any]) -> str:
    """One row a measurement, each with what tells whose it is."""
    whose = {
        "id": document["id"], "started": document["started"], "board": document["board"]["model"] or document["board"]["cpu"],
        "model": document["model"]["file"], "sha256": document["model"]["sha256"], "valid": document["valid"],
        "emulated": document["emulated"],
    }  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, [*whose, *_COLUMNS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**whose, **row} for row in rows_of(document))
    return text.getvalue()


def table_of(document: dict[str, Any]) -> str:
    """What a person reads."""
    board_, model, runtime = document["board"], document["model"], document["runtime"]
    lines = [
        f"board    {board_['model'] or board_['cpu'] or board_['architecture']}, {board_['cores']} cores, {board_['os'] or board_['kernel']}",
        f"model    {model['file']}, {(model['bytes'] or 0) / 1e6:.1f} MB",
        f"runtime  {runtime['kind']} {runtime['version'] or ''}" + (f", CPU variant {runtime['cpu_variant']}" if runtime["cpu_variant"] else ""),
        "",
    ]  # fmt: skip
    for row in rows_of(document):
        threads = str(row.get("threads", "")) + (f"/{row['threads_batch']}" if "threads_batch" in row else "")
        value = f"{row['value'] / 1e6:.1f} MB" if row["unit"] == "bytes" else f"{row['value']:.4g} {row['unit']}"
        if row.get("stddev") is not None and row["count"] > 1:
            value += f" ± {row['stddev']:.2g}"
        about = [f"{threads} threads" if threads else "", f"{row['tokens']} tokens" if row.get("tokens") else "",
                 f"after {row['depth']}" if row.get("depth") else ""]  # fmt: skip
        lines.append(f"{row['what']:<16}{value:<24}{', '.join(filter(None, about))}")
    lines += [
        "",
        *(
            f"not measured: {name}: {document['absent'][name]}"
            for name in sorted(document["absent"])
            if _is_measure(name)
        ),
    ]
    lines += [f"warning: {text}" for text in document["warnings"]]
    lines += [f"gate {gate['name']} {gate['limit']:g}: " + ("could not be measured" if gate["measured"] is None else
              f"{gate['measured']:g}, {'passed' if gate['passed'] else 'FAILED'}") for gate in document["gates"]]  # fmt: skip
    lines += [f"INVALID: {text}" for text in document["invalid"]]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip("\n") + "\n"


def _is_measure(name: str) -> bool:
    return name.partition(".")[0] in ("speeds", "latency", "load", "memory", "embeddings")


def write_file(path: Path, text: str) -> None:
    """Write beside, fsync, rename. Raises OSError; then nothing of it is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        # A device or a pipe cannot be replaced by a file.
        with path.open("w", encoding="utf-8") as target:
            target.write(text)
        return
    partial = path.parent / f".partial-{secrets.token_hex(4)}-{path.name}"
    try:
        with partial.open("w", encoding="utf-8") as target:
            target.write(text)
            target.flush()
            os.fsync(target.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def publish(document: dict[str, Any], options: argparse.Namespace) -> None:
    """Write what was asked for. Raises Refused, after the document went to stdout, if a file cannot be written."""
    # Names of files need not be UTF-8, and JSON must be.
    document = json.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
    text, failed = json.dumps(document, indent=2) + "\n", []
    for path, content in ((options.out, text), (options.csv, csv_of(document))):
        if path is not None:
            try:
                write_file(path, content)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                failed.append(f"{path}: {'the disk is full' if full else f'cannot be written ({error.strerror})'}")
    sys.stdout.write(text if options.json or failed else table_of(document))
    sys.stdout.flush()
    if failed:
        raise Refused(EXIT_RESOURCE, f"{'; '.join(failed)}. Nothing is lost: the document is what stdout got")


# --- A whole run -----------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, screen: Screen) -> dict[str, Any]:
    """The document. Raises Refused if the run cannot begin."""
    absent: dict[str, str] = {}
    ollama = ollama_at(options.server, options.ollama_model) if options.server else None
    if ollama:
        model = ollama_model(ollama, absent, screen, options.limit)
        bench = server = None
    else:
        model = model_of(options.model, absent, screen)
        if options.sha256 not in (None, model["sha256"]):
            raise Refused(
                EXIT_USAGE,
                f"{options.model}: this is another file than the one wanted; its sha256 is {model['sha256']}",
            )
        bench = tell(absent, "speeds", lambda: find_tool("llama-bench", options.llama_bin))
        server = tell(absent, "latency", lambda: find_tool("llama-server", options.llama_bin))
        if bench is None and server is None:
            raise Refused(EXIT_MISSING, f"{absent['speeds']}; install llama.cpp, or name its folder with --llama-bin")
    emulated = find_emulation()
    about = board(absent, emulated)
    warnings: list[str] = []
    earlier = tell({}, "", processor_seconds)
    if earlier:
        time.sleep(0.5)
        share = _others_share(earlier)
        if share > BUSY_SHARE:
            warnings.append(
                f"other programs used {share:.0%} of the processors before the run: the figures will be too low"
            )
    began, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before, during, earlier, own = state(absent, "before", began), [], tell({}, "", processor_seconds), own_seconds()
    parts: dict[str, Any] = {"speeds": [], "latency": [], "load": None, "memory": None, "embeddings": None}
    variants: set[str] = set()
    with sampling(absent, began, during):
        if ollama:
            parts = measure_ollama(ollama, options, absent, screen)
        else:
            if bench and "speed" in options.measure:
                parts["speeds"] = measure_speed(bench, options.model, options, variants, absent, screen)
            if server:
                parts |= measure_server(server, options.model, options, variants, absent, screen)
    after = state(absent, "after", began)
    if earlier and (share := _others_share(earlier, own_seconds() - own)) > BUSY_SHARE and not ollama:
        warnings.append(f"other programs used {share:.0%} of the processors during the run: the figures are too low")
    if ollama:
        runtime: dict[str, Any] = {
            "kind": "ollama",
            "version": None,
            "commit": None,
            "build": None,
            "cpu_variant": None,
            "path": None,
        }
        runtime["version"] = tell(absent, "runtime.version", lambda: ollama.call("/api/version", limit=10)["version"])
        absent.update(
            {f"runtime.{name}": "ollama does not say it" for name in ("commit", "build", "cpu_variant", "path")}
        )
        if ollama.host not in (HOST, "localhost", "::1"):
            warnings.append(f"ollama runs on {ollama.host}: the board described here is the one that asked")
    else:
        runtime = runtime_of(bench, server, variants, options.limit, absent)
    for part, name in (("speed", "speeds"), *((name, name) for name in MEASURES[1:])):
        if part not in options.measure:
            absent[name] = "not asked for"
        elif server is None and not ollama and part != "speed":
            absent.setdefault(name, absent["latency"])
        elif name == "latency" and not parts["latency"]:
            absent.setdefault(
                name, next((text for key, text in absent.items() if key.startswith("latency.")), "no answer")
            )
    invalid, more, words = verdict(before, during, after, emulated)
    if before["throttled"] is None and "Raspberry Pi" in (about["model"] or ""):
        more.append(f"whether the board throttled is not known: {absent.get('before.throttled')}")
    if about["governor"] == "powersave":
        more.append("the governor is powersave: the clock stays at its lowest, and so do the figures")
    document = {
        "version": VERSION, "id": str(uuid.uuid4()), "started": started, "seconds": round(time.monotonic() - began, 3),
        "tool": TOOL, "valid": not invalid, "invalid": invalid, "warnings": [*warnings, *more], "board": about,
        "before": before, "during": during, "after": after, "throttling": words, "runtime": runtime, "model": model,
        **parts, "gates": [], "absent": absent, "emulated": emulated,
    }  # fmt: skip
    document["gates"] = gates_of(document, options)
    return document


# --- The command line ------------------------------------------------------------------------------------------------


def bytes_of(text: str) -> int:
    """Bytes of `1500000`, `900MB` or `1.5 GiB`. Raises ValueError."""
    match = re.fullmatch(r"([\d.]+)\s*(?:([kMGT])(i?)B?)?B?", text.strip())
    if match is None:
        raise ValueError(text)
    base = 1024 if match[3] else 1000
    return round(float(match[1]) * base ** (" kMGT".index(match[2]) if match[2] else 0))


def _numbers(least: int) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        found = [int(part) for part in text.split(",")]
        if min(found) < least:
            raise ValueError(text)
        return found

    parse.__name__ = f"list of whole numbers from {least}"
    return parse


def _splits(text: str) -> list[tuple[int, int]]:
    found = [tuple(map(int, part.split("/"))) for part in text.split(",")]
    if any(len(pair) != 2 or min(pair) < 1 for pair in found):
        raise ValueError(text)
    return [(pair[0], pair[1]) for pair in found]


def _measures(text: str) -> list[str]:
    found = text.split(",")
    if set(found) - set(MEASURES):
        raise ValueError(text)
    return found


def _from(least: float, kind: type = int) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not least <= value < math.inf:
            raise ValueError(text)
        return value

    parse.__name__ = f"number from {least:g}"
    return parse


_splits.__name__, _measures.__name__, bytes_of.__name__ = "list of T/TB", "list of measures", "size"


_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--model", {"type": Path, "metavar": "FILE", "help": "GGUF file to measure with llama.cpp"}),
    ("--sha256", {"metavar": "HEX", "help": "refuse a model file with another hash"}),
    ("--llama-bin", {"type": Path, "metavar": "DIR", "help": "folder of llama-bench and llama-server (default: PATH, then /usr/lib/pillm*)"}),
    ("--server", {"metavar": "URL", "help": "measure an ollama endpoint instead, as http://127.0.0.1:11434"}),
    ("--ollama-model", {"metavar": "NAME", "help": "the model's name there, as smollm2:135m"}),
    ("--measure", {"type": _measures, "default": list(MEASURES), "metavar": "LIST", "help": f"what to measure (default: {','.join(MEASURES)})"}),
    ("--threads", {"type": _numbers(1), "metavar": "N,N", "help": "thread counts for llama-bench (default: all cores, and half of them where there are 4 or more)"}),
    ("--splits", {"type": _splits, "metavar": "T/TB,T/TB", "help": "llama-server's threads for decode/prefill (default: all cores for both; with 4 or more cores also half/all)"}),
    ("--prompt-tokens", {"type": _from(0), "default": 256, "metavar": "N", "help": "length of the prompt; 0 skips prefill in llama-bench (default: 256)"}),
    ("--gen-tokens", {"type": _from(0), "default": 64, "metavar": "N", "help": "length of the answer; 0 skips decode in llama-bench (default: 64)"}),
    ("--depth", {"type": _numbers(0), "default": [0], "metavar": "N,N", "help": "tokens in the context before a test of llama-bench begins (default: 0)"}),
    ("--repetitions", {"type": _from(1), "default": 3, "metavar": "N", "help": "runs of each test of llama-bench (default: 3)"}),
    ("--requests", {"type": _from(1), "default": 3, "metavar": "N", "help": "streamed answers for each split (default: 3)"}),
    ("--context", {"type": _from(16), "default": 2048, "metavar": "N", "help": "context of the server in tokens (default: 2048)"}),
    ("--type-k", {"default": "f16", "metavar": "TYPE", "help": "type of the cached keys (default: f16)"}),
    ("--type-v", {"default": "f16", "metavar": "TYPE", "help": "type of the cached values (default: f16)"}),
    ("--quick", {"action": "store_true", "help": "a short run: at most 64 and 16 tokens, 2 repetitions, 2 answers"}),
    ("--min-tps", {"type": _from(0, float), "metavar": "N", "help": "gate: least tokens/s of decode"}),
    ("--max-rss", {"type": bytes_of, "metavar": "SIZE", "help": "gate: most resident memory of the server, as 900MB or 1.5GiB"}),
    ("--max-ttft-ms", {"type": _from(0, float), "metavar": "N", "help": "gate: most milliseconds (median) to the first token"}),
    ("--limit", {"type": _from(1, float), "default": 1800.0, "metavar": "SECONDS",
                 "help": "end a program that says nothing for this long (default: 1800; the start of a server: 300 at most)"}),
    ("--out", {"type": Path, "metavar": "FILE", "help": "write the document (JSON) here"}),
    ("--csv", {"type": Path, "metavar": "FILE", "help": "write one row a measurement here"}),
    ("--json", {"action": "store_true", "help": "print the document, and not the table"}),
    ("--wait", {"action": "store_true", "help": "wait while another measurement runs, and do not refuse"}),
    ("--progress", {"choices": ("plain", "json", "none"), "default": "plain", "help": "how progress is told on stderr (default: plain)"}),
    ("--dry-run", {"action": "store_true", "help": "say what would run and about how long, and run nothing"}),
    ("--self-test", {"action": "store_true", "help": "check this file's readers on samples, the board's files, and the tools"}),
    ("--version", {"action": "version", "version": TOOL}),
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """All options."""
    about, _, codes = (__doc__ or "").partition("Exit codes:")
    made = argparse.ArgumentParser(
        prog="pi_bench.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=about.partition("\n")[0],
        epilog=f"Exit codes:{codes}",
    )
    for name, about_it in _OPTIONS:
        made.add_argument(name, **about_it)
    return made


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options with defaults that depend on the machine. Ends the program with exit code 2 if they are wrong."""
    made = parser()
    options = made.parse_args(argv)
    options.embedding_seconds = 1.0
    if options.self_test:
        return options
    if bool(options.model) == bool(options.server):
        made.error("give --model FILE, or --server URL with --ollama-model NAME")
    if bool(options.server) != bool(options.ollama_model):
        made.error("--server and --ollama-model go together")
    if options.quick:
        options.prompt_tokens, options.gen_tokens = min(options.prompt_tokens, 64), min(options.gen_tokens, 16)
        options.repetitions, options.requests = min(options.repetitions, 2), min(options.requests, 2)
        options.embedding_seconds = 0.3
    if not options.prompt_tokens and not options.gen_tokens:
        made.error("nothing to measure: --prompt-tokens and --gen-tokens are both 0")
    count = cores()
    options.threads = options.threads or ([count // 2, count] if count >= 4 else [count])
    options.splits = options.splits or ([(count // 2, count), (count, count)] if count >= 4 else [(count, count)])
    # With ollama a prompt of its own makes the depth; llama-bench takes the context that it needs.
    deep = max(options.depth) if options.server else 0
    options.context = max(options.context, options.prompt_tokens + max(options.gen_tokens, 2) + deep + 16)
    return options


def dry_run(options: argparse.Namespace) -> str:
    """What would run, and about how long: from the file's header and a rough guess of this machine's memory. Raises Refused."""
    if options.server:
        server = ollama_at(options.server, options.ollama_model)
        return f"would ask ollama at {server.host}:{server.port} for answers of {server.model}; how long is not known before\n"
    absent: dict[str, str] = {}
    model = model_of(options.model, absent, Screen("none"), hashed=False)
    bench = tell(absent, "bench", lambda: find_tool("llama-bench", options.llama_bin))
    server = tell(absent, "server", lambda: find_tool("llama-server", options.llama_bin))
    name = tell({}, "", lambda: _device_tree("model").decode("utf-8", "replace")) or ""
    # Published rows: about 3 and 10 GB/s reach the cores of a Pi 4 and a Pi 5; prefill of such models is 3 to 11 times decode.
    bandwidth, ratio = next(
        (pair for word, pair in (("Pi 5", (10e9, 8)), ("Pi 4", (3.2e9, 3)), ("Zero 2", (1.5e9, 3))) if word in name),
        (8e9, 6),
    )
    decode = max(model["read_bytes"], 1) / bandwidth
    prefill = decode / ratio
    seconds = (model["bytes"] or 0) / 3e8
    lines = []
    if bench and "speed" in options.measure:
        lines.append(" ".join(bench_command(bench, options.model, options)))
        each = prefill * options.prompt_tokens + decode * options.gen_tokens
        deep = sum(prefill * depth for depth in options.depth)
        seconds += len(options.threads) * (len(options.depth) * each * (options.repetitions + 1) + 2 * deep)
    if server and set(options.measure) - {"speed"}:
        lines += [" ".join(server_command(server, options.model, 0, split, options, "")) for split in options.splits]
        seconds += 2 + len(options.splits) * options.requests * (
            prefill * max(options.prompt_tokens, 16) + decode * max(options.gen_tokens, 2)
        )
        seconds += (len(options.splits) + 2) * (1 + (model["bytes"] or 0) / 5e8)
    lines += [f"not measured: {text}" for text in absent.values()]
    return "\n".join([*lines, f"about {max(1, round(seconds))} s (a guess from the size of the file, not a measurement)"]) + "\n"  # fmt: skip


def _sample_gguf() -> bytes:
    """A whole GGUF file of one tensor, for the self-test."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    header += text("general.architecture") + struct.pack("<I", _STRING) + text("llama")
    header += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", _ARRAY, _STRING, 2) + text("a") + text("bc")
    header += text("blk.0.attn_k.weight") + struct.pack("<IQQIQ", 2, 32, 4, 8, 0)
    return header + b"\0" * (-len(header) % 32) + b"\1" * (4 * 34)


def _cuts_are_found(whole: bytes) -> bool:
    """Whether every shorter beginning of a file is told from a whole one."""
    for size in range(len(whole)):
        try:
            read_header(Path("sample.gguf"), whole[:size], size)
            return False
        except Refused:
            pass
    return True


def _stream_of(lines: Sequence[str]) -> list[tuple[int, dict[str, Any] | None] | None]:
    return [read_event(line) for line in lines]


_CHECKS: tuple[tuple[str, Callable[[], Any], Any], ...] = (
    ("throttling bits", lambda: throttling_words(throttled_bits("throttled=0x50005\n")),
     ["under-voltage now", "throttled now", "under-voltage has occurred", "throttling has occurred"]),
    ("PMIC", lambda: pmic_watts("   3V3_A current(2)=0.5A\n   3V3_V volt(10)=3.3V\n   EXT5V_V volt(24)=5.1V\n"), 1.65),
    ("arm64 features", lambda: features_of(struct.pack("=QQQQ", 16, 1 << 1 | 1 << 20, 26, 1 << 13)), ["asimd", "asimddp", "i8mm"]),
    ("GGUF header", lambda: facts(*read_header(Path("sample.gguf"), _sample_gguf(), len(_sample_gguf()))),
     {"name": None, "architecture": "llama", "parameters": 128, "types": {"Q8_0": 136}, "weight_bytes": 136, "read_bytes": 136,
      "kv_bytes_per_token": 8, "vocabulary": 2, "width": 0}),
    ("cut GGUF files", lambda: _cuts_are_found(_sample_gguf()), True),
    ("version", lambda: version_of("version: 0.5.0-dev (build 7, commit 0c1e57098)\n"), {"version": "0.5.0-dev", "commit": "0c1e57098", "build": 7}),
    ("older version", lambda: version_of("version: 4321 (abc1234)\n"), {"version": "4321", "commit": "abc1234", "build": 4321}),
    ("CPU variant", lambda: variant_of("load_backend: loaded CPU backend from /usr/lib/x y/libggml-cpu-armv8.2_2.so"), "armv8.2_2"),
    ("event stream", lambda: _stream_of([": ping", 'data: {"content": "a", "tokens": [1, 2]}',
     'data: {"stop": true, "tokens_evaluated": 3, "timings": {"prompt_per_second": 5.0}}']),
     [None, (2, None), (0, {"prompt": 3, "prefill": 5.0, "decode": None})]),
    ("ollama's stream", lambda: read_ollama('{"done": true, "eval_count": 8, "eval_duration": 2000000000}'),
     (0, {"prompt": 0, "prefill": None, "decode": 4.0, "answer": 8, "load_s": None})),
    ("quantiles", lambda: quantiles([4.0, 1.0, 2.0, 3.0]), {"count": 4, "p50_ms": 2.5, "p95_ms": 3.85, "p99_ms": 3.97}),
    ("sizes", lambda: [bytes_of(text) for text in ("900MB", "1.5GiB", "7")], [900_000_000, 1_610_612_736, 7]),
)  # fmt: skip


def self_test(options: argparse.Namespace) -> int:
    """Print what works; returns the exit code."""
    lines, code = [], 0
    for name, check, wanted in _CHECKS:
        try:
            found = check()
        except Exception as error:  # a self-test must tell of any fault
            found = error
        lines.append(f"ok    {name}" if found == wanted else f"FAIL  {name}: {found!r} instead of {wanted!r}")
        code = code if found == wanted else EXIT_FAILED
    absent: dict[str, str] = {}
    emulated = find_emulation()
    seen = {f"board.{name}": value for name, value in board(absent, emulated).items()}
    seen.update({f"before.{name}": value for name, value in state(absent, "before", time.monotonic()).items()})
    for name, value in {**seen, "emulated": emulated}.items():
        lines.append(f"null  {name}: {absent[name]}" if name in absent else f"ok    {name}: {value}")
    for name in ("llama-bench", "llama-server"):
        try:
            tool = find_tool(name, options.llama_bin)
            lines.append(f"ok    {tool}: {version_of(output_of([str(tool), '--version'], 60))['version']}")
        except Unknown as error:
            lines.append(f"FAIL  {error}")
            code = code or EXIT_MISSING
    sys.stdout.write("\n".join(lines) + "\n")
    return code


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parsed(argv)
    screen = Screen(options.progress)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        if options.self_test:
            return self_test(options)
        if options.dry_run:
            sys.stdout.write(dry_run(options))
            return 0
        with alone(screen, wait=options.wait):
            document = measure(options, screen)
        publish(document, options)
    except Refused as error:
        screen.say(str(error), "error")
        return error.code
    except KeyboardInterrupt:
        screen.say("stopped; nothing was written", "error")
        return EXIT_STOPPED
    except BrokenPipeError:
        # Who read stdout went away; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    if not rows_of(document):
        screen.say("nothing could be measured; the reasons are in the document's `absent`", "error")
        return EXIT_FAILED
    return EXIT_FAILED if any(not gate["passed"] for gate in document["gates"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
