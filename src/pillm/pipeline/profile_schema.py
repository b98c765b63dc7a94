"""The JSON Schema of profiles, out of the stages' options models: what editors complete and check with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pillm.core.options import ByHand, marks
from pillm.pipeline.profile import VERSION
from pillm.pipeline.stages import STAGES, Stage

FILE = "profile.schema.json"


def schema(table: Mapping[str, Stage] = STAGES) -> dict[str, Any]:
    """The schema of a profile over a stage table (JSON Schema 2020-12)."""
    sections = {name: _section(stage) for name, stage in table.items()}
    by_uses = [
        {"if": {"properties": {"uses": {"const": name}}, "required": ["uses"]}, "then": {"$ref": f"#/$defs/{name}"}}
        for name in table
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A profile of pillm",
        "type": "object",
        "additionalProperties": False,
        "required": ["profile", "stages"],
        "properties": {
            "profile": {"const": VERSION, "description": "Version of the form of profiles"},
            "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$", "description": "Name of the run"},
            "description": {"type": "string", "description": "What the profile is for"},
            "stages": {
                "description": "Stages by id; the order they run in comes from what feeds what",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$"},
                # An id that is a stage's name is that stage, unless `uses` says otherwise.
                "properties": {
                    name: {
                        "if": {"required": ["uses"]},
                        "then": {"$ref": "#/$defs/any"},
                        "else": {"$ref": f"#/$defs/{name}"},
                    }
                    for name in table
                },
                "additionalProperties": {"$ref": "#/$defs/any", "required": ["uses"]},
            },
        },
        "$defs": {
            **sections,
            "any": {
                "type": "object",
                "properties": {"uses": {"enum": list(table), "description": "The stage, where the id is not its name"}},
                "allOf": by_uses,
            },
        },
    }


def text(table: Mapping[str, Stage] = STAGES) -> str:
    """The schema as it is shipped."""
    return json.dumps(schema(table), indent=2, ensure_ascii=False) + "\n"


def _section(stage: Stage) -> dict[str, Any]:
    model = stage.options.model_json_schema()
    if "$defs" in model:
        raise AssertionError(f"the options of {stage.name} hold other models; their definitions need a place")
    left_out = {"out", *marks(stage.options, ByHand)}
    properties = {name: _plain(field) for name, field in model["properties"].items() if name not in left_out}
    properties["uses"] = {"const": stage.name}
    return {
        "type": "object",
        "description": f"{stage.summary}. Outputs: {', '.join(stage.outputs)}",
        "additionalProperties": False,
        "required": [name for name in model.get("required", []) if name != "out"],
        "properties": properties,
    }


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """A field without what editors show and nobody needs: titles and pydantic's format of paths."""
    if isinstance(field, dict):
        return {name: _plain(value) for name, value in field.items() if name not in ("title", "format")}
    if isinstance(field, list):
        return [_plain(item) for item in field]
    return field
