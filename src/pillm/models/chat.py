"""Chat templates: dialogues to the exact text that a model reads, and where in it the assistant speaks.

Templates are the Jinja programs that come with models. They are run here as transformers runs
them (sandboxed, `trim_blocks`, `lstrip_blocks`, the same globals), without importing transformers,
so that a light stage can render text too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from pillm.core.errors import UsageError
from pillm.core.records import Message, Tool, plain

TOOLS_TEMPLATE = "chatml-tools"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which marks the assistant's text: calls `_generation(text)` on it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_keep"), [], [], body).set_lineno(line)

    def _keep(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    # Jinja's own filter escapes for HTML, which a prompt must not be.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _environment() -> jinja2.Environment:
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env


class ChatTemplate:
    """A model's chat template with the tokens it may name."""

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(
                f"chat template, line {error.lineno}: {error.message}", "give another one with --chat-template"
            ) from error

    def render(
        self,
        messages: Sequence[Message] | Sequence[dict[str, Any]],
        tools: Sequence[Tool] | Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The dialogue as the model reads it. Raises UsageError where the template refuses it."""
        try:
            return self._template.render(
                messages=plain(messages),
                tools=plain(tools) or None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise UsageError(
                f"the chat template refuses this dialogue: {error}",
                "mend the dialogue, or give another template with --chat-template",
            ) from error

    @cached_property
    def knows_tools(self) -> bool:
        """Whether declared tools and tool calls both show up in the text."""
        probe = {"name": "probe_tool", "description": "", "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": probe}]
        call = {"type": "function", "function": {"name": "called_tool", "arguments": {"x": 1}}}
        ask, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            return "probe_tool" in self.render([ask], tools) and "called_tool" in self.render([ask, answer], tools)
        except UsageError:
            return False

    def assistant_spans(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> tuple[str, list[tuple[int, int]]]:
        """The whole text and, for each assistant turn, the [start, end) of what the model has to write.

        A turn starts after the generation prompt and ends after the turn's closing token; the line
        break that templates put behind it is not the model's to write. The spans come from rendering
        the dialogue up to each turn, so they hold for any template that renders turn by turn.
        Raises UsageError for a template that does not (one that rewrites earlier turns).
        """
        text = self.render(messages, tools)
        spans: list[tuple[int, int]] = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self.render(messages[:index], tools, add_generation_prompt=True)
            after = self.render(messages[: index + 1], tools)
            if not (text.startswith(before) and text.startswith(after.rstrip())):
                raise UsageError(
                    "this chat template changes earlier turns as a dialogue goes on, so the assistant's text cannot be found",
                    f"train on single-turn dialogues, or give --chat-template {TOOLS_TEMPLATE}",
                )
            spans.append((len(before), len(after.rstrip())))
        return text, spans


def template_path(name: str) -> Path:
    """The file of a shipped template. Raises UsageError with the names there are."""
    folder = Path(str(resources.files("pillm"))) / "models" / "templates"
    path = folder / f"{name}.jinja"
    if "/" in name or len(name) > 64 or not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.jinja")))
        raise UsageError(
            f"{name[:64]}: there is no such chat template", f"shipped: {known}; or give the path of a Jinja file"
        )
    return path


def load_template(name_or_path: str) -> str:
    """The source of a shipped template by its name, or of a Jinja file."""
    # os.path.isfile, unlike Path.is_file, takes a name that is too long for a file as none.
    path = Path(name_or_path) if os.path.isfile(name_or_path) else template_path(name_or_path)  # noqa: PTH113
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})", "give a Jinja file") from error
