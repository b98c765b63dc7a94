"""Numbers as people read them: amounts with units, durations, figures."""

from __future__ import annotations

_BYTES = ("B", "bytes")


def amount(value: float, unit: str) -> str:
    """A number of things with its unit: bytes in powers of 1000, the rest with separators."""
    if unit in _BYTES:
        for name in ("B", "kB", "MB"):
            if value < 1000:
                return f"{value:.0f} {name}" if name == "B" else f"{value:.1f} {name}"
            value /= 1000
        return f"{value:.2f} GB"
    number = f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    return f"{number} {unit}".rstrip()


def share(done: float, total: float | None, unit: str) -> str:
    """How much of how much: `12 of 40 steps`, `1.2 MB of 98.4 MB`."""
    if total is None:
        return amount(done, unit)
    return f"{amount(done, unit if unit in _BYTES else '')} of {amount(total, unit)}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `4.2 s`, `3 min 12 s`, `1 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def figure(value: object) -> str:
    """A metric's value, short enough to read."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
