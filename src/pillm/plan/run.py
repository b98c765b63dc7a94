"""`pillm plan`: what fits on a board, how fast, in which quantization, with which settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from pillm.core.errors import PillmError, UsageError
from pillm.core.events import Emit, Log, Output
from pillm.core.stage import MetricValue, Result
from pillm.devices import Device, Measured, load, predict
from pillm.devices.boards import all_devices
from pillm.devices.formats import FLOATS, KvType
from pillm.devices.here import NAME as HERE
from pillm.devices.here import here
from pillm.devices.mixture import QUANTS, mixed
from pillm.devices.model import Model
from pillm.devices.published import rows
from pillm.plan.measured import measured
from pillm.plan.options import PlanOptions
from pillm.plan.report import Choice, Plan, boards, choice, megabytes, table
from pillm.plan.source import Source, source

DEFAULT_CONTEXT = 4096
USUAL = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_NL")
"""Quantizations that are compared where none is asked for."""
FAST_ENOUGH = 8.0
"""Tokens/s that people read along with: more bits are better than more speed beyond it."""


def run(options: PlanOptions, emit: Emit) -> Result:
    """Answer as text, and as one document. Writes nothing.

    Raises UsageError (no such board or model, more threads than cores, a quantized file asked for in another type),
    ProfileError (a board's own profile), MissingError and NetworkError (hub).
    """
    if options.boards:
        return _boards(emit)
    if not options.model:
        raise UsageError("which model?", "give a GGUF file, a folder with config.json, or hf:org/name")
    device = here() if options.device == HERE else load(options.device)
    for name, threads in (("--threads", options.threads), ("--threads-batch", options.threads_batch)):
        if threads and threads > device.cores:
            raise UsageError(
                f"{name} {threads}: {device.title} has {device.cores} cores",
                f"threads beyond the cores make it slower; give {device.cores} or less",
            )
    found = source(options.model, emit)
    notes = []
    context = _context(options, found.model, notes)
    runs = _runs(device, notes) if options.history else ()
    compared = [_best(device, model, context, options, runs) for model in _candidates(found, options)]
    chosen = _recommended(compared)
    if not any(item.fits for item in compared):
        notes.append(_too_small(device, found, context, options, runs))
    compared = [msgspec.structs.replace(item, recommended=item is chosen and item.fits) for item in compared]
    answer = _answer(device, found, context, options, runs, compared, notes)
    for line in _lines(answer):
        emit(Output(line))
    for note in answer.notes:
        emit(Log(note, "info" if answer.fits else "warning"))
    return Result({}, _metrics(answer), answer)


def _boards(emit: Emit) -> Result:
    devices = all_devices()
    listed = boards(devices, Counter(row.soc for row in rows() if not row.unexplained))
    for board in listed.boards:
        rest = f"{board.published_rows} published rows" if board.published_rows else "no published rows"
        line = f"{board.name:<14} {board.title:<28} {megabytes(board.room_bytes):>9} for a model  {rest}"
        emit(Output(f"{line}  {board.source}".rstrip()))
    return Result({}, {"boards": len(listed.boards)}, listed)


def _runs(device: Device, notes: list[str]) -> tuple[Measured, ...]:
    """What was measured on such boards; a history that cannot be read is no reason to plan nothing."""
    try:
        return measured(device)
    except PillmError as error:
        notes.append(f"planned without the history: {error.message}")
        return ()


def _context(options: PlanOptions, model: Model, notes: list[str]) -> int:
    """Tokens of a slot. The server does not go beyond what the model was trained for."""
    trained = model.shape.context_length
    asked = DEFAULT_CONTEXT if options.context is None else options.context
    if asked == 0:
        if not trained:
            raise UsageError("--context 0: the model does not say its own context", "give a number of tokens")
        return trained
    if trained and asked > trained:
        if options.context is not None:
            notes.append(f"the model was trained for {trained} tokens: planned with that instead of {asked}")
        return trained
    return asked


def _candidates(found: Source, options: PlanOptions) -> list[Model]:
    """The model in each type that is to be compared."""
    model = found.model
    if found.fixed:
        if options.quant and options.quant != model.quant:
            raise UsageError(
                f"{options.model}: is quantized already ({model.quant}), and cannot be planned as {options.quant}",
                "leave --quant out, or give the model's folder or its f16 file",
            )
        return [model]
    return [_as(model, quant) for quant in ((options.quant,) if options.quant else USUAL)]


def _as(model: Model, quant: str) -> Model:
    return msgspec.structs.replace(model, quant=quant, tensors=mixed(model.tensors, model.shape, quant))


def _settings(options: PlanOptions) -> Iterator[tuple[KvType, int]]:
    """What may be given up for memory, in this order: a large batch, then the cache's full precision."""
    types: tuple[KvType, ...] = (options.kv_type,) if options.kv_type else ("f16", "q8_0")
    batches = (options.ubatch,) if options.ubatch else (512, 128)
    for kind in types:
        for batch in batches:
            yield kind, batch


def _best(device: Device, model: Model, context: int, options: PlanOptions, runs: Sequence[Measured]) -> Choice:
    """The first settings with which the model fits; the first of all where it does not."""
    tried = []
    for kind, batch in _settings(options):
        prediction = predict(
            device, model, context, min(options.depth, context), threads=options.threads,
            threads_batch=options.threads_batch or options.threads, ubatch=batch, kv_type=kind, slots=options.slots, measured=runs,
        )  # fmt: skip
        tried.append(prediction)
        if prediction.fits:
            break
    return choice(model, tried[-1] if tried[-1].fits else tried[0])


def _recommended(compared: Sequence[Choice]) -> Choice:
    """The most bits that fit and are read along with; where none is fast enough, the fastest that fits.

    A type that weighs no less than one with more bits is never chosen. Where nothing fits, the smallest.
    """
    fitting = [item for item in compared if item.fits]
    if not fitting:
        return min(compared, key=lambda item: item.needed_bytes)
    fast = [item for item in fitting if item.decode_tps >= FAST_ENOUGH]
    if fast:
        return max(fast, key=lambda item: (item.bits_per_weight, item.prefill_tps))
    return max(fitting, key=lambda item: (item.decode_tps, item.prefill_tps))


def _too_small(device: Device, found: Source, context: int, options: PlanOptions, runs: Sequence[Measured]) -> str:
    """What would fit: a smaller quantization, a shorter context, or nothing."""
    model = found.model
    room = f"{device.title} has {megabytes(device.room_bytes)} for a model"
    if not found.fixed:
        for quant in reversed(QUANTS):
            item = _best(device, _as(model, quant), context, options, runs)
            if item.fits:
                largest = next(q for q in QUANTS if _best(device, _as(model, q), context, options, runs).fits)
                return f"it does not fit: {room}; the largest quantization that does is {largest}"
    # Rows that are no multiple of 256 make some types with fewer bits larger than others.
    made = [model] if found.fixed else [_as(model, quant) for quant in QUANTS]
    smallest = min(made, key=lambda item: item.weight_bytes)
    shorter = context // 2
    while shorter >= 256:
        item = _best(device, smallest, shorter, options, runs)
        if item.fits:
            return f"it does not fit: {room}; {smallest.quant} does with a context of {shorter} tokens"
        shorter //= 2
    least = _best(device, smallest, 256, options, runs)
    return (
        f"it does not fit: {room}; no quantization does (the smallest, {smallest.quant}, needs "
        f"{megabytes(least.needed_bytes)} with a context of 256 tokens)"
    )


def _answer(
    device: Device,
    found: Source,
    context: int,
    options: PlanOptions,
    runs: Sequence[Measured],
    compared: Sequence[Choice],
    notes: list[str],
) -> Plan:
    chosen = next((item for item in compared if item.recommended), None) or _recommended(compared)
    model = found.model if found.fixed else _as(found.model, chosen.quant)
    prediction = predict(device, model, context, options.depth, threads=options.threads, measured=runs)
    notes = [*notes, *_notes(device, model, chosen, prediction.note)]
    shape = model.shape
    return Plan(
        **{name: getattr(chosen, name) for name in Choice.__struct_fields__},
        label=prediction.label,
        model=model.name,
        architecture=shape.architecture,
        parameters=model.parameters,
        read=found.read,
        device=device.name,
        device_title=device.title,
        ram_bytes=device.ram_bytes,
        reserved_bytes=device.reserved_bytes,
        room_bytes=device.room_bytes,
        context=context,
        depth=min(options.depth, context),
        slots=options.slots,
        arguments=_arguments(chosen, context, options.slots),
        notes=tuple(notes),
        alternatives=tuple(compared) if len(compared) > 1 else (),
    )


def _notes(device: Device, model: Model, chosen: Choice, note: str) -> Iterator[str]:
    if note:
        yield note
    wanted = {"Q6_K": 6.6, "Q5_K_M": 5.7, "Q5_K_S": 5.6, "Q4_K_M": 5.0, "Q4_K_S": 4.7, "Q3_K_M": 4.1, "Q2_K": 3.5}
    if chosen.bits_per_weight > wanted.get(model.quant, 99) + 0.4 and model.quant not in FLOATS:
        yield (
            f"{model.quant} has {chosen.bits_per_weight} bits a weight here: rows of {model.shape.width} weights are no "
            "multiple of 256, or the embedding is a large part of the model"
        )
    if chosen.kv_type != "f16":
        yield f"the cache of keys and values is in {chosen.kv_type}: it needs flash attention, and costs a little quality"
    if model.shape.experts:
        used = f"{model.shape.experts_used} of {model.shape.experts}"
        yield f"a token uses {used} experts, but all of them must be in memory"
    if 0 in model.shape.kv_heads and not model.shape.recurrent_bytes:
        yield "the state of layers without attention is not counted: this architecture's is not known here"
    if device.notes:
        yield device.notes


def _arguments(chosen: Choice, context: int, slots: int) -> tuple[str, ...]:
    """As a person types them after `llama-server -m FILE`."""
    words = ["-c", str(context * slots), "-np", str(slots), "-t", str(chosen.threads), "-tb", str(chosen.threads_batch)]
    words += ["-ub", str(chosen.ubatch), "--cache-ram", "0"]
    if chosen.kv_type != "f16":
        words += ["-fa", "on", "-ctk", chosen.kv_type, "-ctv", chosen.kv_type]
    return tuple(words)


def _lines(answer: Plan) -> Iterator[str]:
    verdict = "fits" if answer.fits else "does not fit"
    yield f"{answer.model} ({answer.architecture}, {answer.parameters / 1e6:,.0f} M weights) on {answer.device_title}: {verdict}"
    yield f"{answer.label}; context {answer.context}, speed after {answer.depth} tokens; read: {answer.read}"
    yield from table(list(answer.alternatives) or [answer])
    parts = {
        "weights": answer.weight_bytes, "repacked copy": answer.repacked_bytes, "keys and values": answer.kv_bytes,
        "snapshots": answer.snapshot_bytes, "compute": answer.compute_bytes, "program and vocabulary": answer.base_bytes,
    }  # fmt: skip
    shown = ", ".join(f"{name} {megabytes(size)}" for name, size in parts.items() if size)
    yield f"{answer.quant}: {shown}"
    rest = "left for other programs" if answer.free_bytes >= 0 else "missing"
    yield f"needs {megabytes(answer.needed_bytes)} of {megabytes(answer.room_bytes)}; {megabytes(abs(answer.free_bytes))} {rest}"
    yield "llama-server " + " ".join(answer.arguments)


def _metrics(answer: Plan) -> dict[str, MetricValue]:
    names = (
        "quant", "fits", "memory_bytes", "needed_bytes", "free_bytes", "weight_bytes", "kv_bytes", "compute_bytes",
        "decode_tps", "decode_tps_low", "decode_tps_high", "prefill_tps", "prefill_tps_low", "prefill_tps_high",
        "threads", "threads_batch", "ubatch", "kv_type", "context", "device", "label",
    )  # fmt: skip
    return {name: getattr(answer, name) for name in names}
