"""The machine that a measurement is taken on, from the kernel's own files; empty where they say nothing."""

from __future__ import annotations

import os
import platform

from pillm.bench.report import Host
from pillm.core.host import cores, cpu_name, read_fact


def host() -> Host:
    """The machine now. Call it before the measurement: the load is part of it."""
    import psutil

    return Host(
        cpu=cpu_name(),
        cores=cores(),
        memory_bytes=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        load_before=round(os.getloadavg()[0], 2),
        governor=read_fact("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        board=read_fact("/proc/device-tree/model"),
    )
