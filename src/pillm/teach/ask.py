"""What is asked of a teacher, and what comes back. Both backends speak in these words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import msgspec

from pillm.core import records
from pillm.core.records import Message, Record
from pillm.teach.options import LabelOptions

SCHEMA_WORDS = "Answer with JSON only, without any other text. The JSON must fit this schema: "
RETRY_TEMPERATURE = 0.7
"""Least temperature after the first attempt: at 0 the same prompt would get the same rejected answer again."""


class Sampling(msgspec.Struct, frozen=True):
    """How one answer is drawn; `max_tokens` in tokens."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int


class Ask(msgspec.Struct, frozen=True):
    """One prompt, asked for the `attempt`-th time (from 1); `key` names the prompt in the journal."""

    key: str
    record: Record
    attempt: int
    sampling: Sampling


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an answer is not good, or why there is none."""

    code: str
    message: str


class Call(msgspec.Struct, frozen=True):
    """A tool call as the teacher wrote it: `arguments` is JSON text that nobody has checked yet."""

    name: str
    arguments: str


class Reply(msgspec.Struct, frozen=True):
    """What came back for an ask.

    `finish` is the server's word ("stop", "tool_calls", "length", ...). With a `failure` there is no
    answer; `lasting` says that the same prompt would fail in the same way again, `passing` that the
    failure is not the prompt's but the moment's.
    """

    content: str = ""
    calls: tuple[Call, ...] = ()
    finish: str = "stop"
    tokens_in: int = 0
    tokens_out: int = 0
    failure: Reason | None = None
    lasting: bool = False
    passing: bool = False
    logprob: float | None = None
    """Mean log-probability of the answer's tokens, where the backend gives it."""


Deliver = Callable[[Sequence[tuple[Ask, Reply]]], None]
"""Takes finished answers; they are safe on disk when it returns."""

Backend = Callable[[Sequence[Ask], Deliver], None]
"""Answers all asks, in any order. Raises where going on makes no sense; what was delivered stays."""


def sampling_for(options: LabelOptions, record_id: str, attempt: int) -> Sampling:
    """The first attempt takes the user's temperature; later ones at least RETRY_TEMPERATURE and another seed.

    The seed is derived from the record's id, so that it does not depend on what else is in the dataset.
    """
    digest = hashlib.sha256(f"{options.seed}/{attempt}/{record_id}".encode()).digest()
    temperature = options.temperature if attempt == 1 else max(options.temperature, RETRY_TEMPERATURE)
    # 31 bits: some servers read the seed as a signed 32-bit number.
    seed = int.from_bytes(digest[:4], "big") >> 1
    return Sampling(options.max_tokens, temperature, options.top_p, seed)


def key_of(teacher: str, settings: dict[str, object], record: Record) -> str:
    """Hash of all that an answer depends on: teacher, settings, and what the teacher sees of the record.

    The id takes part too, so that two records with the same text get an answer each.
    """
    seen = Record(record.id, record.messages, record.tools, record.response_schema)
    parts = (teacher, msgspec.json.encode(settings, order="sorted").decode(), records.encode(seen).decode())
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def with_schema(record: Record) -> tuple[Message, ...]:
    """The dialogue with the record's schema, if it has one, in its system message."""
    if record.response_schema is None:
        return record.messages
    words = SCHEMA_WORDS + json.dumps(record.response_schema, ensure_ascii=False)
    first, rest = record.messages[0], record.messages[1:]
    if first.role in ("system", "developer"):
        return (msgspec.structs.replace(first, content=f"{first.content}\n\n{words}"), *rest)
    return (Message("system", words), *record.messages)
