"""A teacher in this process: transformers, in batches of prompts of like length.

Prompts are sorted by length (the longest first, so that a batch that does not fit in memory shows at
the start). What they share at their beginning is computed and kept once (`slots`), finished answers leave
their batch at once and waiting prompts take their places (`generation`). Memory: the weights, and for each
token of a batch's prompts and answers 2 x layers x key-value width x 2 bytes of cache (4 in float32); a
batch that does not fit is halved.

A prompt's answer does not depend on its neighbours in the batch (`sampling`), except for arithmetic, in the
last bits: another batch chooses other kernels, which can tip a near tie, in bfloat16 more often than in
float32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from pillm.core.errors import MissingError, ResourceError, UsageError
from pillm.core.events import Emit, Log
from pillm.models.chat import ChatTemplate, load_template
from pillm.models.quiet import no_bars
from pillm.teach import batches
from pillm.teach.ask import Ask, Backend, Deliver, Reason, Reply, with_schema
from pillm.teach.parsing import parse

if TYPE_CHECKING:
    import torch

    from pillm.teach.generation import Made

MOST_ROWS = {"cpu": 32, "mps": 32, "cuda": 128}
"""Largest batch that is chosen by itself: beyond, a step takes as much longer as it does more."""

# What readers of weights, configurations and GGUF files raise on a file that is cut short or is something else.
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    ImportError,
    RuntimeError,
    struct.error,
)
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")


class Teacher(msgspec.Struct, frozen=True):
    """A loaded model: `ends` are the ids of tokens that end a turn, `limit` is in tokens."""

    model: Any
    tokenizer: Any
    template: ChatTemplate
    ends: tuple[int, ...]
    pad: int
    limit: int


def load(path: Path, chat_template: str, emit: Emit) -> Teacher:
    """Load a folder or a GGUF file, in bfloat16 where the hardware has it.

    `chat_template` is "model" for the model's own, a shipped template's name or a Jinja file. Raises
    UsageError (no model, no template) or MissingError (the extra is not installed).
    """
    try:
        import torch
        import transformers
        from safetensors import SafetensorError
    except ImportError:
        raise MissingError(
            "the transformers backend needs torch and transformers",
            "run: pip install 'pi-llm-optimizer[train]', or give a .gguf file or a server as teacher",
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device, dtype = _hardware(torch)
    emit(Log(f"loading {path.name} on {device} in {str(dtype).removeprefix('torch.')}", "info"))
    where = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    try:
        with no_bars():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where)
    except (*_UNREADABLE, SafetensorError) as error:
        if _is_memory(error):
            raise ResourceError(
                f"{path}: the teacher does not fit in memory", "take a smaller or quantized one"
            ) from None
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"{path}: transformers cannot load this model ({reason})", "check the file") from None
    model.to(device).eval()
    ends = _ends(model, tokenizer)
    if not ends:
        raise UsageError(f"{path}: the tokenizer names no token that ends an answer", "take an instruct model")
    # The model's own habits (a temperature, a penalty) must not come on top of what was asked for.
    model.generation_config = transformers.GenerationConfig()
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    return Teacher(model, tokenizer, _template(path, tokenizer, chat_template), ends, pad, int(limit))


def _hardware(torch: Any) -> tuple[str, torch.dtype]:
    if torch.cuda.is_available():
        return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if torch.backends.mps.is_available():
        return "mps", torch.float16
    # Without these instructions bfloat16 on a CPU is emulated, and slower than float32.
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "cpu", torch.bfloat16 if fast else torch.float32


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    known = [configured] if isinstance(configured, int) else list(configured or [])
    known += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    vocabulary = tokenizer.get_added_vocab()
    return tuple(dict.fromkeys([*known, *(vocabulary[token] for token in _TURN_ENDS if token in vocabulary)]))


def _template(path: Path, tokenizer: Any, name: str) -> ChatTemplate:
    if name != "model":
        source = load_template(name)
    elif isinstance(own := tokenizer.chat_template, dict):
        source = own.get("tool_use") or own.get("default") or ""
    else:
        source = own or ""
    if not source:
        raise UsageError(
            f"{path}: this model has no chat template, so it cannot be asked", "give one with --chat-template"
        )
    return ChatTemplate(source, str(tokenizer.bos_token or ""), str(tokenizer.eos_token or ""))


def backend(teacher: Teacher, batch_size: int, emit: Emit, structured: str = "auto") -> Backend:
    """Answers in batches of at most `batch_size` prompts; 0 chooses from free memory.

    With `structured` "auto" an answer to a schema is held to it by a grammar where there is one.
    """
    from pillm.teach import generation, grammar, slots

    shares = slots.use(teacher.model)
    if not shares:
        emit(Log("this model's attention is not plain: batches are answered as they are, beginnings are not shared"))
    matcher = grammar.maker(teacher.tokenizer, teacher.ends, emit) if structured == "auto" else lambda _: None
    most = batch_size

    def answer(asks: Sequence[Ask], deliver: Deliver) -> None:
        nonlocal most
        ready: list[tuple[Ask, list[int]]] = []
        for ask in asks:
            ids, failure = _prompt(teacher, ask)
            if failure:
                deliver([(ask, Reply(failure=failure, lasting=True))])
            else:
                ready.append((ask, ids))
        while ready:
            size = most or _fitting(teacher, ready)
            done: set[int] = set()
            try:
                for prompts, shared in batches.groups(ready, size):
                    made = (
                        generation.by_slots(teacher, prompts, shared, size, matcher, emit)
                        if shares
                        else generation.by_generate(teacher, prompts, size, matcher, emit)
                    )
                    _deliver(teacher, made, done, deliver)
                return
            except (RuntimeError, MemoryError) as error:
                if not _is_memory(error):
                    raise
            rows = min(size, len(ready) - len(done))
            if rows == 1:
                raise ResourceError(
                    "not even one prompt at a time fits in memory", "take a smaller teacher, or a GGUF file of it"
                ) from None
            most = rows // 2
            emit(Log(f"a batch of {rows} does not fit in memory; going on with {most}", "warning"))
            _empty_cache()
            ready = [item for item in ready if id(item[0]) not in done]

    return answer


def _prompt(teacher: Teacher, ask: Ask) -> tuple[list[int], Reason | None]:
    """Token ids of the prompt, or why it cannot be asked."""
    record = ask.record
    tools = record.tools if teacher.template.knows_tools else ()
    try:
        text = teacher.template.render(with_schema(record), tools, add_generation_prompt=True)
    except UsageError as error:
        return [], Reason("template", error.message)
    # The template writes the special tokens itself.
    ids = teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) + ask.sampling.max_tokens > teacher.limit:
        return ids, Reason(
            "too-long",
            f"the prompt is too long: {len(ids)} tokens and {ask.sampling.max_tokens} for the answer "
            f"do not fit in the model's context of {teacher.limit}",
        )
    return ids, None


def _deliver(teacher: Teacher, made: Iterable[list[Made]], done: set[int], deliver: Deliver) -> None:
    for finished in made:
        deliver([(item.ask, _reply(teacher, item)) for item in finished])
        done.update(id(item.ask) for item in finished)


def _reply(teacher: Teacher, made: Made) -> Reply:
    ids = made.tokens
    ended = bool(ids) and ids[-1] in teacher.ends
    text = teacher.tokenizer.decode(
        ids[:-1] if ended else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    content, calls = parse(text, {tool.function.name for tool in made.ask.record.tools})
    finish = "stop" if ended else "length"
    return Reply(content, calls, finish, made.tokens_in, len(ids), logprob=made.logprob / max(1, len(ids)))


def _fitting(teacher: Teacher, prompts: Sequence[tuple[Ask, list[int]]]) -> int:
    """Prompts at a time that fit into half of the free memory, from what a token's keys and values take."""
    import torch

    model, config = teacher.model, teacher.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * next(model.parameters()).element_size()
    # The stores of a batch are copied once when they grow; logits are a few float32 copies.
    longest = max(len(ids) + ask.sampling.max_tokens for ask, ids in prompts)
    row = 2 * longest * token + 4 * 4 * config.vocab_size
    kind = model.device.type
    free = torch.cuda.mem_get_info()[0] if kind == "cuda" else psutil.virtual_memory().available
    return max(1, min(MOST_ROWS.get(kind, 32), int(free / 2 / row)))


def _is_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
