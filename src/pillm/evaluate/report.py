"""What `quality.json` and `answers.jsonl` hold. Light: the report and the faces read it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from pillm.core.stage import read_report, read_report_lines

Kind = Literal["call", "result", "refuse", "ask", "chat"]

_Z95 = 1.959963984540054


class Rate(msgspec.Struct, frozen=True):
    """`hits` of `n`, as a share with its 95 % Wilson interval [`low`, `high`]."""

    value: float
    low: float
    high: float
    hits: int
    n: int


def rate(hits: int, n: int) -> Rate | None:
    """A share with the Wilson score interval (Wilson 1927), which stays within [0, 1] and is honest for small n.

        centre = (p + z²/2n) / (1 + z²/n),  half = z/(1 + z²/n) · sqrt(p(1-p)/n + z²/4n²),  z = 1.96

    None where there is nothing to count.
    """
    if n == 0:
        return None
    share, square = hits / n, _Z95 * _Z95
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = _Z95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return Rate(
        round(share, 6),
        0.0 if hits == 0 else round(max(0.0, centre - half), 6),
        1.0 if hits == n else round(min(1.0, centre + half), 6),
        hits,
        n,
    )


class Call(msgspec.Struct, frozen=True):
    """A tool call; `arguments` is the server's text where it is not JSON."""

    name: str
    arguments: dict[str, Any] | str


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """An assistant turn: words, calls, or both. `failure` says why there is no whole answer."""

    content: str = ""
    calls: tuple[Call, ...] = ()
    failure: Literal["", "cut", "unparsed", "too-long", "refused"] = ""
    detail: str = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of `answers.jsonl`: what was expected, what came, and the verdict."""

    id: str
    kind: Kind
    locale: str
    question: str
    expected: Said
    got: Said
    right: bool
    reason: str = ""
    tool: str = ""
    name_right: bool | None = None
    """Whether exactly the expected tools were called; None where no call was expected."""
    json_valid: bool | None = None
    """Whether every call fits its tool's schema; None where no call was begun."""


class Scores(msgspec.Struct, frozen=True, omit_defaults=True):
    """The shares of one group of answers; one is None where the group has nothing to count for it."""

    exact_match: Rate | None = None
    """Name and arguments equal as JSON, exactly the calls expected (kinds call and result)."""
    tool_name: Rate | None = None
    """The expected tools called, whatever the arguments."""
    json_validity: Rate | None = None
    """Of the answers that began a call: parsed, and fits the declared tool's schema."""
    refusal: Rate | None = None
    """No call, no question, and a negation, where no tool fits."""
    ask_back: Rate | None = None
    """No call and a question, where something is missing."""
    plain_answer: Rate | None = None
    """Words and no call, where a chat needs no tool."""


def scores(answers: Iterable[Answer]) -> Scores:
    """The shares of these answers."""
    group = list(answers)

    def share(values: Iterable[bool | None]) -> Rate | None:
        counted = [value for value in values if value is not None]
        return rate(sum(counted), len(counted))

    def right(*kinds: Kind) -> Rate | None:
        return share(answer.right for answer in group if answer.kind in kinds)

    return Scores(
        exact_match=right("call", "result"),
        tool_name=share(answer.name_right for answer in group),
        json_validity=share(answer.json_valid for answer in group),
        refusal=right("refuse"),
        ask_back=right("ask"),
        plain_answer=right("chat"),
    )


def grouped(answers: Sequence[Answer], key: Callable[[Answer], str]) -> dict[str, Scores]:
    """The shares of each group, by its name, in the names' order."""
    names = sorted({key(answer) for answer in answers})
    return {name: scores(answer for answer in answers if key(answer) == name) for name in names}


def by_kind(answers: Sequence[Answer]) -> dict[str, Rate]:
    """The share of right answers of each kind of dialogue."""
    right = Counter(answer.kind for answer in answers if answer.right)
    counts = Counter(answer.kind for answer in answers)
    return {kind: share for kind in sorted(counts) if (share := rate(right[kind], counts[kind]))}


class Closeness(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file on the held-out text. Divergences are against the reference, in nats a token."""

    file: str
    bytes: int
    role: Literal["reference", "model", "also"]
    perplexity: float | None = None
    perplexity_error: float | None = None
    kl_mean: float | None = None
    kl_error: float | None = None
    kl_p99: float | None = None
    same_top: float | None = None
    """Share of tokens whose likeliest next token is the reference's, from 0 to 1."""


class Measured(msgspec.Struct, frozen=True):
    """The file that was measured."""

    file: str
    bytes: int
    sha256: str
    chat_template: str


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """`quality.json`."""

    model: Measured
    data: str
    data_sha256: str
    records: int
    asked: int
    overall: Scores
    by_locale: dict[str, Scores]
    by_tool: dict[str, Scores]
    by_kind: dict[str, Rate]
    failures: dict[str, int]
    closeness: list[Closeness]
    closeness_text: str
    """What the closeness was measured on, or why it was not."""
    max_tokens: int
    context: int
    llamacpp: str
    version: int = 1


def load(path: Path) -> Quality:
    """Read a `quality.json`. Raises UsageError with the place of what does not fit."""
    return read_report(path, Quality, "evaluate")


def load_answers(path: Path) -> list[Answer]:
    """Read an `answers.jsonl`. Raises UsageError with the place of what does not fit."""
    return read_report_lines(path, Answer, "evaluate")
