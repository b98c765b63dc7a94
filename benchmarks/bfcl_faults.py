"""Every schema fault of the Berkeley function-calling data (BFCL v4), and whether another validator agrees.

    pip download --no-deps bfcl-eval && python benchmarks/bfcl_faults.py bfcl_eval-*.whl [--out FOLDER] [--list] [--copies 12]

The questions become prompts, and where there is one, the first accepted answer becomes the assistant's call.
BFCL writes types in the words of Python, Java and JavaScript; its own harness maps those to JSON Schema's
(`model_handler/constants`), so they are mapped the same way first: what is left is a fault of the data. Then
`pillm dataset validate` and the `jsonschema` library judge each schema and each call independently, and every
line on which they disagree is printed. Exits 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

# GORILLA_TO_OPENAPI of bfcl-eval 2026.3.23, bfcl_eval/constants/type_mappings.py.
TYPES = {
    "integer": "integer", "number": "number", "float": "number", "string": "string", "boolean": "boolean",
    "bool": "boolean", "array": "array", "list": "array", "dict": "object", "object": "object", "tuple": "array",
    "any": "string", "byte": "integer", "short": "integer", "long": "integer", "double": "number", "char": "string",
    "ArrayList": "array", "Array": "array", "HashMap": "object", "Hashtable": "object", "Queue": "array",
    "Stack": "array", "Any": "string", "String": "string", "Bigint": "integer",
}  # fmt: skip
SCHEMA_CODES = {"invalid-schema", "unknown-draft", "dangling-ref", "remote-ref", "ref-loop", "costly-schema"}
ARGUMENT_CODES = {"wrong-arguments", "unchecked-arguments", "undeclared-tool"}


def mapped(schema: Any) -> Any:
    """The schema with BFCL's type words as JSON Schema's."""
    if isinstance(schema, list):
        return [mapped(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            found[key] = {name: mapped(inner) for name, inner in value.items()}
        else:
            found[key] = value if key in ("default", "enum", "description") else mapped(value)
    if isinstance(found.get("type"), str):
        found["type"] = TYPES.get(found["type"], found["type"])
    return found


def value_of(accepted: Any) -> Any:
    """The first accepted value: BFCL gives a list of values for each argument, also inside objects."""
    first = accepted[0] if isinstance(accepted, list) and accepted else accepted
    if isinstance(first, dict):
        return {key: value_of(value) for key, value in first.items() if value_of(value) != ""}
    if isinstance(first, list):
        return [value_of([item]) if isinstance(item, dict) else item for item in first]
    return first


def records(wheel: Path) -> Iterator[dict[str, Any]]:
    """Every question with functions, as a record of pillm."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("bfcl_eval/data/BFCL_v4_")]
        for name in sorted(names):
            answers: dict[str, Any] = {}
            place = name.replace("data/", "data/possible_answer/")
            if place in archive.namelist() and "multi_turn" not in name:
                for line in archive.read(place).decode().splitlines():
                    answer = json.loads(line)
                    answers[answer["id"]] = answer.get("ground_truth")
            for line in archive.read(name).decode().splitlines():
                if name.endswith("format_sensitivity.json"):
                    break  # a list of ids, no questions
                item = json.loads(line)
                if not isinstance(item.get("function"), list) or not item["function"]:
                    continue
                yield record(Path(name).stem.removeprefix("BFCL_v4_"), item, answers.get(item["id"]))


def record(kind: str, item: dict[str, Any], truth: Any) -> dict[str, Any]:
    """One question with its tools; `truth` is a list of accepted calls."""
    tools = [
        {
            "type": "function",
            "function": {
                "name": function["name"],
                "description": function.get("description", ""),
                "parameters": mapped(function.get("parameters", {})),
            },
        }
        for function in item["function"]
    ]
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in item["question"][0]]
    calls = []
    for accepted in truth if isinstance(truth, list) else []:
        for name, arguments in accepted.items():
            # An empty string among the accepted values says that the argument may be left out.
            given = {
                key: value_of(value) for key, value in arguments.items() if "" not in value or value_of(value) != ""
            }
            calls.append({"function": {"name": name, "arguments": given}})
    if calls:
        messages.append({"role": "assistant", "tool_calls": calls})
    return {
        "id": item["id"],
        "messages": messages,
        "tools": tools,
        "source": f"bfcl-eval {kind}",
        "license": "Apache-2.0",
    }


def judged_elsewhere(line: dict[str, Any]) -> set[str]:
    """What the jsonschema library says of a record: paths of bad schemas and of bad arguments."""
    found: set[str] = set()
    validators: dict[str, Any] = {}
    for index, tool in enumerate(line["tools"]):
        schema = tool["function"]["parameters"]
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
            validators[tool["function"]["name"]] = jsonschema.Draft202012Validator(schema)
        except jsonschema.SchemaError:
            found.add(f"schema of tools[{index}]")
            validators[tool["function"]["name"]] = None
    for index, call in enumerate(line["messages"][-1].get("tool_calls", [])):
        name = call["function"]["name"]
        validator = validators.get(name)
        if validator is None or not validator.is_valid(call["function"]["arguments"]):
            found.add(f"arguments of tool_calls[{index}]")
    return found


def timed(lines: list[dict[str, Any]], copies: int, path: Path) -> None:
    """Print how fast data with tools of its own in each record, and a finding in most, is validated."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(copies):
            file.writelines(json.dumps({**line, "id": f"{number}-{line['id']}"}) + "\n" for line in lines)
    start = time.perf_counter()
    command = [sys.executable, "-m", "pillm", "dataset", "validate", str(path), "--max-findings=1"]
    subprocess.run(command, capture_output=True, check=False)
    seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
    print(f"{copies} copies, {size:.0f} MB: {seconds:.1f} s, {size / seconds:.0f} MB/s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, help="folder to keep the converted data and the findings in")
    parser.add_argument("--list", action="store_true", help="print every fault of a schema and of a call")
    parser.add_argument("--copies", type=int, default=1, help="also time the validation of so many copies of the data")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        lines = list(records(given.wheel))
        data = out / "bfcl.jsonl"
        data.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pillm",
            "dataset",
            "validate",
            str(data),
            "--format=jsonl",
            "--max-findings=1000000",
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        (out / "findings.jsonl").write_text(said.stdout, encoding="utf-8")
        if given.copies > 1:
            timed(lines, given.copies, out / "copies.jsonl")
    findings = [json.loads(line) for line in said.stdout.splitlines()]
    ours: dict[int, set[str]] = defaultdict(set)
    for item in findings:
        steps = item["path"].split(".")
        if item["code"] in SCHEMA_CODES:
            ours[item["line"]].add(f"schema of {steps[1]}")
        elif item["code"] in ARGUMENT_CODES:
            ours[item["line"]].add(f"arguments of {steps[2]}")
    if given.list:
        for item in findings:
            if item["code"] in SCHEMA_CODES | {"wrong-arguments"}:
                place = item["path"].partition("parameters.")[2] or item["path"].partition("arguments")[2].lstrip(".")
                print(f"| {lines[item['line'] - 1]['id']} | {item['code']} | `{place}` | {item['message']} |")
    disagree = 0
    theirs_total = Counter[str]()
    for number, line in enumerate(lines, 1):
        theirs = judged_elsewhere(line)
        theirs_total.update(place.split()[0] for place in theirs)
        if theirs != ours[number]:
            disagree += 1
            print(f"line {number} ({line['id']}): pillm {sorted(ours[number])}, jsonschema {sorted(theirs)}")
    print(
        f"{len(lines)} records, {sum(len(line['tools']) for line in lines)} schemas, "
        f"{sum(len(line['messages'][-1].get('tool_calls', [])) for line in lines)} calls"
    )
    for code, count in sorted(Counter(item["code"] for item in findings).items()):
        print(f"  {code:<22} {count}")
    print(f"jsonschema: {dict(theirs_total)}; disagreements: {disagree}")
    return 1 if disagree else 0


if __name__ == "__main__":
    raise SystemExit(main())
