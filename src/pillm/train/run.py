"""`pillm train`: labelled dialogues and a student in, a merged model out."""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from pillm.core import jsonl
from pillm.core.artifacts import artifact_of, atomic_folder, clear_partials, write_atomic
from pillm.core.errors import MissingError, UsageError, writing
from pillm.core.events import Emit, Log, Made, Progress
from pillm.core.locks import locked
from pillm.core.options import NoEffect, marks
from pillm.core.records import Record
from pillm.core.shipped import data_path
from pillm.core.stage import Result
from pillm.models import refs, threads
from pillm.models.chat import ChatTemplate
from pillm.train.options import TrainOptions
from pillm.train.presets import applied
from pillm.train.report import Distillation, Step, TrainReport
from pillm.train.shape import parse

try:
    import torch
    import transformers
    from safetensors import SafetensorError

    from pillm.train import attention, lessons, loop, prune, student, tracking
    from pillm.train.dialogues import Encoded, check, encode
    from pillm.train.memory import sizes_of_model
    from pillm.train.settings import Settings, settle, table
except ModuleNotFoundError as error:
    raise MissingError(
        f"training needs {error.name}, which is not installed", "pip install 'pi-llm-optimizer[train]'"
    ) from error


LOCK = "train.lock"


def run(options: TrainOptions, emit: Emit) -> Result:
    """Train, merge, and publish `model/`, `training.jsonl` and `train.json` in `options.out`."""
    # oneDNN reads this at its first product. It makes a kernel for each shape of matrices and would keep 1,024 of them.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = applied(options)
    choice = lessons.choose(options)
    parse(options.init)
    file = data_path(options.data)
    card = _read_card(options.card)
    records = _answered(jsonl.read(file), str(options.data), emit)
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    with locked(options.out / LOCK):
        return _trained(options, choice, records, card, emit)


def _trained(options: TrainOptions, choice: lessons.Choice, records: list[Record], card: bytes, emit: Emit) -> Result:
    with writing(options.out):
        clear_partials(options.out)
        clear_partials(options.out / loop.CHECKPOINT)
    path = refs.resolve(options.student, emit)
    threads.fix()

    emit(Progress("loading the student", 0, 1, "models"))
    model, tokenizer, came_in = student.load(path, torch.float32)
    emit(Progress("loading the student", 1, 1, "models"))
    config = model.config.get_text_config()
    settings = settle(
        options, model.num_parameters(), config.num_hidden_layers, config.hidden_size, sizes_of_model(model), emit
    )
    with_tools = any(record.tools for record in records)
    template = student.chat_template(options.chat_template, tokenizer, with_tools)
    hyperparameters = _with_choice(table(options, settings), choice)
    for name, value, source in hyperparameters:
        emit(Log(f"{name} = {value} ({source})"))

    encoded = encode(records, template, tokenizer, options.loss_on)
    kept = check(records, encoded, str(options.data), options.max_length, options.long)
    _check_context(options, config, [encoded[i] for i in kept])
    training, validation = _split([encoded[i] for i in kept], options)
    work = loop.plan(training, validation, options)

    attention.use(model)
    model, base = _made_smaller(model, path, options, settings, work, emit)
    with _quiet():
        taught = lessons.prepare(options, settings, records, [*training, *validation], template, tokenizer, model, emit)
    torch.manual_seed(options.seed)
    if settings.method != "full":
        with _quiet():
            model = student.with_adapters(path, model, settings)
    elif options.embeddings == "freeze":
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            part.requires_grad_(False)
    masters = loop.set_arithmetic(model, settings)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    emit(Log(f"{len(training)} dialogues, {len(work.steps)} steps, {trained:,} of {total:,} parameters are trained"))

    with _quiet():
        identity = loop.identity_of(options, settings, refs.identity(options.student), work, taught.identity)
        log = loop.train(
            model, masters, work, options, settings, identity, emit,
            judge=taught.data, judge_own=taught.own, write=taught.write,
            track=partial(tracking.opened, options),
        )  # fmt: skip
        loop.give_back_memory()
        emit(Progress("merging", 0, 1, "models"))
        final = student.merged(loop.take_masters(model, masters), base, settings)
    final.to(came_in)
    # float16 may hold less than the masters do.
    loop.check_finite(final.named_parameters(), len(log))
    # What changes nothing in the result, or says how much memory is free, would make equal runs differ.
    unrelated = {*marks(TrainOptions, NoEffect), "gradient_checkpointing", "logits"}
    report = TrainReport(
        student=options.student,
        method=settings.method,
        chat_template=student.template_name(options.chat_template, template, tokenizer, "the student's own"),
        records=len(training),
        validation_records=len(validation),
        dropped_records=len(encoded) - len(kept),
        learned_tokens=sum(item.targets for packs in work.steps for item in packs),
        processed_tokens=log[-1].tokens,
        unpacked_tokens=sum(_unpacked(item) for packs in work.steps for item in packs),
        steps=len(log),
        trained_parameters=trained,
        parameters=total,
        first_loss=log[0].loss,
        last_loss=log[-1].loss,
        first_validation_loss=log[0].validation_loss,
        last_validation_loss=log[-1].validation_loss,
        hyperparameters=[row for row in hyperparameters if row[0] not in unrelated],
        dataset_card=hashlib.sha256(card).hexdigest() if card else None,
        loss=choice.loss,
        distillation=_distillation(options, taught, log),
    )
    outputs = _publish(options, final, tokenizer, template, log, report, card, emit)
    metrics = {
        "first_loss": log[0].loss,
        "last_loss": log[-1].loss,
        "validation_loss": log[-1].validation_loss,
        "steps": len(log),
        "tokens": log[-1].tokens,
        "loss": choice.loss,
    }
    return Result(outputs, metrics)


def _read_card(path: Path | None) -> bytes:
    """The card's bytes, before hours of training end at a file that is not there."""
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "make one: pillm dataset card"
        raise UsageError(f"--card={path}: cannot be read ({error.strerror})", hint) from error


def _answered(records: list[Record], file: str, emit: Emit) -> list[Record]:
    answered = [record for record in records if not record.is_prompt]
    if left := len(records) - len(answered):
        emit(Log(f"{left} prompts without an answer are left out (pillm label can answer them)", "warning"))
    if not answered:
        raise UsageError(f"{file}: no record has an answer to learn from", "label it first: pillm label")
    return answered


def _split(encoded: list[Encoded], options: TrainOptions) -> tuple[list[Encoded], list[Encoded]]:
    order = list(range(len(encoded)))
    random.Random(options.seed).shuffle(order)  # noqa: S311
    count = round(len(order) * options.validation)
    if options.validation and len(order) > 1:
        count = max(1, count)
    aside = set(order[:count])
    return [e for i, e in enumerate(encoded) if i not in aside], [encoded[i] for i in sorted(aside)]


def _check_context(options: TrainOptions, config: Any, encoded: list[Encoded]) -> None:
    """Raises UsageError if a dialogue is longer than the student reads: beyond that, positions mean nothing to it."""
    limit = getattr(config, "max_position_embeddings", None)
    longest = max(len(item.ids) for item in encoded)
    if limit and longest > limit:
        many = sum(len(item.ids) > limit for item in encoded)
        raise UsageError(
            f"{options.data}: {many} dialogues are longer than the {limit} tokens that the student reads"
            f" (the longest has {longest})",
            f"leave them out: --max-length {limit} --long drop; or take a student with a longer context",
        )


def _made_smaller(
    model: Any, path: Path, options: TrainOptions, settings: Settings, work: loop.Plan, emit: Emit
) -> tuple[Any, Callable[[], Any]]:
    """The student as it is to be trained, and what gives the same anew in float32, to be merged with adapters."""

    def loaded() -> Any:
        return student.load(path, torch.float32)[0]

    shape = parse(options.init)
    if shape is None:
        return model, loaded
    small = prune.pruned(model, shape, [item for packs in work.steps for item in packs], settings, emit)
    attention.use(small)
    if settings.method == "full":
        return small, loaded
    fresh = {name: value.clone() for name, value in small.state_dict().items()}
    config, generation = copy.deepcopy(small.config), copy.deepcopy(small.generation_config)

    def again() -> Any:
        made = type(small)(config)
        made.load_state_dict(fresh)
        made.generation_config = generation
        return made

    return small, again


def _with_choice(rows: Iterable[tuple[str, str, str]], choice: lessons.Choice) -> list[tuple[str, str, str]]:
    """The table with what `auto` means for the loss."""
    values = {"loss": choice.loss, "kd_weight": str(choice.share)}
    return [
        (name, values[name], f"chosen: {choice.reasons[name]}") if name in choice.reasons else (name, value, source)
        for name, value, source in rows
    ]


def _distillation(options: TrainOptions, taught: lessons.Lessons, log: list[Step]) -> Distillation | None:
    choice = taught.choice
    if choice.loss == "cross-entropy":
        return None
    return Distillation(
        loss=choice.loss,
        own_loss=choice.own if options.on_policy else None,
        weight=choice.share,
        temperature=options.kd_temperature,
        teacher=options.teacher,
        teacher_identity=taught.teacher or (taught.cache.manifest.teacher if taught.cache else None),
        cache=taught.cache.identity if taught.cache else None,
        cache_kind=taught.cache.manifest.kind if taught.cache else None,
        biased=bool(taught.cache and taught.cache.manifest.biased),
        on_policy_steps=sum(step.on_policy for step in log),
        first_validation_cross_entropy=log[0].validation_cross_entropy,
        last_validation_cross_entropy=log[-1].validation_cross_entropy,
    )


def _unpacked(item: Any) -> int:
    beginning = item.segment.count(0)
    return len(item.ids) - beginning + beginning * max(1, max(item.segment))


def _publish(
    options: TrainOptions,
    final: Any,
    tokenizer: Any,
    template: ChatTemplate,
    log: list[Any],
    report: TrainReport,
    card: bytes,
    emit: Emit,
) -> dict[str, Any]:
    out = options.out
    outputs = {"model": out / "model", "log": out / "training.jsonl", "report": out / "train.json"}
    with writing(out):
        with atomic_folder(outputs["model"]) as partial:
            tokenizer.chat_template = template.source
            final.config.name_or_path = ""
            _save(final, partial)
            tokenizer.save_pretrained(partial)
            if card:
                (partial / "dataset_card.json").write_bytes(card)
        write_atomic(outputs["log"], b"".join(msgspec.json.encode(step) + b"\n" for step in log))
        write_atomic(outputs["report"], msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    emit(Progress("merging", 1, 1, "models"))
    # Gigabytes for a full training, and of no more use.
    shutil.rmtree(out / loop.CHECKPOINT, ignore_errors=True)
    with writing(out):
        (out / tracking.METRICS).unlink(missing_ok=True)
    for name, path in outputs.items():
        emit(Made(name, artifact_of(path)))
    return outputs


def _save(model: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        # It hides the system's error in its words.
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, "no space left", str(folder)) from error
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' own warnings; what a user must know is told through events."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
