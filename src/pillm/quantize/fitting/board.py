"""What a board asks of a mix: room for file and context, and seconds of a token, by the model of `devices.speed`.

Both are sums over tensors, so that the allocation can keep within them. Where a token's reading and multiplying overlap,
the longer counts, and each is bounded by itself; where they do not, their sum is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from pillm.core.errors import UsageError
from pillm.devices.boards import Device, Soc
from pillm.devices.formats import tensor_bytes
from pillm.devices.header import shape_of
from pillm.devices.memory import memory
from pillm.devices.model import Model, Tensor
from pillm.devices.repack import repacks
from pillm.devices.speed import Fit, decode_seconds, fit, prefill_factor, prefill_seconds, unfitted
from pillm.llamacpp.gguf_file import GgufFile
from pillm.quantize.fitting.allocation import Bound
from pillm.quantize.fitting.costs import Table

DECODE_SHARE, PREFILL_SHARE = 0.97, 0.90
"""Of the rival's predicted speed, that the mix keeps at least."""


class Board(msgspec.Struct, frozen=True):
    """A board, a model's file, and the context it is to serve."""

    device: Device
    source: GgufFile
    context: int

    def model(self, types: Mapping[str, str]) -> Model:
        """The model with these types."""
        return model_of(self.source, types)

    def decode_tps(self, types: Mapping[str, str]) -> float:
        """Predicted tokens/s at an empty context."""
        soc, known = self._soc
        return 1 / decode_seconds(soc, known, self.model(types).work, soc.decode_threads)

    def prefill_tps(self, types: Mapping[str, str]) -> float:
        """Predicted tokens/s of a prompt of 512 tokens."""
        soc, known = self._soc
        return 1 / prefill_seconds(soc, known, self.model(types).work, soc.cores)

    def most_bytes(self, types: Mapping[str, str]) -> int:
        """Bytes of tensors that leave room for the rest of llama-server, which is taken from a mix of these types.

        Raises UsageError if the board has no room for anything.
        """
        taken = memory(
            self.model(types), self.device.soc.features, self.context, threads=self.device.soc.decode_threads
        )
        parts = taken.kv_bytes + taken.snapshot_bytes + taken.compute_bytes + taken.base_bytes
        # A repacked tensor is held beside the file's pages, which may be dropped.
        left = self.device.room_bytes - parts
        if left <= 0:
            raise UsageError(
                f"{self.device.title}: a context of {self.context} tokens leaves no room for weights",
                "take a shorter --context or a board with more memory",
            )
        return left

    def bounds(self, table: Table, decode: float | None, prefill: float | None) -> list[Bound]:
        """Sums that keep at least so many tokens/s."""
        found = []
        if decode is not None:
            found += self._decode(table, decode)
        if prefill is not None:
            found += self._prefill(table, prefill)
        return found

    @property
    def _soc(self) -> tuple[Soc, Fit]:
        soc = self.device.soc
        return soc, fit(self.device.soc_name) if self.device.soc_name else unfitted(soc)

    def _decode(self, table: Table, tps: float) -> list[Bound]:
        soc, known = self._soc
        threads, plain = soc.decode_threads, known.prefill.get("plain", 1.0)
        limit = known.decode / tps

        def reading(tensor: Tensor, kind: str) -> float:
            return tensor_bytes(kind, tensor.elements) / soc.bandwidth(threads)

        def multiplying(tensor: Tensor, kind: str) -> float:
            if not tensor.is_matrix:
                return 0.0
            faster = soc.repack_factor if repacks(kind, soc.features) else 1.0
            return tensor.elements / (soc.dot(kind) * plain * faster) / threads

        both = 1 - known.overlap
        pairs = [(reading, multiplying)] if both == 1 else [(reading, multiplying), (multiplying, reading)]
        return [
            self._bound(
                f"decode at {tps:.1f} tokens/s", table, limit, False, lambda t, k, a=a, b=b: a(t, k) + both * b(t, k)
            )
            for a, b in pairs
        ]

    def _prefill(self, table: Table, tps: float) -> list[Bound]:
        soc, known = self._soc
        share = max(0.1, 1 - known.thread_loss * (soc.cores - 1)) * soc.cores
        none = msgspec.structs.replace(self.model({}).work, prefill_weights={}, decode_weights={}, read_bytes=0)
        attention = prefill_seconds(soc, known, none, soc.cores)

        def seconds(tensor: Tensor, kind: str) -> float:
            if not tensor.is_matrix:
                return 0.0
            return tensor.elements / (soc.dot(kind) * prefill_factor(soc, known, kind, True)) / share

        return [self._bound(f"prefill at {tps:.1f} tokens/s", table, 1 / tps - attention, True, seconds)]

    def _bound(
        self, name: str, table: Table, limit: float, prompt: bool, seconds: Callable[[Tensor, str], float]
    ) -> Bound:
        """The table's tensors by type; the others, whose type is fixed, are taken off the limit."""
        amounts: dict[str, dict[str, float]] = {}
        shape = shape_of(
            self.source.architecture, self.source.metadata, _tensors(self.source, {}), str(self.source.path)
        )
        tied = all(tensor.name != "output.weight" for tensor in self.source.tensors)
        for tensor in _tensors(self.source, {}):
            embedding = tensor.name == "token_embd.weight"
            head = tensor.name == "output.weight" or (embedding and tied)
            if (embedding and not tied) or (head and prompt):
                continue
            used = shape.experts_used / shape.experts if "_exps." in tensor.name and shape.experts else 1.0
            if tensor.name in table:
                amounts[tensor.name] = {kind: used * seconds(tensor, kind) for kind in table[tensor.name]}
            else:
                limit -= used * seconds(tensor, tensor.type)
        return Bound(name, amounts, limit, "seconds a token")


def model_of(source: GgufFile, types: Mapping[str, str]) -> Model:
    """A file's model, with other types where they are named."""
    tensors = _tensors(source, types)
    shape = shape_of(source.architecture, source.metadata, tensors, str(source.path))
    return Model(source.name, "mix", shape, tensors, source.lengths.get("tokenizer.ggml.merges", 0))


def _tensors(source: GgufFile, types: Mapping[str, str]) -> tuple[Tensor, ...]:
    return tuple(Tensor(t.name, types.get(t.name, t.type), t.shape) for t in source.tensors)
