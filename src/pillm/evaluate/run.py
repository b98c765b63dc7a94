"""`pillm evaluate`: answers to held-out dialogues through llama-server, and closeness to the unquantized file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pillm.core import jsonl
from pillm.core.artifacts import artifact_of, clear_partials, sha256_file, write_atomic
from pillm.core.errors import GateError, UsageError, writing
from pillm.core.events import Emit, Log, Made
from pillm.core.shipped import data_path, shown
from pillm.core.stage import MetricValue, Result
from pillm.evaluate import closeness
from pillm.evaluate.ask import ask_all
from pillm.evaluate.journal import NAME as JOURNAL
from pillm.evaluate.journal import journal
from pillm.evaluate.judge import cases, evenly, judge
from pillm.evaluate.options import EvaluateOptions
from pillm.evaluate.report import Answer, Measured, Quality, Scores, by_kind, grouped, scores
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import ensure
from pillm.llamacpp.server import serve
from pillm.models.chat import template_path
from pillm.models.refs import resolve


def run(options: EvaluateOptions, emit: Emit) -> Result:
    """Publish `quality.json` and `answers.jsonl` in `options.out`.

    Raises FindingsError or UsageError (data, model), GateError (after publishing) where the exact
    match is lower than `min_exact_match`, PillmError where llama.cpp fails.
    """
    data = data_path(options.data)
    records = jsonl.read(data)
    asked = evenly(cases(records, data), options.limit)
    template = _template(options.chat_template)
    tools = ensure(emit)
    model = gguf(resolve(options.model, emit))
    _check_files(model, options)
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        clear_partials(options.out)
        measured = Measured(model.name, model.stat().st_size, sha256_file(model), options.chat_template)
        settings = _settings(measured, template, options, tools.version)
        with (
            journal(options.out / JOURNAL, settings) as kept,
            serve(
                tools,
                model,
                context=options.context,
                parallel=options.parallel,
                threads=options.threads,
                chat_template=template,
                emit=emit,
            ) as server,
        ):
            text = closeness.held_out_text(server, asked, options)
            said = ask_all(
                server, asked, max_tokens=options.max_tokens, parallel=options.parallel, journal=kept, emit=emit
            )
        answers = [judge(case, got) for case, got in zip(asked, said, strict=True)]
        rows, told = closeness.measure(tools, model, text, options, emit)
        report = Quality(
            model=measured,
            data=shown(options.data),
            data_sha256=sha256_file(data),
            records=len(records),
            asked=len(asked),
            overall=scores(answers),
            by_locale=grouped(answers, lambda answer: answer.locale),
            by_tool=grouped([a for a in answers if a.expected.calls], lambda answer: answer.tool),
            by_kind=by_kind(answers),
            failures=dict(sorted(Counter(answer.got.failure for answer in answers if answer.got.failure).items())),
            closeness=rows,
            closeness_text=told,
            max_tokens=options.max_tokens,
            context=options.context,
            llamacpp=tools.version,
        )
        outputs = _publish(options.out, report, answers, emit)
    _gate(report, options)
    return Result(outputs, _metrics(report))


def gguf(path: Path) -> Path:
    """The path, if it is a GGUF file. Raises UsageError for a folder of safetensors."""
    if path.is_dir():
        raise UsageError(f"{path}: evaluate measures GGUF files", "convert the model first: pillm export")
    return path


def _check_files(model: Path, options: EvaluateOptions) -> None:
    """Raise UsageError for a broken file or one of another model now, not after minutes of answers."""
    vocabulary = describe(model).vocabulary
    for path in [options.reference, *closeness.others(options, model)] if options.reference else []:
        if path is not None and (other := describe(path).vocabulary) != vocabulary:
            raise UsageError(
                f"{path}: has {other} tokens, {model.name} has {vocabulary}", "compare files of the same model only"
            )


def _template(name: str) -> Path | None:
    if name == "model":
        return None
    return Path(name) if Path(name).is_file() else template_path(name)


def _settings(measured: Measured, template: Path | None, options: EvaluateOptions, llamacpp: str) -> str:
    """A hash of all that an answer depends on, besides its record."""
    parts = [measured.sha256, sha256_file(template) if template else "", options.max_tokens, options.context, llamacpp]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _publish(out: Path, report: Quality, answers: Sequence[Answer], emit: Emit) -> dict[str, Path]:
    outputs = {"report": out / "quality.json", "answers": out / "answers.jsonl"}
    write_atomic(outputs["answers"], b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers))
    write_atomic(outputs["report"], msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    (out / JOURNAL).unlink(missing_ok=True)
    for name, path in outputs.items():
        emit(Made(name, artifact_of(path)))
    if report.failures:
        told = ", ".join(f"{count} {reason}" for reason, count in report.failures.items())
        emit(Log(f"answers that count as wrong whatever they hold: {told}", "warning"))
    return outputs


def _gate(report: Quality, options: EvaluateOptions) -> None:
    if options.min_exact_match is None:
        return
    reached = report.overall.exact_match
    if reached is None:
        raise GateError(f"{options.data}: no dialogue calls a tool, so there is no exact match to check")
    if reached.value < options.min_exact_match:
        raise GateError(
            f"tool-call exact match is {reached.value:.1%}, lower than the {options.min_exact_match:.1%} asked for",
            f"see what went wrong in {options.out / 'answers.jsonl'}",
        )


def _metrics(report: Quality) -> dict[str, MetricValue]:
    """The figures for people: shares with their intervals, then the model's closeness."""
    metrics: dict[str, MetricValue] = {}
    for name in Scores.__struct_fields__:
        share = getattr(report.overall, name)
        if share is not None:
            metrics[name] = share.value
            metrics[f"{name}_low"], metrics[f"{name}_high"] = share.low, share.high
    metrics["answers"] = report.asked
    for row in report.closeness:
        if row.role == "model":
            metrics |= {
                name: value
                for name in ("perplexity", "kl_mean", "kl_p99", "same_top")
                if (value := getattr(row, name)) is not None
            }
    return metrics
