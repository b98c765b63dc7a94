"""Does a card still hold? Everything is counted again, and each field that differs is a finding."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pillm.core import shipped
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Emit
from pillm.core.findings import Finding
from pillm.data.card import about as card_about
from pillm.data.card import croissant as card_croissant
from pillm.data.card import readme as card_readme
from pillm.data.card import source as card_source
from pillm.data.card.source import Card, File, Inputs, Measurement, Place, Reference
from pillm.data.options import CardOptions
from pillm.data.validation.characters import member

CARD, README, CROISSANT = "dataset_card.json", "README.md", "croissant.json"
_AGAIN = "if the change is meant, make the card again: pillm dataset card"
_SHOWN = 120


def check(folder: Path, options: CardOptions, emit: Emit) -> list[Finding]:
    """Everything in which the card in `folder` differs from its data, from its about file, or from itself.

    Data, about file, tokenizer and targets are looked for where the card says, unless the options name
    them. Raises UsageError if the folder has no card, or if the options do not fit it.
    """
    path = folder / CARD
    raw = _bytes(path)
    try:
        card = card_source.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message, _, where = str(error).partition(" - at `")
        return [_finding(path, where.rstrip("`") or "$", "not-a-card", message)]
    found = list(_of_rendered(folder, card, raw))
    given = _inputs(folder, card, options)
    missing = list(_missing(path, card, given))
    if missing:
        return [*missing, *found]
    try:
        now = card_source.measure(given, emit)
    except FindingsError as error:
        return [*error.findings, *found]
    return [*drift(path, card, now), *found]


def differences(says: Any, shows: Any, path: str = "$") -> Iterator[tuple[str, Any, Any]]:
    """JSONPath, recorded and present value of each leaf in which two JSON values differ; `...` where one has none."""
    if isinstance(says, dict) and isinstance(shows, dict):
        for key in dict.fromkeys([*says, *shows]):
            yield from differences(says.get(key, ...), shows.get(key, ...), member(path, key))
    elif isinstance(says, list | tuple) and isinstance(shows, list | tuple):
        for place, (one, other) in enumerate(itertools.zip_longest(says, shows, fillvalue=...)):
            yield from differences(one, other, f"{path}[{place}]")
    elif type(says) is not type(shows) or says != shows:
        yield path, says, shows


def _inputs(folder: Path, card: Card, options: CardOptions) -> Inputs:
    names = card.settings.data
    if options.data and len(options.data) != len(names):
        raise UsageError(
            f"{folder / CARD}: made of {len(names)} paths ({', '.join(names)}), and {len(options.data)} are given",
            "give them in the same order, or none to look where the card says",
        )
    asked = {
        "data": options.data or tuple(_seen(folder, name) for name in names),
        "out": folder,
        "similarity": card.settings.similarity,
        "workers": options.workers,
        **{name: getattr(options, name) or _recorded(folder, card, name) for name in ("about", "tokenizer", "targets")},
    }
    given = card_source.inputs_of(CardOptions.model_validate(asked))
    # What was moved, and is named on the command line, goes by the name that the card has for it.
    return given._replace(
        data=tuple(Place(place.path, name) for place, name in zip(given.data, names, strict=True)),
        **{
            name: Place(place.path, reference.path)
            for name in ("about", "tokenizer", "targets")
            if (place := getattr(given, name)) and (reference := getattr(card.settings, name))
        },
    )


def _recorded(folder: Path, card: Card, name: str) -> Path | None:
    reference: Reference | None = getattr(card.settings, name)
    return _seen(folder, reference.path) if reference else None


def _seen(folder: Path, name: str) -> Path:
    """What a path of the card means, from the working folder if it is below that."""
    if name.startswith(shipped.PREFIX):
        return Path(name)
    path = (folder / name).resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _missing(path: Path, card: Card, given: Inputs) -> Iterator[Finding]:
    for place in given.data:
        if not shipped.data_path(place.path).exists():
            files = [
                file.path for file in card.files if file.path == place.name or file.path.startswith(f"{place.name}/")
            ]
            for name in files or [place.name]:
                yield _finding(
                    Path(place.path), "$.files", "missing-file", f"{name} is not there, and the card counts it"
                )
    for name in ("about", "tokenizer", "targets"):
        place: Place | None = getattr(given, name)
        if place and not place.path.exists():
            yield _finding(
                path, f"$.settings.{name}", "missing-file", f"{place.path} is not there", f"name it with --{name}"
            )


def drift(path: Path, card: Card, now: Measurement) -> Iterator[Finding]:
    """Each field of the card that the data, measured now, does not show."""
    yield from _of_files(path, card.files, now.files)
    yield from now.findings
    if now.card is None:
        return
    says, shows = (msgspec.to_builtins(item) for item in (card, now.card))
    # Files are told above, each by its name.
    for side in (says, shows):
        del side["files"]
    for where, one, other in differences(says, shows):
        told = "the about file says" if where.startswith("$.about") else "the data says"
        yield _finding(path, where, "drift", f"says {_value(one)}, {told} {_value(other)}")


def _of_files(path: Path, says: Sequence[File], shows: Sequence[File]) -> Iterator[Finding]:
    before, after = ({file.path: file for file in files} for files in (says, shows))
    for name in sorted(before.keys() - after.keys()):
        yield _finding(path, "$.files", "missing-file", f"{name} is not there any more, and the card counts it")
    for name in sorted(after.keys() - before.keys()):
        yield _finding(path, "$.files", "new-file", f"{name} is not in the card")
    for place, file in enumerate(says):
        other = after.get(file.path)
        if other is None:
            continue
        if other.sha256 != file.sha256:
            message = f"{file.path} has changed: the card says sha256 {file.sha256}, the file has {other.sha256}"
            yield _finding(path, f"$.files[{place}].sha256", "changed-file", message)
        one, two = msgspec.to_builtins(file), msgspec.to_builtins(other)
        for side in (one, two):
            del side["sha256"]
        for where, old, new in differences(one, two, f"$.files[{place}]"):
            yield _finding(path, where, "drift", f"{file.path}: says {_value(old)}, the data says {_value(new)}")
    if before.keys() == after.keys() and [file.path for file in says] != [file.path for file in shows]:
        yield _finding(path, "$.files", "drift", "the files stand in another order than the data's")


def _of_rendered(folder: Path, card: Card, raw: bytes) -> Iterator[Finding]:
    """Whether each file of the card is what the card's source renders."""
    if raw != card_source.encode(card):
        yield _finding(
            folder / CARD, "$", "not-as-written", "this is not as pillm writes it: keys, order or layout differ"
        )
    for name in (README, CROISSANT):
        if not (folder / name).is_file():
            yield _finding(folder / name, "$", "missing-file", "this part of the card is not there")
            return
    found = _bytes(folder / README)
    made = card_readme.render(card).encode()
    if found != made:
        line = _first_difference(found, made)
        message = "this is not what dataset_card.json renders"
        yield Finding(
            file=str(folder / README), line=line, code="edited", message=message,
            hint=f"write into {card_about.NAME}, then make the card again: pillm dataset card",
        )  # fmt: skip
    path = folder / CROISSANT
    found = _bytes(path)
    if found == card_croissant.render(card).encode():
        return
    try:
        says = json.loads(found)
    except (ValueError, RecursionError) as error:
        yield _finding(path, "$", "not-json", str(error))
        return
    different = list(differences(says, card_croissant.document(card)))
    for where, one, other in different:
        yield _finding(path, where, "edited", f"says {_value(one)}, {CARD} says {_value(other)}")
    if not different:
        yield _finding(path, "$", "not-as-written", "this is not as pillm writes it: order or layout differ")


def _first_difference(one: bytes, other: bytes) -> int:
    pairs = itertools.zip_longest(one.split(b"\n"), other.split(b"\n"))
    return next(number for number, (left, right) in enumerate(pairs, 1) if left != right)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror})", "give the folder that pillm dataset card wrote"
        ) from error


def _value(value: Any) -> str:
    if value is ...:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _finding(file: Path, path: str, code: str, message: str, hint: str = _AGAIN) -> Finding:
    return Finding(file=str(file), path=path, code=code, message=message, hint=hint)
