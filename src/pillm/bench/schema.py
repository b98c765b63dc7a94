"""The JSON Schema of the document that `pi_bench.py` writes, from the types that read it.

python -m pillm.bench.schema > src/pillm/bench/pi_bench.schema.json
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from pillm.history import document
from pillm.history.document import VERSION, Run

ID = f"urn:pillm:schema:pi-bench:{VERSION}"


def schema() -> dict[str, Any]:
    """The schema. It only grows within a version: fields that a reader does not know are allowed."""
    (top,), parts = msgspec.json.schema_components([Run], ref_template="#/$defs/{name}")
    described = _descriptions()
    for name, part in parts.items():
        for field, about in part.get("properties", {}).items():
            if (text := described.get((name, field))) and "$ref" not in about:
                about["description"] = text
    # A reader may take a document of its own version only; `version` says which that is.
    parts["Run"]["properties"]["version"]["const"] = VERSION
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": f"pi_bench run, version {VERSION}",
        "description": inspect.cleandoc(document.__doc__ or ""),
        **top,
        "$defs": parts,
    }


def _descriptions() -> dict[tuple[str, str], str]:
    """The text below each field of the module's structs, by struct and field."""
    return dict(_described(ast.parse(inspect.getsource(document))))


def _described(tree: ast.Module) -> Iterator[tuple[tuple[str, str], str]]:
    for kind in tree.body:
        if not isinstance(kind, ast.ClassDef):
            continue
        for field, below in zip(kind.body, kind.body[1:], strict=False):
            said = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(said, str):
                yield (kind.name, field.target.id), inspect.cleandoc(said)


def text() -> str:
    """The schema as the file has it."""
    return msgspec.json.format(msgspec.json.encode(schema(), order="sorted"), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
