"""The student: loading it from any reference, giving it adapters, and merging them back."""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from pillm.core.errors import UsageError
from pillm.llamacpp.gguf_file import describe
from pillm.models.chat import TOOLS_TEMPLATE, ChatTemplate, load_template
from pillm.models.quiet import no_bars
from pillm.train.four_bit import freeze_in_4bit, import_quietly
from pillm.train.settings import Settings


def load(path: Path, dtype: torch.dtype) -> tuple[Any, Any, torch.dtype]:
    """Model, tokenizer and the dtype the weights came in, from a folder or a GGUF file.

    Quantized GGUF weights are decoded to float32. Raises UsageError for what transformers cannot read.
    """
    where: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    try:
        with warnings.catch_warnings(), no_bars():
            # transformers warns of its own deprecated calls while it reads GGUF files.
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(folder, **where)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32 if where else "auto", attn_implementation="sdpa", **where
            )
    except (OSError, ValueError, LookupError, RuntimeError, EOFError, struct.error, SafetensorError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise UsageError(
            f"{path}: transformers cannot load this model: {said[0]}",
            "check that the file is whole and its architecture is one that transformers knows",
        ) from error
    if where:
        _forget_gguf(model)
        _split_digits(tokenizer, path)
    came_in = model.dtype
    return model.to(dtype), tokenizer, came_in


def _split_digits(tokenizer: Any, path: Path) -> None:
    """Put back a step that transformers leaves out when it reads SmolLM's tokenizer from GGUF: digits stand alone.

    Without it, rare characters that Unicode counts as numbers are split otherwise than llama.cpp splits them.
    """
    if describe(path).metadata.get("tokenizer.ggml.pre") == "smollm":
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _forget_gguf(model: Any) -> None:
    """Make a model that was decoded from GGUF an ordinary one: save_pretrained refuses it otherwise."""
    model.hf_quantizer = None
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)


def chat_template(choice: str, tokenizer: PreTrainedTokenizerBase, with_tools: bool) -> ChatTemplate:
    """The template to train in. `auto`: the model's own, unless the data has tools and it knows none.

    Raises UsageError if there is none, or if the shipped one is to be used and does not fit the tokenizer.
    """
    tokens = {"bos_token": str(tokenizer.bos_token or ""), "eos_token": str(tokenizer.eos_token or "")}
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if choice not in ("auto", TOOLS_TEMPLATE):
        return ChatTemplate(load_template(choice), **tokens)
    if own and choice == "auto":
        template = ChatTemplate(own, **tokens)
        if template.knows_tools or not with_tools:
            return template
    vocabulary = tokenizer.get_vocab()
    if "<|im_start|>" not in vocabulary or "<|im_end|>" not in vocabulary:
        why = (
            "" if choice != "auto" else "the student's own " + ("knows no tools" if own else "is not there") + ", and "
        )
        raise UsageError(
            f"chat template: {why}the shipped {TOOLS_TEMPLATE} needs ChatML tokens, which the student's tokenizer has not",
            "give a template that fits this model: --chat-template FILE.jinja",
        )
    return ChatTemplate(load_template(TOOLS_TEMPLATE), **tokens)


def _peft() -> Any:
    # It imports bitsandbytes wherever that is installed, which would print and look for kernels on a hub.
    with contextlib.suppress(ImportError):
        import_quietly()
    import peft

    return peft


def template_name(choice: str, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, own: str) -> str:
    """What a report says of the template: the choice, or what `auto` meant, `own` being the model's."""
    if choice != "auto":
        return choice
    return own if template.source == tokenizer.chat_template else TOOLS_TEMPLATE


def with_adapters(path: Path, model: Any, settings: Settings) -> Any:
    """The model with trainable adapters on every linear layer but the head, its own weights frozen, in 4 bits if so.

    lora: the update is B A alpha / rank (Hu et al. 2021); rslora: B A alpha / sqrt(rank) (Kalajdzievski 2023, arXiv
    2312.03732); dora: lengths of the weights' rows are trained apart from their directions (Liu et al. 2024, arXiv
    2402.09353). Changes `model`, float32, in place. Raises UsageError if there is nothing to adapt, and
    MissingError without bitsandbytes for a 4-bit base.
    """
    peft = _peft()
    if settings.base != "16bit":
        freeze_in_4bit(
            model, settings.base, settings.double_quantization, getattr(torch, settings.dtype), settings.device
        )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            raise UsageError(
                f"{path}: this student cannot take adapters: {str(error).splitlines()[0]}", "--method full"
            ) from error


def merged(model: Any, base: Callable[[], Any], settings: Settings) -> Any:
    """The student alone, in float32: trained weights, or those of `base()` plus the adapters' update.

    `base` gives a fresh student in float32 (pruned, if it was). The adapters are added to these weights: those
    beside which they were trained may be in 4 bits or rounded to the arithmetic's dtype, and are not used.
    `model` is on the CPU in float32 (see loop.take_masters).
    """
    if settings.method == "full":
        return model
    peft = _peft()
    adapters = peft.get_peft_model_state_dict(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = peft.get_peft_model(base(), model.peft_config["default"])
        found = peft.set_peft_model_state_dict(target, adapters)
        if found.unexpected_keys:
            raise RuntimeError(f"adapters without a place in the student: {found.unexpected_keys[:3]}")
        return target.merge_and_unload()
