"""A teacher in this process: transformers, in batches of prompts of like length.

Prompts are sorted by length (the longest first, so that a batch that does not fit in memory shows at
the start) and padded on the left. Memory: the weights, and for each token of a batch's prompts and
answers 2 x layers x key-value width x 2 bytes of cache; a batch that does not fit is halved.

At temperature 0 an answer is the likeliest token at each step. Above 0 each row draws with a generator
of its own seed (Gumbel-max trick: argmax(logits / T + g) with g ~ Gumbel(0, 1) is a draw from
softmax(logits / T); Maddison et al. 2014, https://arxiv.org/abs/1411.0030, section 2), so that a
prompt's answer does not depend on its neighbours in the batch. Arithmetic does, in the last bits:
padding and batch size choose other kernels, which can tip a near tie, in bfloat16 more often than in
float32.

There is no grammar here: a schema is shown to the teacher in the system message, and the answer is checked.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pillm.core.errors import MissingError, ResourceError, UsageError
from pillm.core.events import Emit, Log, Progress
from pillm.core.records import Message, Record
from pillm.models.chat import ChatTemplate, load_template
from pillm.teach.ask import Ask, Backend, Call, Deliver, Reason, Reply, Sampling

if TYPE_CHECKING:
    import torch

SCHEMA_WORDS = "Answer with JSON only, without any other text. The JSON must fit this schema: "
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
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)


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
        # Reading a GGUF file draws a progress bar that no setting of transformers turns off.
        with contextlib.redirect_stderr(io.StringIO()):
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


def backend(teacher: Teacher, batch_size: int, emit: Emit) -> Backend:
    """Answers in batches of at most `batch_size` prompts."""
    size = batch_size

    def answer(asks: Sequence[Ask], deliver: Deliver) -> None:
        nonlocal size
        ready: list[tuple[Ask, list[int]]] = []
        for ask in asks:
            ids, failure = _prompt(teacher, ask)
            if failure:
                deliver([(ask, Reply(failure=failure, lasting=True))])
            else:
                ready.append((ask, ids))
        ready.sort(key=lambda item: -len(item[1]))
        while ready:
            batch = ready[:size]
            try:
                replies = _generate(teacher, batch, emit)
            except (RuntimeError, MemoryError) as error:
                if not _is_memory(error):
                    raise
                if len(batch) == 1:
                    raise ResourceError(
                        "not even one prompt at a time fits in memory", "take a smaller teacher, or a GGUF file of it"
                    ) from None
                size = len(batch) // 2
                emit(Log(f"a batch of {len(batch)} does not fit in memory; going on with {size}", "warning"))
                _empty_cache()
                continue
            deliver([(ask, reply) for (ask, _), reply in zip(batch, replies, strict=True)])
            ready = ready[len(batch) :]

    return answer


def _prompt(teacher: Teacher, ask: Ask) -> tuple[list[int], Reason | None]:
    """Token ids of the prompt, or why it cannot be asked."""
    record = ask.record
    tools = record.tools if teacher.template.knows_tools else ()
    try:
        text = teacher.template.render(_with_schema(record), tools, add_generation_prompt=True)
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


def _with_schema(record: Record) -> tuple[Message, ...]:
    if record.response_schema is None:
        return record.messages
    words = SCHEMA_WORDS + json.dumps(record.response_schema, ensure_ascii=False)
    first, rest = record.messages[0], record.messages[1:]
    if first.role in ("system", "developer"):
        return (msgspec.structs.replace(first, content=f"{first.content}\n\n{words}"), *rest)
    return (Message("system", words), *record.messages)


def _generate(teacher: Teacher, batch: Sequence[tuple[Ask, list[int]]], emit: Emit) -> list[Reply]:
    import torch
    import transformers

    longest = max(len(ids) for _, ids in batch)
    most = max(ask.sampling.max_tokens for ask, _ in batch)
    device = teacher.model.device
    padded = torch.full((len(batch), longest), teacher.pad, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, (_, ids) in enumerate(batch):
        padded[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = 1
    draw = _drawer([ask.sampling for ask, _ in batch], most, emit)
    with torch.inference_mode():
        output = teacher.model.generate(
            input_ids=padded.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=list(teacher.ends),
            pad_token_id=teacher.pad,
            logits_processor=transformers.LogitsProcessorList([draw]),
        )
    rows = output[:, longest:].tolist()
    return [_reply(teacher, ids, len(prompt), ask.record) for ids, (ask, prompt) in zip(rows, batch, strict=True)]


def _drawer(samplings: Sequence[Sampling], most: int, emit: Emit) -> Callable[[Any, Any], Any]:
    """A logits processor, [batch, vocabulary] to the same, after which argmax is a draw from each row's sampling."""
    import torch

    generators = [torch.Generator().manual_seed(sampling.seed) for sampling in samplings]
    began = told = time.monotonic()
    step = 0

    def draw(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nonlocal step, told
        step += 1
        if (now := time.monotonic()) - told > 1 and now - began > 2:
            told = now
            emit(Progress("batch", step, most, "tokens"))
        if all(sampling.temperature == 0 for sampling in samplings):
            return scores
        scores = scores.float().clone()
        for row, (sampling, generator) in enumerate(zip(samplings, generators, strict=True)):
            if sampling.temperature > 0:
                logits = _nucleus(scores[row] / sampling.temperature, sampling.top_p)
                noise = torch.empty(len(logits)).exponential_(generator=generator)
                scores[row] = logits - noise.log().to(logits.device)
        return scores

    return draw


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Logits [vocabulary] with -inf outside the smallest set of tokens that holds `top_p` of the mass."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(descending=True)
    mass = ordered.softmax(-1)
    outside = order[mass.cumsum(-1) - mass >= top_p]
    return logits.index_fill(0, outside, float("-inf"))


def _reply(teacher: Teacher, ids: list[int], tokens_in: int, record: Record) -> Reply:
    end = next((place for place, token in enumerate(ids) if token in teacher.ends), None)
    text = teacher.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    content, calls = parse(text, {tool.function.name for tool in record.tools})
    tokens_out = len(ids) if end is None else end + 1
    finish = "length" if end is None else "stop"
    return Reply(content, calls, finish, tokens_in, tokens_out)


def parse(text: str, tools: Set[str]) -> tuple[str, tuple[Call, ...]]:
    """Content and tool calls of what a model wrote; `tools` are the declared names.

    Read are calls in the Hermes form (`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`), and an
    answer that is nothing but such an object with a declared name, as Llama 3 writes it. A thinking
    model's thoughts and the fence around an answer that is one block of code are left out.
    """
    text = _THOUGHT.sub("", text).strip()
    calls = [_call(body) for body in _CALL.findall(text)]
    if calls:
        # What is no JSON stays a call, so that the answer is rejected for its arguments.
        rest = _CALL.sub("", text).strip()
        return rest, (*calls, Call("", rest)) if "tool_call>" in rest else tuple(calls)
    if "<tool_call>" in text:
        return "", (Call("", text),)
    if text.startswith("{") and (call := _call(text)).name in tools:
        return "", (call,)
    if fenced := _FENCE.match(text):
        return fenced[1].strip(), ()
    return text, ()


def _call(body: str) -> Call:
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return Call("", body)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return Call("", body)
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None:
        return Call("", body)
    return Call(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def _is_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
