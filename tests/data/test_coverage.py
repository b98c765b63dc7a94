"""Coverage: counts of what is declared, what the text shows against it, targets, and where it says so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pillm.core.errors import FindingsError, GateError, ProfileError, UsageError
from pillm.core.events import Event, Found, Log, Output
from pillm.data import targets
from pillm.data.coverage import Coverage, measure, run
from pillm.data.inputs import BLOCK_BYTES, sources
from pillm.data.options import CoverageOptions

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("set_timer", "set_lights")
]


def record(
    number: int, said: str, locale: str = "fr-CA", register: str = "formal", calls: tuple[str, ...] = (), **more: Any
) -> str:
    answer: dict[str, Any] = {"role": "assistant", "content": "D'accord."}
    if calls:
        answer = {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": {}}} for name in calls]}
    line = {"id": str(number), "messages": [{"role": "user", "content": said}, answer], "tools": TOOLS, **more}
    if locale:
        line |= {"locale": locale}
    if register:
        line |= {"register": register}
    return json.dumps(line, ensure_ascii=False)


LINES = [
    record(1, "Peux-tu magasiner un cadeau pour la fête de Léa?", calls=("set_timer",), tags=["kind:call", "day"]),
    record(
        2, "Réserve une place de parking près de la gare ce week-end.", calls=("set_timer", "set_lights"), tags=["day"]
    ),
    record(3, "Please turn on the lights in the living room now.", register="informal", calls=("set_lights",)),
    record(4, "Allume la lumière de la cuisine, s'il te plaît.", locale="fr-FR", calls=("set_lights", "set_lights")),
    record(5, "Allume la lumière de la cuisine, s'il te plaît.", locale="", register=""),
    record(6, "Le parking du magasin où on peut magasiner est plein aujourd'hui."),
    record(7, "Pon la luz de la sala, por favor, que ya es de noche.", locale="es-CO"),
]


def dataset(folder: Path, lines: list[str], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def test_declared_and_evident_coverage_are_counted_side_by_side(tmp_path: Path) -> None:
    path = dataset(tmp_path, [*LINES[:2], "", "{broken", *LINES[2:]])
    coverage = measure(sources([path]))
    assert (coverage.records, coverage.invalid) == (7, 1)
    cells = {(cell.locale, cell.register, cell.tool): cell for cell in coverage.cells}
    whole = cells["fr-CA", "formal", None]
    assert (whole.records, whole.shown, whole.against, whole.other_language) == (3, 1, 1, 0)
    assert cells["fr-CA", "formal", "set_timer"].records == 2
    assert cells["fr-CA", "informal", "set_lights"].other_language == 1
    # Two calls of one tool are one record.
    assert cells["fr-FR", "formal", "set_lights"].records == 1
    assert {tool.name: (tool.declared, tool.called) for tool in coverage.tools} == {
        "set_timer": (7, 2),
        "set_lights": (7, 3),
    }
    assert coverage.tags == {"day": 2, "kind:call": 1}
    told = {(row.locale, row.language): row.records for row in coverage.languages}
    assert told[("fr-CA", "fr")] == 3
    assert told[("fr-CA", "en")] == 1
    rows = {row.locale: row for row in coverage.varieties}
    quebec = rows["fr-CA"]
    assert (quebec.records, quebec.shown, quebec.against, quebec.mixed, quebec.silent, quebec.other_language) == (
        4,
        1,
        1,
        1,
        0,
        1,
    )
    assert quebec.evidence == {"fr-CA": 1, "fr-FR/fr-BE/fr-CH": 1}
    assert not rows["es-CO"].judged
    assert coverage.warnings == ("1 of 7 records declare no locale",)


def test_what_speaks_against_a_locale_is_a_finding_at_its_line(tmp_path: Path) -> None:
    path = dataset(tmp_path, ["", *LINES])
    coverage = measure(sources([path]))
    assert [(item.line, item.code, item.severity) for item in coverage.findings] == [
        (3, "other-variety", "warning"),
        (4, "other-language", "warning"),
    ]
    assert "week-end" in coverage.findings[0].message
    assert "fr-FR or fr-BE or fr-CH" in coverage.findings[0].message
    assert coverage.findings_in_all == 2
    assert str(coverage.findings[0]).startswith(f"{path}:3: ")


def test_blocks_and_workers_give_the_same_result_and_the_lines_of_the_whole_file(tmp_path: Path) -> None:
    filler = record(0, "Allume la lumière de la cuisine, s'il te plaît. " + "Merci beaucoup! " * 60)
    # The one that speaks against its locale stands in the second block.
    count = BLOCK_BYTES // len(filler.encode()) + 1000
    path = dataset(tmp_path, [filler] * count + [LINES[1]])
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    one = measure(sources([path]), workers=1)
    assert [item.line for item in one.findings] == [count + 1]
    assert measure(sources([path]), workers=2) == one
    other = measure(sources([packed]), workers=1)
    assert [item.line for item in other.findings] == [count + 1]
    assert other.cells == one.cells


def test_targets_are_compared_with_wildcards_and_shares(tmp_path: Path) -> None:
    wanted = tmp_path / "targets.yaml"
    wanted.write_text(
        "targets:\n"
        "  - {locale: fr-CA, register: formal, tool: set_timer, records: 12}\n"
        "  - {tool: set_lights, records: 3}\n"
        "  - locale: fr-CA\n    share: 0.6\n"
        "  - {register: on, records: 1}\n"
    )
    coverage = measure(sources([dataset(tmp_path, LINES)]), targets.read(wanted))
    assert [(row.target.line, row.wanted, row.found, row.missing) for row in coverage.targets] == [
        (2, 12, 2, 10),
        (3, 3, 3, 0),
        (4, 5, 4, 1),
        (6, 1, 0, 1),
    ]
    assert coverage.targets[0].shown == 1
    assert coverage.targets[0].against == 1
    assert coverage.warnings[:3] == (
        "fr-CA, formal, set_timer: 2 of 12 records, 10 are missing",
        "fr-CA: 4 of 5 records, 1 is missing",
        "on: 0 of 1 records, 1 is missing",
    )


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("targets:\n  - {locale: fr-CA, records: none}\n", 2, "not a whole number from 1"),
        ("targets:\n  - {locale: fr-CA}\n", 2, "either `records` or `share`"),
        ("targets:\n  - {records: 1, share: 0.5}\n", 2, "either `records` or `share`"),
        ("targets:\n  - records: 1\n  - share: 1.5\n", 3, "above 0 and up to 1"),
        ("targets:\n  - share: .nan\n", 2, "above 0 and up to 1"),
        ("targets:\n  - records: 1\n    langauge: fr\n", 3, "this key is not known"),
        ("targets:\n  - {records: 1, records: 2}\n", 2, "stands already"),
        ("targets:\n  - {records: 1, tool: [a]}\n", 2, "not a word"),
        ("targets:\n  - just a word\n", 2, "either"),
        ("targets: 3\n", 1, "no list"),
        ("", 1, "no list"),
        ("goals:\n  - {records: 1}\n", 1, "not known"),
    ],
)
def test_a_wrong_targets_file_is_refused_by_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        targets.read(path)
    assert next((item.file, item.line) for item in caught.value.findings) == (str(path), line)
    assert said in caught.value.findings[0].message


@pytest.mark.parametrize("data", [b"targets: [\n", b"\xff", b"a: b: c\n", b"[" * 5000, b"targets: \x00"])
def test_a_targets_file_that_is_no_yaml_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "targets.yaml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"targets\.yaml"):
        targets.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        targets.read(tmp_path / "not-there.yaml")


def ran(**options: Any) -> tuple[list[str], list[Event], dict[str, Any]]:
    events: list[Event] = []
    result = run(CoverageOptions(**options), events.append)
    return [event.line for event in events if isinstance(event, Output)], events, dict(result.metrics)


def test_the_command_prints_tables_findings_and_warnings(tmp_path: Path) -> None:
    wanted = tmp_path / "targets.yaml"
    wanted.write_text("targets:\n  - {locale: fr-CA, register: formal, tool: set_timer, records: 50}\n")
    path = dataset(tmp_path, LINES)
    lines, events, metrics = ran(data=(path,), targets=wanted)
    assert lines[0] == "7 records"
    assert any(line.split() == ["fr-CA", "formal", "3", "42.9", "%", "1", "1", "0"] for line in lines)
    assert any(line.split()[:3] == ["set_timer", "7", "2"] for line in lines)
    assert sum(isinstance(event, Found) for event in events) == 2
    logs = [event.message for event in events if isinstance(event, Log)]
    assert "fr-CA, formal, set_timer: 2 of 50 records, 48 are missing" in logs
    assert metrics == {"records": 7, "invalid": 0, "against_locale": 2, "targets": 1, "targets_missed": 1}
    with pytest.raises(GateError, match="1 of 1 targets is not met"):
        ran(data=(path,), targets=wanted, strict=True)


def test_the_json_is_the_whole_result(tmp_path: Path) -> None:
    path = dataset(tmp_path, LINES)
    lines, _, _ = ran(data=(path,), format="json")
    assert len(lines) == 1
    assert msgspec.json.decode(lines[0], type=Coverage) == measure(sources([path]))


def test_lines_that_only_the_lenient_reader_takes_count_too(tmp_path: Path) -> None:
    odd = json.loads(LINES[0])
    odd["extra"] = 1
    path = dataset(tmp_path, [json.dumps(odd, ensure_ascii=False)])
    assert measure(sources([path])).cells == measure(sources([dataset(tmp_path, LINES[:1], "plain.jsonl")])).cells


def test_data_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FindingsError, match="no record"):
        measure(sources([dataset(tmp_path, ["{broken", ""])]))


def test_the_shipped_dataset_is_in_the_varieties_that_it_declares() -> None:
    coverage = measure(sources(["dataset:home-assistant/train"]))
    rows = {row.locale: row for row in coverage.varieties}
    assert coverage.records == 2400
    assert all(row.other_language == 0 for row in rows.values())
    assert rows["fr-CA"].against == rows["fr-FR"].against == 0
    assert rows["fr-CA"].shown > 30
    assert rows["fr-FR"].shown > 40
