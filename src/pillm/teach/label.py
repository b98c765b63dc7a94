"""`pillm label`: a teacher answers the prompts of a dataset.

What is deterministic: which records are asked, in which order they are published, and every byte of the
datasets that a rerun publishes when all its answers are in the journal. Whether a teacher gives the same
answer twice is said in `server.py` and `in_process.py`. Time goes into label.json only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from pillm.core import jsonl
from pillm.core.artifacts import clear_partials
from pillm.core.errors import FindingsError
from pillm.core.events import Emit
from pillm.core.findings import Finding
from pillm.core.records import Record
from pillm.core.shipped import data_path
from pillm.core.stage import Result
from pillm.teach import journal
from pillm.teach.judge import schema_errors
from pillm.teach.options import LabelOptions
from pillm.teach.publish import Item, publish
from pillm.teach.rounds import answer
from pillm.teach.teachers import choose


def run(options: LabelOptions, emit: Emit) -> Result:
    """Label and publish `labelled.jsonl`, `rejected.jsonl` and `label.json` in `options.out`.

    Raises FindingsError (the dataset), UsageError (teacher or address), MissingError, NetworkError (the
    server), GateError (every prompt was rejected; rejected.jsonl and label.json are published).
    """
    began = time.monotonic()
    items = read(data_path(options.prompts))
    prompts = [item.record for item in items if item.line is None][: options.limit]
    with journal.opened(options.out / journal.NAME, emit) as book:
        clear_partials(options.out)
        teacher = choose(options, emit) if prompts else None
        tally = answer(options, prompts, teacher, book, emit)
        return publish(options, items, prompts, teacher, tally, book, time.monotonic() - began, emit)


def read(path: Path) -> list[Item]:
    """The records of `path`, in order. Raises FindingsError with all that stands in the way of labelling."""
    found: list[Finding] = []
    items: list[Item] = []
    for line, item in jsonl.scan(path):
        if isinstance(item, Finding):
            found.append(item)
        elif item.is_prompt:
            found += _schema_findings(path, line, item)
            items.append(Item(item, None))
        elif item.messages[-1].role == "assistant":
            items.append(Item(item, line.data.strip()))
        else:
            message = f"the last message is the {item.messages[-1].role}'s: neither a prompt nor an answer"
            found.append(_finding(path, line, "no-prompt", message, "end with a user's message", "$.messages"))
        if len(found) >= jsonl.MAX_FINDINGS:
            break
    if not items and not found:
        found.append(Finding(file=str(path), line=1, code="empty", message="there is no record in this file"))
    if found:
        raise FindingsError(f"{path}: {len(found)} bad lines", found, "mend these lines, then run again")
    return items


def _schema_findings(path: Path, line: jsonl.Line, record: Record) -> Iterator[Finding]:
    for where, message in schema_errors(record):
        yield _finding(path, line, "bad-schema", f"not a JSON Schema: {message}", "mend the schema", where)


def _finding(path: Path, line: jsonl.Line, code: str, message: str, hint: str, where: str) -> Finding:
    return Finding(file=str(path), line=line.number, byte=line.byte, path=where, code=code, message=message, hint=hint)
