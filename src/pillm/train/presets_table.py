"""`pillm presets`: the table of presets for people, as a document, and as the part of docs/training.md made from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pillm.core.events import Emit, Output
from pillm.core.stage import Result
from pillm.train.presets import PRESETS, Preset, Tested
from pillm.train.presets_options import PresetsOptions

COLUMNS = ("base", "double_quantization", "dtype", "rank", "alpha", "learning_rate", "micro_tokens", "batch_tokens",
           "gradient_checkpointing")  # fmt: skip


def run(options: PresetsOptions, emit: Emit) -> Result:
    """Print the table; with a name, that preset and the reason of each value. Writes nothing."""
    chosen = [PRESETS[options.preset]] if options.preset else list(PRESETS.values())
    for line in one(chosen[0]) if options.preset else everything():
        emit(Output(line))
    document = {"presets": msgspec.to_builtins(chosen)}
    return Result({}, {"presets": len(chosen)}, document)


def everything() -> Iterator[str]:
    """All presets, one a line, then what was tested."""
    head = ("preset", "hardware", "capability", *COLUMNS)
    yield from _aligned([head, *((p.name, p.hardware, _capability(p), *_values(p)) for p in PRESETS.values())])
    yield ""
    yield "Tested (a training of some steps; no row: not tested on such hardware yet)"
    yield from _aligned([_TESTED, *((p.name, *_measured(row)) for p in PRESETS.values() for row in p.tested)])
    yield ""
    yield "pillm presets --preset NAME says why; pillm train --preset NAME uses one, and options that are given win."


def one(preset: Preset) -> Iterator[str]:
    """A preset with its reasons."""
    yield f"{preset.name}: {preset.hardware}"
    if preset.capability:
        yield f"compute capability {_capability(preset)} or above, {preset.memory:g} GiB"
    for name, value in preset.values.items():
        yield f"  {name} = {_text(value)}: {preset.reasons[name]}"
    for row in preset.tested:
        yield "  tested: " + ", ".join(f"{k} {v}" for k, v in zip(_TESTED[1:], _measured(row), strict=True))
    if not preset.tested:
        yield "  tested: not on such hardware yet"


def markdown() -> str:
    """The tables of docs/training.md, which a test compares with the file."""
    head = ("preset", "hardware", "capability", *(f"`{name}`" for name in COLUMNS))
    lines = _markdown([head, *((f"`{p.name}`", p.hardware, _capability(p), *_values(p)) for p in PRESETS.values())])
    rows = [(f"`{p.name}`", *_measured(row)) for p in PRESETS.values() for row in p.tested]
    untested = ", ".join(f"`{p.name}`" for p in PRESETS.values() if not p.tested)
    lines += ["", *_markdown([_TESTED, *rows])]
    if untested:
        lines += ["", f"Not measured on hardware of their kind yet: {untested}."]
    return "\n".join(lines) + "\n"


_TESTED = ("preset", "device", "date", "model", "arithmetic", "tokens/s", "peak memory GiB")


def _measured(row: Tested) -> tuple[str, ...]:
    return (row.device, row.date, row.model, row.dtype, f"{row.tokens_per_second:.0f}", f"{row.peak_memory:.2f}")


def _capability(preset: Preset) -> str:
    return ".".join(map(str, preset.capability)) if preset.capability else "none"


def _values(preset: Preset) -> tuple[str, ...]:
    return tuple(_text(preset.values[name]) for name in COLUMNS)


def _text(value: object) -> str:
    return (
        {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in body)]
