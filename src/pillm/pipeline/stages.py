"""THE table: every stage with its options model, entry point, and outputs.

Adding a stage is a room, its options, its run, and one row here. Flags, YAML sections, command
builder, cache keys and forms all come from this table. Nothing heavy is imported by reading it.

Rows of TOOLS have options and an entry point, too, but are no stages of a run: what they make goes
where the user says, or only to the screen. Profiles and the engine do not know them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

if TYPE_CHECKING:  # pydantic takes a third of the time of `pillm --help`; only a stage needs it
    from pillm.core.events import Emit
    from pillm.core.options import Options
    from pillm.core.stage import Result


class Stage(msgspec.Struct, frozen=True):
    """One row. `outputs` are paths below `out`, with fields of the options as `{field}`."""

    name: str
    summary: str
    options_at: str
    run_at: str
    outputs: dict[str, str]
    deterministic: bool = True
    """Whether the same inputs and options give the same bytes in every output on one machine."""
    per_machine: bool = False
    """Whether the outputs say something about the machine, so that another machine's do not count."""
    group: str = ""
    """The word before the name on the command line, where there is one: `pillm dataset card`."""
    stands_on: tuple[str, ...] = ()
    """Rooms below that only some stages use, whose code makes their outputs, too."""
    preview_at: str = ""
    """A function of the options that says before the start what the run needs: lines for `--dry-run`."""
    document: bool = False
    """Whether `--json` prints its answer as one JSON object, and not the events of its work."""

    @property
    def words(self) -> tuple[str, ...]:
        """How the stage is asked for on the command line."""
        return (self.group, self.name) if self.group else (self.name,)

    @property
    def options(self) -> type[Options]:
        """The options model."""
        return cast("type[Options]", _load(self.options_at))

    @property
    def run(self) -> Callable[[Any, Emit], Result]:
        """The entry point; importing it may import torch."""
        return cast("Callable[[Any, Emit], Result]", _load(self.run_at))

    def preview(self, options: Options) -> list[str]:
        """What can be said of a run before it starts. Raises PillmError where the options cannot work."""
        return cast("Callable[[Any], list[str]]", _load(self.preview_at))(options) if self.preview_at else []

    def output_paths(self, options: Options) -> dict[str, Path]:
        """Where each output of a run with these options is published."""
        fields = options.model_dump()
        return {name: fields["out"] / path.format(**fields) for name, path in self.outputs.items()}


def _load(place: str) -> object:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("card", "Describe a dataset: card, Croissant, hashes", "pillm.data.options:CardOptions", "pillm.data.dataset_card:run",
              {"readme": "README.md", "croissant": "croissant.json", "card": "dataset_card.json"}, group="dataset"),
        Stage("label", "A teacher answers prompts", "pillm.teach.options:LabelOptions", "pillm.teach.label:run",
              {"labelled": "labelled.jsonl", "rejected": "rejected.jsonl", "report": "label.json"}, deterministic=False),
        Stage("logits", "A teacher's distributions, kept for training", "pillm.train.logits.options:LogitsOptions",
              "pillm.train.logits.run:run", {"cache": "cache", "report": "logits.json"}, stands_on=("logit_cache",)),
        Stage("train", "A student learns from dialogues", "pillm.train.options:TrainOptions", "pillm.train.run:run",
              {"model": "model", "log": "training.jsonl", "report": "train.json"}, stands_on=("logit_cache",),
              preview_at="pillm.train.memory:told"),
        Stage("export", "Convert to GGUF, with a round-trip check", "pillm.export.options:ExportOptions", "pillm.export.run:run",
              {"gguf": "model-{dtype}.gguf", "report": "export.json"}),
        Stage("quantize", "Quantize a GGUF file", "pillm.quantize.options:QuantizeOptions", "pillm.quantize.run:run",
              {"gguf": "model-{type}.gguf", "others": "others", "report": "quantize.json"}, stands_on=("devices",)),
        Stage("evaluate", "Measure quality on held-out dialogues", "pillm.evaluate.options:EvaluateOptions", "pillm.evaluate.run:run",
              {"report": "quality.json", "answers": "answers.jsonl"}, deterministic=False),
        Stage("bench", "Measure speed on this machine", "pillm.bench.options:BenchOptions", "pillm.bench.run:run",
              {"report": "bench.json"}, deterministic=False, per_machine=True, stands_on=("history",)),
    )
}  # fmt: skip

TOOLS: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("validate", "Find every fault by line", "pillm.data.options:ValidateOptions", "pillm.data.validation.validate:run", {}, group="dataset"),
        Stage("coverage", "Varieties, registers and tools, declared and evident", "pillm.data.options:CoverageOptions",
              "pillm.data.coverage:run", {}, group="dataset"),
        Stage("stats", "Counts and lengths", "pillm.data.options:StatsOptions", "pillm.data.counts.stats:run", {}, group="dataset"),
        Stage("dedup", "Leave out exact and near duplicates", "pillm.data.options:DedupOptions", "pillm.data.duplicates.dedup:run", {}, group="dataset"),
        Stage("split", "Split into train, validation and test", "pillm.data.options:SplitOptions", "pillm.data.duplicates.split:run", {}, group="dataset"),
        Stage("convert", "From and to the formats of other tools", "pillm.data.options:ConvertOptions", "pillm.data.formats.convert:run", {}, group="dataset"),
        Stage("compare", "Better, same, worse or cannot tell: two models, two builds, or against the history",
              "pillm.bench.compare.options:CompareOptions", "pillm.bench.compare.run:run", {}, group="bench", document=True),
        Stage("history", "What was measured: list, import, export, thin out", "pillm.bench.history.options:HistoryOptions",
              "pillm.bench.history.run:run", {}, group="bench"),
        Stage("report", "Trends and roofline of the history as a page", "pillm.bench.trends.options:ReportOptions",
              "pillm.bench.trends.run:run", {}, group="bench"),
        Stage("pareto", "Size and predicted divergence of mixes and recipes, as a page", "pillm.quantize.pareto_options:ParetoOptions",
              "pillm.quantize.pareto:run", {}, group="quantize"),
        Stage("plan", "What fits on a board, how fast, with which settings", "pillm.plan.options:PlanOptions", "pillm.plan.run:run", {}, document=True),
        Stage("deploy", "Install on boards over ssh, start, check; or roll back", "pillm.deploy.options:DeployOptions", "pillm.deploy.run:run", {},
              preview_at="pillm.deploy.run:preview"),
        Stage("runtime", "llama.cpp with its services and tools for boards", "pillm.deploy.package.options:RuntimeOptions",
              "pillm.deploy.package.runtime:run", {}, group="package"),
        Stage("model", "A GGUF file with card, licence and settings", "pillm.deploy.package.options:ModelOptions",
              "pillm.deploy.package.model:run", {}, group="package"),
        Stage("repo", "A signed apt repository from a folder of packages", "pillm.deploy.package.options:RepoOptions",
              "pillm.deploy.package.repo:run", {}, group="package"),
        Stage("presets", "QLoRA presets: values, why, tested where", "pillm.train.presets_options:PresetsOptions",
              "pillm.train.presets_table:run", {}, document=True),
    )
}  # fmt: skip

COMMANDS = {**STAGES, **TOOLS}
"""Everything that has options: what the command line, the command builder and the forms show."""

GROUPS = {
    "dataset": "Datasets: check, describe, count, split, convert",
    "bench": "Measure, compare, look back",
    "quantize": "Smaller types, fitted or by recipe",
    "package": "Debian packages for boards",
}
