"""Options of `pillm deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pillm.core.options import InputFile, NoEffect, Options, unit


class DeployOptions(Options):
    """Install the runtime and a model on boards over ssh, start the service, check that it answers; or go back."""

    model: Annotated[Path | None, InputFile()] = Field(
        None, description="GGUF file, or a package of pillm package model (not with --rollback)"
    )
    host: tuple[Annotated[str, Field(pattern=r"^[^-\s]\S*$")], ...] = Field(
        min_length=1, description="Board, as pi@raspberrypi or a name of ssh's config; several at once"
    )
    name: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        max_length=40,
        description="The model's name on the board (default: after the file)",
    )
    license: str | None = Field(None, description="SPDX id of the model's licence (default: as the GGUF file says)")
    runtime: Annotated[Path | None, InputFile()] = Field(
        None, description="Package of pillm package runtime (default: built for the board, once)"
    )
    rollback: bool = Field(False, description="Go back to what the last deploy found on the board")
    wait: int = Field(60, ge=0, description="Wait for another program that installs there", json_schema_extra=unit("s"))
    limit: int = Field(
        300, ge=1, description="Time for the server to start, and to answer", json_schema_extra=unit("s")
    )
    prompt: str = Field("What is the capital of France?", description="What the server is asked first")
    gen_tokens: int = Field(24, ge=1, description="Length of its answer", json_schema_extra=unit("tokens"))
    ssh_config: Annotated[Path | None, NoEffect()] = Field(
        None, description="ssh's configuration file (default: ssh's own)"
    )
