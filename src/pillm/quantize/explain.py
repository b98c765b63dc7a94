"""`pillm quantize --explain FILE`: which tensor has which type, why, what it costs, and what llama.cpp would have done.

The reasons stand in the plan that a fitted file is published with. Of a file without one, the types are told, and what
llama.cpp's recipe of the file's own name gives.
"""

from __future__ import annotations

from pillm.core.errors import UsageError
from pillm.core.events import Emit, Output
from pillm.core.stage import Result
from pillm.llamacpp.gguf_file import GgufFile, describe
from pillm.quantize.fitting import plan_file
from pillm.quantize.options import QuantizeOptions

METHOD, PLAN_HASH = "pillm.quantize.method", "pillm.quantize.plan_sha256"


def explain(options: QuantizeOptions, emit: Emit) -> Result:
    """A line for each tensor. Raises UsageError (not a whole GGUF file), ProfileError (a damaged plan)."""
    file = describe(options.model)
    beside = options.model.parent / plan_file.NAME
    plan = plan_file.read(options.plan or beside) if options.plan or beside.is_file() else None
    if plan and not _is_of(plan, file):
        if options.plan:
            raise UsageError(
                f"{options.plan}: is not the plan of {options.model}", "give the one that was published with it"
            )
        plan = None
    for line in _lines(file, plan):
        emit(Output(line))
    return Result({}, {"tensors": len(file.tensors), "bytes": file.bytes})


def _is_of(plan: plan_file.Plan, file: GgufFile) -> bool:
    found = {tensor.name: tensor.type for tensor in file.tensors}
    return all(found.get(name) == kind for name, kind in plan.types.items())


def _lines(file: GgufFile, plan: plan_file.Plan | None) -> list[str]:
    method = file.metadata.get(METHOD)
    lines = [f"{file.path}: {file.bytes:,} bytes, {file.bits_per_weight:.2f} bits a weight, {file.architecture}"]
    if method:
        lines.append(f"fitted by pillm, method {method}")
    if plan is None:
        lines.append("there is no plan.yaml of this file beside it, so only its types are known")
    else:
        if plan.predicted is not None:
            against = f"; {plan.stock}: {plan.predicted_stock:.4f}" if plan.predicted_stock is not None else ""
            lines.append(f"predicted mean KL {plan.predicted:.4f}{against}")
        lines.append("kl: predicted share of the divergence; a step's bytes and kl are what it would change")
    lines.append(
        f"{'tensor':32} {'type':7} {'bytes':>11} {'kl':>9} {plan.stock if plan else '':8} why not smaller / larger"
    )
    for tensor in file.tensors:
        choice = plan.tensors.get(tensor.name) if plan else None
        if choice is None:
            why = "stays as it is" if len(tensor.shape) < 2 else ""
            lines.append(f"{tensor.name:32} {tensor.type:7} {tensor.bytes:11,} {'':9} {'':8} {why}".rstrip())
            continue
        steps = [_step(step) for step in (choice.down, choice.up) if step]
        kl = f"{choice.kl:9.2e}" if choice.kl is not None else ""
        lines.append(
            f"{tensor.name:32} {tensor.type:7} {tensor.bytes:11,} {kl:9} {choice.stock:8} {' / '.join(steps)}".rstrip()
        )
    return lines


def _step(step: plan_file.Step) -> str:
    return f"{step.type} {step.bytes:+,} {step.kl:+.1e}"
