"""The licence of a model, as far as what lies on this machine tells it. Asks nobody."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from pillm.core.errors import PillmError
from pillm.core.paths import expanded
from pillm.core.yaml_lines import Document
from pillm.models import refs

_CARD = "README.md"


def license_of(reference: str) -> str:
    """SPDX id or name of a model's licence; empty where neither the model nor its card says."""
    try:
        match refs.parse(reference):
            case refs.PackageRef(name=name):
                return _of_distribution(name)
            case refs.HubRef() as ref:
                from pillm.models import hub_cache

                commit = hub_cache.cached_commit(ref)
                return _of_path(hub_cache.snapshot(ref.repo, commit)) if commit else ""
            case refs.PathRef(path=path):
                return _of_path(expanded(path))
            case _:
                return ""
    except PillmError:
        return ""


def _of_distribution(name: str) -> str:
    from pillm.models.distributions import KNOWN

    if known := KNOWN.get(name):
        return known.license
    try:
        told = dict(metadata.metadata(name).json)
    except metadata.PackageNotFoundError:
        return ""
    return str(told.get("license_expression") or told.get("license") or "")


def _of_path(path: Path) -> str:
    """What a GGUF file says of itself, else what the model card beside it says."""
    from pillm.llamacpp.gguf_file import describe

    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))[:1] if path.is_dir() else []
    for file in files:
        if told := describe(file).metadata.get("general.license"):
            return str(told)
    card = _front_matter((path.parent if path.is_file() else path) / _CARD)
    name = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return name if isinstance(name, str) else ""


def _front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the top of a model card, between two lines of dashes."""
    try:
        text = card.read_text("utf-8", errors="replace")
    except OSError:
        return {}
    head, _, rest = text.partition("\n")
    if head.strip() != "---":
        return {}
    data = Document(str(card), rest.partition("\n---")[0].encode()).data
    return data if isinstance(data, dict) else {}
