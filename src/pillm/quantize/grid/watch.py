"""What the model's matrices are multiplied with, token by token, over a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pillm.core.events import Emit, Progress
from pillm.quantize.weights import Loaded

_LOUD = 5.0
"""Tokens beyond this many times the median length (attention sinks) count as if they were so long."""
_BATCH = 2048  # tokens

HEAD = "lm_head"
"""The module that turns the last hidden state into logits."""


def watch(
    loaded: Loaded, readers: dict[str, str], tokens: np.ndarray, see: Callable[[str, torch.Tensor], None],
    emit: Emit, label: str,
) -> None:  # fmt: skip
    """Run the model over `tokens` int (sequences, context) and call `see(name, x)` for each of `readers`.

    `readers` maps a name to the module whose inputs are wanted. `x` is float32 (tokens, columns) of one batch, very
    long rows turned down: a few sinks have a thousand times the others' length, and would be all that sums of
    squares see, though next to nothing depends on their exact direction.
    """
    modules = dict(loaded.model.named_modules())

    def hook(name: str) -> Callable[..., None]:
        def look(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            length = x.norm(dim=1)
            see(name, x * (_LOUD * length.median() / length.clamp(min=1e-20)).clamp(max=1)[:, None])

        return look

    handles = [
        modules[module].register_forward_pre_hook(hook(name)) for name, module in readers.items() if module != HEAD
    ]
    try:
        with torch.no_grad():
            for start, batch in batches(tokens, _BATCH):
                emit(Progress(label, start, len(tokens), "sequences"))
                hidden = loaded.model.model(batch.to(device_of(loaded)), use_cache=False).last_hidden_state
                for name, module in readers.items():
                    if module == HEAD:
                        # Logits of a whole vocabulary are not needed to look at what the head is given.
                        hook(name)(loaded.model.lm_head, (hidden,))
        emit(Progress(label, len(tokens), len(tokens), "sequences"))
    finally:
        for handle in handles:
            handle.remove()


def batches(tokens: np.ndarray, size: int) -> Sequence[tuple[int, torch.Tensor]]:
    """Consecutive sequences of about `size` tokens together, with the number of the first."""
    rows = max(1, size // tokens.shape[1])
    return [
        (start, torch.from_numpy(np.asarray(tokens[start : start + rows], np.int64)))
        for start in range(0, len(tokens), rows)
    ]


def device_of(loaded: Loaded) -> torch.device:
    """Where the model is."""
    return next(loaded.model.parameters()).device
