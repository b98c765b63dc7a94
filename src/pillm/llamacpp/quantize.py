"""llama-quantize: a GGUF file to smaller types."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pillm.core.artifacts import PARTIAL, publish
from pillm.core.errors import GateError, ResourceError, UsageError, writing
from pillm.core.events import Emit, Progress, silent
from pillm.llamacpp.gguf_file import GgufFile, describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.tool import call, no_room

NEEDS_IMATRIX = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"})
"""Types that llama-quantize refuses, for some of their tensors, without an importance matrix."""

_STEP = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]", re.MULTILINE)
_FALLBACK = re.compile(
    r"warning: (\S+)\s+- ncols\s+(\d+) not divisible by\s+(\d+) \(required for type\s+(\S+)\).*?falling back to\s+(\S+)"
)
_RECIPE = re.compile(r"^\[\s*\d+/\s*\d+\]\s+(\S+)\s+-.*->\s+\S+ MiB \((\w+)\)", re.MULTILINE)
_NO_WEIGHTS = re.compile(r"did not find weights for (\S+)")


class Fallback(msgspec.Struct, frozen=True):
    """A tensor that got another type than the recipe wanted: its rows are no multiple of the type's block."""

    tensor: str
    wanted: str
    got: str
    columns: int
    block: int


class Quantized(msgspec.Struct, frozen=True):
    """What came of it. `without_imatrix` are tensors that the importance matrix knows nothing of."""

    file: GgufFile
    fallbacks: tuple[Fallback, ...]
    without_imatrix: tuple[str, ...]


def quantize(
    tools: LlamaCpp,
    source: Path,
    target: Path,
    kind: str,
    *,
    imatrix: Path | None = None,
    types: Mapping[str, str] | None = None,
    metadata: Mapping[str, str | int] | None = None,
    threads: int | None = None,
    emit: Emit = silent,
) -> Quantized:
    """Write `source` (f32, f16 or bf16) as `target` of type `kind`; published only if the file is whole.

    `types` names tensors that get a type of their own; `metadata` are keys of the file to set, each value of at most
    127 bytes.

    llama-quantize can fail and leave half a file; what counts is the file: the same tensors in the same
    shapes as the source's, each within the file.

    Raises UsageError (source already quantized, type that needs an importance matrix), GateError (the
    written file is not whole), ResourceError (disk), PillmError.
    """
    before = describe(source)
    check_source(before)
    if imatrix is None and kind in NEEDS_IMATRIX:
        raise UsageError(
            f"{kind} needs an importance matrix", "give a dataset with --imatrix-data, or take a larger type"
        )

    def told(text: str) -> None:
        if steps := _STEP.findall(text):
            emit(Progress(f"quantize to {kind}", int(steps[-1][0]), int(steps[-1][1]), "tensors"))

    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as name:
            folder = Path(name)
            arguments = [str(source.resolve()), target.name, kind, *([str(threads)] if threads else [])]
            if imatrix:
                # Its name goes into the file: a constant one keeps the result's bytes the same.
                (folder / "imatrix.gguf").symlink_to(imatrix.resolve())
                arguments = ["--imatrix", "imatrix.gguf", *arguments]
            arguments = [*_choices(folder, types or {}, metadata or {}), *arguments]
            said = call(tools, "llama-quantize", arguments, cwd=folder, on_output=told)
            written = folder / target.name
            try:
                after = _check(before, written, target)
            except GateError as error:
                if no_room(folder):
                    raise ResourceError(f"{target}: the disk is full", "free some space, then run again") from error
                raise
            publish(written, target)
    fallbacks = tuple(
        Fallback(tensor, wanted.upper(), got.upper(), int(columns), int(block))
        for tensor, columns, block, wanted, got in _FALLBACK.findall(said)
    )
    missing = tuple(dict.fromkeys(_NO_WEIGHTS.findall(said))) if imatrix else ()
    return Quantized(msgspec.structs.replace(after, path=target), fallbacks, missing)


def type_lines(types: Mapping[str, str]) -> str:
    """The text of a file for llama-quantize's `--tensor-type-file`: a pattern for each tensor, whole names only."""
    return "".join(f"^{re.escape(name)}$={kind.lower()}\n" for name, kind in types.items())


def recipe(tools: LlamaCpp, source: GgufFile, kind: str, *, imatrix: Path | None = None) -> dict[str, str]:
    """Which type llama-quantize would give each tensor, after fallbacks, without writing anything (a fifth of a second).

    Raises PillmError. What it says is the recipe's word; the file itself is the truth where one is made.
    """
    more = ["--imatrix", str(imatrix.resolve())] if imatrix else []
    said = call(tools, "llama-quantize", [*more, "--dry-run", str(source.path.resolve()), kind])
    own = {tensor.name: tensor.type for tensor in source.tensors}
    return own | {name: made.upper() for name, made in _RECIPE.findall(said) if name in own}


def _choices(folder: Path, types: Mapping[str, str], metadata: Mapping[str, str | int]) -> list[str]:
    arguments: list[str] = []
    if types:
        (folder / "types.txt").write_text(type_lines(types), encoding="utf-8")
        arguments += ["--tensor-type-file", "types.txt"]
        # These two go before any pattern.
        for option, tensor in (
            ("--token-embedding-type", "token_embd.weight"),
            ("--output-tensor-type", "output.weight"),
        ):
            if kind := types.get(tensor) or (option.startswith("--output") and types.get("token_embd.weight")):
                arguments += [option, kind.lower()]
    for key, value in metadata.items():
        arguments += ["--override-kv", f"{key}={'int' if isinstance(value, int) else 'str'}:{value}"]
    return arguments


def check_source(source: GgufFile) -> None:
    """Raises UsageError unless all tensors of the file to quantize are floats."""
    if source.is_quantized:
        kinds = ", ".join(kind for kind in source.bytes_by_type)
        raise UsageError(
            f"{source.path}: already quantized ({kinds}); quantizing twice loses quality twice",
            "give the f16, bf16 or f32 file that it was made from",
        )


def _check(before: GgufFile, written: Path, target: Path) -> GgufFile:
    try:
        after = describe(written)
    except UsageError as error:
        raise GateError(f"{target.name}: llama-quantize wrote a broken file: {error.message}") from error
    wanted = {tensor.name: tensor.shape for tensor in before.tensors}
    got = {tensor.name: tensor.shape for tensor in after.tensors}
    if wrong := [name for name in wanted if got.get(name) != wanted[name]]:
        raise GateError(
            f"{target.name}: {len(wrong)} tensors are missing or changed in shape, as {wrong[0]}",
            "report this with the model's name: it is a fault of llama-quantize or of pillm",
        )
    return after
