"""Profiles of boards, from the YAML files in `boards/`: one file a family, one profile a memory size."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, Field

from pillm.core.errors import UsageError

GIB = 2**30


class _Family(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    title: str
    soc: str
    cores: int = Field(ge=1)
    decode_threads: int = Field(ge=1)
    ram_gib: tuple[int, ...] = Field(min_length=1)
    reserved_mib: int = Field(ge=0)
    bandwidth_note: str


class Device(BaseModel):
    """One board with one memory size. `reserved_bytes` is what the system keeps for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    title: str
    soc: str
    cores: int
    decode_threads: int
    ram_bytes: int
    reserved_bytes: int
    bandwidth_note: str


@cache
def _devices() -> dict[str, Device]:
    devices = {}
    for file in sorted(resources.files("pillm.devices").joinpath("boards").iterdir(), key=lambda file: file.name):
        family = _Family.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        shared = family.model_dump(exclude={"ram_gib", "reserved_mib", "title"})
        for ram in family.ram_gib:
            device = Device(
                name=f"{family.family}-{ram}gb",
                title=f"{family.title}, {ram} GB",
                ram_bytes=ram * GIB,
                reserved_bytes=family.reserved_mib * 2**20,
                **shared,
            )
            devices[device.name] = device
    return devices


def names() -> tuple[str, ...]:
    """The names of all profiles: pi4-1gb, ..., pi5-16gb."""
    return tuple(_devices())


def load(name: str) -> Device:
    """The profile of this name. Raises UsageError with the names there are."""
    try:
        return _devices()[name.casefold()]
    except KeyError:
        raise UsageError(f"{name}: there is no such board", "known boards: " + ", ".join(names())) from None
