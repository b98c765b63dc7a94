"""The machine that a measurement is taken on, from the kernel's own files; empty where they say nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pillm.bench.report import Host


def host() -> Host:
    """The machine now. Call it before the measurement: the load is part of it."""
    import psutil

    return Host(
        cpu=_cpu() or platform.processor() or platform.machine(),
        cores=cores(),
        memory_bytes=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        load_before=round(os.getloadavg()[0], 2),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        board=_read("/proc/device-tree/model"),
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    fields = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
    known = {name.strip(): value.strip() for name, _, value in fields}
    return known.get("model name") or known.get("Model") or ""


def _read(path: str) -> str:
    try:
        # The device tree ends its strings with a NUL.
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
