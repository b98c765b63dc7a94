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
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import torch

from pillm.core.errors import PillmError, ResourceError
from pillm.core.events import Emit, Metric, Progress
from pillm.core.options import NoEffect, marks
from pillm.train import checkpoint, watch
from pillm.train.checkpoint import CHECKPOINT
from pillm.train.dialogues import Encoded, Pack, pack, shared_beginnings, tensors
from pillm.train.head_loss import judged
from pillm.train.losses.objectives import Objective, cross_entropy
from pillm.train.options import TrainOptions
from pillm.train.report import Step
from pillm.train.settings import Settings

CHECKPOINT_SHARE = 20
"""A checkpoint is written after this many times as long as the last one took, so that no more than a twentieth of
the time goes into them: a gigabyte takes 8 s on a slow disk, a seventh of the time if it is written every minute."""

_APART = "try a lower --learning-rate, or --dtype float32"

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


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


Judge = Callable[[Pack, torch.Tensor], Objective]
"""(pack, its targets on the device) -> what its logits are judged by."""
Track = Callable[[Sequence[Step]], contextlib.AbstractContextManager[Callable[[Step], None]]]
"""(steps of the checkpoint) -> what takes each step that follows, see tracking.opened."""
Write = Callable[[Any, int, Sequence[Pack]], list[Pack] | None]
"""(model, step, packs) -> the same dialogues with answers that the student writes, or None if this step takes the data's."""


def by_labels(item: Pack, targets: torch.Tensor) -> Objective:
    """Cross-entropy, which needs nothing but the labels."""
    return cross_entropy(targets)


def pack_sums(model: Any, item: Pack, device: str, judge: Judge = by_labels) -> tuple[torch.Tensor, torch.Tensor]:
    """A pack's loss, summed over its learned tokens, and the sums [loss, cross-entropy, divergence], in nats.

    No other logits are made.
    """
    inputs = tensors(item)
    predict, targets = inputs.pop("predict").to(device), inputs.pop("targets").to(device)
    for name in ("input_ids", "position_ids"):
        inputs[name] = inputs[name].to(device)
    return judged(model, inputs, predict, judge(item, targets))


def pack_loss(model: Any, item: Pack, device: str) -> torch.Tensor:
    """Summed cross-entropy, in nats, of a pack's learned tokens."""
    return pack_sums(model, item, device)[0]


def mean_losses(model: Any, packs: Sequence[Pack], settings: Settings, judge: Judge = by_labels) -> list[float]:
    """Validation: loss, cross-entropy and divergence, nats per learned token."""
    model.eval()
    with torch.no_grad():
        sums = [pack_sums(model, item, settings.device, judge)[1].tolist() for item in packs]
    model.train()
    count = max(1, sum(item.targets for item in packs))
    return [math.fsum(column) / count for column in zip(*sums, strict=True)]


def mean_loss(model: Any, packs: Sequence[Pack], settings: Settings) -> float:
    """Validation cross-entropy, nats per learned token."""
    return mean_losses(model, packs, settings)[1]


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
        if parameter.is_floating_point():  # not the packed weights of a 4-bit base
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
    *,
    judge: Judge = by_labels,
    judge_own: Judge = by_labels,
    write: Write | None = None,
    track: Track | None = None,
) -> list[Step]:
    """Train `model` and its `masters` (see set_arithmetic) and return the log.

    Packs are judged by `judge`; those that the student has written itself (`write`) by `judge_own`. Every step is
    given to `track`. Checkpoints go to `options.out`/checkpoint.

    `identity` names everything that the curve depends on; a checkpoint of another identity is not
    used. Raises PillmError if a loss, a gradient or a weight is no longer a number or if the loss stays far above its
    start, ResourceError if memory runs out.
    """
    weights = {name: p for name, p in model.named_parameters() if name in masters}
    decayed = [p for p in masters.values() if p.ndim > 1]
    kept = [p for p in masters.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=settings.device != "mps")
    scaler = torch.amp.GradScaler(settings.device, enabled=settings.dtype == "float16")
    folder = options.out / CHECKPOINT
    log = checkpoint.restore(folder, identity, masters, optimizer, scaler, emit)
    checkpoint.copy(masters, weights)
    steps = len(work.steps)
    tokens = log[-1].tokens if log else 0
    saved, cost = time.monotonic(), 0.0
    model.train()
    tracked = track(log) if track else contextlib.nullcontext()
    with tracked as tell, _out_of_memory(options), _gradients(weights, masters):
        for number in range(len(log), steps):
            started = time.monotonic()
            rate = learning_rate(number, steps, settings.learning_rate, options)
            for group in optimizer.param_groups:
                group["lr"] = rate
            packs = work.steps[number]
            own = write(model, number, packs) if write else None
            packs = own or packs
            targets = sum(item.targets for item in packs)
            sums = [0.0, 0.0, 0.0]
            for item in packs:
                part, parts = pack_sums(model, item, settings.device, judge_own if own else judge)
                scaler.scale(part / targets).backward()
                sums = [one + more / targets for one, more in zip(sums, parts.tolist(), strict=True)]
            loss, of_labels, divergence = sums
            _check_number(number + 1, "loss", loss)
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(masters.values(), options.max_grad_norm)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            # A lower scale says that float16 overflowed and this step changed nothing.
            if scaler.get_scale() >= scale:
                _check_number(number + 1, "norm of the gradients", float(norm))
            optimizer.zero_grad(set_to_none=False)
            checkpoint.copy(masters, weights)
            size = sum(len(item.ids) for item in packs)
            tokens += size
            last = number + 1 == steps
            checked = last or number == 0 or (options.validate_every and not (number + 1) % options.validate_every)
            check = mean_losses(model, work.validation, settings, judge) if work.validation and checked else None
            if check:
                _check_number(number + 1, "validation loss", check[0])
            log.append(_step(number + 1, loss, of_labels, divergence, rate, tokens, check, own=bool(own)))
            emit(Metric("loss", loss, number + 1, "nats/token"))
            if tell:
                tell(log[-1])
            watch.stop_if_apart(log)
            emit(Metric("tokens_per_second", size / (time.monotonic() - started), number + 1, "tokens/s"))
            emit(Progress("training", number + 1, steps, "steps"))
            # The last one too: the merge needs memory and disk, and may be what fails.
            if last or time.monotonic() - saved > max(options.checkpoint_every, CHECKPOINT_SHARE * cost):
                started = time.monotonic()
                check_finite(masters.items(), number + 1)
                checkpoint.save(folder, identity, masters, optimizer, scaler, log)
                saved = time.monotonic()
                cost = saved - started
            if after_step:
                after_step(number + 1)
    return log


def _check_number(step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise PillmError(f"step {step}: the {what} is {value}, training has come apart", _APART)


def check_finite(weights: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
    """Raises PillmError if one of these is not a number: such weights are neither kept nor published."""
    for name, weight in weights:
        if not torch.isfinite(weight.detach()).all():
            raise PillmError(f"step {step}: {name} is no longer a number, training has come apart", _APART)


def _step(
    number: int, loss: float, of_labels: float, divergence: float, rate: float, tokens: int, check: list[float] | None,
    *, own: bool,
) -> Step:  # fmt: skip
    # With cross-entropy alone the other two say nothing more.
    taught = not math.isnan(divergence)
    return Step(
        number, loss, rate, tokens,
        validation_loss=check[0] if check else None,
        cross_entropy=of_labels if taught and not math.isnan(of_labels) else None,
        divergence=divergence if taught else None,
        validation_cross_entropy=check[1] if check and not math.isnan(check[2]) else None,
        on_policy=own,
    )  # fmt: skip


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


def identity_of(
    options: TrainOptions, settings: Settings, student: str, work: Plan, taught_by: Sequence[str] = ()
) -> str:
    """Hash of all that the loss curve depends on: options, settings, student, every token in order, and whatever
    `taught_by` says of a teacher or a cache.
    """
    digest = hashlib.sha256(student.encode())
    # Files and models are told by what they hold.
    left_out = {*marks(TrainOptions, NoEffect), "data", "card", "student", "logits", "teacher"}
    digest.update(options.model_dump_json(exclude=left_out).encode())
    chosen = [settings.device, settings.dtype, settings.learning_rate, settings.method, settings.rank, settings.alpha,
              settings.lora_dropout, settings.base, settings.double_quantization]  # fmt: skip
    digest.update(msgspec.json.encode([*chosen, str(torch.__version__), taught_by]))
    digest.update(msgspec.json.encode([[(item.ids, item.learned) for item in packs] for packs in work.steps]))
    return digest.hexdigest()
