"""What the report's page tells, gathered from a run's folder. A part that is not there is left out, and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from pillm.core import jsonl, shipped
from pillm.core.artifacts import Artifact, sha256_file
from pillm.core.errors import PillmError
from pillm.core.records import Record
from pillm.core.stage import read_report_lines
from pillm.devices import boards
from pillm.devices.predictor import ModelNumbers, Prediction, predict
from pillm.evaluate import report as quality_report
from pillm.evaluate.report import Answer, Quality
from pillm.export import report as export_report
from pillm.export.report import Export
from pillm.history import document as bench_report
from pillm.pipeline import manifest
from pillm.pipeline.manifest import RunManifest, StageRecord
from pillm.quantize import report as quantize_report
from pillm.quantize.report import Quantize
from pillm.teach import report as label_report
from pillm.teach.report import LabelReport
from pillm.train import report as train_report
from pillm.train.report import TrainReport

T = TypeVar("T")

# Reading a dataset for its licences takes a second per 100 MB; a bigger one is told by name and hash alone.
_MAX_DATA_BYTES = 200 * 2**20


class LossStep(msgspec.Struct, frozen=True):
    """What the page needs of a line of `training.jsonl`."""

    step: int
    loss: float | None = None
    validation_loss: float | None = None


class DataFacts(msgspec.Struct, frozen=True):
    """A dataset: counts of its records by what their lines say."""

    name: str
    use: str
    file: Artifact
    records: int | None
    locales: dict[str, int]
    licenses: dict[str, int]
    sources: dict[str, int]


class Sample(msgspec.Struct, frozen=True):
    """An answer, with the untouched model's answer to the same question."""

    answer: Answer
    before: Answer | None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the page shows; None or empty is left out of it."""

    manifest: RunManifest
    product: Artifact | None
    before: Quality | None
    after: Quality | None
    samples_right: list[Sample]
    samples_wrong: list[Sample]
    quantize: Quantize | None
    export: Export | None
    train: TrainReport | None
    loss: list[LossStep]
    label: LabelReport | None
    bench: bench_report.Run | None
    predictions: list[Prediction]
    data: list[DataFacts]
    missing: list[str]


def gather(run_dir: Path) -> Facts:
    """Read the manifest and the stages' reports. Raises UsageError only where there is no manifest."""
    told = manifest.read(run_dir)
    missing: list[str] = []

    def read(record: StageRecord | None, name: str, load: Callable[[Path], T]) -> T | None:
        artifact = record.outputs.get(name) if record else None
        if record is None or artifact is None:
            return None
        try:
            return load(run_dir / artifact.path)
        except PillmError as error:
            missing.append(f"{record.id}: {error.message}")
            return None

    last = _last(told, "evaluate")
    after = read(last, "report", quality_report.load)
    first, before = None, None
    for record in _all(told, "evaluate")[:-1]:
        found = read(record, "report", quality_report.load)
        # Only the same questions, asked the same way, can be compared.
        if found and after and _terms(found) == _terms(after):
            first, before = record, found
            break
    right, wrong = _samples(
        read(last, "answers", quality_report.load_answers) or [],
        read(first, "answers", quality_report.load_answers) or [],
    )
    trained, quantized = _last(told, "train"), _last(told, "quantize")
    measured = read(_last(told, "bench"), "report", bench_report.load)
    produced = quantized or _last(told, "export")
    return Facts(
        manifest=told,
        product=produced.outputs.get("gguf") if produced else None,
        before=before,
        after=after,
        samples_right=right,
        samples_wrong=wrong,
        quantize=read(quantized, "report", quantize_report.load),
        export=read(_last(told, "export"), "report", export_report.load),
        train=read(trained, "report", train_report.load),
        loss=read(trained, "log", _load_loss) or [],
        label=read(_last(told, "label"), "report", label_report.load),
        bench=measured,
        predictions=_predicted(measured.model) if measured else [],
        data=list(_data(run_dir, told)),
        missing=missing,
    )


def _predicted(model: bench_report.Model) -> list[Prediction]:
    """What to expect of the measured file on each board; nothing where the file's header was not read."""
    known = (model.weight_bytes, model.read_bytes, model.kv_bytes_per_token, model.vocabulary, model.width)
    if any(value is None for value in known):
        return []
    numbers = ModelNumbers(*(value or 0 for value in known), types=model.types)
    # Other boards have the processors of these two.
    shown = (board for board in boards.shipped().values() if board.family in ("pi4", "pi5"))
    return [predict(board, numbers) for board in shown]


def _all(told: RunManifest, stage: str) -> list[StageRecord]:
    return [record for record in told.stages if record.stage == stage]


def _last(told: RunManifest, stage: str) -> StageRecord | None:
    records = _all(told, stage)
    return records[-1] if records else None


def _terms(quality: quality_report.Quality) -> tuple[object, ...]:
    return quality.data_sha256, quality.max_tokens, quality.context


def _load_loss(path: Path) -> list[LossStep]:
    return read_report_lines(path, LossStep, "train")


def _samples(after: list[Answer], before: list[Answer]) -> tuple[list[Sample], list[Sample]]:
    """Four right answers of different kinds and languages, and four that are wrong for different reasons."""
    earlier = {answer.id: answer for answer in before}
    right = _spread([answer for answer in after if answer.right], lambda answer: (answer.kind, answer.locale))
    wrong = _spread([answer for answer in after if not answer.right], lambda answer: (answer.kind, answer.reason))
    return tuple([Sample(answer, earlier.get(answer.id)) for answer in group] for group in (right, wrong))  # type: ignore[return-value]


def _spread(answers: list[Answer], key: Callable[[Answer], tuple[str, str]], count: int = 4) -> list[Answer]:
    """The first `count` answers that differ in both parts of the key, then in one, then in neither."""
    chosen: list[Answer] = []
    for least in (2, 1, 0):
        for answer in answers:
            if len(chosen) == count:
                return chosen
            distance = [sum(a != b for a, b in zip(key(answer), key(other), strict=True)) for other in chosen]
            if answer not in chosen and all(d >= least for d in distance):
                chosen.append(answer)
    return chosen


def _data(run_dir: Path, told: RunManifest) -> Iterator[DataFacts]:
    """The datasets that stages read, each once, with what it was used for."""
    made = {artifact.sha256: run_dir / artifact.path for record in told.stages for artifact in record.outputs.values()}
    uses: dict[str, tuple[Artifact, list[str]]] = {}
    for record in told.stages:
        for artifact in record.inputs.values():
            if artifact.path.endswith(".jsonl") or artifact.path.startswith(shipped.PREFIX):
                _, steps = uses.setdefault(artifact.sha256, (artifact, []))
                if record.id not in steps:
                    steps.append(record.id)
    for artifact, steps in uses.values():
        counts: dict[str, Counter[str]] = {"locale": Counter(), "license": Counter(), "source": Counter()}
        path = _there(artifact, made)
        for _, item in jsonl.scan(path) if path else ():
            if isinstance(item, Record):
                for name, counter in counts.items():
                    counter[getattr(item, name) or "not said"] += 1
        yield DataFacts(
            artifact.path if artifact.path.startswith(shipped.PREFIX) else Path(artifact.path).name,
            ", ".join(steps),
            artifact,
            counts["locale"].total() if path else None,
            *(_most(counter) for counter in counts.values()),
        )


def _there(artifact: Artifact, made: dict[str, Path]) -> Path | None:
    """Where a dataset lies, if it is not too big to read and still what the stage read."""
    try:
        path = made.get(artifact.sha256) or shipped.data_path(artifact.path)
        same = path.is_file() and path.stat().st_size <= _MAX_DATA_BYTES and sha256_file(path) == artifact.sha256
    except (PillmError, OSError):
        return None
    return path if same else None


def _most(counter: Counter[str], shown: int = 6) -> dict[str, int]:
    """The most frequent values; the rest in one sum."""
    most = dict(counter.most_common(shown))
    rest = counter.total() - sum(most.values())
    return most | ({f"{len(counter) - shown} more": rest} if rest else {})
