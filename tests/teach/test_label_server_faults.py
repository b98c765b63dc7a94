"""The client for OpenAI-compatible servers against an imitation that misbehaves on order.

Not covered here: TLS errors and proxies.
"""

from __future__ import annotations

import datetime
import email.utils
import threading
from pathlib import Path

import httpx
import pytest
from imitation_teacher import completion

from pillm.core.errors import GateError, NetworkError, UsageError
from pillm.core.events import Log, encode, silent
from pillm.models.openai_server import pause
from pillm.teach import report
from pillm.teach.label import run
from pillm.teach.options import LabelOptions

TOOL = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    },
}


@pytest.fixture
def label(tmp_path, imitation):
    def go(prompts: Path, emit=silent, **more):
        options = {"teacher": imitation.url, "out": tmp_path / "out", "timeout": 5.0, **more}
        return run(LabelOptions(prompts=prompts, **options), emit)

    return go


def test_prompts_are_answered_in_order_and_answered_records_pass_byte_for_byte(
    label, dataset, imitation, tmp_path, rows
):
    answered = {
        "id": "done",
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        "own": {"field": [1, 2]},
    }
    path = dataset("one", answered, "two")
    result = label(path)
    lines = result.outputs["labelled"].read_bytes().splitlines()
    assert lines[1] == path.read_bytes().splitlines()[1]
    labelled = rows(result.outputs["labelled"])
    assert [record.id for record in labelled] == ["one", "done", "two"]
    assert labelled[0].messages[-1].content == "ok"
    assert labelled[0].meta["teacher"] == f"{imitation.url}#imitation"
    assert labelled[0].meta["attempt"] == 1
    assert labelled[0].meta["sampling"]["max_tokens"] == 256
    figures = report.load(result.outputs["report"])
    assert (figures.labelled, figures.passed, figures.requests, figures.tokens_in, figures.tokens_out) == (
        2,
        1,
        2,
        10,
        4,
    )


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, "oops"),
        (503, {}, "loading"),
        (429, {"Retry-After": "0"}, "slow down"),
        "cut",
        "cut in the middle",
        "garbage",
    ],
    ids=lambda fault: str(fault[0]) if isinstance(fault, tuple) else fault,
)
def test_a_passing_fault_is_tried_again(label, dataset, imitation, rows, fault):
    imitation.orders["a"] = [fault]
    result = label(dataset("a", "b"))
    assert [record.messages[-1].content for record in rows(result.outputs["labelled"])] == ["ok", "ok"]
    assert imitation.asked("a") == 2
    assert imitation.asked("b") == 1
    assert report.load(result.outputs["report"]).retries == 1


def test_retry_after_is_honoured_and_told(label, dataset, imitation):
    imitation.orders["a"] = [(429, {"Retry-After": "1"}, "slow down")]
    events = []
    label(dataset("a"), events.append)
    assert any(isinstance(event, Log) and "asks for 1 s" in event.message for event in events)


def test_retry_after_is_read_as_seconds_or_date():
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)

    def wait(text: str) -> float | None:
        return pause(httpx.Response(429, headers={"Retry-After": text}))

    assert wait("2.5") == 2.5
    assert wait("-3") == 0
    assert 3500 < (wait(email.utils.format_datetime(later)) or 0) <= 3600
    assert wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert wait("soon") is None
    assert pause(httpx.Response(429)) is None


def test_a_server_that_stays_busy_ends_the_run_and_the_next_run_goes_on(label, dataset, imitation):
    imitation.orders["b"] = [(429, {"Retry-After": "0"}, "quota")] * 3
    with pytest.raises(NetworkError, match=r"too many requests \(429\): quota") as caught:
        label(dataset("a", "b"), concurrency=1)
    assert "--concurrency" in caught.value.hint
    assert label(dataset("a", "b")).metrics["labelled"] == 2
    assert imitation.asked("a") == 1


def test_a_pause_longer_than_patience_ends_the_run(label, dataset, imitation):
    imitation.orders["a"] = [(429, {"Retry-After": "86400"}, "daily limit")]
    with pytest.raises(NetworkError, match="asks for 86400 s"):
        label(dataset("a"))
    assert imitation.asked("a") == 1


@pytest.mark.parametrize(
    ("status", "says", "hint"),
    [
        (401, "the key is missing", "OPENAI_API_KEY"),
        (403, "denies access", "access"),
        (404, "not found", "--model-name"),
        (307, "redirects to https://elsewhere.example/v1", "that address"),
    ],
)
def test_a_refusal_for_everyone_ends_the_run_at_once(label, dataset, imitation, monkeypatch, status, says, hint):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    imitation.always = (status, {"Location": "https://elsewhere.example/v1"}, "no")
    with pytest.raises(NetworkError) as caught:
        label(dataset("a", "b"), concurrency=1)
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert len(imitation.bodies) == 1


def test_a_server_that_is_not_there_is_said_so(dataset, tmp_path):
    options = LabelOptions(
        prompts=dataset("a"), teacher="http://127.0.0.1:9/v1", out=tmp_path / "out", attempts=1, model_name="m"
    )
    with pytest.raises(NetworkError, match="cannot be reached"):
        run(options, silent)


def test_a_prompt_that_always_fails_is_put_aside_and_asked_again_next_time(label, dataset, imitation, rows, tmp_path):
    imitation.orders["bad"] = [(500, {}, "crash")] * 2
    result = label(dataset("bad", "good"), attempts=2)
    (rejected,) = rows(result.outputs["rejected"])
    assert rejected.id == "bad"
    assert rejected.is_prompt
    assert rejected.meta["rejected"]["reasons"][0]["code"] == "failed"
    assert "500: crash" in rejected.meta["rejected"]["reasons"][0]["message"]
    assert report.load(result.outputs["report"]).reasons == {"failed": 1}
    assert [record.id for record in rows(label(dataset("bad", "good")).outputs["labelled"])] == ["bad", "good"]
    assert imitation.asked("good") == 1


def test_a_server_that_fails_on_every_prompt_ends_the_run(label, dataset, imitation):
    imitation.always = (500, {}, "out of order")
    with pytest.raises(NetworkError, match=r"8 prompts in a row failed.*out of order"):
        label(dataset(*"abcdefghijklmnop"), attempts=1, concurrency=1)
    assert len(imitation.bodies) == 8


def test_a_silent_server_runs_into_the_timeout(label, dataset, imitation, rows):
    imitation.orders["a"] = ["silence"]
    result = label(dataset("a", "b"), timeout=0.3, attempts=1)
    (rejected,) = rows(result.outputs["rejected"])
    assert "no answer within 0.3 s (--timeout)" in rejected.meta["rejected"]["reasons"][0]["message"]


def test_a_slow_drip_runs_into_the_timeout_although_bytes_keep_coming(label, dataset, imitation, rows):
    imitation.orders["a"] = ["drip"]
    result = label(dataset("a", "b"), timeout=0.5, attempts=1)
    (rejected,) = rows(result.outputs["rejected"])
    assert "no answer within 0.5 s (--timeout)" in rejected.meta["rejected"]["reasons"][0]["message"]
    assert imitation.sent > 2


def test_a_body_without_end_is_not_read_into_memory(label, dataset, imitation, rows):
    imitation.orders["a"] = ["endless"]
    result = label(dataset("a", "b"), timeout=60.0, attempts=1)
    (rejected,) = rows(result.outputs["rejected"])
    assert "a body of more than 16 MiB" in rejected.meta["rejected"]["reasons"][0]["message"]
    assert imitation.sent < 2**27


@pytest.mark.parametrize("text", ["\x00", "[" * 100_000, "{" * 100_000, "\ud800", "a" * 3_000_000])
def test_answers_of_odd_text_are_judged_and_stored_like_any_other(label, dataset, imitation, rows, text):
    imitation.orders["a"] = [text]
    prompt = {"id": "a", "messages": [{"role": "user", "content": "a"}], "response_schema": {"type": "object"}}
    result = label(dataset(prompt, "b"), attempts=1)
    assert [record.id for record in rows(result.outputs["labelled"])] == ["b"]
    assert [record.id for record in rows(result.outputs["rejected"])] == ["a"]


def test_a_prompt_longer_than_the_context_is_rejected_without_another_try(label, dataset, imitation, rows):
    imitation.orders["long"] = [(400, {}, "request (3031 tokens) exceeds the available context size (1024 tokens)")] * 3
    result = label(dataset("long", "short"))
    (rejected,) = rows(result.outputs["rejected"])
    assert rejected.meta["rejected"]["reasons"][0]["code"] == "too-long"
    assert imitation.asked("long") == 1
    assert label(dataset("long", "short")).metrics["reused"] == 2
    assert imitation.asked("long") == 1


def test_rejected_answers_are_asked_again_with_another_seed_and_a_temperature(label, dataset, imitation, rows):
    imitation.orders["a"] = ["", completion("half an ans", "length"), "whole"]
    result = label(dataset("a"))
    first, second, third = imitation.bodies
    assert first["temperature"] == 0
    assert second["temperature"] > 0
    assert len({body["seed"] for body in imitation.bodies}) == 3
    (record,) = rows(result.outputs["labelled"])
    assert record.messages[-1].content == "whole"
    assert record.meta["attempt"] == 3
    assert record.meta["sampling"]["seed"] == third["seed"]


def test_what_never_comes_right_is_kept_with_its_reasons_and_last_answer(label, dataset, imitation, rows):
    imitation.orders["a"] = ["", "", completion("half", "length")]
    result = label(dataset("a", "b"))
    (rejected,) = rows(result.outputs["rejected"])
    assert [reason["code"] for reason in rejected.meta["rejected"]["reasons"]] == ["empty", "empty", "cut-off"]
    assert rejected.meta["rejected"]["answer"]["content"] == "half"
    assert [record.id for record in rows(result.outputs["labelled"])] == ["b"]


def test_more_attempts_later_go_on_from_the_last(label, dataset, imitation, rows):
    imitation.orders["a"] = ["", "", "third time"]
    label(dataset("a", "b"), attempts=2)
    result = label(dataset("a", "b"), attempts=3)
    assert imitation.asked("a") == 3
    assert rows(result.outputs["labelled"])[0].meta["attempt"] == 3


def test_rejected_prompts_can_be_given_to_another_teacher(label, dataset, imitation, rows, tmp_path):
    imitation.orders["a"] = [""]
    first = label(dataset("a", "b"), attempts=1)
    again = label(first.outputs["rejected"], out=tmp_path / "second")
    (record,) = rows(again.outputs["labelled"])
    assert record.messages[-1].content == "ok"
    assert "rejected" not in record.meta


def test_no_answer_at_all_is_an_error_and_the_prompts_are_kept(label, dataset, imitation, rows, tmp_path):
    imitation.always = completion("", "stop")
    with pytest.raises(GateError, match="all 2 prompts were rejected; the first one: the answer is empty"):
        label(dataset("a", "b"), attempts=1)
    assert [record.id for record in rows(tmp_path / "out" / "rejected.jsonl")] == ["a", "b"]
    assert not (tmp_path / "out" / "labelled.jsonl").exists()


def test_tool_calls_are_sent_checked_and_stored_as_objects(label, dataset, imitation, rows):
    def call(name: str, arguments: str):
        calls = [{"id": "abc", "type": "function", "function": {"name": name, "arguments": arguments}}]
        return completion(None, "tool_calls", calls)

    imitation.orders["timer"] = [
        call("set_alarm", "{}"),
        call("set_timer", '{"minutes": "five"}'),
        call("set_timer", '{"minutes": 5}'),
    ]
    record = {"id": "timer", "messages": [{"role": "user", "content": "timer"}], "tools": [TOOL]}
    result = label(dataset(record))
    assert imitation.bodies[0]["tools"][0]["function"]["name"] == "set_timer"
    (labelled,) = rows(result.outputs["labelled"])
    (made,) = labelled.messages[-1].tool_calls
    assert (made.function.name, made.function.arguments, made.id) == ("set_timer", {"minutes": 5}, None)
    assert labelled.meta["attempt"] == 3


def test_a_schema_asks_for_structured_output_and_is_checked_after(label, dataset, imitation, rows):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    imitation.orders["q"] = ['{"n": "x"}', "no json", '{"n": 4}']
    result = label(dataset({"id": "q", "messages": [{"role": "user", "content": "q"}], "response_schema": schema}))
    assert imitation.bodies[0]["response_format"]["json_schema"]["schema"] == schema
    assert rows(result.outputs["labelled"])[0].messages[-1].content == '{"n": 4}'


def test_a_server_that_knows_the_token_limit_by_its_newer_name_is_served(label, dataset, imitation):
    imitation.orders["a"] = [(400, {}, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")]
    assert label(dataset("a", "b"), concurrency=1).metrics["labelled"] == 2
    assert "max_tokens" not in imitation.bodies[1]
    assert [body.get("max_completion_tokens") for body in imitation.bodies] == [None, 256, 256]


def test_requests_under_way_when_the_newer_name_is_learned_are_sent_again_too(label, dataset, imitation):
    together = threading.Barrier(4)

    def newer(body):
        if "max_tokens" not in body:
            return "ok"
        together.wait(10)  # none is answered before all four are sent with the old name
        return 400, {}, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."

    imitation.always = newer
    assert label(dataset(*"abcd"), concurrency=4, attempts=1).metrics["labelled"] == 4
    assert len(imitation.bodies) == 8


def test_a_server_that_knows_no_log_probabilities_is_asked_without(label, dataset, imitation):
    events = []

    def refuse(body):
        return (400, {}, "Unrecognized request argument supplied: logprobs") if "logprobs" in body else "ok"

    imitation.always = refuse
    assert label(dataset("a", "b"), events.append, best_of=2, concurrency=1).metrics["labelled"] == 2
    assert ["logprobs" in body for body in imitation.bodies] == [True, False, False, False, False]
    assert sum("no log-probabilities" in event.message for event in events if isinstance(event, Log)) == 1


def test_prompts_with_one_beginning_follow_each_other_in_one_lane(label, dataset, imitation):
    records = [
        {
            "id": f"{n}",
            "messages": [{"role": "system", "content": "xy"[n % 2] * 9}, {"role": "user", "content": f"{n}"}],
        }
        for n in range(8)
    ]
    assert label(dataset(*records), concurrency=1).metrics["labelled"] == 8
    systems = [body["messages"][0]["content"][0] for body in imitation.bodies]
    assert "".join(systems) == "xxxxyyyy"


def test_the_key_reaches_the_server_and_nothing_else(label, dataset, imitation, monkeypatch, tmp_path):
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", f" {secret}\n")
    imitation.orders["b"] = [(400, {}, "bad header {auth}")]
    imitation.orders["c"] = [(401, {}, "Incorrect API key: {auth}")]
    events = []
    with pytest.raises(NetworkError) as caught:
        label(dataset("a", "b", "c"), events.append, api_key_env="MY_KEY", concurrency=1)
    imitation.orders["b"] = [(500, {}, "bad header {auth}")] * 3
    label(dataset("a", "b", "c"), events.append, api_key_env="MY_KEY", concurrency=1)
    written = b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir())
    told = b"".join(encode(event) for event in events)
    assert "the key is not accepted (401): Incorrect API key: Bearer ***" in caught.value.message
    assert b"bad header Bearer ***" in written
    for text in (written, told, caught.value.message.encode(), caught.value.hint.encode()):
        assert secret.encode() not in text
    chain = caught.value.__cause__ or caught.value.__context__
    assert secret not in repr(chain)


@pytest.mark.parametrize("key", ["two words", "schlüssel", "line\nbreak"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(label, dataset, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UsageError, match=r"the key in \$MY_KEY") as caught:
        label(dataset("a"), api_key_env="MY_KEY")
    assert key not in caught.value.message


@pytest.mark.parametrize("address", ["http://me:pw-4711@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key=pw-4711"])
def test_an_address_with_a_secret_in_it_is_refused_without_showing_it(label, dataset, address):
    with pytest.raises(UsageError, match="a name, a password or a query") as caught:
        label(dataset("a"), teacher=address)
    assert "pw-4711" not in caught.value.message + caught.value.hint


def test_the_first_listed_model_is_taken_unless_one_is_named(label, dataset, imitation, tmp_path):
    label(dataset("a"))
    label(dataset("a"), model_name="mine", out=tmp_path / "other")
    assert [body["model"] for body in imitation.bodies] == ["imitation", "mine"]
    imitation.models = []
    with pytest.raises(UsageError, match="lists no model"):
        label(dataset("a"))


def test_more_prompts_later_reuse_what_is_answered(label, dataset, imitation):
    assert label(dataset("a", "b"), limit=1).metrics["labelled"] == 1
    assert label(dataset("a", "b", "c")).metrics == pytest.approx(
        {"labelled": 3, "rejected": 0, "passed": 0, "reused": 1, "tokens_out": 4, "seconds": 0}, abs=60
    )
    assert [imitation.asked(prompt) for prompt in "abc"] == [1, 1, 1]


def test_other_settings_or_another_prompt_are_another_question(label, dataset, imitation):
    label(dataset("a"))
    label(dataset("a"), max_tokens=9)
    label(dataset("a"), temperature=0.5)
    changed = {"id": "a", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}
    label(dataset(changed))
    assert imitation.asked("a") == 4


def test_what_changes_only_speed_asks_nothing_again(label, dataset, imitation):
    label(dataset("a"))
    label(dataset("a"), concurrency=2, timeout=9.0, batch_size=1, api_key_env="OTHER")
    assert imitation.asked("a") == 1
