"""Data that comes with the tool: `dataset:home-assistant/train` names a file inside the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pillm.core.errors import UsageError

PREFIX = "dataset:"


def root() -> Path:
    """The folder of shipped datasets."""
    return Path(str(resources.files("pillm"))) / "data" / "shipped"


def shown(reference: Path | str) -> str:
    """What a result says of the data it was made from: a shipped dataset's reference, or the file's name alone.

    A path would make the same result differ from one run's folder to the next.
    """
    return str(reference) if str(reference).startswith(PREFIX) else Path(reference).name


def data_path(reference: Path | str) -> Path:
    """The file that a path or a `dataset:NAME/SPLIT` reference means. Raises UsageError with what there is."""
    text = str(reference)
    if not text.startswith(PREFIX):
        return Path(reference)
    path = root() / (text.removeprefix(PREFIX) + ".jsonl")
    if not path.is_file():
        known = ", ".join(
            sorted(PREFIX + p.relative_to(root()).with_suffix("").as_posix() for p in root().rglob("*.jsonl"))
        )
        raise UsageError(f"{text}: there is no such dataset", f"these come with pillm: {known or 'none'}")
    return path
