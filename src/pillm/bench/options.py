"""Options of `pillm bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import InputFile, NoEffect, StageOptions, unit

Measure = Literal["speed", "latency", "load", "memory", "embeddings"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0"]


class BenchOptions(StageOptions):
    """Measure a GGUF file with llama-bench and llama-server, on this machine or on a board, and keep it in the history."""

    model: Annotated[Path, InputFile()] = Field(description="GGUF file")
    host: str | None = Field(
        None,
        pattern=r"^[^-\s]\S*$",
        description="Measure there over ssh, as pi@raspberrypi or a name of ssh's config",
    )
    measure: tuple[Measure, ...] = Field(
        ("speed", "latency", "load", "memory", "embeddings"), min_length=1, description="What to measure"
    )
    threads: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Thread counts for llama-bench (default: all cores, and half of them where there are 4 or more)"
    )
    splits: tuple[Annotated[str, Field(pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")], ...] = Field(
        (),
        description="llama-server's threads for decode/prefill, as 2/4 (default: all cores, and half/all with 4 or more)",
    )
    prompt_tokens: int = Field(
        256, ge=0, description="Length of the prompt; 0 skips prefill in llama-bench", json_schema_extra=unit("tokens")
    )
    gen_tokens: int = Field(
        64, ge=0, description="Length of the answer; 0 skips decode in llama-bench", json_schema_extra=unit("tokens")
    )
    depth: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="Context depths to measure at", json_schema_extra=unit("tokens")
    )
    repetitions: int = Field(3, ge=1, description="Runs of each test of llama-bench")
    requests: int = Field(3, ge=1, description="Streamed answers for each split of threads")
    context: int = Field(2048, ge=16, description="Context of the server", json_schema_extra=unit("tokens"))
    type_k: CacheType = Field("f16", description="Type of the cached keys")
    type_v: CacheType = Field("f16", description="Type of the cached values")
    min_tps: float | None = Field(
        None, ge=0, description="Gate: least speed of decode", json_schema_extra=unit("tokens/s")
    )
    max_rss: str | None = Field(
        None,
        pattern=r"^[0-9]+(\.[0-9]+)?([kMGT]i?)?B?$",
        description="Gate: most resident memory of the server, as 900MB or 1.5GiB",
    )
    max_ttft_ms: float | None = Field(
        None, ge=0, description="Gate: longest time to the first token (median)", json_schema_extra=unit("ms")
    )
    limit: float = Field(
        1800.0, ge=1, description="End a program that says nothing for this long", json_schema_extra=unit("s")
    )
    host_llama: str | None = Field(
        None,
        description="Folder of llama-bench and llama-server on the host (default: PATH, then /usr/lib/pillm*)",
    )
    ssh_config: Annotated[Path | None, NoEffect()] = Field(
        None, description="ssh's configuration file (default: ssh's own)"
    )
    history: Annotated[bool, NoEffect()] = Field(True, description="Add the run to the history of this machine's user")
