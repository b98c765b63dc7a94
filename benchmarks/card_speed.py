"""Seconds for the card of a large dataset on this machine, and whether it is the same twice and notices one byte.

    python benchmarks/card_speed.py [--gigabytes 1]

The data is the shipped training set over and over, with the words, ids and values of each copy changed, since the
search for duplicates has little to do where a dialogue is there many times. One record in fifty repeats the one before,
in turns exactly and with a word more.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pillm.core.shipped import data_path

_WORDS = re.compile(
    rb'("content":"|"(?:title|when|to|about|text|query|near|place|day|room|label)":")((?:[^"\\]|\\.)*)"'
)
_WORD = re.compile(rb"[^\W\d_]{4,}")
_ID = re.compile(rb'"id":"[^"]*"')
_USER = b'"role":"user","content":"'
_SHARE_OF_COPIES = 0.02


def write(path: Path, size: int, seed: int) -> None:
    """Write `size` bytes of dialogues; the same seed gives the same bytes."""
    random.seed(seed)
    lines = data_path("dataset:home-assistant/train").read_bytes().splitlines()
    made, number, last = 0, 0, b""
    with path.open("wb") as file:
        while made < size:
            number += 1
            if last and random.random() < _SHARE_OF_COPIES:
                line = last if number % 2 else last.replace(_USER, _USER + b"Ok, ", 1)
            else:
                line = last = _varied(random.choice(lines))
            line = _ID.sub(b'"id":"%d-%d"' % (seed, number), line, count=1) + b"\n"
            file.write(line)
            made += len(line)


def _varied(line: bytes) -> bytes:
    salt = b"%05x" % random.getrandbits(20)

    def words(match: re.Match[bytes]) -> bytes:
        if match[2].startswith(b"You are a home"):
            return match[0]
        # Each longer word becomes another one, the same in the user's turn and in the call.
        return match[1] + _WORD.sub(lambda word: word[0][:3] + salt, match[2]) + b'"'

    return _WORDS.sub(words, line)


def pillm(*words: str) -> tuple[float, int, str]:
    """Run `pillm dataset card ...`: seconds, exit code, what it said."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pillm", "dataset", "card", *words], capture_output=True, text=True)
    return time.perf_counter() - started, done.returncode, done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, ok = Path(folder) / "data", True
        data.mkdir()
        size = int(given.gigabytes * 1e9)
        for seed, (name, share) in enumerate({"train-0001": 0.5, "train-0002": 0.4, "test": 0.1}.items()):
            write(data / f"{name}.jsonl", int(size * share), seed)
        print(f"{sum(file.stat().st_size for file in data.iterdir()) / 1e9:.2f} GB on {os.cpu_count()} cores")
        cards = []
        for name in ("one", "two"):
            card = Path(folder) / name
            seconds, code, said = pillm(str(data), f"--out={card}")
            print(f"card: {seconds:.1f} s, exit code {code}")
            ok &= code == 0
            if code:
                print(said)
                return 1
            print(f"  {', '.join(line for line in said.splitlines() if ' = ' in line)}")
            cards.append({file.name: file.read_bytes() for file in card.iterdir()})
        same = cards[0] == cards[1]
        print(f"byte-identical twice: {same}")
        seconds, code, _ = pillm(f"--validate={Path(folder) / 'one'}")
        print(f"validate: {seconds:.1f} s, exit code {code}")
        ok &= same and code == 0
        broken = data / "train-0002.jsonl"
        with broken.open("r+b") as file:
            file.seek(broken.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        seconds, code, said = pillm(f"--validate={Path(folder) / 'one'}")
        named = broken.name in said
        print(f"validate with one byte flipped: {seconds:.1f} s, exit code {code}, the file is named: {named}")
        ok &= code == 1 and named
    print(f"most memory of one process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.2f} GB")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
