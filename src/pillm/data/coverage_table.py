"""A coverage as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pillm.data.coverage import Coverage


def table(coverage: Coverage) -> list[str]:
    """The result as lines of text."""
    rows = [
        f"{coverage.records:,} records" + (f", {coverage.invalid:,} lines are no records" if coverage.invalid else "")
    ]
    rows += ["", "Declared, and what the text shows"]
    body = [
        (
            _shown(cell.locale),
            _shown(cell.register),
            f"{cell.records:,}",
            f"{100 * cell.records / coverage.records:.1f} %",
            f"{cell.shown:,}",
            f"{cell.against:,}",
            f"{cell.other_language:,}",
        )
        for cell in coverage.cells
        if cell.tool is None
    ]
    rows += _aligned(("locale", "register", "records", "share", "variety shown", "against", "other language"), body, 2)
    pairs = list(dict.fromkeys((cell.locale, cell.register) for cell in coverage.cells))
    if coverage.tools:
        called = {
            (cell.locale, cell.register, cell.tool): cell.records for cell in coverage.cells if cell.tool is not None
        }
        rows += ["", "Tools: records that declare them and that call them"]
        heads = (f"{_shown(locale)} {_shown(register)}" for locale, register in pairs)
        columns = [
            (
                tool.name,
                f"{tool.declared:,}",
                f"{tool.called:,}",
                *(f"{called.get((*pair, tool.name), 0):,}" for pair in pairs),
            )
            for tool in coverage.tools
        ]
        rows += _aligned(("tool", "declared", "called", *heads), columns, 1)
    rows += ["", "Evidence for varieties, of words that one has and another has not"]
    rows += _aligned(
        ("locale", "records", "shown", "against", "mixed", "silent", "evidence for"),
        [
            (_shown(row.locale), f"{row.records:,}", *(f"{value:,}" if row.judged else "-" for value in (row.shown, row.against, row.mixed, row.silent)),
             ", ".join(f"{name} {number:,}" for name, number in row.evidence.items()) or ("" if row.judged else "no lexicon"))
            for row in coverage.varieties
        ],
        1,
        last=True,
    )  # fmt: skip
    if coverage.targets:
        rows += ["", "Targets"]
        rows += _aligned(
            ("target", "wanted", "found", "missing", "variety shown", "against"),
            [
                (
                    row.target.name,
                    *(f"{value:,}" for value in (row.wanted, row.found, row.missing, row.shown, row.against)),
                )
                for row in coverage.targets
            ],
            1,
        )
    return rows


def _shown(word: str) -> str:
    return word or "(none)"


def _aligned(head: Sequence[str], body: Sequence[Sequence[str]], words: int, last: bool = False) -> list[str]:
    """Columns as wide as their longest cell; the first `words` (and the last, if it is one) are words, the others numbers."""
    rows = [head, *body]
    wide = [max(len(row[index]) for row in rows) for index in range(len(head))]
    left = {*range(words), *([len(head) - 1] if last else [])}
    return [
        "  ".join(cell.ljust(wide[at]) if at in left else cell.rjust(wide[at]) for at, cell in enumerate(row)).rstrip()
        for row in rows
    ]
