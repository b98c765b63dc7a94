"""A fitted file: calibration, sensitivity, costs, the mix, and the gate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import msgspec

from pillm.core.artifacts import artifact_of, atomic_folder, sha256_file, write_atomic
from pillm.core.errors import GateError, UsageError, writing
from pillm.core.events import Emit, Log, Made
from pillm.core.shipped import shown
from pillm.core.stage import Result
from pillm.devices import boards, here
from pillm.llamacpp import quantize as tool
from pillm.llamacpp.gguf_file import GgufFile, describe
from pillm.llamacpp.install import LlamaCpp, ensure
from pillm.llamacpp.perplexity import Divergence
from pillm.models import threads
from pillm.quantize.fitting import allocation, judging, plan_file
from pillm.quantize.fitting.allocation import Bound, Mix, TooSmall
from pillm.quantize.fitting.board import DECODE_SHARE, PREFILL_SHARE, Board
from pillm.quantize.fitting.costs import Table, padded
from pillm.quantize.fitting.judging import Stock
from pillm.quantize.fitting.work import Work
from pillm.quantize.grid import improve
from pillm.quantize.options import Method, QuantizeOptions
from pillm.quantize.report import Fitted, Quantize, QuantizedFile, Side, TypeShare
from pillm.quantize.weights import KNOWN, check_numbers

NAME = "model-fit.gguf"
# Minutes of training below which distillation is not worth its start; and the share of all time that the gate takes.
_LEAST_TRAINING = 5.0
_GATE_SHARE = 0.2
PLAN = plan_file.NAME
OTHERS = "others"
_RIVALS = 2
_AFTER: dict[str, Literal["gptq", "gptq+distill"]] = {"mix+gptq": "gptq", "mix+gptq+distill": "gptq+distill"}
# What the importance matrix and this tool add to the header.
_METADATA_BYTES = 1024
_DEFAULT_LIKE = "Q4_K_M"
_FILE_TYPES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q3_K": "Q3_K_M", "F16": "Q8_0", "BF16": "Q8_0", "F32": "Q8_0"}


def run(options: QuantizeOptions, emit: Emit) -> Result:
    """Publish `model-fit.gguf`, `plan.yaml`, the rival in `others`, and `quantize.json`.

    Raises UsageError (source; texts; an aim that cannot be met, with the nearest that can), FindingsError (data),
    ProfileError (plan), GateError (llama.cpp's own recipe is better: nothing is published), ResourceError.
    """
    began = time.monotonic()
    threads.fix()
    source = describe(options.model)
    tool.check_source(source)
    if source.architecture not in KNOWN:
        raise UsageError(
            f"{options.model}: fitting does not know the architecture {source.architecture!r}",
            f"it knows {', '.join(KNOWN)}; --type quantizes by llama.cpp's own recipes",
        )
    check_numbers(source)
    board = _board(options, source)
    given = plan_file.read(options.plan) if options.plan else None
    tools = ensure(emit)
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        work = Work(tools, source, options, emit)
        table = work.table()
        stocks = judging.stock(tools, source, table, work.stock_matrix(), emit)
        if given and options.plan:
            plan_file.check(options.plan, given, source, table)
            mix = given.types
        else:
            mix = _choose(options, source, table, stocks, board, emit)
        method = _method(options, time.monotonic() - began)
        made_plan = _plan(source, table, mix, stocks, method)
        candidate = work.folder / NAME
        made = _write(tools, options, work, mix, candidate, method, emit)
        seconds = time.monotonic() - began
        emit(Log(f"mix: {made.bytes:,} bytes, predicted KL {made_plan.predicted:.4f}, after {seconds:.0f} s"))
        if method != "mix":
            left = options.max_time * 60 * (1 - _GATE_SHARE) - seconds
            work.forget()
            made = _improved(options, work, made, method, max(60.0, left), emit)
        rival, figures, rival_figures, rival_file = _judge(tools, options, work, table, stocks, made, emit)
        for base in work.folder.glob("*.logits"):
            base.unlink()  # large, and of no more use
        if rival is None:
            emit(
                Log("none of llama.cpp's recipes is as small, so the file was held against the model alone", "warning")
            )
        fitted = _fitted(options, made_plan, work, rival, figures, rival_figures, board)
        for line in table_lines(fitted):
            emit(Log(line))
        gate(fitted)
        text = plan_file.to_yaml(made_plan)
        with atomic_folder(options.out / OTHERS) as others:
            if rival and rival_file:
                (others / f"model-{rival.kind}.gguf").write_bytes(rival_file.read_bytes())
        target = options.out / NAME
        made.path.replace(target)
        write_atomic(options.out / PLAN, text)
        if options.plan_out:
            write_atomic(options.plan_out, text)
            write_atomic(options.plan_out.with_suffix(".types"), tool.type_lines(mix))
        report = Quantize(
            source=options.model.name, source_bytes=source.bytes, parameters=source.parameters,
            files=(_facts(target, NAME, "fit"), *((_facts(options.out / OTHERS / f"model-{rival.kind}.gguf", f"{OTHERS}/model-{rival.kind}.gguf", rival.kind),) if rival else ())),
            fitted=fitted, llamacpp=tools.version,
        )  # fmt: skip
        path = options.out / "quantize.json"
        write_atomic(path, msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        for leftover in work.folder.glob("model-*.gguf"):
            leftover.unlink()
    emit(Made("gguf", artifact_of(target)))
    metrics = {
        "bytes": made.bytes,
        "bits_per_weight": round(made.bits_per_weight, 3),
        "seconds": round(time.monotonic() - began),
    }
    metrics |= {"kl": fitted.sides[0].kl_mean, "kl_ratio": fitted.sides[0].ratio}
    return Result({"gguf": target, "others": options.out / OTHERS, "report": path}, metrics)


def _improved(
    options: QuantizeOptions, work: Work, mix: GgufFile, method: Method, seconds: float, emit: Emit
) -> GgufFile:
    """The mix with better codes and scales, the same types. One that an earlier run finished is taken as it is."""
    path = work.folder / f"model-{sha256_file(mix.path)[:12]}-{method}.gguf"
    if not path.is_file():
        improve(work.scaled(), mix.path, path, work.sides().fit, _AFTER[method], seconds, emit)
    return describe(path)


def _method(options: QuantizeOptions, seconds: float) -> Method:
    """What is done after the mix."""
    if options.method != "auto":
        return options.method
    left = options.max_time * (1 - _GATE_SHARE) - seconds / 60
    return "mix+gptq+distill" if left > 2 * _LEAST_TRAINING else "mix+gptq" if left > 1 else "mix"


def overhead(source: GgufFile) -> int:
    """Bytes of a file that are not tensors of the table: header, tokenizer, what stays as it is, and what is added."""
    return source.bytes - sum(padded(tensor.bytes) for tensor in source.tensors) + _METADATA_BYTES


def fixed(source: GgufFile, table: Table) -> int:
    """Bytes of the tensors whose type is not chosen."""
    return sum(padded(tensor.bytes) for tensor in source.tensors if tensor.name not in table)


def _board(options: QuantizeOptions, source: GgufFile) -> Board | None:
    if not options.device:
        return None
    device = here.here() if options.device == here.NAME else boards.load(options.device)
    return Board(device, source, options.context)


def _choose(
    options: QuantizeOptions, source: GgufFile, table: Table, stocks: list[Stock], board: Board | None, emit: Emit
) -> Mix:
    """The mix that the options ask for."""
    rest = overhead(source) + fixed(source, table)
    by_kind = {each.kind: each for each in stocks}
    budget = options.most_bytes
    if budget is None and options.max_kld is None:
        like = options.like or _DEFAULT_LIKE
        if like not in by_kind:
            raise UsageError(f"--like {like}: its size is not computed here", f"one of: {', '.join(by_kind)}")
        budget = by_kind[like].bytes + overhead(source) - _METADATA_BYTES
        if board is not None and not options.like:
            room = board.most_bytes(by_kind[like].types)
            # Where a speed is asked for, that decides the size; else the usual one does, if the board has room for it.
            budget = min(room, source.bytes if options.min_tps else budget)
    bounds: list[Bound] = []
    if board is not None:
        most = budget if budget is not None else source.bytes
        better = judging.rivals(stocks, most - overhead(source) + _METADATA_BYTES, 1)
        decode = options.min_tps
        if better:
            floor = DECODE_SHARE * board.decode_tps(better[0].types)
            decode = max(floor, decode) if decode else floor
            prefill = PREFILL_SHARE * board.prefill_tps(better[0].types)
            emit(
                Log(
                    f"on {board.device.title}: no slower than {DECODE_SHARE:.0%} (decode) and {PREFILL_SHARE:.0%} (prefill) of {better[0].kind}, as predicted"
                )
            )
        else:
            prefill = None
        bounds = board.bounds(table, decode, prefill)
    if options.max_kld is not None:
        return allocation.least_bytes(table, options.max_kld, bounds)
    try:
        return allocation.least_divergence(table, (budget or 0) - rest, bounds)
    except TooSmall as error:
        raise UsageError(
            f"{budget:,} bytes are too few: the smallest fitted file has {error.bytes + rest:,}",
            "allow that much, or take a smaller model",
        ) from error


def _plan(source: GgufFile, table: Table, mix: Mix, stocks: list[Stock], method: str) -> plan_file.Plan:
    total = allocation.size(table, mix) + fixed(source, table)
    best = judging.rivals(stocks, total, 1)
    return plan_file.plan(
        table, mix, model=source.name, method=method, stock=best[0].kind if best else "",
        stock_types=best[0].types if best else {}, predicted=allocation.predicted(table, mix),
        predicted_stock=best[0].predicted if best else None,
    )  # fmt: skip


def _write(
    tools: LlamaCpp, options: QuantizeOptions, work: Work, mix: Mix, target: Path, method: str, emit: Emit
) -> GgufFile:
    """The mix as a file, with what it is in its metadata."""
    source = describe(options.model)
    sizes: dict[str, int] = {}
    for tensor in source.tensors:
        kind = mix.get(tensor.name, tensor.type)
        sizes[kind] = sizes.get(kind, 0) + tensor.elements
    main = max(sizes, key=lambda kind: sizes[kind])
    metadata = {
        "pillm.quantize.method": method,
        "pillm.quantize.plan_sha256": _sha(tool.type_lines(mix)),
        "pillm.quantize.calibration": work.folder.name,
    }
    made = tool.quantize(
        tools, work.scaled(), target, _FILE_TYPES.get(main, main), imatrix=work.matrix(), types=mix,
        metadata=metadata, threads=options.threads, emit=emit,
    )  # fmt: skip
    got = {tensor.name: tensor.type for tensor in made.file.tensors}
    if wrong := [name for name, kind in mix.items() if got[name] != kind]:
        raise GateError(
            f"{len(wrong)} tensors came out in another type than planned, as {wrong[0]}: {got[wrong[0]]} for {mix[wrong[0]]}",
            "take that type out of the plan",
        )
    most = options.most_bytes
    if most is not None and made.file.bytes > most:
        raise GateError(
            f"the file has {made.file.bytes:,} bytes, more than {most:,}", "report this: it is a fault of pillm"
        )
    return made.file


def _judge(
    tools: LlamaCpp, options: QuantizeOptions, work: Work, table: Table, stocks: list[Stock], made: GgufFile, emit: Emit
) -> tuple[Stock | None, dict[str, Divergence], dict[str, Divergence], Path | None]:
    """Figures of the file and of the best rival of no more bytes."""
    sides = work.sides()
    bases = {}
    for side, tokens in (("in", sides.inside), ("out", sides.outside)):
        base = work.folder / f"{side}.logits"
        if not base.is_file():
            judging.save_logits(work.exact(), tokens, base, emit, f"reference {side} of the domain")
        bases[side] = base
    ours = judging.judge(tools, made.path, bases, options.threads, emit)
    best: tuple[Stock, dict[str, Divergence], Path] | None = None
    size = sum(padded(tensor.bytes) for tensor in made.tensors)
    # The recipe that set the size is a rival, too, though the file may end some bytes below it.
    size = max([size, *(each.bytes for each in stocks if each.kind == options.like)])
    for rival in judging.rivals(stocks, size, _RIVALS):
        path = work.folder / f"model-{rival.kind}.gguf"
        tool.quantize(
            tools,
            options.model,
            path,
            rival.kind,
            imatrix=work.stock_matrix(),
            threads=options.threads,
            emit=emit,
        )
        figures = judging.judge(tools, path, bases, options.threads, emit)
        if best is None or figures["in"].kl_mean < best[1]["in"].kl_mean:
            best = rival, figures, path
    return (best[0], ours, best[1], best[2]) if best else (None, ours, {}, None)


def _fitted(
    options: QuantizeOptions, made: plan_file.Plan, work: Work, rival: Stock | None, ours: dict[str, Divergence],
    theirs: dict[str, Divergence], board: Board | None,
) -> Fitted:  # fmt: skip
    sides = []
    for side, own in ours.items():
        other = theirs.get(side)
        ratio = judging.ratio(own, other) if other else None
        sides.append(
            Side(
                side=side, chunks=len(own.kl_chunks), tokens=own.tokens, kl_mean=own.kl_mean, kl_99=own.kl_99,
                same_top=own.same_top, perplexity_ratio=own.perplexity / own.reference_perplexity,
                rival_kl_mean=other.kl_mean if other else None, rival_kl_99=other.kl_99 if other else None,
                rival_same_top=other.same_top if other else None,
                rival_perplexity_ratio=other.perplexity / other.reference_perplexity if other else None,
                ratio=ratio.value if ratio else None, ratio_low=ratio.low if ratio else None,
                ratio_high=ratio.high if ratio else None,
            )
        )  # fmt: skip
    mix = made.types
    return Fitted(
        method=made.method, plan=PLAN, data=shown(options.imatrix_data) if options.imatrix_data else "",
        general=options.general_data.name if options.general_data else "Python's language reference",
        tokens=work.sides().shares, predicted_kl=made.predicted or 0.0, rival=rival.kind if rival else "",
        sides=tuple(sides), device=board.device.name if board else "",
        decode_tps=board.decode_tps(mix) if board else None, prefill_tps=board.prefill_tps(mix) if board else None,
        rival_decode_tps=board.decode_tps(rival.types) if board and rival else None,
        rival_prefill_tps=board.prefill_tps(rival.types) if board and rival else None,
    )  # fmt: skip


def table_lines(fitted: Fitted) -> list[str]:
    """The gate's figures as a person reads them."""
    lines = [f"{'':24}{'KL mean':>9}{'KL 99 %':>9}{'same top':>10}{'PPL ratio':>11}"]
    for side in fitted.sides:
        where = f"{side.side} of the domain" if side.side == "out" else "in the domain"
        lines.append(
            f"{where + ', fitted':24}{side.kl_mean:9.4f}{side.kl_99:9.4f}{side.same_top:10.1%}{side.perplexity_ratio:11.4f}"
        )
        if side.rival_kl_mean is not None and side.rival_kl_99 is not None:
            lines.append(
                f"{where + ', ' + fitted.rival:24}{side.rival_kl_mean:9.4f}{side.rival_kl_99:9.4f}"
                f"{side.rival_same_top or 0:10.1%}{side.rival_perplexity_ratio or 0:11.4f}"
                f"   ratio {side.ratio:.3f} ({side.ratio_low:.3f} to {side.ratio_high:.3f})"
            )
    return lines


def gate(fitted: Fitted) -> None:
    """Raises GateError if the file's mean KL is above the rival's on any side."""
    worse = [side for side in fitted.sides if side.ratio is not None and side.ratio > 1]
    if worse:
        what = " and ".join(f"{side.side} of the domain {side.ratio:.2f} times" for side in worse)
        raise GateError(
            f"the fitted file is worse than {fitted.rival}, which has no more bytes: {what} its KL",
            f"ship that one: --type {fitted.rival}; or fit on more text: --imatrix-data, --fit-tokens",
        )


def _facts(path: Path, name: str, asked: str) -> QuantizedFile:
    file = describe(path)
    return QuantizedFile(
        file=name, sha256=sha256_file(path), asked=asked, bytes=file.bytes, bits_per_weight=round(file.bits_per_weight, 3),
        types=tuple(TypeShare(k, sum(t.type == k for t in file.tensors), size) for k, size in file.bytes_by_type.items()),
        fallbacks=(),
    )  # fmt: skip


def _sha(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
