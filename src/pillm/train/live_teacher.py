"""A teacher that runs beside the student: the same packs through a frozen model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pillm.core.errors import PillmError, UsageError
from pillm.core.events import Emit, Log, Progress
from pillm.core.records import Record
from pillm.models import refs
from pillm.train import attention, student
from pillm.train.dialogues import Encoded, Pack, built, encode, shared_beginnings, tensors
from pillm.train.head_loss import bare, plain_head
from pillm.train.losses import aligned
from pillm.train.losses.divergences import TeacherLogits


class Teacher(NamedTuple):
    """A frozen model on its device, and what it reads."""

    model: Any
    tokenizer: Any
    rows: int
    """Rows of its head: its vocabulary with the padding."""
    reference: str


def load(reference: str, device: str, dtype: str, emit: Emit) -> Teacher:
    """Load a teacher in the student's arithmetic. Raises PillmError that says it is about the teacher."""
    path = refs.resolve(reference, emit)
    emit(Progress("loading the teacher", 0, 1, "models"))
    try:
        model, tokenizer, _ = student.load(path, torch.float32)
        attention.use(model)
    except UsageError as error:
        raise UsageError(f"--teacher: {error.message}", error.hint) from error
    model.requires_grad_(False)
    model.eval()
    model.to(device)
    for parameter in model.parameters():
        # Not model.to(dtype): that would round the rotary frequencies, too.
        parameter.data = parameter.data.to(getattr(torch, dtype))
    emit(Progress("loading the teacher", 1, 1, "models"))
    return Teacher(model, tokenizer, len(model.get_output_embeddings().weight), reference)


def same_tokenizer(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two vocabularies (token -> id) are equal, but for tokens that only one of them has added."""
    small, large = sorted((one, other), key=len)
    return all(large.get(token) == index for token, index in small.items())


def check_same_tokenizer(teacher: Teacher, tokenizer: Any) -> None:
    """Raises UsageError, with the ways out, if teacher and student do not read the same tokens."""
    mine, other = tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if same_tokenizer(mine, other):
        return
    alike = sum(other.get(token) == index for token, index in mine.items())
    raise UsageError(
        f"--teacher {teacher.reference} has another tokenizer than the student ({len(other):,} tokens against"
        f" {len(mine):,}, {alike:,} with the same id), so their distributions cannot be compared token by token",
        "take a student of the teacher's family; or let the teacher write the answers (pillm label) and train on their"
        " text; or --loss uld, which compares across tokenizers",
    )


def check_context(teacher: Teacher, encoded: Sequence[Encoded]) -> None:
    """Raises UsageError if a dialogue is longer than the teacher can read."""
    longest = max((len(item.ids) for item in encoded), default=0)
    limit = getattr(teacher.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and longest > limit:
        raise UsageError(
            f"the longest dialogue has {longest} of the teacher's tokens, and {teacher.reference} reads {limit}",
            f"leave long dialogues out: --max-length {limit} --long drop",
        )


def check_targets(rows: int, encoded: Sequence[Encoded]) -> None:
    """Raises UsageError if the data has tokens beyond the first `rows`, those that teacher and student both have."""
    highest = max((max(item.ids) for item in encoded), default=0)
    if highest >= rows:
        raise UsageError(
            f"the data has token {highest}, and teacher and student share only the first {rows}",
            "take a chat template whose tokens both know: --chat-template",
        )


def logits_of(teacher: Teacher, item: Pack, device: str) -> TeacherLogits:
    """The teacher's logits of a pack's learned tokens, made a chunk at a time from hidden states that are kept."""
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in tensors(item).items()}
    predict = inputs.pop("predict")
    del inputs["targets"]
    with torch.no_grad():
        if not plain_head(teacher.model):
            whole = teacher.model(**inputs, logits_to_keep=predict, use_cache=False).logits[0]
            return lambda rows: whole[rows].float()
        hidden = bare(teacher.model).get_decoder()(**inputs, use_cache=False).last_hidden_state[0, predict]
    head = bare(teacher.model).get_output_embeddings().weight
    return lambda rows: (hidden[rows] @ head.T).float()


class Other(NamedTuple):
    """The same dialogues as the teacher with another tokenizer reads them."""

    encoded: dict[int, Encoded]
    """By the dialogue's number."""
    pairs: dict[int, list[int]]
    """For each of a dialogue's learned tokens the teacher's learned token that is predicted at the same place, or -1."""


def read_otherwise(
    teacher: Teacher, records: Sequence[Record], mine: Sequence[Encoded], template: Any, tokenizer: Any,
    loss_on: str, emit: Emit,
) -> Other:  # fmt: skip
    """The dialogues `mine` in the teacher's tokens and template, and where both begin a token at the same character.

    Raises UsageError if the teacher's template is none for these dialogues, or if nothing can be compared.
    """
    chosen = [records[item.number] for item in mine]
    try:
        theirs = student.chat_template("auto", teacher.tokenizer, any(record.tools for record in chosen))
    except PillmError as error:
        raise UsageError(
            f"--teacher {teacher.reference}: {error.message}", "take a teacher that knows tools"
        ) from error
    encoded: dict[int, Encoded] = {}
    pairs: dict[int, list[int]] = {}
    matched = total = 0
    for record, item, other in zip(chosen, mine, encode(chosen, theirs, teacher.tokenizer, loss_on), strict=True):
        links = aligned.pairs(
            aligned.turns(record, template, tokenizer, loss_on),
            aligned.turns(record, theirs, teacher.tokenizer, loss_on),
        )
        # A dialogue's very first token is predicted from nothing, so packs do not hold it as learned.
        if other.learned[0]:
            links = [max(-1, link - 1) for link in links]
        if item.learned[0]:
            del links[0]
        encoded[item.number] = other._replace(number=item.number)
        pairs[item.number] = links
        matched += sum(link >= 0 for link in links)
        total += len(links)
    if not matched:
        raise UsageError(
            "--loss uld: nowhere do both tokenizers begin a token at the same place", "take another teacher"
        )
    check_context(teacher, list(encoded.values()))
    emit(Log(f"uld: {matched} of {total} learned tokens are compared, where both tokenizers begin a token"))
    return Other(encoded, pairs)


def read_pack(other: Other, item: Pack, max_tokens: int) -> tuple[Pack, list[int]]:
    """The dialogues of a student's pack as a pack of the teacher's, and its learned tokens' partners in that or -1."""
    items = [other.encoded[number] for number in item.dialogues]
    partners: list[int] = []
    base = 0
    for one in items:
        partners += [link + base if link >= 0 else -1 for link in other.pairs[one.number]]
        base += sum(one.learned[1:])
    shared = min(shared_beginnings(items).values())
    return built(items, shared if len({one.group for one in items}) == 1 else 0, max_tokens), partners
