"""The machine we run on, as the kernel tells it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name; the architecture where the system does not tell one."""
    fields = (line.partition(":") for line in read_fact("/proc/cpuinfo").splitlines())
    known = {name.strip(): value.strip() for name, _, value in fields}
    return known.get("model name") or known.get("Model") or platform.processor() or platform.machine()


def read_fact(path: str) -> str:
    """The text of a file of the kernel's, without its ending NUL or newline; empty where there is none."""
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
