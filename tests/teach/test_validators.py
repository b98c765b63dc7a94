"""Demands on answers, a user's own function, the choice among several answers, and what the report says of all that."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from imitation_teacher import completion
from pydantic import ValidationError

from pillm.core.errors import GateError, UsageError
from pillm.core.events import Progress, silent
from pillm.core.records import FunctionCall, Message, Record, Tool, ToolCall, plain
from pillm.teach import report, rounds
from pillm.teach.ask import Reason
from pillm.teach.choice import Judged, choose
from pillm.teach.journal import Entry
from pillm.teach.label import run
from pillm.teach.options import LabelOptions
from pillm.teach.validators import calls, in_language, length, no_refusal

USER = (Message("user", "hi"),)
TIMER = msgspec.convert(
    {
        "type": "function",
        "function": {
            "name": "set_timer",
            "parameters": {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]},
        },
    },
    Tool,
)


def said(text: str) -> Message:
    return Message("assistant", text)


def called(*arguments: dict[str, object], content: str | None = None) -> Message:
    return Message("assistant", content, tuple(ToolCall(FunctionCall("set_timer", item)) for item in arguments))


def codes(reasons) -> list[str]:
    return [reason.code for reason in reasons]


def test_calls_that_fit_their_schema_and_make_no_sense_are_named():
    record = Record("r", USER, (TIMER,))
    assert codes(calls(record, called({"label": "tea"}, {"label": "egg"}))) == []
    assert codes(calls(record, called({"label": "tea"}, {"label": "tea"}))) == ["same-call"]
    assert codes(calls(record, called({"label": " "}))) == ["empty-argument"]
    asked = Record("r", USER, (TIMER,), {"type": "object"})
    assert codes(calls(asked, called({"label": "tea"}))) == ["call-for-schema"]
    assert codes(calls(asked, said("{}"))) == []


@pytest.mark.parametrize(
    ("locale", "text", "bad"),
    [
        ("de-AT", "Das Licht in der Küche ist jetzt eingeschaltet.", False),
        ("de-AT", "The light in the kitchen has been switched on now.", True),
        ("fr-CA", "La lumière de la cuisine est maintenant allumée.", False),
        ("fr-CA", "La luz de la cocina ya está encendida, como pediste.", True),
        ("de", "OK, done.", False),
        ("", "The light in the kitchen has been switched on now.", False),
        ("nb-NO", "Lyset på kjøkkenet er slått på nå, og døren er låst.", False),
    ],
)
def test_the_language_is_that_of_the_locale_or_not_judged(locale, text, bad):
    assert codes(in_language(Record("r", USER, locale=locale), said(text))) == (["language"] if bad else [])


def test_json_has_no_language():
    record = Record("r", USER, response_schema={"type": "object"}, locale="de")
    assert in_language(record, said('{"message": "The light in the kitchen has been switched on now."}')) == []


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "As an AI language model, I have no feelings.",
        "Es tut mir leid, aber ich kann das nicht tun.",
        "Ich kann dir dabei leider nicht helfen.",
        "Désolé, je ne peux pas faire cela.",
        "En tant qu'IA, je n'ai pas d'avis.",
        "Lo siento, pero no puedo hacerlo.",
        "Desculpe, mas não posso ajudar com isso.",
    ],
)
def test_refusals_in_five_languages_are_found(text):
    assert codes(no_refusal(Record("r", USER), said(text))) == ["refusal"]


@pytest.mark.parametrize(
    "text",
    [
        "The light is on.",
        "You can say: I'm sorry for the delay.",
        "Ich kann dir helfen. Das Licht ist an.",
        "Es tut mir gut, draußen zu sein.",
        "Je peux vous aider : la lampe est allumée.",
        "Claro, no hay problema. La luz está encendida.",
        "Posso ajudar, claro.",
        "As an aide to the mayor, she wrote letters.",
    ],
)
def test_answers_that_help_are_no_refusals(text):
    assert no_refusal(Record("r", USER), said(text)) == []


def test_length_is_of_text_and_not_of_calls():
    record = Record("r", USER, (TIMER,))
    assert codes(length(3, 5, record, said("ab"))) == ["too-short"]
    assert codes(length(3, 5, record, said("abcdef"))) == ["too-long-answer"]
    assert codes(length(3, 0, record, said("x" * 999))) == []
    assert codes(length(3, 5, record, called({"label": "a very long label"}))) == []


def test_bounds_that_no_text_meets_are_refused():
    with pytest.raises(ValidationError, match="less than min_chars"):
        LabelOptions(prompts=Path("p"), teacher="t", min_chars=9, max_chars=3)


def judged(*messages: Message | None, logprobs: tuple[float | None, ...] = ()) -> list[Judged]:
    bad = (("", Reason("empty", "the answer is empty")),)
    return [
        Judged(Entry("k", number + 1, message, logprob=logprobs[number] if logprobs else None), () if message else bad)
        for number, message in enumerate(messages)
    ]


def test_the_answer_that_most_others_agree_with_is_kept_even_if_another_is_likelier():
    record = Record("r", USER, (TIMER,))
    tea, egg = called({"label": "tea"}), called({"label": "egg"})
    choice = choose(record, judged(egg, tea, called({"label": "tea"}, content="Sure."), logprobs=(-0.1, -2, -1)), 3)
    assert choice
    assert (choice.entry.attempt, choice.agree, choice.passed, choice.why) == (3, 1, 3, "agreement")
    choice = choose(record, judged(egg, tea, tea), 3)
    assert choice
    assert (choice.entry.attempt, choice.why) == (2, "agreement")


def test_json_agrees_by_value_and_text_by_its_words():
    record = Record("r", USER, response_schema={"type": "object"})
    choice = choose(record, judged(said('{"a":1}'), said('{"b": 2, "a": 1}'), said('{"a": 1,"b":2}')), 3)
    assert choice
    # Of the two that agree, the shorter.
    assert (choice.entry.attempt, choice.agree) == (3, 1)
    choice = choose(Record("r", USER), judged(said("No."), said("Yes  please."), said("yes please.")), 3)
    assert choice
    assert (choice.entry.attempt, choice.agree) == (3, 1)


def test_without_agreement_the_likelier_is_kept_else_the_shorter():
    record = Record("r", USER)
    texts = (said("long answer"), said("short"), said("medium one"))
    likely = choose(record, judged(*texts, logprobs=(-1.0, -3.0, -0.5)), 3)
    short = choose(record, judged(*texts, logprobs=(-1.0, None, -0.5)), 3)
    assert likely
    assert short
    assert (likely.entry.attempt, likely.why) == (3, "logprob")
    assert (short.entry.attempt, short.why) == (2, "shortest")


def test_answers_with_a_fault_are_not_kept_however_many_agree():
    assert choose(Record("r", USER), judged(None, None), 2) is None
    choice = choose(Record("r", USER), judged(None, said("ok"), None), 3)
    assert choice
    assert (choice.entry.attempt, choice.answers, choice.passed, choice.why) == (2, 3, 1, "only")


@pytest.fixture
def label(tmp_path, imitation):
    def go(prompts: Path, emit=silent, **more):
        options = {"teacher": imitation.url, "out": tmp_path / "out", "timeout": 5.0, **more}
        return run(LabelOptions(prompts=prompts, **options), emit)

    return go


def test_a_stored_answer_is_judged_again_without_being_asked_for_again(label, dataset, imitation, rows):
    path = dataset("a", "b")
    imitation.orders["a"] = ["I'm sorry, but I can't help with that.", "Here you are."]
    assert rows(label(path).outputs["labelled"])[0].messages[-1].content.startswith("I'm sorry")
    stricter = label(path, require=("no-refusal",))
    # The stored refusal counts as the first attempt; the second is a new question, and `b` is not asked.
    assert [imitation.asked(prompt) for prompt in "ab"] == [2, 1]
    assert rows(stricter.outputs["labelled"])[0].messages[-1].content == "Here you are."
    figures = report.load(stricter.outputs["report"])
    assert figures.validators == {"no-refusal": 1}
    assert figures.answer_reasons == {"refusal": 1}
    assert figures.settings["require"] == ["no-refusal"]
    # Without the demand the first answer is good again.
    assert rows(label(path).outputs["labelled"])[0].messages[-1].content.startswith("I'm sorry")
    assert [imitation.asked(prompt) for prompt in "ab"] == [2, 1]


def test_a_users_own_function_judges_and_its_source_is_in_the_report_alone(label, dataset, imitation, rows, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("def check(record, answer):\n    return 'no shouting' if answer['content'].isupper() else None\n")
    imitation.orders["a"] = ["LOUD", "quiet"]
    first = label(dataset("a"), validator=f"{own}:check")
    assert rows(first.outputs["labelled"])[0].messages[-1].content == "quiet"
    before = report.load(first.outputs["report"]).settings["validator"]
    own.write_text("def check(record, answer):\n    return None\n")
    second = label(dataset("a"), validator=f"{own}:check")
    assert imitation.asked("a") == 2
    assert rows(second.outputs["labelled"])[0].messages[-1].content == "LOUD"
    assert report.load(second.outputs["report"]).settings["validator"] != before


def test_the_example_of_the_documentation_judges_text_and_calls(label, dataset, imitation, rows, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "labelling.md").read_text(encoding="utf-8")
    lines = text[text.index("    def validate(") :].split("\n\n")[0]
    (tmp_path / "mine.py").write_text(textwrap.dedent(lines) + "\n")
    function = {"name": "set_timer", "arguments": '{"label": "tea"}'}
    call = completion(None, "tool_calls", [{"id": "x", "type": "function", "function": function}])
    del call["choices"][0]["message"]["content"]
    imitation.orders |= {"text": ["TODO", "done"], "call": [call]}
    prompts = [
        {"id": name, "messages": [{"role": "user", "content": name}], "tools": [plain(TIMER)]}
        for name in imitation.orders
    ]
    result = label(dataset(*prompts), validator=str(tmp_path / "mine.py") + ":validate")
    first, second = rows(result.outputs["labelled"])
    assert first.messages[-1].content == "done"
    assert second.messages[-1].tool_calls[0].function.name == "set_timer"
    assert report.load(result.outputs["report"]).validators == {"mine.py:validate": 1}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def check(record, answer:\n", r"mine\.py:1: SyntaxError"),
        ("x = 1\nimport no_such_module_of_mine\n", r"mine\.py:2: ModuleNotFoundError"),
        ("def other(record, answer): ...\n", r"mine\.py: there is no function check"),
        ("def check(record, answer):\n    x = 1\n    return answer['nothing']\n", r"mine\.py:3: KeyError.*record a"),
        ("def check(record, answer):\n    return False\n", r"mine\.py:1: check gave a bool for record a"),
    ],
)
def test_a_users_function_that_fails_is_told_with_its_line(label, dataset, imitation, tmp_path, source, says):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(UsageError, match=says) as caught:
        label(dataset("a"), validator=f"{tmp_path / 'mine.py'}:check")
    assert caught.value.hint
    assert not (tmp_path / "out" / "labelled.jsonl").exists()


def test_a_users_file_that_is_not_there_is_said_so(label, dataset, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        label(dataset("a"), validator=f"{tmp_path / 'nowhere.py'}:check")


def test_the_best_of_several_is_kept_and_all_are_in_the_journal(label, dataset, imitation, rows):
    imitation.orders["a"] = ["six", "five", "", "five"]
    result = label(dataset("a", "b"), best_of=4, concurrency=1)
    first, second = rows(result.outputs["labelled"])
    assert first.messages[-1].content == "five"
    assert first.meta["best_of"] == {"answers": 4, "passed": 3, "agree": 1, "why": "agreement"}
    assert first.meta["attempt"] == 2
    assert second.meta["best_of"]["agree"] == 3
    bodies = [body for body in imitation.bodies if body["messages"][-1]["content"] == "a"]
    assert len({body["seed"] for body in bodies}) == 4
    assert [body["temperature"] > 0 for body in bodies] == [False, True, True, True]
    assert all(body["logprobs"] for body in bodies)
    assert report.load(result.outputs["report"]).chosen == {"agreement": 2}
    # More answers later are asked for alone; fewer ask for nothing.
    label(dataset("a", "b"), best_of=5)
    assert [imitation.asked(prompt) for prompt in "ab"] == [5, 5]
    again = label(dataset("a", "b"), best_of=1)
    assert [imitation.asked(prompt) for prompt in "ab"] == [5, 5]
    assert rows(again.outputs["labelled"])[0].messages[-1].content == "six"
    assert again.metrics["reused"] == 2


def test_when_none_of_several_is_good_attempts_go_on_beyond_them(label, dataset, imitation, rows):
    imitation.orders["a"] = ["", "", "", "late"]
    result = label(dataset("a", "b"), best_of=2, attempts=5)
    assert rows(result.outputs["labelled"])[0].messages[-1].content == "late"
    assert [imitation.asked(prompt) for prompt in "ab"] == [4, 2]


def test_a_request_that_fails_among_several_is_made_up_for_in_the_next_run(label, dataset, imitation, rows):
    imitation.orders["a"] = [(500, {}, "oops"), "one", "two"]
    result = label(dataset("a"), best_of=3, attempts=1, concurrency=1)
    assert rows(result.outputs["labelled"])[0].meta["best_of"]["answers"] == 2
    again = label(dataset("a"), best_of=3, attempts=1, concurrency=1)
    assert imitation.asked("a") == 4
    assert rows(again.outputs["labelled"])[0].meta["best_of"]["answers"] == 3


def test_progress_never_goes_beyond_all_prompts(label, dataset, imitation, monkeypatch):
    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=itertools.count().__next__))  # each answer is told
    imitation.orders["a"] = [(500, {}, "oops"), "one", "two"]
    events = []
    label(dataset("a", "b"), events.append, best_of=3, attempts=1, concurrency=1)
    told = [event.done for event in events if isinstance(event, Progress) and event.label == "label"]
    assert told[-1] == 2
    assert told == sorted(told)


def test_cost_is_tokens_times_price_of_this_run_and_of_all_that_is_stored(label, dataset, imitation):
    imitation.orders["a"] = ["", "ok"]
    first = label(dataset("a"), price_in=10, price_out=1000)
    # The imitation counts 5 tokens in and 2 out for each of its two answers.
    assert report.load(first.outputs["report"]).cost == pytest.approx((10 * 10 + 4 * 1000) / 1e6)
    figures = report.load(label(dataset("a"), price_in=10, price_out=1000).outputs["report"])
    assert (figures.cost, figures.stored_cost) == (0, pytest.approx((10 * 10 + 4 * 1000) / 1e6))
    assert (figures.stored_tokens_in, figures.stored_tokens_out) == (10, 4)
    assert report.load(label(dataset("a")).outputs["report"]).cost is None


def test_an_answer_that_nobody_likes_is_kept_with_the_validators_reason(label, dataset, rows, tmp_path):
    with pytest.raises(GateError, match="the answer has 2 characters"):
        label(dataset("a"), min_chars=10, attempts=2)
    (rejected,) = rows(tmp_path / "out" / "rejected.jsonl")
    assert [reason["code"] for reason in rejected.meta["rejected"]["reasons"]] == ["too-short", "too-short"]


def test_a_schema_can_be_shown_instead_of_enforced(label, dataset, imitation):
    schema = {"type": "object"}
    imitation.always = completion("{}")
    prompt = {"id": "q", "messages": [{"role": "user", "content": "q"}], "response_schema": schema}
    label(dataset(prompt))
    label(dataset(prompt), structured="prompt")
    enforced, shown = imitation.bodies
    assert "response_format" in enforced
    assert "response_format" not in shown
    assert '{"type": "object"}' in shown["messages"][0]["content"]
