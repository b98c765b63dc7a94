"""Options of `pillm dataset ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import (
    ByHand,
    InputFile,
    ModelReference,
    NameOrFile,
    NoEffect,
    Options,
    OutputFile,
    StageOptions,
    unit,
)

Data = Annotated[tuple[Path, ...], InputFile()]
_DATA = "Files (.jsonl, also .gz and .zst), folders with such files, or dataset:NAME/SPLIT"
_WORKERS = "Processes at work (default: the machine's cores)"
# Two records whose sets of word triples have this much in common are near duplicates.
_SIMILAR = 0.8


class ValidateOptions(Options):
    """Check every line: syntax, shape, tool calls against their schemas, dialogue, characters. Exit code 1 on errors."""

    data: Data = Field(min_length=1, description=_DATA)
    format: Literal["text", "jsonl", "sarif", "github"] = Field(
        "text", description="How findings are printed on stdout"
    )
    max_findings: int = Field(
        1000, ge=1, description="Print at most this many; all are counted", json_schema_extra=unit("findings")
    )
    strict: bool = Field(False, description="Count warnings as errors")
    ignore: tuple[str, ...] = Field((), description="Codes of findings to leave out")
    fix: Annotated[Path | None, OutputFile()] = Field(
        None, description="Write a mended copy of the data here: what can be mended without guessing"
    )
    check_formats: bool = Field(False, description="Check `format` in schemas, too (date, email, uri, ...)")
    chat_template: Annotated[str | None, NameOrFile()] = Field(
        None,
        description="Also check that this template takes every dialogue: a shipped template's name, or a Jinja file",
    )
    model: Annotated[str | None, ModelReference()] = Field(
        None,
        description="Also check that this model's own chat template takes every dialogue (hf:, pkg:, folder or .gguf)",
    )
    tokenizer: Annotated[Path | None, InputFile()] = Field(
        None,
        description="tokenizer.json, or a folder with one, to count tokens for --context (default: that of --model)",
    )
    context: int | None = Field(
        None, ge=1, description="Longest dialogue that is allowed", json_schema_extra=unit("tokens")
    )
    workers: Annotated[int | None, NoEffect()] = Field(None, ge=1, description=_WORKERS)


class CardOptions(StageOptions):
    """Describe a dataset with figures that can be checked: Hugging Face card, Croissant and JSON from one source."""

    data: Data = Field((), description=_DATA)
    out: Annotated[Path, NoEffect()] = Field(Path("card"), description="Folder for the card")
    about: Annotated[Path | None, InputFile()] = Field(
        None, description="YAML with what data cannot tell: title, purpose, collection, annotators, licence, contact"
    )
    validate_: Annotated[Path | None, InputFile(), ByHand()] = Field(
        None, description="Check this card against its data instead; exit code 1 on any drift"
    )
    tokenizer: Annotated[Path | None, InputFile()] = Field(
        None, description="tokenizer.json, or a folder with one, for lengths in tokens (default: words)"
    )
    targets: Annotated[Path | None, InputFile()] = Field(
        None, description="YAML with how many records of what are wanted"
    )
    similarity: float = Field(
        _SIMILAR, gt=0, le=1, description="Jaccard similarity from which two dialogues are near duplicates"
    )
    workers: Annotated[int | None, NoEffect()] = Field(None, ge=1, description=_WORKERS)


class CoverageOptions(Options):
    """Compare the varieties, registers and tools that records declare with what their text shows, and with targets."""

    data: Data = Field(min_length=1, description=_DATA)
    targets: Annotated[Path | None, InputFile()] = Field(
        None, description="YAML with how many records of what are wanted"
    )
    format: Literal["text", "json"] = Field("text", description="How the result is printed on stdout")
    strict: bool = Field(False, description="Exit code 1 if a target is not met")
    workers: Annotated[int | None, NoEffect()] = Field(None, ge=1, description=_WORKERS)


class StatsOptions(Options):
    """Count records, turns, tools, languages, registers, tags and lengths."""

    data: Data = Field(min_length=1, description=_DATA)
    format: Literal["text", "json"] = Field("text", description="How the result is printed on stdout")
    tokenizer: Annotated[Path | None, InputFile()] = Field(
        None, description="tokenizer.json, or a folder with one, for lengths in tokens (default: words)"
    )
    workers: Annotated[int | None, NoEffect()] = Field(None, ge=1, description=_WORKERS)


class DedupOptions(Options):
    """Leave out records whose dialogue stands there already, exactly or nearly. Leakage between files is an error."""

    data: Data = Field(min_length=1, description=_DATA)
    out: Annotated[Path | None, OutputFile()] = Field(
        None, description="Folder for the files without duplicates (default: only report them)"
    )
    heldout: Data = Field((), description="Files that must share nothing with the data: duplicates of them are leakage")
    near: bool = Field(True, description="Look for near duplicates, too")
    similarity: float = Field(
        _SIMILAR, gt=0, le=1, description="Jaccard similarity from which two dialogues are near duplicates"
    )
    workers: Annotated[int | None, NoEffect()] = Field(None, ge=1, description=_WORKERS)


class SplitOptions(Options):
    """Split a dataset: the same share of every group in each part, near duplicates kept together."""

    data: Data = Field(min_length=1, description=_DATA)
    out: Annotated[Path, OutputFile()] = Field(Path("split"), description="Folder for the parts, as NAME.jsonl")
    parts: tuple[str, ...] = Field(("train=0.9", "validation=0.05", "test=0.05"), description="NAME=SHARE of each part")
    stratify: tuple[str, ...] = Field(
        ("locale", "register", "kind"),
        description="Keep the shares of these equal: locale, register, tool, source, or a tag's word before the colon",
    )
    group: str | None = Field(
        None, description="Records with the same value of this stay together: source, tool, or a key of meta"
    )
    near: bool = Field(True, description="Keep near duplicates in the same part")
    seed: int = Field(0, ge=0, description="Seed of the shuffle")


class ConvertOptions(Options):
    """Read the formats of other tools, or write them: nothing that a record holds is lost without a word."""

    data: Data = Field(min_length=1, description="Files or folders (.jsonl, .json, also .gz and .zst)")
    out: Annotated[Path, OutputFile()] = Field(description="File to write (.jsonl, or .json for LLaMA-Factory)")
    source: Literal["auto", "pillm", "flat", "sharegpt", "hermes"] = Field("auto", description="Format of the data")
    to: Literal["pillm", "trl", "axolotl", "llama-factory", "sharegpt", "hermes"] = Field(
        "pillm", description="Format to write"
    )
