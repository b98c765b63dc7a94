"""The published schema of the document: current, and true of what the program writes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pi_bench_program import SHORT, document, script

from pillm.bench import schema
from pillm.bench.program import PATH
from pillm.history.document import VERSION

FILE = PATH.with_suffix(".schema.json")


def test_the_published_schema_is_current():
    assert FILE.read_text() == schema.text(), "run: make schema"


def test_it_names_its_version_and_describes_itself():
    told = json.loads(FILE.read_text())
    assert told["$id"].endswith(f":{VERSION}")
    assert told["$defs"]["Run"]["properties"]["version"]["const"] == VERSION
    assert "absent" in told["description"]
    # The text below a field of the struct is the field's description.
    assert "vcgencmd get_throttled" in told["$defs"]["State"]["properties"]["throttled"]["description"]
    jsonschema_rs.meta.validate(told)


@pytest.fixture(scope="module")
def told(smollm2_gguf, tools, tmp_path_factory) -> dict[str, Any]:
    """A real document."""
    import subprocess
    import sys

    argv = [sys.executable, str(PATH), "--model", str(smollm2_gguf), "--llama-bin", str(tools.bin), *SHORT, "--json",
            "--min-tps=1", "--max-rss=1", "--max-ttft-ms=1"]  # fmt: skip
    return document(subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600))


@pytest.mark.llamacpp
@pytest.mark.model
def test_a_real_document_fits_it(told):
    jsonschema_rs.validator_for(json.loads(FILE.read_text())).validate(told)


@pytest.mark.llamacpp
@pytest.mark.model
def test_the_program_writes_every_field_and_no_other(told):
    """The program writes what the types hold, so neither can gain a field alone."""
    parts = json.loads(FILE.read_text())["$defs"]

    def same(value: Any, name: str) -> None:
        assert set(value) == set(parts[name]["properties"]), name

    same(told, "Run")
    for field, name in (("board", "Board"), ("before", "State"), ("after", "State"), ("runtime", "Runtime"), ("model", "Model"),
                        ("load", "Load"), ("memory", "Memory"), ("embeddings", "Embeddings")):  # fmt: skip
        same(told[field], name)
    for field, name in (("speeds", "Speed"), ("latency", "Latency"), ("gates", "Gate")):
        assert told[field]
        for value in told[field]:
            same(value, name)
    same(told["latency"][0]["first_token"], "Quantiles")


@pytest.mark.llamacpp
@pytest.mark.model
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("valid",), "yes"),
        (("speeds", 0, "what"), "both"),
        (("board", "cores"), "2"),
        (("id",), None),
    ],
)
def test_what_is_no_such_document_does_not_fit(told, path, value):
    wrong: Any = copy.deepcopy(told)
    place = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not jsonschema_rs.validator_for(json.loads(FILE.read_text())).is_valid(wrong)


@pytest.mark.model
def test_a_document_with_almost_nothing_in_it_fits_it_too(smollm2_gguf, tmp_path: Path, pi_bench):
    script(tmp_path / "llama-bench", "#!/bin/sh\nexit 4\n")
    told = document(pi_bench("--model", smollm2_gguf, "--llama-bin", tmp_path, *SHORT, "--json"))
    jsonschema_rs.validator_for(json.loads(FILE.read_text())).validate(told)
