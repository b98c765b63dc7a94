"""What data cannot tell of itself: the about file, a page of YAML with the maker's answers.

The questions are those of Gebru et al., "Datasheets for Datasets" (2021), of Bender & Friedman,
"Data Statements for NLP" (2018), and of Croissant's RAI vocabulary 1.0. One answer serves all three.

    python -m pillm.data.card.about > about.yaml

writes one to start from: every key with its question, as comments.
"""

from __future__ import annotations

import datetime
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from pillm.core.errors import FindingsError, UsageError
from pillm.core.findings import Finding
from pillm.core.yaml_lines import Document, Place, dotted

NAME = "about.yaml"
"""The about file that is read where it lies beside the data or in the card's folder."""

Creator = Literal["found", "crowdsourced", "expert-generated", "machine-generated", "no-annotation", "other"]


def _is_date(text: str) -> str:
    datetime.date.fromisoformat(text)
    return text


def _is_link(text: str) -> str:
    if not text.startswith(("https://", "http://")):
        raise ValueError("must begin with https:// or http://")
    return text


def _is_name(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise ValueError("must be letters, digits, _, . and - only")
    return text


def _is_version(text: str) -> str:
    if not re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)([-+][0-9A-Za-z.+-]+)?", text):
        raise ValueError("must be MAJOR.MINOR.PATCH, such as 1.0.0")
    return text


def _is_license(text: str) -> str:
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression as error:
        raise ValueError(f"must be an SPDX expression, such as CC-BY-4.0 or LicenseRef-NAME ({error})") from error


Name = Annotated[str, AfterValidator(_is_name)]
Version = Annotated[str, AfterValidator(_is_version)]
License = Annotated[str, AfterValidator(_is_license)]
Date = Annotated[str, AfterValidator(_is_date)]
Link = Annotated[str, AfterValidator(_is_link)]


def _ask(question: str, *, sheet: str = "", statement: str = "", rai: str = "", many: bool = False) -> Any:
    """A question: its section in the datasheet, its heading in the data statement, its RAI property."""
    places = {"sheet": sheet, "statement": statement, "rai": rai}
    extra: dict[str, JsonValue] = {name: place for name, place in places.items() if place}
    if many:
        return Field(default_factory=list, description=question, json_schema_extra=extra)
    return Field(default=None, description=question, json_schema_extra=extra)


class About(BaseModel):
    """The maker's answers. What is left out is shown as not stated."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name | None = _ask("Short name without blanks, as in a path")
    title: str | None = _ask("Name as people write it")
    version: Version | None = _ask("Version, as MAJOR.MINOR.PATCH")
    published: Date | None = _ask("Day of publication, as YYYY-MM-DD")
    description: str | None = _ask("What is it, in a few sentences?")
    license: License | None = _ask("Licence of the whole, as an SPDX expression", sheet="Distribution")
    citation: str | None = _ask("How is it to be cited? (BibTeX, if there is a publication)")
    homepage: Link | None = _ask("Address of its page")
    creators: list[str] = _ask("Who made it, for whom?", sheet="Motivation", many=True)
    contact: str | None = _ask("Who answers questions, and where?", sheet="Maintenance")
    keywords: list[str] = _ask("Words to find it by", many=True)
    annotations_creators: list[Creator] = _ask("Where do the assistant's answers come from?", many=True)
    language_creators: list[Creator] = _ask("Where do the other texts come from?", many=True)
    varieties: dict[str, str] = Field(
        default_factory=dict,
        description="What is to be said of a variety, by its language tag: whose it is, what is special to it",
        json_schema_extra={"statement": "Language variety"},
    )

    purpose: str | None = _ask("What was it made for? Which gap was to be filled?", sheet="Motivation")
    funding: str | None = _ask("Who paid for it?", sheet="Motivation")
    sampling: str | None = _ask(
        "Is it all there is, or a sample? Of what, and how was it drawn?",
        sheet="Composition", statement="Curation rationale",
    )  # fmt: skip
    curation: str | None = _ask("Which texts were chosen, and why?", statement="Curation rationale")
    noise: str | None = _ask(
        "Are there known errors, noise or missing values?", sheet="Composition", rai="rai:dataCollectionMissingData"
    )
    external: str | None = _ask("Does it rely on anything outside, such as links?", sheet="Composition")
    offensive: str | None = _ask("Is there anything that may offend or hurt?", sheet="Composition")
    personal_data: list[str] = _ask(
        "Is there anything about real people, or by which they can be told? Anything sensitive?",
        sheet="Composition", rai="rai:personalSensitiveInformation", many=True,
    )  # fmt: skip
    biases: list[str] = _ask(
        "Which groups, subjects or forms are over- or under-represented?",
        sheet="Composition", rai="rai:dataBiases", many=True,
    )  # fmt: skip

    collection: str | None = _ask("How did the texts come about?", sheet="Collection", rai="rai:dataCollection")
    collection_types: list[str] = _ask(
        "In a word each: Manual Human Curator, Software Collection, Surveys, Web Scraping, ...",
        sheet="Collection", rai="rai:dataCollectionType", many=True,
    )  # fmt: skip
    collection_dates: list[Date] = _ask(
        "First and last day of the collection, as YYYY-MM-DD",
        sheet="Collection", rai="rai:dataCollectionTimeframe", many=True,
    )  # fmt: skip
    collectors: str | None = _ask("Who took part, and how were they paid?", sheet="Collection")
    consent: str | None = _ask("Did the people concerned know and agree? Can they withdraw?", sheet="Collection")
    ethics_review: str | None = _ask("Was there an ethical review?", sheet="Collection")
    speakers: str | None = _ask(
        "Who wrote or said the texts: age, gender, origin, first language, as far as is known?",
        statement="Speaker demographic",
    )
    situation: str | None = _ask(
        "When and where, spoken or written, spontaneous or edited, for which reader?", statement="Speech situation"
    )
    text_characteristics: str | None = _ask("Which genre, subjects and structure?", statement="Text characteristics")
    provenance: str | None = _ask(
        "Are there earlier datasets in it, and what do their statements say?", statement="Provenance appendix"
    )

    annotation: str | None = _ask(
        "How were answers and labels made and checked?",
        sheet="Preprocessing and labelling", rai="rai:dataAnnotationProtocol",
    )  # fmt: skip
    annotators: list[str] = _ask(
        "Who labelled: how many, trained how, first language and origin as far as is known?",
        sheet="Preprocessing and labelling", statement="Annotator demographic", rai="rai:annotatorDemographics",
        many=True,
    )  # fmt: skip
    annotation_platform: list[str] = _ask(
        "On which platforms?", sheet="Preprocessing and labelling", rai="rai:dataAnnotationPlatform", many=True
    )
    annotation_analysis: list[str] = _ask(
        "How was agreement measured, and what came of it?", sheet="Preprocessing and labelling",
        rai="rai:dataAnnotationAnalysis", many=True,
    )  # fmt: skip
    annotations_per_item: str | None = _ask(
        "How many labels has each item?", sheet="Preprocessing and labelling", rai="rai:annotationsPerItem"
    )
    machine_annotation: list[str] = _ask(
        "Which models or programs labelled?", sheet="Preprocessing and labelling", rai="rai:machineAnnotationTools",
        many=True,
    )  # fmt: skip
    preprocessing: list[str] = _ask(
        "What was done to the texts: cleaned, filtered, split, normalized?", sheet="Preprocessing and labelling",
        rai="rai:dataPreprocessingProtocol", many=True,
    )  # fmt: skip
    raw_data: str | None = _ask(
        "Is the raw data kept, and where?", sheet="Preprocessing and labelling", rai="rai:dataCollectionRawData"
    )

    intended_uses: list[str] = _ask("What is it good for?", sheet="Uses", rai="rai:dataUseCases", many=True)
    earlier_uses: str | None = _ask("What has it been used for?", sheet="Uses")
    uses_to_avoid: list[str] = _ask("What should it not be used for?", sheet="Uses", many=True)
    social_impact: str | None = _ask(
        "What may its use do to people, for better or worse?", sheet="Uses", rai="rai:dataSocialImpact"
    )
    known_gaps: list[str] = _ask(
        "What is it known not to cover?", sheet="Composition", rai="rai:dataLimitations", many=True
    )
    distribution: str | None = _ask("How is it given away, and since when?", sheet="Distribution")
    restrictions: str | None = _ask("Do others hold rights in it? Do export rules apply?", sheet="Distribution")
    maintenance: str | None = _ask(
        "Who mends and extends it, how often, and for how long?", sheet="Maintenance",
        rai="rai:dataReleaseMaintenancePlan",
    )  # fmt: skip
    errata: str | None = _ask("Where are known mistakes listed?", sheet="Maintenance")
    contributions: str | None = _ask("How can others add to it?", sheet="Maintenance")


class Question(NamedTuple):
    """A key of the about file, what it asks, and where its answer goes."""

    key: str
    text: str
    sheet: str
    statement: str
    rai: str


def questions() -> list[Question]:
    """All keys of the about file, in order."""
    return [Question(key, field.description or "", *_places(field)) for key, field in About.model_fields.items()]


def read(path: Path) -> dict[str, Any]:
    """The answers of an about file; what is not stated is left out.

    Raises UsageError if it cannot be read, FindingsError with `file:line` of all that is wrong in it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})", "give a YAML file with --about") from error
    document = Document(str(path), data)
    found = list(document.findings)
    stated: dict[str, Any] = {}
    if not found:
        given = {} if document.data is None else document.data
        if isinstance(given, dict):
            # A known key without a value is a question that is still open.
            given = {key: value for key, value in given.items() if not _empty(value) or key not in About.model_fields}
        try:
            stated = About.model_validate(given).model_dump(mode="json")
        except ValidationError as error:
            found = [_finding(document, item) for item in error.errors(include_url=False)]
    if found:
        count = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
        raise FindingsError(f"{path}: {count}", found, "docs/dataset.md lists the keys")
    return {key: value for key, value in stated.items() if not _empty(value)}


def beside(folders: list[Path]) -> Path | None:
    """The first `about.yaml` in these folders."""
    return next((path for folder in folders if (path := folder / NAME).is_file()), None)


def template() -> Iterator[str]:
    """An about file to start from: every key as a comment below its question."""
    yield "# What the data cannot tell of itself. Take the # away where you have an answer."
    for key, field in About.model_fields.items():
        yield ""
        yield f"# {field.description}"
        kind = str(field.annotation)
        value = "{}" if kind.startswith("dict") else "[]" if kind.startswith("list") else '""'
        yield f"# {key}: {value}"


def _places(field: FieldInfo) -> tuple[str, str, str]:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return str(extra.get("sheet", "")), str(extra.get("statement", "")), str(extra.get("rai", ""))


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def _finding(document: Document, item: Any) -> Finding:
    place: Place = tuple(item["loc"])
    kind = item["type"]
    code, message = "wrong-value", item["msg"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[0]), list(About.model_fields), n=1)
        code, message = "unknown-key", f"there is no such key{f'; did you mean {near[0]}?' if near else ''}"
    elif kind == "string_type":
        code, message = "wrong-type", "must be text (put quotes around it)"
    elif kind in ("list_type", "dict_type", "model_type"):
        form = "a list, such as [one, two]" if kind == "list_type" else "keys with values"
        code, message = "wrong-type", f"must be {form}"
    elif kind == "value_error":
        message = str(item.get("ctx", {}).get("error", message))
    return Finding(
        file=document.file, line=document.line(place), path=dotted(place), code=code, message=message,
        hint="docs/dataset.md lists the keys",
    )  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write("\n".join(template()) + "\n")
