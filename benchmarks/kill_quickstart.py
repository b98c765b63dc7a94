"""Kill a run with SIGKILL at ten random moments, let it end, and compare it with an undisturbed run.

    python benchmarks/kill_quickstart.py [--profile quickstart] [--kills 10] [--seed 1] [--out runs/kill-test]
        [--set train.max_steps=30 ...] [--undisturbed runs/quickstart]

The undisturbed run comes first, unless a finished one of the same code is named; its length is what the random
moments are spread over. Prints which stages were killed, whether every output has the same sha256, and counts the
labelled records. Exits 1 if an output of a deterministic stage differs, or a record is lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from pillm.pipeline.stages import STAGES


def start(profile: str, run_dir: Path, changes: list[str]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pillm", "run", profile, f"--run-dir={run_dir}", "--json"]
    argv += [f"--set={change}" for change in changes]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def stage_of(run_dir: Path) -> str:
    """The stage that was started last."""
    names = []
    for line in (run_dir / "events.jsonl").read_bytes().splitlines():
        # The last line may be torn.
        if b"stage-started" in line and line.endswith(b"}"):
            names.append(json.loads(line)["stage"])
    return names[-1] if names else "-"


def outputs(run_dir: Path) -> dict[str, dict[str, str]]:
    manifest = json.loads((run_dir / "manifest.json").read_bytes())
    return {
        stage["id"]: {key: value["sha256"] for key, value in stage["outputs"].items()} for stage in manifest["stages"]
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="quickstart")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/kill-test"))
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.OPTION=VALUE")
    parser.add_argument("--undisturbed", type=Path, help="folder of a finished run of the same profile and options")
    given = parser.parse_args()
    whole, killed = given.undisturbed or given.out / "whole", given.out / "killed"
    if not given.undisturbed and start(given.profile, whole, given.set).wait():
        print(f"the undisturbed run failed; see {whole}")
        return 1
    length = sum(stage["seconds"] for stage in json.loads((whole / "manifest.json").read_bytes())["stages"])
    print(f"undisturbed: {length:.0f} s")
    rng = random.Random(given.seed)
    # Moments of working time, so that kills fall into every part of the run and not only its beginning.
    moments = sorted(rng.uniform(0.01, 0.99) * length for _ in range(given.kills))
    worked = 0.0
    for number, moment in enumerate(moments, 1):
        process = start(given.profile, killed, given.set)
        try:
            process.wait(max(0.5, moment - worked))
            print(f"kill {number}: the run was done before")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"kill {number}: after {moment:.0f} s of work, in {stage_of(killed)}", flush=True)
        worked = moment
    if start(given.profile, killed, given.set).wait():
        print(f"the killed run does not end; see {killed}")
        return 1
    bad = 0
    one, other = outputs(whole), outputs(killed)
    for name, hashes in one.items():
        stage = STAGES[json.loads((whole / name / "stage.json").read_bytes()).get("stage", name)]
        for key, sha256 in hashes.items():
            same = other.get(name, {}).get(key) == sha256
            kind = "deterministic" if stage.deterministic else "not deterministic"
            print(f"{name + '.' + key:24} {'same' if same else 'differs'} ({kind})")
            bad += not same and stage.deterministic
    for run_dir in (whole, killed):
        lines = (run_dir / "label" / "labelled.jsonl").read_bytes().splitlines()
        doubled = [name for name, count in Counter(json.loads(line)["id"] for line in lines).items() if count > 1]
        print(f"{run_dir}: {len(lines)} labelled records, {len(doubled)} doubled")
        bad += len(doubled)
    ids = [
        {json.loads(x)["id"] for x in (d / "label" / "labelled.jsonl").read_bytes().splitlines()}
        for d in (whole, killed)
    ]
    print(f"records in one run only: {len(ids[0] ^ ids[1])}")
    return int(bool(bad or ids[0] ^ ids[1]))


if __name__ == "__main__":
    sys.exit(main())
