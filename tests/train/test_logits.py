"""`pillm logits` on a tiny teacher: the cache holds the teacher's distributions, whatever cuts the run off."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pillm.core import jsonl  # noqa: E402
from pillm.core.errors import FindingsError, GateError, UsageError  # noqa: E402
from pillm.core.events import Log, silent  # noqa: E402
from pillm.logit_cache import check, open_cache, verify  # noqa: E402
from pillm.train import student  # noqa: E402
from pillm.train.dialogues import encode  # noqa: E402
from pillm.train.logits import report  # noqa: E402
from pillm.train.logits.options import LogitsOptions  # noqa: E402
from pillm.train.logits.run import run  # noqa: E402
from pillm.train.vocabulary import template_hash, vocabulary_hash  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.model]


def options(data: Path, teacher: Path, out: Path, **more: object) -> LogitsOptions:
    given = {
        "data": data,
        "teacher": str(teacher),
        "out": out,
        "dtype": "float32",
        "device": "cpu",
        "shard_tokens": 300,
        "micro_tokens": 512,
    }
    return LogitsOptions.model_validate(given | more)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def finished(tiny_student: Path, dialogues_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("logits")
    run(options(dialogues_file, tiny_student, out), silent)
    return out


def own(tiny_student: Path, dialogues: list) -> tuple:
    model, tokenizer, _ = student.load(tiny_student, torch.float32)
    template = student.chat_template("auto", tokenizer, True)
    return model.eval(), tokenizer, template, encode(dialogues, template, tokenizer)


def test_each_dialogue_is_found_and_exact_probabilities_are_the_teachers(
    finished: Path, tiny_student: Path, dialogues: list
) -> None:
    """Against the plain model, dialogue by dialogue, without packs and with transformers' own attention."""
    model, tokenizer, template, encoded = own(tiny_student, dialogues)
    cache = open_cache(finished)
    verify(cache)
    check(cache, vocabulary=vocabulary_hash(tokenizer.get_vocab()), template=template_hash(template), temperature=1.0)
    for item in encoded:
        index = cache.find(item.ids, item.learned)
        assert index is not None
        found = cache.read(index)
        with torch.inference_mode():
            p = torch.softmax(model(torch.tensor([item.ids])).logits[0], -1).numpy()
        places = [i - 1 for i in range(1, len(item.ids)) if item.learned[i]]
        assert len(found.ids) == len(places)
        assert np.allclose(found.weights.sum(1), 1, atol=2e-4)
        for row, place in enumerate(places):
            count = found.exact[row]
            ids = found.ids[row, :count]
            assert np.allclose(found.weights[row, :count], p[place, ids], atol=3e-5)
            # The tiny teacher is nearly flat, so nearly all is tail; what is left out of the exact part is below 1/samples.
            assert np.delete(p[place], ids).max() < 1 / 100 + 1e-6


def test_the_report_says_what_is_on_disk(finished: Path, dialogues: list) -> None:
    got = report.load(finished / "logits.json")
    cache = open_cache(finished)
    assert got.dialogues == len(cache) == len(dialogues)
    assert got.learned_tokens == sum(len(cache.read(index).ids) for index in range(len(cache)))
    assert got.bytes == sum(path.stat().st_size for path in (finished / "cache").iterdir())
    assert got.bytes_per_token == pytest.approx(got.bytes / got.learned_tokens, abs=1e-3)
    assert got.manifest == cache.identity
    assert got.shards == len(cache.manifest.shards) > 2
    assert 0 < got.mean_tail_mass <= 1
    assert 0 < (got.mean_entropy or 0) < np.log(49152)
    assert not got.biased


def test_the_same_run_elsewhere_gives_the_same_bytes_and_another_seed_does_not(
    finished: Path, tiny_student: Path, dialogues_file: Path, tmp_path: Path
) -> None:
    run(options(dialogues_file, tiny_student, tmp_path / "a"), silent)
    assert hashes(tmp_path / "a" / "cache") == hashes(finished / "cache")
    assert (tmp_path / "a" / "logits.json").read_bytes() == (finished / "logits.json").read_bytes()
    run(options(dialogues_file, tiny_student, tmp_path / "b", seed=1), silent)
    assert hashes(tmp_path / "b" / "cache") != hashes(finished / "cache")


def test_a_finished_cache_of_another_run_is_not_replaced(
    finished: Path, tiny_student: Path, dialogues_file: Path
) -> None:
    before = hashes(finished / "cache")
    with pytest.raises(UsageError, match="holds a finished cache") as caught:
        run(options(dialogues_file, tiny_student, finished, seed=1), silent)
    assert "--out" in caught.value.hint
    assert hashes(finished / "cache") == before


def test_lost_and_damaged_shards_are_made_again_to_the_same_bytes(
    finished: Path, tiny_student: Path, dialogues_file: Path
) -> None:
    before = hashes(finished / "cache")
    first, second, *_ = sorted((finished / "cache").glob("shard-*"))
    kept = second.stat().st_mtime_ns
    first.unlink()
    last = sorted((finished / "cache").glob("shard-*"))[-1]
    last.write_bytes(last.read_bytes()[:-7])
    said: list = []
    run(options(dialogues_file, tiny_student, finished), said.append)
    assert hashes(finished / "cache") == before
    assert second.stat().st_mtime_ns == kept
    assert any(isinstance(event, Log) and "cut off" in event.message for event in said)


def test_a_changed_dataset_is_found_as_far_as_it_is_the_same(
    finished: Path, tiny_student: Path, dialogues: list
) -> None:
    _, tokenizer, template, _ = own(tiny_student, dialogues[:1])
    changed = msgspec.structs.replace(
        dialogues[0],
        messages=(
            *dialogues[0].messages[:-1],
            msgspec.structs.replace(dialogues[0].messages[-1], content="Autre chose."),
        ),
    )
    same, other = encode([dialogues[1], changed], template, tokenizer)
    cache = open_cache(finished)
    assert cache.find(same.ids, same.learned) is not None
    assert cache.find(other.ids, other.learned) is None


def test_packing_changes_nothing_but_rounding(
    finished: Path, tiny_student: Path, dialogues_file: Path, tmp_path: Path
) -> None:
    run(options(dialogues_file, tiny_student, tmp_path, packing="separate", samples=0, top=5), silent)
    alone = open_cache(tmp_path)
    run(options(dialogues_file, tiny_student, tmp_path / "p", samples=0, top=5), silent)
    packed = open_cache(tmp_path / "p")
    assert alone.manifest.kind == packed.manifest.kind == "top-k"
    assert alone.manifest.biased
    records = jsonl.read(dialogues_file)
    _, _, _, encoded = own(tiny_student, records)
    for item in encoded:
        one, two = (c.read(c.find(item.ids, item.learned) or 0) for c in (alone, packed))
        assert np.allclose(one.weights, two.weights, atol=4e-5)
        assert one.weights.sum(1).max() < 1


def test_equal_dialogues_are_cached_once_and_prompts_not_at_all(
    tiny_student: Path, dialogues: list, tmp_path: Path
) -> None:
    twin = msgspec.structs.replace(dialogues[0], id="twin")
    prompt = msgspec.structs.replace(dialogues[1], id="prompt", messages=dialogues[1].messages[:2])
    jsonl.write(tmp_path / "d.jsonl", [dialogues[0], twin, prompt, dialogues[2]])
    said: list = []
    run(options(tmp_path / "d.jsonl", tiny_student, tmp_path / "out"), said.append)
    assert len(open_cache(tmp_path / "out")) == 2
    assert any(isinstance(e, Log) and e.message.startswith("1 prompts without an answer") for e in said)


def test_bad_input_is_refused_with_words(tiny_student: Path, dialogues_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FindingsError, match="cannot be trained on"):
        run(options(dialogues_file, tiny_student, tmp_path, max_length=40), silent)
    with pytest.raises(UsageError, match="cannot be read"):
        run(options(tmp_path / "none.jsonl", tiny_student, tmp_path), silent)
    with pytest.raises(UsageError, match="behind a server"):
        run(options(dialogues_file, tiny_student, tmp_path, tokenizer=str(tiny_student)), silent)
    (tmp_path / "bad.jsonl").write_text('{"id": "x", "messages": []}\nnonsense\n')
    with pytest.raises(FindingsError, match="2 bad lines"):
        run(options(tmp_path / "bad.jsonl", tiny_student, tmp_path), silent)


def test_a_teacher_that_gives_no_numbers_is_refused(tiny_student: Path, dialogues_file: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = student.load(tiny_student, torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(GateError, match="no numbers"):
        run(options(dialogues_file, tmp_path / "broken", tmp_path / "out"), silent)
    assert not (tmp_path / "out" / "cache" / "manifest.json").exists()


KILLED = """
import sys
from pathlib import Path
from pillm.core.events import silent
from pillm.train.logits.options import LogitsOptions
from pillm.train.logits.run import run
run(LogitsOptions.model_validate_json(sys.argv[1]), silent)
"""


def test_killed_at_random_moments_the_bytes_are_the_same(
    finished: Path, tiny_student: Path, dialogues_file: Path, tmp_path: Path
) -> None:
    """Real processes and kill -9. The moment is counted from the first shard on, so that it falls into the writing."""
    given = options(dialogues_file, tiny_student, tmp_path / "out").model_dump_json()
    rng = random.Random(0)
    cache = tmp_path / "out" / "cache"
    kills = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, given], env={**os.environ, "OMP_NUM_THREADS": "1"})
        before = len(list(cache.glob("shard-*"))) if cache.exists() else 0
        while process.poll() is None and (not cache.exists() or len(list(cache.glob("shard-*"))) <= before):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    run(options(dialogues_file, tiny_student, tmp_path / "out"), silent)
    assert hashes(cache) == hashes(finished / "cache")
    assert (tmp_path / "out" / "logits.json").read_bytes() == (finished / "logits.json").read_bytes()
