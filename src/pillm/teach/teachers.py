"""Who answers: from the options to a teacher that can be asked. Nothing is loaded before it is needed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from pillm.core.errors import UsageError
from pillm.core.events import Emit
from pillm.llamacpp import gguf_file
from pillm.models import refs
from pillm.models.chat import load_template
from pillm.models.openai_server import check_key, check_url
from pillm.teach.ask import Backend
from pillm.teach.options import LabelOptions
from pillm.teach.server import Counts, Endpoint, backend, first_model, properties
from pillm.teach.wire import How


class Hired(msgspec.Struct, frozen=True):
    """A teacher at work. `counts` is None in process; `knows_tools` is True where nobody can know.

    `template` is the sha256 of its chat template, or empty.
    """

    backend: Backend
    counts: Counts | None
    knows_tools: bool
    template: str = ""


class Teacher(msgspec.Struct, frozen=True):
    """A teacher by name: `identity` and `settings` are what its answers depend on, apart from the prompt.

    `template` is the sha256 of its chat template as far as that is known before it is hired.
    """

    identity: str
    backend: str
    settings: dict[str, object]
    hire: Callable[[Emit], AbstractContextManager[Hired]]
    template: str = ""


def choose(options: LabelOptions, emit: Emit) -> Teacher:
    """The teacher that the options name; resolves (and fetches) its weights, but loads nothing.

    Raises UsageError where backend and teacher do not fit each other.
    """
    is_url = options.teacher.strip().lower().startswith(("http://", "https://"))
    if is_url != (options.backend == "openai") and options.backend != "auto":
        if is_url:
            raise UsageError(
                f"the backend {options.backend} cannot use a server's address",
                "use --backend openai, or name the model's files",
            )
        raise UsageError(f"{options.teacher}: not the address of a server", "write it as http://host:port/v1")
    settings: dict[str, object] = {
        name: getattr(options, name) for name in ("max_tokens", "temperature", "top_p", "seed")
    }
    # What is new is named only where it is not the default: answers in older journals stay those of their settings.
    if options.structured != "auto":
        settings["structured"] = options.structured
    if is_url:
        if options.chat_template != "model":
            raise UsageError("a server has its own chat template", "leave --chat-template out")
        return _by_address(options, settings, emit)
    template = ""
    if options.chat_template != "model":
        source = load_template(options.chat_template)
        settings["chat_template"] = template = _sha256(source)
    path = refs.resolve(options.teacher, emit)
    identity = refs.identity(options.teacher)
    is_gguf = path.suffix == ".gguf"
    if options.backend == "llama-server" and not is_gguf:
        raise UsageError(
            f"{options.teacher}: llama-server needs a GGUF file",
            "use --backend transformers, or convert it: pillm export",
        )
    if is_gguf and options.chat_template == "model":
        # llama-server would go on with a template of its own choice.
        if not (source := gguf_file.describe(path).chat_template):
            raise UsageError(
                f"{path}: this model has no chat template, so it cannot be asked", "give one with --chat-template"
            )
        template = _sha256(source)
    if options.backend == "llama-server" or (options.backend == "auto" and is_gguf):
        settings["context"] = options.context
        if not options.prompt_cache:
            settings["prompt_cache"] = False
        return Teacher(identity, "llama-server", settings, lambda emit: _own_server(options, path, emit), template)
    return Teacher(identity, "transformers", settings, lambda emit: _in_process(options, path, emit), template)


def _by_address(options: LabelOptions, settings: dict[str, object], emit: Emit) -> Teacher:
    url = check_url(options.teacher.strip())
    place = options.api_key_env
    key = check_key(os.environ.get(place, ""), place)
    endpoint = Endpoint(url, key, place, options.timeout, options.attempts, options.concurrency)
    counts = Counts()
    name = options.model_name or first_model(endpoint, emit)

    def hire(_: Emit) -> AbstractContextManager[Hired]:
        ask = backend(endpoint, name, counts, emit, _how(options))
        return contextlib.nullcontext(Hired(ask, counts, True, _sha256(properties(endpoint).chat_template)))

    return Teacher(f"{url}#{name}", "openai", settings, hire)


def _how(options: LabelOptions) -> How:
    return How(options.structured == "auto", options.best_of > 1)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


@contextlib.contextmanager
def _own_server(options: LabelOptions, path: Path, emit: Emit) -> Iterator[Hired]:
    from pillm.llamacpp.install import ensure
    from pillm.llamacpp.server import serve

    with contextlib.ExitStack() as stack:
        template = None
        if options.chat_template != "model":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pillm-label-")))
            template = folder / "template.jinja"
            template.write_text(load_template(options.chat_template), encoding="utf-8")
        parallel = options.concurrency
        server = stack.enter_context(
            serve(ensure(emit), path, context=options.context, parallel=parallel, chat_template=template, emit=emit)
        )
        endpoint = Endpoint(
            server.url,
            server.api_key,
            "",
            options.timeout,
            options.attempts,
            parallel,
            {"cache_prompt": options.prompt_cache},
            own=True,
        )
        counts = Counts()
        name = options.model_name or path.stem
        known = properties(endpoint)
        ask = backend(endpoint, name, counts, emit, _how(options))
        yield Hired(ask, counts, known.knows_tools, _sha256(known.chat_template))


@contextlib.contextmanager
def _in_process(options: LabelOptions, path: Path, emit: Emit) -> Iterator[Hired]:
    from pillm.teach import in_process

    teacher = in_process.load(path, options.chat_template, emit)
    ask = in_process.backend(teacher, options.batch_size, emit, options.structured)
    yield Hired(ask, None, teacher.template.knows_tools, _sha256(teacher.template.source))
