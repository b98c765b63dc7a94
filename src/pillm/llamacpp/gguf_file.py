"""Read the header of a GGUF file: what it is, its tensors, its tokenizer's facts. No weights are read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's own reader
makes an array of every token and takes seconds for it; this one skips them, and says what is wrong
with a file that is cut off or is something else.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pillm.core.errors import UsageError

Value = int | float | bool | str

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16"})


class Tensor(msgspec.Struct, frozen=True):
    """`shape` has the row's width first, as ggml has it; `offset` counts from the file's first byte."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    offset: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        result = 1
        for size in self.shape:
            result *= size
        return result


class GgufFile(msgspec.Struct, frozen=True):
    """A GGUF file's header. `metadata` has the scalars and strings; of an array, its length."""

    path: Path
    bytes: int
    metadata: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    special: Mapping[int, str]
    """Text of the tokens that the metadata name by id (begin, end, padding ...)."""

    @property
    def architecture(self) -> str:
        """As in `llama`, `gemma3`; empty if the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def name(self) -> str:
        """The model's name, or the file's."""
        return str(self.metadata.get("general.name") or self.path.stem)

    @property
    def file_type(self) -> str:
        """The type that the file claims to be, as in `Q4_K_M`; single tensors may have others."""
        from gguf.constants import LlamaFileType

        number = self.metadata.get("general.file_type")
        try:
            return LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:
            return "unknown"

    @property
    def parameters(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data a weight, over all tensors."""
        return 8 * self.tensor_bytes / self.parameters if self.parameters else 0.0

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Size of the tensors of each type, largest first."""
        count: Counter[str] = Counter()
        for tensor in self.tensors:
            count[tensor.type] += tensor.bytes
        return dict(count.most_common())

    @property
    def is_quantized(self) -> bool:
        """Whether any tensor has a type below 16 bit floats."""
        return any(tensor.type not in FLOAT_TYPES for tensor in self.tensors)

    @property
    def chat_template(self) -> str:
        """The Jinja source; empty if the model has none."""
        return str(self.metadata.get("tokenizer.chat_template", ""))

    @property
    def context_length(self) -> int | None:
        """Positions that the model was trained for."""
        value = self.metadata.get(f"{self.architecture}.context_length")
        return int(value) if value is not None else None

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.lengths.get("tokenizer.ggml.tokens", 0)

    @property
    def bos(self) -> int | None:
        """Id of the token that begins a text."""
        return self._token("bos")

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a text."""
        return self._token("eos")

    @property
    def adds_bos(self) -> bool:
        """Whether the file says that the tokenizer puts `bos` before a text."""
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", False))

    def token_text(self, token: int | None) -> str:
        """Text of the begin or end token; empty for None and for tokens that the metadata do not name."""
        return self.special.get(token, "") if token is not None else ""

    def _token(self, which: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{which}_token_id")
        return int(value) if value is not None else None


def describe(path: Path) -> GgufFile:
    """The header of `path`. Raises UsageError for a file that is missing, not GGUF, cut off or inconsistent."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size == 0 or file.read(4) != _MAGIC:
                raise UsageError(f"{path}: not a GGUF file", "give the path of a .gguf model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Header(path, data, size).read()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "check the path") from error


class _Header:
    """A cursor over the mapped file."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path, self._data, self._size, self._at = path, data, size, 4
        self._lengths: dict[str, int] = {}
        self._tokens_at: int | None = None

    def read(self) -> GgufFile:
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise UsageError(
                f"{self._path}: GGUF version {version} is not known", "make the file again with a current llama.cpp"
            )
        n_tensors, n_values = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Value] = {}
        for _ in range(n_values):
            key, kind = self._string(), self._scalar("I")
            if kind == _ARRAY:
                if key == "tokenizer.ggml.tokens":
                    self._tokens_at = self._at
                self._lengths[key] = self._skip_array()
            else:
                metadata[key] = self._value(kind)
        raw = [self._tensor_header() for _ in range(n_tensors)]
        alignment = int(metadata.get("general.alignment", 32)) or 32
        start = -(-self._at // alignment) * alignment
        tensors = tuple(self._tensor(start, *parts) for parts in raw)
        return GgufFile(self._path, self._size, metadata, self._lengths, tensors, self._special(metadata))

    def _special(self, metadata: Mapping[str, Value]) -> dict[int, str]:
        """Walk the tokens once more for the few that the metadata name."""
        wanted = {int(value) for key, value in metadata.items() if re.fullmatch(r"tokenizer\.ggml\.\w+_token_id", key)}
        if self._tokens_at is None or not wanted:
            return {}
        self._at = self._tokens_at
        kind, count = self._scalar("I"), self._scalar("Q")
        found: dict[int, str] = {}
        for token in range(min(count, max(wanted) + 1) if kind == _STRING else 0):
            if token in wanted:
                found[token] = self._string()
            else:
                self._take(self._scalar("Q"))
        return found

    def _cut(self, what: str) -> UsageError:
        return UsageError(
            f"{self._path}: the file is cut off or damaged: {what} (it has {self._size:,} bytes)",
            "download, copy or make it again",
        )

    def _take(self, count: int) -> int:
        """Move on; returns where the piece began."""
        begin, self._at = self._at, self._at + count
        if self._at > self._size:
            raise self._cut("its header goes on past its end")
        return begin

    def _scalar(self, form: str) -> int:
        begin = self._take(struct.calcsize(f"<{form}"))
        return struct.unpack_from(f"<{form}", self._data, begin)[0]

    def _string(self) -> str:
        size = self._scalar("Q")
        begin = self._take(size)
        return self._data[begin : begin + size].decode("utf-8", "replace")

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise self._cut(f"metadata of an unknown kind {kind}")
        return self._scalar(_SCALARS[kind])

    def _skip_array(self) -> int:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == _STRING:
            for _ in range(count):
                self._take(self._scalar("Q"))
        elif kind == _ARRAY:
            for _ in range(count):
                self._skip_array()
        elif kind in _SCALARS:
            self._take(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        else:
            raise self._cut(f"an array of an unknown kind {kind}")
        return count

    def _tensor_header(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._scalar("I")
        if dimensions > 8:
            raise self._cut(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _tensor(self, start: int, name: str, shape: tuple[int, ...], number: int, offset: int) -> Tensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise UsageError(f"{self._path}: tensor {name} has the unknown type {number}", "update pillm") from error
        block, size = GGML_QUANT_SIZES[kind]
        tensor = Tensor(name, kind.name, shape, 0, start + offset)
        tensor = msgspec.structs.replace(tensor, bytes=tensor.elements // block * size)
        if tensor.offset + tensor.bytes > self._size:
            raise self._cut(f"tensor {name} ends at byte {tensor.offset + tensor.bytes:,}")
        return tensor
