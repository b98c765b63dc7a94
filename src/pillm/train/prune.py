"""A smaller student out of a bigger model: depth and width pruning by activations (Minitron).

Muralidharan et al. 2024 (arXiv 2407.14679) and Sreenivas et al. 2024 (arXiv 2408.11796): a few forward passes over
calibration data say how important each layer, feed-forward neuron, attention head and embedding channel is, all at
once; the least important are cut out, and the rest is trained on. Nothing here is random.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pillm.core.errors import UsageError
from pillm.core.events import Emit, Log, Progress
from pillm.train import attention
from pillm.train.dialogues import Pack, tensors
from pillm.train.settings import Settings
from pillm.train.shape import Shape, parse

__all__ = ["Shape", "parse", "pruned"]

CALIBRATION_TOKENS = 8192
"""Tokens of the training packs that importance is measured on."""


class Importance(NamedTuple):
    """Means over the calibration tokens; the larger, the more it is needed. Float64 on the CPU."""

    layers: torch.Tensor
    """[L] block importance: 1 - cosine of a layer's input and output (Men et al. 2024, arXiv 2403.03853, eq. 1)."""
    ffn: torch.Tensor
    """[L, F] mean absolute activation of each feed-forward neuron, as the down projection reads it."""
    groups: torch.Tensor
    """[L, K] mean norm of the heads' outputs, summed over the query heads of each key-value head."""
    hidden: torch.Tensor
    """[W] mean absolute output of the layers' norms, summed over layers."""


def pruned(model: Any, shape: Shape, packs: Sequence[Pack], settings: Settings, emit: Emit) -> Any:
    """A smaller model of the same class and dtype, on the CPU, with the most important parts of `model`.

    Raises UsageError, before any computation, for a shape that this model cannot be cut to.
    """
    sizes = _sizes(model)
    _check(model, shape, sizes, emit)
    config = _config(model, shape, sizes)
    if not packs:
        raise UsageError("pruning measures on the training data, and there is none", "give a dataset with answers")
    importance = measure(model, packs, settings, emit)
    signature = _signatures(model.config, sizes.layers)
    layers = best_layers(importance.layers.tolist(), signature, shape.layers or sizes.layers)
    hidden = _top(importance.hidden, shape.hidden)
    ffn = [_top(importance.ffn[layer], shape.ffn) for layer in layers]
    groups = [_top(importance.groups[layer], shape.heads and shape.heads // sizes.group) for layer in layers]
    result = _cut(model, config, shape, sizes, layers, hidden, ffn, groups)
    _tell(sizes, shape, layers, importance, model, result, emit)
    return result


class _Sizes(NamedTuple):
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


def _sizes(model: Any) -> _Sizes:
    config = model.config
    if config.get_text_config() is not config:
        raise UsageError("this student is more than a language model and cannot be pruned", "take a text-only model")
    names = ("num_hidden_layers", "intermediate_size", "num_attention_heads", "hidden_size")
    values = [getattr(config, name, None) for name in names]
    if not all(isinstance(value, int) for value in values):
        raise UsageError(
            f"a model of the kind {config.model_type} cannot be pruned here: its layers differ in size, or are of another kind",
            "take a model of the Llama, Qwen, Gemma, Mistral or SmolLM family",
        )
    layers, ffn, heads, hidden = (int(value) for value in values if value is not None)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return _Sizes(layers, ffn, heads, kv_heads, getattr(config, "head_dim", None) or hidden // heads, hidden)


def _check(model: Any, shape: Shape, sizes: _Sizes, emit: Emit) -> None:
    for name, wanted in shape._asdict().items():
        has = getattr(sizes, name)
        if wanted is not None and wanted > has:
            raise UsageError(f"--init prune:{name}={wanted}: this student has {has}", f"give {name} from 1 to {has}")
    if shape.heads and shape.heads % sizes.group:
        possible = ", ".join(str(sizes.group * (n + 1)) for n in range(sizes.kv_heads))
        raise UsageError(
            f"--init prune:heads={shape.heads}: {sizes.group} query heads share a key-value head, and are cut together",
            f"possible are {possible}",
        )
    if shape.hidden and (shape.hidden < sizes.hidden) and hasattr(model.get_input_embeddings(), "embed_scale"):
        raise UsageError(
            f"--init prune:hidden={shape.hidden}: embeddings of {model.config.model_type} are scaled by their width",
            "prune layers=, ffn= or heads= of this model",
        )
    if shape.ffn or shape.heads or shape.hidden:
        for name, parameter in model.named_parameters():
            if _rule(name, parameter, sizes) is None:
                raise UsageError(
                    f"--init prune: what {name} of this {model.config.model_type} model is, is not known here",
                    "prune its layers alone: --init prune:layers=N",
                )
    for name, wanted in (("hidden", shape.hidden), ("ffn", shape.ffn)):
        if wanted and wanted % 256:
            kinds = "no type of llama.cpp below 16 bits fits" if wanted % 32 else "K-quants do not fit (Q4_0, Q8_0 do)"
            emit(Log(f"{name}={wanted} is no multiple of {32 if wanted % 32 else 256}: {kinds}", "warning"))


def measure(model: Any, packs: Sequence[Pack], settings: Settings, emit: Emit) -> Importance:
    """Importance of everything, by forward passes over the first packs, up to CALIBRATION_TOKENS."""
    sizes = _sizes(model)
    chosen: list[Pack] = []
    for item in packs:
        if chosen and sum(len(p.ids) for p in chosen) + len(item.ids) > CALIBRATION_TOKENS:
            break
        chosen.append(item)
    tokens = sum(len(item.ids) for item in chosen)
    layers = model.get_decoder().layers
    depth = torch.zeros(sizes.layers, dtype=torch.float64)
    ffn = torch.zeros(sizes.layers, sizes.ffn, dtype=torch.float64)
    groups = torch.zeros(sizes.layers, sizes.kv_heads, dtype=torch.float64)
    hidden = torch.zeros(sizes.hidden, dtype=torch.float64)

    def layer_hook(number: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            depth[number] += (1 - cosine).clamp_min(0).double().sum().cpu()

        return hook

    def ffn_hook(number: int) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            ffn[number] += args[0].float().abs().sum((0, 1)).double().cpu()

        return hook

    def heads_hook(number: int) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            out = args[0].float().unflatten(-1, (sizes.kv_heads, sizes.group, sizes.head_dim))
            groups[number] += out.norm(dim=-1).sum((0, 1, 3)).double().cpu()

        return hook

    def norm_hook(module: Any, args: Any, output: Any) -> None:
        hidden.add_(output.float().abs().sum((0, 1)).double().cpu())

    hooks: list[Any] = []
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(layer_hook(number), with_kwargs=True))
        for name, module in layer.named_modules():
            last = name.rpartition(".")[2]
            if last == "down_proj" and getattr(module, "in_features", 0) == sizes.ffn:
                hooks.append(module.register_forward_pre_hook(ffn_hook(number)))
            elif last == "o_proj" and getattr(module, "in_features", 0) == sizes.heads * sizes.head_dim:
                hooks.append(module.register_forward_pre_hook(heads_hook(number)))
            elif last.endswith("layernorm") and module.weight.shape == (sizes.hidden,):
                hooks.append(module.register_forward_hook(norm_hook))
    attention.use(model)
    was = model.training
    model.to(settings.device).eval()
    try:
        with torch.no_grad():
            for number, item in enumerate(chosen):
                inputs = tensors(item)
                model.get_decoder()(
                    input_ids=inputs["input_ids"].to(settings.device),
                    position_ids=inputs["position_ids"].to(settings.device),
                    pieces=inputs["pieces"],
                    use_cache=False,
                )
                emit(Progress("measuring importance", number + 1, len(chosen), "packs"))
    finally:
        for hook in hooks:
            hook.remove()
        model.to("cpu").train(was)
    return Importance(depth / tokens, ffn / tokens, groups / tokens, hidden / tokens)


def best_layers(scores: Sequence[float], kinds: Sequence[Any], count: int) -> list[int]:
    """`count` layers in their order with the largest sum of scores, such that the n-th kept is of the n-th layer's kind.

    Layers of several kinds (sliding and full attention, with and without rotary positions) come in a pattern, which
    llama.cpp tells from a layer's number alone; so the pattern must stay. With one kind, these are the best `count`.
    """
    lowest = float("-inf")
    # best[n]: the largest sum of n layers among those seen so far, and which they are.
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *((lowest, ()) for _ in range(count))]
    for layer, score in enumerate(scores):
        for n in range(min(count, layer + 1), 0, -1):
            if kinds[layer] == kinds[n - 1] and best[n - 1][0] + score > best[n][0]:
                best[n] = (best[n - 1][0] + score, (*best[n - 1][1], layer))
    return list(best[count][1])


def _signatures(config: Any, layers: int) -> list[tuple[Any, ...]]:
    """What the configuration says of each layer apart."""
    lists = [value for value in config.to_dict().values() if isinstance(value, list) and len(value) == layers]
    return [tuple(value[layer] for value in lists) for layer in range(layers)]


def _top(scores: torch.Tensor, count: int | None) -> torch.Tensor:
    """Indices of the `count` largest, in order; all for None."""
    if not count or count >= len(scores):
        return torch.arange(len(scores))
    return scores.argsort(descending=True, stable=True)[:count].sort().values


_COLUMNS = {"q_proj": "hidden", "k_proj": "hidden", "v_proj": "hidden", "o_proj": "heads",
            "gate_proj": "hidden", "up_proj": "hidden", "down_proj": "ffn", "embed_tokens": "hidden", "lm_head": "hidden"}  # fmt: skip
_ROWS = {"q_proj": "heads", "k_proj": "keys", "v_proj": "keys", "o_proj": "hidden",
         "gate_proj": "ffn", "up_proj": "ffn", "down_proj": "hidden", "embed_tokens": "all", "lm_head": "all"}  # fmt: skip


def _rule(name: str, parameter: torch.Tensor, sizes: _Sizes) -> tuple[str, ...] | None:
    """Along what each dimension of a parameter is cut; None if that is not known."""
    *_, module, kind = name.split(".")
    if module in _ROWS:
        rule = (_ROWS[module],) if kind == "bias" else (_ROWS[module], _COLUMNS[module])
    elif module in ("q_norm", "k_norm"):
        whole = parameter.shape[0] != sizes.head_dim
        rule = ({"q_norm": "heads", "k_norm": "keys"}[module] if whole else "all",)
    elif "norm" in module:
        rule = ("hidden",)
    else:
        return None
    long = {"hidden": sizes.hidden, "ffn": sizes.ffn, "heads": sizes.heads * sizes.head_dim,
            "keys": sizes.kv_heads * sizes.head_dim}  # fmt: skip
    fits = len(rule) == parameter.ndim and all(
        long.get(along, size) == size for along, size in zip(rule, parameter.shape, strict=True)
    )
    return rule if fits else None


def _config(model: Any, shape: Shape, sizes: _Sizes) -> Any:
    """The configuration of the result. Raises UsageError for sizes that this kind of model cannot have together."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = shape.layers or sizes.layers
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == sizes.layers:
            setattr(config, name, value[: config.num_hidden_layers])  # best_layers keeps the pattern
    if shape.ffn or shape.heads or shape.hidden:
        config.head_dim = sizes.head_dim  # no longer the width over the heads
        config.hidden_size, config.intermediate_size = shape.hidden or sizes.hidden, shape.ffn or sizes.ffn
        config.num_key_value_heads = (shape.heads or sizes.heads) // sizes.group
        config.num_attention_heads = shape.heads or sizes.heads
    try:
        config.validate()
    except Exception as error:  # huggingface_hub has a class of its own for this, in which the reason is the cause
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UsageError(
            f"--init prune: {config.model_type} models cannot be of this shape: {reason}",
            "with hidden=, take a multiple of the number of heads, or give heads=, too",
        ) from error
    return config


def _cut(
    model: Any,
    config: Any,
    shape: Shape,
    sizes: _Sizes,
    layers: list[int],
    hidden: torch.Tensor,
    ffn: list[torch.Tensor],
    groups: list[torch.Tensor],
) -> Any:
    with torch.random.fork_rng(devices=[]):
        result = type(model)(config)
    result = result.to(model.dtype)
    source = dict(model.named_parameters())
    width = bool(shape.ffn or shape.heads or shape.hidden)
    with torch.no_grad():
        for name, target in result.named_parameters():
            number = re.search(r"(?<=\.layers\.)\d+(?=\.)", name)
            place = int(number[0]) if number else None
            old = name if place is None else re.sub(r"(?<=\.layers\.)\d+(?=\.)", str(layers[place]), name, count=1)
            value = source[old]
            rule = _rule(old, value, sizes) if width else None
            for dimension, along in enumerate(rule or ()):
                if along == "all":
                    continue
                if along == "hidden":
                    index = hidden
                elif place is None:
                    raise RuntimeError(f"{name} is in no layer")
                elif along == "ffn":
                    index = ffn[place]
                else:
                    index = _rows(groups[place], sizes.head_dim * (sizes.group if along == "heads" else 1))
                value = value.index_select(dimension, index)
            target.copy_(value)
            target.requires_grad_(source[old].requires_grad)
    result.generation_config = model.generation_config
    result.set_attn_implementation(model.config._attn_implementation)
    return result.train(model.training)


def _rows(groups: torch.Tensor, size: int) -> torch.Tensor:
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _tell(
    sizes: _Sizes, shape: Shape, layers: list[int], importance: Importance, model: Any, result: Any, emit: Emit
) -> None:
    dropped = [layer for layer in range(sizes.layers) if layer not in layers]
    if dropped:
        scores = ", ".join(f"{layer} ({importance.layers[layer]:.3f})" for layer in dropped)
        emit(Log(f"pruned {len(dropped)} of {sizes.layers} layers, by 1 - cosine of input and output: {scores}"))
    for name, words in (
        ("ffn", "feed-forward neurons a layer"),
        ("heads", "query heads a layer"),
        ("hidden", "channels"),
    ):
        wanted, has = getattr(shape, name), getattr(sizes, name)
        if wanted and wanted < has:
            emit(Log(f"pruned {has - wanted} of {has} {words}, by mean activation"))
    before, after = model.num_parameters(), result.num_parameters()
    emit(Log(f"the student has {after:,} parameters, {after / before:.0%} of the {before:,} before"))
