"""`pillm quantize pareto`: predicted divergence by size of file, of fitted mixes and of llama.cpp's recipes, as a page.

The same steps as a fit takes, without the gate: everything on the page is a prediction, and the page says so.
"""

from __future__ import annotations

import io
from html import escape

import msgspec

from pillm.core.artifacts import artifact_of, write_atomic
from pillm.core.errors import UsageError, writing
from pillm.core.events import Emit, Made
from pillm.core.stage import Result
from pillm.llamacpp import quantize as tool
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import ensure
from pillm.models import threads
from pillm.quantize.fitting import allocation, judging
from pillm.quantize.fitting.run import fixed, overhead
from pillm.quantize.fitting.work import Work
from pillm.quantize.options import QuantizeOptions
from pillm.quantize.pareto_options import ParetoOptions
from pillm.quantize.weights import KNOWN, check_numbers


class Point(msgspec.Struct, frozen=True):
    """A file that could be made."""

    name: str
    bytes: int
    kl: float


def run(options: ParetoOptions, emit: Emit) -> Result:
    """Write the page. Raises what a fit raises."""
    threads.fix()
    source = describe(options.model)
    tool.check_source(source)
    if source.architecture not in KNOWN:
        raise UsageError(
            f"{options.model}: fitting does not know {source.architecture!r}", f"it knows {', '.join(KNOWN)}"
        )
    check_numbers(source)
    tools = ensure(emit)
    with writing(options.out):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        work = Work(tools, source, _fit_options(options), emit)
        table = work.table()
        rest = overhead(source) + fixed(source, table)
        mixes = allocation.frontier(table, options.steps)
        fitted = [Point("", allocation.size(table, mix) + rest, allocation.predicted(table, mix)) for mix in mixes]
        stocks = judging.stock(tools, source, table, work.stock_matrix(), emit)
        recipes = [Point(s.kind, s.bytes + overhead(source), s.predicted) for s in stocks if s.predicted is not None]
        write_atomic(options.out, page(source.name, fitted, recipes))
    emit(Made("pareto", artifact_of(options.out)))
    return Result({"page": options.out}, {"mixes": len(fitted), "recipes": len(recipes)})


def _fit_options(options: ParetoOptions) -> QuantizeOptions:
    """A fit with the same steps: its work is kept beside the page, where a fit with `--out` there finds it."""
    names = ("model", "imatrix_data", "imatrix_context", "general_data", "fit_tokens", "seed", "threads")
    same = {name: getattr(options, name) for name in names}
    return QuantizeOptions.model_validate({**same, "fit": True, "out": options.out.parent})


def page(name: str, fitted: list[Point], recipes: list[Point]) -> str:
    """The page: a picture and the same figures as a table."""
    rows = "".join(
        f"<tr><td>{escape(p.name or 'mix')}</td><td>{p.bytes:,}</td><td>{p.kl:.4f}</td></tr>"
        for p in sorted([*fitted, *recipes], key=lambda p: p.bytes)
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}: size and divergence</title><style>body{{font-family:sans-serif;max-width:50rem;margin:2rem auto;"
        "padding:0 1rem}td,th{text-align:right;padding:.1rem .8rem}td:first-child,th:first-child{text-align:left}"
        "svg{max-width:100%;height:auto}</style>"
        f"<h1>{escape(name)}: size and divergence</h1><p>All figures are predicted from the Fisher information and ggml's own "
        "rounding, in nats a token; pillm quantize measures a file before it is published.</p>"
        f"{_picture(fitted, recipes)}<table><thead><tr><th>file</th><th>bytes</th><th>predicted KL</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></html>\n"
    )


def _picture(fitted: list[Point], recipes: list[Point]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    shown = [p for p in fitted if p.kl > 0]
    axes.plot([p.bytes / 1e6 for p in shown], [p.kl for p in shown], "o-", label="fitted mixes", markersize=4)
    axes.plot([p.bytes / 1e6 for p in recipes], [p.kl for p in recipes], "s", label="llama.cpp's recipes", markersize=5)
    for point in recipes:
        axes.annotate(point.name, (point.bytes / 1e6, point.kl), (4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="MB", ylabel="predicted mean KL, nats a token", yscale="log")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend()
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pareto"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
