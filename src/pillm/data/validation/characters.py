"""Characters that do not belong into a dialogue, and the quick test that a line has none of them.

The quick test works on bytes and errs on the safe side: it may send a good line to the full test,
never a bad one past it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from pillm.data.validation.codes import Fault

# What begins a turn in the templates of Llama, Mistral, Gemma, Qwen, SmolLM, Phi and Zephyr.
_MARKUP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|end_of_text|system|user|assistant|end|tool)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</s>"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BIDI = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
_OVERRIDE = re.compile("[\u202a-\u202e\u2066-\u2069]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_SEPARATOR = re.compile("[\u2028\u2029]")
_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")
# Joiners are letters' business in many scripts and in emoji; between Latin letters they only hide.
_INVISIBLE = re.compile(
    "[\u00ad\u200b\u2060-\u2064\ufeff\ufff9-\ufffb]|(?<![\U0001f3f4\U000e0020-\U000e007e])[\U000e0000-\U000e007f]|(?<=[A-Za-z])[\u200c\u200d](?=[A-Za-z])"
)
_NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef\ufffe\uffff"
    + "".join(f"{chr(p * 0x10000 + 0xFFFE)}{chr(p * 0x10000 + 0xFFFF)}" for p in range(1, 17))
    + "]"
)
# A lead byte of UTF-8 and what follows it, read as Windows-1252: "Ã©", "â€™".
_MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf]|â[€\u0080][\u0080-\u00bf˜™œ\u009d“”¦]|ï»¿")
# Paths are made for every value inside of a key: a key of megabytes would be copied for each.
_KEY_SHOWN = 200
_WORD_SHOWN = 40
_LATIN = "A-Za-zÀ-ÖØ-öø-ɏ"
# Greek letters stand beside Latin ones in units and formulas; those that look like Latin ones do not.
_LOOKALIKE = (
    "\u0400-\u052f\u0391\u0392\u0395-\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf\u03bd\u03b9"
)
_LOOKALIKES = re.compile(f"[{_LOOKALIKE}]")
_MIXED = re.compile(f"[{_LATIN}][{_LOOKALIKE}]|[{_LOOKALIKE}][{_LATIN}]")
# Composing takes time with the square of a run of marks; nobody writes so many on one letter.
_MARKS = re.compile(
    "[\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0711-\u074a\u07eb-\u07fd\u0816-\u082d"
    "\u0859-\u085b\u0890-\u08ff\u093c-\u094d\u0951-\u0954\u09bc-\u0dca\u0e38-\u0e4b\u0eb8-\u0ecb\u0f18-\u0fc6\u1037-\u103a\u135d-\u135f"
    "\u1714-\u1734\u17d2-\u17dd\u18a9\u1939-\u193b\u1a17-\u1aff\u1b34-\u1bf3\u1c37\u1cd0-\u1cf9\u1dc0-\u1dff\u20d0-\u20f0\u2cef-\u2cf1"
    "\u2d7f-\u2dff\u302a-\u302f\u3099\u309a\ua66f-\ua6f1\ua806-\ua8f1\ua92b-\uabed\ufb1e\ufe20-\ufe2f\U000101fd-\U0001e94a]{64}"
)
_SURROGATE = re.compile("[\ud800-\udfff]")

_SIMPLE = (
    ("lone-surrogate", _SURROGATE),
    ("control-character", _CONTROL),
    ("noncharacter", _NONCHARACTER),
    ("bidi-control", _BIDI),
    ("line-separator", _SEPARATOR),
    ("invisible-character", _INVISIBLE),
    ("private-character", _PRIVATE),
)

_ASCII = bytes(range(128))
# The characters above that are faults by themselves, in one class; joiners are left to the full test.
_ODD = re.compile(
    "[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ue000-\uf8ff\ufdd0-\ufdef\ufeff\ufff9-\uffff"
    "\U000e0000-\U000e007f\U000f0000-\U0010ffff"
    + "".join(f"{chr(p * 0x10000 + 0xFFFE)}{chr(p * 0x10000 + 0xFFFF)}" for p in range(1, 15))
    + "]"
)
# Escapes of letters and signs that are beyond doubt; all others, and all of ASCII, go to the full test.
_ESCAPE = re.compile(
    rb"\\u(?!00[bdefBDEF][0-9a-fA-F]|00[aA][0-9abcefABCEF]|00[cC][0-9a-fA-F]|01[0-9a-fA-F]{2}|201[0-9a-fA-F]|20[23][026]"
    rb"|20[aA][cC]|2122|[4-9][0-9a-fA-F]{3}|30[4-6][0-9a-fA-F]|[dD]83[c-eC-E]\\u[dD][c-fC-F])"
    rb"|\\u00[cC][23]\\u00|\\u00[eE]2\\u20[aA][cC]|\\u00[eE][fF]\\u00"
)


def plain(line: bytes) -> bool:
    """Whether the line holds nothing that `faults` would name. False where that takes a closer look."""
    if b"\\" in line and (b"\\b" in line or b"\\f" in line or (b"\\u" in line and not _plain_escapes(line))):
        return False
    if b"\x7f" in line or b"INST]" in line or (b"<" in line and not _plain_markup(line)):
        return False
    if line.isascii():
        return True
    text = line.decode()
    # Most is asked of the few characters beyond ASCII alone.
    rest = line.translate(None, _ASCII).decode()
    if _ODD.search(rest) or _MOJIBAKE.search(rest) or _MARKS.search(rest):
        return False
    if not unicodedata.is_normalized("NFC", text):
        return False
    return not _LOOKALIKES.search(rest) or not _MIXED.search(text)


def _plain_markup(line: bytes) -> bool:
    # A slash may be escaped, and any letter may be written as a number.
    return b"\\u" not in line and not _MARKUP.search(line.decode().replace("\\/", "/"))


def _plain_escapes(line: bytes) -> bool:
    # Signs of which one half is written as an escape are rare enough for the full test.
    return line.isascii() and not _ESCAPE.search(line)


def faults(value: Any, path: str = "$") -> Iterator[Fault]:
    """What is wrong with the characters of every string and key in a decoded line."""
    if isinstance(value, str):
        yield from _of_text(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = member(path, key)
            for fault in _of_text(key, inner):
                yield fault._replace(message=f"the key itself: {fault.message}")
            yield from faults(item, inner)


def member(path: str, key: str) -> str:
    """The JSONPath of an object's member."""
    if len(key) <= _KEY_SHOWN and key.isidentifier() and key.isascii():
        return f"{path}.{key}"
    cut = key if len(key) <= _KEY_SHOWN else f"{key[:_KEY_SHOWN]}..."
    shown = cut.encode("utf-8", "backslashreplace").decode()
    return f"{path}[{shown!r}]"


def place(path: str, steps: list[str | int]) -> str:
    """A JSONPath with the steps of an instance path behind it."""
    for step in steps:
        path = f"{path}[{step}]" if isinstance(step, int) else member(path, step)
    return path


def nfc(text: str) -> str:
    """The text in composed form; as it is, if a letter has so many marks that composing would take too long."""
    return text if _MARKS.search(text) else unicodedata.normalize("NFC", text)


def _of_text(text: str, path: str) -> Iterator[Fault]:
    if text.isascii() and text.isprintable() and "<" not in text and "[" not in text:
        return
    for code, given in _SIMPLE:
        # In text that runs from right to left, marks of direction are typed like any other character.
        pattern = _OVERRIDE if given is _BIDI and _RIGHT_TO_LEFT.search(text) else given
        if match := pattern.search(text):
            yield Fault(code, path, f"{_name(match[0])} at character {match.start() + 1}{_more(pattern, text)}")
    if "\ufffd" in text:
        yield Fault(
            "replacement-character",
            path,
            f"U+FFFD at character {text.index(chr(0xFFFD)) + 1}: a character was lost here",
        )
    if match := _MOJIBAKE.search(text):
        around = text[max(0, match.start() - 12) : match.end() + 12]
        yield Fault("mojibake", path, f"{around!r} looks like UTF-8 that was read as Windows-1252")
    if match := _MIXED.search(text):
        shown = _word_at(text, match.start())
        odd = next(letter for letter in match[0] if re.match(f"[{_LOOKALIKE}]", letter))
        yield Fault("mixed-scripts", path, f"the word {shown!r} has Latin letters beside {_name(odd)}")
    if _MARKS.search(text):
        yield Fault("not-nfc", path, "a letter with 64 combining marks or more", "take them out")
    elif not unicodedata.is_normalized("NFC", text):
        pairs = zip(text, nfc(text), strict=False)
        bad = next((index for index, (given, composed) in enumerate(pairs) if given != composed), len(text) - 1)
        yield Fault("not-nfc", path, f"a decomposed character at character {bad + 1} ({_name(text[bad])})")
    # `<s>...</s>` is how HTML strikes text through.
    if (match := _MARKUP.search(text)) and not (match[0] == "</s>" and "<s>" in text[: match.start()]):
        yield Fault("chat-markup", path, f"the text holds {match[0]!r}, which chat templates take as a marker")


def _word_at(text: str, place: int) -> str:
    before = re.search(r"\w*$", text[max(0, place - _WORD_SHOWN) : place])
    after = re.match(r"\w*", text[place : place + _WORD_SHOWN])
    return (before[0] if before else "") + (after[0] if after else "")


def _more(pattern: re.Pattern[str], text: str) -> str:
    count = sum(1 for _ in pattern.finditer(text))
    return f" (and {count - 1} more)" if count > 1 else ""


def _name(letter: str) -> str:
    name = unicodedata.name(letter, "")
    return f"U+{ord(letter):04X}{f' ({name})' if name else ''}"
