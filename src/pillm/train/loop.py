"""The training loop: packs in, a lower loss out. Reads top to bottom.

The order of packs follows from the seed alone, and all state that a step changes is in the
checkpoint (trained weights, AdamW's moments, the random generator), so a run that was killed goes
on along the same loss curve.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from pillm.core.artifacts import atomic_file
from pillm.core.errors import PillmError, ResourceError, writing
from pillm.core.events import Emit, Log, Metric, Progress
from pillm.train.dialogues import Encoded, Pack, pack, shared_beginnings, tensors
from pillm.train.head_loss import summed_loss
from pillm.train.options import TrainOptions
from pillm.train.settings import Settings

CHECKPOINT = "checkpoint"
CHECKPOINT_SHARE = 20
"""A checkpoint is written after this many times as long as the last one took, so that no more than a twentieth of
the time goes into them: a gigabyte takes 8 s on a slow disk, a seventh of the time if it is written every minute."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of training.jsonl. Losses in nats per learned token."""

    step: int
    loss: float
    learning_rate: float
    tokens: int
    """Tokens processed so far, shared beginnings counted once a pack."""
    validation_loss: float | None = None


class Plan(NamedTuple):
    """The packs of every optimizer step, in order, and those of the validation loss."""

    steps: list[list[Pack]]
    validation: list[Pack]


def plan(training: Sequence[Encoded], validation: Sequence[Encoded], options: TrainOptions) -> Plan:
    """Lay out all epochs. A fraction of an epoch is that fraction of its steps."""
    shared = shared_beginnings([*training, *validation]) if options.packing == "prefix" else {}
    rng = random.Random(options.seed)  # noqa: S311
    steps: list[list[Pack]] = []
    left = options.epochs
    while left > 0:
        epoch: list[list[Pack]] = [[]]
        for item in pack(training, shared, options.micro_tokens, rng):
            if epoch[-1] and sum(len(p.ids) for p in epoch[-1]) + len(item.ids) > options.batch_tokens:
                epoch.append([])
            epoch[-1].append(item)
        steps += epoch[: max(1, round(len(epoch) * min(1.0, left)))]
        left -= 1
    return Plan(steps[: options.max_steps], pack(validation, shared, options.micro_tokens))


def learning_rate(step: int, steps: int, peak: float, options: TrainOptions) -> float:
    """Linear warm-up, then cosine or linear down to a tenth of the peak, or constant. `step` counts from 0."""
    warm = round(steps * options.warmup)
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    if options.schedule == "cosine":
        return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
    return peak * (1 - 0.9 * done) if options.schedule == "linear" else peak


def pack_loss(model: Any, item: Pack, device: str) -> torch.Tensor:
    """Summed cross-entropy, in nats, of a pack's learned tokens. No other logits are made."""
    inputs = tensors(item)
    predict, targets = inputs.pop("predict").to(device), inputs.pop("targets").to(device)
    for name in ("input_ids", "position_ids"):
        inputs[name] = inputs[name].to(device)
    return summed_loss(model, inputs, predict, targets)


def mean_loss(model: Any, packs: Sequence[Pack], settings: Settings) -> float:
    """Validation loss, nats per learned token."""
    model.eval()
    with torch.no_grad():
        total = sum(float(pack_loss(model, item, settings.device)) for item in packs)
    model.train()
    return total / max(1, sum(item.targets for item in packs))


def set_arithmetic(model: Any, settings: Settings) -> dict[str, torch.Tensor]:
    """Put a float32 model on its device in the settings' dtype; returns the float32 masters of its trained weights.

    The model computes in the dtype; the optimizer works on the masters, since bfloat16 would lose
    updates below 0.4 % of a weight. Without autocast nothing is converted on the way through.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if settings.dtype == "float32":
        model.to(settings.device)
        return dict(trained)
    masters = {name: p.detach().to(settings.device, copy=True) for name, p in trained.items()}
    model.to(settings.device)
    for parameter in model.parameters():
        # Not model.to(dtype): that would round the buffers too, and with the rotary frequencies every position.
        parameter.data = parameter.data.to(getattr(torch, settings.dtype))
    return masters


def take_masters(model: Any, masters: dict[str, torch.Tensor]) -> Any:
    """The model on the CPU in float32, with its trained weights as the masters have them."""
    model.to("cpu", torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masters:
                parameter.copy_(masters[name])
    return model


def train(
    model: Any,
    masters: dict[str, torch.Tensor],
    work: Plan,
    options: TrainOptions,
    settings: Settings,
    identity: str,
    emit: Emit,
    after_step: Callable[[int], None] | None = None,
) -> list[Step]:
    """Train `model` and its `masters` (see set_arithmetic) and return the log.

    Checkpoints go to `options.out`/checkpoint.

    `identity` names everything that the curve depends on; a checkpoint of another identity is not
    used. Raises PillmError if the loss is no longer a number, ResourceError if memory runs out.
    """
    weights = {name: p for name, p in model.named_parameters() if name in masters}
    decayed = [p for p in masters.values() if p.ndim > 1]
    kept = [p for p in masters.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=settings.device != "mps")
    scaler = torch.amp.GradScaler(settings.device, enabled=settings.dtype == "float16")
    folder = options.out / CHECKPOINT
    log = _restore(folder, identity, masters, optimizer, scaler, emit)
    _copy(masters, weights)
    steps = len(work.steps)
    tokens = log[-1].tokens if log else 0
    saved, cost = time.monotonic(), 0.0
    model.train()
    with _out_of_memory(options), _gradients(weights, masters):
        for number in range(len(log), steps):
            started = time.monotonic()
            rate = learning_rate(number, steps, settings.learning_rate, options)
            for group in optimizer.param_groups:
                group["lr"] = rate
            packs = work.steps[number]
            targets = sum(item.targets for item in packs)
            loss = 0.0
            for item in packs:
                part = pack_loss(model, item, settings.device) / targets
                scaler.scale(part).backward()
                loss += part.item()
            if not math.isfinite(loss):
                raise PillmError(
                    f"step {number + 1}: the loss is {loss}, training has come apart",
                    "try a lower --learning-rate, or --dtype float32",
                )
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(masters.values(), options.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=False)
            _copy(masters, weights)
            size = sum(len(item.ids) for item in packs)
            tokens += size
            last = number + 1 == steps
            check = mean_loss(model, work.validation, settings) if work.validation and (last or number == 0) else None
            log.append(Step(number + 1, loss, rate, tokens, check))
            emit(Metric("loss", loss, number + 1, "nats/token"))
            emit(Metric("tokens_per_second", size / (time.monotonic() - started), number + 1, "tokens/s"))
            emit(Progress("training", number + 1, steps, "steps"))
            # The last one too: the merge needs memory and disk, and may be what fails.
            if last or time.monotonic() - saved > max(options.checkpoint_every, CHECKPOINT_SHARE * cost):
                started = time.monotonic()
                _save(folder, identity, masters, optimizer, scaler, log)
                saved = time.monotonic()
                cost = saved - started
            if after_step:
                after_step(number + 1)
    return log


def give_back_memory() -> None:
    """Return the holes in glibc's heap to the system, of which a training leaves many, before the merge needs its own.

    During the training that would break its huge pages: a return every 20 steps made it 20 % slower within 200.
    """
    if _LIBC is not None and hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


@contextlib.contextmanager
def _out_of_memory(options: TrainOptions) -> Iterator[None]:
    hint = f"lower --micro-tokens (now {options.micro_tokens}), or --gradient-checkpointing on"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError("the device's memory is full", hint) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise ResourceError("the machine's memory is full", hint) from error
        raise


@contextlib.contextmanager
def _gradients(weights: Mapping[str, torch.Tensor], masters: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give every master a gradient that stays, and add each weight's to it as soon as backward has made it.

    New gradients at every step would be new memory from the system at every step; and so the gradients
    of all weights in the arithmetic's dtype are never there at once.
    """
    hooks = []
    for name, weight in weights.items():
        gradient = masters[name].grad = torch.zeros_like(masters[name])
        if weight is not masters[name]:
            hooks.append(weight.register_post_accumulate_grad_hook(partial(_add_gradient, gradient)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for master in masters.values():
            master.grad = None


def _add_gradient(gradient: torch.Tensor, weight: torch.Tensor) -> None:
    if weight.grad is not None:
        gradient.add_(weight.grad)
        weight.grad = None


def _copy(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in target.items():
            if tensor is not source[name]:
                tensor.copy_(source[name])


def _save(
    folder: Path, identity: str, masters: dict[str, torch.Tensor], optimizer: Any, scaler: Any, log: list[Step]
) -> None:
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


def _restore(
    folder: Path, identity: str, masters: dict[str, torch.Tensor], optimizer: Any, scaler: Any, emit: Emit
) -> list[Step]:
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
    _copy(state["weights"], masters)
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["random"])
    if state["cuda_random"]:
        torch.cuda.set_rng_state_all(state["cuda_random"])
    log = msgspec.json.decode(state["log"], type=list[Step])
    emit(Log(f"going on from the checkpoint after step {len(log)}"))
    return log


def identity_of(options: TrainOptions, settings: Settings, student: str, work: Plan) -> str:
    """Hash of all that the loss curve depends on: options, settings, student, and every token in order."""
    digest = hashlib.sha256(student.encode())
    digest.update(options.model_dump_json(exclude={"out", "checkpoint_every", "data", "card", "student"}).encode())
    digest.update(
        msgspec.json.encode([settings.device, settings.dtype, settings.learning_rate, str(torch.__version__)])
    )
    digest.update(msgspec.json.encode([[item.ids for item in packs] for packs in work.steps]))
    return digest.hexdigest()
