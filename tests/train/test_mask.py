"""The loss mask: decoded, it is exactly the assistant's text, in every chat template."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillm.core.errors import FindingsError, UsageError
from pillm.core.records import Message, Record
from pillm.models.chat import ChatTemplate, load_template
from pillm.train.dialogues import check, encode

pytestmark = [pytest.mark.train, pytest.mark.model]

TEMPLATES = {
    "chatml-tools": load_template("chatml-tools"),
    "zephyr-tools": load_template("zephyr-tools"),
    # The shapes of four common families, written for this test: turns by tags, by headers, with
    # inline brackets, and with a prefix of spaces.
    "zephyr-like": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content or m.tool_calls | tojson }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "llama3-like": "{{ bos_token }}{% for m in messages %}<h>{{ m.role }}</h>\n\n"
    "{{ (m.content or m.tool_calls | tojson) | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant</h>\n\n{% endif %}",
    "bracket-like": "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content or m.tool_calls | tojson }}"
    "{{ eos_token }}{% else %}[{{ m.role }}] {{ m.content }} [/{{ m.role }}] {% endif %}{% endfor %}",
}


@pytest.fixture(scope="module")
def tokenizer(tiny_student: Path):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(tiny_student)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_decoded_mask_is_the_assistants_text_and_nothing_else(name, tokenizer, dialogues):
    template = ChatTemplate(TEMPLATES[name], tokenizer.bos_token, tokenizer.eos_token)
    for record, item in zip(dialogues, encode(dialogues, template, tokenizer), strict=True):
        text, spans = template.assistant_spans(record.messages, record.tools)
        assert tokenizer.decode(item.ids) == text
        learned = tokenizer.decode([token for token, mine in zip(item.ids, item.learned, strict=True) if mine])
        assert learned == "".join(text[start:end] for start, end in spans)
        turns = [m for m in record.messages if m.role == "assistant"]
        assert len(spans) == len(turns)
        for (start, end), turn in zip(spans, turns, strict=True):
            said = turn.content or '"name": "set_timer"'
            assert said.strip() in text[start:end].replace("\\u00e9", "é")
            assert "Minuterie" not in text[start:end]


def test_the_models_own_template_without_tools_is_masked_too(smollm2_gguf, tokenizer):
    own = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    record = Record(
        "a", (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "?"), Message("assistant", "Yes."))
    )
    item = encode([record], own, tokenizer)[0]
    learned = tokenizer.decode([token for token, mine in zip(item.ids, item.learned, strict=True) if mine])
    assert learned == "Hello!<|im_end|>Yes.<|im_end|>"


def test_a_begin_token_that_llama_cpp_adds_is_there_once(tokenizer, dialogues):
    class Beginning:
        """A tokenizer that puts its begin token before any text, as Llama's does."""

        bos_token_id = tokenizer.bos_token_id

        def __call__(self, text, add_special_tokens=True):
            encoded = tokenizer(text, add_special_tokens=False)
            if add_special_tokens:
                encoded["input_ids"] = [self.bos_token_id, *encoded.input_ids]
            return encoded

    for source in ("zephyr-like", "llama3-like"):
        template = ChatTemplate(TEMPLATES[source], tokenizer.bos_token, tokenizer.eos_token)
        ids = encode(dialogues[:1], template, Beginning())[0].ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids[1] != tokenizer.bos_token_id


def test_loss_on_last_marks_the_last_turn_alone(tokenizer, dialogues):
    template = ChatTemplate(TEMPLATES["chatml-tools"])
    item = encode([dialogues[1]], template, tokenizer, "last")[0]
    learned = tokenizer.decode([token for token, mine in zip(item.ids, item.learned, strict=True) if mine])
    assert learned == "C'est parti, à tantôt !<|im_end|>"


def test_an_empty_mask_is_refused_with_the_record(tokenizer, dialogues):
    template = ChatTemplate(TEMPLATES["chatml-tools"])
    prompt = Record("only-a-prompt", (Message("user", "Hello"),))
    encoded = encode([prompt, dialogues[0]], template, tokenizer)
    with pytest.raises(FindingsError) as caught:
        check([prompt, dialogues[0]], encoded, "x.jsonl", 512, "error")
    assert [finding.code for finding in caught.value.findings] == ["nothing-to-learn"]
    assert "only-a-prompt" in str(caught.value.findings[0])


def test_a_long_dialogue_is_an_error_or_left_out(tokenizer, dialogues):
    encoded = encode(dialogues[:2], ChatTemplate(TEMPLATES["chatml-tools"]), tokenizer)
    limit = min(len(item.ids) for item in encoded)
    assert check(dialogues[:2], encoded, "x", limit, "drop") == [
        i for i, item in enumerate(encoded) if len(item.ids) <= limit
    ]
    with pytest.raises(FindingsError, match="1 records"):
        check(dialogues[:2], encoded, "x", limit, "error")


def test_a_template_that_rewrites_earlier_turns_is_refused(dialogues):
    rewriting = ChatTemplate("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UsageError, match="changes earlier turns"):
        rewriting.assistant_spans(dialogues[1].messages)


def test_rendering_is_that_of_transformers(dialogues):
    from transformers.utils.chat_template_utils import render_jinja_template

    from pillm.core.records import plain

    template = ChatTemplate(TEMPLATES["chatml-tools"])
    for record in dialogues[:4]:
        theirs, spans = render_jinja_template(
            conversations=[plain(record.messages)],
            tools=plain(record.tools),
            chat_template=template.source,
            return_assistant_tokens_mask=True,
        )
        ours, our_spans = template.assistant_spans(record.messages, record.tools)
        assert theirs[0] == ours
        assert [theirs[0][a:b] for a, b in spans[0]] == [ours[a:b] for a, b in our_spans]


def test_which_templates_know_tools(tokenizer):
    assert ChatTemplate(TEMPLATES["chatml-tools"]).knows_tools
    assert not ChatTemplate(tokenizer.chat_template).knows_tools
    assert not ChatTemplate("{{ raise_exception('no') }}").knows_tools
