"""All that a training step changes, in one file, so that a run that was killed goes on along the same curve."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from pillm.core.artifacts import atomic_file
from pillm.core.errors import writing
from pillm.core.events import Emit, Log
from pillm.train.report import Step

CHECKPOINT = "checkpoint"


def copy(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    """Put the values of `source` into the tensors of `target`, by name."""
    with torch.no_grad():
        for name, tensor in target.items():
            if tensor is not source[name]:
                tensor.copy_(source[name])


def save(
    folder: Path, identity: str, masters: dict[str, torch.Tensor], optimizer: Any, scaler: Any, log: list[Step]
) -> None:
    """Write the state after the last step of `log`. Raises ResourceError on a full disk."""
    state = {
        "identity": identity,
        "weights": {name: p.detach() for name, p in masters.items()},
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "log": msgspec.json.encode(log).decode(),
    }
    # A file, since a folder is not replaced in one step.
    with writing(folder), atomic_file(folder / "state.pt") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch cannot close its archive on a full disk, and hides the system's error behind its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def restore(
    folder: Path, identity: str, masters: dict[str, torch.Tensor], optimizer: Any, scaler: Any, emit: Emit
) -> list[Step]:
    """Put the state of a checkpoint of this identity back. Returns its log; [] if there is none that can be used."""
    file = folder / "state.pt"
    if not file.is_file():
        return []
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        emit(Log(f"{file}: not readable ({error}); training starts anew", "warning"))
        return []
    if state["identity"] != identity:
        emit(Log("the checkpoint here belongs to other data or options; training starts anew", "warning"))
        return []
    copy(state["weights"], masters)
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["random"])
    if state["cuda_random"]:
        torch.cuda.set_rng_state_all(state["cuda_random"])
    log = msgspec.json.decode(state["log"], type=list[Step])
    emit(Log(f"going on from the checkpoint after step {len(log)}"))
    return log
