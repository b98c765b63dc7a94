"""A teacher behind a llama-server: the top of each distribution, which is all that a server tells.

Each learned token is one request: the dialogue's tokens up to it, `n_predict` 1 and `n_probs` the top that is wanted.
Requests of one dialogue go to one slot one after the other, so that the server's prompt cache computes only what is
new. What is not in the top is missing, so the expectation is not the teacher's distribution: the cache is marked biased.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import numpy as np
import stamina
import stamina.instrumentation

from pillm.core.errors import NetworkError, UsageError
from pillm.core.events import Emit, Log
from pillm.logit_cache.rows import SMALLEST, Rows
from pillm.models import refs
from pillm.models.openai_server import Garbled, Patience, Refused, body_of, check_key, check_url, clean, pause
from pillm.train.dialogues import Encoded, Pack
from pillm.train.logits import plan as plans
from pillm.train.logits.options import LogitsOptions
from pillm.train.logits.run import Source
from pillm.train.logits.sampling import joined

KEPT = "finished shards are kept; run the same command again"


class _Top(msgspec.Struct):
    id: int
    logprob: float


class _Token(msgspec.Struct):
    top_logprobs: list[_Top]


class _Completion(msgspec.Struct):
    completion_probabilities: list[_Token]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Props(msgspec.Struct):
    total_slots: int = 1
    model_path: str | None = None
    build_info: str | None = None
    chat_template: str | None = None


class _Sizes(msgspec.Struct):
    """What depends on the model's file alone, not on how the server was started."""

    vocab_type: int | None = None
    n_vocab: int | None = None
    n_ctx_train: int | None = None
    n_embd: int | None = None
    n_params: int | None = None
    size: int | None = None


class _Model(msgspec.Struct):
    id: str
    meta: _Sizes | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Line(msgspec.Struct):
    """Where requests go, and from when on."""

    url: str
    key: str
    options: LogitsOptions
    vocabulary_size: int
    emit: Emit
    patience: Patience
    slots: int = 1


def source(options: LogitsOptions, emit: Emit) -> Source:
    """The server as a teacher. Raises UsageError for what a server cannot do, NetworkError if it does not answer."""
    if options.tokenizer is None:
        raise UsageError(
            "a teacher behind a server needs --tokenizer: training must know its vocabulary and chat template",
            "give the model whose tokenizer the server uses: --tokenizer hf:org/name, a folder or a .gguf",
        )
    if options.temperature != 1:
        raise UsageError(
            f"--temperature {options.temperature:g}: a server tells probabilities at temperature 1 only",
            "leave --temperature out, or run the teacher here",
        )
    url = check_url(options.teacher.strip()).removesuffix("/v1").rstrip("/")
    key = check_key(os.environ.get(options.api_key_env, ""), options.api_key_env)
    tokenizer = _tokenizer(options.tokenizer, emit)
    size = max(tokenizer.get_vocab().values()) + 1
    line = _Line(url, key, options, size, emit, Patience(emit))
    props, models = _run(_about(line))
    line.slots = max(1, props.total_slots)
    emit(Log(f"{url}: the server gives only the {options.top} likeliest tokens, so this cache is biased", "warning"))

    def prepare(work: plans.Plan) -> None:
        _run(_same_tokens(line, tokenizer, work.dialogues))

    def rows(work: plans.Plan, item: Pack) -> tuple[Rows, float]:
        found = _run(_dialogues(line, [work.dialogues[number] for number in item.dialogues]))
        return joined([row for dialogue in found for row in dialogue]), 0.0

    return Source(tokenizer, size, None, "server-top-k", "server", _identity(url, props, models), rows, prepare)


def _identity(url: str, props: _Props, models: _Models) -> str:
    """The address, and a hash of what the server says of its model.

    The address alone would let a killed run go on with the distributions of whatever runs behind it by then.
    """
    said = [props.model_path, props.build_info, props.chat_template, models.data]
    return f"{refs.identity(url)}#{hashlib.sha256(msgspec.json.encode(said)).hexdigest()}"


def _tokenizer(reference: str, emit: Emit) -> Any:
    from transformers import AutoTokenizer

    from pillm.train import student

    path = refs.resolve(reference, emit)
    if path.is_file():
        return student.load(path, student.torch.float32)[1]
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, LookupError) as error:
        raise UsageError(f"{path}: no tokenizer can be read here ({error})", "give a whole model folder") from error


def _run(work: Any) -> Any:
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _client(line: _Line) -> httpx.AsyncClient:
    # Nothing but events may be shown.
    stamina.instrumentation.set_on_retry_hooks([])
    headers = {"Authorization": f"Bearer {line.key}"} if line.key else {}
    timeout = httpx.Timeout(line.options.timeout, connect=min(10.0, line.options.timeout))
    return httpx.AsyncClient(headers=headers, timeout=timeout)


async def _about(line: _Line) -> tuple[_Props, _Models]:
    """What the server says of itself and of its model."""
    async with _client(line) as client:
        props = await _ask(line, client, "GET", "/props", None, lambda data: msgspec.json.decode(data, type=_Props))
        models = await _ask(
            line, client, "GET", "/v1/models", None, lambda data: msgspec.json.decode(data, type=_Models)
        )
    return props, models


async def _same_tokens(line: _Line, tokenizer: Any, dialogues: list[Encoded]) -> None:
    """Compare the server's tokens with ours on the text of a few dialogues. Raises UsageError where they differ."""
    async with _client(line) as client:
        for item in dialogues[:: max(1, len(dialogues) // 4)][:4]:
            text = tokenizer.decode(item.ids, skip_special_tokens=False)
            ours = tokenizer(text, add_special_tokens=False).input_ids
            body = {"content": text, "add_special": False, "parse_special": True}
            read = lambda data: msgspec.json.decode(data, type=_Tokens)  # noqa: E731
            theirs = (await _ask(line, client, "POST", "/tokenize", body, read)).tokens
            if theirs != ours:
                at = next(
                    (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                    min(len(ours), len(theirs)),
                )
                raise UsageError(
                    f"{line.url}: the server's tokenizer is not that of {line.options.tokenizer}: at token {at} of a "
                    f"dialogue it has {theirs[at : at + 1]}, and we have {ours[at : at + 1]}",
                    "give --tokenizer the model that the server runs",
                )  # fmt: skip


async def _dialogues(line: _Line, dialogues: list[Encoded]) -> list[list[Rows]]:
    """The rows of some dialogues, as many at a time as the server has slots."""
    results: list[list[Rows]] = [[] for _ in dialogues]
    todo = iter(enumerate(dialogues))

    async with _client(line) as client:

        async def work(slot: int) -> None:
            for number, item in todo:
                for place in range(1, len(item.ids)):
                    if item.learned[place]:
                        results[number].append(await _token(line, client, item.ids[:place], slot))

        async with asyncio.TaskGroup() as group:
            for slot in range(min(line.slots, line.options.concurrency, len(dialogues))):
                group.create_task(work(slot))
    return results


async def _token(line: _Line, client: httpx.AsyncClient, prompt: list[int], slot: int) -> Rows:
    wanted = min(line.options.top, line.vocabulary_size)
    body = {"prompt": prompt, "n_predict": 1, "n_probs": wanted, "cache_prompt": True, "id_slot": slot,
            "temperature": 1.0, "post_sampling_probs": False}  # fmt: skip
    return await _ask(
        line, client, "POST", "/completion", body, lambda data: read_top(data, wanted, line.vocabulary_size)
    )


def read_top(data: bytes, wanted: int, vocabulary_size: int) -> Rows:
    """One token's row from the answer to /completion. Raises ValueError if it is not what was asked for."""
    tokens = msgspec.json.decode(data, type=_Completion).completion_probabilities
    if len(tokens) != 1:
        raise ValueError(f"it has probabilities of {len(tokens)} tokens instead of 1")
    top = tokens[0].top_logprobs
    if len(top) < wanted:
        raise ValueError(f"it has {len(top)} of {wanted} probabilities; does the server limit n_probs?")
    ids = np.array([entry.id for entry in top[:wanted]], np.int64)
    p = np.exp(np.minimum([entry.logprob for entry in top[:wanted]], 1.0))
    if ids.min() < 0 or ids.max() >= vocabulary_size or len(set(ids.tolist())) != len(ids):
        raise ValueError("it has token ids that are not in the vocabulary, or one twice")
    if not np.isfinite(p).all() or p.sum() > 1.01:
        raise ValueError(f"its probabilities sum to {p.sum():.3f}")
    kept = p >= SMALLEST
    count, none = np.array([kept.sum()]), np.zeros(0, np.int64)
    mass = np.array([max(0.0, 1 - p[kept].sum())])
    return Rows(count, np.zeros(1, np.int64), mass, p[kept], ids[kept], none)


async def _ask(
    line: _Line, client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None, read: Callable[[bytes], Any]
) -> Any:  # fmt: skip
    """One request with its retries. Raises NetworkError, which says what the server did."""
    where = line.url + path
    try:
        async for attempt in stamina.retry_context(
            on=line.patience.again,
            attempts=line.options.attempts,
            timeout=None,
            wait_initial=0.3,
            wait_max=20,
            wait_jitter=0.3,
        ):
            with attempt:
                data = await _once(line, client, method, where, body)
                try:
                    return read(data)
                except (ValueError, ArithmeticError, RecursionError) as error:
                    raise Garbled(f"not the answer of a llama-server: {error}") from None
    except Refused as error:
        hint = f"put the server's key into ${line.options.api_key_env}" if error.status in (401, 403) else KEPT
        if error.status == 404:
            hint = "is this a llama-server? other servers do not tell distributions of given tokens"
        if error.status == 429:
            hint = f"lower --concurrency or raise --attempts; {KEPT}"
        raise NetworkError(f"{where}: {clean(str(error), line.key)}", hint) from None
    except Garbled as error:
        said = clean(str(error), line.key)
        raise NetworkError(f"{where}: {said}", f"the teacher must be a llama-server; {KEPT}") from None
    except (TimeoutError, httpx.ReadTimeout):
        message = f"{where}: no answer within {line.options.timeout:g} s (--timeout)"
        raise NetworkError(message, f"raise --timeout or lower --concurrency; {KEPT}") from None
    except httpx.HTTPError as error:
        said = clean(str(error), line.key) or "it was cut"
        what = (
            "cannot be reached"
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            else "the connection failed"
        )
        raise NetworkError(f"{where}: {what} ({said})", f"is the server running? {KEPT}") from None
    raise AssertionError("a retry context returns or raises")


async def _once(line: _Line, client: httpx.AsyncClient, method: str, where: str, body: dict[str, Any] | None) -> bytes:
    await line.patience.turn()
    async with asyncio.timeout(line.options.timeout), client.stream(method, where, json=body) as response:
        data = await body_of(response)
    if not response.is_success:
        text = " ".join(data.decode("utf-8", "replace").split())[:200]
        wait = pause(response)
        asks = f", and asks for {wait:.0f} s of pause" if wait else ""
        said = f"the server says {response.status_code}{asks}" + (f": {text}" if text else "")
        raise Refused(said, response.status_code, wait)
    return data
