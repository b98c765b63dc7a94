"""Hashes by which a teacher's distributions and a student are found to speak of the same tokens and texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """Hex sha256 of a map from token to id (`tokenizer.get_vocab()`), as JSON sorted by token."""
    # ASCII, since some vocabularies have half of a surrogate pair, which UTF-8 has not.
    text = json.dumps(sorted(vocabulary.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def template_hash(template: Any) -> str:
    """Hex sha256 of the source of a `pillm.models.chat.ChatTemplate`."""
    return hashlib.sha256(template.source.encode("utf-8", "surrogatepass")).hexdigest()
