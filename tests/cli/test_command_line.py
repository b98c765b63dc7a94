"""`pillm` as a person or a script meets it: help, errors, exit codes, JSON, dry runs. All in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pexpect
import pytest

from pillm import __version__
from pillm.core import events
from pillm.pipeline import pipeline_ops
from pillm.pipeline.stages import COMMANDS, STAGES

FAKES = Path(__file__).parent.parent / "pipeline" / "fake_stages.py"


def pillm(*words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pillm", *words]
    full = {**os.environ, "COLUMNS": "120", **env}
    return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=full, check=False, timeout=60)


def fake(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(FAKES), *words]
    full = {**os.environ, "PILLM_CACHE": str(cwd / "cache"), **env}
    return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=full, check=False, timeout=60)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    return tmp_path


def test_help_names_every_command_and_stage_in_the_order_of_use() -> None:
    done = pillm("--help")
    assert (done.returncode, done.stderr) == (0, "")
    places = [done.stdout.index(f" {name} ") for name, stage in STAGES.items() if not stage.group]
    assert places == sorted(places)
    for word in ("run", "report", "doctor", "profile", "models", "dataset"):
        assert f" {word} " in done.stdout
    inner = pillm("dataset", "--help")
    assert all(f" {name} " in inner.stdout for name, stage in COMMANDS.items() if stage.group == "dataset")


def test_the_bare_name_and_version() -> None:
    assert pillm().stdout == pillm("--help").stdout
    assert pillm("--version").stdout == f"pillm {__version__}\n"


@pytest.mark.parametrize("stage", COMMANDS.values(), ids=list(COMMANDS))
def test_the_help_of_a_stage_shows_each_option_with_unit_bounds_choices_and_default(stage) -> None:
    done = pillm(*stage.words, "--help", COLUMNS="400")
    assert (done.returncode, done.stderr) == (0, "")
    for name, field in stage.options.model_fields.items():
        (line,) = [
            row for row in done.stdout.splitlines() if f"{pipeline_ops.flag(name)} " in row and field.description in row
        ]
        if field.is_required():
            assert "[required]" in line
        elif field.default not in (None, (), ""):
            shown = field.default if not isinstance(field.default, tuple) else ", ".join(map(str, field.default))
            assert f"[default: {shown}]" in line
        if isinstance(field.json_schema_extra, dict):
            assert f"[{field.json_schema_extra['unit']}" in line
        for choice in getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ():
            if isinstance(choice, str):
                assert choice in line
    for flag in ("--dry-run", "--json", "--verbose"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trian",), 'pillm: Unknown command "trian". Did you mean "train"?'),
        (("train", "--rnk=3"), "pillm: Unknown option: --rnk=3. Did you mean --rank?"),
        (
            ("train", "a", "--student=b", "--rank=0", "--long=x"),
            "pillm: --rank must be at least 1, not '0'\n--long must be one",
        ),
        (("train",), "pillm: --data is required"),
        (("run", "nope"), "pillm: nope: there is no such profile"),
        (("run",), "requires an argument"),
        (("profile", "show"), "requires an argument"),
        (("run", "smoke", "--from", "xport"), "did you mean export"),
        (("run", "smoke", "--set", "train.rank=none"), "--set train.rank=none: wrong-value: must be a whole number"),
        (("report", "nowhere"), "nowhere"),
    ],
)
def test_wrong_usage_is_one_plain_message_and_exit_code_2(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = pillm(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_stage_publishes_its_results_and_names_them_on_stdout(data: Path) -> None:
    done = fake("copy", "lines.txt", "--prefix=- ", cwd=data)
    assert done.returncode == 0
    assert done.stdout == "copied       out/copied.txt\nlines = 2\n"
    assert (data / "out/copied.txt").read_text() == "- one\n- two\n"


def test_what_a_library_prints_is_not_a_result(data: Path) -> None:
    done = fake("join", "lines.txt", cwd=data)
    assert done.stdout == "joined       out/joined.txt\nbytes = 8\n"
    assert "a library that talks on stdout" in done.stderr


def test_json_gives_events_a_line_and_nothing_else_on_stdout(data: Path) -> None:
    done = fake("copy", "lines.txt", "--json", cwd=data)
    got = [events.decode(line) for line in done.stdout.splitlines()]
    assert got[-1] == events.Finished({"lines": 2})
    assert events.Progress("lines", 2, 2, "lines") in got
    assert done.stderr == ""


def test_a_dry_run_prints_the_command_and_the_files_and_writes_nothing(data: Path) -> None:
    before = sorted(data.iterdir())
    done = fake("copy", "--data", "lines.txt", "--pause", "0", "--prefix", "a b", "--dry-run", cwd=data)
    assert done.returncode == 0
    first, *rest = done.stdout.splitlines()
    assert first == "pillm copy --data=lines.txt '--prefix=a b'"
    assert [line.split() for line in rest] == [["reads", "data", "lines.txt"], ["writes", "copied", "out/copied.txt"]]
    assert sorted(data.iterdir()) == before
    again = json.loads(fake("copy", "lines.txt", "--dry-run", "--json", cwd=data).stdout)
    assert again["writes"] == {"copied": "out/copied.txt"}


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("findings", 1, "x.jsonl:3: bad: this line is bad\npillm: x.jsonl: 1 bad line\n    mend it\n"),
        ("missing", 3, "pillm: no such tool\n    get it\n"),
        ("extra", 3, "pillm: torch is not installed\n    run: pip install 'pi-llm-optimizer[train]'\n"),
    ],
)
def test_an_error_is_a_message_and_a_hint_with_its_exit_code(data: Path, how: str, code: int, said: str) -> None:
    done = fake("copy", "lines.txt", f"--fail={how}", cwd=data)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
    done = fake("copy", "lines.txt", f"--fail={how}", "--json", cwd=data)
    last = events.decode(done.stdout.splitlines()[-1])
    assert (done.returncode, done.stderr, last.exit_code) == (code, "", code)
    assert ("finding" in done.stdout) == (how == "findings")


def test_a_bug_is_one_line_and_a_log_without_the_token(data: Path) -> None:
    token = "hf_" + "abcdefghijklmnopqrstuvwxyz012345"
    done = fake("copy", "lines.txt", "--fail=bug", f"--prefix={token}", cwd=data, HF_TOKEN=token)
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    first, second = done.stderr.splitlines()
    assert first == "pillm: this is a bug in pillm: ZeroDivisionError: nobody thought of this"
    log = Path(second.partition("please report it with ")[2]).read_text()
    assert "Traceback" in log
    assert "_fail(options.fail)" in log
    assert token not in log


def test_a_reader_that_goes_away_while_a_stage_fails_is_no_traceback(data: Path) -> None:
    line = f"{sys.executable} {FAKES} copy lines.txt --json --fail=bug | true"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, cwd=data)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m pillm profile schema | head -n 1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_a_run_dry_gives_every_command_in_order(tmp_path: Path) -> None:
    done = pillm("run", "smoke", "--dry-run", cwd=tmp_path, PILLM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [line.split()[1] for line in commands] == [
        "label",
        "dataset",
        "train",
        "evaluate",
        "export",
        "quantize",
        "evaluate",
        "bench",
    ]
    assert not (tmp_path / "runs").exists()
    done = pillm(
        "run", "smoke", "--dry-run", "--json", "--until=train", cwd=tmp_path, PILLM_CACHE=str(tmp_path / "cache")
    )
    stages = json.loads(done.stdout)["stages"]
    assert [item["action"] for item in stages] == ["run", "run", "run", "skip", "skip", "skip", "skip", "skip"]


def test_a_secret_in_an_address_is_not_shown(data: Path) -> None:
    done = pillm("label", "lines.txt", "--teacher=http://me:secret@localhost:1/v1", "--dry-run", cwd=data)
    assert done.returncode == 0
    assert "secret" not in done.stdout


def test_profiles_can_be_listed_shown_checked_and_started_from(tmp_path: Path) -> None:
    listed = pillm("profile", "list", cwd=tmp_path).stdout
    assert all(name in listed for name in ("quickstart", "smoke", "tinyllama-tutor", "qwen-bilingual", "smollm2-home"))
    assert "\nprofile: 1\n" in pillm("profile", "show", "quickstart", cwd=tmp_path).stdout
    assert json.loads(pillm("profile", "schema", cwd=tmp_path).stdout)["title"] == "A profile of pillm"
    made = pillm("profile", "new", "mine", cwd=tmp_path)
    assert made.stdout == "profiles/mine.yaml\n"
    assert (tmp_path / "profiles/profile.schema.json").is_file()
    checked = pillm("profile", "validate", "mine", "smoke", cwd=tmp_path)
    assert (checked.returncode, checked.stdout.count(": right; runs ")) == (0, 2)
    assert pillm("profile", "new", "mine", cwd=tmp_path).returncode == 2
    assert pillm("profile", "new", "a/b", cwd=tmp_path).returncode == 2
    (tmp_path / "profiles/mine.yaml").write_text("profile: 1\nstages:\n  bench: {model: x, reps: 3}\n")
    wrong = pillm("profile", "validate", "mine", "smoke", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "profiles/mine.yaml:3: stages.bench.reps unknown-option" in wrong.stderr
    assert "smoke.yaml: right" in wrong.stdout


def test_doctor_says_what_is_here_and_never_the_token(tmp_path: Path) -> None:
    token = "hf_" + "abcdefghijklmnopqrstuvwxyz012345"
    done = pillm("doctor", "--json", cwd=tmp_path, HF_TOKEN=token, PILLM_CACHE=str(tmp_path / "cache"))
    checks = {check["name"]: check for check in json.loads(done.stdout.splitlines()[0])["checks"]}
    assert {"pillm", "python", "train", "llama.cpp", "cpu", "memory", "disk: cache", "hub token"} <= set(checks)
    assert checks["hub token"]["value"] == "yes"
    assert token not in done.stdout + done.stderr
    assert all(check["hint"] for check in checks.values() if check["state"] == "missing")
    plain = pillm("doctor", cwd=tmp_path, PILLM_CACHE=str(tmp_path / "cache"), HF_TOKEN="")
    assert "llama.cpp" in plain.stdout


def test_doctor_fails_with_the_way_out_where_something_is_missing(tmp_path: Path) -> None:
    done = pillm("doctor", cwd=tmp_path, PILLM_LLAMACPP_DIR=str(tmp_path))
    assert done.returncode == 3
    assert "MISSING  llama.cpp" in done.stdout
    assert "unset PILLM_LLAMACPP_DIR" in done.stdout


def test_models_resolve_prints_the_path_of_a_folder_or_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    done = pillm("models", "resolve", "m.gguf", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "m.gguf\n")
    done = pillm("models", "resolve", "m.gguf", "--json", cwd=tmp_path)
    assert msgspec.json.decode(done.stdout)["metrics"]["path"] == "m.gguf"
    done = pillm("models", "resolve", "nothing/here", cwd=tmp_path)
    assert done.returncode == 2
    assert "hf:nothing/here" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_stopped_says_so_in_one_line_and_exits_130(data: Path, number: signal.Signals) -> None:
    argv = [sys.executable, str(FAKES), "copy", "lines.txt", "--pause=20"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=data)
    while not (data / "out/journal.txt").exists():  # it has reached its work
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err == "pillm: stopped\n    the same command goes on from here\n"
    assert not (data / "out/copied.txt").exists()


def test_a_terminal_gets_bars_and_a_pipe_gets_none(data: Path) -> None:
    (data / "lines.txt").write_text("line\n" * 30)
    child = pexpect.spawn(sys.executable, [str(FAKES), "copy", "lines.txt", "--pause=0.05"], cwd=data, encoding="utf-8",
                          env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}, timeout=30)  # fmt: skip
    child.expect(r"lines .*\d+ of 30 lines")
    child.expect("copied +out/copied.txt")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    done = fake("copy", "lines.txt", "--pause=0.02", cwd=data)
    assert "\x1b" not in done.stdout + done.stderr
