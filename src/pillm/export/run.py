"""`pillm export`: a merged model to GGUF, published only if llama.cpp computes from it what torch does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from pillm.core.artifacts import PARTIAL, artifact_of, clear_partials, publish, sha256_file, write_atomic
from pillm.core.errors import GateError, UsageError, writing
from pillm.core.events import Emit, Log, Made
from pillm.core.stage import Result
from pillm.export import source
from pillm.export.options import ExportOptions
from pillm.export.report import Export
from pillm.llamacpp.convert import convert
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp, ensure


def run(options: ExportOptions, emit: Emit) -> Result:
    """Convert, check, publish `model-<dtype>.gguf` and `export.json`.

    The report is written also if a check fails; the GGUF file is not, and GateError says what differs.
    Raises UsageError (not a model folder, unknown architecture, bad check data), MissingError,
    ResourceError, PillmError.
    """
    source.validate(options.model)
    tools = ensure(emit)
    target = options.out / f"model-{options.dtype}.gguf"
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        clear_partials(options.out)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=options.out) as name:
            # The file has its final name from the start: llama.cpp's messages name it.
            written = Path(name) / target.name
            convert(tools, options.model, written, options.dtype, name=source.model_name(options.model), emit=emit)
            report = _check(tools, written, options, Path(name), emit)
            if report.passed:
                publish(written, target)
            path = options.out / "export.json"
            write_atomic(path, msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if not report.passed:
        raise GateError(
            f"{options.model}: the exported file is not the model: {'; '.join(report.failures)}",
            f"nothing was published; the figures are in {path}",
        )
    emit(Made("gguf", artifact_of(target)))
    return Result({"gguf": target, "report": path}, _metrics(report))


def _check(tools: LlamaCpp, written: Path, options: ExportOptions, scratch: Path, emit: Emit) -> Export:
    try:
        gguf = describe(written)
    except UsageError as error:
        raise GateError(f"the converter wrote a broken file: {error.message}") from error
    template = source.chat_template(options.model)
    if not template:
        emit(Log(f"{options.model}: the model has no chat template; llama-server will use its own default", "warning"))
    failures = []
    kept = gguf.chat_template.strip() == template.strip()
    if not kept:
        failures.append("its chat template is not the model's")
    tokenizers, logits = None, None
    if options.check == "full":
        from pillm.export import check

        tokenizer = check.load_tokenizer(options.model)
        text = source.check_text(template, tokenizer.bos_token or "", tokenizer.eos_token or "", options.check_data)
        tokenizers = check.compare_tokenizers(tools, written, tokenizer, text, emit)
        if not tokenizers.passed:
            failures.append(f"the tokenizers differ {tokenizers.difference}")
        for difference in tokenizers.rare_differences:
            emit(Log(f"the tokenizers split a rare character differently {difference}", "warning"))
        logits = check.compare_logits(
            tools, gguf, options.model, tokenizer, text,
            tokens=options.check_tokens, max_kl=options.max_kl, threads=options.threads, scratch=scratch, emit=emit,
        )  # fmt: skip
        if not logits.passed:
            failures.append(
                f"the predictions differ: mean KL divergence {logits.kl_mean:.4f} nats/token, "
                f"allowed {logits.max_kl:g} (--max-kl); same likeliest token {logits.same_top:.1%}"
            )
    return Export(
        passed=not failures,
        check=options.check,
        chat_template="changed" if not kept else "kept" if template else "none",
        tokenizer=tokenizers,
        logits=logits,
        failures=tuple(failures),
        llamacpp=tools.version,
        file=written.name,
        sha256=sha256_file(written),
        bytes=gguf.bytes,
        dtype=options.dtype,
        architecture=gguf.architecture,
        name=gguf.name,
        parameters=gguf.parameters,
        vocabulary=gguf.vocabulary,
        context_length=gguf.context_length,
    )


def _metrics(report: Export) -> dict[str, float | int | str | bool | None]:
    found: dict[str, float | int | str | bool | None] = {"bytes": report.bytes, "parameters": report.parameters}
    if report.logits:
        found |= {"kl_mean": report.logits.kl_mean, "same_top": report.logits.same_top}
    return found
