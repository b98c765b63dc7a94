"""`report.html`: one page of a run that needs nothing but itself: no network, no script, no other file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from pillm.core.artifacts import artifact_of, write_atomic
from pillm.core.errors import writing
from pillm.core.events import Emit, Made
from pillm.devices.predictor import LABEL
from pillm.evaluate.report import Call, Rate, Scores
from pillm.history.document import best
from pillm.pipeline.manifest import ModelUsed
from pillm.pipeline.report_facts import Facts, gather

NAME = "report.html"
_THIN = "\u202f"  # a narrow space that does not break

_MEASURES = {
    "exact_match": "tool call exactly right",
    "tool_name": "right tool called",
    "json_validity": "call fits the tool's schema",
    "refusal": "declines when no tool fits",
    "ask_back": "asks back when something is missing",
    "plain_answer": "chats without a tool",
}
_KINDS = {
    "call": "a tool call",
    "result": "a tool call",
    "refuse": "no tool fits",
    "ask": "something is missing",
    "chat": "chat",
}
_FAILURES = {
    "cut": "cut off at the longest answer",
    "unparsed": "not parsed by the server",
    "too-long": "with a prompt longer than the context",
    "refused": "refused by the server",
}
# What a phone shows of the same measures: the plot's labels.
_SHORT = {
    "exact_match": "call exact",
    "tool_name": "right tool",
    "json_validity": "fits schema",
    "refusal": "declines",
    "ask_back": "asks back",
    "plain_answer": "chats",
}
_REQUEST = {
    "messages": [{"role": "user", "content": "Set a timer for ten minutes"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "set_timer",
                "parameters": {
                    "type": "object",
                    "properties": {"minutes": {"type": "integer"}},
                    "required": ["minutes"],
                },
            },
        }
    ],
}


class FileRow(NamedTuple):
    """A file of the run in the table of sizes; what was not measured is None."""

    name: str
    bytes: int
    bits_per_weight: float | None
    fallback_share: float | None
    kl_mean: float | None
    kl_p99: float | None
    same_top: float | None
    chosen: bool


def build(run_dir: Path, emit: Emit) -> Path:
    """Write the page of the run in `run_dir` and return its path.

    Parts that are not there (a stage that did not run, a report that cannot be read) are left out.
    Raises UsageError if there is no manifest.
    """
    page = run_dir / NAME
    text = render(gather(run_dir))
    with writing(page):
        write_atomic(page, text)
    emit(Made("report", artifact_of(page)))
    return page


def render(facts: Facts) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    source = resources.files("pillm.pipeline").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(_context(facts))


def _context(facts: Facts) -> dict[str, Any]:
    """The facts by name, and what is worked out from them."""
    shown = [board for board in facts.predictions if board.device in ("pi4-2gb", "pi5-4gb") and board.fits]
    context: dict[str, Any] = {name: getattr(facts, name) for name in Facts.__struct_fields__}
    context |= {
        "title": facts.manifest.name,
        "headline": _headline(facts),
        "measures": _measures(facts),
        "kinds": _KINDS,
        "failures": _FAILURES,
        "decode": best(facts.bench, "decode") if facts.bench else None,
        "headline_predictions": shown,
        "prediction_notes": _prediction_notes(facts),
        "files": _files(facts),
        "shipped": facts.quantize.files[0] if facts.quantize else None,
        "plots": _plots(facts),
        "has_validation": any(step.validation_loss is not None for step in facts.loss),
        "context": facts.after.context if facts.after else 2048,
        "request": Markup(json.dumps(_REQUEST, ensure_ascii=False)),  # noqa: S704  constant, holds no markup
        "models": _models(facts),
        "total_seconds": sum(record.seconds for record in facts.manifest.stages),
    }
    context["sections"] = _sections(context)
    return context


def _sections(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and names of the sections that the page will have."""
    there = [
        ("quality", "Quality", context["after"]),
        ("answers", "Answers", context["samples_right"] or context["samples_wrong"]),
        ("file", "The file", context["product"] or context["files"]),
        ("speed", "Speed", context["bench"]),
        ("training", "Training", context["train"] or context["loss"]),
        ("run", "Run it", context["product"]),
        ("data", "Data and licences", True),
        ("made", "How it was made", True),
    ]
    return [(anchor, name) for anchor, name, is_there in there if is_there]


def _headline(facts: Facts) -> str:
    size = f" in {_size(facts.product.bytes)}" if facts.product else ""
    exact = facts.after.overall.exact_match if facts.after else None
    if exact:
        return f"{_percent(exact.value)} of tool calls exactly right{size}"
    return f"{facts.manifest.name}{':' if size else ''}{size.replace(' in', ' a model of', 1)}"


def _measures(facts: Facts) -> list[tuple[str, Rate | None, Rate | None]]:
    """Label, before, after, for each measure that was taken."""
    rows = [
        (label, getattr(facts.before.overall, name) if facts.before else None, getattr(facts.after.overall, name))
        for name, label in _MEASURES.items()
        if facts.after
    ]
    return [row for row in rows if row[1] or row[2]]


def _models(facts: Facts) -> list[ModelUsed]:
    """The models that came from outside, each once; those that the run made itself are told elsewhere."""
    stages = facts.manifest.stages
    made = {artifact.sha256 for record in stages for artifact in record.outputs.values()}
    used = {model.identity: model for record in stages for model in record.models.values()}
    return [model for identity, model in used.items() if not any(sha256 in identity for sha256 in made)]


def _files(facts: Facts) -> list[FileRow]:
    """Every file that was quantized or held against the unquantized one, the largest first."""
    made = {Path(file.file).name: file for file in facts.quantize.files} if facts.quantize else {}
    held = {row.file: row for row in facts.after.closeness} if facts.after else {}
    rows = []
    for name in dict.fromkeys([*made, *held]):
        file, row = made.get(name), held.get(name)
        if row and row.role == "reference" and not file:
            continue
        rows.append(
            FileRow(
                _kind(name),
                file.bytes if file else row.bytes if row else 0,
                file.bits_per_weight if file else None,
                file.fallback_share if file else None,
                row.kl_mean if row else None,
                row.kl_p99 if row else None,
                row.same_top if row else None,
                bool(facts.product and name == Path(facts.product.path).name),
            )
        )
    return sorted(rows, key=lambda row: -row.bytes)


def _prediction_notes(facts: Facts) -> list[str]:
    """What a reader must know of the predicted figures, once a board family."""
    notes: dict[str, str] = {}
    for board in facts.predictions:
        family = board.title.split(",")[0]
        text = f"{family}: from {board.rows} published rows; each predicted from the others, the worst error is {_percent(board.worst_error)}."
        notes.setdefault(family, f"{text} This file is {board.note}." if board.note else text)
    if notes:
        return [
            f"Speeds on boards are {LABEL}: the bytes that a token reads by the memory's bandwidth, and the weights by what cores multiply.",
            *notes.values(),
        ]
    return []


def _plots(facts: Facts) -> dict[str, Markup]:
    """The page's plots that have something to show. matplotlib escapes text; the page trusts no other markup."""
    from pillm.pipeline import plots

    drawn: dict[str, str] = {"quality": "", "size": "", "loss": ""}
    if facts.after:
        pairs = _pairs(plots, facts.before.overall if facts.before else None, facts.after.overall)
        told = "; ".join(
            f"{pair.label}: {f'{_percent(pair.before.value)} before, ' if pair.before else ''}{_percent(pair.after.value)} after"
            for pair in pairs
            if pair.after
        )
        drawn["quality"] = plots.before_after(pairs, f"Quality with intervals. {told}.") if pairs else ""
    points = [
        plots.Point(row.name, row.bytes / 1e6, row.kl_mean, row.chosen)
        for row in _files(facts)
        if row.kl_mean and row.kl_mean > 0
    ]
    if points:
        told = "; ".join(f"{point.label} {point.megabytes:.0f} MB, {point.divergence:.4f}" for point in points)
        drawn["size"] = plots.size_and_divergence(points, f"KL divergence by file size. {told}.")
    steps = [plots.Step(step.step, step.loss, step.validation_loss) for step in facts.loss]
    losses = [step.loss for step in steps if step.loss is not None]
    if len(losses) > 1:
        told = f"Training loss from {losses[0]:.3f} to {losses[-1]:.3f} over {steps[-1].step} steps."
        drawn["loss"] = plots.loss_curve(steps, told)
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704


def _pairs(plots: Any, before: Scores | None, after: Scores) -> list[Any]:
    def share(rate: Rate | None) -> Any:
        return plots.Share(rate.value, rate.low, rate.high) if rate else None

    pairs = [
        plots.Pair(label, share(getattr(before, name)) if before else None, share(getattr(after, name)))
        for name, label in _SHORT.items()
    ]
    return [pair for pair in pairs if pair.before or pair.after]


def _percent(value: float | None) -> str:
    if value is None:
        return "not measured"
    # Rounding must not turn 99.6 % into a perfect score.
    digits = 1 if 0.99 <= value < 1 or 0 < value < 0.01 else 0
    return f"{value * 100:.{digits}f}{_THIN}%"


def _interval(rate: Rate) -> str:
    return f"{rate.low * 100:.0f}–{rate.high * 100:.0f}{_THIN}%"


def _size(value: float) -> str:
    """Bytes in decimal units, as file managers and shops count."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:.0f} {unit}"
    return f"{value:.0f} bytes"


def _number(value: float | None, digits: int) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _call(call: Call) -> str:
    if isinstance(call.arguments, str):
        return f"{call.name}({call.arguments})"
    given = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items())
    return f"{call.name}({given})"


def _shorten(text: str, limit: int = 280) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


def _kind(file: str) -> str:
    """`model-Q4_K_M.gguf` as `Q4_K_M`."""
    return re.sub(r"^model-|\.gguf$", "", file)


FILTERS: dict[str, Callable[..., Any]] = {
    "percent": _percent,
    "interval": _interval,
    "size": _size,
    "number": _number,
    "figures": lambda value: f"{value:.2g}",
    "duration": _duration,
    "call": _call,
    "shorten": _shorten,
    "count": lambda value: f"{value:,}".replace(",", _THIN),
    "counts": lambda counts: ", ".join(f"{name} ({count:,})".replace(",", _THIN) for name, count in counts.items()),
    "day": lambda stamp: stamp[:10] or "on an unknown day",
    "name": lambda path: Path(path).name,
}
