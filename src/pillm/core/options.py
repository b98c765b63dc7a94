"""The base of every stage's options, and the marks its fields can carry.

From one frozen pydantic model come the flags, the YAML section, the command builder and the form.
Marks say what a field means to the engine:

    data: Annotated[Path, InputFile()]       hashed by content; in a profile may be ${stage.output}
    data: Annotated[tuple[Path, ...], InputFile()]  the same for each of several
    fix: Annotated[Path | None, OutputFile()]  written by a command that is no stage
    student: Annotated[str, ModelReference()]  hashed by what the reference points to
    chat_template: Annotated[str, NameOrFile()]  hashed by content where a file has that name
    threads: Annotated[int, NoEffect()]      changes speed only, so it is not part of the cache key
    host: Annotated[str, ByHand()]           for the command line alone; profiles do not have it
    method: Annotated[Literal["lora", "dora"], Shorthands()]  --dora is short for --method=dora
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class InputFile:
    """The field is a file or folder that the stage reads (or `dataset:NAME/SPLIT`, see core.shipped)."""


@dataclass(frozen=True)
class OutputFile:
    """The field is a file or folder that the command writes, beside or instead of a stage's outputs."""


@dataclass(frozen=True)
class ModelReference:
    """The field is a model reference: `hf:org/name@rev`, `pkg:distribution`, a folder, a .gguf, a URL."""


@dataclass(frozen=True)
class NameOrFile:
    """The field is a word with a meaning of its own, or else a file that the stage reads, or a function in one: FILE.py:NAME."""


@dataclass(frozen=True)
class NoEffect:
    """The field has no effect on what the stage's outputs hold."""


@dataclass(frozen=True)
class ByHand:
    """The field makes the command do something else than a step of a run, so that profiles do not have it."""


@dataclass(frozen=True)
class Shorthands:
    """Each choice of the field is a flag, too: `--dora` for `--method=dora`."""


def unit(name: str) -> dict[str, Any]:
    """The unit of a field, for `json_schema_extra`: shown in help, form and schema."""
    return {"unit": name}


class Options(BaseModel):
    """Options of a command. A command that only looks at things has no folder for results."""

    # No infinities or NaN: a profile's JSON Schema and the JSON of a manifest know neither.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def preset_values(self) -> Mapping[str, object]:
        """Values that one of the options sets for others, where these are not given."""
        return {}

    def given_against_preset(self) -> set[str]:
        """Options that say something even where their value is the default: they were given, and a preset has another.

        None is the same as not given.
        """
        return {
            name for name in self.preset_values() if name in self.model_fields_set and getattr(self, name) is not None
        }


class StageOptions(Options):
    """Options of a stage. `out` is the folder that the stage's outputs are published in."""

    out: Annotated[Path, NoEffect()] = Field(Path("out"), description="Folder for the results")


def split_function(value: str) -> tuple[str, str]:
    """FILE.py:NAME as file and name; the name is empty where there is none."""
    file, colon, name = value.rpartition(":")
    return (file, name) if colon and file.endswith(".py") and name.isidentifier() else (value, "")


def marks(model: type[Options], kind: type) -> list[str]:
    """Names of the fields that carry a mark of this kind, in order."""
    return [
        name for name, field in model.model_fields.items() if any(isinstance(mark, kind) for mark in field.metadata)
    ]
