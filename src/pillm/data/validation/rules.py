"""One line under a user's rules: all its faults, and those of its dialogue as a model would read it."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pillm.core import records
from pillm.core.errors import UsageError
from pillm.core.jsonl import MAX_LINE_BYTES
from pillm.data.validation import judge
from pillm.data.validation.codes import CODES, Fault

if TYPE_CHECKING:  # templates are asked for seldom, and Jinja takes long to import
    from pillm.models.chat import ChatTemplate


class Rules(NamedTuple):
    """What a worker has to know."""

    formats: bool = False
    ignore: frozenset[str] = frozenset()
    limit: int = 1000
    template: tuple[str, str, str] | None = None
    """Source, begin and end token."""
    tokenizer: str | None = None
    context: int | None = None


def faults(data: bytes, size: int, byte: int, rules: Rules) -> tuple[list[Fault], Any]:
    """What is wrong with a line (its end may still have a carriage return) that begins at `byte`, and the decoded line."""
    if size > MAX_LINE_BYTES:
        return [Fault("line-too-long", "$", f"the line is {size:,} bytes long; {MAX_LINE_BYTES:,} is the most")], None
    found: list[Fault] = []
    if byte == 0 and data.startswith(BOM_UTF8):
        found.append(Fault("byte-order-mark", "$", "the file begins with a byte order mark"))
        data = data[len(BOM_UTF8) :]
    if data.endswith(b"\r"):
        found.append(Fault("windows-line-end", "$", "lines end with CR LF"))
        data = data[:-1]
    if not data.strip(b" \t\r"):
        return [*found, Fault("blank-line", "$", "the line is empty")], None
    more, value = judge.faults(data, rules.formats)
    found += more
    if (rules.template is not None or rules.context is not None) and not any(_is_error(fault) for fault in found):
        found += _as_text(data, rules)
    return [fault for fault in found if fault.code not in rules.ignore], value


def _is_error(fault: Fault) -> bool:
    return CODES[fault.code].severity == "error"


def _as_text(data: bytes, rules: Rules) -> Iterator[Fault]:
    """What is wrong with the dialogue as a model would read it."""
    try:
        record = records.decoder.decode(data)
    except msgspec.MsgspecError as error:
        # What training refuses must not pass here, should the two ever differ.
        yield Fault("wrong-type", "$", f"training would refuse this record: {error}")
        return
    try:
        text = template_of(*rules.template).render(record.messages, record.tools) if rules.template else None
    except UsageError as error:
        yield Fault("template-refuses", "$.messages", error.message)
        return
    if rules.context is None or rules.tokenizer is None:
        return
    if text is None:
        text = "\n".join(message.content or "" for message in record.messages)
    from pillm.data.counts import token_lengths

    tokens = len(token_lengths.load(rules.tokenizer).encode(text, add_special_tokens=False).ids)
    if tokens > rules.context:
        yield Fault(
            "too-many-tokens", "$.messages", f"the dialogue is {tokens:,} tokens long; the context is {rules.context:,}"
        )


@lru_cache(maxsize=1)
def template_of(source: str, bos: str, eos: str) -> ChatTemplate:
    """The compiled template, kept since it is asked for every line."""
    from pillm.models.chat import ChatTemplate

    return ChatTemplate(source, bos, eos)
