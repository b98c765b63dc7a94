"""What each tensor costs in each type: its error as ggml's own quantizers make it, weighed by the sensitivity.

llama-quantize writes one file a type with every matrix in that type, and the errors are read back from the file: no
copy of a formula, and what a shape forbids shows by itself, since the tensor comes out in another type.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillm.core.artifacts import PARTIAL, atomic_file, write_atomic
from pillm.core.errors import writing
from pillm.core.events import Emit, Progress
from pillm.devices.formats import BLOCKS, FLOATS, tensor_bytes
from pillm.llamacpp.gguf_file import GgufFile, Tensor, describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.quantize import quantize
from pillm.quantize.fitting.sensitivity import Sensitivity, weighted_error
from pillm.quantize.weights import decoded

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "IQ4_NL", "Q4_0", "IQ4_XS", "Q3_K", "IQ3_S", "Q2_K")
"""What a tensor may become, beside what it is."""

KINDS = {"Q6_K": "Q6_K", "Q5_K": "Q5_K_S", "Q4_K": "Q4_K_S", "Q3_K": "Q3_K_S", "Q2_K": "Q2_K"}
"""llama-quantize's name of a file that is all of a type, where it is another."""


class Cell(msgspec.Struct, frozen=True):
    """A tensor in a type: bytes in the file, and nats a token from its own rounding and from that of its inputs."""

    bytes: int
    weights: float
    inputs: float

    @property
    def cost(self) -> float:
        """Predicted contribution to the mean KL."""
        return self.weights + self.inputs


Table = dict[str, dict[str, Cell]]
"""By tensor and type. Tensors that must stay as they are are not in it."""


def rounds_to(kind: str) -> int:
    """Width of the blocks in which llama.cpp rounds the inputs of a layer of this type to 8 bits; 0: it does not."""
    return 0 if kind in FLOATS else 256 if BLOCKS[kind][0] == 256 else 32


def padded(size: int) -> int:
    """Bytes of a tensor with what aligns the next one."""
    return -(-size // 32) * 32


def table(
    tools: LlamaCpp, source: GgufFile, sensitivity: Sensitivity, matrix: Path, folder: Path, *,
    threads: int | None, emit: Emit, types: tuple[str, ...] = TYPES,
) -> Table:  # fmt: skip
    """The whole table. One JSON file a type is kept in `folder`, so that a killed run goes on where it was."""
    cells: Table = {}
    tensors = {tensor.name: tensor for tensor in source.tensors if tensor.name in sensitivity.rows}
    for name, tensor in tensors.items():
        cells[name] = {tensor.type: Cell(padded(tensor.bytes), 0.0, 0.0)}
    for number, kind in enumerate(types):
        emit(Progress("cost table", number, len(types), "types"))
        if not any(legal(tensor, kind) for tensor in tensors.values()):
            continue
        kept = folder / f"costs-{kind}.json"
        if kept.is_file():
            errors = msgspec.json.decode(kept.read_bytes(), type=dict[str, float])
        else:
            errors = _errors(tools, source, tensors, sensitivity, matrix, folder, kind, threads)
            with writing(kept):
                write_atomic(kept, msgspec.json.encode(errors))
        for name, error in errors.items():
            block = rounds_to(kind)
            inputs = sensitivity.rounding.get(name, {}).get(block, 0.0)
            cells[name][kind] = Cell(padded(tensor_bytes(kind, tensors[name].elements)), error, inputs)
    emit(Progress("cost table", len(types), len(types), "types"))
    return cells


def legal(tensor: Tensor, kind: str) -> bool:
    """Whether the shape allows the type: rows are whole blocks."""
    return tensor.shape[0] % BLOCKS[kind][0] == 0


def _errors(
    tools: LlamaCpp, source: GgufFile, tensors: Mapping[str, Tensor], sensitivity: Sensitivity, matrix: Path,
    folder: Path, kind: str, threads: int | None,
) -> dict[str, float]:  # fmt: skip
    """Weighted error of each tensor that came out in the type."""
    found: dict[str, float] = {}
    with writing(folder), tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as name:
        path = Path(name) / "all.gguf"
        # What a shape forbids keeps its type: llama-quantize fails on an embedding that its type does not fit.
        types = {each: kind if legal(tensor, kind) else tensor.type for each, tensor in tensors.items()}
        quantize(tools, source.path, path, KINDS.get(kind, kind), imatrix=matrix, threads=threads, types=types)
        made = describe(path)
        for tensor in made.tensors:
            if tensor.type == kind and tensor.name in tensors:
                error = decoded(made, tensor) - decoded(source, tensors[tensor.name])
                found[tensor.name] = weighted_error(sensitivity, tensor.name, error)
    return found


def write_imatrix(
    target: Path, moments: Mapping[str, NDArray[np.float32]], source: GgufFile, tokens: int, *, embedding: bool
) -> None:
    """The second moments as an importance matrix in llama.cpp's form.

    `embedding`: with what the head is given for a tied embedding, which llama-imatrix itself does not collect.
    """
    import gguf

    with writing(target), tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as name:
        path = Path(name) / "imatrix.gguf"
        writer = gguf.GGUFWriter(path, "")
        # An importance matrix is of no architecture.
        writer.kv_data[0].pop("general.architecture", None)
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["calibration.txt"])
        writer.add_uint32("imatrix.chunk_count", max(1, tokens // 512))
        writer.add_uint32("imatrix.chunk_size", 512)
        known = {tensor.name for tensor in source.tensors}
        for tensor, values in moments.items():
            if tensor not in known or (tensor == "token_embd.weight" and not embedding):
                continue
            writer.add_tensor(f"{tensor}.in_sum2", np.ascontiguousarray(values * np.float32(tokens)))
            writer.add_tensor(f"{tensor}.counts", np.full((len(values), 1), tokens, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with atomic_file(target) as file:
            file.write(path.read_bytes())
