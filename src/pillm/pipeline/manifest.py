"""`manifest.json`: what went into a run, what came out of it, with which versions, on which machine.

It is written after every stage, so that a run which stops half-way tells its half. It holds no
environment variables and no secrets: options name the variable of a key, never the key.
"""

from __future__ import annotations

import datetime
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from pillm import __version__
from pillm.core.artifacts import Artifact, write_atomic
from pillm.core.errors import UsageError, writing
from pillm.core.host import cores, cpu_name
from pillm.core.stage import MetricValue

FORMAT = 1
NAME = "manifest.json"

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "gguf", "numpy", "pydantic")


class Hardware(msgspec.Struct, frozen=True):
    """The machine that ran the stages."""

    cpu: str
    cores: int
    memory_bytes: int
    os: str
    architecture: str
    gpu: str = ""


class ModelUsed(msgspec.Struct, frozen=True):
    """A model reference as it was given, what identifies its content, and its licence where it is known."""

    reference: str
    identity: str
    license: str = ""


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a run: its cache key, its shell line, what it read, what it made, what it took.

    `inputs` and `models` are keyed by option, `outputs` by the names of the stage table; output
    paths are relative to the run's folder, input paths are as the stage got them. `seconds` is wall
    time and `peak_memory_bytes` the largest resident memory of the stage with its children.
    """

    id: str
    stage: str
    key: str
    command: str
    options: dict[str, Any]
    inputs: dict[str, Artifact] = {}
    models: dict[str, ModelUsed] = {}
    outputs: dict[str, Artifact] = {}
    metrics: dict[str, MetricValue] = {}
    started: str = ""
    ended: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0


class RunManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run. `stages` are in the order they ran; only finished stages are in it."""

    format: int = FORMAT
    name: str
    description: str = ""
    profile: str
    profile_sha256: str
    overrides: tuple[str, ...] = ()
    updated: str = ""
    versions: dict[str, str] = {}
    hardware: Hardware
    stages: tuple[StageRecord, ...] = ()
    complete: bool = False


def now() -> str:
    """Now, in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions(llamacpp: str = "") -> dict[str, str]:
    """Versions of what can change a result: pillm, Python, llama.cpp, and the packages that are installed."""
    found = {"pillm": __version__, "python": platform.python_version()}
    if llamacpp:
        found["llama.cpp"] = llamacpp
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> Hardware:
    """The machine we are on. Cores are those that this process may use."""
    import psutil

    system = f"{platform.system()} {platform.release()}"
    return Hardware(cpu_name(), cores(), psutil.virtual_memory().total, system, platform.machine(), gpu_name())


def gpu_name() -> str:
    """The first NVIDIA device's name, from the driver's own files; empty where there is none."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                return value.strip()
    return ""


def write(run_dir: Path, manifest: RunManifest) -> Path:
    """Publish the manifest in a run's folder."""
    path = run_dir / NAME
    data = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, updated=now())), indent=2)
    with writing(path):
        write_atomic(path, data + b"\n")
    return path


def read(run_dir: Path) -> RunManifest:
    """The manifest of a run's folder. Raises UsageError if there is none, or if it is not one of ours."""
    path = run_dir / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunManifest)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror})", "give the folder of a run, such as runs/quickstart"
        ) from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: not a manifest of this version ({error})", "run the profile again") from error
