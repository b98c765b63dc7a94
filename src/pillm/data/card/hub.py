"""The front matter of a Hugging Face dataset card: what the Hub shows, finds and loads the dataset by.

Names and values are those of the Hub's datasetcard.md.
"""

from __future__ import annotations

import re
from typing import Any

from pillm.core.shipped import PREFIX
from pillm.data.card.source import Card

# Identifiers that are SPDX's in lower case; the Hub takes no others.
_LICENSES = frozenset(
    # A list with a line for each would be longer than the rest of this file.
    """apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda-1.0 cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 isc lppl-1.3c
    ms-pl mpl-2.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib""".split()  # noqa: SIM905
)
# SPDX says whether later versions will do, too; the Hub does not.
_VERSIONED = re.compile(r"(agpl-3\.0|gpl-2\.0|gpl-3\.0|lgpl-2\.1|lgpl-3\.0)(-only|-or-later)?")
_OTHER_NAMES = {"odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl", "c-uda-1.0": "c-uda"}
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def front_matter(card: Card) -> dict[str, Any]:
    """Keys and values for the YAML at the top of README.md."""
    about, counts = card.about, card.statistics
    locales = sorted(counts.locales.counts)
    languages = sorted({code for locale in locales if (code := language(locale))})
    matter: dict[str, Any] = {
        "pretty_name": title(card),
        "language": languages,
        "language_details": locales,
        "multilinguality": [] if not languages else ["monolingual" if len(languages) == 1 else "multilingual"],
        **_license(licenses(card)),
        "annotations_creators": about.get("annotations_creators", []),
        "language_creators": about.get("language_creators", []),
        "size_categories": [size_category(counts.records)],
        "task_categories": ["text-generation"],
        "tags": _tags(card),
        "configs": _configs(card),
    }
    return {key: value for key, value in matter.items() if value not in ([], "")}


def title(card: Card) -> str:
    """The dataset's name as people write it, on one line."""
    return " ".join(str(card.about.get("title") or card.about.get("name") or "Untitled dataset").split())


def licenses(card: Card) -> list[str]:
    """The licence that the about file states, else all that the records name."""
    stated = card.about.get("license")
    return [stated] if stated else sorted(card.statistics.licenses.counts)


def language(locale: str) -> str:
    """The language of a tag such as `fr-CA`; empty if it says none."""
    code = locale.partition("-")[0].lower()
    return code if re.fullmatch("[a-z]{2,3}", code) and code not in ("und", "mis", "mul", "zxx") else ""


def hub_license(spdx: str) -> str:
    """The Hub's identifier of a licence; `other` where it has none."""
    name = spdx.lower()
    if match := _VERSIONED.fullmatch(name):
        return match[1]
    return _OTHER_NAMES.get(name, name if name in _LICENSES else "other")


def size_category(records: int) -> str:
    """The Hub's class for a number of records."""
    place = sum(records >= 10 ** (3 + power) for power in range(len(_SIZES)))
    if place == 0:
        return f"n<{_SIZES[0]}"
    return f"{_SIZES[place - 1]}<n<{_SIZES[place]}" if place < len(_SIZES) else f"n>{_SIZES[-1]}"


def _license(names: list[str]) -> dict[str, Any]:
    known = sorted({hub_license(name) for name in names})
    if not names:
        return {"license": "unknown"}
    if "other" in known:
        return {"license": "other", "license_name": ", ".join(names)}
    return {"license": known[0] if len(known) == 1 else known}


def _tags(card: Card) -> list[str]:
    made = ["function-calling"] if card.statistics.tools_called.counts else []
    return sorted({*card.about.get("keywords", []), *made})


def _configs(card: Card) -> list[dict[str, Any]]:
    files: dict[str, list[str]] = {}
    fields: dict[str, set[str]] = {}
    for file in card.files:
        if not file.path.startswith(PREFIX):
            files.setdefault(file.split, []).append(file.path)
            fields.setdefault(file.split, set()).update(file.fields)
    listed = {split: {"split": split, "path": paths if len(paths) > 1 else paths[0]} for split, paths in files.items()}
    if all(found == next(iter(fields.values())) for found in fields.values()):
        return [{"config_name": "default", "data_files": list(listed.values())}] if listed else []
    # The Hub's loader refuses a configuration whose splits have not the same columns.
    first = "train" if "train" in listed else next(iter(listed))
    return [
        {"config_name": split, "data_files": [entry], **({"default": True} if split == first else {})}
        for split, entry in listed.items()
    ]
