"""Make a quantized file better without changing its types: other codes, other scales, the same bytes and speed."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from pillm.core.artifacts import atomic_file, clear_partials, sha256_file
from pillm.core.errors import GateError, UsageError, writing
from pillm.core.events import Emit, Progress
from pillm.llamacpp.gguf_file import GgufFile, Tensor, describe
from pillm.quantize.grid.codec import GRIDS, Packed, pack, unpack
from pillm.quantize.grid.distill import distilled
from pillm.quantize.grid.moments import moments, shared
from pillm.quantize.grid.rounding import rounded
from pillm.quantize.weights import Loaded, decoded, load, placed

Method = Literal["gptq", "gptq+distill"]


def improve(
    reference: Path, mix: Path, out: Path, tokens: np.ndarray, method: Method, seconds: float | None, emit: Emit
) -> None:
    """Write `out`: the file `mix` with better codes and scales for the float model `reference` that it was made from.

    `tokens` int (sequences, context) is calibration text. `gptq` is error-compensated rounding, `gptq+distill` trains
    codes, scales and norms after it, for at most `seconds`. Finished tensors and the state of training are kept
    beside `out` until it is written, so that a killed run goes on.

    Raises UsageError (files that do not belong together), GateError (the written file does not decode to what was
    intended), ResourceError (disk).
    """
    began = time.monotonic()
    source = describe(mix)
    folder = out.with_name(out.name + ".work")
    with writing(out):
        _open_folder(folder, _key(reference, mix, tokens))
        loaded = load(reference)
        _same_model(loaded, source)
        loaded = placed(loaded)
        packed = {tensor.name: _unpack(source, tensor) for tensor in _taken_apart(source)}
        for name, better in _rounded(loaded, packed, tokens, folder, emit):
            packed[name] = better
        norms: dict[str, np.ndarray] = {}
        if method == "gptq+distill":
            left = None if seconds is None else seconds - (time.monotonic() - began)
            packed, norms = distilled(loaded, packed, tokens, left, folder / "training.pt", emit)
        _write(source, packed, norms, out)
        shutil.rmtree(folder)


def _taken_apart(file: GgufFile) -> list[Tensor]:
    kinds = {kind.name for kind in GRIDS}
    return [tensor for tensor in file.tensors if tensor.type in kinds and len(tensor.shape) == 2]


def _unpack(file: GgufFile, tensor: Tensor) -> Packed:
    raw = np.memmap(file.path, np.uint8, "r", tensor.offset, (tensor.shape[1], tensor.bytes // tensor.shape[1]))
    return unpack(raw, GGMLQuantizationType[tensor.type])


def _same_model(loaded: Loaded, mix: GgufFile) -> None:
    shapes = {tensor.name: tensor.shape for tensor in mix.tensors}
    for tensor in loaded.file.tensors:
        if shapes.get(tensor.name) != tensor.shape:
            raise UsageError(
                f"{mix.path}: tensor {tensor.name} is not that of {loaded.file.path.name}",
                "give a quantized file and the float file that it was made from",
            )


def _rounded(
    loaded: Loaded, packed: dict[str, Packed], tokens: np.ndarray, folder: Path, emit: Emit
) -> Iterator[tuple[str, Packed]]:
    """Error-compensated rounding of all matrices; what an earlier run did is taken from `folder`."""
    waiting: list[str] = []
    for name, before in packed.items():
        done = folder / f"{name}.npy"
        if done.is_file():
            yield name, unpack(np.load(done), GGMLQuantizationType[before.grid.name])
        else:
            waiting.append(name)
    tensors = {tensor.name: tensor for tensor in loaded.file.tensors}
    sharing = shared(loaded, waiting)
    total = sum(map(len, sharing.values()))
    count = 0
    for names, hessian in moments(loaded, sharing, tokens, emit):
        for name in names:
            weights = torch.from_numpy(decoded(loaded.file, tensors[name])).to(hessian.device)
            better = rounded(weights, hessian, packed[name])
            with atomic_file(folder / f"{name}.npy") as file:
                np.save(file, pack(better))
            count += 1
            emit(Progress("error-compensated rounding", count, total, "tensors"))
            yield name, better


def _write(source: GgufFile, packed: dict[str, Packed], norms: dict[str, np.ndarray], out: Path) -> None:
    """Copy the file with these tensors in place of its own, and check that they decode to what was meant."""
    tensors = {tensor.name: tensor for tensor in source.tensors}
    with atomic_file(out) as file:
        with source.path.open("rb") as before:
            shutil.copyfileobj(before, file, 1 << 24)
        for name, each in packed.items():
            raw = pack(each)
            meant = each.decode()
            got = dequantize(raw, GGMLQuantizationType[each.grid.name])
            if raw.nbytes != tensors[name].bytes or meant.tobytes() != got.tobytes():
                raise GateError(f"{name}: would not decode to what was intended", "report this: it is a fault of pillm")
            file.seek(tensors[name].offset)
            file.write(raw.tobytes())
        for name, values in norms.items():
            file.seek(tensors[name].offset)
            file.write(values.astype(np.float32).tobytes())


def _open_folder(folder: Path, key: str) -> None:
    """What an earlier run kept, if it was the same work; else an empty folder."""
    note = folder / "key"
    if folder.is_dir() and (not note.is_file() or note.read_text() != key):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clear_partials(folder)
    with atomic_file(note) as file:
        file.write(key.encode())


def _key(reference: Path, mix: Path, tokens: np.ndarray) -> str:
    text = hashlib.sha256(np.ascontiguousarray(tokens, np.int64).tobytes()).hexdigest()
    return f"{sha256_file(reference)} {sha256_file(mix)} {text}"
