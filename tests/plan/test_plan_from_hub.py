"""Plans for models of a hub: the real client, a hub on this machine. How many bytes leave it is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_hub import FIRST, FakeHub, Fault, Repo, model_files
from plan_models import QWEN

from pillm.core.errors import MissingError, NetworkError, UsageError
from pillm.core.events import silent
from pillm.plan.options import PlanOptions
from pillm.plan.report import Plan
from pillm.plan.run import run


def plan(model: str, **options: object) -> Plan:
    found = run(PlanOptions(model=model, device="pi5-4gb", **options), silent).document  # type: ignore[arg-type]
    assert isinstance(found, Plan)
    return found


def serve(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.repos["org/model"] = Repo({FIRST: files}, {"main": FIRST})


def asked(hub: FakeHub) -> set[str]:
    return {request.path.rsplit("/", 1)[1] for request in hub.requests if "/resolve/" in request.path}


def test_only_the_config_of_a_model_is_fetched(hub: FakeHub):
    serve(hub, {**model_files(), "config.json": json.dumps(QWEN).encode()})
    found = plan("hf:org/model", quant="Q4_0")
    assert asked(hub) == {"config.json"}
    assert found.architecture == "qwen2"
    assert found.read == "config.json of the hub"


@pytest.mark.model
def test_only_the_header_of_a_gguf_file_is_fetched(hub: FakeHub, smollm2_gguf: Path):
    data = smollm2_gguf.read_bytes()
    serve(hub, {"model-Q4_1.gguf": data, "README.md": b"# A model"})
    found = plan("hf:org/model@main:model-Q4_1.gguf")
    local = plan(str(smollm2_gguf))
    assert asked(hub) >= {"model-Q4_1.gguf"}
    assert found.memory_bytes == local.memory_bytes
    assert found.decode_tps == local.decode_tps
    read = float(found.read.split("first ")[1].split(" MB")[0])
    assert 1 < read < 10 < len(data) / 1e6
    ranges = [request.headers["range"] for request in hub.requests if "range" in request.headers]
    # The first try is too short for a tokenizer of 49152 tokens, so a larger piece is asked for.
    assert ranges[0] == f"bytes=0-{2**20 - 1}"
    assert len(set(ranges)) > 1


@pytest.mark.model
def test_a_hub_that_knows_no_ranges_is_not_read_to_the_end(hub: FakeHub, smollm2_gguf: Path):
    serve(hub, {"model.gguf": smollm2_gguf.read_bytes()})
    hub.faults.append(Fault("model.gguf", times=9, no_range=True))
    found = plan("hf:org/model")
    assert found.quant == "Q4_1"
    assert float(found.read.split("first ")[1].split(" MB")[0]) < 10


@pytest.mark.model
def test_a_connection_that_is_cut_is_tried_again(hub: FakeHub, smollm2_gguf: Path):
    serve(hub, {"model.gguf": smollm2_gguf.read_bytes()})
    hub.faults.append(Fault("model.gguf", times=1, cut_after=1000))
    assert plan("hf:org/model").quant == "Q4_1"


def test_a_repository_with_several_files_names_them(hub: FakeHub):
    serve(hub, {"a-Q4_0.gguf": b"GGUF", "b-Q8_0.gguf": b"GGUF"})
    with pytest.raises(UsageError, match="several") as error:
        plan("hf:org/model")
    assert "hf:org/model:a-Q4_0.gguf" in error.value.hint


def test_a_model_that_is_not_there_is_told(hub: FakeHub):
    with pytest.raises(MissingError):
        plan("hf:org/other")


def test_a_file_that_is_not_there_is_told(hub: FakeHub):
    serve(hub, model_files())
    with pytest.raises(MissingError, match="has no file"):
        plan("hf:org/model:missing.gguf")


def test_a_config_that_cannot_be_read_is_told_with_its_place(hub: FakeHub):
    serve(hub, {**model_files(), "config.json": b'{"model_type": "xlnet"}'})
    with pytest.raises(UsageError, match=r"hf:org/model@main/config.json:1: the architecture 'xlnet'"):
        plan("hf:org/model")


def test_without_a_hub_the_plan_says_so(hub: FakeHub):
    hub.stop()
    with pytest.raises(NetworkError):
        plan("hf:org/model")
