"""JSON that cannot go wrong: at each token only those that can still lead to what the schema allows.

llguidance compiles the schema and gives the mask of allowed tokens; it is an optional dependency. Without
it, or for a schema with a feature that it does not know, the schema is shown in the prompt and the answer
is checked, as ever; that is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from pillm.core.events import Emit, Log
from pillm.core.records import Record


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, width: int, ends: Sequence[int]) -> None:
        import numpy as np

        self._matcher = matcher
        self._ends = list(ends)
        self._bits = np.full((1, (width + 31) // 32), -1, dtype=np.int32)

    def mask(self, scores: Any) -> None:
        """Put -inf into `scores` [vocabulary] wherever the token is not allowed. Leaves them alone after an error."""
        import numpy as np
        import torch
        from llguidance.numpy import fill_next_token_bitmask

        if self._matcher.is_error():
            return
        if self._matcher.is_stopped():
            # The JSON is complete: there is nothing left but to end.
            ends = scores[self._ends].clone()
            scores.fill_(float("-inf"))
            scores[self._ends] = ends
            return
        fill_next_token_bitmask(self._matcher, self._bits, 0)
        allowed = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little")[: len(scores)].astype(bool)
        # A model's logits can be more than its tokenizer's tokens.
        scores[: len(allowed)].masked_fill_(~torch.from_numpy(allowed).to(scores.device), float("-inf"))
        scores[len(allowed) :] = float("-inf")

    def take(self, token: int) -> None:
        """Go on by one token. A grammar that breaks down holds nobody any more; the answer is judged anyway."""
        if not (self._matcher.is_error() or self._matcher.is_stopped()):
            self._matcher.consume_token(token)


def maker(tokenizer: Any, ends: Sequence[int], emit: Emit) -> Callable[[Record], Matcher | None]:
    """A function from a record to the grammar of its answer: None where there is no schema, or no grammar for it."""
    compiled: Any = None
    told: set[str] = set()

    def tell(why: str) -> None:
        if why not in told and len(told) < 3:
            told.add(why)
            words = f"no grammar for JSON answers ({why}): the schema is shown in the prompt, and answers are checked"
            emit(Log(words, "warning"))

    @lru_cache(256)
    def grammar(schema: bytes) -> str | None:
        from llguidance import LLMatcher

        # Free white space is where small models lose their way.
        text = LLMatcher.grammar_from_json_schema(schema.decode(), overrides={"whitespace_flexible": False})
        if wrong := LLMatcher.validate_grammar(text, compiled):
            tell(wrong.strip().partition("\n")[0])
            return None
        return text

    def matcher(record: Record) -> Matcher | None:
        nonlocal compiled
        if record.response_schema is None or "none" in told:
            return None
        if compiled is None:
            try:
                from llguidance.hf import from_tokenizer

                compiled = from_tokenizer(tokenizer, eos_token=list(ends), slices=[])
            except ImportError:
                tell("llguidance is not installed; pip install llguidance")
                told.add("none")
                return None
            except (ValueError, TypeError, AttributeError, RuntimeError) as error:
                tell(f"llguidance cannot read this tokenizer: {error}".partition("\n")[0])
                told.add("none")
                return None
        text = grammar(msgspec.json.encode(record.response_schema))
        if text is None:
            return None
        from llguidance import LLMatcher

        return Matcher(LLMatcher(compiled, text, log_level=0), compiled.vocab_size, ends)

    return matcher
