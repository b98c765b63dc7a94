"""Getting models from a hub: the real client, a hub on this machine. No request leaves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import FIRST, NEEDED, SECOND, FakeHub, Fault, Repo, model_files, noise, sha256

from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError, UsageError
from pillm.core.events import Event, Log, Progress
from pillm.models.refs import identity, resolve

RESOLVE = "import sys; from pillm.models.refs import resolve; print(resolve(sys.argv[1], lambda event: None))"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.running(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def events() -> list[Event]:
    return []


def warnings_in(events: list[Event]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Log) and event.level == "warning")


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_fetched_with_what_belongs_to_it_and_nothing_else(hub: FakeHub, events: list[Event]):
    folder = resolve("hf:org/model", events.append)
    assert names_below(folder) == NEEDED == hub.files_asked()
    for name in NEEDED:
        assert (folder / name).read_bytes() == model_files()[name]
    progress = [event for event in events if isinstance(event, Progress) and event.label == "org/model"]
    assert progress[-1].done == progress[-1].total == sum(len(model_files()[name]) for name in NEEDED)
    assert progress[-1].unit == "B"
    assert any("MB/s" in event.message for event in events if isinstance(event, Log))


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub: FakeHub, events, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    hub.token = fake_hub.TOKEN
    resolve("hf:org/model", events.append)
    at_hub = [request for request in hub.requests if not request.storage]
    at_storage = [request for request in hub.requests if request.storage]
    assert {request.headers.get("authorization") for request in at_hub} == {f"Bearer {fake_hub.TOKEN}"}
    assert at_storage
    assert all("authorization" not in request.headers for request in at_storage)


def test_a_cached_branch_costs_one_question_and_a_cached_commit_none(hub: FakeHub, events):
    first = resolve("hf:org/model", events.append)
    hub.requests.clear()
    assert resolve("hf:org/model@main", events.append) == first
    assert [request.path for request in hub.requests] == ["/api/models/org/model/revision/main"]
    hub.requests.clear()
    assert resolve(f"hf:org/model@{FIRST}", events.append) == first
    assert hub.requests == []


def test_a_branch_that_moved_brings_only_what_changed(hub: FakeHub, events):
    before = resolve("hf:org/model", events.append)
    repo = hub.repos["org/model"]
    repo.commits[SECOND] = {**repo.commits[FIRST], "model.safetensors": noise("second", 5000)}
    repo.branches["main"] = SECOND
    hub.requests.clear()
    after = resolve("hf:org/model", events.append)
    assert hub.files_asked() == {"model.safetensors"}
    assert (after / "model.safetensors").read_bytes() == noise("second", 5000)
    assert (before / "model.safetensors").read_bytes() == model_files()["model.safetensors"]
    assert identity("hf:org/model") == f"hf:org/model@{SECOND}"


def test_identity_of_a_branch_is_its_name_before_and_its_commit_after_it_was_fetched(hub: FakeHub, events):
    assert identity("hf:org/model") == "hf:org/model@main"
    assert identity(f"hf:org/model@{SECOND}") == f"hf:org/model@{SECOND}"
    assert hub.requests == []
    resolve("hf:org/model@dev", events.append)
    assert identity("hf:org/model@dev") == f"hf:org/model@{FIRST}"


def test_sharded_weights_come_as_their_index_names_them(hub: FakeHub, events):
    files = model_files()
    del files["model.safetensors"]
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files |= {name: noise(name, 3000) for name in shards}
    files["model.safetensors.index.json"] = f'{{"weight_map": {{"a": "{shards[0]}", "b": "{shards[1]}"}}}}'.encode()
    hub.repos["org/model"].commits[FIRST] = files
    folder = resolve("hf:org/model", events.append)
    assert {path.name for path in folder.glob("*.safetensors")} == set(shards)

    hub.repos["org/model"].commits[SECOND] = {name: data for name, data in files.items() if name != shards[1]}
    with pytest.raises(MissingError, match=shards[1]):
        resolve(f"hf:org/model@{SECOND}", events.append)


def test_one_gguf_file_can_be_named_and_its_parts_come_along(hub: FakeHub, events):
    parts = [f"split-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    files = {name: b"GGUF" + noise(name, 100) for name in ("small.gguf", "large.gguf", "mmproj-f16.gguf", *parts)}
    hub.repos["org/gguf"] = Repo({FIRST: files}, {"main": FIRST})
    path = resolve("hf:org/gguf:small.gguf", events.append)
    assert path.name == "small.gguf"
    assert path.read_bytes() == files["small.gguf"]
    assert hub.files_asked() == {"small.gguf"}
    first = resolve(f"hf:org/gguf@{FIRST}:{parts[0]}", events.append)
    assert first.name == parts[0]
    assert {name for name in parts if (first.parent / name).is_file()} == set(parts)


def test_a_gguf_file_need_not_be_named_where_there_is_one(hub: FakeHub, events):
    one = {"README.md": b"#", "only.gguf": b"GGUF" + noise("only", 100), "mmproj-f16.gguf": b"GGUF"}
    hub.repos["org/one"] = Repo({FIRST: one}, {"main": FIRST})
    hub.repos["org/two"] = Repo({FIRST: {**one, "other.gguf": b"GGUF"}}, {"main": FIRST})
    path = resolve("hf:org/one", events.append)
    assert path.name == "only.gguf"
    assert (path.parent / "README.md").is_file()
    with pytest.raises(UsageError) as raised:
        resolve("hf:org/two", events.append)
    assert "hf:org/two:only.gguf" in raised.value.hint
    with pytest.raises(MissingError) as missing:
        resolve("hf:org/two:onyl.gguf", events.append)
    assert "hf:org/two:only.gguf" in missing.value.hint


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "neither safetensors nor GGUF"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "adapter"),
        ({"model.safetensors": b"x"}, "no config.json"),
    ],
)
def test_a_repository_without_a_model_to_use_is_told_apart(hub: FakeHub, events, files, words):
    hub.repos["org/odd"] = Repo({FIRST: files}, {"main": FIRST})
    with pytest.raises(UsageError, match=words):
        resolve("hf:org/odd", events.append)


def test_a_listing_that_points_out_of_the_cache_writes_nothing_there(hub: FakeHub, events, tmp_path):
    hub.repos["org/model"].commits[FIRST]["../../../../../tokenizer_evil.json"] = b"{}"
    resolve("hf:org/model", events.append)
    assert not list(tmp_path.rglob("*evil*"))


def test_an_empty_file_is_no_trouble(hub: FakeHub, events):
    hub.repos["org/model"].commits[FIRST]["added_tokens.json"] = b""
    folder = resolve("hf:org/model", events.append)
    assert (folder / "added_tokens.json").read_bytes() == b""
    hub.requests.clear()
    assert resolve(f"hf:org/model@{FIRST}", events.append) == folder
    assert hub.requests == []


def test_what_we_fetch_the_hubs_own_client_finds_and_the_other_way_round(hub: FakeHub, events):
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    ours = resolve("hf:org/model", events.append)
    assert Path(snapshot_download("org/model", local_files_only=True)) == ours
    assert try_to_load_from_cache("org/model", "model.safetensors") == str(ours / "model.safetensors")

    hub.repos["org/other"] = Repo({SECOND: model_files("other")}, {"main": SECOND})
    theirs = snapshot_download("org/other", tqdm_class=None)
    hub.requests.clear()
    assert resolve("hf:org/other", events.append) == Path(theirs)
    assert hub.files_asked() == set()


def test_without_a_network_the_last_commit_serves_with_a_warning(hub: FakeHub, events):
    path = resolve("hf:org/model", events.append)
    hub.stop()
    assert resolve("hf:org/model", events.append) == path
    assert "cannot be reached" in warnings_in(events)
    assert FIRST[:12] in warnings_in(events)
    with pytest.raises(NetworkError) as raised:
        resolve("hf:org/other", events.append)
    assert "cannot be reached" in raised.value.message
    assert raised.value.exit_code == 4


def test_without_a_network_what_another_tool_fetched_serves_too(hub: FakeHub, events):
    from huggingface_hub import snapshot_download

    theirs = snapshot_download("org/model", tqdm_class=None)
    hub.stop()
    assert resolve(f"hf:org/model@{FIRST}", events.append) == Path(theirs)


def test_offline_uses_the_cache_without_a_request_and_says_what_is_missing(hub: FakeHub, events, monkeypatch):
    from huggingface_hub import constants

    path = resolve("hf:org/model", events.append)
    hub.requests.clear()
    events.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("hf:org/model", events.append) == path
    assert resolve(f"hf:org/model@{FIRST}", events.append) == path
    with pytest.raises(MissingError) as raised:
        resolve("hf:org/model@v9", events.append)
    assert "HF_HUB_OFFLINE" in raised.value.message
    (path / "tokenizer.json").resolve().write_bytes(b"{}")
    with pytest.raises(MissingError, match="damaged"):
        resolve("hf:org/model", events.append)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_cached_file_that_was_changed_is_noticed_and_fetched_again(hub: FakeHub, events, name):
    path = resolve("hf:org/model", events.append) / name
    blob, stat = path.resolve(), path.stat()
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    # Same size, and the modification time as it was: only the content tells.
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    hub.requests.clear()
    assert resolve(f"hf:org/model@{FIRST}", events.append) == path.parent
    assert path.read_bytes() == model_files()[name]
    assert name in warnings_in(events)
    assert "damaged" in warnings_in(events)
    assert hub.files_asked() == {name}


def test_a_killed_download_goes_on_where_it_was(hub: FakeHub, events, tmp_path):
    size, kept = 6_000_000, 4_000_000
    hub.repos["org/model"].commits[FIRST]["model.safetensors"] = weights = noise("big", size)
    hub.faults.append(Fault(sha256(weights), times=1, stall_after=kept))
    environment = {**os.environ, **fake_hub.environment(hub, tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", RESOLVE, "hf:org/model"], env=environment)
    blobs = tmp_path / "hf" / "hub" / "models--org--model" / "blobs"
    partial = blobs / f"{sha256(weights)}.pillm-partial"
    try:
        # Python's file buffer may hold the last few kilobytes back.
        fake_hub.wait_until(lambda: partial.is_file() and partial.stat().st_size > kept - 200_000)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    on_disk = partial.stat().st_size
    hub.requests.clear()
    hub.sent = 0
    folder = resolve("hf:org/model", events.append)
    assert sha256((folder / "model.safetensors").read_bytes()) == sha256(weights)
    ranges = [request.headers.get("range") for request in hub.requests if request.storage]
    assert ranges == [f"bytes={on_disk}-"]
    assert hub.sent < size - on_disk + 10_000
    assert any("going on after" in event.message for event in events if isinstance(event, Log))
    assert not list(blobs.glob("*.pillm-partial"))


def test_two_processes_fetch_each_file_once(hub: FakeHub, tmp_path):
    environment = {**os.environ, **fake_hub.environment(hub, tmp_path)}
    command = [sys.executable, "-c", RESOLVE, "hf:org/model"]
    children = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(answers) == 1
    asked = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert sorted(asked) == sorted(set(asked))


def test_too_little_space_is_said_before_anything_is_fetched(hub: FakeHub, events, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("pillm.models.hub.shutil.disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(ResourceError) as raised:
        resolve("hf:org/model", events.append)
    assert "MB free" in raised.value.message
    assert "HF_HOME" in raised.value.hint
    assert hub.files_asked() == set()


def test_a_disk_that_fills_up_is_said_and_what_came_is_kept(hub: FakeHub, events, tmp_path, monkeypatch):
    from huggingface_hub import constants

    mount = tmp_path / "small-disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", mount], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(mount / "hub"))
        monkeypatch.setattr("pillm.models.hub.shutil.disk_usage", lambda path: usage(10**9, 0, 10**9))
        with pytest.raises(ResourceError) as raised:
            resolve("hf:org/model", events.append)
        assert "the disk is full" in raised.value.message
        assert "HF_HOME" in raised.value.hint
        assert "--out" not in raised.value.hint
        subprocess.run(["mount", "-o", "remount,size=4m", mount], check=True)
        hub.requests.clear()
        folder = resolve("hf:org/model", events.append)
        assert (folder / "model.safetensors").read_bytes() == model_files()["model.safetensors"]
        assert any("range" in request.headers for request in hub.requests if request.storage)
    finally:
        subprocess.run(["umount", mount], check=True)


def test_errors_of_this_room_are_all_errors_a_user_can_act_on(hub: FakeHub, events):
    hub.repos.clear()
    with pytest.raises(PillmError) as raised:
        resolve("hf:org/model", events.append)
    assert raised.value.hint
