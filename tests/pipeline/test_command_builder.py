"""Options -> shell line -> options, for every stage of the table and for a stage with every kind of option."""

from __future__ import annotations

import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import fake_stages
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pillm.cli import stages as faces
from pillm.cli.main import main
from pillm.core.errors import UsageError
from pillm.pipeline.pipeline_ops import build, is_list, parse, positional
from pillm.pipeline.stages import COMMANDS, Stage

ALL = {**COMMANDS, **fake_stages.TABLE}

AWKWARD = ["", " ", "a b", "-x", "--out=3", "--json", "--", "=", "a=b", "'", '"', "\\", "$HOME", "${a.b}", "é", "日本", "\n", "[1]",
           "{}", "null", "true", "1e3", "~", "#", "@file", "a,b", "*"]  # fmt: skip
text = st.sampled_from(AWKWARD) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
)


def values(annotation: Any, limits: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Everything that a field takes."""
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        return values(inner, bounds([part for mark in marks for part in getattr(mark, "metadata", [mark])]))
    if get_origin(annotation) is tuple:
        least, most = limits.get("min_length", 0), min(limits.get("max_length", 4), 4)
        return st.lists(values(get_args(annotation)[0], {}), min_size=least, max_size=most).map(tuple)
    if args := get_args(annotation):
        return st.one_of([values(arg, limits) for arg in args])
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if annotation is NoneType:
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(low if low is not None else -(10**9), high if high is not None else 10**9)
    if annotation is float:
        return st.floats(
            low, high, allow_nan=False, allow_infinity=False, exclude_min="gt" in limits, exclude_max="lt" in limits
        )
    if pattern := limits.get("pattern"):
        return st.from_regex(pattern.strip("^$"), fullmatch=True).filter(lambda word: "\0" not in word)
    return text.map(Path) if annotation is Path else text.filter(lambda word: len(word) >= limits.get("min_length", 0))


def bounds(marks: list[Any]) -> dict[str, Any]:
    names = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
    parts = [part for mark in marks for part in (mark, *getattr(mark, "metadata", []))]
    return {name: getattr(part, name) for part in parts for name in names if getattr(part, name, None) is not None}


def options(stage: Stage) -> st.SearchStrategy[Any]:
    fields = {}
    for name, field in stage.options.model_fields.items():
        strategy = values(field.annotation, bounds(field.metadata))
        if not field.is_required():
            strategy = st.just(field.default) | strategy
        fields[name] = strategy
    return st.fixed_dictionaries(fields).map(partial(valid, stage))


def valid(stage: Stage, values: dict[str, Any]) -> Any:
    """Options of these values; values that are right alone and not together are drawn again."""
    try:
        return stage.options.model_validate(values)
    except ValidationError as error:
        if any(item["loc"] for item in error.errors()):
            raise
        reject()


@pytest.mark.parametrize("stage", ALL.values(), ids=list(ALL))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_built_parses_back_to_the_same_options(stage: Stage, data: st.DataObject) -> None:
    wanted = data.draw(options(stage))
    command = build(stage, wanted)
    assert parse(command.argv, ALL) == (stage, wanted)
    # The line survives a shell too.
    assert tuple(shlex.split(str(command))) == command.argv


@pytest.mark.parametrize("stage", ALL.values(), ids=list(ALL))
def test_the_command_line_reads_what_the_builder_writes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []
    monkeypatch.setattr(faces, "_run", lambda stage, options, screen: got.append(options))

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(wanted=options(stage))
    def same(wanted: Any) -> None:
        got.clear()
        code = main(build(stage, wanted).argv[1:], ALL)
        assert (code, got) == (0, [wanted])

    same()


@pytest.mark.parametrize("stage", ALL.values(), ids=list(ALL))
def test_only_what_differs_from_the_defaults_is_written(stage: Stage) -> None:
    fields = stage.options.model_fields.items()
    required = {name: ["x"] if is_list(field) else "x" for name, field in fields if field.is_required()}
    command = build(stage, stage.options.model_validate(required))
    assert len(command.argv) == 1 + len(stage.words) + len(required)


@pytest.mark.parametrize("stage", ALL.values(), ids=list(ALL))
def test_the_first_input_may_stand_without_its_flag(stage: Stage) -> None:
    if (first := positional(stage.options)) is None:
        pytest.skip("this command reads no file")
    rest = [f"--{name}=x" for name, f in stage.options.model_fields.items() if f.is_required() and name != first]
    several = is_list(stage.options.model_fields[first])
    words = ["some where", "else"] if several else ["some where"]
    _, options = parse((*stage.words, *words, *rest), ALL)
    value = getattr(options, first)
    assert list(map(str, value if several else [value])) == words


def test_values_may_follow_their_flag() -> None:
    _, one = parse(("train", "--data", "a", "--student", "b", "--rank", "3"))
    _, other = parse(("train", "--data=a", "--student=b", "--rank=3"))
    assert one == other


def test_all_that_is_wrong_is_told_at_once_by_flag() -> None:
    with pytest.raises(UsageError) as caught:
        parse(("train", "--rank=0", "--long=err", "--alpha=much", "--student=x"))
    assert caught.value.message.splitlines() == [
        "--data is required: Labelled dataset (JSONL, or dataset:NAME/SPLIT)",
        "--rank must be at least 1, not '0'",
        "--alpha must be a number, not 'much'",
        "--long must be one of error, drop, not 'err'; did you mean error?",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no stage"),
        (("trian",), "did you mean train"),
        (("train", "--rnk=3"), "--rnk: there is no such option; did you mean --rank"),
        (("train", "--rank"), "--rank needs a value"),
        (("train", "a", "b"), "b: what is this"),
    ],
)
def test_a_line_that_means_nothing_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(words)


def test_what_is_wrong_between_options_names_the_stage() -> None:
    with pytest.raises(UsageError) as caught:
        parse(("join", "a", "--sizes=6", "--sizes=6", "--sizes=6"), fake_stages.TABLE)
    assert caught.value.message == "join sizes of 6, 6 and 6 do not go with anything"


def test_infinity_is_no_number_for_an_option() -> None:
    with pytest.raises(UsageError, match="--alpha must be a finite number"):
        parse(("train", "--data=a", "--student=b", "--alpha=inf"))


def test_the_module_prints_the_canonical_line() -> None:
    argv = [
        sys.executable,
        "-m",
        "pillm.pipeline.pipeline_ops",
        "train",
        "my data.jsonl",
        "--student",
        "b",
        "--rank",
        "32",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "pillm train '--data=my data.jsonl' --student=b\n"
    done = subprocess.run([*argv[:4], "--rank=x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--rank must be a whole number, not 'x'" in done.stderr
