"""The page as a browser and a screen reader get it. How it looks was checked by eye, not here."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from pillm.core.artifacts import Artifact, artifact_of
from pillm.core.errors import UsageError
from pillm.core.events import Made, silent
from pillm.evaluate.report import Answer, Call, Closeness, Measured, Quality, Said, by_kind, grouped, scores
from pillm.export.report import Export, LogitsCheck, TokenizerCheck
from pillm.history.document import Board, Latency, Load, Memory, Model, Quantiles, Run, Runtime, Speed, State
from pillm.pipeline import manifest, plots
from pillm.pipeline.report import build
from pillm.quantize.report import FallbackGroup, Quantize, QuantizedFile, TypeShare

HOSTILE = '<script>alert("x")</script> & "quotes"'


def answers(hits: int) -> list[Answer]:
    made = []
    for index in range(12):
        right = index < hits
        want = Said(calls=(Call("set_timer", {"minutes": index}),))
        have = want if right else Said(HOSTILE)
        locale, question = ("fr-CA", "en-US")[index % 2], f"{HOSTILE} {index}"
        reason = "" if right else f"called nothing {index % 3}"
        made.append(Answer(f"r{index}", "call", locale, question, want, have, right, reason, "set_timer", right))
    made.append(Answer("q", "ask", "en-US", "timer", Said("How long?"), Said("How long?"), True))
    return made


def quality(items: list[Answer], closeness: list[Closeness]) -> Quality:
    return Quality(
        model=Measured("model-Q4_K_M.gguf", 105_500_000, "ab" * 32, "model"),
        data="dataset:x/heldout",
        data_sha256="cd" * 32,
        records=len(items),
        asked=len(items),
        overall=scores(items),
        by_locale=grouped(items, lambda answer: answer.locale),
        by_tool=grouped([item for item in items if item.expected.calls], lambda answer: answer.tool),
        by_kind=by_kind(items),
        failures={"cut": 2},
        closeness=closeness,
        closeness_text="8 chunks of 512 tokens",
        max_tokens=160,
        context=2048,
        llamacpp="0.5.0",
    )


CLOSENESS = [
    Closeness("model-f16.gguf", 271_000_000, "reference", perplexity=3.0),
    Closeness("model-Q8_0.gguf", 144_800_000, "also", kl_mean=0.0039, kl_p99=0.018, same_top=0.956),
    Closeness("model-Q4_K_M.gguf", 105_500_000, "model", kl_mean=0.0289, kl_p99=0.145, same_top=0.895),
]
BENCH = Run(
    id="00000000-0000-0000-0000-000000000000", started="2026-11-22T19:05:00Z", seconds=9.0, tool="pi_bench 1.0.0", valid=True,
    board=Board(cpu="A processor", cores=2, ram_bytes=2**33, os="Linux", architecture="x86_64", kernel="Linux 6"),
    before=State(at_s=0.0, load=0.5),
    runtime=Runtime(kind="llama.cpp", version="0.5.0"),
    model=Model(
        file="model-Q4_K_M.gguf", bytes=105_500_000, sha256="ab" * 32, name="x", architecture="llama",
        parameters=134_515_008, types={"Q5_0": 104_000_000}, weight_bytes=104_000_000, read_bytes=104_000_000,
        kv_bytes_per_token=23_040, vocabulary=49_152, width=576,
    ),
    speeds=(
        Speed(what="prefill", tokens=256, depth=0, threads=2, mean_tps=412.1, stddev_tps=11.0, samples_tps=(401.1, 423.1)),
        Speed(what="decode", tokens=64, depth=0, threads=2, mean_tps=52.3, stddev_tps=1.1, samples_tps=(51.2, 53.4)),
    ),
    latency=(
        Latency(
            threads=2, threads_batch=2, prompt_tokens=256, answer_tokens=64,
            first_token=Quantiles(count=3, p50_ms=640.2, p95_ms=655.0, p99_ms=656.0),
            inter_token=Quantiles(count=189, p50_ms=19.3, p95_ms=21.0, p99_ms=24.6),
        ),
    ),
    load=Load(cold_s=1.26, warm_s=0.61),
    memory=Memory(peak_bytes=181_456_896, context=2048),
)  # fmt: skip


TYPES = (TypeShare("Q5_0", 180, 90_000_000), TypeShare("F32", 61, 10_000_000))
FALLBACKS = (FallbackGroup("Q4_K", "Q5_0", f"rows of 576 {HOSTILE}", 90_000_000, ("a", "b", "c")),)
QUANTIZED = Quantize(
    source="model-f16.gguf",
    source_bytes=271_000_000,
    parameters=134_515_008,
    files=(
        QuantizedFile("model-Q4_K_M.gguf", "ab", "Q4_K_M", 105_500_000, 6.28, TYPES, FALLBACKS),
        QuantizedFile("others/model-Q8_0.gguf", "ab", "Q8_0", 144_800_000, 8.5, TYPES, ()),
    ),
    llamacpp="0.5.0",
)
EXPORTED = Export(
    passed=True, check="full", file="model-f16.gguf", sha256="ab", bytes=271_000_000, dtype="f16",
    architecture="llama", name="x", parameters=134_515_008, vocabulary=49_152, context_length=8192,
    chat_template="kept", tokenizer=TokenizerCheck(True, 200, 10_000, 4000, 120),
    logits=LogitsCheck(True, 0.01, 512, 0.00031, 1e-5, 0.002, 0.01, 0.992, 0.001, 3.1, 3.1, "float32"),
    llamacpp="0.5.0",
)  # fmt: skip


class Run:
    """A run's folder, written as the engine writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages: list[manifest.StageRecord] = []

    def put(self, path: str, data: bytes) -> Artifact:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return msgspec.structs.replace(artifact_of(file), path=path)

    def stage(self, name: str, stage: str, inputs: dict[str, Artifact] | None = None, **outputs: Artifact) -> None:
        used = {"student": manifest.ModelUsed("pkg:some-model", "sha256:12", "Apache-2.0")} if stage == "train" else {}
        self.stages.append(
            manifest.StageRecord(
                id=name, stage=stage, key="k", command=f"pillm {stage} --out {HOSTILE}", options={},
                inputs=inputs or {}, models=used, outputs=outputs, seconds=61.0, peak_memory_bytes=2**30,
            )
        )  # fmt: skip

    def evaluate(self, name: str, hits: int, closeness: list[Closeness]) -> None:
        items = answers(hits)
        report = self.put(f"{name}/quality.json", msgspec.json.encode(quality(items, closeness)))
        lines = self.put(f"{name}/answers.jsonl", b"".join(msgspec.json.encode(item) + b"\n" for item in items))
        self.stage(name, "evaluate", report=report, answers=lines)

    def write(self, complete: bool = True) -> None:
        hardware = manifest.Hardware("A processor", 2, 2**33, "Linux", "x86_64")
        manifest.write(
            self.folder,
            manifest.RunManifest(
                name="quickstart", description=HOSTILE, profile="q.yaml", profile_sha256="ef" * 32,
                versions={"pillm": "0.1"}, hardware=hardware, stages=tuple(self.stages), complete=complete,
            ),
        )  # fmt: skip

    def page(self) -> str:
        return build(self.folder, silent).read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def whole(run) -> Run:
    """A run with every stage that the page tells of, for a test to change."""
    return filled(run)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """The page of such a run, as it is."""
    return filled(Run(tmp_path_factory.mktemp("run"))).page()


def filled(run: Run) -> Run:
    """Every stage that the page tells of."""
    line = {
        "id": "1",
        "messages": [{"role": "user", "content": "x"}],
        "license": "CC0-1.0",
        "locale": "fr-CA",
        "source": "s",
    }
    data = run.put("label/labelled.jsonl", json.dumps(line).encode() + b"\n")
    run.stage("label", "label", labelled=data)
    run.evaluate("before", 1, [])
    loss = b"".join(b'{"step": %d, "loss": %f, "validation_loss": 1.0}\n' % (step, 3 / step) for step in range(1, 40))
    run.stage("train", "train", {"data": data}, log=run.put("train/training.jsonl", loss))
    run.stage("export", "export", report=run.put("export/export.json", msgspec.json.encode(EXPORTED)))
    made = run.put("quantize/model-Q4_K_M.gguf", b"GGUF" * 1000)
    run.stage(
        "quantize", "quantize", gguf=made, report=run.put("quantize/quantize.json", msgspec.json.encode(QUANTIZED))
    )
    run.evaluate("evaluate", 9, CLOSENESS)
    # Inputs are named as the stage got them: from the folder that the run was started in.
    elsewhere = msgspec.structs.replace(data, path="runs/x/label/labelled.jsonl")
    run.stage("again", "label", {"prompts": elsewhere})
    run.stage("bench", "bench", report=run.put("bench/bench.json", msgspec.json.encode(BENCH)))
    run.write()
    return run


class Page(HTMLParser):
    """Tags with their attributes, the words of the page, and which element each table lacks."""

    VOID = frozenset(("meta", "br", "link", "img", "path", "use"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_needs_nothing_else(page):
    text, page = page, Page(page)
    assert not page.open
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not (attributes.get("href") or "#").startswith("http")
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_text_from_the_data_stays_text(page):
    assert "<script" not in page
    assert HOSTILE in Page(page).text


def test_ids_are_unique_and_links_lead_somewhere(page):
    page = Page(page)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert not [name for name, count in Counter(ids).items() if count > 1]
    for attributes in page.all("a") + page.all("use"):
        target = attributes.get("href") or attributes.get("xlink:href") or ""
        assert target.startswith("#")
        assert target[1:] in ids


def test_tables_and_plots_can_be_read_aloud(page):
    page = Page(page)
    assert len(page.all("table")) == len(page.all("caption")) >= 6
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    drawn = [attributes for attributes in page.all("svg") if attributes.get("class") == "plot"]
    assert len(drawn) == 3
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)
    assert page.all("html")[0]["lang"] == "en"


def test_the_headline_gives_before_and_after_with_intervals_and_the_hash(whole):
    text = Page(whole.page()).text.replace("\u202f", " ")
    assert "75 % of tool calls exactly right" in text
    assert "8 % → 75 %" in text
    assert "95 % interval 47–91 %" in text
    assert artifact_of(whole.folder / "quantize/model-Q4_K_M.gguf").sha256 in text
    assert "CC0-1.0" in text
    assert "Apache-2.0" in text


def test_the_truth_about_the_file_s_tensors_is_told(page):
    text = Page(page).text.replace("\u202f", " ")
    assert "90 % of this Q4_K_M file is not in the types that the recipe asks for" in text
    assert "Q4_K Q5_0 3 90.0 rows of 576" in text
    assert "Q8_0 144.8 8.50 0 % 0.0039 0.018 96 %" in text
    assert "6.28 bits a weight" in text
    assert "KL divergence 0.00031 nats per token" in text


def test_datasets_are_told_once_with_their_licences_and_uses(page):
    text = Page(page).text
    assert text.count("labelled.jsonl used by") == 1
    assert "labelled.jsonl used by train, again Records 1 Licence CC0-1.0 (1)" in text


def test_a_dataset_that_changed_since_is_told_by_name_and_hash_alone(whole):
    (whole.folder / "label/labelled.jsonl").write_text('{"id": "other", "messages": [], "license": "secret"}\n')
    text = Page(whole.page()).text
    assert "labelled.jsonl used by train, again sha256" in text
    assert "CC0-1.0" not in text


def test_a_shipped_dataset_is_told_by_its_reference(run):
    from pillm.core import shipped

    path = shipped.data_path("dataset:home-assistant/smoke")
    run.stage(
        "label", "label", {"prompts": msgspec.structs.replace(artifact_of(path), path="dataset:home-assistant/smoke")}
    )
    run.write()
    text = Page(run.page()).text
    assert "dataset:home-assistant/smoke used by label Records 40" in text


def test_models_that_the_run_made_are_not_among_those_it_took(whole):
    made = artifact_of(whole.folder / "quantize/model-Q4_K_M.gguf")
    own = manifest.ModelUsed("runs/x/quantize/model.gguf", f"sha256:{made.sha256}")
    whole.stages[-1] = msgspec.structs.replace(whole.stages[-1], models={"model": own})
    whole.write()
    text = Page(whole.page()).text
    assert "runs/x/quantize/model.gguf" not in text
    assert "pkg:some-model" in text


def test_what_a_client_of_the_server_sees_is_told(page):
    text = Page(page).text
    assert "first token after 640 ms (median of 3, prompt of 256 tokens); then one every 19.3 ms" in text
    assert "1.26 s from the disk, 0.61 s from memory" in text
    assert "181 MB at most, with a context of 2048 tokens" in text


def test_figures_that_do_not_count_are_not_shown_as_measured(whole):
    run = msgspec.structs.replace(BENCH, valid=False, invalid=("throttled now",), emulated="qemu-user")
    (whole.folder / "bench/bench.json").write_bytes(msgspec.json.encode(run))
    text = Page(whole.page()).text
    assert "emulated, 2 threads, ± 1.1; does not count" in text
    assert "emulated, not a board on A processor" in text
    assert "These figures do not count: throttled now" in text


def test_every_predicted_speed_stands_with_its_label(page):
    text = Page(page).text
    assert text.count("predicted, not measured") >= 3
    assert "Raspberry Pi 4, 1 GB" in text
    assert "smaller than every published model" in text


def test_right_and_wrong_answers_are_shown_beside_the_untouched_model_s(page):
    text = Page(page).text
    assert "set_timer(minutes=0)" in text
    assert "called nothing" in text


def test_the_same_run_gives_the_same_page(whole):
    assert whole.page() == whole.page()


def test_the_page_is_published_and_announced(whole):
    events: list[object] = []
    path = build(whole.folder, events.append)
    assert events == [Made("report", artifact_of(path))]
    assert [file.name for file in whole.folder.glob(".partial-*")] == []


def test_a_run_that_stopped_early_gets_a_page_of_what_there_is(run):
    run.stage("train", "train")
    run.write(complete=False)
    page = Page(run.page())
    assert "This run stopped before its last stage" in page.text
    assert "pillm train" in page.text
    assert "Quality" not in page.text
    assert page.all("svg") == []


def test_a_report_that_cannot_be_read_is_left_out_and_named(whole):
    (whole.folder / "evaluate/quality.json").write_bytes(b'{"half')
    (whole.folder / "train/training.jsonl").unlink()
    text = Page(whole.page()).text
    assert "quality.json" in text
    assert "training.jsonl" in text
    assert "Tool calls exactly right" not in text
    assert "52 tokens/s" in text


def test_a_folder_without_a_manifest_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"manifest\.json"):
        build(tmp_path, silent)


def test_a_perfect_score_is_not_claimed_by_rounding(run):
    items = [msgspec.structs.replace(answers(12)[0], id=str(number), right=number > 0) for number in range(300)]
    report = run.put("evaluate/quality.json", msgspec.json.encode(quality(items, [])))
    run.stage("evaluate", "evaluate", report=report)
    run.write()
    assert "99.7 % of tool calls" in Page(run.page()).text.replace("\u202f", " ")


def test_plots_take_their_colours_from_the_page_and_keep_text_as_text():
    points = [plots.Point("Q4_K_M <&> é漢", 100.0, 0.03, True), plots.Point("Q8_0", 100.0, 0.03, False)]
    drawn = plots.size_and_divergence(points, 'alt "<text>"')
    assert drawn.startswith('<svg class="plot" role="img" aria-label="alt &quot;&lt;text&gt;&quot;"')
    assert "var(--accent)" in drawn
    assert not any(colour in drawn for colour in (plots.INK, plots.MUTED, plots.LINE, plots.ACCENT, plots.QUIET))
    assert "Q4_K_M &lt;&amp;&gt; é漢" in drawn
    assert set(re.findall(r"font-family: ([^;\"]*)", drawn)) == {"inherit"}
    assert "<style" not in drawn
    assert "<metadata" not in drawn


def test_a_plot_of_one_step_or_one_file_still_draws():
    assert "<svg" in plots.loss_curve([plots.Step(1, 2.0, None), plots.Step(2, None, 1.0)], "x")
    assert "<svg" in plots.size_and_divergence([plots.Point("a", 1.0, 1e-5, True)], "x")
    assert "<svg" in plots.before_after([plots.Pair("a", None, plots.Share(1.0, 0.9, 1.0))], "x")
