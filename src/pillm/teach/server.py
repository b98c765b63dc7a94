"""A teacher behind an OpenAI-compatible server: many requests in flight, patient with a busy server.

What ends the run (a NetworkError; all answers so far are in the journal): a key that is not
accepted, an address that is not there, a server that cannot be reached or stays busy, and many
failed prompts in a row. What concerns one prompt alone (it is too long, the server refuses it, or
fails on it again and again) is a reply with a failure, and the others go on.

With temperature 0 the same server gives the same answer to a prompt as far as its arithmetic does not
depend on what else is in its batch. llama-server's prompt cache does change the arithmetic (part of the
prompt is then computed in another batch): with it 297 of 300 answers were the same with one and with
sixteen requests at once. `--no-prompt-cache` switches it off for a server that is our own; on a CPU
12 answers of 40 tokens were then all the same with one and with four slots. GPUs and other servers
promise nothing. With a temperature above 0 the seed is sent, and what it fixes is the server's business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import msgspec
import stamina
import stamina.instrumentation

from pillm.core.errors import NetworkError, UsageError
from pillm.core.events import Emit, Log
from pillm.core.records import plain
from pillm.models.openai_server import Garbled, Patience, Refused, body_of, clean, pause
from pillm.teach import wire
from pillm.teach.ask import Ask, Backend, Deliver, Reason, Reply

FAILURES_IN_A_ROW = 8


class Endpoint(msgspec.Struct, frozen=True):
    """A server: `url` ends before `/chat/completions`; `key` may be empty; `timeout` in seconds an answer."""

    url: str
    key: str
    key_place: str
    timeout: float
    tries: int
    concurrency: int
    extra: dict[str, object] = {}
    own: bool = False
    """Started by us: no proxy is between."""


@dataclass
class Counts:
    """What was sent in this run."""

    requests: int = 0
    retries: int = 0


class _Refused(Refused):
    """With the kind and the words of the server's own error."""

    def __init__(self, status: int, kind: str, message: str, wait: float | None) -> None:
        super().__init__(f"{status}: {message}" if message else str(status), status, wait)
        self.kind, self.message = kind, message


@dataclass
class _Line:
    """The connection's state, shared by all requests in flight."""

    endpoint: Endpoint
    counts: Counts
    emit: Emit
    how: wire.How = wire.How()  # noqa: RUF009
    client: httpx.AsyncClient = field(init=False)
    patience: Patience = field(init=False)
    failures: int = 0
    renamed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.patience = Patience(self.emit)


def first_model(endpoint: Endpoint, emit: Emit) -> str:
    """The first model that the server lists. Raises NetworkError, or UsageError if it lists none."""

    async def ask() -> bytes:
        line = _Line(endpoint, Counts(), emit)
        async with _client(endpoint) as line.client:
            return await _patiently(line, "GET", "/models", None)

    try:
        listed = wire.models(asyncio.run(ask()))
    except (msgspec.MsgspecError, UnicodeDecodeError, Garbled):
        listed = []
    except (_Refused, httpx.HTTPError, TimeoutError) as error:
        raise NetworkError(f"{endpoint.url}/models: {_why(error, endpoint)}", "is the server healthy?") from None
    if not listed:
        raise UsageError(
            f"{endpoint.url}/models: the server lists no model", "name one with --model-name, and check the address"
        )
    return listed[0]


class Properties(msgspec.Struct, frozen=True):
    """What a llama-server says of itself: its chat template, and whether that shows declared tools to the model."""

    chat_template: str = ""
    knows_tools: bool = True


def properties(endpoint: Endpoint) -> Properties:
    """Ask the server; no template, and True, where it does not say (no other server knows this address)."""
    try:
        with httpx.Client(trust_env=not endpoint.own, timeout=min(endpoint.timeout, 10.0)) as client:
            headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
            props = client.get(endpoint.url.removesuffix("/v1") + "/props", headers=headers).json()
        template = props.get("chat_template") or ""
        knows = props.get("chat_template_caps", {}).get("supports_tools", True)
        return Properties(template if isinstance(template, str) else "", bool(knows))
    except (httpx.HTTPError, ValueError, AttributeError, TypeError, RecursionError):
        return Properties()


def backend(endpoint: Endpoint, model: str, counts: Counts, emit: Emit, how: wire.How = wire.How()) -> Backend:  # noqa: B008
    """Answers by requests to the server, `endpoint.concurrency` of them in flight."""

    def answer(asks: Sequence[Ask], deliver: Deliver) -> None:
        try:
            asyncio.run(_answer(_Line(endpoint, counts, emit, how), model, asks, deliver))
        except BaseExceptionGroup as group:
            raise _first(group) from None

    return answer


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _client(endpoint: Endpoint) -> httpx.AsyncClient:
    # Retries are counted by `_patiently`, and nothing but events may be shown.
    stamina.instrumentation.set_on_retry_hooks([])
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx.Limits(max_connections=endpoint.concurrency)
    # The whole answer has a limit of its own; connecting takes no longer than 10 s anywhere.
    timeout = httpx.Timeout(endpoint.timeout, connect=min(10.0, endpoint.timeout))
    return httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout, trust_env=not endpoint.own)


async def _answer(line: _Line, model: str, asks: Sequence[Ask], deliver: Deliver) -> None:
    lanes = _lanes(asks, line.endpoint.concurrency)

    async def work(lane: deque[Ask]) -> None:
        while lane:
            ask = lane.popleft()
            deliver([(ask, await _ask(line, model, ask))])
            if not lane and (longest := max(lanes, key=len)):
                lane.append(longest.pop())

    async with _client(line.endpoint) as line.client, asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(work(lane))


def _lanes(asks: Sequence[Ask], count: int) -> list[deque[Ask]]:
    """One queue for each request in flight, neighbours in it with as much of their beginning in common as can be.

    A server with a cache for each of its slots gives a free slot to the request that comes next. With every slot
    busy that is the one whose answer is just done, so a lane keeps to its slot, and what the prompts share (often
    the system message and the tools, and that is most of a prompt) is read once a lane.
    """
    ordered = sorted(asks, key=lambda ask: msgspec.json.encode((plain(ask.record.tools), wire.messages(ask.record))))
    count = min(count, len(ordered))
    return [deque(ordered[len(ordered) * k // count : len(ordered) * (k + 1) // count]) for k in range(count)]


async def _ask(line: _Line, model: str, ask: Ask) -> Reply:
    """One prompt's answer, or its failure."""
    try:
        sent, how = dict(line.renamed), line.how
        try:
            reply = await _complete(line, model, ask, sent)
        except _Refused as error:
            if error.status in (400, 422) and how.logprobs and "logprobs" in error.message:
                _without_logprobs(line)
                return await _ask(line, model, ask)
            # Newer servers know the limit by another name only, and say so. Another request may have learned that
            # while this one was under way, so what counts is what this one sent.
            if error.status != 400 or "max_completion_tokens" not in error.message or sent:
                raise
            line.renamed["max_tokens"] = "max_completion_tokens"
            reply = await _complete(line, model, ask, line.renamed)
    except _Refused as error:
        if error.status in (400, 413, 422) and _too_long(error):
            line.failures = 0
            return Reply(failure=Reason("too-long", f"the prompt is too long: {error.message}"), lasting=True)
        return _failed(line, error)
    except (Garbled, httpx.HTTPError, TimeoutError) as error:
        return _failed(line, error)
    line.failures = 0
    return reply


def _without_logprobs(line: _Line) -> None:
    """Ask for no log-probabilities from now on: some servers know none, and refuse the whole request."""
    if line.how.logprobs:
        line.how = msgspec.structs.replace(line.how, logprobs=False)
        line.emit(Log("the server tells no log-probabilities, so --best-of chooses without them", "warning"))


async def _complete(line: _Line, model: str, ask: Ask, renamed: dict[str, str]) -> Reply:
    body = wire.request(ask, model, line.endpoint.extra, line.how)
    body = {renamed.get(name, name): value for name, value in body.items()}
    return wire.reply(await _patiently(line, "POST", "/chat/completions", body))


async def _patiently(line: _Line, method: str, path: str, body: dict[str, object] | None) -> bytes:
    """One request with its retries. Raises NetworkError where no request can succeed, else the last error."""
    endpoint = line.endpoint
    try:
        async for attempt in stamina.retry_context(
            on=line.patience.again,
            attempts=endpoint.tries,
            timeout=None,
            wait_initial=0.5,
            wait_max=30,
            wait_jitter=0.5,
        ):
            with attempt:
                line.counts.requests += 1
                line.counts.retries += attempt.num > 1
                return await _once(line, method, path, body)
    except _Refused as error:
        _give_up(endpoint, path, error)
        raise
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise NetworkError(
            f"{endpoint.url}: cannot be reached ({_why(error, endpoint)})",
            "is the server running, and is the address right? answers so far are kept; run the same command again",
        ) from None
    raise AssertionError("a retry context returns or raises")


async def _once(line: _Line, method: str, path: str, body: dict[str, object] | None) -> bytes:
    await line.patience.turn()
    async with (
        asyncio.timeout(line.endpoint.timeout),
        line.client.stream(method, line.endpoint.url + path, json=body) as response,
    ):
        data = await body_of(response)
    if not response.is_success:
        kind, message = wire.error_message(data)
        if response.is_redirect:
            message = f"it redirects to {response.headers.get('location', 'nowhere')}"
        raise _Refused(response.status_code, kind, clean(message, line.endpoint.key), pause(response))
    if method == "POST":
        try:
            wire.reply(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Garbled(f"not a chat completion ({error})") from None
    return data


def _give_up(endpoint: Endpoint, path: str, error: _Refused) -> None:
    """Raise NetworkError for a refusal that every prompt would get."""
    said = f": {error.message}" if error.message else ""
    kept = "answers so far are kept; run the same command again"
    if error.status == 401:
        state = "is not accepted" if endpoint.key else "is missing"
        message, hint = f"the key {state} (401){said}", f"put the server's key into ${endpoint.key_place}"
    elif error.status == 403:
        message, hint = f"the server denies access (403){said}", "ask who runs it for access to this model"
    elif error.status == 404:
        message = f"not found (404){said}"
        hint = "check the address (most end in /v1) and --model-name"
    elif error.status == 402:
        message, hint = f"the account's credit is used up (402){said}", kept
    elif error.status == 429:
        wait = f", and asks for {error.wait:.0f} s of pause" if error.wait else ""
        message = f"too many requests (429){wait}{said}"
        hint = f"lower --concurrency or raise --attempts; {kept}"
    elif 300 <= error.status < 400:
        message, hint = error.message, "give that address"
    else:
        return
    raise NetworkError(f"{endpoint.url}{path}: {message}", hint)


def _failed(line: _Line, error: Exception) -> Reply:
    """A reply for a prompt whose request failed; raises NetworkError if that happens again and again."""
    why = _why(error, line.endpoint)
    line.failures += 1
    if line.failures >= max(FAILURES_IN_A_ROW, 2 * line.endpoint.concurrency):
        raise NetworkError(
            f"{line.endpoint.url}: {line.failures} prompts in a row failed, the last one so: {why}",
            "look at the server's log; answers so far are kept; run the same command again",
        )
    return Reply(failure=Reason("failed", f"the request failed: {why}"), passing=True)


def _why(error: Exception, endpoint: Endpoint) -> str:
    if isinstance(error, _Refused):
        return f"the server says {error}"
    if isinstance(error, Garbled):
        return clean(str(error), endpoint.key)
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no answer within {endpoint.timeout:g} s (--timeout)"
    return clean(str(error), endpoint.key) or "the connection was cut"


def _too_long(error: _Refused) -> bool:
    text = f"{error.kind} {error.message}".lower()
    return "exceed_context" in text or "context_length" in text or "context length" in text or "context size" in text
