"""`pillm quantize`: a GGUF file to smaller types, and the truth about what came of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from pillm.core.artifacts import PARTIAL, artifact_of, atomic_folder, clear_partials, sha256_file, write_atomic
from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Log, Made
from pillm.core.shipped import shown
from pillm.core.stage import Result
from pillm.llamacpp import quantize as tool
from pillm.llamacpp.gguf_file import FLOAT_TYPES, GgufFile, describe
from pillm.llamacpp.imatrix import imatrix
from pillm.llamacpp.install import LlamaCpp, ensure
from pillm.quantize.calibration import calibration
from pillm.quantize.options import QuantizeOptions
from pillm.quantize.report import FallbackGroup, Imatrix, Quantize, QuantizedFile, TypeShare

OTHERS = "others"
IMATRIX = "imatrix.gguf"


def run(options: QuantizeOptions, emit: Emit) -> Result:
    """Publish `model-<type>.gguf`, a folder `others` with the further types, `imatrix.gguf`, `quantize.json`.

    Raises UsageError (source not GGUF, cut off or already quantized; a type that needs an importance
    matrix without one; data too short), FindingsError (bad data), GateError (a written file is not
    whole), MissingError, ResourceError, PillmError.
    """
    if options.explain:
        from pillm.quantize.explain import explain

        return explain(options, emit)
    _check_aims(options)
    if options.type == "fit":
        # Fitting needs torch, the recipes do not.
        from pillm.quantize.fitting import run as fitting

        return fitting.run(options, emit)
    source = describe(options.model)
    tool.check_source(source)
    kinds = [options.type, *dict.fromkeys(kind for kind in options.also if kind != options.type)]
    needy = [kind for kind in kinds if kind in tool.NEEDS_IMATRIX]
    if needy and options.imatrix_data is None:
        raise UsageError(
            f"{', '.join(needy)}: cannot be made without an importance matrix",
            "give a dataset with --imatrix-data (as dataset:home-assistant/train), or take a larger type",
        )
    tools = ensure(emit)
    target = options.out / f"model-{options.type}.gguf"
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        clear_partials(options.out)
        matrix = _imatrix(tools, source, options, emit) if options.imatrix_data else None
        matrix_file = options.out / IMATRIX if matrix else None
        files = []
        with atomic_folder(options.out / OTHERS) as others:
            for kind in kinds:
                place = target if kind == options.type else others / f"model-{kind}.gguf"
                made = tool.quantize(
                    tools, options.model, place, kind, imatrix=matrix_file, threads=options.threads, emit=emit
                )
                name = target.name if kind == options.type else f"{OTHERS}/{place.name}"
                files.append(_facts(made, name, kind))
        report = Quantize(
            source=options.model.name,
            source_bytes=source.bytes,
            parameters=source.parameters,
            files=tuple(files),
            imatrix=matrix,
            llamacpp=tools.version,
        )
        path = options.out / "quantize.json"
        write_atomic(path, msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    for file in files:
        _tell(file, emit)
    emit(Made("gguf", artifact_of(target)))
    metrics = {"bytes": files[0].bytes, "bits_per_weight": files[0].bits_per_weight}
    metrics |= {"fallback_share": round(files[0].fallback_share, 4)}
    return Result({"gguf": target, "others": options.out / OTHERS, "report": path}, metrics)


def _check_aims(options: QuantizeOptions) -> None:
    aims = [name for name in ("max_bytes", "like", "max_kld", "plan") if getattr(options, name) is not None]
    if len(aims) > 1:
        flags = ", ".join("--" + name.replace("_", "-") for name in aims)
        raise UsageError(f"only one of {flags} can be kept", "leave the others out")
    if options.type != "fit" and (aims or options.fit or options.device):
        raise UsageError(f"--type {options.type} is one of llama.cpp's recipes", "leave it out where a file is fitted")
    if options.min_tps and not options.device:
        raise UsageError("--min-tps needs a board to predict the speed of", "add --device, as --device pi4-4gb")


def _imatrix(tools: LlamaCpp, source: GgufFile, options: QuantizeOptions, emit: Emit) -> Imatrix:
    if options.imatrix_data is None:
        raise AssertionError("called without data")
    context = min(options.imatrix_context, source.context_length or options.imatrix_context)
    read = calibration(tools, source, options.imatrix_data, chunks=options.imatrix_chunks, context=context)
    if not read.chat_template:
        emit(Log("the model has no chat template that takes these dialogues; using their plain words", "warning"))
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=options.out) as folder:
        text = Path(folder) / "calibration.txt"
        text.write_text(read.text, encoding="utf-8")
        done = imatrix(
            tools, options.model, text, options.out / IMATRIX,
            context=context, chunks=read.chunks, threads=options.threads, emit=emit,
        )  # fmt: skip
    if done < options.imatrix_chunks:
        emit(Log(f"the dialogues have text for {done} of {options.imatrix_chunks} chunks", "warning"))
    return Imatrix(IMATRIX, shown(options.imatrix_data), done, context, read.dialogues, read.chat_template)


def _facts(made: tool.Quantized, name: str, kind: str) -> QuantizedFile:
    """From the file as it is on disk; only why a tensor fell back comes from llama-quantize's words."""
    tensors = {tensor.name: tensor for tensor in made.file.tensors}
    groups: dict[tuple[str, str, str], list[str]] = {}
    for fallback in made.fallbacks:
        reason = f"rows of {fallback.columns} weights are no multiple of {fallback.block}"
        groups.setdefault((fallback.wanted, tensors[fallback.tensor].type, reason), []).append(fallback.tensor)
    quantized = {name for name, tensor in tensors.items() if tensor.type not in FLOAT_TYPES}
    return QuantizedFile(
        file=name,
        sha256=sha256_file(made.file.path),
        asked=kind,
        bytes=made.file.bytes,
        bits_per_weight=round(made.file.bits_per_weight, 3),
        types=tuple(
            TypeShare(each, sum(tensor.type == each for tensor in tensors.values()), size)
            for each, size in made.file.bytes_by_type.items()
        ),
        fallbacks=tuple(
            FallbackGroup(wanted, got, reason, sum(tensors[name].bytes for name in names), tuple(names))
            for (wanted, got, reason), names in groups.items()
        ),
        without_imatrix=tuple(name for name in made.without_imatrix if name in quantized),
    )


def _tell(file: QuantizedFile, emit: Emit) -> None:
    line = f"{file.file}: {file.bytes / 1e6:.1f} MB, {file.bits_per_weight:.2f} bits/weight"
    if file.fallbacks:
        what = ", ".join(f"{len(group.tensors)} {group.wanted} to {group.got}" for group in file.fallbacks)
        line += f"; {file.fallback_share:.0%} of it fell back to another type ({what})"
    emit(Log(line))
