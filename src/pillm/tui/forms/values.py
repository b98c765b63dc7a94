"""What stands in a form, judged as a whole by the options model, and written as a command or as YAML.

A form's values are a mapping of those options that were filled in: text, a list of text, true or false, or None for
"nothing at all". What is not in it has its default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import ValidationError

from pillm.core.command import Command
from pillm.core.errors import PillmError, UsageError
from pillm.core.options import ByHand, Options, marks
from pillm.core.yaml_lines import Document
from pillm.pipeline.pipeline_ops import build, flag, options_from
from pillm.pipeline.problems import problems
from pillm.pipeline.stages import Stage

Values = Mapping[str, Any]


class Checked(msgspec.Struct, frozen=True):
    """What the options model says of a form. `wrong` has messages by field; "" is for what lies between fields."""

    options: Any = None
    command: Command | None = None
    wrong: dict[str, str] = {}
    missing: frozenset[str] = frozenset()
    """Fields whose only fault is that they are empty as yet."""
    preset: Mapping[str, Any] = {}
    """What a preset sets for fields that are not given."""

    @property
    def summary(self) -> str:
        """In a line: what has to be done before the command is one."""
        if not self.wrong:
            return ""
        names = [flag(name) for name in self.wrong if name in self.missing]
        parts = [f"needed: {', '.join(names)}"] if names else []
        parts += [
            f"{flag(name)} {text}" if name else text for name, text in self.wrong.items() if name not in self.missing
        ]
        return "; ".join(parts)


def check(stage: Stage, values: Values) -> Checked:
    """Judge a form."""
    try:
        options = options_from(stage, given(values))
    except UsageError as error:
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            return Checked(wrong={"": error.message})
        wrong: dict[str, str] = {}
        missing = set()
        for item in problems(cause, stage.options):
            where = f"{item.element + 1}: " if item.element is not None else ""
            wrong[item.field] = "; ".join(filter(None, (wrong.get(item.field), where + item.message)))
            if item.missing:
                missing.add(item.field)
        return Checked(wrong=wrong, missing=frozenset(missing), preset=_preset(stage, values, wrong))
    except PillmError as error:
        return Checked(wrong={"": f"{error.message} {error.hint}".strip()})
    return Checked(options=options, command=build(stage, options), preset=options.preset_values())


def _preset(stage: Stage, values: Values, wrong: Mapping[str, str]) -> Mapping[str, Any]:
    """What a preset sets, also in a form that is not complete: out of the values that are right."""
    right = {name: value for name, value in given(values).items() if name not in wrong}
    return stage.options.model_construct(**right).preset_values()


def given(values: Values) -> dict[str, Any]:
    """Values as the command builder takes them: lists without their empty lines."""
    return {
        name: tuple(line for line in value if line.strip()) if isinstance(value, (list, tuple)) else value
        for name, value in values.items()
    }


def yaml_values(options: Options, values: Values) -> dict[str, Any]:
    """The options that were filled in, as plain data for a profile; without what no profile can have."""
    dumped = options.model_dump(mode="json")
    left_out = {"out", *marks(type(options), ByHand)}
    return {name: dumped[name] for name in type(options).model_fields if name in values and name not in left_out}


def from_yaml(section: Mapping[str, Any]) -> dict[str, Any]:
    """A form's values out of a section of a profile."""
    return {name: _typed(value) for name, value in section.items() if name != "uses"}


def _typed(value: Any) -> Any:
    if isinstance(value, (bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return repr(value) if isinstance(value, float) else str(value)


def yaml_text(value: Any, *, inside: bool = False) -> str:
    """A value as it stands behind a key of a profile: plain words where YAML reads them back as they are."""
    if isinstance(value, str):
        return value if _plain(value, inside) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(yaml_text(item, inside=True) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _plain(text: str, inside: bool) -> bool:
    """Whether YAML reads this text back as it stands, also before a comment; `inside` brackets, less does."""
    if not text or text != text.strip() or "\n" in text or " #" in text or (inside and set(text) & set(",[]{}")):
        return False
    document = Document("", f"[{text}]\n".encode() if inside else f"key: {text} # end\n".encode())
    return not document.findings and document.data == ([text] if inside else {"key": text})


def section(stage: Stage, options: Options, values: Values, step: str = "") -> str:
    """The YAML section of a stage, as it stands below `stages:` in a profile."""
    lines = [f"  {step or stage.name}:"]
    if step and step != stage.name:
        lines.append(f"    uses: {stage.name}")
    lines += [f"    {name}: {yaml_text(value)}" for name, value in yaml_values(options, values).items()]
    return "\n".join(lines if len(lines) > 1 else [f"{lines[0]} {{}}"]) + "\n"
