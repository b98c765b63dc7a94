"""Options of `pillm logits`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import InputFile, ModelReference, NameOrFile, NoEffect, StageOptions, unit


class LogitsOptions(StageOptions):
    """Run a teacher once over labelled dialogues and keep its distributions, sparse and unbiased, for pillm train --logits.

    Of each learned token's distribution the likely part is kept exactly, and samples stand for the rest, so that the
    loss has the same gradient on average as the whole distribution gives. A run that was cut off goes on where it was.
    """

    data: Annotated[Path, InputFile()] = Field(description="Labelled dataset (JSONL, or dataset:NAME/SPLIT)")
    teacher: Annotated[str, ModelReference()] = Field(
        description="Teacher: hf:, pkg:, folder or .gguf; or http://host:port of a llama-server (top of the distribution only)"
    )
    tokenizer: Annotated[str | None, ModelReference()] = Field(
        None, description="Model whose tokenizer and chat template are used, for a teacher behind a server"
    )
    samples: int = Field(
        100,
        ge=0,
        le=255,
        description="Resolution: a probability of 1/samples or more is kept exactly, the tail has samples times its mass samples; 0 keeps only the top (biased)",
        json_schema_extra=unit("entries"),
    )
    top: int = Field(
        100,
        ge=1,
        le=255,
        description="Most probabilities that are kept exactly for a token",
        json_schema_extra=unit("entries"),
    )
    temperature: float = Field(
        1.0, gt=0, le=20, description="Temperature of the distributions; training must use the same --kd-temperature"
    )
    chat_template: Annotated[str, NameOrFile()] = Field(
        "auto",
        description="As in pillm train; auto: the model's own if it knows tools, else ChatML with tools; or a name, or a Jinja file",
    )
    loss_on: Literal["assistant", "last"] = Field(
        "assistant", description="Turns that training will learn: every assistant turn, or only the last"
    )
    max_length: int = Field(
        1024,
        ge=32,
        description="Longest dialogue; longer ones are an error unless --long says otherwise",
        json_schema_extra=unit("tokens"),
    )
    long: Literal["error", "drop"] = Field("error", description="What to do with a dialogue longer than max_length")
    packing: Literal["prefix", "separate"] = Field(
        "prefix",
        description="prefix: dialogues that begin alike share that beginning in one pass; separate: each dialogue whole",
    )
    micro_tokens: int = Field(
        2048, ge=64, description="Tokens of one forward pass; fewer need less memory", json_schema_extra=unit("tokens")
    )
    shard_tokens: int = Field(
        8192,
        ge=64,
        description="Learned tokens a shard; a killed run loses at most the shard that it was making",
        json_schema_extra=unit("tokens"),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Arithmetic; auto: bfloat16 where the hardware has it (the head's logits are always float32)",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the teacher runs")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the samples")
    api_key_env: Annotated[str, NoEffect()] = Field(
        "OPENAI_API_KEY",
        description="Environment variable that holds the server's key; the key itself is never an option",
    )
    concurrency: Annotated[int, NoEffect()] = Field(
        4, ge=1, le=256, description="Requests in flight to a server", json_schema_extra=unit("requests")
    )
    timeout: Annotated[float, NoEffect()] = Field(
        120.0, gt=0, description="Longest wait for one answer of a server", json_schema_extra=unit("s")
    )
    attempts: Annotated[int, NoEffect()] = Field(
        5, ge=1, le=20, description="Tries for a request to a server that fails"
    )
