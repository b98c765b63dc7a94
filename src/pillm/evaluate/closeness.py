"""Perplexity on held-out dialogues, and how far each file is from the unquantized one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from pillm.core.artifacts import PARTIAL
from pillm.core.errors import UsageError
from pillm.core.events import Emit, Log
from pillm.evaluate.ask import connect, post
from pillm.evaluate.judge import Case, evenly
from pillm.evaluate.options import EvaluateOptions
from pillm.evaluate.report import Closeness
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.logits import measured
from pillm.llamacpp.perplexity import Divergence, kl_divergence, perplexity
from pillm.llamacpp.server import Server
from pillm.models.chat import ChatTemplate

# Characters a token at most, on real text, so that enough dialogues are taken before they are counted.
_CHARACTERS = 6
# llama-perplexity refuses a text that has not two chunks, and kl_divergence fewer measured tokens than this.
_LEAST_CHUNKS = 2
_LEAST_TOKENS = 100


class Text(msgspec.Struct, frozen=True):
    """Held-out dialogues as the model reads them; `chunks` is 0, and `why_not` told, where there is nothing to measure."""

    text: str
    chunks: int
    why_not: str = ""


def held_out_text(server: Server, cases: Sequence[Case], options: EvaluateOptions) -> Text:
    """Whole dialogues, evenly over the data, in the chat template that the server runs the model with."""
    with connect(server, 1) as client:
        base = server.url.removesuffix("/v1")
        props = client.get(f"{base}/props").json()
        try:
            template = ChatTemplate(props["chat_template"], props.get("bos_token", ""), props.get("eos_token", ""))
            wanted = options.chunks * options.chunk_tokens * _CHARACTERS
            rendered = [template.render(case.record.messages, case.record.tools) for case in cases]
        except (UsageError, KeyError) as error:
            return Text("", 0, f"the chat template cannot write these dialogues: {error}")
        mean = max(1, sum(map(len, rendered)) // len(rendered))
        text = "".join(evenly(rendered, max(1, -(-wanted // mean))))
        # llama-perplexity reads the markup as plain text, so it is counted as such.
        counted = post(client, server, f"{base}/tokenize", {"content": text, "parse_special": False})
        there = len(counted.json()["tokens"]) // options.chunk_tokens
    chunks = min(options.chunks, there)
    if there < _LEAST_CHUNKS:
        return Text("", 0, f"the held-out dialogues are shorter than two chunks of {options.chunk_tokens} tokens")
    if options.reference is not None and chunks * measured(options.chunk_tokens) < _LEAST_TOKENS:
        return Text("", 0, f"{chunks} chunks of {options.chunk_tokens} tokens are too few for a comparison")
    return Text(text, chunks)


def measure(
    tools: LlamaCpp, model: Path, text: Text, options: EvaluateOptions, emit: Emit
) -> tuple[list[Closeness], str]:
    """A row for the reference, the model and each further file; and what they were measured on.

    Without a reference the model's perplexity alone. The reference's logits go to a temporary folder
    in `out` (2 bytes a vocabulary entry for half of the tokens) and are deleted.
    """
    if not text.chunks:
        emit(Log(f"no perplexity: {text.why_not}", "warning"))
        return [], text.why_not
    told = (
        f"{text.chunks} chunks of {options.chunk_tokens} tokens of the held-out dialogues in the chat template "
        "(llama-perplexity reads its markup as plain text)"
    )
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=options.out) as folder:
        file, logits = Path(folder) / "held-out.txt", Path(folder) / "logits.bin"
        file.write_text(text.text, encoding="utf-8")
        rows = []
        for role, path in _files(model, options):
            if role == "reference" or options.reference is None:
                save = logits if role == "reference" else None
                found = perplexity(
                    tools, path, file, context=options.chunk_tokens, chunks=text.chunks, save_logits=save,
                    threads=options.threads, emit=emit,
                )  # fmt: skip
                row = Closeness(
                    path.name, path.stat().st_size, role, perplexity=found.value, perplexity_error=found.error
                )
            else:
                row = _row(path, role, kl_divergence(tools, path, logits, threads=options.threads, emit=emit))
            rows.append(row)
    return rows, told


Role = Literal["reference", "model", "also"]


def _files(model: Path, options: EvaluateOptions) -> Iterator[tuple[Role, Path]]:
    """What is measured, in the order of the work: the reference first, since the others are held against it."""
    if options.reference is not None:
        yield "reference", options.reference
    yield "model", model
    for path in others(options, model):
        yield "also", path


def others(options: EvaluateOptions, model: Path) -> list[Path]:
    """The further GGUF files to hold against the reference, without the reference and the model themselves."""
    if options.reference is None or options.also is None:
        return []
    found = sorted(options.also.glob("*.gguf"))
    return [path for path in found if not path.samefile(model) and not path.samefile(options.reference)]


def _row(path: Path, role: Role, found: Divergence) -> Closeness:
    return Closeness(
        file=path.name,
        bytes=path.stat().st_size,
        role=role,
        perplexity=found.perplexity,
        perplexity_error=found.perplexity_error,
        kl_mean=found.kl_mean,
        kl_error=found.kl_error,
        kl_p99=found.kl_99,
        same_top=found.same_top,
    )
