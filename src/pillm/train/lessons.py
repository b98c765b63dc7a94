"""From the options to what each pack is judged by: which loss, from a cache or a teacher, and who writes the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

from pillm.core.errors import UsageError
from pillm.core.events import Emit, Log, Progress
from pillm.core.records import Record
from pillm.logit_cache import Cache, check, open_cache, verify
from pillm.models import refs
from pillm.models.chat import ChatTemplate
from pillm.train import live_teacher, on_policy
from pillm.train.dialogues import Encoded, Pack
from pillm.train.loop import Judge, Write, by_labels
from pillm.train.losses import cached, divergences
from pillm.train.losses.objectives import Objective, mixed, sparse
from pillm.train.options import TrainOptions
from pillm.train.settings import Settings
from pillm.train.vocabulary import template_hash, vocabulary_hash

Name = Literal["cross-entropy", "forward-kl", "reverse-kl", "jsd", "uld"]
ULD_SHARE = 0.6
"""Boizard et al. 2024 add 1.5 times their loss to cross-entropy (section 4): a share of 0.6 of both."""


class Choice(NamedTuple):
    """The loss that the options mean, with reasons where they leave it open."""

    loss: Name
    share: float
    """Of the divergence in the loss on the data's own answers."""
    own: Name
    """The loss on answers that the student writes."""
    reasons: dict[str, str]


class Lessons(NamedTuple):
    """What a run's packs are judged by."""

    choice: Choice
    data: Judge
    own: Judge = by_labels
    write: Write | None = None
    cache: Cache | None = None
    teacher: str | None = None
    """What names its weights."""

    @property
    def identity(self) -> list[str]:
        """Of the cache and the teacher."""
        return [self.cache.identity if self.cache else "", self.teacher or ""]


def choose(options: TrainOptions) -> Choice:
    """Settle loss and share. Raises UsageError for options that contradict each other."""
    asked, from_cache, live = options.loss, options.logits is not None, options.teacher is not None
    reasons: dict[str, str] = {}
    loss: Name
    if asked == "auto":
        loss = "forward-kl" if from_cache or live else "cross-entropy"
        reasons["loss"] = "there are a teacher's logits" if from_cache or live else "no --logits and no --teacher"
    else:
        loss = asked
    if loss == "uld" and not live:
        raise UsageError("--loss uld compares with a teacher that runs beside the student", "give one: --teacher REF")
    if loss not in ("cross-entropy", "uld") and not (from_cache or live):
        raise UsageError(
            f"--loss {loss} needs a teacher's distributions",
            "give a cache (pillm logits): --logits DIR; or --teacher REF",
        )
    if options.on_policy:
        if not live or loss == "cross-entropy":
            raise UsageError(
                "--on-policy needs a teacher that scores what the student writes",
                "give one, and a loss from it: --teacher REF",
            )
        if loss == "uld":
            raise UsageError(
                "--on-policy and --loss uld do not go together", "take a teacher with the student's tokenizer"
            )
    elif from_cache and live:
        raise UsageError(
            "--logits and --teacher both say where distributions come from", "give one of them; or --on-policy"
        )
    if loss == "uld" and from_cache:
        raise UsageError("--loss uld has no use for --logits", "leave --logits out")
    if loss == "uld" and options.kd_weight == 1:
        raise UsageError(
            "--loss uld with --kd-weight 1: sorted probabilities do not say which token is meant",
            f"leave a part to cross-entropy: --kd-weight {ULD_SHARE}",
        )
    share = options.kd_weight
    if share is None:
        share = ULD_SHARE if loss == "uld" else 1.0
        reasons["kd_weight"] = (
            "uld alone does not say which token is meant" if loss == "uld" else "a divergence stands alone"
        )
    if loss == "cross-entropy":
        share = 0.0
        reasons["kd_weight"] = "the loss is cross-entropy alone"
    own: Name = "reverse-kl" if asked == "auto" else loss
    return Choice(loss, share, own, reasons)


def prepare(
    options: TrainOptions, settings: Settings, records: Sequence[Record], encoded: Sequence[Encoded],
    template: ChatTemplate, tokenizer: Any, model: Any, emit: Emit,
) -> Lessons:  # fmt: skip
    """Open the cache, load the teacher, and check that they fit the student and the data.

    Raises UsageError for a teacher or a cache that does not fit, before anything is trained.
    """
    choice = choose(options)
    device = settings.device
    if choice.loss == "cross-entropy":
        if options.logits or options.teacher:
            emit(Log("--loss cross-entropy: the teacher's distributions are not used", "warning"))
        return Lessons(choice, by_labels)
    vocabulary = len(model.get_output_embeddings().weight)
    cache = None
    data: Judge | None = None
    if options.logits is not None:
        data, cache = _from_cache(
            options, choice, options.logits, records, encoded, template, tokenizer, vocabulary, device, emit
        )
    own, write, named = by_labels, None, None
    if options.teacher is not None:
        teacher = live_teacher.load(options.teacher, device, settings.dtype, emit)
        named = refs.identity(options.teacher)
        if choice.loss == "uld":
            data = _by_rank(options, choice, teacher, records, encoded, template, tokenizer, device, emit)
        else:
            live_teacher.check_same_tokenizer(teacher, tokenizer)
            live_teacher.check_context(teacher, encoded)
            common = min(teacher.rows, vocabulary)
            live_teacher.check_targets(common, encoded)
            if teacher.rows != vocabulary:
                emit(
                    Log(
                        f"teacher and student have {teacher.rows} and {vocabulary} rows: the first {common} are compared"
                    )
                )
            data = data or _from_teacher(options, choice.loss, choice.share, teacher, common, device)
            if options.on_policy:
                own = _from_teacher(options, choice.own, 1.0, teacher, common, device)
                write = _writer(options, encoded, tokenizer, model, device, common)
    if data is None:
        raise AssertionError("choose() lets no such options through")
    return Lessons(choice, data, own, write, cache, named)


def _from_cache(
    options: TrainOptions, choice: Choice, path: Path, records: Sequence[Record], encoded: Sequence[Encoded],
    template: ChatTemplate, tokenizer: Any, vocabulary: int, device: str, emit: Emit,
) -> tuple[Judge, Cache]:  # fmt: skip
    cache = open_cache(path)
    check(
        cache,
        vocabulary=vocabulary_hash(tokenizer.get_vocab()),
        template=template_hash(template),
        temperature=options.kd_temperature,
    )
    places = cached.find(cache, encoded, records, str(options.data))
    # Before hours of training end at a damaged byte.
    emit(Progress("checking the cache", 0, 1, "caches"))
    verify(cache)
    emit(Progress("checking the cache", 1, 1, "caches"))
    kind = choice.loss
    if cache.manifest.biased:
        emit(
            Log(
                f"--logits: a {cache.manifest.kind} cache knows nothing of the tail; what is learned is biased",
                "warning",
            )
        )
    if kind != "forward-kl":
        emit(
            Log(
                f"{kind} from a cache is over the exact tokens and one bucket for all others: a lower bound"
                " (--teacher has the whole distribution)",
                "warning",
            )
        )

    def judge(item: Pack, targets: torch.Tensor) -> Objective:
        found = cached.joined(
            [cache.read(places[number]) for number in item.dialogues], vocabulary, cache.manifest, device
        )
        if len(found.ids) != len(targets):
            raise UsageError(
                f"--logits: the cache has {len(found.ids)} learned tokens where the data has {len(targets)}",
                "the cache is of other data; make it again: pillm logits",
            )
        if kind == "forward-kl":
            if options.kd_temperature == 1:
                return sparse(targets, found.ids, found.weights, found.entropy, choice.share)
            divergence = divergences.forward_sparse(found.ids, found.weights, found.entropy)
        else:
            top = found.ids[:, : found.exact.shape[1]]
            divergence = divergences.coarse(cast(divergences.Kind, kind), top, found.exact, options.jsd_beta)
        return mixed(targets, divergence, choice.share, options.kd_temperature)

    return judge, cache


def _from_teacher(
    options: TrainOptions, kind: Name, share: float, teacher: live_teacher.Teacher, common: int, device: str
) -> Judge:
    temperature = options.kd_temperature

    def judge(item: Pack, targets: torch.Tensor) -> Objective:
        logits = live_teacher.logits_of(teacher, item, device)
        divergence = divergences.dense(cast(divergences.Kind, kind), logits, temperature, options.jsd_beta)
        return mixed(targets, divergence, share, temperature, common)

    return judge


def _by_rank(
    options: TrainOptions, choice: Choice, teacher: live_teacher.Teacher, records: Sequence[Record],
    encoded: Sequence[Encoded], template: ChatTemplate, tokenizer: Any, device: str, emit: Emit,
) -> Judge:  # fmt: skip
    if live_teacher.same_tokenizer(tokenizer.get_vocab(), teacher.tokenizer.get_vocab()):
        emit(
            Log(
                "--loss uld: the teacher has the student's tokenizer; --loss forward-kl would use its ids, too",
                "warning",
            )
        )
    other = live_teacher.read_otherwise(teacher, records, encoded, template, tokenizer, options.loss_on, emit)

    def judge(item: Pack, targets: torch.Tensor) -> Objective:
        theirs, partners = live_teacher.read_pack(other, item, options.micro_tokens)
        logits = live_teacher.logits_of(teacher, theirs, device)
        pairs = torch.tensor(partners, device=device)
        divergence = divergences.by_rank(logits, pairs, options.kd_temperature)
        return mixed(targets, divergence, choice.share, options.kd_temperature)

    return judge


def _writer(
    options: TrainOptions, encoded: Sequence[Encoded], tokenizer: Any, model: Any, device: str, common: int
) -> Write:
    on_policy.check_room(encoded, getattr(model.config.get_text_config(), "max_position_embeddings", None))
    stops = on_policy.stop_tokens(encoded, tokenizer.all_special_ids, tokenizer.eos_token_id)
    by_number = {item.number: item for item in encoded}
    known = min(common, max(tokenizer.get_vocab().values()) + 1)

    def write(student: Any, step: int, packs: Sequence[Pack]) -> list[Pack] | None:
        if not on_policy.is_own(step, options):
            return None
        return on_policy.answered(student, packs, by_number, step, stops, options, device, known)

    return write
