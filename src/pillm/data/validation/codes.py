"""Everything that can be wrong with a dataset, by code: how bad it is, what it means, what to do.

The one table behind findings, SARIF rules, the fault corpus of the tests, and docs/dataset.md.
"""

from __future__ import annotations

from typing import NamedTuple

from pillm.core.findings import Finding, Severity


class Code(NamedTuple):
    """One kind of fault."""

    severity: Severity
    meaning: str
    fix: str
    mendable: bool = False
    """Whether `--fix` mends it without guessing."""


class Fault(NamedTuple):
    """A fault in one line: its code, JSONPath and message; a hint where the table's does not do.

    `byte` is where in the line it stands, if that is known.
    """

    code: str
    path: str
    message: str
    hint: str = ""
    byte: int = 0


CODES: dict[str, Code] = {
    # The file and its bytes.
    "empty": Code("error", "the file holds no record", "give a file with one record a line"),
    "broken-archive": Code("error", "the compressed file is cut off or damaged", "compress or copy it again"),
    "line-too-long": Code("error", "the line is longer than 16 MiB and was not read", "split it into records"),
    "not-utf8": Code("error", "a byte that is no UTF-8", "save the file as UTF-8"),
    "not-utf16": Code("error", "the file is UTF-16 or UTF-32", "save the file as UTF-8"),
    "byte-order-mark": Code("warning", "a byte order mark before the first line", "save as UTF-8 without it", True),
    "windows-line-end": Code("warning", "lines end with CR LF", "save with LF line ends", True),
    "blank-line": Code("warning", "a line with nothing in it", "take it out", True),
    # JSON.
    "not-json": Code("error", "the line is no JSON", "each line is one JSON object"),
    "lone-surrogate": Code("error", "half of a \\ud800 pair, which is no character", "write the character itself"),
    "too-deep": Code("error", "JSON that is nested too deeply", "flatten it"),
    "number-out-of-range": Code("error", "a number that no program can hold", "write it as text, or smaller"),
    "duplicate-key": Code("error", "the same key twice in one object; readers disagree on which one counts",
                          "leave one of them"),
    # The shape of a record.
    "not-an-object": Code("error", "the line is JSON, but no object", "each line is one JSON object"),
    "missing-field": Code("error", "a field that must be there is not", "see docs/dataset.md"),
    "wrong-type": Code("error", "a field of another type than it must have", "see docs/dataset.md"),
    "unknown-field": Code("warning", "a field that pillm does not know and would ignore",
                          "check its spelling, or put it below `meta`"),
    "empty-id": Code("error", "the id is empty or only blanks", "give each record an id of its own"),
    "duplicate-id": Code("error", "an earlier record has this id", "give each record an id of its own"),
    "no-messages": Code("error", "there are no messages", "give at least the user's"),
    "unknown-role": Code("error", "a role that is none of system, developer, user, assistant, tool", "name one of these"),
    "misplaced-field": Code("error", "a field that messages of this role do not have", "move it, or take it out"),
    "content-parts": Code("error", "content as a list of parts; pillm takes text", "join the text parts", True),
    "empty-message": Code("error", "a message with neither text nor tool calls", "give it content or tool_calls"),
    "blank-message": Code("error", "a message with nothing but blanks", "give it content or tool_calls"),
    "arguments-as-text": Code("error", "tool-call arguments as a string of JSON", "write them as an object", True),
    "empty-name": Code("error", "a name that is empty", "name the tool"),
    "odd-name": Code("warning", "a tool's name with other characters than letters, digits, _ and -, or over 64 of them",
                     "servers refuse such names"),
    "bad-locale": Code("error", "not a language tag (BCP 47)", "write it like fr-CA"),
    "locale-form": Code("warning", "a language tag in unusual form", "write it as proposed", True),
    "duplicate-tag": Code("warning", "the same tag twice", "leave one of them", True),
    "blank-tag": Code("warning", "an empty tag", "take it out", True),
    "unknown-license": Code("warning", "no SPDX licence expression", "write it like CC-BY-4.0, or LicenseRef-NAME"),
    # The dialogue.
    "system-not-first": Code("error", "a system message after another one", "put it first"),
    "second-system": Code("warning", "more than one system message", "join them"),
    "assistant-first": Code("warning", "the assistant speaks before the user", "many chat templates refuse this"),
    "no-user-turn": Code("error", "no message of the user", "give what the assistant answers"),
    "user-twice": Code("warning", "two turns of the user in a row", "join them; many chat templates refuse this"),
    "assistant-twice": Code("warning", "two turns of the assistant in a row", "join them; many chat templates refuse this"),
    "ends-on-system": Code("error", "the dialogue ends on a system message", "end on the assistant, or on a prompt"),
    "orphan-result": Code("error", "a tool result that answers no open call", "take it out, or mend its tool_call_id"),
    "unanswered-call": Code("error", "a call without a result, and the dialogue goes on", "add the tool's result"),
    "answered-twice": Code("error", "two results for one call", "leave one of them"),
    "duplicate-call-id": Code("error", "two calls with the same id", "give each call an id of its own"),
    "missing-call-id": Code("error", "calls and results that cannot be matched for want of ids", "give each call an id, and its result the same tool_call_id"),
    "result-name-differs": Code("error", "a result under another tool's name than the call", "name the tool that was called"),
    "undeclared-tool": Code("error", "a called tool that is not declared", "declare it under `tools`, or mend the name"),
    "wrong-arguments": Code("error", "arguments that do not fit the tool's schema", "mend the call or the schema"),
    "unchecked-arguments": Code("warning", "arguments that could not be checked", "mend the tool's schema"),
    "answer-not-json": Code("error", "there is a response_schema, and the answer is no JSON", "answer with JSON alone"),
    "answer-misfit": Code("error", "the answer does not fit response_schema", "mend the answer or the schema"),
    "template-refuses": Code("error", "the chat template refuses the dialogue", "mend the order of the turns"),
    "too-many-tokens": Code("error", "longer than the context", "shorten it, or give a larger --context"),
    # Tools and schemas.
    "duplicate-tool": Code("error", "two declared tools with one name", "leave one of them"),
    "invalid-schema": Code("error", "no valid JSON Schema", "see json-schema.org"),
    "unknown-draft": Code("error", "a $schema that is no known draft", "2020-12, 2019-09, 7, 6 and 4 are known"),
    "remote-ref": Code("error", "a $ref to another document; nothing is ever fetched", "put the schema under $defs"),
    "dangling-ref": Code("error", "a $ref to nothing", "mend the $ref"),
    "ref-loop": Code("error", "a $ref that leads back to itself without going deeper", "mend the $ref"),
    "schema-too-deep": Code("error", "a schema that is nested too deeply", "flatten it"),
    "costly-schema": Code("error", "a schema that could take exponential time", "use fewer nested alternatives of $ref"),
    "parameters-not-object": Code("warning", "tool parameters that are not of type object", 'write "type": "object"'),
    "required-undeclared": Code("warning", "a required argument that is not among the properties", "declare it"),
    "enum-misfit": Code("warning", "an enum value that the same schema's type forbids", "mend the type or the value"),
    # Characters.
    "control-character": Code("error", "a control character", "take it out"),
    "noncharacter": Code("error", "a code point that is no character", "take it out"),
    "replacement-character": Code("warning", "U+FFFD, the mark of a character that was lost", "find the original text"),
    "mojibake": Code("warning", "UTF-8 that was read as Latin-1 or Windows-1252", "decode the original text as UTF-8"),
    "not-nfc": Code("warning", "characters in decomposed form", "normalize to NFC", True),
    "mixed-scripts": Code("warning", "a word with letters of two scripts that look alike", "write it in one script"),
    "bidi-control": Code("warning", "an invisible mark that changes the direction of the text", "take it out"),
    "invisible-character": Code("warning", "a character that is not seen", "take it out"),
    "line-separator": Code("warning", "U+2028 or U+2029, which some readers take as the line's end", "use \\n"),
    "private-character": Code("warning", "a private-use character, which means nothing elsewhere", "take it out"),
    "chat-markup": Code("warning", "a chat template's own marker inside a text", "take it out: it would end the turn"),
    # What `split`, `dedup` and `convert` say.
    "not-a-record": Code("error", "a line that is no record", "run: pillm dataset validate"),
    "leakage": Code("error", "a record that repeats one of another split, exactly or nearly", "take it out of one of them"),
    "not-convertible": Code("error", "a record that cannot be read from, or written to, a format", "mend it, or leave it out"),
    # What `coverage` and `card` say of languages.
    "other-language": Code("warning", "a text in another language than the record declares", "mend the locale or the text"),
    "other-variety": Code("warning", "words of other varieties than the one that the record declares", "mend the locale or the words"),
}  # fmt: skip


def finding(fault: Fault, file: str, line: int, byte: int) -> Finding:
    """A fault of a line that begins at `byte` of `file`, as a finding."""
    code = CODES[fault.code]
    return Finding(
        # A name may have bytes that are no UTF-8, and a report is UTF-8.
        file=file.encode("utf-8", "backslashreplace").decode(),
        line=line,
        byte=byte + fault.byte,
        path=fault.path,
        code=fault.code,
        severity=code.severity,
        message=fault.message,
        hint=fault.hint or code.fix,
    )
