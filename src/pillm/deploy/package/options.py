"""Options of `pillm package runtime`, `model` and `repo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pillm.core.options import InputFile, Options, StageOptions

VERSION = r"^[0-9][A-Za-z0-9.+~]*$"
"""Debian policy 5.6.12, without epochs and revisions."""
NAME = r"^[a-z0-9][a-z0-9+.-]{0,62}$"
_MAINTAINER = Field(
    None, description="Name <address> of whoever answers for the package (default: $DEBFULLNAME <$DEBEMAIL>)"
)


class RuntimeOptions(StageOptions):
    """Make the Debian package of llama.cpp with its services and tools; cross-builds llama.cpp first if it must (10 minutes, once)."""

    target: Literal["arm64", "amd64"] = Field(
        "arm64", description="Processor: arm64 for a Raspberry Pi, amd64 for a PC"
    )
    package_version: str | None = Field(None, pattern=VERSION, description="Version of the package (default: pillm's)")
    maintainer: str | None = _MAINTAINER


class ModelOptions(StageOptions):
    """Make a Debian package of a model: file, card, licence, table of memory, Modelfile and warm-up."""

    model: Annotated[Path, InputFile()] = Field(description="GGUF file")
    name: str = Field(pattern=NAME, description="Name of the model, as in pillm-model-NAME and pillm-server@NAME")
    package_version: str | None = Field(
        None, pattern=VERSION, description="Version; apt upgrades to a larger one (default: 1.0+ and the file's hash)"
    )
    license: str | None = Field(None, description="SPDX id of the model's licence (default: as the file says)")
    license_file: Annotated[Path | None, InputFile()] = Field(
        None, description="Text of the licence, where Debian does not have it (default: LICENSE beside the model)"
    )
    copyright: str | None = Field(None, description="Who holds the rights (default: as the file says)")
    card: Annotated[Path | None, InputFile()] = Field(
        None, description="Model card (default: README.md beside the model, else one made from the header)"
    )
    manifest: Annotated[Path | None, InputFile()] = Field(
        None, description="manifest.json of the run that made the model, to go with it"
    )
    system: str | None = Field(
        None, description="System message that prompts begin with: computed as the server starts, and in the Modelfile"
    )
    maintainer: str | None = _MAINTAINER


class RepoOptions(Options):
    """Make the folder with these packages a signed apt repository of static files."""

    folder: Annotated[Path, InputFile()] = Field(description="Folder with .deb files, which becomes the repository")
    key: str | None = Field(
        None,
        description="Key that signs it: fingerprint or address of a secret key of gpg (default: the only one there is)",
    )
    suite: str = Field("stable", pattern=r"^[a-z0-9][a-z0-9-]*$", description="Name of the suite in a sources line")
    origin: str = Field("Pi-LLM", pattern=r"^[^\n]+$", description="Origin, by which apt pins packages")
