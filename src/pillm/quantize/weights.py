"""A GGUF file as a torch model, and each of its tensors as a place in that model.

transformers reads the file. What it does to the weights on the way (rows of queries and keys in another order, one
taken off Gemma's norms, experts' matrices side by side) is known here a second time, per tensor, so that a weight, a
gradient or an error can be carried over in both directions. `load` checks the two against each other: every slot must
read what the file decodes to.

Only this module knows about names and layouts; everything else in the room speaks of GGUF tensors.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pillm.core.errors import ResourceError, UsageError
from pillm.core.host import read_fact
from pillm.llamacpp.gguf_file import GgufFile, Tensor, describe
from pillm.models.quiet import no_bars

KNOWN = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3")
"""llama.cpp's names of the architectures whose tensors have a place here. SmolLM and Mistral are `llama`."""

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_WHOLE = {"token_embd.weight": "model.embed_tokens", "output_norm.weight": "model.norm", "output.weight": "lm_head"}
_PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
}  # fmt: skip
_GEMMA = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
          "post_ffw_norm": "post_feedforward_layernorm"}  # fmt: skip
_PHI = {"ffn_up": "mlp.gate_up_proj"}
_EXPERTS = {"ffn_gate_exps": "gate_up_proj", "ffn_up_exps": "gate_up_proj", "ffn_down_exps": "down_proj"}
_FREQUENCIES = "rope_freqs.weight"
# Adding one to a norm and taking it off again may round the last bit of a 32 bit float.
_ROUNDING = 2.0**-22


class Slot:
    """Where a GGUF tensor lives in the model. Shapes are numpy's: rows x columns, experts first."""

    def __init__(
        self, name: str, shape: tuple[int, ...], module: str, parameter: torch.nn.Parameter,
        *, order: torch.Tensor | None = None, part: slice | None = None, plus: float = 0.0,
    ) -> None:  # fmt: skip
        self.name, self.shape, self.module, self.parameter = name, shape, module, parameter
        self.order, self.part, self.plus = order, part, plus

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows and columns; norms and biases have not."""
        return len(self.shape) > 1

    def to_file(self, values: torch.Tensor) -> torch.Tensor:
        """Anything of the parameter's shape (a gradient, say) in the file's layout. A view where that is possible."""
        if self.part is not None:
            values = values[:, self.part]
        return values[self.order] if self.order is not None else values

    def read(self) -> torch.Tensor:
        """The weights in the file's layout; a copy."""
        with torch.no_grad():
            return (self.to_file(self.parameter.detach()) + self.plus).clone()

    def write(self, values: torch.Tensor | NDArray[np.float32]) -> None:
        """Set the weights, given in the file's layout. ValueError for another shape."""
        new = torch.as_tensor(values)
        if tuple(new.shape) != self.shape:
            raise ValueError(f"{self.name}: shape {tuple(new.shape)} instead of {self.shape}")
        with torch.no_grad():
            place = self.parameter.data if self.part is None else self.parameter.data[:, self.part]
            new = (new - self.plus).to(place.dtype).to(place.device)
            if self.order is None:
                place.copy_(new)
            else:
                place[self.order.to(place.device)] = new

    def gradient(self) -> torch.Tensor | None:
        """The parameter's gradient in the file's layout."""
        return None if self.parameter.grad is None else self.to_file(self.parameter.grad)


class Loaded(msgspec.Struct, frozen=True):
    """The model in 32 bit floats, ready to evaluate, and its tensors by the file's names, in the file's order.

    A tied embedding is one slot, `token_embd.weight`, though it serves as the head as well.
    """

    file: GgufFile
    model: Any
    tensors: dict[str, Slot]

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output head as well."""
        return "output.weight" not in self.tensors


def placed(loaded: Loaded) -> Loaded:
    """On the GPU if there is one, and in 16 bits where the hardware multiplies those faster. The same model, changed."""
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    if torch.cuda.is_available() or "avx512_bf16" in read_fact("/proc/cpuinfo"):
        # Parameters alone: the rotation's frequencies are buffers, and far positions need all their bits.
        for parameter in loaded.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return loaded


def decoded(file: GgufFile, tensor: Tensor) -> NDArray[np.float32]:
    """A tensor's weights as 32 bit floats, rows x columns, by `gguf.quants`."""
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    shape = tensor.shape[::-1]
    raw = np.memmap(file.path, np.uint8, "r", tensor.offset, (tensor.bytes,))
    if tensor.type == "F32":
        return np.array(raw.view(np.float32)).reshape(shape)
    if tensor.type == "F16":
        return raw.view(np.float16).astype(np.float32).reshape(shape)
    if tensor.type == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    rows = raw.reshape(-1, tensor.bytes // max(1, tensor.elements // tensor.shape[0]))
    return quants.dequantize(rows, GGMLQuantizationType[tensor.type]).astype(np.float32).reshape(shape)


def load(path: Path) -> Loaded:
    """Read a GGUF file as a torch model. Float files and those of types that `gguf` decodes alike.

    Raises UsageError: not a whole GGUF file, an architecture that is not known here, weights that are no
    numbers, or a tensor whose place in the model does not read what the file holds. ResourceError: no memory.
    """
    file = describe(path)
    if file.architecture not in KNOWN:
        raise UsageError(
            f"{path}: fitting does not know the architecture {file.architecture or 'that the file does not name'}",
            f"it knows {', '.join(KNOWN)}; without --fit and its kin llama.cpp's own recipes are used",
        )
    check_numbers(file)
    model = _model(file)
    tensors = dict(_slots(file, model))
    _check(file, tensors, model)
    for each in file.tensors:
        if each.name == _FREQUENCIES:
            _scale_frequencies(model, decoded(file, each))
    return Loaded(file, model, tensors)


def fill(loaded: Loaded, path: Path) -> None:
    """Set the model's weights to what another file of the same model decodes to. Raises UsageError if it is of another."""
    other = describe(path)
    found = {tensor.name: tensor for tensor in other.tensors}
    for name, slot in loaded.tensors.items():
        tensor = found.get(name)
        if tensor is None or tensor.shape[::-1] != slot.shape:
            raise UsageError(f"{path}: has no tensor {name} of this shape", "give a file of the same model")
        slot.write(decoded(other, tensor))


def check_numbers(file: GgufFile) -> None:
    """Raises UsageError if a tensor of floats holds NaN or infinity: no method can make sense of it."""
    for tensor in file.tensors:
        values = decoded(file, tensor)
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            raise UsageError(
                f"{file.path}: tensor {tensor.name} has {bad:,} weights that are no numbers (NaN or infinity)",
                "the model is broken: export it again from a checkpoint that answers sensibly",
            )


def _model(file: GgufFile) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = file.path
    folder, where = str(path.resolve().parent), {"gguf_file": path.name}
    try:
        with no_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.from_pretrained(folder, **where)
            for name, value in _unread(file).items():
                setattr(config, name, value)
            model = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=torch.float32, attn_implementation="sdpa", **where
            )
    except MemoryError as error:
        raise ResourceError(
            f"{path}: no memory for the model", "use a machine with more, or a smaller model"
        ) from error
    except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise UsageError(f"{path}: transformers cannot read it: {str(error).splitlines()[0]}", "") from error
    model.eval()
    model.requires_grad_(False)
    return model


def _unread(file: GgufFile) -> dict[str, Any]:
    """What the header says and transformers does not read from it."""
    found: dict[str, Any] = {}
    for key, name in (("attention.key_length", "head_dim"), ("expert_feed_forward_length", "moe_intermediate_size")):
        if value := file.metadata.get(f"{file.architecture}.{key}"):
            found[name] = int(value)
    names = {tensor.name for tensor in file.tensors}
    if file.architecture == "llama":
        found |= {"attention_bias": "blk.0.attn_q.bias" in names, "mlp_bias": "blk.0.ffn_up.bias" in names}
    return found


def _slots(file: GgufFile, model: Any) -> Iterator[tuple[str, Slot]]:
    parameters = dict(model.named_parameters())
    for tensor in file.tensors:
        if tensor.name == _FREQUENCIES:
            continue
        found = _place(file, tensor)
        name = f"{found[0]}.{found[1]}" if found and found[1] else found[0] if found else ""
        if not found or name not in parameters:
            raise UsageError(
                f"{file.path}: there is no place for the tensor {tensor.name} in transformers' {type(model).__name__}",
                "without --fit and its kin llama.cpp's own recipes are used",
            )
        parameter = parameters[name]
        yield tensor.name, Slot(
            tensor.name, tensor.shape[::-1], found[0], parameter,
            order=_order(file, tensor), part=_part(tensor, parameter), plus=_plus(file, tensor),
        )  # fmt: skip


def _place(file: GgufFile, tensor: Tensor) -> tuple[str, str] | None:
    """Module and parameter."""
    if tensor.name in _WHOLE:
        return _WHOLE[tensor.name], "weight"
    match = _BLOCK.fullmatch(tensor.name)
    if not match:
        return None
    layer, part, kind = match.groups()
    if part in _EXPERTS:
        return f"model.layers.{layer}.mlp.experts", _EXPERTS[part]
    more = _GEMMA if file.architecture.startswith("gemma") else _PHI if file.architecture == "phi3" else {}
    module = {**_PARTS, **more}.get(part)
    return (f"model.layers.{layer}.{module}", kind) if module else None


def _order(file: GgufFile, tensor: Tensor) -> torch.Tensor | None:
    """Rows of queries and keys of `llama`: pairs that are turned together lie side by side in the file."""
    match = _BLOCK.fullmatch(tensor.name)
    if file.architecture != "llama" or not match or match[2] not in ("attn_q", "attn_k"):
        return None
    heads = int(file.metadata["llama.attention.head_count"])
    if match[2] == "attn_k":
        heads = int(file.metadata.get("llama.attention.head_count_kv", heads))
    rows = tensor.shape[-1]
    return torch.arange(rows).reshape(heads, 2, rows // heads // 2).transpose(1, 2).reshape(-1)


def _part(tensor: Tensor, parameter: torch.nn.Parameter) -> slice | None:
    """Experts' gates and ups are one parameter, gates first."""
    if "_gate_exps." in tensor.name or "_up_exps." in tensor.name:
        half = parameter.shape[1] // 2
        return slice(0, half) if "_gate_exps." in tensor.name else slice(half, 2 * half)
    return None


def _plus(file: GgufFile, tensor: Tensor) -> float:
    return 1.0 if file.architecture.startswith("gemma") and tensor.name.endswith("norm.weight") else 0.0


def _check(file: GgufFile, tensors: dict[str, Slot], model: Any) -> None:
    for tensor in file.tensors:
        slot = tensors.get(tensor.name)
        if slot is None:
            continue
        wanted, got = torch.from_numpy(decoded(file, tensor)), slot.read()
        same = got.shape == wanted.shape and (
            torch.allclose(got, wanted, rtol=_ROUNDING, atol=_ROUNDING) if slot.plus else torch.equal(got, wanted)
        )
        if not same:
            raise UsageError(
                f"{file.path}: tensor {tensor.name} is not what transformers made of it",
                "report this with the model's name; without --fit and its kin llama.cpp's own recipes are used",
            )
    placed = {id(slot.parameter) for slot in tensors.values()}
    if left := [name for name, parameter in model.named_parameters() if id(parameter) not in placed]:
        raise UsageError(f"{file.path}: has no weights for {left[0]}", "export the model again")


def _scale_frequencies(model: Any, factors: NDArray[np.float32]) -> None:
    """Llama 3's scaled rotation, which the file carries as factors and transformers does not read from it."""
    rotary = model.model.rotary_emb
    for name in ("inv_freq", "original_inv_freq"):
        if hasattr(rotary, name):
            setattr(rotary, name, getattr(rotary, name) / torch.from_numpy(factors))
