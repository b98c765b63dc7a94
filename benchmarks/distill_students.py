"""A student cut out of its teacher, taught three ways with the same tokens: who comes nearest to the teacher?

    python benchmarks/distill_students.py --teacher runs/quickstart/train/model --out runs/students [--seeds 0 1 2]
        [--layers 15] [--steps N] [--rates RATE ...] [--tasks 60]

Arms: `labels` (cross-entropy on the data), `cached` (forward KL from the sampled cache) and `top-k` (the same loss from
a cache of the exact top alone, with at least the sampled cache's bytes). Data: Python's own documentation (pydoc topics,
in pieces) and home-assistant/train. Held out: other topics of the documentation, and home-assistant/development. Every arm
is trained by `pillm train`; what is there already is not made again. With --rates, each arm takes the rate with the
lowest divergence on a part of the training data that is kept aside (seed 100, a third of the steps).

Divergence: KL(teacher || student) in nats over the whole vocabulary, mean over the assistant's tokens, float32. Arms are
compared seed by seed and dialogue by dialogue; intervals are 95 % of a paired bootstrap over dialogues, for the mean over seeds.
Exact match comes from `pillm export` and `pillm evaluate` on home-assistant/heldout.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pillm.core import jsonl, records
from pillm.core.records import Message, Record
from pillm.core.shipped import data_path

ARMS = ("labels", "cached", "top-k")
PIECE = 1200
"""Characters of documentation a dialogue: about 300 tokens."""
PIECES, DIALOGUES = 210, 500
"""Of documentation and of the home assistant: about 100,000 tokens together."""
PROBE = 40


def documents() -> tuple[list[Record], list[Record]]:
    """Training and held-out pieces of Python's documentation; a topic is in one of them alone."""
    from pydoc_data.topics import topics

    train: list[Record] = []
    held: list[Record] = []
    for number, (name, text) in enumerate(sorted(topics.items())):
        where = held if number % 8 == 0 else train
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE].strip()
            if len(piece) > PIECE // 2:
                question = Message("user", f"Python documentation, topic {name}, part {start // PIECE + 1}.")
                where.append(Record(f"doc-{name}-{start}", (question, Message("assistant", piece))))
    return train, held


def write(path: Path, rows: list[Record]) -> None:
    path.write_bytes(b"".join(records.encode(row) + b"\n" for row in rows))


def dialogues(split: str, count: int) -> list[Record]:
    found = [row for row in jsonl.read(data_path(Path(f"dataset:home-assistant/{split}"))) if not row.is_prompt]
    random.Random(0).shuffle(found)
    return found[:count]


def prepare(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if (out / "held.jsonl").exists():
        return
    train, held = documents()
    random.Random(2).shuffle(train)
    rows = [*train[:PIECES], *dialogues("train", DIALOGUES)]
    random.Random(0).shuffle(rows)
    cut = len(rows) // 20
    write(out / "tune.jsonl", rows[:cut])
    write(out / "train.jsonl", rows[cut:])
    write(out / "probe.jsonl", rows[cut : cut + PROBE])
    random.Random(1).shuffle(held)
    write(out / "held.jsonl", [*held[:40], *dialogues("development", 60)])


def pillm(*argv: str) -> float:
    """Run a command; returns seconds."""
    print("pillm", *argv, flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pillm", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.stderr.decode()[-2000:])
    return time.monotonic() - began


def caches(out: Path, teacher: Path) -> dict[str, Path]:
    """The sampled cache, and one of the exact top with at least its bytes."""
    common = (f"--teacher={teacher}", "--chat-template=chatml-tools")
    made = {"cached": out / "cache-sampled", "top-k": out / "cache-top"}
    if not (made["cached"] / "logits.json").exists():
        pillm("logits", str(out / "train.jsonl"), *common, f"--out={made['cached']}")
    size = per_token(made["cached"])
    if not (made["top-k"] / "logits.json").exists():
        probe, top = out / "probe", int(size) // 4
        pillm("logits", str(out / "probe.jsonl"), *common, f"--out={probe}-sampled")
        while True:
            pillm("logits", str(out / "probe.jsonl"), *common, f"--out={probe}-{top}", "--samples=0", f"--top={top}")
            if per_token(Path(f"{probe}-{top}")) >= per_token(Path(f"{probe}-sampled")):
                break
            top += 1
        while True:
            pillm("logits", str(out / "train.jsonl"), *common, f"--out={made['top-k']}", "--samples=0", f"--top={top}")
            # The comparison must not be won by bytes.
            if per_token(made["top-k"]) >= per_token(made["cached"]):
                break
            shutil.rmtree(made["top-k"])
            top += 1
    for name, path in made.items():
        print(f"cache {name}: {per_token(path):.1f} bytes a learned token")
    return made


def per_token(folder: Path) -> float:
    return float(json.loads((folder / "logits.json").read_bytes())["bytes_per_token"])


def train(out: Path, name: str, arm: str, seed: int, rate: float, given: argparse.Namespace, steps: int) -> Path:
    # The name holds what the student depends on, so that another command does not take it for its own.
    where = out / f"{name}-{given.layers}-{steps}-{rate:g}"
    if not (where / "train.json").exists():
        made = caches(out, given.teacher)
        pillm(
            "train", str(out / "train.jsonl"), f"--student={given.teacher}", f"--init=prune:layers={given.layers}",
            "--full", "--chat-template=chatml-tools", f"--seed={seed}", f"--learning-rate={rate}", f"--max-steps={steps}",
            "--epochs=2", "--validation=0.01", *([f"--logits={made[arm]}"] if arm in made else []), f"--out={where}",
        )  # fmt: skip
    return where


def divergences(teacher: Path, students: dict[str, Path], held: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each student, per dialogue: summed KL to the teacher, and how often the likeliest token is the same.

    Arrays [dialogues]; the number of tokens is under the name "tokens".
    """
    import torch

    from pillm.models.chat import ChatTemplate, load_template
    from pillm.train import student
    from pillm.train.dialogues import encode

    model, tokenizer, _ = student.load(teacher, torch.float32)
    others = {name: student.load(path, torch.float32)[0].eval() for name, path in students.items()}
    model.eval()
    template = ChatTemplate(load_template("chatml-tools"), "", str(tokenizer.eos_token))
    encoded = encode(jsonl.read(held), template, tokenizer)
    kl: dict[str, list[float]] = {name: [] for name in others}
    same: dict[str, list[float]] = {name: [] for name in others}
    tokens: list[float] = []
    with torch.inference_mode():
        for item in encoded:
            ids = torch.tensor([item.ids[:1024]])
            at = torch.tensor([i - 1 for i, mine in enumerate(item.learned[:1024]) if mine and i])
            wanted = model(ids, logits_to_keep=at).logits[0].log_softmax(-1)
            tokens.append(len(at))
            for name, other in others.items():
                found = other(ids, logits_to_keep=at).logits[0].log_softmax(-1)
                kl[name].append(float((wanted.exp() * (wanted - found)).sum()))
                same[name].append(float((wanted.argmax(-1) == found.argmax(-1)).sum()))
    result = {name: (np.array(kl[name]), np.array(same[name])) for name in others}
    return {**result, "tokens": (np.array(tokens), np.array([item.group != encoded[0].group for item in encoded]))}


def tuned(out: Path, given: argparse.Namespace) -> dict[str, float]:
    """The best rate of each arm, on the part of the training data that is kept aside."""
    if len(given.rates) == 1:
        return dict.fromkeys(ARMS, given.rates[0])
    found = out / "rates.json"
    if not found.exists():
        tried = {
            f"tune-{arm}-{rate:g}": train(out, f"tune-{arm}", arm, 100, rate, given, given.steps // 3) / "model"
            for arm in ARMS for rate in given.rates
        }  # fmt: skip
        measured = divergences(given.teacher, tried, out / "tune.jsonl")
        total = measured["tokens"][0].sum()
        for name in tried:
            print(f"{name}: KL {measured[name][0].sum() / total:.4f}")
        best = {
            arm: min(given.rates, key=lambda rate, arm=arm: measured[f"tune-{arm}-{rate:g}"][0].sum()) for arm in ARMS
        }
        found.write_text(json.dumps(best))
    return json.loads(found.read_text())


def task(folder: Path, limit: int) -> str:
    """Exact match on held-out dialogues, through GGUF and llama-server."""
    where = folder / "task"
    if not (where / "quality.json").exists():
        pillm("export", str(folder / "model"), f"--out={folder / 'gguf'}")
        gguf = next((folder / "gguf").glob("*.gguf"))
        pillm("evaluate", str(gguf), "--data=dataset:home-assistant/heldout", f"--limit={limit}", "--max-tokens=96",
              f"--out={where}")  # fmt: skip
    quality = json.loads((where / "quality.json").read_bytes())
    return str(quality.get("exact_match", quality))


def interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def report(out: Path, given: argparse.Namespace, made: dict[str, Path]) -> None:
    names = {name: folder / "model" for name, folder in made.items()}
    measured = divergences(given.teacher, names, out / "held.jsonl")
    tokens, _ = measured["tokens"]
    docs = np.array([row.id.startswith("doc-") for row in jsonl.read(out / "held.jsonl")])
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(tokens), (4000, len(tokens)))
    for part, mask in (("all", np.ones(len(tokens), bool)), ("documentation", docs), ("dialogues", ~docs)):
        print(f"\n{part}: {int(tokens[mask].sum())} held-out tokens, {int(mask.sum())} dialogues; mean KL, same top")
        for arm in ARMS:
            per_seed = [measured[f"{arm}-{seed}"][0][mask].sum() / tokens[mask].sum() for seed in given.seeds]
            same = np.mean([measured[f"{arm}-{seed}"][1][mask].sum() / tokens[mask].sum() for seed in given.seeds])
            print(
                f"  {arm:<8} {np.mean(per_seed):.4f}  {100 * same:.1f} %  seeds: {', '.join(f'{x:.4f}' for x in per_seed)}"
            )
        for other in ("labels", "top-k"):
            ours = np.mean([measured[f"cached-{seed}"][0] for seed in given.seeds], axis=0) * mask
            theirs = np.mean([measured[f"{other}-{seed}"][0] for seed in given.seeds], axis=0) * mask
            ratios = ours[draws].sum(1) / theirs[draws].sum(1)
            low, high = interval(ratios, rng)
            each = [
                float((measured[f"cached-{s}"][0] * mask).sum() / (measured[f"{other}-{s}"][0] * mask).sum())
                for s in given.seeds
            ]
            print(
                f"  cached / {other}: {ours.sum() / theirs.sum():.4f} ({low:.4f} to {high:.4f}); seeds: {', '.join(f'{x:.4f}' for x in each)}"
            )
    if given.tasks:
        print()
        for name, folder in made.items():
            print(f"  exact match {name}: {task(folder, given.tasks)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("runs/quickstart/train/model"))
    parser.add_argument("--out", type=Path, default=Path("runs/students"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--steps", type=int, default=56)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4])
    parser.add_argument("--tasks", type=int, default=60)
    given = parser.parse_args()
    prepare(given.out)
    rates = tuned(given.out, given)
    print("rates:", rates)
    made: dict[str, Path] = {}
    for seed in given.seeds:
        # Interleaved, so that a machine that changes meets every arm.
        for arm in ARMS:
            name = f"{arm}-{seed}"
            made[name] = train(given.out, name, arm, seed, rates[arm], given, given.steps)
            told = json.loads((made[name] / "train.json").read_bytes())
            print(
                f"{name}: {told['steps']} steps, {told['processed_tokens']} tokens, {told['learned_tokens']} learned",
                flush=True,
            )
    report(given.out, given, made)


if __name__ == "__main__":
    main()
