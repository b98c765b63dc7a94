"""Time and memory of looking for near duplicates in a big corpus, and whether those that were planted are found.

    python benchmarks/near_duplicates.py [--megabytes 1000] [--workers N]

The corpus is the shipped training set over and over with other words in the arguments (and so in the user's
text); every tenth record is a copy of an earlier one, and every tenth a copy with one word changed.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pillm.core import jsonl, records
from pillm.core.records import FunctionCall, Record
from pillm.core.shipped import data_path
from pillm.data import inputs
from pillm.data.duplicates.near import dialogue, near_duplicates, words

_LETTERS = ("ba", "de", "fi", "go", "lu", "mé", "na", "po", "ri", "so", "tu", "vel", "cran", "dor", "lis", "mont")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--similarity", type=float, default=0.8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.jsonl"
        exact, near = corpus(path, given.megabytes * 1e6)
        size = path.stat().st_size
        started = time.perf_counter()
        found = near_duplicates(inputs.sources([path]), given.similarity, workers=given.workers)
        seconds = time.perf_counter() - started
    own, children = (
        resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"{size / 1e9:.2f} GB, {found.records:,} records, {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s")
    print(f"peak memory: {own:,.0f} MB, largest worker {children:,.0f} MB")
    print(f"exact: {found.exact:,}, at least {exact:,} of them planted")
    print(f"near: {found.near:,}, at least {near:,} of them planted")
    if found.exact < exact or found.near < near:
        raise SystemExit("some that were planted were not found")


def corpus(path: Path, size: float) -> tuple[int, int]:
    """Write the corpus; how many exact and near duplicates (at 0.8, by their word triples) were planted."""
    rng = random.Random(1)
    lexicon = ["".join(rng.choices(_LETTERS, k=rng.randint(1, 4))) for _ in range(20_000)]
    base = jsonl.read(data_path("dataset:home-assistant/train"))
    exact = near = number = 0
    past: list[Record] = []
    with path.open("wb") as file:
        while file.tell() < size:
            number += 1
            turn = rng.random()
            if past and turn < 0.2:
                record = rng.choice(past)
                if turn < 0.1:
                    exact += 1
                else:
                    changed = _one_word(record, rng, lexicon)
                    near += _alike(record, changed)
                    record = changed
            else:
                record = _other_words(base[number % len(base)], rng, lexicon)
                if len(past) < 50_000:
                    past.append(record)
            file.write(records.encode(msgspec.structs.replace(record, id=f"r{number}")) + b"\n")
    return exact, near


def _other_words(record: Record, rng: random.Random, lexicon: list[str]) -> Record:
    values = [
        word
        for message in record.messages
        for call in message.tool_calls
        for value in call.function.arguments.values()
        if isinstance(value, str)
        for word in re.findall(r"\w{4,}", value)
    ] or [
        word
        for message in record.messages
        if message.role == "user"
        for word in re.findall(r"\w{7,}", message.content or "")
    ]
    new = {word: rng.choice(lexicon) for word in values}
    if not new:
        return record
    return _replaced(record, lambda text: re.sub(r"\w+", lambda word: new.get(word[0], word[0]), text))


def _one_word(record: Record, rng: random.Random, lexicon: list[str]) -> Record:
    done = False

    def change(text: str) -> str:
        nonlocal done
        found = list(re.finditer(r"\w+", text))
        if done or not found:
            return text
        done = True
        match = rng.choice(found)
        return text[: match.start()] + rng.choice(lexicon) + text[match.end() :]

    return _replaced(record, change)


def _replaced(record: Record, change: Callable[[str], str]) -> Record:
    messages = []
    for message in record.messages:
        if message.role == "system":
            messages.append(message)
            continue
        calls = tuple(
            msgspec.structs.replace(
                call,
                function=FunctionCall(
                    call.function.name,
                    {k: change(v) if isinstance(v, str) else v for k, v in call.function.arguments.items()},
                ),
            )
            for call in message.tool_calls
        )
        content = change(message.content) if message.content else message.content
        messages.append(msgspec.structs.replace(message, content=content, tool_calls=calls))
    return msgspec.structs.replace(record, messages=tuple(messages))


def _alike(one: Record, other: Record) -> bool:
    first, second = (_triples(record) for record in (one, other))
    return first != second and len(first & second) / len(first | second) >= 0.8


def _triples(record: Record) -> set[tuple[str, str, str]]:
    found = ["<", "<", *words(dialogue(record.messages)), ">", ">"]
    return set(zip(found, found[1:], found[2:], strict=False))


if __name__ == "__main__":
    main()
