"""README.md of a dataset: figures, datasheet and data statement, as Markdown that nothing in the data can break."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from pillm.data.card import about as card_about
from pillm.data.card import hub as card_hub
from pillm.data.card.source import Card
from pillm.data.counts.figures import Distribution

NOT_STATED = "*not stated*"
_SHOWN = 40
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&!$])")
_CODE = re.compile(r"[\w .:/@+=,()-]+")
# What at a line's beginning would start a heading, rule, table, fence, quote or link target.
_STRUCTURE = re.compile(r"^(#|=|-{2,}|\*{3,}|_{3,}|\||`{3,}|~{3,}|>|\[[^\]]*\]:)")
_SECTIONS = (
    "Motivation",
    "Composition",
    "Collection",
    "Preprocessing and labelling",
    "Uses",
    "Distribution",
    "Maintenance",
)


def render(card: Card) -> str:
    """The whole file."""
    matter = yaml.safe_dump(card_hub.front_matter(card), sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{matter}---\n\n" + "\n".join(_body(card))


def inline(text: str) -> str:
    """Text for the inside of a line or a table's cell."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return _MARKS.sub(r"\\\1", " ".join(shown.split()))


def code(text: str) -> str:
    """A name, path or hash in code type, if it has nothing that would end it."""
    return f"`{text}`" if _CODE.fullmatch(text) and text == text.strip() else inline(text) or '""'


def prose(answer: Any) -> str:
    """An answer of the about file as paragraphs or as a list. Links and stress stay, structure does not."""
    if isinstance(answer, list):
        return "\n".join(f"- {inline_prose(item)}" for item in answer)
    if isinstance(answer, dict):
        return "\n".join(f"- {code(key)}: {inline_prose(value)}" for key, value in answer.items())
    return "\n\n".join(inline_prose(part) for part in re.split(r"\n\s*\n", answer.strip()))


def inline_prose(text: str) -> str:
    """One paragraph on one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _STRUCTURE.sub(r"\\\1", line)


def _body(card: Card) -> Iterator[str]:
    about = card.about
    yield f"# {inline(card_hub.title(card))}"
    yield ""
    yield "<!-- Made by `pillm dataset card`. Write into about.yaml, not here: the next card replaces this file. -->"
    yield ""
    yield prose(about["description"]) if "description" in about else NOT_STATED
    yield ""
    yield from _overview(card)
    yield from _files(card)
    yield from _distributions(card)
    yield from _lengths(card)
    yield from _duplicates(card)
    yield from _gaps(card)
    yield from _data_statement(card)
    yield from _datasheet(card)
    yield from _checking(card)


def _overview(card: Card) -> Iterator[str]:
    about, counts = card.about, card.statistics
    rows = [
        ("records", f"{counts.records:,}"),
        ("labelled", f"{counts.labelled:,}"),
        ("prompts without an answer", f"{counts.prompts:,}"),
        ("files", f"{len(card.files):,}"),
        ("bytes, unpacked", f"{counts.bytes:,}"),
        *((f"turns: {role}", f"{n:,}") for role, n in counts.turns.items()),
        ("licence", ", ".join(map(code, card_hub.licenses(card))) or NOT_STATED),
        *(
            (key, inline(about[key]) if key in about else NOT_STATED)
            for key in ("version", "published", "homepage", "contact")
        ),
    ]
    yield from _table("Overview", ("", ""), rows)


def _files(card: Card) -> Iterator[str]:
    rows = [
        (code(name), f"{split.files:,}", f"{split.records:,}", f"{split.labelled:,}", f"{split.prompts:,}")
        for name, split in card.statistics.splits.items()
    ]
    yield from _table("Splits", ("split", "files", "records", "labelled", "prompts"), rows)
    listed = [(code(f.path), code(f.split), f"{f.records:,}", f"{f.bytes:,}", code(f.sha256)) for f in card.files]
    yield from _table("Files", ("file", "split", "records", "bytes", "sha256"), listed)


def _distributions(card: Card) -> Iterator[str]:
    counts = card.statistics
    yield from _varieties(card)
    yield from _distribution("Registers", "register", counts.registers, counts.records)
    yield from _tools(card)
    yield from _distribution("Tags", "tag", counts.tags, counts.records)
    yield from _distribution("Sources", "source", counts.sources, counts.records)
    yield from _distribution("Licences of records", "licence", counts.licenses, counts.records)


def _varieties(card: Card) -> Iterator[str]:
    of, notes = card.statistics.records, card.about.get("varieties", {})
    varieties = sorted(card.coverage.varieties, key=lambda found: (-found.records, found.locale))
    rows = [
        (code(found.locale) if found.locale else "*none*", f"{found.records:,}", f"{found.records / of:.1%}",
         *(f"{n:,}" if found.judged else "–" for n in (found.shown, found.against, found.mixed, found.silent)),
         f"{found.other_language:,}", inline(notes.get(found.locale, "")))
        for found in varieties[:_SHOWN]
    ]  # fmt: skip
    head = ("locale", "records", "share", "shown", "against", "mixed", "silent", "other language", "note")
    yield from _table("Varieties", head, rows)
    if rest := varieties[_SHOWN:]:
        yield f"{len(rest):,} more with {sum(found.records for found in rest):,} records."
        yield ""
    yield "A locale is what a record declares. *Shown* are texts with words that this variety has and others have not,"
    yield "*against* those with words of others only, *mixed* with both, *silent* with neither; – where no list of words"
    yield "is known. Silence says nothing."
    yield ""
    cells = [
        (
            code(cell.locale) if cell.locale else "*none*",
            code(cell.register) if cell.register else "*none*",
            f"{cell.records:,}",
        )
        for cell in card.coverage.cells
    ]
    yield from _table("Varieties by register", ("locale", "register", "records"), cells[: 2 * _SHOWN])
    if card.coverage.targets:
        met = [
            (
                inline(row.target.name),
                f"{row.wanted:,}",
                f"{row.found:,}",
                f"{row.missing:,}",
                f"{row.shown:,}",
                f"{row.against:,}",
            )
            for row in card.coverage.targets
        ]
        yield from _table("Targets", ("target", "wanted", "found", "missing", "shown", "against"), met)


def _distribution(heading: str, what: str, found: Distribution, of: int) -> Iterator[str]:
    shown = list(found.counts.items())[:_SHOWN]
    rows = [(code(name), f"{n:,}", f"{n / of:.1%}") for name, n in shown]
    if rest := found.distinct - len(shown):
        n = sum(found.counts.values()) + found.others - sum(n for _, n in shown)
        rows.append((f"*{rest:,} more*", f"{n:,}", f"{n / of:.1%}"))
    if found.missing:
        rows.append(("*none*", f"{found.missing:,}", f"{found.missing / of:.1%}"))
    yield from _table(heading, (what, "records", "share"), rows)


def _tools(card: Card) -> Iterator[str]:
    declared, called = card.statistics.tools_declared, card.statistics.tools_called
    names = sorted({*declared.counts, *called.counts}, key=lambda name: (-declared.counts.get(name, 0), name))
    rows = [
        (code(name), f"{declared.counts.get(name, 0):,}", f"{called.counts.get(name, 0):,}") for name in names[:_SHOWN]
    ]
    if len(names) > _SHOWN:
        rows.append((f"*{len(names) - _SHOWN:,} more*", "", ""))
    rows.append(("*records without*", f"{declared.missing:,}", f"{called.missing:,}"))
    yield from _table("Tools", ("tool", "records that declare it", "calls"), rows)


def _lengths(card: Card) -> Iterator[str]:
    rows = [
        (
            name.replace("_", " "),
            f"{f.min:,}",
            f"{f.median:,}",
            f"{f.p95:,}",
            f"{f.max:,}",
            f"{f.mean:,.2f}",
            f"{f.count:,}",
        )
        for name, f in card.statistics.lengths.items()
    ]
    yield from _table("Lengths of dialogues", ("in", "min", "median", "p95", "max", "mean", "dialogues"), rows)


def _duplicates(card: Card) -> Iterator[str]:
    found = card.duplicates
    rows = [
        ("exact duplicates of an earlier record", f"{found.exact:,}", f"{found.exact_rate:.2%}"),
        (
            f"near duplicates (Jaccard similarity of {card.settings.similarity} or more)",
            f"{found.near:,}",
            f"{found.near_rate:.2%}",
        ),
        ("of these, the earlier record is in another split", f"{found.across_splits:,}", ""),
    ]
    yield from _table("Duplicates", ("", "records", "share"), rows)


def _gaps(card: Card) -> Iterator[str]:
    yield "## Known gaps"
    yield ""
    gaps = card.gaps
    yield from (f"- {inline_prose(text)}" for text in gaps.stated)
    yield from (f"- {inline(text)}" for text in gaps.found)
    if gaps.not_stated:
        yield f"- Not stated: {', '.join(map(code, gaps.not_stated))}."
    if not (gaps.stated or gaps.found or gaps.not_stated):
        yield "None is known."
    yield ""


def _data_statement(card: Card) -> Iterator[str]:
    yield "## Data statement"
    yield ""
    yield "After Bender and Friedman (2018)."
    yield ""
    asked = [question for question in card_about.questions() if question.statement]
    for heading in dict.fromkeys(question.statement for question in asked):
        yield f"### {heading}"
        yield ""
        if heading == "Language variety":
            yield ", ".join(map(code, card.statistics.locales.counts)) or NOT_STATED
            yield ""
        for question in asked:
            if question.statement == heading and (heading != "Language variety" or question.key in card.about):
                yield from _answer(card, question)


def _datasheet(card: Card) -> Iterator[str]:
    yield "## Datasheet"
    yield ""
    yield "After Gebru et al. (2021). What can be counted is counted above."
    yield ""
    for section in _SECTIONS:
        yield f"### {section}"
        yield ""
        for question in card_about.questions():
            if question.sheet == section:
                yield from _answer(card, question)
    yield "## Citation"
    yield ""
    citation = card.about.get("citation")
    # An indented block, since a BibTeX entry may hold anything but a way out of that.
    yield "\n".join(f"    {line}" for line in citation.strip().splitlines()) if citation else NOT_STATED
    yield ""


def _answer(card: Card, question: card_about.Question) -> Iterator[str]:
    yield f"**{question.text}**"
    yield ""
    yield prose(card.about[question.key]) if question.key in card.about else NOT_STATED
    yield ""


def _checking(card: Card) -> Iterator[str]:
    yield "## Is this card still true?"
    yield ""
    yield "This counts everything again, offline, and names what has changed:"
    yield ""
    yield "    pillm dataset card --validate FOLDER_OF_THIS_CARD"
    yield ""


def _table(heading: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"## {heading}"
    yield ""
    yield f"| {' | '.join(head)} |"
    yield "|" + "|".join("---" for _ in head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""
