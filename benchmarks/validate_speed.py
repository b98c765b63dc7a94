"""Speed and memory of `pillm dataset validate`, against two usual ways to do less, in one run.

    python benchmarks/validate_speed.py [--megabytes 2000] [--rounds 3] [--memory-gigabytes 2]

`jsonschema`: json.loads, the record against a JSON Schema of its shape, each call's arguments against the tool's
schema; compiled validators are kept. No order of turns, characters, ids or doubled keys.
`datasets`: the `datasets` loader, then each row through a pydantic model of a record; no argument is checked.
Rounds are interleaved, and what is reported are ratios of bytes per second, each of a whole process.
Needs: pip install jsonschema datasets
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import corpus

JSONSCHEMA = """
import json, sys
from jsonschema import Draft202012Validator
text, texts = {"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}
call = {"type": "object", "properties": {"id": text, "type": {"const": "function"}, "function": {"type": "object",
    "properties": {"name": text, "arguments": {"type": "object"}}, "required": ["name", "arguments"],
    "additionalProperties": False}}, "required": ["function"], "additionalProperties": False}
turn = {"type": "object", "properties": {"role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
    "content": {"type": ["string", "null"]}, "tool_calls": {"type": "array", "items": call}, "tool_call_id": text,
    "name": text}, "required": ["role"], "additionalProperties": False,
    "anyOf": [{"required": ["content"]}, {"required": ["tool_calls"]}]}
tool = {"type": "object", "properties": {"type": {"const": "function"}, "function": {"type": "object",
    "properties": {"name": text, "description": {"type": "string"}, "parameters": {"type": "object"}},
    "required": ["name"]}}, "required": ["function"]}
shape = Draft202012Validator({"type": "object", "properties": {"id": text,
    "messages": {"type": "array", "items": turn, "minItems": 1}, "tools": {"type": "array", "items": tool},
    "response_schema": {"type": "object"}, "locale": {"type": "string"}, "register": {"type": "string"}, "tags": texts,
    "source": {"type": "string"}, "license": {"type": "string"}, "meta": {"type": "object"}},
    "required": ["id", "messages"], "additionalProperties": False})
kept = {}
def validators(tools):
    key = json.dumps(tools)
    if key not in kept:
        for tool in tools:
            Draft202012Validator.check_schema(tool["function"]["parameters"])
        kept[key] = {t["function"]["name"]: Draft202012Validator(t["function"]["parameters"]) for t in tools}
    return kept[key]
bad = 0
for line in open(sys.argv[1], encoding="utf-8"):
    record = json.loads(line)
    bad += not shape.is_valid(record)
    known = validators(record.get("tools", []))
    for turn in record["messages"]:
        for call in turn.get("tool_calls", []):
            bad += not known[call["function"]["name"]].is_valid(call["function"]["arguments"])
assert not bad
"""
DATASETS = """
import sys
from typing import Any, Literal
import datasets
from pydantic import BaseModel
datasets.disable_progress_bars()
class Function(BaseModel):
    name: str
    arguments: dict[str, Any]
class Call(BaseModel):
    function: Function
class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[Call] | None = None
class Record(BaseModel):
    id: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    locale: str | None = None
rows = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
for row in rows:
    Record.model_validate(row)
"""


def timed(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-gigabytes", type=float, default=2.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {
            "pillm": given.megabytes,
            "jsonschema": max(2, given.megabytes // 100),
            "datasets": max(5, given.megabytes // 50),
        }
        files = {}
        for tool, size in sizes.items():
            files[tool] = folder / f"{tool}.jsonl"
            corpus.write(files[tool], size * 10**6)
        commands = {
            "pillm": lambda _: [sys.executable, "-m", "pillm", "dataset", "validate", str(files["pillm"])],
            "jsonschema": lambda _: [sys.executable, "-c", JSONSCHEMA, str(files["jsonschema"])],
            # A cache of its own each time: the loader would only map what it converted before.
            "datasets": lambda number: [
                sys.executable,
                "-c",
                DATASETS,
                str(files["datasets"]),
                str(folder / f"cache-{number}"),
            ],
        }
        speeds: dict[str, list[float]] = {tool: [] for tool in commands}
        for number in range(given.rounds):
            for tool, words in commands.items():
                seconds = timed(words(number))
                speeds[tool].append(files[tool].stat().st_size / 1e6 / seconds)
        for tool, found in speeds.items():
            print(f"{tool:<11} {statistics.median(found):8.1f} MB/s (median of {len(found)}, fastest {max(found):.1f})")
        for tool in ("jsonschema", "datasets"):
            ratios = [ours / theirs for ours, theirs in zip(speeds["pillm"], speeds[tool], strict=True)]
            print(f"pillm / {tool:<11} {statistics.median(ratios):6.1f} times (lowest {min(ratios):.1f})")
        files["pillm"].unlink()
        memory = {}
        for gigabytes in (given.memory_gigabytes / 10, given.memory_gigabytes):
            path = folder / "large.jsonl"
            records = corpus.write(path, int(gigabytes * 1e9))
            seconds = timed([sys.executable, "-c", PEAK, str(path), str(folder / "peak.json")])
            peak = json.loads((folder / "peak.json").read_text())
            memory[gigabytes] = peak["bytes"]
            print(
                f"{gigabytes:g} GB ({records:,} records): {gigabytes * 1000 / seconds:.0f} MB/s, "
                f"peak of all processes together {peak['bytes'] / 1e6:.0f} MB"
            )
    return 0


PEAK = """
import json, subprocess, sys, threading, time
import psutil
words = [sys.executable, "-m", "pillm", "dataset", "validate", sys.argv[1]]
process = psutil.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
peak = 0
while process.poll() is None:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        continue
    peak = max(peak, total)
    time.sleep(0.1)
assert process.returncode == 0
json.dump({"bytes": peak}, open(sys.argv[2], "w"))
"""


if __name__ == "__main__":
    raise SystemExit(main())
