"""What `pillm plan` answers."""

from __future__ import annotations

import msgspec

from pillm.devices import LABEL, Device, Prediction
from pillm.devices.model import Model


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A model in one quantization on one board. Bytes, and tokens/s."""

    quant: str
    bits_per_weight: float
    fits: bool
    memory_bytes: int
    """Peak resident memory of llama-server, with the whole context used."""
    needed_bytes: int
    """What of it the system cannot take back."""
    free_bytes: int
    """What the board has left; negative where the model does not fit."""
    weight_bytes: int
    repacked_bytes: int
    kv_bytes: int
    snapshot_bytes: int
    compute_bytes: int
    base_bytes: int
    kv_type: str
    ubatch: int
    threads: int
    threads_batch: int
    decode_tps: float
    decode_tps_low: float
    decode_tps_high: float
    prefill_tps: float
    prefill_tps_low: float
    prefill_tps_high: float
    recommended: bool = False


class Plan(Choice, frozen=True, kw_only=True):
    """The answer: the chosen quantization with all that belongs to it, and what else was compared."""

    label: str = LABEL
    model: str
    architecture: str
    parameters: int
    read: str
    """What was read of the model."""
    device: str
    device_title: str
    ram_bytes: int
    reserved_bytes: int
    room_bytes: int
    context: int
    depth: int
    slots: int
    arguments: tuple[str, ...]
    """Arguments of llama-server."""
    notes: tuple[str, ...] = ()
    alternatives: tuple[Choice, ...] = ()


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A board of the list."""

    name: str
    title: str
    soc: str
    ram_bytes: int
    room_bytes: int
    published_rows: int
    notes: str
    source: str


class Boards(msgspec.Struct, frozen=True):
    """`pillm plan --boards`."""

    boards: tuple[Board, ...]


def choice(model: Model, prediction: Prediction) -> Choice:
    """Figures rounded to what they are worth."""
    taken = prediction.memory
    return Choice(
        quant=model.quant,
        bits_per_weight=round(8 * model.weight_bytes / model.parameters, 2),
        fits=prediction.fits,
        memory_bytes=prediction.memory_bytes,
        needed_bytes=prediction.needed_bytes,
        free_bytes=prediction.free_bytes,
        weight_bytes=taken.weight_bytes,
        repacked_bytes=taken.repacked_bytes,
        kv_bytes=taken.kv_bytes,
        snapshot_bytes=taken.snapshot_bytes,
        compute_bytes=taken.compute_bytes,
        base_bytes=taken.base_bytes,
        kv_type=prediction.kv_type,
        ubatch=prediction.ubatch,
        threads=prediction.threads,
        threads_batch=prediction.threads_batch,
        decode_tps=_three(prediction.decode),
        decode_tps_low=_three(prediction.decode_low),
        decode_tps_high=_three(prediction.decode_high),
        prefill_tps=_three(prediction.prefill),
        prefill_tps_low=_three(prediction.prefill_low),
        prefill_tps_high=_three(prediction.prefill_high),
    )


def _three(value: float) -> float:
    return float(f"{value:.3g}")


def table(choices: list[Choice]) -> list[str]:
    """Lines of text: one a choice."""
    lines = [
        f"  {'quant':<8}{'bits':>6}{'weights':>10}{'memory':>10}  {'fits':<5}{'decode, tokens/s':>22}{'prefill, tokens/s':>22}"
    ]
    for item in choices:
        decode = _range(item.decode_tps, item.decode_tps_low, item.decode_tps_high)
        prefill = _range(item.prefill_tps, item.prefill_tps_low, item.prefill_tps_high)
        mark = "*" if item.recommended else " "
        lines.append(
            f"{mark} {item.quant:<8}{item.bits_per_weight:>6.2f}{megabytes(item.weight_bytes):>10}"
            f"{megabytes(item.memory_bytes):>10}  {'yes' if item.fits else 'no':<5}{decode:>22}{prefill:>22}"
        )
    return lines


def _range(value: float, low: float, high: float) -> str:
    digits = 0 if value >= 20 else 1
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def megabytes(size: int) -> str:
    """Megabytes or gigabytes, powers of 1000."""
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:.0f} MB"


def boards(devices: dict[str, Device], rows: dict[str, int]) -> Boards:
    """The list of boards; `rows` counts published rows by processor."""
    return Boards(
        tuple(
            Board(
                name=device.name,
                title=device.title,
                soc=device.soc.title,
                ram_bytes=device.ram_bytes,
                room_bytes=device.room_bytes,
                published_rows=rows.get(device.soc_name, 0),
                notes=device.notes,
                source=device.source,
            )
            for device in devices.values()
        )
    )
