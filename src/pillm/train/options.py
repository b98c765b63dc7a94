"""Options of `pillm train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import InputFile, ModelReference, NameOrFile, NoEffect, Shorthands, StageOptions, unit


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
    init: str = Field(
        "",
        description="Make the student smaller before training: prune:layers=20, and also ffn=, heads=, hidden= (docs/training.md)",
    )
    preset: Literal["", "qlora-ampere", "qlora-turing", "qlora-ada", "qlora-hopper", "qlora-cpu"] = Field(
        "", description="QLoRA defaults for a kind of hardware (pillm presets lists them); options that are given win"
    )
    method: Annotated[Literal["lora", "rslora", "dora", "full"], Shorthands()] = Field(
        "lora",
        description="What is trained: low-rank adapters (rslora: scaled by alpha / sqrt(rank), dora: directions and lengths apart), or the weights themselves",
    )
    base: Literal["16bit", "nf4", "fp4"] = Field(
        "16bit",
        description="How the frozen weights under adapters are kept; nf4 and fp4 are QLoRA (needs bitsandbytes)",
    )
    double_quantization: bool = Field(
        True, description="Quantize the scales of a 4-bit base, too (0.4 bits a weight less)"
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
        None, gt=0, description="Peak learning rate (default: 1e-3 for adapters, 2e-4 for full)"
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
    loss: Literal["auto", "cross-entropy", "forward-kl", "reverse-kl", "jsd", "uld"] = Field(
        "auto",
        description="auto: forward-kl where there are a teacher's logits, else cross-entropy; uld: teacher with another tokenizer",
    )
    logits: Annotated[Path | None, InputFile()] = Field(
        None, description="Cache of a teacher's distributions on this data (pillm logits)"
    )
    teacher: Annotated[str | None, ModelReference()] = Field(
        None, description="Teacher that runs beside the student, instead of a cache: hf:, pkg:, folder or .gguf"
    )
    kd_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the distillation loss; the rest is cross-entropy (default: 1, or 0.6 with uld)",
    )
    kd_temperature: float = Field(
        1.0,
        gt=0,
        le=20,
        description="Temperature of both distributions; a cache has one of its own, which must be the same",
    )
    jsd_beta: float = Field(
        0.5, gt=0, lt=1, description="Generalised Jensen-Shannon divergence: share of the teacher in the mixture"
    )
    on_policy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of steps in which the student writes the answers and the teacher scores them",
    )
    on_policy_tokens: int = Field(
        64, ge=1, description="Longest answer that the student writes", json_schema_extra=unit("tokens")
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
    validate_every: int | None = Field(
        None,
        ge=1,
        description="Validation loss after every so many steps (always at the start and the end)",
        json_schema_extra=unit("steps"),
    )
    track: Annotated[Literal["none", "tensorboard", "trackio"], NoEffect()] = Field(
        "none", description="Also log to TensorBoard or trackio, in OUT/track (each an extra package)"
    )
    checkpoint_every: Annotated[float, NoEffect()] = Field(
        60.0,
        ge=0,
        description="Least time between checkpoints; longer if writing one takes long",
        json_schema_extra=unit("s"),
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed for order, split and initial weights of adapters")

    def preset_values(self) -> Mapping[str, object]:
        """What the preset sets where it is not given."""
        from pillm.train.presets import PRESETS

        return PRESETS[self.preset].values if self.preset else {}
