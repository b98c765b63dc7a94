"""Converted records in the loaders of those who train on them. They are no dependencies of pillm:

    pip install trl
    pip install axolotl --no-deps; pip install colorama addict
    pip install llamafactory torch==2.11.0 torchaudio==2.11.0 torchvision==0.26.0

each in an environment of its own, then this file with pytest there. Where one is missing, its tests are skipped.
"""

import json
from pathlib import Path

import pytest

from pillm.core import jsonl, records
from pillm.core.events import silent
from pillm.core.records import Function, FunctionCall, Message, Record, Tool, ToolCall
from pillm.core.shipped import data_path
from pillm.data.formats import convert
from pillm.data.options import ConvertOptions
from pillm.models import chat

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.train]
TRAIN = Path("dataset:home-assistant/train")


def several() -> list[Record]:
    """Shipped records of every kind, and two with what those do not have: parallel calls, nested arguments, no tools."""
    shipped = [record for record in jsonl.read(data_path(TRAIN)) if not record.is_prompt]
    calls = tuple(
        ToolCall(FunctionCall("plan", {"steps": [{"at": n, "what": '«é» \\ "q"'}], "note": None}), id=f"c{n}")
        for n in range(2)
    )
    plan = Tool(
        Function(
            "plan", "Plan", {"type": "object", "properties": {"steps": {"type": "array", "items": {"type": "object"}}}}
        )
    )
    parallel = Record(
        "parallel",
        (
            Message("user", "Plan twice."),
            Message("assistant", None, calls),
            Message("tool", '{"ok": true}', tool_call_id="c0", name="plan"),
            Message("tool", "done", tool_call_id="c1", name="plan"),
            Message("assistant", "Both are planned."),
        ),
        (plan,),
    )
    plain = Record(
        "plain",
        (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye"), Message("assistant", "Bye.")),
    )
    return [*shipped[:400], parallel, plain]


@pytest.fixture(scope="module")
def originals() -> list[Record]:
    return several()


@pytest.fixture
def converted(tmp_path, originals):
    """The path of the records in a format."""

    def make(to: str, name: str) -> Path:
        jsonl.write(tmp_path / "in.jsonl", originals)
        convert.run(ConvertOptions(data=(tmp_path / "in.jsonl",), out=tmp_path / name, to=to), silent)
        return tmp_path / name

    return make


@pytest.fixture
def tokenizer():
    """A byte-level tokenizer with the ChatML template that comes with pillm."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator(["the kitchen lights"], trainer)
    result = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    result.chat_template = (Path(chat.__file__).parent / "templates" / "chatml-tools.jinja").read_text(encoding="utf-8")
    return result


def rendered(record: Record, tokenizer) -> str:
    tools = records.plain(record.tools) if record.tools else None
    return tokenizer.apply_chat_template(records.plain(record.messages), tools=tools, tokenize=False)


def test_trl_renders_the_same_text_from_the_loaded_file_as_from_the_records(converted, originals, tokenizer, tmp_path):
    # Older ones need a `datasets` that fills the arguments of one call with the keys of all others.
    trl = pytest.importorskip("trl", minversion="1.0", reason="trl 1.0 or later is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    path = converted("trl", "trl.jsonl")
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(originals)
    assert loaded[0]["messages"][-1]["tool_calls"][0]["function"]["arguments"].keys() == {"title", "when"}
    for row, record in zip(loaded, originals, strict=True):
        assert trl.is_conversational(row)
        # As SFTTrainer has it: columns that this record does not have are null in the table.
        example = {"messages": row["messages"]}
        made = trl.apply_chat_template(example, tokenizer, tools=row["tools"])
        assert made["text"] == rendered(record, tokenizer)


def test_axolotl_tokenizes_the_same_text_and_trains_on_the_assistants_turns(converted, originals, tokenizer, tmp_path):
    strategies = pytest.importorskip("axolotl.prompt_strategies.chat_template", reason="axolotl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    path = converted("axolotl", "axolotl.jsonl")
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    prompter = strategies.ChatTemplatePrompter(tokenizer, chat_template=tokenizer.chat_template, max_length=100_000)
    strategy = strategies.ChatTemplateStrategy(
        prompter,
        tokenizer,
        train_on_inputs=False,
        sequence_len=100_000,
        roles_to_train=["assistant"],
        train_on_eos="turn",
    )
    for row, record in zip(loaded, originals, strict=True):
        made = strategy.tokenize_prompt(row)
        assert tokenizer.decode(made["input_ids"]) == rendered(record, tokenizer)
        spans: list[list[int]] = []
        before = -100
        for token, label in zip(made["input_ids"], made["labels"], strict=True):
            if label != -100:
                spans += [[]] if before == -100 else []
                spans[-1].append(token)
            before = label
        answers = [message for message in record.messages if message.role == "assistant"]
        assert len(spans) == len(answers)
        for span, message in zip(spans, answers, strict=True):
            text = tokenizer.decode(span)
            assert text.endswith("<|im_end|>")
            assert text.startswith(message.content or "<tool_call>")
            assert text.count("<tool_call>") == len(message.tool_calls)


@pytest.mark.parametrize("name", ["home.json", "home.jsonl"])
def test_llama_factory_aligns_every_record_and_formats_its_calls_and_tools(converted, originals, tmp_path, name):
    parser = pytest.importorskip("llamafactory.data.parser", reason="llamafactory is not installed")
    converters = pytest.importorskip(
        "llamafactory.data.converter", reason="llamafactory is not installed", exc_type=Exception
    )
    formatters = pytest.importorskip("llamafactory.data.formatter", reason="llamafactory is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    path = converted("llama-factory", name)
    outputs: list = []
    convert.run(ConvertOptions(data=(tmp_path / "in.jsonl",), out=path, to="llama-factory"), outputs.append)
    info = next(event.line for event in outputs if type(event).__name__ == "Output")
    (tmp_path / "dataset_info.json").write_text(info, encoding="utf-8")
    (attributes,) = parser.get_dataset_list(["home"], str(tmp_path))
    assert (attributes.load_from, attributes.dataset_name) == ("file", name)
    converter = converters.get_dataset_converter(attributes.formatting, attributes, None)
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    functions = formatters.FunctionFormatter(slots=["{{content}}"], tool_format="qwen")
    declarations = formatters.ToolFormatter(tool_format="qwen")
    default = formatters.ToolFormatter(tool_format="default")
    for row, record in zip(loaded, originals, strict=True):
        made = converter(row)
        turns = [*made["_prompt"], *made["_response"]]
        spoken = [message for message in record.messages if message.role != "system"]
        # LLaMA-Factory gives no answer back for what it skips.
        assert len(made["_response"]) == 1
        assert made["_system"] == "".join(m.content or "" for m in record.messages if m.role == "system")
        answers = [turn for turn in turns if turn["role"] in ("assistant", "function")]
        said = [message for message in spoken if message.role == "assistant"]
        assert len(answers) == len(said)
        for turn, message in zip(answers, said, strict=True):
            if message.tool_calls:
                assert turn["role"] == "function"
                text = functions.apply(content=turn["content"])[0]
                calls = [json.loads(part.partition("</tool_call>")[0]) for part in text.split("<tool_call>")[1:]]
                expected = [{"name": c.function.name, "arguments": c.function.arguments} for c in message.tool_calls]
                assert calls == expected
            else:
                assert turn == {"role": "assistant", "content": message.content}
        for text in (
            (declarations.apply(content=made["_tools"])[0], default.apply(content=made["_tools"])[0])
            if made["_tools"]
            else ()
        ):
            assert all(tool.function.name in text for tool in record.tools)
        assert bool(made["_tools"]) == bool(record.tools)
        results = [message.content for message in spoken if message.role == "tool"]
        assert "\n</tool_response>\n<tool_response>\n".join(results) == "".join(
            turn["content"] for turn in turns if turn["role"] == "observation"
        )
