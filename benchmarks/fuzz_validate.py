"""Mutated dataset lines, guided by coverage: no crash, no hang, no accepted non-JSON, no disagreement.

    pip install atheris && python benchmarks/fuzz_validate.py [--lines 1000000] [--seed 1]

Seeds are the planted faults of the tests and lines of the shipped dataset. For each mutated line the quick and the
full judgement run; the fuzzer stops at the first line which raises, takes over ten seconds, is taken as sound though
Python's own `json` refuses it (or doubles a key), or on which the two judgements disagree.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["pillm.data"]):
    from pillm.data import wire
    from pillm.data.validation import characters, judge
    from pillm.data.validation.codes import CODES

ROOT = Path(__file__).parent.parent
TOKENS = [
    '"id"', '"messages"', '"role"', '"content"', '"tool_calls"', '"tool_call_id"', '"function"', '"arguments"', '"tools"',
    '"parameters"', '"properties"', '"$ref"', '"#/$defs/a"', '"$defs"', '"anyOf"', '"required"', '"enum"', '"type"',
    '"object"', '"response_schema"', '"locale"', '"user"', '"assistant"', '"tool"', '"system"', "\\\\ud800", "\\\\u0022",
    "\\\\u0000", "NaN", "1e999", "{", "}", "[", "]", ",", ":", "<|im_end|>",
]  # fmt: skip


def refuse(text: str) -> None:
    raise ValueError(text)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def check(data: bytes) -> None:
    line = data.replace(b"\n", b" ")
    key = judge.sound(line)
    faults, value = judge.faults(line)
    for fault in faults:
        assert fault.code in CODES
    if value is not None and characters.plain(line):
        assert not any(characters.faults(value))
        if line.count(b":") == wire.encode(value).count(b":"):
            json.loads(line.decode("utf-8"), object_pairs_hook=once)
    if key is None:
        return
    json.loads(line.decode("utf-8"), parse_constant=refuse, object_pairs_hook=once)
    assert not faults, (line, faults)
    assert isinstance(value, dict)
    assert key == value["id"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = (ROOT / "tests/data/faults/records.jsonl").read_bytes().splitlines()
        seeds += (ROOT / "tests/data/clean.jsonl").read_bytes().splitlines()
        seeds += (ROOT / "src/pillm/data/shipped/home-assistant/smoke.jsonl").read_bytes().splitlines()[:8]
        corpus = folder / "corpus"
        corpus.mkdir()
        for index, line in enumerate(seeds):
            # What is deeper or longer only slows the mutations down.
            if len(line) < 4000:
                (corpus / f"seed-{index:03}").write_bytes(line)
        words = folder / "tokens"
        quoted = (token.replace('"', '\\"') for token in TOKENS)
        words.write_text("".join(f'"{token}"\n' for token in quoted), encoding="utf-8")
        options = [f"-runs={given.lines}", f"-seed={given.seed}", "-timeout=10", "-max_len=4000", f"-dict={words}"]
        options.append(f"-artifact_prefix={Path.cwd()}/")
        atheris.Setup([sys.argv[0], *options, str(corpus)], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
