"""Where profiles are: in the project, in the user's configuration, in the package."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.errors import UsageError
from pillm.core.options import ByHand, InputFile, ModelReference, marks
from pillm.core.paths import expanded
from pillm.core.yaml_lines import Document, scalar
from pillm.pipeline import profile_schema
from pillm.pipeline.problems import bounds, did_you_mean, literals
from pillm.pipeline.profile import VERSION, Step, load

HERE = Path("profiles")
_SUFFIXES = (".yaml", ".yml")


class Known(msgspec.Struct, frozen=True):
    """A profile that can be run by its name."""

    name: str
    path: Path
    description: str


def folders() -> tuple[Path, ...]:
    """Where names are looked for, nearest first: `./profiles`, the user's configuration, the package."""
    base = os.environ.get("XDG_CONFIG_HOME")
    own = (Path(base) if base else expanded("~/.config")) / "pillm" / "profiles"
    return HERE, own, Path(str(resources.files("pillm"))) / "profiles"


def find(reference: str) -> Path:
    """The file of a profile that is given as a path or by its name. Raises UsageError with what there is."""
    path = expanded(reference)
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UsageError(f"{reference}: there is no such file", "see: pillm profile list")
    for folder in folders():
        for suffix in _SUFFIXES:
            if (folder / f"{reference}{suffix}").is_file():
                return folder / f"{reference}{suffix}"
    names = [item.name for item in known()]
    hint = f"profiles: {', '.join(names)}; write your own with: pillm profile new NAME"
    raise UsageError(f"{reference}: there is no such profile{did_you_mean(reference, names)}", hint)


def known() -> list[Known]:
    """Every profile that has a name here; a nearer one hides a farther one of the same name."""
    found: dict[str, Known] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.y*ml")):
            if path.suffix in _SUFFIXES and path.stem not in found:
                found[path.stem] = Known(path.stem, path, _description(path))
    return sorted(found.values(), key=lambda item: item.name)


def commented(name: str, base: Path, folder: Path) -> str:
    """A profile like `base` that shows every option: those that `base` sets, and the rest commented out.

    Paths are written relative to `folder`, where the text is to be put.
    """
    plan = load(base)
    lines = [
        f"# yaml-language-server: $schema={profile_schema.FILE}",
        "# Every option stands here, below a line that explains it. Those behind one # have the default that is shown.",
        f"profile: {VERSION}",
        f"name: {_yaml(name)}",
        f"description: {_yaml(plan.description)}",
        "stages:",
    ]
    for step in plan.steps:
        lines += ["", f"  ## {step.stage.summary}", f"  {step.id}:"]
        if step.id != step.stage.name:
            lines.append(f"    uses: {step.stage.name}")
        lines += [
            line
            for option in step.stage.options.model_fields
            if option not in {"out", *marks(step.stage.options, ByHand)}
            for line in _option(step, option, folder)
        ]
    return "\n".join(lines) + "\n"


def _option(step: Step, option: str, folder: Path) -> list[str]:
    field = step.stage.options.model_fields[option]
    words = [field.description or ""]
    if limits := bounds(field):
        words.append(f"[{limits}]")
    if choices := literals(field.annotation):
        words.append(f"[{', '.join(choices)}]")
    about = f"    ## {' '.join(words)}"
    if option in step.values:
        return [about, f"    {option}: {_yaml(_moved(step, option, folder))}"]
    return [about, f"    # {option}: {_yaml(field.get_default(call_default_factory=True))}"]


def _moved(step: Step, option: str, folder: Path) -> Any:
    value = step.values[option]
    files = {*marks(step.stage.options, InputFile), *marks(step.stage.options, ModelReference)}

    def moved(item: Any) -> Any:
        if option in files and isinstance(item, str) and "${" not in item and Path(item).exists():
            return os.path.relpath(item, folder)
        return item

    return [moved(item) for item in value] if isinstance(value, list) else moved(value)


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return value if value and scalar(value) == value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Path):
        return _yaml(str(value))
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _description(path: Path) -> str:
    try:
        data = Document(str(path), path.read_bytes()).data
    except OSError:
        return "(cannot be read)"
    text = data.get("description") if isinstance(data, dict) else None
    return str(text or "").strip()
