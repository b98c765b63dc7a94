"""What the choices of an option mean, and what each of them changes: for forms, beside the model's own words.

A model's description may say it (`auto: bfloat16 where the hardware has it`); a table of the domain may say more.
Where a face shows choices, it asks here and names no option itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from pillm.pipeline.problems import literals

if TYPE_CHECKING:
    from pillm.pipeline.stages import Stage


class Choice(msgspec.Struct, frozen=True):
    """One value of an option, what it means, and the other options it sets, each with its value and the reason."""

    value: str
    about: str = ""
    changes: dict[str, tuple[str, str]] = {}


def choices(stage: Stage, field: str) -> list[Choice]:
    """The known values of an option; empty if it has none. Options with tables of their own may take further values."""
    info = stage.options.model_fields[field]
    if table := _TABLES.get((stage.name, field)):
        return table()
    names = literals(info.annotation)
    said = meanings(info.description or "", names)
    return [Choice(name, said.get(name) or _bits(name)) for name in names]


def meanings(description: str, names: list[str]) -> dict[str, str]:
    """What a description says of single choices, as `name: what it means`, up to the next choice or a semicolon."""
    if not (real := [name for name in names if name]):
        return {}
    # Longest first, so that `on` is not found where `on-policy` stands.
    word = "|".join(map(re.escape, sorted(real, key=len, reverse=True)))
    starts = list(re.finditer(rf"(?:^|(?<=[\s(]))({word}): ", description))
    ends = [*(match.start() for match in starts[1:]), len(description)][: len(starts)]
    return {match[1]: _clause(description[match.end() : end]) for match, end in zip(starts, ends, strict=True)}


def _clause(text: str) -> str:
    """Text up to a semicolon, or to a bracket that was opened before it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth < 0 or (letter == ";" and not depth):
            return text[:place].strip(" ,.")
    return text.strip(" ,.")


def _bits(name: str) -> str:
    """Bits a weight of a GGUF type; of a mixture (`Q4_K_M`), of the type that most of its tensors have."""
    from pillm.devices.formats import BLOCKS, bits

    if name.upper() in BLOCKS:
        return f"{bits(name.upper()):g} bits a weight"
    base, _, size = name.rpartition("_")
    if base in BLOCKS and size in ("S", "M", "L"):
        return f"a mixture, mostly {bits(base):g} bits a weight"
    return ""


def _presets() -> list[Choice]:
    from pillm.train.presets import PRESETS

    return [
        Choice(""),
        *(
            Choice(
                preset.name,
                preset.hardware,
                {name: (str(value), preset.reasons.get(name, "")) for name, value in preset.values.items()},
            )
            for preset in PRESETS.values()
        ),
    ]


def _boards() -> list[Choice]:
    from pillm.devices.boards import all_devices

    return [Choice("here", "this machine"), *(Choice(d.name, d.title) for d in all_devices().values())]


# By stage and option: what their rooms know of their values.
_TABLES: dict[tuple[str, str], Callable[[], list[Choice]]] = {
    ("train", "preset"): _presets,
    ("plan", "device"): _boards,
}


def takes_board(stage: Stage) -> list[str]:
    """The options of a stage whose values are boards."""
    return [field for (name, field), table in _TABLES.items() if name == stage.name and table is _boards]
