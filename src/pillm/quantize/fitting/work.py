"""The steps of a fit, each kept in a folder of its own name, so that a killed run goes on where it was.

The folder's name is a hash of everything that the steps depend on: the model's bytes, the texts' bytes, the options and
the versions of what computes. Another budget uses the same steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers

from pillm.core.artifacts import atomic_file, clear_partials, sha256_file
from pillm.core.errors import ResourceError
from pillm.core.events import Emit, Log, Progress
from pillm.core.shipped import data_path
from pillm.llamacpp.gguf_file import GgufFile, describe
from pillm.llamacpp.install import LlamaCpp
from pillm.quantize.fitting import costs, sensitivity, texts
from pillm.quantize.fitting.costs import Table
from pillm.quantize.fitting.sensitivity import Sensitivity
from pillm.quantize.fitting.texts import Sides, Tokens
from pillm.quantize.grid import equalize as scaling
from pillm.quantize.grid.equalize import equalize
from pillm.quantize.options import QuantizeOptions
from pillm.quantize.weights import Loaded, fill, load, placed

SEQUENCES = 24
_SCALED = "scaled.gguf"
_LOUDNESS_TOKENS = 8192
"""Loudness of channels needs few."""
_BYTES_A_WEIGHT = 4
# Activations of a short sequence, a layer's gradient, the libraries.
_REST_BYTES = 1_500_000_000


class Work:
    """The steps of one model and one set of texts."""

    def __init__(self, tools: LlamaCpp, source: GgufFile, options: QuantizeOptions, emit: Emit) -> None:
        self._tools, self._source, self._options, self._emit = tools, source, options, emit
        self.folder = options.out / "work" / self._key()
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_partials(self.folder)
        self._loaded: Loaded | None = None

    def _open(self, path: Path, *, exact: bool) -> Loaded:
        """The model of a file, in 32 bits, or in 16 where the processor multiplies those faster and nothing hangs on it.

        One is kept at a time. Raises ResourceError where it would not fit.
        """
        held = self._loaded
        if held is not None and held.file.path == path and not (exact and _halved(held)):
            return held
        if held is not None and not exact:
            fill(held, path)
            self._loaded = msgspec.structs.replace(held, file=describe(path))
            return self._loaded
        self._loaded = None
        need = self._source.parameters * _BYTES_A_WEIGHT + self._source.parameters * 2 + _REST_BYTES
        limit = self._options.max_memory
        if limit is not None and need > limit * 1e9:
            raise ResourceError(
                f"fitting {self._source.path.name} takes about {need / 1e9:.1f} GB, and --max-memory is {limit:g} GB",
                "allow more, or quantize without fitting",
            )
        self._emit(Progress("read the model", 0, 1, "models"))
        loaded = load(path)
        self._loaded = loaded if exact else placed(loaded)
        self._emit(Progress("read the model", 1, 1, "models"))
        return self._loaded

    def forget(self) -> None:
        """Let go of the model: what comes next reads its own."""
        self._loaded = None

    def exact(self) -> Loaded:
        """The model as it was given."""
        return self._open(self._source.path, exact=True)

    def scaled(self) -> Path:
        """The model with its channels scaled: the same function, and a better one to round. All that is fitted is fitted to it."""
        self._scales()
        return self.folder / _SCALED

    def _scales(self) -> dict[str, Any]:
        """What the columns of the scaled model's matrices were multiplied with, by tensor."""
        path = self.folder / _SCALED

        def make() -> dict[str, Any]:
            some = self.sides().fit[: max(1, _LOUDNESS_TOKENS // self.context)]
            return equalize(self._open(self._source.path, exact=False), path, some, self._emit)

        if not path.is_file():
            (self.folder / "scales.npz").unlink(missing_ok=True)
        return self._kept("scales", make)

    def sides(self) -> Sides:
        """Tokens to fit on and to judge by."""

        def make() -> dict[str, Any]:
            options = self._options
            found = texts.gather(
                self._tools, self._source,
                lambda prompts, wanted: texts.write_own(self._open(self._source.path, exact=False).model, prompts, wanted, seed=options.seed, emit=self._emit),
                data=options.imatrix_data, general=options.general_data, tokens=max(options.fit_tokens, options.improve_tokens),
                held_chunks=options.held_chunks, context=self.context, emit=self._emit,
            )  # fmt: skip
            names = list(found.shares)
            return {"fit": found.fit, "inside": found.inside, "outside": found.outside,
                    "names": np.array(names), "counts": np.array([found.shares[name] for name in names])}  # fmt: skip

        kept = self._kept("texts", make)
        shares = dict(zip(kept["names"].tolist(), kept["counts"].tolist(), strict=True))
        return Sides(kept["fit"], kept["inside"], kept["outside"], shares)

    @property
    def context(self) -> int:
        """Tokens of a chunk."""
        return min(self._options.imatrix_context, self._source.context_length or self._options.imatrix_context)

    @property
    def mix_tokens(self) -> Tokens:
        """Those that the mix is fitted on: a beginning of all, which is mixed."""
        return self.sides().fit[: -(-self._options.fit_tokens // self.context)]

    def moments(self) -> dict[str, Any]:
        """Second moments of what each tensor of the given model is multiplied with."""

        def make() -> dict[str, Any]:
            return sensitivity.moments(self._open(self._source.path, exact=False), self.mix_tokens, self._emit)

        return self._kept("moments", make)

    def scaled_moments(self) -> dict[str, Any]:
        """The same of the scaled model."""
        scales = self._scales()
        return {
            name: values / np.square(scales[name]) if name in scales else values
            for name, values in self.moments().items()
        }

    def sensitivity(self) -> Sensitivity:
        """Fisher information and costs of rounding inputs, of the scaled model."""
        known = self.scaled_moments()

        def make() -> dict[str, Any]:
            found = sensitivity.fisher(
                self._open(self.scaled(), exact=False),
                self.mix_tokens,
                known,
                sequences=SEQUENCES,
                seed=self._options.seed,
                emit=self._emit,
            )
            rounding = {f"rounding {name}": np.array([by[32], by[256]]) for name, by in found.rounding.items()}
            return {f"rows {name}": rows for name, rows in found.rows.items()} | rounding

        kept = self._kept("fisher", make)
        rows = {name.removeprefix("rows "): value for name, value in kept.items() if name.startswith("rows ")}
        rounding = {
            name.removeprefix("rounding "): {32: float(value[0]), 256: float(value[1])}
            for name, value in kept.items()
            if name.startswith("rounding ")
        }
        return Sensitivity(known, rows, rounding, int(self.mix_tokens.size))

    def matrix(self) -> Path:
        """The scaled model's importance matrix, with the embedding's as a head."""
        path = self.folder / "imatrix.gguf"
        if not path.is_file():
            costs.write_imatrix(path, self.scaled_moments(), self._source, int(self.mix_tokens.size), embedding=True)
        return path

    def stock_matrix(self) -> Path:
        """The given model's, as llama-imatrix would make it."""
        path = self.folder / "imatrix-stock.gguf"
        if not path.is_file():
            costs.write_imatrix(path, self.moments(), self._source, int(self.mix_tokens.size), embedding=False)
        return path

    def table(self) -> Table:
        """What each tensor costs in each type."""
        return costs.table(
            self._tools, describe(self.scaled()), self.sensitivity(), self.matrix(), self.folder,
            threads=self._options.threads, emit=self._emit,
        )  # fmt: skip

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            made = make()
            with atomic_file(path) as file:
                np.savez(file, **made)  # pyright: ignore[reportArgumentType]
        else:
            self._emit(Log(f"{name}: taken from an earlier run", "debug"))
        with np.load(path) as found:
            return dict(found)

    def _key(self) -> str:
        options = self._options
        own = ("imatrix_context", "fit_tokens", "improve_tokens", "held_chunks", "seed")
        parts = [sha256_file(self._source.path), self._tools.version, str(torch.__version__), transformers.__version__]
        parts += [str(getattr(options, name)) for name in own]
        for path in (options.imatrix_data, options.general_data):
            place = data_path(path) if path else None
            parts.append(sha256_file(place) if place and place.is_file() else str(place))
        for module in (texts, sensitivity, costs, scaling):
            parts.append(sha256_file(Path(str(module.__file__))))
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]


def _halved(loaded: Loaded) -> bool:
    return next(loaded.model.parameters()).dtype != torch.float32
