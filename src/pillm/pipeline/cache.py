"""When a stage need not run: its key is that of the finished run, and its outputs still have their hashes.

The key is a sha256 over the stage's name, its options without those that have no effect on the
result, the content of every file it reads, what every model reference stands for, the source of the
stage's room and of the floors below, and the version of llama.cpp. Paths and times are not in it:
a run's folder can be moved, and a file that was touched but not changed costs nothing.

doit does the same job but writes its state when its runner ends (`dep_manager.close()` in
`doit/runner.py`'s `finish`, 0.37): a `kill -9` loses what had finished. Here each finished stage
leaves a `stage.json` of its own, written last and in one step.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pillm import __version__
from pillm.core import shipped
from pillm.core.artifacts import Artifact, sha256_file, write_atomic
from pillm.core.events import Emit
from pillm.core.host import cpu_name
from pillm.core.options import InputFile, ModelReference, NameOrFile, NoEffect, StageOptions, marks, split_function
from pillm.models.hashing import content_sha256
from pillm.models.redact import redact
from pillm.models.refs import identity
from pillm.pipeline.manifest import ModelUsed, StageRecord
from pillm.pipeline.stages import Stage

RECORD = "stage.json"
STARTED = ".key"
"""Names the inputs that the files in a stage's folder are being made from, before the stage is done."""

_SHARED_ROOMS = ("core", "models", "llamacpp", "devices")


class Key(NamedTuple):
    """A stage's cache key and what went into it."""

    key: str
    inputs: dict[str, Artifact]
    models: dict[str, ModelUsed]


def key_of(stage: Stage, options: StageOptions, llamacpp: str, emit: Emit) -> Key:
    """The key of a stage with these options; `llamacpp` is the version in use.

    Reads every input that changed since it was last read. Raises UsageError if one cannot be read.
    """
    model = type(options)
    values: dict[str, Any] = options.model_dump(mode="json")
    inputs: dict[str, Artifact] = {}
    models: dict[str, ModelUsed] = {}
    for name in marks(model, InputFile):
        value = getattr(options, name)
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                inputs[f"{name}[{index}]"] = described(shipped.data_path(item), str(item), emit)
            values[name] = [inputs[f"{name}[{index}]"].sha256 for index in range(len(value))]
        elif value is not None:
            inputs[name] = described(shipped.data_path(value), str(value), emit)
            values[name] = inputs[name].sha256
    for name in marks(model, NameOrFile):
        file, function = split_function(getattr(options, name) or "")
        if file and (path := Path(file)).is_file():
            inputs[name] = described(path, file, emit)
            values[name] = [inputs[name].sha256, function] if function else inputs[name].sha256
    for name in marks(model, ModelReference):
        if value := getattr(options, name):
            models[name] = ModelUsed(redact(value), redact(identity(value)))
            values[name] = models[name].identity
    for name in marks(model, NoEffect):
        values.pop(name, None)
    facts = {
        "stage": stage.name,
        "options": values,
        "pillm": __version__,
        "code": code_sha256(stage),
        "llama.cpp": llamacpp,
        "machine": [platform.node(), cpu_name()] if stage.per_machine else None,
    }
    if against := options.given_against_preset():
        facts["given"] = sorted(against)
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return Key(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(), inputs, models)


def code_sha256(stage: Stage) -> str:
    """Hash of the source that makes the stage's outputs: its room and the floors that it stands on."""
    digest = hashlib.sha256()
    for name in rooms_of(stage):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*")) if origin.name == "__init__.py" else [origin]
        for file in files:
            # Data that a room ships is an input like any other: it counts where it is read.
            if file.suffix in (".py", ".jinja", ".json") and "shipped" not in file.parts:
                digest.update(f"{sha256_file(file)}  {name}/{file.name}\n".encode())
    return digest.hexdigest()


def rooms_of(stage: Stage) -> tuple[str, ...]:
    """The packages whose code a stage's outputs depend on: its whole room, not only the part with its entry point."""
    own = ".".join(stage.run_at.partition(":")[0].split(".")[:2])
    return (own, *(f"pillm.{room}" for room in (*_SHARED_ROOMS, *stage.stands_on)))


def finished(stage: Stage, options: StageOptions, key: str, emit: Emit) -> StageRecord | None:
    """The record of the finished run with this key, if every output is still what it was."""
    record = read_record(options.out)
    if record is None or record.key != key:
        return None
    paths = {name: path for name, path in stage.output_paths(options).items() if path.exists()}
    if set(paths) != set(record.outputs):
        return None
    if any(content_sha256(path, emit) != record.outputs[name].sha256 for name, path in paths.items()):
        return None
    return record


def read_record(out: Path) -> StageRecord | None:
    """What a finished stage left in its folder; None if it did not finish, or if the file is damaged."""
    try:
        return msgspec.json.decode((out / RECORD).read_bytes(), type=StageRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def write_record(out: Path, record: StageRecord) -> None:
    """Say that a stage is finished: the last thing that happens to it."""
    write_atomic(out / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def described(path: Path, name: str, emit: Emit) -> Artifact:
    """An artifact called `name` with the hash of `path`, which is read only if it changed."""
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Artifact(name, content_sha256(path, emit), size, "inode/directory")
    return Artifact(name, content_sha256(path, emit), path.stat().st_size)
