"""Datasets and options that cannot be labelled, and those that need no teacher."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pillm.core.errors import FindingsError, MissingError, ResourceError, UsageError
from pillm.core.events import silent
from pillm.teach.label import run
from pillm.teach.options import LabelOptions

PROMPT = b'{"id": "a", "messages": [{"role": "user", "content": "hi"}]}\n'


def label(path: Path, out: Path, teacher: str = "http://127.0.0.1:9/v1", **more):
    return run(LabelOptions(prompts=path, teacher=teacher, out=out, model_name="m", **more), silent)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"{oops\n", "not-json"),
        (PROMPT[:-9], "not-json"),
        (b"\xff\xfe{}\n", "not-utf8"),
        (PROMPT + PROMPT, "duplicate-id"),
        (b'{"id": "a", "messages": [{"role": "system", "content": "hi"}]}\n', "no-prompt"),
        (PROMPT.replace(b'"id"', b'"response_schema": {"type": "thing"}, "id"'), "bad-schema"),
    ],
)
def test_a_bad_dataset_is_refused_before_any_teacher_is_asked(tmp_path, data, code):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(data)
    with pytest.raises(FindingsError) as caught:
        label(path, tmp_path / "out")
    assert [finding.code for finding in caught.value.findings] == [code]
    assert not (tmp_path / "out").exists()


def test_all_bad_lines_are_told_with_their_place(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"{oops\n" + PROMPT + b"[]\n")
    with pytest.raises(FindingsError) as caught:
        label(path, tmp_path / "out")
    assert [(f.line, f.byte) for f in caught.value.findings] == [(1, 0), (3, 6 + len(PROMPT))]


def test_a_dataset_that_is_not_there_or_not_shipped_is_said_so(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.jsonl: cannot be read"):
        label(tmp_path / "nowhere.jsonl", tmp_path / "out")
    with pytest.raises(UsageError, match="there is no such dataset"):
        label(Path("dataset:nowhere/train"), tmp_path / "out")


def test_answered_records_need_no_teacher(tmp_path):
    path = tmp_path / "prompts.jsonl"
    line = b'{"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}'
    path.write_bytes(line + b"\n")
    result = label(path, tmp_path / "out", teacher="hf:no/such-model")
    assert result.outputs["labelled"].read_bytes() == line + b"\n"
    assert result.outputs["rejected"].read_bytes() == b""
    assert result.metrics["passed"] == 1


@pytest.mark.parametrize(
    ("teacher", "more", "says"),
    [
        ("http://h/v1", {"backend": "transformers"}, "cannot use a server's address"),
        ("http://h/v1", {"backend": "llama-server"}, "cannot use a server's address"),
        ("model.gguf", {"backend": "openai"}, "not the address of a server"),
        ("http://h/v1", {"chat_template": "chatml-tools"}, "has its own chat template"),
        ("http://host:port/v1", {}, "not a URL"),
        ("http:///v1", {}, "not the address of a server"),
        ("model.gguf", {"chat_template": "no-such"}, "no such chat template"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, teacher, more, says):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(PROMPT)
    with pytest.raises(UsageError, match=says) as caught:
        label(path, tmp_path / "out", teacher=teacher, **more)
    assert caught.value.hint


def test_a_missing_teacher_is_said_so(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(PROMPT)
    with pytest.raises((UsageError, MissingError), match=r"nowhere\.gguf"):
        label(path, tmp_path / "out", teacher=str(tmp_path / "nowhere.gguf"))


def test_llama_server_takes_no_folder_of_safetensors(tmp_path):
    path, model = tmp_path / "prompts.jsonl", tmp_path / "model"
    path.write_bytes(PROMPT)
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(UsageError, match="needs a GGUF file"):
        label(path, tmp_path / "out", teacher=str(model), backend="llama-server")


@pytest.mark.skipif(sys.platform != "linux", reason="/sys is Linux's; there even root cannot write")
def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(PROMPT)
    with pytest.raises(ResourceError, match="cannot be written"):
        label(path, Path("/sys/pillm-label"))
