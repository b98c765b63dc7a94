"""How often the evidence for a variety is right, on sentences by writers of that variety, and how fast it is.

    python benchmarks/variety_evidence.py                 # the held-out half: figures only
    python benchmarks/variety_evidence.py --development --wrong   # the half that may be looked at
    python benchmarks/variety_evidence.py --speed
    python benchmarks/variety_evidence.py --folder=OTHER  # all sentences, as draw.py writes them from the packages

A verdict names the varieties that a sentence is evidence for. It is right if the sentence's own variety is among
them. `one` counts the verdicts that name a single variety, `named` how many of the verdicts that name only this
variety are right among all sentences of the language. The interval is Wilson's for 95 %.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from pillm.data import varieties

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "varieties"


def wilson(right: int, all_: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927, JASA 22)."""
    if not all_:
        return 0.0, 1.0
    share, denominator = right / all_, 1 + z * z / all_
    middle = (share + z * z / (2 * all_)) / denominator
    half = z * math.sqrt(share * (1 - share) / all_ + z * z / (4 * all_ * all_)) / denominator
    return max(0.0, middle - half), min(1.0, middle + half)


def measure(
    file: Path,
) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]], list[tuple[str, str, dict[str, int]]]]:
    """Counts by the writer's variety, counts by the single variety that was named, and what was wrong."""
    written: dict[str, Counter[str]] = defaultdict(Counter)
    named: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        locale = row["locale"]
        found = varieties.evidence(row["text"], locale[:2])
        counts, right = written[locale], locale in found.verdict
        counts["sentences"] += 1
        counts[found.state] += 1
        counts["right"] += right
        if len(found.verdict) == 1:
            counts["one"] += 1
            counts["one right"] += right
            named[found.verdict[0]]["all"] += 1
            named[found.verdict[0]]["right"] += right
        if found.verdict and not right:
            wrong.append((locale, row["text"], found.markers))
    return written, named, wrong


def share(right: int, all_: int) -> str:
    """A share with its interval."""
    if not all_:
        return "-".rjust(24)
    low, high = wilson(right, all_)
    return f"{100 * right / all_:6.1f} % ({100 * low:4.1f} to {100 * high:5.1f})"


def speed(file: Path) -> None:
    """Megabytes of text a second on one core, in records of about 60 and of 2,000 characters."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for language in varieties.LANGUAGES:
        short = [row["text"] for row in rows if row["locale"].startswith(language)]
        whole = " ".join(short)
        long = [whole[at : at + 2000] for at in range(0, len(whole), 2000)]
        figures = []
        for texts in (short, long):
            begun, rounds = time.process_time(), 5
            for text in texts * rounds:
                varieties.evidence(text, language)
            took = time.process_time() - begun
            figures.append(
                (rounds * sum(len(text.encode()) for text in texts) / 1e6 / took, took / rounds / len(texts) * 1e6)
            )
        print(
            f"{language}  sentences {figures[0][0]:5.1f} MB/s ({figures[0][1]:.1f} us each)   2,000 characters {figures[1][0]:5.1f} MB/s"
        )


def main(arguments: list[str]) -> None:
    """Print the tables."""
    folder = next((Path(word.removeprefix("--folder=")) for word in arguments if word.startswith("--folder=")), SAMPLE)
    file = folder / ("development.jsonl" if "--development" in arguments else "heldout.jsonl")
    written, named, wrong = measure(file)
    print(
        f"{'variety':8} {'sentences':>9} {'spoken':>7} {'abstained':>10} {'right where it speaks':>25}   {'one':>5} {'right':>25}   {'named':>5} {'right':>25}"
    )
    for key in (*sorted(written), *varieties.LANGUAGES, "all"):
        # A row for each variety, each language and all.
        rows = [name for name in written if key in (name, name[:2], "all")]
        counts, claims = Counter[str](), Counter[str]()
        for name in rows:
            counts.update(written[name])
            claims.update(named[name])
        spoken = counts["evidence"]
        print(
            f"{key:8} {counts['sentences']:>9,} {spoken:>7,} {100 * (1 - spoken / counts['sentences']):>8.1f} %"
            f" {share(counts['right'], spoken)}   {counts['one']:>5,} {share(counts['one right'], counts['one'])}"
            f"   {claims['all']:>5,} {share(claims['right'], claims['all'])}"
        )
    absent = sorted(
        name for code in varieties.LANGUAGES for name in varieties.lexicon(code).varieties if name not in written
    )
    print(f"no sentences to be had: {', '.join(absent)}")
    if "--wrong" in arguments:
        for locale, text, markers in wrong:
            print(locale, markers, text, sep="\t")
    if "--speed" in arguments:
        speed(file)


if __name__ == "__main__":
    main(sys.argv[1:])
