"""Measurements that others published, with the sizes of their models: what the predictor is fitted to and judged by.

`published.csv` are the rows that the predictor is judged by, `further.csv` some more that it is fitted to as well.
`repack` is our reading of the runtime: whether its weights were in llama.cpp's repacked form.
"""

from __future__ import annotations

import csv
import json
from functools import cache
from importlib import resources

import msgspec

from pillm.core.yaml_lines import Document
from pillm.devices.architecture import from_config
from pillm.devices.boards import shipped
from pillm.devices.mixture import mixed
from pillm.devices.model import Model, Work


class Row(msgspec.Struct, frozen=True):
    """A published measurement, in tokens/s; `prefill_tps` is None where none was published."""

    board: str
    model: str
    quant: str
    repack: bool
    runtime: str
    threads: int
    decode_tps: float
    prefill_tps: float | None
    params_b: float
    setup: str
    """Whose board it was: rows of one board share its memory settings, firmware and cooling."""
    source: str
    further: bool = False

    @property
    def soc(self) -> str:
        """The processor it was measured on."""
        return next(device.soc_name for device in shipped().values() if device.family == self.board)

    @property
    def series(self) -> tuple[object, ...]:
        """Rows that differ in nothing but threads."""
        return self.setup, self.model, self.quant, self.repack, self.runtime

    @property
    def work(self) -> Work:
        """What a token of its model costs."""
        return model(self.model, self.quant).work

    @property
    def unexplained(self) -> str:
        """Why llama.cpp's model does not hold for the row; empty if it should. Decided by the runtime alone."""
        if self.runtime.startswith("llamafile"):
            return "llamafile has matrix kernels of its own (tinyBLAS), and its figures are rounded to whole tokens"
        return ""


@cache
def rows() -> tuple[Row, ...]:
    """All rows, those that the predictor is judged by first."""
    return (*_read("published.csv", further=False), *_read("further.csv", further=True))


@cache
def model(name: str, quant: str) -> Model:
    """A published model in a mixture; its size follows from the sizes of its layers."""
    text = resources.files("pillm.devices").joinpath("published_models.yaml").read_bytes()
    plain = from_config(json.dumps(Document("published_models.yaml", text).data[name]), "published_models.yaml", name)
    return msgspec.structs.replace(plain, quant=quant, tensors=mixed(plain.tensors, plain.shape, quant))


def _read(name: str, *, further: bool) -> list[Row]:
    text = resources.files("pillm.devices").joinpath(name).read_text(encoding="utf-8")
    return [
        Row(
            board=line["board"],
            model=line["model"],
            quant=line["quant"],
            repack=line["repack"] == "yes",
            runtime=line["runtime"],
            threads=int(line["threads"]),
            decode_tps=float(line["decode_tps"]),
            prefill_tps=float(line["prefill_tps"]) if line["prefill_tps"] else None,
            params_b=float(line["params_b"]),
            setup=line["setup"],
            source=line["source"],
            further=further,
        )
        for line in csv.DictReader(text.splitlines())
    ]
