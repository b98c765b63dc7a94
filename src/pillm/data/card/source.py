"""The one source of a dataset's card: what `dataset_card.json` holds, and how it is measured.

Nothing in it depends on the clock, on the machine, or on where the folders lie: paths are relative to
the card's folder. Same data and options give the same bytes.

    python -m pillm.data.card.source > src/pillm/data/card/card.schema.json
"""

from __future__ import annotations

import inspect
import os
import posixpath
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from pillm.core import shipped
from pillm.core.artifacts import sha256_file
from pillm.core.events import Emit
from pillm.core.findings import Finding
from pillm.data import coverage, inputs, targets
from pillm.data.card import about as card_about
from pillm.data.counts import statistics, token_lengths
from pillm.data.counts.figures import Statistics
from pillm.data.counts.statistics import Measured
from pillm.data.duplicates import near
from pillm.data.options import CardOptions
from pillm.data.targets import Cell, Met


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that the card was made with: its path from the card's folder, and its hash."""

    path: str
    sha256: str


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the card was made of and with: paths are relative to the card's folder, or `dataset:` names."""

    data: tuple[str, ...]
    similarity: float
    about: Reference | None = None
    tokenizer: Reference | None = None
    targets: Reference | None = None


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the dataset. `bytes` is its size on disk; `fields` are those that at least one record fills."""

    path: str
    split: str
    sha256: str
    bytes: int
    packing: Literal["", "gzip", "zstd"]
    records: int
    labelled: int
    prompts: int
    fields: tuple[str, ...]


class Duplicates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records whose dialogue an earlier one has already. Rates are shares of all records, from 0 to 1.

    `across_splits` counts those whose earlier record is in another split: leakage, if one is to be scored.
    """

    records: int
    exact: int
    near: int
    exact_rate: float
    near_rate: float
    across_splits: int


class Coverage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What records declare beside what their text shows (see `pillm dataset coverage`), and the targets.

    `cells` are locales by register; `against_locale` counts records whose text speaks against their locale.
    """

    cells: tuple[Cell, ...]
    languages: tuple[coverage.Identified, ...]
    varieties: tuple[coverage.Variety, ...]
    targets: tuple[Met, ...]
    against_locale: int


class Gaps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is missing: as the maker says, as the data shows, and the questions that were left open, by key."""

    stated: tuple[str, ...]
    found: tuple[str, ...]
    not_stated: tuple[str, ...]


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the card says."""

    schema_version: Literal[1] = 1
    settings: Settings
    about: dict[str, Any]
    statistics: Statistics
    files: tuple[File, ...]
    coverage: Coverage
    duplicates: Duplicates
    gaps: Gaps


class Place(NamedTuple):
    """A file or folder, and what the card calls it."""

    path: Path
    name: str


class Inputs(NamedTuple):
    """What a card is made of."""

    data: tuple[Place, ...]
    about: Place | None
    tokenizer: Place | None
    targets: Place | None
    similarity: float
    workers: int | None


class Measurement(NamedTuple):
    """Files as they are, and the card; None with findings if the data has lines that are no records."""

    files: tuple[File, ...]
    card: Card | None
    findings: tuple[Finding, ...]


def inputs_of(options: CardOptions) -> Inputs:
    """What the options name, with paths as seen from `options.out`."""

    def place(path: Path | None) -> Place | None:
        return None if path is None else Place(path, _name(path, options.out))

    about = options.about or card_about.beside([*_folders(options.data), options.out])
    return Inputs(
        data=tuple(Place(path, _name(path, options.out)) for path in options.data),
        about=place(about),
        tokenizer=place(options.tokenizer and token_lengths.file_of(options.tokenizer)),
        targets=place(options.targets),
        similarity=options.similarity,
        workers=options.workers,
    )


def measure(given: Inputs, emit: Emit) -> Measurement:
    """Read everything and count it. Raises UsageError for what cannot be read, FindingsError for a bad about file."""
    about = card_about.read(given.about.path) if given.about else {}
    wanted = targets.read(given.targets.path) if given.targets else ()
    if given.tokenizer:
        # What cannot be used is said before the data is read.
        token_lengths.load(str(given.tokenizer.path))
    paths = [place.path for place in given.data]
    # Hashing leaves the interpreter to others, and reads ahead what is counted next.
    with ThreadPoolExecutor(1) as pool:
        hashes = pool.submit(_hashes, paths)
        measured = statistics.measure(paths, given.workers, emit)
        files = _files(measured, given.data, hashes.result())
    if measured.findings:
        return Measurement(files, None, measured.findings)
    statistics.require_records(measured)
    if given.tokenizer:
        measured = token_lengths.added(measured, given.tokenizer.path, given.workers, emit)
    covered = coverage.measure([file.source for file in measured.files], wanted, given.workers, emit)
    duplicates = _duplicates(measured, given, emit)
    settings = Settings(
        data=tuple(place.name for place in given.data),
        similarity=given.similarity,
        about=_reference(given.about),
        tokenizer=_reference(given.tokenizer),
        targets=_reference(given.targets),
    )
    card = Card(
        settings=settings,
        about=about,
        statistics=measured.statistics,
        files=files,
        coverage=Coverage(
            # What each tool has of each variety is for `pillm dataset coverage`: there may be thousands.
            cells=tuple(cell for cell in covered.cells if cell.tool is None),
            languages=covered.languages,
            varieties=covered.varieties,
            targets=covered.targets,
            against_locale=covered.findings_in_all,
        ),
        duplicates=duplicates,
        gaps=_gaps(about, measured.statistics, covered, duplicates),
    )
    return Measurement(files, card, ())


def encode(card: Card) -> bytes:
    """The card as `dataset_card.json`."""
    return msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"


decode = msgspec.json.Decoder(Card).decode


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `dataset_card.json`."""
    made = msgspec.json.schema(Card)
    for part in made["$defs"].values():
        # Some versions of msgspec leave a docstring's indentation in.
        if "description" in part:
            part["description"] = inspect.cleandoc(part["description"])
    about = card_about.About.model_json_schema()
    parts = made["$defs"]
    parts["Card"]["properties"]["about"] = {"$ref": "#/$defs/About"}
    for name, key in about["properties"].items():
        about["properties"][name] = _stated(key)
    parts["About"] = about
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Card of a dataset", **made}


def _stated(key: dict[str, Any]) -> dict[str, Any]:
    # What is not stated is left out of the card, so no key is ever null there.
    kinds = [kind for kind in key.get("anyOf", ()) if kind.get("type") != "null"]
    kept = {name: value for name, value in key.items() if name not in ("anyOf", "default", "sheet", "statement", "rai")}
    return {**kept, **(kinds[0] if kinds else {})}


def _hashes(paths: Sequence[Path]) -> dict[Path, str]:
    return {source.path: sha256_file(source.path) for source in inputs.sources(paths)}


def _name(path: Path, out: Path) -> str:
    if str(path).startswith(shipped.PREFIX):
        return str(path)
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()


def _folders(data: Sequence[Path]) -> list[Path]:
    # What comes with pillm lies elsewhere on every machine, and the card could not say where.
    found = [path for path in data if not str(path).startswith(shipped.PREFIX)]
    return [path if path.is_dir() else path.parent for path in found]


def _reference(place: Place | None) -> Reference | None:
    return None if place is None else Reference(path=place.name, sha256=sha256_file(place.path))


def _files(measured: Measured, data: Sequence[Place], hashes: dict[Path, str]) -> tuple[File, ...]:
    return tuple(
        File(
            path=posixpath.normpath(posixpath.join(data[file.root].name, file.inner))
            if file.inner
            else data[file.root].name,
            split=file.split,
            sha256=hashes[file.source.path],
            bytes=file.source.size,
            packing=file.source.packing,  # type: ignore[arg-type]
            records=file.records,
            labelled=file.records - file.prompts,
            prompts=file.prompts,
            fields=file.fields,
        )
        for file in measured.files
    )


def _duplicates(measured: Measured, given: Inputs, emit: Emit) -> Duplicates:
    sources = [file.source for file in measured.files]
    found = near.near_duplicates(sources, given.similarity, workers=given.workers, emit=emit)
    splits = [file.split for file in measured.files]
    return Duplicates(
        records=found.records,
        exact=found.exact,
        near=found.near,
        exact_rate=round(found.exact / found.records, 6),
        near_rate=round(found.near / found.records, 6),
        across_splits=sum(splits[repeat.source] != splits[repeat.of_source] for repeat in found.found()),
    )


def _gaps(about: dict[str, Any], counts: Statistics, covered: coverage.Coverage, duplicates: Duplicates) -> Gaps:
    whole = f"of {counts.records:,} records"
    found = [
        f"the {name} is not said in {what.missing:,} {whole}"
        for name, what in (
            ("locale", counts.locales),
            ("register", counts.registers),
            ("source", counts.sources),
            ("license", counts.licenses),
        )
        if what.missing
    ]
    if counts.prompts:
        found.append(f"{counts.prompts:,} {whole} are prompts without an answer")
    if len(counts.splits) == 1:
        found.append("there is one split only: nothing is held out")
    if duplicates.across_splits:
        found.append(f"repeats of a record in another split, exact or near: {duplicates.across_splits:,} {whole}")
    declared, called = counts.tools_declared, counts.tools_called
    # What is summed up under `others` has no name here.
    idle = sorted(declared.counts.keys() - called.counts.keys()) if not called.others else []
    if idle:
        found.append(f"declared, but never called: {', '.join(idle)}")
    if covered.findings_in_all:
        found.append(f"the text speaks against the locale in {covered.findings_in_all:,} {whole}")
    found += [target.warning for target in covered.targets if target.missing]
    return Gaps(
        stated=tuple(about.get("known_gaps", ())),
        found=tuple(found),
        not_stated=tuple(question.key for question in card_about.questions() if question.key not in about),
    )


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(schema(), order="sorted"), indent=2).decode() + "\n")
