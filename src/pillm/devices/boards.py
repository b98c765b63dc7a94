"""Profiles of boards: one YAML file a family, one profile a memory size (`pi4-4gb`), and the processors' constants.

A user's own profiles are files of the same form, named with their path or put in `$XDG_CONFIG_HOME/pillm/boards`.
They can name a processor that is known here, or describe their own under `soc`.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pillm.core.errors import ProfileError, UsageError
from pillm.core.findings import Finding
from pillm.core.paths import expanded
from pillm.core.yaml_lines import Document, dotted
from pillm.devices.formats import BLOCKS

MIB, GIB = 2**20, 2**30
OTHER = "other"


class Soc(BaseModel):
    """A processor and its memory. Units are in `socs.yaml`, beside the figures' sources."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    core: str
    cores: int = Field(ge=1, le=1024)
    features: tuple[str, ...] = ()
    decode_threads: int = Field(ge=1)
    read_gbps: dict[int, float] = Field(min_length=1)
    dot_gweights: dict[str, float]
    repack_factor: float = Field(1.0, ge=1, le=20)
    thread_loss: float = Field(0.0, ge=0, lt=0.3)
    overlap: float = Field(1.0, ge=0, le=1)
    spread: float = Field(0.6, gt=0, le=4)
    notes: str = ""

    @field_validator("read_gbps", "dot_gweights")
    @classmethod
    def _positive(cls, value: dict[Any, float]) -> dict[Any, float]:
        if any(number <= 0 for number in value.values()):
            raise ValueError("every figure must be above 0")
        return value

    @field_validator("dot_gweights")
    @classmethod
    def _formats(cls, value: dict[str, float]) -> dict[str, float]:
        if OTHER not in value:
            raise ValueError(f"must have a figure for `{OTHER}`")
        if unknown := [name for name in value if name not in BLOCKS and name != OTHER]:
            raise ValueError(f"not a format: {', '.join(unknown)}")
        return value

    def bandwidth(self, threads: int) -> float:
        """Bytes a second that so many threads read, interpolated between the counts that are known."""
        known = sorted(self.read_gbps.items())
        threads = min(max(threads, known[0][0]), known[-1][0])
        below = max(item for item in known if item[0] <= threads)
        above = min(item for item in known if item[0] >= threads)
        span = above[0] - below[0]
        share = (threads - below[0]) / span if span else 0.0
        return (below[1] + share * (above[1] - below[1])) * 1e9

    def dot(self, kind: str) -> float:
        """Weights that one core multiplies in a second, without repacking."""
        return self.dot_gweights.get(kind, self.dot_gweights[OTHER]) * 1e9


class _Family(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str
    soc: str | Soc
    ram_gib: tuple[float, ...] = ()
    ram_mib: tuple[int, ...] = ()
    reserved_mib: int = Field(ge=0)
    device_tree: str = ""
    notes: str = ""

    @field_validator("ram_gib", "ram_mib")
    @classmethod
    def _some(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < size < 2**20 for size in value):
            raise ValueError("every size must be above 0")
        return value

    @model_validator(mode="after")
    def _sizes(self) -> _Family:
        if not self.ram_gib and not self.ram_mib:
            raise ValueError("one of ram_gib and ram_mib must list the sizes of memory")
        return self


class Device(BaseModel):
    """One board with one memory size. `reserved_bytes` is what the system keeps for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    title: str
    soc_name: str
    """Its processor's name, which published rows are looked up by; empty for one that a user describes."""
    soc: Soc
    ram_bytes: int
    reserved_bytes: int
    device_tree: str = ""
    """How the board's own device tree names it, without the revision."""
    notes: str = ""
    source: str = ""
    """The file of a profile that did not come with the tool."""

    @property
    def cores(self) -> int:
        """Cores of its processor."""
        return self.soc.cores

    def is_board(self, model: str) -> bool:
        """Whether a machine whose device tree gives this name is a board of this family (of any memory size)."""
        return bool(self.device_tree) and (model == self.device_tree or model.startswith(f"{self.device_tree} "))

    @property
    def room_bytes(self) -> int:
        """What a model may take."""
        return max(0, self.ram_bytes - self.reserved_bytes)


def own_folder() -> Path:
    """Where a user's own profiles are looked for."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else expanded("~/.config")) / "pillm" / "boards"


def names() -> tuple[str, ...]:
    """The names of all profiles: pi4-1gb, ..., pi5-16gb, and the user's own."""
    return tuple(all_devices())


def all_devices() -> dict[str, Device]:
    """All profiles by name. A user's own goes before one of the same name. Raises ProfileError for a bad file."""
    found = dict(shipped())
    folder = own_folder()
    if folder.is_dir():
        for file in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
            found |= {device.name: device for device in _from_file(file)}
    return found


def load(name: str) -> Device:
    """The profile of this name, or of a YAML file. Raises UsageError with the names there are, ProfileError with lines."""
    path = expanded(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        devices = _from_file(path)
        if len(devices) > 1:
            shown = ", ".join(device.name for device in devices)
            raise UsageError(
                f"{name}: holds {len(devices)} boards: {shown}",
                f"put it in {own_folder()} and name one, or keep one memory size in it",
            )
        return devices[0]
    known = shipped()
    wanted = name.casefold()
    if wanted in known and not own_folder().is_dir():
        return known[wanted]
    every = all_devices()
    if wanted in every:
        return every[wanted]
    families = {device.family: [n for n, d in every.items() if d.family == device.family] for device in every.values()}
    if wanted in families:
        if len(families[wanted]) == 1:
            return every[families[wanted][0]]
        raise UsageError(f"{name}: which memory size?", f"one of: {', '.join(families[wanted])}")
    raise UsageError(f"{name}: there is no such board", "known boards: " + ", ".join(every))


@cache
def socs() -> dict[str, Soc]:
    """The processors that come with the tool."""
    text = resources.files("pillm.devices").joinpath("socs.yaml").read_bytes()
    return {name: Soc.model_validate(value) for name, value in _numbered(Document("socs.yaml", text).data).items()}


@cache
def shipped() -> dict[str, Device]:
    """The profiles that come with the tool."""
    devices = {}
    for file in sorted(resources.files("pillm.devices").joinpath("boards").iterdir(), key=lambda file: file.name):
        family = _Family.model_validate(Document(file.name, file.read_bytes()).data)
        devices |= {device.name: device for device in _devices(family, "")}
    return devices


def _devices(family: _Family, source: str) -> list[Device]:
    soc = socs()[family.soc] if isinstance(family.soc, str) else family.soc
    sizes = [(f"{size:g}gb", f"{size:g} GB", size * GIB) for size in family.ram_gib]
    sizes += [(f"{size}mb", f"{size} MB", size * MIB) for size in family.ram_mib]
    return [
        Device(
            name=f"{family.family}-{short}",
            family=family.family,
            title=f"{family.title}, {shown}",
            soc_name=family.soc if isinstance(family.soc, str) else "",
            soc=soc,
            ram_bytes=round(size),
            reserved_bytes=family.reserved_mib * MIB,
            device_tree=family.device_tree,
            notes=family.notes,
            source=source,
        )
        for short, shown, size in sizes
    ]


def _numbered(data: Any) -> Any:
    """YAML's keys are words here; counts of threads are numbers."""
    if isinstance(data, dict):
        return {int(k) if isinstance(k, str) and k.isdigit() else k: _numbered(v) for k, v in data.items()}
    return data


def _from_file(path: Path) -> list[Device]:
    """The boards of a user's file. Raises UsageError (cannot be read), ProfileError (every fault with its line)."""
    try:
        document = Document(str(path), path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror})", "check the path of the board's profile"
        ) from error
    findings = list(document.findings)
    data = document.data
    if not findings and not isinstance(data, dict):
        findings.append(_finding(document, (), "not-a-board", "the file does not hold keys of a board"))
    family = None
    if not findings:
        try:
            family = _Family.model_validate(_numbered(data))
        except ValidationError as error:
            findings += _problems(document, error, isinstance(data.get("soc"), dict))
    if family is not None and isinstance(family.soc, str) and family.soc not in socs():
        message = f"the processor {family.soc!r} is not known"
        hint = f"write one of {', '.join(socs())}, or its own figures under soc"
        findings.append(_finding(document, ("soc",), "unknown-soc", message, hint))
    if findings or family is None:
        raise ProfileError(
            f"{path}: {len(findings)} {'fault' if len(findings) == 1 else 'faults'} in the board's profile",
            findings,
            "docs/devices.md shows how a profile is written",
        )
    return _devices(family, str(path))


def _problems(document: Document, error: ValidationError, own_soc: bool) -> list[Finding]:
    found = []
    for item in error.errors():
        # pydantic tries both forms of `soc` and names the form in the place.
        place = tuple(part for part in item["loc"] if part not in ("str", "Soc"))
        if ("Soc" if not own_soc else "str") in item["loc"]:
            continue
        message = str(item["msg"]).removeprefix("Value error, ")
        found.append(_finding(document, place, item["type"].replace("_", "-"), message))
    return found


def _finding(
    document: Document, place: tuple[str | int, ...], code: str, message: str, hint: str = "see docs/devices.md"
) -> Finding:
    words = tuple(str(part) if isinstance(part, int) and place[0] == "soc" else part for part in place)
    return Finding(
        file=document.file, line=document.line(words), path=dotted(words), code=code, message=message, hint=hint
    )
