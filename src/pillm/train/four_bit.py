"""A frozen base in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import torch

from pillm.core.errors import MissingError, UsageError

_ABSENT = object()


def freeze_in_4bit(
    model: Any, kind: str, double_quantization: bool, dtype: torch.dtype, device: str, keep: tuple[Any, ...] = ()
) -> None:
    """Replace every linear layer of `model` but the head and those in `keep` by a 4-bit one, in place, on `device`.

    `kind` is "nf4" or "fp4"; blocks of 64 weights have a scale; products are computed in `dtype`. Layers are
    replaced one at a time, so that the peak is the 16- or 32-bit model and one layer.
    Raises MissingError without bitsandbytes, UsageError for a device that it does not know.
    """
    nn = _layers(device)
    kept = {id(module) for module in (model.get_output_embeddings(), *keep) if module is not None}
    replaced = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not torch.nn.Linear or id(layer) in kept:
                continue
            # On "meta" nothing is allocated and no random number drawn for weights that are replaced at once.
            small = nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, dtype, double_quantization, kind,
                device="meta",
            )  # fmt: skip
            weight = layer.weight.data.to(dtype)
            small.weight = nn.Params4bit(
                weight, requires_grad=False, compress_statistics=double_quantization, quant_type=kind, module=small
            ).to(device)
            if layer.bias is not None:
                small.bias = torch.nn.Parameter(layer.bias.data, requires_grad=False)
            # bitsandbytes would repack the weights at the first forward pass in evaluation mode, into a form
            # that has no gradient: training would go on after a validation without learning below that layer.
            small.support_avx512bf16_for_cpu = False
            setattr(parent, name, small)
            replaced += 1
    if not replaced:
        raise UsageError(f"--base {kind}: this student has no linear layers that can be kept in 4 bits", "--base 16bit")
    # peft looks at this mark to choose the adapters' layers.
    model.is_loaded_in_4bit = True


def import_quietly() -> Any:
    """bitsandbytes, imported without a word and without a look at the net; a later import finds it done.

    peft imports it too, wherever it is installed. Raises ImportError if it cannot be used.
    """
    # It logs on import that kernels for hardware which is not here cannot be loaded.
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    # On some CPUs it would fetch a program from a hub while it is imported, if the package `kernels` is there.
    kernels = sys.modules.get("kernels", _ABSENT)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # import then fails, and it takes its own code
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes
    finally:
        logger.setLevel(level)
        if kernels is _ABSENT:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels  # type: ignore[assignment]
    return bitsandbytes


def _layers(device: str) -> Any:
    try:
        bitsandbytes = import_quietly()
    except ImportError as error:
        raise MissingError(
            f"a 4-bit base needs bitsandbytes, which cannot be used here ({error})",
            "pip install bitsandbytes, or --base 16bit",
        ) from error
    if device not in ("cpu", "cuda"):
        raise UsageError(
            f"4-bit layers are known to train on CPUs and CUDA devices only, and this device is {device}",
            "take --base 16bit, or --device cpu",
        )
    return bitsandbytes.nn
