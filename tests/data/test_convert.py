import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillm.core import jsonl, records
from pillm.core.errors import FindingsError, UsageError
from pillm.core.events import Log, Output
from pillm.core.records import Function, FunctionCall, Message, Record, Tool, ToolCall
from pillm.core.shipped import data_path
from pillm.data import inputs
from pillm.data.formats import convert
from pillm.data.formats import read as formats_in
from pillm.data.formats import write as formats_out
from pillm.data.formats.names import OBSERVATIONS, Lost, Misfit
from pillm.data.options import ConvertOptions

T = TypeVar("T")
FORMATS = Path(__file__).parent / "formats"
TRAIN = Path("dataset:home-assistant/train")
TARGETS = ("trl", "axolotl", "llama-factory", "sharegpt", "hermes")
CONVERSATIONS = ("llama-factory", "sharegpt", "hermes")


def run(data: Path | tuple[Path, ...], out: Path, **options) -> tuple[list, dict]:
    events: list = []
    data = data if isinstance(data, tuple) else (data,)
    result = convert.run(ConvertOptions(data=data, out=out, **options), events.append)
    return events, result.metrics


def refused(function: Callable[..., T], *values: object) -> T | Misfit:
    try:
        return function(*values)
    except Misfit as misfit:
        return misfit


def warnings(events: list) -> list[str]:
    return [event.message for event in events if isinstance(event, Log) and event.level == "warning"]


def as_json(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# ---- the shipped data, there and back ----


@pytest.mark.parametrize("to", TARGETS)
def test_the_shipped_data_comes_back_from_every_format(tmp_path, to):
    events, metrics = run(TRAIN, tmp_path / "there.jsonl", to=to)
    run(tmp_path / "there.jsonl", tmp_path / "back.jsonl")
    originals = jsonl.read(data_path(TRAIN))
    prompts = [record for record in originals if record.is_prompt]
    if to in formats_out.TRAINED:
        originals = [record for record in originals if not record.is_prompt]
        assert f"{len(prompts)} prompts without an answer were left out: {to} is for training" in warnings(events)
    assert metrics["records"] == len(originals)
    back = jsonl.read(tmp_path / "back.jsonl")
    if to in ("llama-factory", "sharegpt"):
        named = sum(message.name is not None for record in originals for message in record.messages)
        assert f"{to} has no place for a message's `name`: left out {named} times" in warnings(events)
        originals = [without(record, names=True) for record in originals]
    assert back == originals


def test_pillm_to_pillm_gives_the_same_bytes(tmp_path):
    run(TRAIN, tmp_path / "same.jsonl")
    assert (tmp_path / "same.jsonl").read_bytes() == data_path(TRAIN).read_bytes()


# ---- any record, there and back ----

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(TEXT | st.sampled_from(["function", "name", "arguments"]), VALUES, max_size=3)
CALLS = st.lists(
    st.builds(ToolCall, st.builds(FunctionCall, TEXT, OBJECTS), id=st.none() | TEXT), min_size=1, max_size=2
).map(tuple)
ANSWERS = st.one_of(
    st.builds(Message, st.just("assistant"), TEXT, name=st.none() | TEXT),
    st.builds(Message, st.just("assistant"), st.none(), CALLS),
    st.builds(Message, st.just("assistant"), TEXT, CALLS),
)
RESULTS = st.builds(
    Message, st.just("tool"), TEXT | OBJECTS.map(lambda value: msgspec.json.encode(value).decode()),
    tool_call_id=st.none() | TEXT, name=st.none() | TEXT,
)  # fmt: skip
OPENERS = st.builds(Message, st.sampled_from(["system", "developer"]), TEXT)
USERS = st.builds(Message, st.just("user"), TEXT, name=st.none() | TEXT)
ORDERLY = st.tuples(
    st.lists(OPENERS, max_size=1),
    st.lists(st.tuples(st.lists(USERS, min_size=1, max_size=1) | st.lists(RESULTS, min_size=1, max_size=3), ANSWERS), min_size=1, max_size=3),
).map(lambda parts: (*parts[0], *(turn for asked, answer in parts[1] for turn in (*asked, answer))))  # fmt: skip
ANY = st.lists(st.one_of(OPENERS, USERS, ANSWERS, RESULTS), min_size=1, max_size=5).map(tuple)
RECORDS = st.builds(
    Record,
    TEXT,
    ORDERLY | ANY,
    st.lists(st.builds(Tool, st.builds(Function, TEXT, TEXT | st.just(""), OBJECTS)), max_size=2).map(tuple),
    st.none() | OBJECTS,
    locale=st.sampled_from(["", "fr-CA"]),
    register=st.sampled_from(["", "formal"]),
    tags=st.lists(TEXT, max_size=2).map(tuple),
    source=st.sampled_from(["", "a book"]),
    license=st.sampled_from(["", "CC0-1.0"]),
    meta=OBJECTS,
)


def without(record: Record, *, names: bool = False, result_names: bool = True, ids: bool = False) -> Record:
    """The record without what a format has no place for."""
    messages = []
    for message in record.messages:
        if names and (result_names or message.role != "tool"):
            message = msgspec.structs.replace(message, name=None)
        if ids:
            calls = tuple(msgspec.structs.replace(call, id=None) for call in message.tool_calls)
            role = "system" if message.role == "developer" else message.role
            message = msgspec.structs.replace(message, tool_call_id=None, tool_calls=calls, role=role)
        messages.append(message)
    return msgspec.structs.replace(record, messages=tuple(messages))


def held(record: Record, to: str) -> Record:
    if to in CONVERSATIONS:
        record = without(record, names=True, result_names=to != "hermes", ids=True)
    if to == "llama-factory":
        fill = {"type": "object", "properties": {}}
        tools = [
            Tool(msgspec.structs.replace(t.function, parameters=fill | t.function.parameters)) for t in record.tools
        ]
        record = msgspec.structs.replace(record, tools=tuple(tools))
    if to == "sharegpt":
        messages: list[Message] = []
        for message in record.messages:
            before = messages[-1] if messages else None
            is_text = before and before.role == "assistant" and not before.tool_calls
            if is_text and message.role == "assistant" and message.tool_calls and not message.content:
                messages[-1] = msgspec.structs.replace(before, tool_calls=message.tool_calls)
            else:
                messages.append(message)
        record = msgspec.structs.replace(record, messages=tuple(messages))
    return record


@pytest.mark.parametrize("to", TARGETS)
@given(record=RECORDS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_record_comes_back_with_all_that_the_format_holds_or_is_refused(to, record):
    lost = Lost()
    data = refused(formats_out.encoded, record, to, lost)
    if isinstance(data, Misfit):
        assert to in CONVERSATIONS
        assert data.path.startswith("$.messages[")
        return
    source = {"llama-factory": "sharegpt", "trl": "pillm", "axolotl": "pillm"}.get(to, to)
    back = formats_in.record(json.loads(data), source, Lost())
    assert back == held(record, to)
    assert bool(lost) == (
        without(record, names=to in CONVERSATIONS, result_names=to != "hermes", ids=to in CONVERSATIONS) != record
    )


@pytest.mark.parametrize("to", CONVERSATIONS)
@given(turns=ORDERLY)
@settings(max_examples=60, deadline=None)
def test_dialogues_that_take_turns_are_refused_only_for_text_beside_calls_or_the_format_s_tags(to, turns):
    made = refused(formats_out.encoded, Record("r", turns), to, Lost())
    if isinstance(made, Misfit) and "own tags" in made.message:
        assert to == "hermes"
        assert any(
            tag in (turn.content or "") for turn in turns for tag in ("<tool_call>", "<tool_response>", "<tools>")
        )
    elif isinstance(made, Misfit):
        assert to == "llama-factory"
        assert "not both" in made.message
        assert any(turn.content and turn.tool_calls for turn in turns)


@pytest.mark.parametrize("source", ["auto", "pillm", "flat", "sharegpt", "hermes"])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(
            ["", "x", "{}", "[1]", "system", "assistant", "user", "tool", "human", "gpt", "function_call", "observation",
             "<tool_call>{'a': 1}</tool_call>", "<tools>[1]</tools>", "<tool_response>[</tool_response>", '{"name": "f"}']
        ),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "messages", "conversations", "role", "from", "content", "value", "tools", "tool_calls", "function",
                 "name", "arguments", "parameters", "user", "assistant", "tool_schema", "requires_json", "meta", "tags",
                 "response_schema", "locale", "system", "text", "type"]
            ),
            inner,
            max_size=4,
        ),
        max_leaves=25,
    )
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_line_is_read_or_refused_with_its_place(source, value):
    record = refused(formats_in.record, value, source, Lost())
    if isinstance(record, Misfit):
        assert record.path.startswith("$")
        assert record.message
    else:
        assert records.decoder.decode(records.encode(record)) == record


# ---- what others write ----


def test_flat_records_become_dialogues(tmp_path):
    run(FORMATS / "flat.jsonl", tmp_path / "o.jsonl")
    weather, colour, thanks, prompt = jsonl.read(tmp_path / "o.jsonl")
    assert [record.id for record in (weather, colour, thanks, prompt)] == ["flat-1", "flat-2", "flat-3", "p-4"]
    assert [message.role for message in weather.messages] == ["system", "user", "assistant"]
    assert weather.messages[2].tool_calls[0].function == FunctionCall(
        "get_weather", {"place": "Gaspé", "day": "demain"}
    )
    assert weather.tools[0].function.parameters["required"] == ["place"]
    assert weather.response_schema is None
    assert colour.response_schema is not None
    assert colour.response_schema["required"] == ["colour", "hex"]
    assert json.loads(colour.messages[1].content or "") == {"colour": "teal", "hex": "#008080"}
    assert colour.locale == "en-US"
    assert thanks.meta == {"topic": "thanks"}
    assert thanks.response_schema is None
    assert prompt.is_prompt


def test_sharegpt_calls_and_results_become_messages(tmp_path):
    run(FORMATS / "sharegpt.jsonl", tmp_path / "o.jsonl")
    chat, parallel, mixed = jsonl.read(tmp_path / "o.jsonl")
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    assert [message.role for message in parallel.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert [call.function.arguments["place"] for call in parallel.messages[2].tool_calls] == ["Oslo", "Bergen"]
    assert [message.content for message in parallel.messages[3:5]] == ['{"sky": "clear"}', '{"sky": "rain"}']
    assert parallel.tools[0].function.name == "get_weather"
    assert mixed.messages[-1].content == "Let me look."
    assert mixed.messages[-1].tool_calls[0].function.arguments == {"place": "Trondheim"}


def test_hermes_tags_become_tools_calls_and_results_and_its_instructions_go(tmp_path):
    run(FORMATS / "hermes.jsonl", tmp_path / "o.jsonl")
    single, parallel = jsonl.read(tmp_path / "o.jsonl")
    assert [message.role for message in single.messages] == ["user", "assistant", "tool", "assistant"]
    assert single.messages[1].tool_calls[0].function == FunctionCall("get_weather", {"place": "Lyon"})
    assert single.messages[2] == Message("tool", '{"sky":"fog","low":4}', name="get_weather")
    assert single.meta == {"category": "Home", "task": "Weather"}
    assert parallel.messages[-1].content == "I will look up both."
    assert len(parallel.messages[-1].tool_calls) == 2
    assert [tool.function.name for tool in (*single.tools, *parallel.tools)] == ["get_weather"] * 2


def test_openai_records_are_read_and_what_has_no_place_is_told_once(tmp_path):
    events, metrics = run(FORMATS / "openai.jsonl", tmp_path / "o.jsonl")
    (record,) = jsonl.read(tmp_path / "o.jsonl")
    assert record.messages[0].content == "Weather in Graz?"
    assert record.messages[1].tool_calls == (ToolCall(FunctionCall("get_weather", {"place": "Graz"}), id="c1"),)
    assert record.meta == {"parallel_tool_calls": False}
    assert warnings(events) == [
        "pillm has no place for a message's `weight`: left out 1 times",
        "pillm has no place for a tool's `strict`: left out 1 times",
    ]
    assert metrics["lost"] == 2


def test_a_result_that_is_no_json_and_tags_inside_values_come_back_from_hermes():
    record = Record(
        "r",
        (
            Message("user", "What is <tool_call>?"),
            Message("assistant", tool_calls=(ToolCall(FunctionCall("f", {"x": "a </tool_call> b"})),)),
            Message("tool", "plain </tool_response> text"),
            Message("tool", '{"a": 1}'),
            Message("assistant", "Done."),
        ),
        (Tool(Function("f", "takes </tools> too", {"type": "object"})),),
    )
    data = formats_out.encoded(record, "hermes", Lost())
    assert formats_in.record(json.loads(data), "auto", Lost()) == record


# ---- faults ----

BAD = [
    ('{"conversations": [{"from": "alien", "value": "x"}]}', "$.conversations[0].from", "no speaker 'alien'"),
    ('{"conversations": [{"from": "human", "value": 7}]}', "$.conversations[0].value", "a number, not text"),
    ('{"conversations": "x"}', "$.conversations", "not an array"),
    ('{"conversations": [{"from": "function_call", "value": "{oops"}]}', "$.conversations[0].value", "no JSON"),
    ('{"conversations": [{"from": "gpt", "value": "<tool_call>{oops</tool_call>"}]}', "$.conversations[0].value", "no JSON"),
    ('{"conversations": [{"from": "gpt", "value": "<tool_call>{}</tool_call> and on"}]}', "$.conversations[0].value", "text after"),
    ('{"conversations": [{"from": "human", "value": "x"}], "tools": "[{"}', "$.tools", "no JSON"),
    ('{"messages": [{"role": "user", "content": ""}]}', "$.messages[0]", "empty"),
    ('{"messages": []}', "$", "no messages"),
    ('{"messages": [{"role": "king", "content": "x"}]}', "$.messages[0].role", "no role 'king'"),
    ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "$.messages[0].content[0]", "parts of text"),
    ('{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]}',
     "$.messages[0].tool_calls[0].arguments", "not an object"),
    ('{"user": " "}', "$.user", "says nothing"),
    ('{"user": "x", "requires_json": true, "assistant": "not json"}', "$.assistant", "no JSON"),
    ('{"user": "x", "requires_json": "yes"}', "$.requires_json", "not true or false"),
    ('{"text": "x"}', "$", "none of `messages`"),
    ("[1]", "$", "an array, not an object"),
    ("{oops", "$", "no JSON"),
    ("[" * 5000, "$", "nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "path", "word"), BAD, ids=[word for _, _, word in BAD])
def test_a_record_that_cannot_be_read_is_named_with_its_line_and_place(tmp_path, line, path, word):
    good = '{"messages": [{"role": "user", "content": "x"}]}'
    (tmp_path / "in.jsonl").write_text(f"{good}\n\n{line}\n{good}\n", encoding="utf-8")
    with pytest.raises(FindingsError, match="1 record cannot") as caught:
        run(tmp_path / "in.jsonl", tmp_path / "o.jsonl")
    (finding,) = caught.value.findings
    assert (finding.file, finding.line, finding.byte, finding.path) == (
        str(tmp_path / "in.jsonl"),
        3,
        len(good) + 2,
        path,
    )
    assert word in finding.message
    assert not (tmp_path / "o.jsonl").exists()


def test_all_bad_records_are_named_and_an_old_file_stays(tmp_path):
    lines = ['{"user": "x"}' if number % 3 else '{"user": 1}' for number in range(300)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "o.jsonl").write_text("old", encoding="utf-8")
    with pytest.raises(FindingsError, match="100 records") as caught:
        run(tmp_path / "in.jsonl", tmp_path / "o.jsonl")
    assert [finding.line for finding in caught.value.findings] == list(range(1, 301, 3))
    assert (tmp_path / "o.jsonl").read_text(encoding="utf-8") == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_llama_factory_would_skip_is_a_finding(tmp_path):
    dialogues = [
        [("user", "a"), ("user", "b"), ("assistant", "c")],
        [("assistant", "a")],
        [("user", "a"), ("assistant", "b"), ("assistant", "c")],
        [("user", "a"), ("system", "b"), ("assistant", "c")],
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ]
    jsonl.write(
        tmp_path / "in.jsonl",
        [Record(f"r{n}", tuple(Message(*turn) for turn in turns)) for n, turns in enumerate(dialogues)],  # type: ignore[arg-type]
    )
    with pytest.raises(FindingsError) as caught:
        run(tmp_path / "in.jsonl", tmp_path / "o.jsonl", to="llama-factory")
    places = [(finding.line, finding.path) for finding in caught.value.findings]
    assert places == [(1, "$.messages[1]"), (2, "$.messages[0]"), (3, "$.messages[2]"), (4, "$.messages[1]")]


def test_the_data_is_never_overwritten(tmp_path):
    jsonl.write(tmp_path / "a.jsonl", [Record("r", (Message("user", "x"),))])
    with pytest.raises(UsageError, match="which is read"):
        run(tmp_path / "a.jsonl", tmp_path / "a.jsonl")


def test_only_prompts_for_a_training_format_is_an_error_that_says_so(tmp_path):
    jsonl.write(tmp_path / "a.jsonl", [Record("r", (Message("user", "x"),))])
    with pytest.raises(UsageError, match="all 1 are prompts"):
        run(tmp_path / "a.jsonl", tmp_path / "o.jsonl", to="trl")
    assert not (tmp_path / "o.jsonl").exists()


# ---- files ----


def test_arrays_lines_and_packed_files_are_read_alike(tmp_path):
    whole = (FORMATS / "sharegpt.json").read_bytes()
    lines = b"\n".join(json.dumps(item).encode() for item in json.loads(whole))
    (tmp_path / "a.json").write_bytes(whole)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(whole))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    (tmp_path / "d.json").write_bytes(json.dumps(json.loads(whole)).encode())
    for number, name in enumerate(("a.json", "b.json.gz", "c.jsonl.zst", "d.json")):
        run(tmp_path / name, tmp_path / f"o{number}.jsonl")
        read = jsonl.read(tmp_path / f"o{number}.jsonl")
        assert [record.messages[1].content for record in read] == ["Hello.", "Hello again."]
        assert [record.id for record in read] == [f"{name[0]}-1", f"{name[0]}-2"]


def test_a_fault_in_an_array_is_named_with_its_line(tmp_path):
    items = [{"user": "x"}, {"user": "x"}, {"user": 3}]
    (tmp_path / "a.json").write_text(json.dumps(items, indent=2), encoding="utf-8")
    with pytest.raises(FindingsError) as caught:
        run(tmp_path / "a.json", tmp_path / "o.jsonl")
    assert [finding.line for finding in caught.value.findings] == [8]


@pytest.mark.parametrize("data", [b"[1, 2", b'[{"user": "x"},]', b"["])
def test_an_array_that_is_no_json_is_a_finding(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(FindingsError):
        run(tmp_path / "a.json", tmp_path / "o.jsonl")


@pytest.mark.parametrize("whole", [b"[" + b'{"user": "x"},' * 9000 + b'{"user": "x"}]', b'{"user": "x"}\n' * 9000])
def test_a_packed_file_that_is_cut_off_is_a_finding(tmp_path, whole):
    for name, packed in (("a.json.gz", gzip.compress(whole)), ("a.json.zst", zstandard.compress(whole))):
        (tmp_path / name).write_bytes(packed[: len(packed) * 2 // 3])
        with pytest.raises(FindingsError):
            run(tmp_path / name, tmp_path / "o.jsonl")
        assert not (tmp_path / "o.jsonl").exists()


def test_arrays_that_are_too_big_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "MAX_ARRAY_BYTES", 1000)
    for name, gap in (("a.json", "\n"), ("b.json", "")):
        (tmp_path / name).write_text("[" + f",{gap}".join(['{"user": "x"}'] * 100) + "]", encoding="utf-8")
        with pytest.raises(UsageError, match="JSON array of more than"):
            run(tmp_path / name, tmp_path / "o.jsonl")


@pytest.mark.parametrize("name", ["o.json", "o.jsonl", "o.json.gz", "o.jsonl.zst"])
def test_the_output_is_an_array_or_lines_and_packed_as_its_name_says(tmp_path, name):
    run(FORMATS / "sharegpt.jsonl", tmp_path / name, to="sharegpt")
    data = (tmp_path / name).read_bytes()
    data = gzip.decompress(data) if name.endswith(".gz") else data
    data = zstandard.ZstdDecompressor().decompressobj().decompress(data) if name.endswith(".zst") else data
    items = (
        json.loads(data) if ".json." in name or name.endswith(".json") else [json.loads(x) for x in data.splitlines()]
    )
    assert [item["id"] for item in items] == ["chat-1", "sharegpt-2", "sharegpt-3"]
    run(tmp_path / name, tmp_path / "back.jsonl")
    run(FORMATS / "sharegpt.jsonl", tmp_path / "direct.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == (tmp_path / "direct.jsonl").read_bytes()


def test_the_result_is_the_same_whatever_the_size_of_blocks(tmp_path, monkeypatch):
    lines = [json.dumps({"user": f"question {n}", "assistant": f"answer {n}"}) for n in range(400)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run(tmp_path / "in.jsonl", tmp_path / "one.jsonl")
    monkeypatch.setattr(inputs.blocks, "__defaults__", (500,))
    run(tmp_path / "in.jsonl", tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert [record.id for record in jsonl.read(tmp_path / "two.jsonl")][-1] == "in-400"


def test_records_without_ids_get_different_ones_in_files_of_one_name(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_text('{"user": "u"}\n', encoding="utf-8")
    run((tmp_path / "x", tmp_path / "y"), tmp_path / "o.jsonl")
    assert [record.id for record in jsonl.read(tmp_path / "o.jsonl")] == ["a-1-1", "a-2-1"]


def test_llama_factory_gets_its_entry_for_dataset_info(tmp_path):
    events, _ = run(TRAIN, tmp_path / "home.json", to="llama-factory")
    (printed,) = [event.line for event in events if isinstance(event, Output)]
    assert json.loads(printed) == {
        "home": {
            "file_name": "home.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "tools": "tools"},
        }
    }


def test_results_of_parallel_calls_share_a_turn_in_llama_factory():
    calls = tuple(ToolCall(FunctionCall("f", {"n": n})) for n in range(2))
    turns = (
        Message("user", "x"),
        Message("assistant", None, calls),
        Message("tool", "1"),
        Message("tool", "2"),
        Message("assistant", "ok"),
    )
    made = json.loads(formats_out.encoded(Record("r", turns), "llama-factory", Lost()))
    assert [turn["from"] for turn in made["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert made["conversations"][2]["value"] == f"1{OBSERVATIONS}2"
