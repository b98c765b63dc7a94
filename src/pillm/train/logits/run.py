"""`pillm logits`: labelled dialogues and a teacher in, a cache of sparse distributions out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pillm.core import jsonl
from pillm.core.artifacts import artifact_of, clear_partials, sha256_file, write_atomic
from pillm.core.errors import GateError, MissingError, UsageError, writing
from pillm.core.events import Emit, Log, Made, Metric, Progress
from pillm.core.locks import locked
from pillm.core.records import Record
from pillm.core.shipped import data_path
from pillm.core.stage import Result
from pillm.logit_cache import manifest as manifests
from pillm.logit_cache import shards as files
from pillm.logit_cache import writer
from pillm.logit_cache.manifest import Manifest
from pillm.logit_cache.rows import Rows
from pillm.models import refs, threads
from pillm.models.chat import ChatTemplate
from pillm.train.logits.options import LogitsOptions
from pillm.train.logits.report import LogitsReport
from pillm.train.options import TrainOptions
from pillm.train.vocabulary import template_hash, vocabulary_hash

try:
    import torch
    import transformers

    from pillm.train import attention, student
    from pillm.train.dialogues import Pack, check, encode
    from pillm.train.logits import plan as plans
    from pillm.train.logits.sampling import offsets, split
    from pillm.train.logits.teacher import Teacher
    from pillm.train.settings import settle
except ModuleNotFoundError as error:
    raise MissingError(
        f"running a teacher needs {error.name}, which is not installed", "pip install 'pi-llm-optimizer[train]'"
    ) from error

LOCK = "logits.lock"


class Source(NamedTuple):
    """A teacher, wherever it runs."""

    tokenizer: Any
    vocabulary_size: int
    context: int | None
    """Most tokens of a dialogue."""
    kind: manifests.Kind
    arithmetic: str
    teacher: str
    """What names its weights; holds no key."""
    rows: Callable[[plans.Plan, Pack], tuple[Rows, float]]
    """The learned tokens' distributions of a pass, in its order, and the sum of their entropies."""
    prepare: Callable[[plans.Plan], None] = lambda work: None
    """Look at the whole plan before the first pass."""


def run(options: LogitsOptions, emit: Emit) -> Result:
    """Cache the teacher's distributions; publish `cache/` and `logits.json` in `options.out`."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    file = data_path(options.data)
    records = _answered(jsonl.read(file), str(options.data), emit)
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    with locked(options.out / LOCK):
        clear_partials(options.out)
        source = _source(options, emit)
        template = student.chat_template(options.chat_template, source.tokenizer, any(r.tools for r in records))
        encoded = encode(records, template, source.tokenizer, options.loss_on)
        kept = check(records, encoded, str(options.data), options.max_length, options.long)
        work = plans.plan([encoded[index] for index in kept], options)
        if not work.dialogues:
            raise UsageError(f"{options.data}: no token of these dialogues can be learned", "label them: pillm label")
        longest = max(len(item.ids) for item in work.dialogues)
        if source.context and longest > source.context:
            raise UsageError(
                f"a dialogue has {longest} tokens, and the teacher's context is {source.context}",
                f"leave such dialogues out: --max-length {source.context} --long drop",
            )
        source.prepare(work)
        manifest = _manifest(options, source, template, file, work)
        folder = options.out / "cache"
        _fill(folder, manifest, source, work, emit)
        manifest = writer.finish(folder, manifest)
        name = student.template_name(options.chat_template, template, source.tokenizer, "the teacher's own")
        report = _report(options, folder, manifest, source, work, name, len(kept), len(records) - len(kept))
        outputs = {"cache": folder, "report": options.out / "logits.json"}
        with writing(options.out):
            write_atomic(outputs["report"], msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    for output, path in outputs.items():
        emit(Made(output, artifact_of(path)))
    metrics = {"learned_tokens": report.learned_tokens, "bytes_per_token": report.bytes_per_token,
               "tail_mass": report.mean_tail_mass, "shards": report.shards}  # fmt: skip
    return Result(outputs, metrics)


def _answered(records: list[Record], file: str, emit: Emit) -> list[Record]:
    answered = [record for record in records if not record.is_prompt]
    if left := len(records) - len(answered):
        emit(Log(f"{left} prompts without an answer are left out (pillm label can answer them)", "warning"))
    if not answered:
        raise UsageError(f"{file}: no record has an answer to learn from", "label it first: pillm label")
    return answered


def _source(options: LogitsOptions, emit: Emit) -> Source:
    if isinstance(refs.parse(options.teacher), refs.ServerRef):
        from pillm.train.logits import server

        return server.source(options, emit)
    if options.tokenizer is not None:
        raise UsageError(
            "--tokenizer is for a teacher behind a server", "leave it out: a model's own tokenizer is used"
        )
    path = refs.resolve(options.teacher, emit)
    threads.fix()
    # The rule of pillm train; all else in these options has no effect on it.
    given = {"data": options.data, "student": options.teacher, "dtype": options.dtype, "device": options.device}
    rule = TrainOptions.model_validate(given | {"gradient_checkpointing": "off"})
    settings = settle(rule, 0, 0, 0)
    emit(Progress("loading the teacher", 0, 1, "models"))
    model, tokenizer, _ = student.load(path, getattr(torch, settings.dtype))
    attention.use(model)
    config = model.config.get_text_config()
    # Heads are often longer than the vocabulary, for the hardware's sake.
    rows = model.get_output_embeddings().weight.shape[0]
    size = min(rows, max(tokenizer.get_vocab().values()) + 1)
    teacher = Teacher(model, settings.device, size)
    emit(Progress("loading the teacher", 1, 1, "models"))
    emit(Log(f"the teacher runs on {settings.device} in {settings.dtype}"))

    def rows_of(work: plans.Plan, item: Pack) -> tuple[Rows, float]:
        u = [offsets(options.seed, work.keys[n], plans.learned_count(work.dialogues[n])) for n in item.dialogues]
        return teacher.rows(item, u, options.top, options.samples, options.temperature)

    kind = "sampled" if options.samples else "top-k"
    arithmetic = f"{settings.device} {settings.dtype}"
    context, named = getattr(config, "max_position_embeddings", None), refs.identity(options.teacher)
    return Source(tokenizer, size, context, kind, arithmetic, named, rows_of)


def _manifest(options: LogitsOptions, source: Source, template: ChatTemplate, file: Path, work: plans.Plan) -> Manifest:
    """All that is known before the first pass."""
    vocabulary = vocabulary_hash(source.tokenizer.get_vocab())
    facts: dict[str, object] = {
        "format": manifests.VERSION, "kind": source.kind, "temperature": options.temperature, "top": options.top,
        "samples": options.samples, "seed": options.seed, "vocabulary": vocabulary, "size": source.vocabulary_size,
        "teacher": source.teacher, "arithmetic": source.arithmetic, "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }  # fmt: skip
    return Manifest(
        kind=source.kind,
        biased=source.kind != "sampled",
        temperature=options.temperature,
        top=options.top,
        samples=options.samples if source.kind == "sampled" else 0,
        seed=options.seed,
        vocabulary_size=source.vocabulary_size,
        vocabulary=vocabulary,
        template=template_hash(template),
        dataset=sha256_file(file),
        teacher=source.teacher,
        run=plans.identity(work, facts),
        dialogues=0,
        positions=0,
        shards=(),
    )


def _fill(folder: Path, manifest: Manifest, source: Source, work: plans.Plan, emit: Emit) -> None:
    """Make every shard that is not there."""
    kept = writer.prepare(folder, manifest.run, len(work.shards), emit)
    total, done = work.positions, 0
    if kept:
        emit(Log(f"{len(kept)} of {len(work.shards)} shards were made by an earlier run"))
    began, made, told = time.monotonic(), 0, 0.0
    for number, packs in enumerate(work.shards):
        if number in kept:
            done += sum(item.targets for item in packs)
            continue
        dialogues: list[tuple[bytes, Rows]] = []
        entropy = 0.0
        for item in packs:
            rows, more = _rows(source, work, item)
            counts = [plans.learned_count(work.dialogues[index]) for index in item.dialogues]
            keys = [work.keys[index] for index in item.dialogues]
            dialogues += zip(keys, split(rows, counts), strict=True)
            entropy += more
            made, done = made + item.targets, done + item.targets
            if (now := time.monotonic()) - told > 0.5:
                told = now
                _tell(done, total, made, now - began, emit)
        mass = math.fsum(float(rows.mass.sum(dtype="float64")) for _, rows in dialogues)
        run_id = bytes.fromhex(manifest.run)
        with writing(folder):
            path = folder / files.file_name(number)
            files.write(path, number, run_id, manifest.vocabulary_size, dialogues, entropy, mass)
    _tell(done, total, made, time.monotonic() - began, emit)


def _rows(source: Source, work: plans.Plan, item: Pack) -> tuple[Rows, float]:
    try:
        return source.rows(work, item)
    except FloatingPointError as error:
        raise GateError(
            f"the teacher gives {error}, computing in {source.arithmetic}",
            "try --dtype float32; if that changes nothing, the teacher's weights are broken",
        ) from error


def _tell(done: int, total: int, made: int, seconds: float, emit: Emit) -> None:
    emit(Progress("logits", done, total, "tokens"))
    if made and seconds > 1:
        emit(Metric("tokens_per_second", round(made / seconds, 1), done, "tokens/s"))
        emit(Metric("remaining", round((total - done) * seconds / made), done, "s"))


def _report(
    options: LogitsOptions,
    folder: Path,
    manifest: Manifest,
    source: Source,
    work: plans.Plan,
    template: str,
    records: int,
    dropped: int,
) -> LogitsReport:
    opened = [files.open_shard(folder / shard.name, "") for shard in manifest.shards]
    path = folder / manifests.NAME
    size = sum(shard.bytes for shard in manifest.shards) + path.stat().st_size
    count = manifest.positions
    entropy = math.fsum(file.header.entropy for file in opened) / count
    return LogitsReport(
        teacher=manifest.teacher,
        kind=manifest.kind,
        biased=manifest.biased,
        chat_template=template,
        top=manifest.top,
        samples=manifest.samples,
        temperature=manifest.temperature,
        records=records,
        dropped_records=dropped,
        dialogues=manifest.dialogues,
        learned_tokens=count,
        processed_tokens=sum(len(item.ids) for packs in work.shards for item in packs),
        shards=len(opened),
        bytes=size,
        bytes_per_token=round(size / count, 3),
        entries_per_token=round(sum(int(file.entries["entries"].sum()) for file in opened) / count, 3),
        # Of a distribution without any likely token everything is tail, and float32 may sum that to a little more than 1.
        mean_tail_mass=min(1.0, round(math.fsum(file.header.mass for file in opened) / count, 9)),
        mean_entropy=None if source.kind == "server-top-k" else round(entropy, 9),
        arithmetic=source.arithmetic,
        manifest=sha256_file(path),
    )
