"""What may be shown: text without tokens, passwords or signed links.

Everything this room shows that it did not word itself (a server's message, pip's output, a reference
as it was typed) goes through `redact` first.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

_HIDDEN = "[hidden]"
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
_PATTERNS = (
    # user:password@ (or a lone token@) of a URL
    (re.compile(r"(?<=://)[^/\s'\"@]*@"), ""),
    # the query of a URL: links to a hub's storage are signed there
    (re.compile(r"(https?://[^\s'\"?#]*)[?#][^\s'\"]*"), r"\1"),
    (re.compile(r"\b(bearer|basic)\s+[^\s'\",]+", re.IGNORECASE), rf"\1 {_HIDDEN}"),
    (re.compile(r"\b(?:hf|api_org|hf_oauth|hf_jwt)_[A-Za-z0-9._-]{8,}"), _HIDDEN),
)


def redact(text: str) -> str:
    """`text` without anything that would let a reader act in the user's name."""
    for secret in _secrets():
        text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _secrets() -> list[str]:
    """The tokens that are in use here: from the environment, and from the stored login."""
    found = [os.environ.get(name, "") for name in _TOKEN_VARIABLES]
    # Asking the client itself could refresh a login over the network; the file holds the same token.
    if constants := sys.modules.get("huggingface_hub.constants"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    # Longest first, so that no secret that contains another leaves a rest; a short word is no token.
    return sorted({secret.strip() for secret in found if len(secret.strip()) >= 8}, key=len, reverse=True)
