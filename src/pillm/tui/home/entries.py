"""What the home screen lists: each entry with its words and where it leads. Plain functions; files are read here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from pillm.core import shipped
from pillm.core.amounts import amount
from pillm.core.errors import PillmError
from pillm.pipeline.stages import COMMANDS, Stage

Kind = Literal["profile", "command", "dataset", "board", "run"]

_DATA = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_DEEPEST, _MOST, _MOST_FOLDERS = 2, 200, 500
_NOT_DATA = ("runs", "node_modules", "build", "dist")


class Entry(msgspec.Struct, frozen=True):
    """Something to open: its key for what opens it, its name, and some words."""

    kind: Kind
    key: str
    name: str
    about: str = ""


def commands(table: Mapping[str, Stage] = COMMANDS) -> list[Entry]:
    """The stages and tools in the table's order."""
    return [Entry("command", name, " ".join(stage.words), stage.summary) for name, stage in table.items()]


def profiles() -> list[Entry]:
    """The profiles that can be run by name."""
    from pillm.pipeline.profiles import known

    return [Entry("profile", str(item.path), item.name, item.description) for item in known()]


def datasets(here: Path = Path()) -> list[Entry]:
    """Datasets that come with the tool, then files nearby: in this folder and not far below it."""
    root = shipped.root()
    found = [
        Entry("dataset", name := shipped.PREFIX + path.relative_to(root).with_suffix("").as_posix(), name, _size(path))
        for path in sorted(root.rglob("*.jsonl"))
    ]
    return found + [Entry("dataset", str(path), str(path), _size(path)) for path in _nearby(here)]


def boards() -> list[Entry]:
    """The boards that are known. Raises ProfileError for a user's own that is broken."""
    from pillm.devices.boards import all_devices

    return [
        Entry("board", device.name, device.name, f"{device.title}: {device.soc.title}, {device.cores} cores")
        for device in all_devices().values()
    ]


def taking(kind: Kind, table: Mapping[str, Stage] = COMMANDS) -> list[tuple[Stage, str]]:
    """The commands that can begin with a dataset or a board, each with the option that takes it."""
    from pillm.core.options import InputFile, marks
    from pillm.pipeline.choices import takes_board

    found = []
    for stage in table.values():
        if kind == "board":
            found += [(stage, field) for field in takes_board(stage)]
            continue
        # A file of dialogues, by what the option says of itself; of several, the first.
        inputs = (
            (name, stage.options.model_fields[name].description or "") for name in marks(stage.options, InputFile)
        )
        first = next((name for name, about in inputs if shipped.PREFIX in about or "JSONL" in about.upper()), None)
        if first:
            found.append((stage, first))
    return found


def _nearby(here: Path) -> Iterable[Path]:
    found: list[Path] = []
    folders, left = [here], _MOST_FOLDERS
    for _ in range(_DEEPEST + 1):
        below: list[Path] = []
        for folder in folders[:left]:
            try:
                names = sorted(folder.iterdir())
            except OSError:
                continue
            for path in names:
                # A folder that may be listed but not entered tells nothing of what is in it.
                with contextlib.suppress(OSError):
                    if path.name.endswith(_DATA) and path.is_file():
                        found.append(path)
                    elif not path.name.startswith(".") and path.name not in _NOT_DATA and path.is_dir():
                        below.append(path)
            if len(found) > _MOST:
                return found[:_MOST]
        left -= len(folders[:left])
        folders = below
    return found


def _size(path: Path) -> str:
    try:
        return amount(path.stat().st_size, "B")
    except OSError:
        return ""


def facts(name: str) -> list[str]:
    """What is known of a board, in lines."""
    from pillm.devices import load

    try:
        device = load(name)
    except PillmError as error:
        return [str(error), error.hint]
    gib = 2**30
    return [
        f"{device.title} ({device.name})",
        f"processor  {device.soc.title}: {device.cores} cores {device.soc.core}",
        f"memory     {device.ram_bytes / gib:.1f} GiB, of which a model may take {device.room_bytes / gib:.1f} GiB",
        f"bandwidth  {device.soc.bandwidth(device.cores) / 1e9:.1f} GB/s read",
        *([f"notes      {device.notes}"] if device.notes else []),
        *([f"profile    {device.source}"] if device.source else []),
    ]
