"""A whole fit of a random model, by the real llama.cpp; and what it says where it cannot work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pillm.core.artifacts import sha256_file
from pillm.core.errors import FindingsError, GateError, ProfileError, ResourceError, UsageError
from pillm.core.events import Event, Output, Progress, silent
from pillm.llamacpp.gguf_file import describe
from pillm.llamacpp.install import LlamaCpp
from pillm.llamacpp.quantize import recipe
from pillm.quantize import report
from pillm.quantize.options import QuantizeOptions
from pillm.quantize.run import run

torch = pytest.importorskip("torch")

from pillm.devices import boards  # noqa: E402
from pillm.devices.formats import BLOCKS, tensor_bytes  # noqa: E402
from pillm.quantize.fitting import allocation, plan_file  # noqa: E402
from pillm.quantize.fitting.board import Board  # noqa: E402
from pillm.quantize.fitting.costs import TYPES, Cell, Table, legal, padded  # noqa: E402
from pillm.quantize.fitting.run import fixed, gate, overhead  # noqa: E402

pytestmark = [pytest.mark.llamacpp, pytest.mark.model, pytest.mark.train]

DATA = Path("dataset:home-assistant/smoke")


def options(model: Path, out: Path, **more: object) -> QuantizeOptions:
    quick = {
        "imatrix_data": DATA,
        "imatrix_context": 64,
        "fit_tokens": 1024,
        "improve_tokens": 1024,
        "held_chunks": 4,
        "method": "mix",
    }
    return QuantizeOptions.model_validate({"model": model, "out": out, **quick, **more})


def made_up(path: Path) -> Table:
    """A table of every matrix in every legal type, with errors as fine as the bits: for what needs no real costs."""
    return {
        tensor.name: {tensor.type: Cell(padded(tensor.bytes), 0, 0)}
        | {
            kind: Cell(
                padded(tensor_bytes(kind, tensor.elements)),
                tensor.elements * 4.0 ** -(8 * BLOCKS[kind][1] / BLOCKS[kind][0]),
                0,
            )
            for kind in TYPES
            if legal(tensor, kind)
        }
        for tensor in describe(path).tensors
        if len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name
    }


@pytest.fixture(scope="module")
def fitted(random_gguf: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """The folder of a fit of the Llama 3 model in the bytes of Q4_K_M, and what was told."""
    out, events = tmp_path_factory.mktemp("fit") / "out", []
    run(options(random_gguf("llama3"), out, like="Q4_K_M"), events.append)
    return out, events


def test_the_file_is_what_the_plan_says_and_beats_the_rival(fitted: tuple[Path, list[Event]]) -> None:
    out, events = fitted
    file = describe(out / "model-fit.gguf")
    plan = plan_file.read(out / "plan.yaml")
    found = {tensor.name: tensor.type for tensor in file.tensors}
    assert {name: found[name] for name in plan.types} == plan.types
    assert file.metadata["pillm.quantize.method"] == "mix"
    assert file.file_type != "unknown"
    told = report.load(out / "quantize.json")
    assert told.fitted is not None
    assert told.files[0].sha256 == sha256_file(out / "model-fit.gguf")
    rival = describe(out / told.files[1].file)
    assert rival.tensor_bytes <= file.tensor_bytes
    for side in told.fitted.sides:
        assert side.chunks == 4
        assert side.ratio is not None
        assert side.ratio <= 1
    labels = {event.label for event in events if isinstance(event, Progress)}
    assert {"second moments", "sensitivity", "cost table", "stock recipes"} <= labels
    assert not list((out / "work").rglob("*.logits"))


def test_a_second_run_takes_the_steps_from_the_first_and_gives_the_same_bytes(
    fitted: tuple[Path, list[Event]], random_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    out, _ = fitted
    shutil.copytree(out / "work", tmp_path / "out" / "work")
    events: list[Event] = []
    again = run(options(random_gguf("llama3"), tmp_path / "out", like="Q4_K_M"), events.append)
    assert sha256_file(again.outputs["gguf"]) == sha256_file(out / "model-fit.gguf")
    assert (tmp_path / "out" / "plan.yaml").read_bytes() == (out / "plan.yaml").read_bytes()
    labels = {event.label for event in events if isinstance(event, Progress)}
    assert not labels & {"second moments", "sensitivity", "the model writes"}


def test_explain_tells_every_tensor_its_cost_and_the_recipes_type(fitted: tuple[Path, list[Event]]) -> None:
    out, _ = fitted
    events: list[Event] = []
    run(QuantizeOptions(model=out / "model-fit.gguf", explain=True), events.append)
    lines = [event.line for event in events if isinstance(event, Output)]
    plan = plan_file.read(out / "plan.yaml")
    for name, choice in plan.tensors.items():
        line = next(line for line in lines if line.startswith(f"{name} "))
        assert choice.type in line
        assert choice.stock in line
    assert any("predicted mean KL" in line for line in lines)


def test_a_plan_is_followed_and_its_faults_are_told_with_their_lines(
    fitted: tuple[Path, list[Event]], random_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    out, _ = fitted
    model = random_gguf("llama3")
    shutil.copytree(out / "work", tmp_path / "out" / "work")
    own = tmp_path / "own.yaml"
    own.write_text(
        (out / "plan.yaml")
        .read_text()
        .replace("blk.0.attn_v.weight: {type: ", "blk.0.attn_v.weight: {type: Q9_Z, was: ")
    )
    with pytest.raises(ProfileError) as caught:
        run(options(model, tmp_path / "out", plan=own), silent)
    line = next(n for n, text in enumerate(own.read_text().splitlines(), 1) if "Q9_Z" in text)
    assert [finding.line for finding in caught.value.findings] == [line]
    # As one writes it by hand, with one tensor changed.
    wanted = {**plan_file.read(out / "plan.yaml").types, "blk.0.ffn_up.weight": "Q8_0"}
    own.write_text("pillm-plan: 1\ntensors:\n" + "".join(f"  {name}: {kind}\n" for name, kind in wanted.items()))
    found = run(options(model, tmp_path / "out", plan=own, plan_out=tmp_path / "copy.yaml"), silent)
    assert {t.name: t.type for t in describe(found.outputs["gguf"]).tensors if t.name in wanted} == wanted
    assert plan_file.read(tmp_path / "copy.yaml").types == wanted
    assert "blk\\.0\\.ffn_up\\.weight$=q8_0" in (tmp_path / "copy.types").read_text()


def test_better_codes_leave_types_and_bytes_as_they_are(
    fitted: tuple[Path, list[Event]], random_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    out = fitted[0]
    shutil.copytree(out / "work", tmp_path / "out" / "work")
    made = run(options(random_gguf("llama3"), tmp_path / "out", like="Q4_K_M", method="mix+gptq"), silent)
    before, after = describe(out / "model-fit.gguf"), describe(made.outputs["gguf"])
    assert [(t.name, t.type) for t in after.tensors] == [(t.name, t.type) for t in before.tensors]
    assert after.tensor_bytes == before.tensor_bytes
    assert after.metadata["pillm.quantize.method"] == "mix+gptq"
    assert sha256_file(made.outputs["gguf"]) != sha256_file(out / "model-fit.gguf")


def test_a_budget_is_kept_and_one_below_the_smallest_file_says_the_smallest(
    fitted: tuple[Path, list[Event]], random_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(fitted[0] / "work", tmp_path / "out" / "work")
    with pytest.raises(UsageError, match=r"1,000,000 bytes are too few: the smallest fitted file has [\d,]{9,}"):
        run(options(random_gguf("llama3"), tmp_path / "out", max_bytes="1MB"), silent)
    assert not (tmp_path / "out" / "model-fit.gguf").exists()
    # Every recipe is larger than this, so there is nothing to hold the file against.
    made = run(options(random_gguf("llama3"), tmp_path / "out", max_bytes="12MB"), silent)
    assert 11_900_000 < describe(made.outputs["gguf"]).bytes <= 12_000_000
    told = report.load(made.outputs["report"])
    assert told.fitted is not None
    assert told.fitted.rival == ""


def test_a_file_that_is_worse_than_the_recipe_on_either_side_is_refused() -> None:
    """Made-up figures: what is refused is a matter of them alone."""
    figures = {"chunks": 4, "tokens": 128, "kl_mean": 0.02, "kl_99": 0.1, "same_top": 0.9, "perplexity_ratio": 1.0}
    good, bad = (report.Side(side=side, ratio=ratio, **figures) for side, ratio in (("in", 0.5), ("out", 1.01)))
    told = report.Fitted(
        method="mix", plan="plan.yaml", data="", general="", tokens={}, predicted_kl=0.02, rival="Q5_0", sides=(good,)
    )
    gate(told)
    with pytest.raises(GateError, match=r"worse than Q5_0.*out of the domain 1\.01 times"):
        gate(msgspec.structs.replace(told, sides=(good, bad)))


def test_texts_that_will_not_do_are_told(random_gguf: Callable[[str], Path], tmp_path: Path) -> None:
    model = random_gguf("llama3")
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(UsageError, match=r"short\.txt: 9 characters are too few"):
        run(options(model, tmp_path / "a", fit=True, general_data=short), silent)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(FindingsError, match=r"empty\.jsonl: no records"):
        run(options(model, tmp_path / "b", fit=True, imatrix_data=empty), silent)


def test_memory_that_is_not_allowed_is_told_before_the_model_is_read(
    random_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match=r"--max-memory is 0\.1 GB"):
        run(options(random_gguf("llama3"), tmp_path / "out", fit=True, max_memory=0.1), silent)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"max_bytes": "9MB", "max_kld": 0.1}, "only one of --max-bytes, --max-kld"),
        ({"fit": True, "type": "Q4_0"}, "--type Q4_0 is one of"),
        ({"device": "pi4-4gb", "type": "Q4_0"}, "--type Q4_0 is one of"),
        ({"fit": True, "min_tps": 8}, "needs a board"),
    ],
)
def test_options_that_do_not_go_together_are_told(tmp_path: Path, more: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(options(tmp_path / "model.gguf", tmp_path, **more), silent)


def test_an_aim_makes_the_type_fit_and_a_size_is_a_number_with_a_unit(tmp_path: Path) -> None:
    assert options(tmp_path, tmp_path, max_bytes="1.5MiB").type == "fit"
    assert options(tmp_path, tmp_path, max_bytes="1.5MiB").most_bytes == 3 * 2**19
    assert options(tmp_path, tmp_path).type == "Q4_K_M"
    with pytest.raises(ValueError, match="max_bytes"):
        options(tmp_path, tmp_path, max_bytes="lots")


ARCHITECTURES = ["llama", "llama3", "qwen2", "qwen3", "gemma3", "phi3", "qwen3moe"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_mix_of_every_architecture_comes_out_as_planned(
    tools: LlamaCpp, random_gguf: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    from pillm.llamacpp.quantize import quantize

    model = random_gguf(name)
    source, table = describe(model), made_up(model)
    budget = sum(padded(tensor_bytes("Q8_0", t.elements)) if t.name in table else 0 for t in source.tensors) * 6 // 10
    # A slight taste for each type, so that many are used; floats cost nothing and would take all the room.
    rng = np.random.default_rng(0)
    table = {
        tensor: {
            kind: Cell(cell.bytes, cell.weights * float(rng.uniform(0.2, 5)), 0)
            for kind, cell in cells.items()
            if kind in TYPES
        }
        for tensor, cells in table.items()
    }
    mix = allocation.least_divergence(table, budget)
    made = quantize(tools, model, tmp_path / "mix.gguf", "Q8_0", types=mix).file
    assert {t.name: t.type for t in made.tensors if t.name in mix} == mix
    assert len(set(mix.values())) > 2
    assert allocation.size(table, mix) <= budget
    assert made.bytes <= budget + fixed(source, table) + overhead(source)


def test_a_board_bounds_the_seconds_of_a_token(tools: LlamaCpp, random_gguf: Callable[[str], Path]) -> None:
    model = random_gguf("llama3")
    source, table = describe(model), made_up(model)
    board = Board(boards.load("pi4-4gb"), source, 512)
    slow = allocation.least_divergence(table, allocation.size(table, dict.fromkeys(table, "Q8_0")))
    aim = 1.15 * board.decode_tps(slow)
    fast = allocation.least_divergence(table, source.bytes, board.bounds(table, aim, None))
    assert board.decode_tps(fast) >= aim * (1 - 1e-6)
    prompt = board.prefill_tps(slow)
    quick = allocation.least_divergence(table, source.bytes, board.bounds(table, None, prompt))
    assert board.prefill_tps(quick) >= prompt * (1 - 1e-6)
    assert 0 < board.most_bytes(slow) < board.device.ram_bytes
    recipe_types = recipe(tools, source, "Q4_K_M")
    assert board.decode_tps(recipe_types) > board.decode_tps({})
