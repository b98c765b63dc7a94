"""`pillm dataset card`: a dataset described in figures that can be checked.

    python -m pillm.data.dataset_card --validate card/ [DATA...]

does the same as the command, for CI: findings as lines, exit codes as in `core.errors`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pillm.core.artifacts import write_atomic
from pillm.core.errors import EXIT_INTERRUPTED, FindingsError, PillmError, ProfileError, UsageError, writing
from pillm.core.events import Emit, Event, Found, Log, Output
from pillm.core.stage import Result
from pillm.data.card import check as card_check
from pillm.data.card import croissant as card_croissant
from pillm.data.card import readme as card_readme
from pillm.data.card import source as card_source
from pillm.data.card.check import CARD, CROISSANT, README
from pillm.data.options import CardOptions


def run(options: CardOptions, emit: Emit) -> Result:
    """Write README.md, croissant.json and dataset_card.json into `options.out`, or check a card.

    Raises FindingsError if the data has lines that are no records, the about file has mistakes, or the
    card that is checked does not hold; UsageError if something cannot be read or there is no data.
    """
    if options.validate_ is not None:
        return _check(options.validate_, options, emit)
    if not options.data:
        raise UsageError("there is no data to describe", "give files or folders, or --validate=CARD")
    _spare_others(options.out)
    measurement = card_source.measure(card_source.inputs_of(options), emit)
    card = measurement.card
    if card is None:
        names = " ".join(map(str, options.data))
        raise FindingsError(
            f"{names}: there are lines that are no records",
            measurement.findings,
            f"run: pillm dataset validate {names}",
        )
    if card.gaps.not_stated:
        open_ones = len(card.gaps.not_stated)
        emit(Log(f"{open_ones} questions are open; README.md lists them; answer in about.yaml (see docs/dataset.md)"))
    outputs = {
        # First: it says whose the others are, and they are checked against it if this is cut off halfway.
        "card": (options.out / CARD, card_source.encode(card)),
        "readme": (options.out / README, card_readme.render(card).encode()),
        "croissant": (options.out / CROISSANT, card_croissant.render(card).encode()),
    }
    # Not as one folder: the card may be put beside the data, or beside other files of a repository.
    for path, data in outputs.values():
        with writing(path):
            write_atomic(path, data)
    counts = card.statistics
    return Result(
        {name: path for name, (path, _) in outputs.items()},
        {
            "records": counts.records,
            "files": len(card.files),
            "near_duplicate_rate": card.duplicates.near_rate,
            "not_stated": len(card.gaps.not_stated),
        },
    )


def _spare_others(out: Path) -> None:
    """Raises UsageError if there is a README.md or croissant.json that is not a card's."""
    for name in (README, CROISSANT):
        if (out / name).exists() and not (out / CARD).exists():
            raise UsageError(
                f"{out / name}: this was not made by pillm dataset card",
                "move it away, or choose another folder with --out",
            )


def _check(folder: Path, options: CardOptions, emit: Emit) -> Result:
    found = card_check.check(folder, options, emit)
    if found:
        count = "1 thing" if len(found) == 1 else f"{len(found)} things"
        raise FindingsError(f"{folder}: the card does not hold: {count}", found, "the findings name each one")
    emit(Output(f"{folder}: the card holds"))
    return Result({})


def main(argv: Sequence[str]) -> int:
    """The command for CI. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pillm.data.dataset_card", description=CardOptions.__doc__)
    for name, field in CardOptions.model_fields.items():
        about = field.description
        if name == "data":
            parser.add_argument("data", nargs="*", help=about)
        else:
            parser.add_argument(f"--{name.rstrip('_')}", dest=name, default=argparse.SUPPRESS, help=about)
    try:
        run(CardOptions.model_validate(vars(parser.parse_args(argv))), _tell)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            sys.stderr.write(f"--{'.'.join(map(str, item['loc'])).rstrip('_')}: {item['msg']}\n")
        return UsageError.exit_code
    except PillmError as error:
        for finding in error.findings if isinstance(error, FindingsError | ProfileError) else ():
            _tell(Found(finding))
        sys.stderr.write(f"{error.message}\n    {error.hint}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _tell(event: Event) -> None:
    if isinstance(event, Output):
        sys.stdout.write(f"{event.line}\n")
    elif isinstance(event, Found):
        found = event.finding
        place = f"{found.file}:{found.line}" if found.line else found.file
        sys.stdout.write(f"{place}: {found.path or '$'} {found.code}: {found.message}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
