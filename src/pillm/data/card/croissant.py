"""croissant.json: the dataset's files and fields as Croissant 1.1 with the RAI properties 1.0, as JSON-LD.

Loaders find here which file holds what, with its hash. A split is one record set if its files lie below
the card's folder, where a FileSet may look for them; else each file is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pillm.core.shipped import PREFIX
from pillm.data.card import about as card_about
from pillm.data.card import hub as card_hub
from pillm.data.card.source import Card, File

CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0")
_JSON_LINES = "application/jsonlines"
_PACKING = {"gzip": "application/gzip", "zstd": "application/zstd"}
_SPDX = "https://spdx.org/licenses/"
# One licence, not an expression of several, and none that only its owner knows.
_ONE_LICENSE = re.compile(r"(?!LicenseRef-)[A-Za-z0-9.+-]+")

# The context of the specification, 1.1.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_TEXTS = {
    "id": "What the record is called; no two of a file have the same",
    "locale": "Language tag (BCP 47) of the user's turns",
    "register": "formal or informal",
    "source": "Where the record comes from",
    "license": "Licence of the record, as an SPDX expression",
}
# Parts of nested fields: name, path from one element of the list, what it is.
_MESSAGE = (
    ("role", "role", "system, developer, user, assistant or tool"),
    ("content", "content", "Text; empty where the assistant only calls tools"),
    ("called_tool", "tool_calls[0].function.name", "The tool that is called first in this turn"),
)
_TOOL = (
    ("name", "function.name", "What the tool is called"),
    ("description", "function.description", "What it does"),
)


def render(card: Card) -> str:
    """The whole file."""
    return json.dumps(document(card), indent=2, ensure_ascii=False) + "\n"


def document(card: Card) -> dict[str, Any]:
    """The dataset as JSON-LD."""
    about = card.about
    whole: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": about.get("name") or card_hub.title(card),
        "alternateName": about.get("title"),
        "description": about.get("description"),
        "version": about.get("version"),
        "datePublished": about.get("published"),
        "license": [_license(name) for name in card_hub.licenses(card)],
        "citeAs": about.get("citation"),
        "url": about.get("homepage"),
        "creator": [{"@type": "sc:Organization", "name": name} for name in about.get("creators", [])],
        "keywords": about.get("keywords", []),
        "inLanguage": sorted(card.statistics.locales.counts),
        **_rai(card),
        "distribution": [*map(_file_object, card.files), *_file_sets(card)],
        "recordSet": _record_sets(card),
    }
    return {key: value for key, value in whole.items() if value not in (None, [])}


def _license(name: str) -> str:
    return f"{_SPDX}{name}" if _ONE_LICENSE.fullmatch(name) else name


def _rai(card: Card) -> dict[str, Any]:
    """Answers of the about file; gaps that the data shows are limitations, and so are uses to avoid."""
    found = {
        question.rai: card.about[question.key]
        for question in card_about.questions()
        if question.rai and question.key in card.about
    }
    limits = [*card.gaps.stated, *card.gaps.found, *(f"Not for: {use}" for use in card.about.get("uses_to_avoid", []))]
    if limits:
        found["rai:dataLimitations"] = limits
    return dict(sorted(found.items()))


def _file_object(file: File) -> dict[str, Any]:
    packing = [_PACKING[file.packing]] if file.packing else []
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path.rpartition("/")[2],
        "contentUrl": file.path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": [_JSON_LINES, *packing] if packing else _JSON_LINES,
        "sha256": file.sha256,
    }


def _sets(card: Card) -> dict[str, list[File]]:
    """Splits of several files that a FileSet can take together."""
    splits: dict[str, list[File]] = {}
    for file in card.files:
        splits.setdefault(file.split, []).append(file)
    return {
        split: files
        for split, files in splits.items()
        if len(files) > 1 and not any(file.path.startswith(("../", PREFIX)) for file in files)
    }


def _file_sets(card: Card) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileSet",
            "@id": _set_id(split),
            "name": _set_id(split),
            "encodingFormat": _JSON_LINES,
            "includes": [re.sub(r"([*?\[])", r"[\1]", file.path) for file in files],
        }
        for split, files in _sets(card).items()
    ]


def _record_sets(card: Card) -> list[dict[str, Any]]:
    sets = _sets(card)
    found = [
        _record_set(f"dialogues/{split}", {"fileSet": {"@id": _set_id(split)}}, files) for split, files in sets.items()
    ]
    singles = [file for file in card.files if file.split not in sets]
    splits = [file.split for file in singles]
    for file in singles:
        # The split is name enough where it has no other file.
        name = file.split if splits.count(file.split) == 1 else file.path
        found.append(_record_set(f"dialogues/{name}", {"fileObject": {"@id": file.path}}, [file]))
    return found


def _set_id(split: str) -> str:
    return f"files/{split}"


def _record_set(name: str, source: dict[str, Any], files: Sequence[File]) -> dict[str, Any]:
    has = {field for file in files for field in file.fields}
    fields = []
    for field, about in _TEXTS.items():
        if field in has:
            fields.append(_field(f"{name}/{field}", about, source, field))
    fields.append(_nested(f"{name}/messages", "Turns, in order", source, "messages", _MESSAGE))
    if "tools" in has:
        fields.append(_nested(f"{name}/tools", "What the assistant may call", source, "tools", _TOOL))
    if "tags" in has:
        fields.append(
            _field(f"{name}/tags", "Words to group records by", source, "tags") | {"isArray": True, "arrayShape": "-1"}
        )
    rows = sum(file.records for file in files)
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"{rows} dialogues, one a line. Arguments of tool calls, schemas and meta are in the files.",
        "key": {"@id": f"{name}/id"},
        "field": fields,
    }


def _field(name: str, about: str, source: dict[str, Any], column: str, path: str = "") -> dict[str, Any]:
    extracted: dict[str, Any] = {**source, "extract": {"column": column}}
    if path:
        extracted["transform"] = {"jsonPath": path}
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "description": about,
        "dataType": "sc:Text",
        "source": extracted,
    }


def _nested(
    name: str, about: str, source: dict[str, Any], column: str, parts: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "description": about,
        "isArray": True,
        "arrayShape": "-1",
        "subField": [_field(f"{name}/{part}", told, source, column, path) for part, path, told in parts],
    }
