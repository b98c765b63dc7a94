"""How much memory a training needs, from the student's header alone, before anything heavy is loaded.

Bytes by hand, part by part, of what the training keeps; docs/training.md has the error against measured peaks
(benchmarks/train_memory.py).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from pillm.core.errors import PillmError, UsageError
from pillm.core.events import Emit, silent
from pillm.core.host import read_fact
from pillm.core.paths import expanded
from pillm.core.shipped import data_path
from pillm.devices.architecture import from_config
from pillm.llamacpp.gguf_file import describe
from pillm.models.refs import HubRef, PackageRef, PathRef, parse, resolve
from pillm.train.options import TrainOptions
from pillm.train.presets import applied

GIB = 2**30
_LIBRARIES = 0.37 * GIB
"""Resident memory of a process that has imported torch, transformers and peft and done nothing (380 MiB measured)."""
_CUDA_CONTEXT = 0.5 * GIB
"""CUDA's context and cuBLAS's workspace, which come on top of what torch allocates."""
_CHUNK = 128
"""Rows of logits that exist at a time (see head_loss)."""
_UNACCOUNTED = 0.95 * GIB
"""What a training on a CPU needs beyond the parts that are counted: oneDNN's kernels and copies of matrices, holes in the
heap. Fitted to one measurement (docs/training.md): 0.92 GiB, rounded up."""
_SPAN = 256
"""Keys that a query sees, where the data does not say: a shared beginning and a dialogue."""
_SAFE = 0.9
"""Share of the free memory that may be planned with."""


class Sizes(msgspec.Struct, frozen=True):
    """What of a model counts. Numbers of weights, but for layers, heads and widths."""

    parameters: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_width: int
    """Width of all keys of a token, which is that of its values."""
    vocabulary: int
    linear: int
    """Weights in the layers' matrices, which a 4-bit base packs and adapters stand beside."""
    linear_ends: int
    """Inputs and outputs of these matrices, summed: an adapter of rank r has r times as many weights."""


class Estimate(msgspec.Struct, frozen=True):
    """Bytes. `parts` add up to `training`; `peak` is the most of loading, training and merging."""

    parts: dict[str, float]
    loading: float
    training: float
    merging: float
    dtype: str
    checkpointing: bool
    trained: int
    """Trained parameters."""

    @property
    def peak(self) -> float:
        """The most that is needed at any time."""
        return max(self.loading, self.training, self.merging)


def rough_sizes(parameters: int, layers: int, width: int) -> Sizes:
    """Sizes of a usual Llama of so many parameters: nothing but these three is known."""
    linear = min(parameters, 12 * layers * width**2)
    return Sizes(parameters, layers, width, 8 * width // 3, max(1, width // 64), width // 2, 49152, linear,
                 layers * 16 * width)  # fmt: skip


def sizes_of_model(model: object) -> Sizes:
    """Sizes of a loaded transformers model."""
    config = model.config.get_text_config()  # type: ignore[attr-defined]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}  # type: ignore[attr-defined]
    matrices = [s for name, s in shapes.items() if re.search(r"\.layers?\.\d+\.", name) and len(s) == 2]
    keys = max((s[0] for name, s in shapes.items() if name.endswith("k_proj.weight")), default=config.hidden_size)
    total = model.num_parameters()  # type: ignore[attr-defined]
    return _sizes(total, config.num_hidden_layers, config.hidden_size, config.intermediate_size,
                  config.num_attention_heads, keys, config.vocab_size, matrices)  # fmt: skip


def sizes_of(reference: str, emit: Emit = silent) -> Sizes:
    """Sizes of the model behind a reference, from config.json or the header of a GGUF file. Of a hub, only that is read.

    Raises UsageError (not a model), MissingError and NetworkError (hub, package).
    """
    match parse(reference):
        case HubRef() as ref:
            from pillm.models import header

            remote = header.remote(ref, emit)
            if not ref.file and any(file.path == "config.json" for file in remote.files):
                text = remote.begin("config.json", 2**22).decode("utf-8", "replace")
                return _of_config(text, f"{ref}/config.json")
            return _of_path(resolve(reference, emit))
        case PackageRef():
            return _of_path(resolve(reference, emit))
        case PathRef(path):
            return _of_path(expanded(path))
        case _:
            raise UsageError(
                f"{reference}: not a model that can be trained", "give a folder, a GGUF file or hf:org/name"
            )


def _of_path(path: Path) -> Sizes:
    if path.is_dir():
        config = path / "config.json"
        if config.is_file():
            try:
                return _of_config(config.read_text(encoding="utf-8"), str(config))
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{config}: cannot be read ({error})", "download the file again") from error
        found = sorted(path.glob("*.gguf"))
        if len(found) != 1:
            raise UsageError(f"{path}: holds no config.json and {len(found)} GGUF files", "name the model's file")
        path = found[0]
    file = describe(path)
    tensors = {tensor.name: tensor.shape for tensor in file.tensors}

    def number(key: str) -> int:
        value = file.metadata.get(f"{file.architecture}.{key}", 0)
        return int(value) if isinstance(value, int | float) else 0

    embedding = tensors.get("token_embd.weight", (0, 0))
    matrices = [s for name, s in tensors.items() if name.startswith("blk.") and len(s) == 2 and s[1] > 1]
    keys = max((s[1] for name, s in tensors.items() if name.endswith("attn_k.weight")), default=embedding[0])
    forward = max((s[0] for name, s in tensors.items() if "ffn_down" in name), default=4 * embedding[0])
    total = sum(tensor.elements for tensor in file.tensors)
    return _sizes(total, number("block_count"), embedding[0], forward, number("attention.head_count") or 1, keys,
                  embedding[1], matrices)  # fmt: skip


def _of_config(text: str, where: str) -> Sizes:
    model = from_config(text, where, "student")
    shape = model.shape
    matrices = [t.shape for t in model.tensors if t.name.startswith("blk.") and len(t.shape) == 2 and t.shape[1] > 1]
    total = sum(t.elements for t in model.tensors)
    keys = max(shape.kv_heads, default=1) * shape.key_length
    return _sizes(total, shape.layers, shape.width, shape.feed_forward, shape.heads, keys, shape.vocabulary, matrices)


def _sizes(
    total: int, layers: int, width: int, forward: int, heads: int, keys: int, vocabulary: int,
    matrices: list[tuple[int, ...]],
) -> Sizes:  # fmt: skip
    linear = sum(a * b for a, b in matrices)
    return Sizes(total, layers, width, forward, heads, keys, vocabulary, linear, sum(a + b for a, b in matrices))


def estimate(
    options: TrainOptions,
    sizes: Sizes,
    dtype: str,
    checkpointing: bool,
    device: str = "cpu",
    teacher: Sizes | None = None,
    span: int = _SPAN,
) -> Estimate:
    """Memory of a training with these options. `span`: keys that a query sees, in the mean.

    Activations are those that autograd keeps of a layer of the Llama family: inputs of matrix products, of the
    norms (in float32, as transformers computes them), of silu and of its product; queries, keys and values
    (again, for each piece of a pack); and on a CPU the attention's weights, which no fused kernel recomputes there.
    """
    options = applied(options)
    size = 4 if dtype == "float32" else 2
    full = options.method == "full"
    if full:
        trained = (
            sizes.parameters if options.embeddings == "train" else sizes.parameters - sizes.vocabulary * sizes.width
        )
    else:
        trained = options.rank * sizes.linear_ends
    bits = 4.127 if options.double_quantization else 4.5
    packed = 0 if options.base == "16bit" else sizes.linear
    extra = 0 if full else trained  # adapters are weights beside the student's
    parts = {
        "weights": float((sizes.parameters - packed + extra) * size),
        "4-bit base": packed * bits / 8,
        "masters": float(trained * 4 if size == 2 else 0),
        "gradients": trained * 4.0,
        "optimizer": trained * 8.0,
    }
    tokens = options.micro_tokens
    rank = 0 if full else options.rank
    layer = _layer_bytes(sizes, size, rank, span if device == "cpu" else 0, options.method == "dora")
    kept = sizes.layers * sizes.width * size + layer if checkpointing else sizes.layers * layer
    # The backward pass holds gradients of one layer's activations.
    parts["activations"] = tokens * (kept + 0.5 * layer)
    if packed or options.method == "dora":
        # A layer's widest matrix is unpacked for its product; DoRA makes three of its size in every layer that autograd keeps.
        widest = sizes.width * max(sizes.feed_forward, sizes.width)
        parts["unpacked matrices"] = widest * size * (2.0 if packed else 0.0)
        if options.method == "dora":
            parts["unpacked matrices"] += size * (3.0 * sizes.linear if not checkpointing else 6.0 * widest)
    parts["logits"] = _CHUNK * sizes.vocabulary * (size + 4.0) + (
        sizes.vocabulary * sizes.width * 2.0 * size if full and options.embeddings == "train" else 0.0
    )
    if teacher is not None:
        parts["teacher"] = teacher.parameters * float(size) + tokens * 4 * teacher.feed_forward * size
    if device != "cuda":
        parts["kernels and heap"] = _UNACCOUNTED
    libraries = _LIBRARIES + (_CUDA_CONTEXT if device == "cuda" else 0.0)
    parts["libraries"] = libraries if device != "cuda" else _CUDA_CONTEXT
    whole = sizes.parameters * 4.0
    training = sum(parts.values())
    # On a GPU, student and merge stay in the machine's own memory.
    loading = libraries + whole * 1.1 if device != "cuda" else 0.0
    merging = (
        libraries + whole * (2 if not full else 1) + trained * (12 if size == 4 else 16) if device != "cuda" else 0.0
    )
    return Estimate(parts, loading, training, merging, dtype, checkpointing, trained)


def needed(
    options: TrainOptions, sizes: Sizes, teacher: Sizes | None, dtype: str, checkpointing: bool, device: str
) -> Estimate:
    """The estimate that `--dry-run` and the training itself go by. `sizes` are the student's before pruning.

    Raises UsageError for what `--init` cannot mean.
    """
    small = _pruned(sizes, options.init) if options.init else sizes
    return estimate(options, small, dtype, checkpointing, device, teacher, _span(options))


def teacher_sizes(options: TrainOptions, emit: Emit = silent) -> Sizes | None:
    """Sizes of the teacher if one will be loaded. Raises as `sizes_of`."""
    if not options.teacher or options.loss == "cross-entropy" or (options.logits and not options.on_policy):
        return None
    return sizes_of(options.teacher, emit)


def is_short(found: Estimate, free: float) -> bool:
    """Whether `--gradient-checkpointing auto` is on: activations are what can be had for less."""
    return found.training > 0.7 * free


def free_memory() -> float:
    """Bytes of the machine's memory that a training may take: what is free, and what this process holds already.

    The estimate counts the libraries and the student, which may be loaded by now.
    """
    return float(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def _layer_bytes(sizes: Sizes, size: int, rank: int, span: int, dora: bool) -> float:
    """Bytes a token that autograd keeps of one layer."""
    width, forward, keys = sizes.width, sizes.feed_forward, sizes.key_value_width
    norms = 2 * 4 * width
    inputs = 3 * width + forward  # of q, k, v; of o; of gate and up; of down
    attention = 3 * width + 4 * keys + sizes.heads * span  # queries twice, their result; keys and values twice
    silu = 3 * forward
    adapters = 7 * rank + (3 * (2 * forward + 3 * width + 2 * keys) if dora else 0)
    return norms + size * float(inputs + attention + silu + adapters)


class Preview(msgspec.Struct, frozen=True):
    """What `--dry-run` says of a training. `lines` are for people."""

    estimate: Estimate
    device: str
    free: float
    fits: bool
    lines: list[str]


def preview(options: TrainOptions, emit: Emit = silent) -> Preview:
    """Whether the training fits into the memory that is free now, and what to try if not. Loads no weights, no torch.

    Raises UsageError (not a model, options that contradict each other), MissingError and NetworkError (hub, package).
    """
    options = applied(options)
    sizes = sizes_of(options.student, emit)
    teacher = teacher_sizes(options, emit)
    device, free, dtype = _machine(options)
    found = needed(options, sizes, teacher, dtype, options.gradient_checkpointing == "on", device)
    if options.gradient_checkpointing == "auto" and is_short(found, free):
        found = needed(options, sizes, teacher, dtype, True, device)
    fits = found.peak <= _SAFE * free
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in found.parts.items() if size > 0.005 * GIB)
    verdict = "fits" if fits else f"does not fit; {_advice(options, found)}"
    lines = [
        f"needs about {found.peak / GIB:.1f} GiB on {device}, {free / GIB:.1f} GiB are free: {verdict}",
        f"training {found.training / GIB:.2f} GiB: {parts} ({found.dtype}, "
        f"{'with' if found.checkpointing else 'without'} gradient checkpointing, {found.trained:,} trained parameters)",
    ]
    if device != "cuda":
        lines.append(f"loading {found.loading / GIB:.2f} GiB, merging {found.merging / GIB:.2f} GiB")
    return Preview(found, device, free, fits, lines)


def told(options: TrainOptions) -> list[str]:
    """The preview's lines for `--dry-run`, which goes on where the student is not there yet."""
    try:
        return preview(options).lines
    except PillmError as error:
        return [f"memory: not known ({error.message})"]


def _advice(options: TrainOptions, found: Estimate) -> str:
    if found.peak > found.training:
        return "loading or merging alone needs more: try a smaller student, or a machine with more memory"
    ways = []
    if options.method == "full":
        ways.append("--method lora")
    elif options.base == "16bit":
        ways.append("--base nf4")
    if options.micro_tokens > 256:
        ways.append(f"--micro-tokens {max(256, options.micro_tokens // 4)}")
    if not found.checkpointing:
        ways.append("--gradient-checkpointing on")
    if "teacher" in found.parts:
        ways.append("a cache in the teacher's place (pillm logits)")
    return "try " + (", ".join(ways) or "a smaller student")


def _pruned(sizes: Sizes, init: str) -> Sizes:
    """Sizes after pruning, in proportion. Raises UsageError for what `init` cannot mean."""
    from pillm.train.shape import parse as parse_shape

    shape = parse_shape(init)
    if shape is None:
        return sizes
    layers = min(shape.layers or sizes.layers, sizes.layers)
    width, forward = shape.hidden or sizes.width, shape.ffn or sizes.feed_forward
    heads = shape.heads or sizes.heads
    depth = layers / sizes.layers
    a_layer = (heads / sizes.heads * (2 * sizes.width + 2 * sizes.key_value_width) * width + 3 * forward * width) / max(
        1, (2 * sizes.width + 2 * sizes.key_value_width) * sizes.width + 3 * sizes.feed_forward * sizes.width
    )
    linear = int(sizes.linear * depth * a_layer)
    other = int((sizes.parameters - sizes.linear) * width / sizes.width)
    return Sizes(
        linear + other, layers, width, forward, heads, sizes.key_value_width * heads // sizes.heads, sizes.vocabulary,
        linear, int(sizes.linear_ends * depth * (width + forward) / (sizes.width + sizes.feed_forward)),
    )  # fmt: skip


def _span(options: TrainOptions) -> int:
    """Keys that a query sees: half the tokens of a mean dialogue of the data, at four characters a token, or the default."""
    try:
        with data_path(options.data).open("rb") as file:
            lines = file.read(2**20).splitlines()[:200]
        texts = [sum(len(str(m.get("content") or "")) for m in json.loads(line)["messages"]) for line in lines[:-1]]
        tools = [len(json.dumps(json.loads(line).get("tools") or "")) for line in lines[:-1]]
        tokens = sum(map(sum, zip(texts, tools, strict=True))) / max(1, len(texts)) / 4
        return int(min(options.max_length, max(64, tokens)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PillmError):
        return _SPAN  # the training itself says what is wrong with the data


def _machine(options: TrainOptions) -> tuple[Literal["cpu", "cuda"], float, str]:
    """Device, its free bytes, and the arithmetic there."""
    gpu = _gpu() if options.device in ("auto", "cuda") else None
    fixed = options.dtype if options.dtype != "auto" else ""
    preset = bool(options.preset) and "dtype" not in options.model_fields_set
    if gpu:
        free, capability = gpu
        best = "bfloat16" if capability >= (8, 0) else "float16"
        return "cuda", free, best if not fixed or (preset and fixed == "bfloat16") else fixed
    best = "bfloat16" if "avx512_bf16" in read_fact("/proc/cpuinfo") else "float32"
    return "cpu", free_memory(), best if not fixed or preset else fixed


def _gpu() -> tuple[float, tuple[int, int]] | None:
    """Free bytes and compute capability of the first NVIDIA GPU, as its driver's tool says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    argv = [tool, "--query-gpu=memory.free,compute_cap", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout
        free, capability = said.splitlines()[0].split(",")
        major, _, minor = capability.strip().partition(".")
        return float(free) * 2**20, (int(major), int(minor))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
