"""Options of `pillm label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pillm.core.options import InputFile, ModelReference, NameOrFile, NoEffect, StageOptions, unit


class LabelOptions(StageOptions):
    """Let a teacher answer the prompts of a dataset; records that have an answer pass through.

    Answers are checked (complete, not looping, JSON and tool calls that fit their schemas, and what else
    `require` names); a rejected one is asked for again up to `attempts` times, then kept in rejected.jsonl. A
    run that was cut off goes on where it was when it is started again.
    """

    prompts: Annotated[Path, InputFile()] = Field(description="Dataset with prompts (JSONL, or dataset:NAME/SPLIT)")
    teacher: Annotated[str, ModelReference()] = Field(
        description="Teacher: hf:, pkg:, folder, .gguf, or http(s)://host/v1"
    )
    backend: Literal["auto", "transformers", "llama-server", "openai"] = Field(
        "auto",
        description="Who runs the teacher; auto: openai for a URL, llama-server for a GGUF file, else transformers",
    )
    model_name: str = Field("", description="Model name to send to the server (default: the first that it lists)")
    api_key_env: Annotated[str, NoEffect()] = Field(
        "OPENAI_API_KEY",
        description="Environment variable that holds the server's key; the key itself is never an option",
    )
    max_tokens: int = Field(256, ge=1, description="Longest answer", json_schema_extra=unit("tokens"))
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature; 0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling mass")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed for sampling")
    structured: Literal["auto", "prompt"] = Field(
        "auto",
        description="JSON for a response_schema: auto holds the teacher to it (the server's schema support, or a grammar in process), prompt only shows it",
    )
    best_of: int = Field(
        1, ge=1, le=64, description="Answers a prompt, of which the best is kept", json_schema_extra=unit("answers")
    )
    require: tuple[Literal["calls", "language", "no-refusal"], ...] = Field(
        (),
        description="Further demands on answers: calls (no double, empty or misplaced ones), language (the record's locale), no-refusal",
    )
    min_chars: int = Field(0, ge=0, description="Shortest text of an answer", json_schema_extra=unit("characters"))
    max_chars: int = Field(
        0, ge=0, description="Longest text of an answer; 0: any", json_schema_extra=unit("characters")
    )
    validator: Annotated[str, NameOrFile()] = Field(
        "",
        description="Your own check, file.py:function (default function: validate): takes record and answer as dicts, gives None or a reason",
    )
    price_in: float = Field(
        0.0, ge=0, description="Price of a million tokens read, for the report", json_schema_extra=unit("per million")
    )
    price_out: float = Field(
        0.0, ge=0, description="Price of a million tokens written", json_schema_extra=unit("per million")
    )
    batch_size: Annotated[int, NoEffect()] = Field(
        0, ge=0, description="Prompts a batch in process; 0: as many as fit", json_schema_extra=unit("prompts")
    )
    concurrency: Annotated[int, NoEffect()] = Field(
        4, ge=1, le=256, description="Requests in flight to a server", json_schema_extra=unit("requests")
    )
    prompt_cache: bool = Field(
        True,
        description="Let a llama-server of our own keep what prompts share, so that it is read once; near ties may then hang on what was asked before",
    )
    attempts: int = Field(3, ge=1, le=20, description="Tries for an answer that is rejected or a request that fails")
    timeout: Annotated[float, NoEffect()] = Field(
        120.0, gt=0, description="Longest wait for one answer", json_schema_extra=unit("s")
    )
    chat_template: Annotated[str, NameOrFile()] = Field(
        "model",
        description="model: the teacher's own; or the name of a shipped template, or a Jinja file (not for a URL)",
    )
    context: int = Field(
        2048, ge=128, description="Context length of a teacher in llama-server", json_schema_extra=unit("tokens")
    )
    limit: int | None = Field(
        None, ge=1, description="Label at most this many prompts", json_schema_extra=unit("prompts")
    )

    @model_validator(mode="after")
    def _bounds(self) -> LabelOptions:
        if self.max_chars and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars ({self.max_chars}) is less than min_chars ({self.min_chars})")
        return self
