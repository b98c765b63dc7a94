"""Options of `pillm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import InputFile, ModelReference, NameOrFile, NoEffect, StageOptions, unit


class TrainOptions(StageOptions):
    """Train a student on labelled dialogues; the result is a merged model that stands alone."""

    data: Annotated[Path, InputFile()] = Field(description="Labelled dataset (JSONL, or dataset:NAME/SPLIT)")
    card: Annotated[Path | None, InputFile()] = Field(
        None,
        description="dataset_card.json of the data (pillm dataset card): put beside the model, its hash in train.json",
    )
    student: Annotated[str, ModelReference()] = Field(
        description="Student: hf:org/name@rev, pkg:distribution, folder or .gguf"
    )
    method: Literal["lora", "full"] = Field(
        "lora", description="What is trained: low-rank adapters, or the weights themselves"
    )
    embeddings: Literal["freeze", "train"] = Field(
        "freeze",
        description="Token embeddings (and the head, where it is the same matrix) in full training; frozen ones save memory and time",
    )
    rank: int = Field(32, ge=1, le=1024, description="LoRA rank")
    alpha: float = Field(32.0, gt=0, description="LoRA scale: the update is multiplied by alpha / rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters")
    epochs: float = Field(1.0, gt=0, description="Passes over the data")
    max_steps: int | None = Field(
        None, ge=1, description="Stop after this many optimizer steps", json_schema_extra=unit("steps")
    )
    batch_tokens: int = Field(
        2048, ge=64, description="Tokens of one optimizer step, padding not counted", json_schema_extra=unit("tokens")
    )
    micro_tokens: int = Field(
        1024, ge=64, description="Tokens of one forward pass; fewer need less memory", json_schema_extra=unit("tokens")
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
        description="prefix: dialogues that begin alike share that beginning in one sequence; separate: each dialogue whole",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate (default: 1e-3 for lora, 2e-4 for full)"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate goes down after warm-up"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Part of the steps in which the learning rate goes up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay, on matrices only")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm")
    loss_on: Literal["assistant", "last"] = Field(
        "assistant", description="Turns that are learned: every assistant turn, or only the last"
    )
    validation: float = Field(0.02, ge=0, lt=0.5, description="Part of the data kept for the validation loss")
    chat_template: Annotated[str, NameOrFile()] = Field(
        "auto",
        description="auto: the model's own if it knows tools, else ChatML with tools; or a name, or a Jinja file",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Arithmetic; auto: bfloat16 where the hardware has it"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to train")
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="Recompute activations to save memory; auto: on if memory is short"
    )
    checkpoint_every: Annotated[float, NoEffect()] = Field(
        60.0,
        ge=0,
        description="Least time between checkpoints; longer if writing one takes long",
        json_schema_extra=unit("s"),
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed for order, split and initial weights of adapters")
