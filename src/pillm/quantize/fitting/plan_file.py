"""The plan of a mix as YAML: which tensor gets which type, what that costs, and what llama.cpp would have done.

    pillm-plan: 1
    model: SmolLM2 135M
    stock: Q4_K_M
    tensors:
      token_embd.weight: {type: Q5_1, bytes: 21233664, kl: 3.1e-03, stock: Q8_0, down: {type: Q5_0, bytes: -1769472, kl: 9.0e-04}, up: ...}

Only `type` is needed to make a file from a plan; a person may write one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.errors import ProfileError, UsageError
from pillm.core.findings import Finding
from pillm.core.yaml_lines import Document, dotted
from pillm.devices.formats import BLOCKS, FLOATS
from pillm.llamacpp.gguf_file import GgufFile
from pillm.quantize.fitting.allocation import Mix
from pillm.quantize.fitting.costs import Table

VERSION = 1
NAME = "plan.yaml"


class Step(msgspec.Struct, frozen=True):
    """What another type of the tensor would change: bytes, and nats a token of predicted KL."""

    type: str
    bytes: int
    kl: float


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor's type. `down` is the next smaller type that is worth it, `up` the next larger one."""

    type: str
    bytes: int = 0
    kl: float | None = None
    stock: str = ""
    down: Step | None = None
    up: Step | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole mix. `stock` is the recipe it is held against, `predicted` both files' predicted mean KL."""

    model: str = ""
    method: str = "mix"
    stock: str = ""
    predicted: float | None = None
    predicted_stock: float | None = None
    tensors: dict[str, Choice]

    @property
    def types(self) -> Mix:
        """Type by tensor."""
        return {name: choice.type for name, choice in self.tensors.items()}


def plan(
    table: Table, mix: Mapping[str, str], *, model: str, method: str, stock: str, stock_types: Mapping[str, str],
    predicted: float, predicted_stock: float | None,
) -> Plan:  # fmt: skip
    """The plan of a mix, with the steps beside each choice."""
    tensors = {}
    for name, cells in table.items():
        own = cells[mix[name]]
        smaller = [(k, c) for k, c in cells.items() if c.bytes < own.bytes]
        larger = [(k, c) for k, c in cells.items() if c.bytes > own.bytes and c.cost < own.cost]
        # The steps that lose least for a byte, and gain most for one.
        down = min(smaller, key=lambda item: (item[1].cost - own.cost) / (own.bytes - item[1].bytes), default=None)
        up = max(larger, key=lambda item: (own.cost - item[1].cost) / (item[1].bytes - own.bytes), default=None)
        down, up = (Step(s[0], s[1].bytes - own.bytes, s[1].cost - own.cost) if s else None for s in (down, up))
        tensors[name] = Choice(mix[name], own.bytes, own.cost, stock_types.get(name, ""), down, up)
    return Plan(
        model=model, method=method, stock=stock, predicted=predicted, predicted_stock=predicted_stock, tensors=tensors
    )


def to_yaml(made: Plan) -> str:
    """The plan's text; equal plans give equal text."""
    lines = [
        f"pillm-plan: {VERSION}",
        f"model: {_word(made.model)}",
        f"method: {made.method}",
        f"stock: {made.stock or '~'}",
    ]
    lines += [f"predicted: {made.predicted:.6g}"] if made.predicted is not None else []
    lines += [f"predicted_stock: {made.predicted_stock:.6g}"] if made.predicted_stock is not None else []
    lines.append("tensors:")
    for name, choice in made.tensors.items():
        parts = [f"type: {choice.type}"]
        parts += [f"bytes: {choice.bytes}", f"kl: {choice.kl:.4e}"] if choice.kl is not None else []
        parts += [f"stock: {choice.stock}"] if choice.stock else []
        for word, step in (("down", choice.down), ("up", choice.up)):
            if step:
                parts.append(f"{word}: {{type: {step.type}, bytes: {step.bytes}, kl: {step.kl:.4e}}}")
        lines.append(f"  {name}: {{{', '.join(parts)}}}")
    return "\n".join(lines) + "\n"


def read(path: Path) -> Plan:
    """Raises UsageError if it cannot be read, ProfileError with every fault and its line."""
    try:
        document = Document(str(path), path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "make a plan with --plan-out") from error
    findings = list(document.findings)
    data: Any = document.data

    def wrong(place: tuple[str | int, ...], message: str, hint: str) -> None:
        findings.append(_finding(path, document, place, message, hint))

    if not findings and (not isinstance(data, dict) or data.get("pillm-plan") != VERSION or not data.get("tensors")):
        wrong((), "not a plan: needs `pillm-plan: 1` and `tensors`", "make one with --plan-out")
    elif not findings:
        for name, choice in data["tensors"].items():
            kind = choice.get("type") if isinstance(choice, dict) else choice
            if kind not in BLOCKS:
                wrong(("tensors", name), f"{kind!r} is no type", "write one of " + ", ".join(sorted(BLOCKS)))
            elif not isinstance(choice, dict):
                data["tensors"][name] = {"type": kind}
    if not findings:
        try:
            return msgspec.convert({k: v for k, v in data.items() if v is not None}, Plan)
        except msgspec.ValidationError as error:
            wrong((), str(error), "make one with --plan-out")
    raise ProfileError(f"{path}: {len(findings)} faults in the plan", findings, "docs/quantization.md shows a plan")


def check(path: Path, made: Plan, source: GgufFile, known: Mapping[str, object]) -> None:
    """Raises ProfileError unless the plan names exactly the tensors that can be chosen for, in types their shapes allow."""
    document = Document(str(path), path.read_bytes())
    shapes = {tensor.name: tensor for tensor in source.tensors}
    findings = []

    def wrong(name: str, message: str, hint: str) -> None:
        findings.append(_finding(path, document, ("tensors", name), message, hint))

    for name, choice in made.tensors.items():
        tensor = shapes.get(name)
        if tensor is None:
            wrong(name, f"{source.path.name} has no such tensor", "take the plan of this model")
        elif name not in known:
            wrong(name, "this tensor keeps its type: norms, biases and small tables are not quantized", "leave it out")
        elif tensor.shape[0] % BLOCKS[choice.type][0]:
            wrong(
                name,
                f"rows of {tensor.shape[0]} weights are no whole blocks of {choice.type} ({BLOCKS[choice.type][0]})",
                "take one of " + ", ".join(k for k in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "F16") if tensor.shape[0] % BLOCKS[k][0] == 0),
            )  # fmt: skip
        elif choice.type in FLOATS and choice.type != tensor.type:
            wrong(
                name,
                f"the tensor is {tensor.type} in the source and cannot become {choice.type}",
                f"write {tensor.type}",
            )
    for name in known:
        if name not in made.tensors:
            findings.append(_finding(path, document, ("tensors",), f"no type for {name}", "add it"))
    if findings:
        raise ProfileError(f"{path}: {len(findings)} faults in the plan", findings, "make one with --plan-out")


def _finding(path: Path, document: Document, place: tuple[str | int, ...], message: str, hint: str) -> Finding:
    line = document.line(place)
    return Finding(file=str(path), line=line, path=dotted(place), code="plan", message=message, hint=hint)


def _word(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
