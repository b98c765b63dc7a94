"""The machine that pillm runs on, as a board: for planning on the board itself, and for checking what is predicted of memory."""

from __future__ import annotations

from pillm.core.host import cores, cpu_name, read_fact
from pillm.devices.boards import Device, Soc, shipped

NAME = "here"

# The kernel's words for what llama.cpp asks of a processor.
_FEATURES = {
    "avx2": "avx2", "avx512f": "avx512", "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm",
}  # fmt: skip


def features() -> tuple[str, ...]:
    """What this processor can do, by the names of `repack`."""
    flags: set[str] = set()
    for line in read_fact("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags |= set(value.split())
    return tuple(name for flag, name in _FEATURES.items() if flag in flags)


def here() -> Device:
    """The profile of the board that this is, or one of a machine whose speed nobody published.

    What is in use now is reserved, so that only what is free counts as room.
    """
    memory = _memory()
    total = memory.get("MemTotal", 0)
    used = total - memory.get("MemAvailable", total)
    name = read_fact("/proc/device-tree/model")
    known = [device for device in shipped().values() if device.is_board(name)]
    if known:
        # The firmware keeps some memory for itself, so the kernel's total is below what is on the board.
        board = min(known, key=lambda device: abs(device.ram_bytes - total))
        return board.model_copy(update={"name": NAME, "ram_bytes": total, "reserved_bytes": used})
    soc = Soc(
        title=cpu_name(),
        core=cpu_name(),
        cores=cores(),
        features=features(),
        decode_threads=cores(),
        read_gbps={1: 10.0},
        dot_gweights={"other": 5.0},
        repack_factor=2.0,
        thread_loss=0.0,
        overlap=1.0,
        spread=4.0,
        notes="a guess: nothing was published for this machine",
    )
    return Device(
        name=NAME, family=NAME, title=f"this machine ({cpu_name()})", soc_name="", soc=soc, ram_bytes=total,
        reserved_bytes=used, notes="the speed of this machine is a guess: run pillm bench on it",
    )  # fmt: skip


def _memory() -> dict[str, int]:
    """Bytes by the names of /proc/meminfo."""
    found = {}
    for line in read_fact("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if value.strip().endswith("kB"):
            found[name] = int(value.split()[0]) * 1024
    return found
