"""The cache's files: what is written is read, and whatever is damaged is refused with its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pillm.core.errors import UsageError
from pillm.core.events import silent
from pillm.core.locks import locked
from pillm.logit_cache import Cache, Manifest, check, open_cache, shards, verify, writer
from pillm.logit_cache.rows import (
    Rows,
    block_bytes,
    code,
    decode,
    dialogue_key,
    from_block,
    id_bytes,
    targets,
    to_block,
)

RUN = "ab" * 32


def random_rows(rng: np.random.Generator, count: int, vocabulary: int) -> Rows:
    exact, samples = rng.integers(0, 12, count), rng.integers(0, 9, count)
    values: list[np.ndarray] = []
    masses: list[float] = []
    exact_ids: list[np.ndarray] = []
    sample_ids: list[np.ndarray] = []
    for e, s in zip(exact, samples, strict=True):
        share = rng.dirichlet(np.ones(e + 1))
        mass = share[-1] if s else 0.0
        ids = rng.choice(vocabulary, e + s, replace=False)
        values.append(share[:-1])
        masses.append(mass)
        exact_ids.append(ids[:e])
        sample_ids.append(np.sort(ids[e:]))
    return Rows(exact, samples, np.array(masses), *(np.concatenate(part) for part in (values, exact_ids, sample_ids)))


def dialogue(number: int) -> tuple[list[int], list[bool]]:
    return [number, 5, 6, 7 + number], [False, False, True, True]


def manifest() -> Manifest:
    return Manifest("sampled", False, 1.0, 100, 100, 0, 49152, "vv", "tt", "dd", "teacher", RUN, 0, 0, ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished cache of two shards with three dialogues each."""
    rng = np.random.default_rng(0)
    assert writer.prepare(tmp_path / "cache", RUN, 2, silent) == set()
    for number in range(2):
        dialogues = [(dialogue_key(*dialogue(3 * number + n)), random_rows(rng, 2, 49152)) for n in range(3)]
        path = tmp_path / "cache" / shards.file_name(number)
        shards.write(path, number, bytes.fromhex(RUN), 49152, dialogues, 1.5, 0.5)
    writer.finish(tmp_path / "cache", manifest())
    return tmp_path / "cache"


def read_all(cache: Cache) -> None:
    for index in range(len(cache)):
        cache.read(index)


@pytest.mark.parametrize("vocabulary", [500, 65536, 200_000])
def test_a_block_gives_back_ids_counts_and_probabilities(vocabulary: int) -> None:
    rows = random_rows(np.random.default_rng(1), 40, vocabulary)
    width = id_bytes(vocabulary)
    assert width == (2 if vocabulary <= 65536 else 3)
    block = to_block(rows, width)
    entries = len(rows.exact_ids) + len(rows.sample_ids)
    assert len(block) == block_bytes(40, len(rows.exact_ids), entries, width)
    got = from_block(np.frombuffer(block, np.uint8), 40, entries, width)
    for name in ("exact", "samples", "exact_ids", "sample_ids"):
        assert np.array_equal(getattr(got, name), getattr(rows, name)), name
    # Half a step of the code at p is sqrt(p) / 65535.
    assert np.all(np.abs(got.values - rows.values) <= np.sqrt(rows.values) / 65535 + 1e-7)
    found = targets(got)
    assert found.ids.dtype == np.int32
    assert found.weights.dtype == np.float32
    whole = rows.samples > 0
    assert np.allclose(found.weights.sum(1)[whole], 1, atol=2e-4)
    first = int(np.flatnonzero(rows.exact)[0])
    count, start = rows.exact[first], rows.exact[:first].sum()
    assert np.array_equal(found.ids[first, :count], rows.exact_ids[start : start + count])
    sampled = found.weights[first, count : count + rows.samples[first]]
    assert np.allclose(sampled, rows.mass[first] / max(1, rows.samples[first]), atol=1e-4)


def test_samples_that_hit_one_token_twice_are_merged() -> None:
    rows = Rows(np.array([1]), np.array([4]), np.array([0.8]), np.array([0.2]), np.array([9]), np.array([3, 3, 7, 8]))
    got = targets(rows)
    assert got.ids.tolist() == [[9, 3, 7, 8, 0]]
    assert np.allclose(got.weights, [[0.2, 0.4, 0.2, 0.2, 0]])


def test_the_code_of_a_probability_has_no_bias_that_matters() -> None:
    p = np.random.default_rng(0).beta(0.3, 2, 200_000)
    error = decode(code(p)).astype(np.float64) - p
    assert np.abs(error).max() < 2e-5
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(p)) + 1e-8
    assert decode(code(np.array([0.0, 1.0]))).tolist() == [0.0, 1.0]


def test_a_dialogue_is_found_by_its_tokens_and_its_mask(folder: Path) -> None:
    cache = open_cache(folder)
    assert [cache.find(*dialogue(n)) for n in range(6)] == list(range(6))
    ids, learned = dialogue(0)
    assert cache.find([*ids[:3], 99], learned) is None
    assert cache.find(ids, [False, True, True, True]) is None
    # The first token can never be learned.
    assert cache.find(ids, [True, *learned[1:]]) == 0
    verify(cache)
    assert len(open_cache(folder.parent)) == 6
    assert cache.read(0).ids.shape[0] == 2


def test_the_reader_needs_no_torch() -> None:
    code = "import sys, pillm.logit_cache; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_any_flipped_bit_is_refused_with_shard_and_bytes(folder: Path) -> None:
    path = folder / "shard-00001.bin"
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    for bit in [*range(0, len(good) * 8, 8), *rng.integers(0, len(good) * 8, 300).tolist()]:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(UsageError, match=r"shard-00001\.bin") as caught:
            read_all(open_cache(folder))
        assert "delete this file" in caught.value.hint or "newer" in caught.value.message
        if bit // 8 >= 8:
            assert "bytes " in caught.value.message
    path.write_bytes(good)
    read_all(open_cache(folder))


def test_any_flipped_bit_of_the_manifest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    good = path.read_bytes()
    for byte in range(0, len(good), 3):
        bad = bytearray(good)
        bad[byte] ^= 1 << byte % 8
        path.write_bytes(bad)
        with pytest.raises(UsageError, match="manifest"):
            open_cache(folder)


@pytest.mark.parametrize("length", [0, 1, 50, 112, 150, -41, -1])
def test_a_cut_shard_is_refused(folder: Path, length: int) -> None:
    path = folder / "shard-00000.bin"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"shard-00000\.bin: (cut off|.* cut off)") as caught:
        open_cache(folder)
    assert "delete this file" in caught.value.hint


def test_a_shard_that_is_gone_foreign_or_of_another_cache_is_refused(folder: Path) -> None:
    path = folder / "shard-00000.bin"
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(UsageError, match="not there"):
        open_cache(folder)
    path.write_bytes(b"GGUF" + bytes(500))
    with pytest.raises(UsageError, match="not a shard of a cache"):
        open_cache(folder)
    shards.write(path, 0, bytes(32), 49152, [], 0, 0)
    with pytest.raises(UsageError, match="another cache"):
        open_cache(folder)
    path.write_bytes((folder / "shard-00001.bin").read_bytes())
    with pytest.raises(UsageError, match="another cache"):
        open_cache(folder)
    path.write_bytes(good)
    open_cache(folder)


def test_a_newer_version_a_foreign_manifest_and_no_manifest_are_told_apart(folder: Path, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(UsageError, match=r"version 2.*knows version 1"):
        open_cache(folder)
    path.write_text('{"format": "something"}')
    with pytest.raises(UsageError, match="not the manifest"):
        open_cache(folder)
    path.write_text("[]")
    with pytest.raises(UsageError, match="damaged"):
        open_cache(folder)
    path.unlink()
    with pytest.raises(UsageError, match="no finished cache"):
        open_cache(folder)
    with pytest.raises(UsageError, match="no finished cache"):
        open_cache(tmp_path / "nowhere")


def test_a_shard_of_a_newer_version_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shards, "VERSION", 2)
        shards.write(folder / "shard-00000.bin", 0, bytes.fromhex(RUN), 49152, [], 0, 0)
    with pytest.raises(UsageError, match="format version 2"):
        open_cache(folder)


def test_check_names_all_that_differs_with_both_values(folder: Path) -> None:
    cache = open_cache(folder)
    check(cache, vocabulary="vv", template="tt", temperature=1.0)
    with pytest.raises(UsageError) as caught:
        check(cache, vocabulary="other", template="tt", temperature=2.0)
    assert "vocabulary vv in the cache, other here" in caught.value.message
    assert "temperature 1.0 in the cache, 2.0 here" in caught.value.message
    assert "template" not in caught.value.message


def test_going_on_keeps_whole_shards_of_the_same_run_only(folder: Path) -> None:
    said: list[object] = []
    assert writer.prepare(folder, RUN, 2, said.append) == {0, 1}
    assert (folder / "manifest.json").exists()
    path = folder / "shard-00001.bin"
    good = path.read_bytes()
    bad = bytearray(good)
    bad[130] ^= 1
    path.write_bytes(bad)
    (folder / "shard-00002.bin").write_bytes(b"stray")
    assert writer.prepare(folder, RUN, 2, said.append) == {0}
    assert "damaged" in str(said)
    assert sorted(p.name for p in folder.iterdir()) == ["shard-00000.bin"]
    said.clear()
    assert writer.prepare(folder, "cd" * 32, 2, said.append) == set()
    assert list(folder.iterdir()) == []
    assert "1 shards of an unfinished other run" in str(said)


def test_a_finished_cache_of_another_run_is_refused_and_stays_as_it_is(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="holds a finished cache") as caught:
        writer.prepare(folder, "cd" * 32, 2, silent)
    assert "--out" in caught.value.hint
    (folder / "manifest.json").write_bytes(before["manifest.json"][:-9])
    with pytest.raises(UsageError, match="damaged"):
        writer.prepare(folder, "cd" * 32, 2, silent)
    (folder / "manifest.json").write_bytes(before["manifest.json"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    read_all(open_cache(folder))


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    second = locked(tmp_path / "lock")
    with locked(tmp_path / "lock"), pytest.raises(UsageError, match="another run"):
        second.__enter__()
    with locked(tmp_path / "lock"):
        pass


def test_the_identity_of_a_cache_is_its_manifests_hash(folder: Path) -> None:
    first = open_cache(folder).identity
    writer.finish(folder, msgspec.structs.replace(manifest(), seed=1))
    assert open_cache(folder).identity != first
