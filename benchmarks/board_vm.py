"""The whole way on emulated boards: deploy over ssh, service, answer, batch job, stop, power cuts.

    sudo python benchmarks/board_vm.py RUNTIME_arm64.deb MODEL.gguf [--cpu cortex-a72] [--cuts 10] [--jobs 30]

A machine (emulated/machine.py) is set up clean for each core, `pillm deploy` installs on it twice, and what the issue's
table asks for is looked at there. With --cuts, its power is cut at random moments while it answers jobs.
**Emulated seconds say nothing about a board's speed.**
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from emulated.machine import CORES, HOST, Machine, lacking, machine

QUESTION = "Complete: The capital of France is"
"""SmolLM2-135M knows it in this form only."""
NAME = "tutor"


def deploy(board: Machine, runtime: Path, model: Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    """`pillm deploy` as a person types it; seconds."""
    argv = [
        sys.executable,
        "-m",
        "pillm",
        "deploy",
        str(model),
        f"--host={HOST}",
        f"--ssh-config={board.config}",
        f"--runtime={runtime}",
        f"--prompt={QUESTION}",
    ]
    argv += [] if model.suffix == ".deb" else [f"--name={NAME}"]
    began = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode:
        raise SystemExit(f"deploy ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - began, done


def looked_at(board: Machine, name: str) -> dict[str, str]:
    """What is to be seen of the service there."""
    script = f"""
unit=pillm-server@{name}.service
echo "active=$(systemctl is-active $unit)"
echo "backend=$(for p in $(pgrep llama-server); do cat /proc/$p/maps; done | grep -o 'libggml-cpu-[^ ]*[.]so' | sort -u | tr '\\n' ' ')"
echo "limit=$(systemctl show -P MemoryMax $unit)"
echo "used=$(systemctl show -P MemoryCurrent $unit)"
echo "failed=$(systemctl --failed --plain --no-legend | awk '{{ print $1 }}' | tr '\\n' ' ')"
"""
    return dict(line.split("=", 1) for line in board.run(script).stdout.splitlines() if "=" in line)


def drop(board: Machine, name: str, job: str, lines: list[dict[str, object]]) -> None:
    """A job in the spool, as a program would drop it: written beside, renamed, and on the disk."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    spool = f"/var/spool/pillm/{name}/in"
    board.run(
        f"cat > {spool}/.{job} <<'JOB'\n{text}JOB\nchown pillm:pillm {spool}/.{job}; mv {spool}/.{job} {spool}/{job}; sync"
    )


def results(board: Machine, name: str, job: str, seconds: float) -> list[dict[str, object]]:
    """The results of a job, when they are there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        said = board.run(f"cat /var/spool/pillm/{name}/out/{job}", check=False)
        if not said.returncode:
            return [json.loads(line) for line in said.stdout.splitlines()]
        time.sleep(2)
    raise SystemExit(
        f"{job} did not come back in {seconds} s: {board.run(f'ls -la /var/spool/pillm/{name}/*; journalctl -n 30 --no-pager', check=False).stdout}"
    )


def questions(count: int) -> list[dict[str, object]]:
    return [
        {"id": f"job-{number}", "prompt": f"Number {number}:", "max_tokens": 2, "temperature": 0}
        for number in range(count)
    ]


def stop(board: Machine, name: str) -> str:
    """How the service ended, and what is left of it."""
    unit = f"pillm-server@{name}.service"
    said = board.run(
        f"systemctl stop {unit}; systemctl show -P Result {unit}; systemctl show -P ActiveState {unit}; pgrep -c llama-server || true"
    )
    return "{}, {}, {} processes left".format(*said.stdout.split())


def cut_power(board: Machine, name: str, jobs: int, cuts: int, rng: random.Random) -> str:
    """Jobs one a file, the power cut at random moments; then every result is counted."""
    script = [f"cd /var/spool/pillm/{name}/in"]
    for number, line in enumerate(questions(jobs)):
        script.append(
            f"echo '{json.dumps(line)}' > .{number} && chown pillm:pillm .{number} && mv .{number} {number:02d}.jsonl"
        )
    board.run("\n".join((*script, "sync")))

    def done() -> int:
        return int(board.run(f"ls /var/spool/pillm/{name}/out | grep -c '^[0-9][0-9].jsonl'", check=False).stdout or 0)

    counts = []
    for _ in range(cuts):
        time.sleep(rng.uniform(5, 50))
        counts.append(done())
        board.cut()
        board.on()
    end = time.monotonic() + 900
    while time.monotonic() < end and done() < jobs:
        time.sleep(3)
    lines = board.run(f"cat /var/spool/pillm/{name}/out/[0-9]*.jsonl").stdout.splitlines()
    ids = [json.loads(line)["id"] for line in lines]
    rest = board.run(f"find /var/spool/pillm/{name}/in /var/spool/pillm/{name}/work -type f | wc -l").stdout.strip()
    return f"{len(ids)} results, {len(set(ids))} different, {jobs - len(set(ids))} lost, {rest} files left in the spool; at the cuts {counts} were done"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", type=Path)
    parser.add_argument("model", type=Path, help="GGUF file or pillm-model-*.deb")
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--cpu", action="append", choices=CORES, help="default: all")
    parser.add_argument("--memory", type=int, default=1024, help="MB")
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--cuts", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if reason := lacking():
        raise SystemExit(reason)
    name = NAME
    if given.model.suffix == ".deb":
        name = subprocess.run(
            ["dpkg-deb", "-f", given.model, "Pillm-Name"], capture_output=True, text=True, check=True
        ).stdout.strip()
    wrong = 0

    def row(what: str, seen: str, right: bool = True) -> None:
        nonlocal wrong
        wrong += not right
        print(f"| {cpu} | {what} | {seen}{'' if right else ' **wrong**'} |", flush=True)

    print("| core | what | seen (emulated seconds) |\n|---|---|---|")
    for cpu in given.cpu or CORES:
        with tempfile.TemporaryDirectory(prefix="board-") as folder:
            began = time.monotonic()
            with machine(Path(folder), given.suite, cpu, given.memory) as board:
                row("boot until ssh answers", f"{time.monotonic() - began:.0f} s")
                seconds, first = deploy(board, given.runtime, given.model)
                row("deploy from a clean state", f"{seconds:.0f} s: {first.stdout.strip().splitlines()[0]}")
                answer = first.stdout.strip().splitlines()[-1]
                row("first answer", re.sub(r"\|", "/", answer.partition(": ")[2]), "Paris" in answer)
                seen = looked_at(board, name)
                row(
                    "service",
                    f"{seen['active']}, failed units: {seen['failed'].strip() or 'none'}",
                    seen["active"] == "active" and not seen["failed"].strip(),
                )
                row("CPU backend", seen["backend"].strip(), seen["backend"].strip() == f"libggml-cpu-{CORES[cpu]}.so")
                row(
                    "memory of the service",
                    f"{seen['used']} of at most {seen['limit']} bytes",
                    seen["limit"] != "infinity",
                )
                seconds, second = deploy(board, given.runtime, given.model)
                row(
                    "deploy again",
                    f"{seconds:.0f} s: {second.stdout.strip().splitlines()[0]}",
                    "unchanged" in second.stdout,
                )
                drop(board, name, "batch.jsonl", questions(3))
                came = results(board, name, "batch.jsonl", 600)
                row(
                    "batch job",
                    f"{len(came)} results: {[one.get('id') for one in came]}",
                    [one.get("id") for one in came] == [line["id"] for line in questions(3)],
                )
                if given.cuts:
                    said = cut_power(board, name, given.jobs, given.cuts, random.Random(given.seed))
                    row(
                        f"{given.jobs} jobs, power cut {given.cuts} times",
                        said,
                        said.startswith(f"{given.jobs} results, {given.jobs} different"),
                    )
                said = stop(board, name)
                row("systemctl stop", said, said == "success, inactive, 0 processes left")
                board.off()
                row(
                    "power off",
                    "clean"
                    if "reboot: Power down" in board.console.read_text(errors="replace")
                    else "not seen on the console",
                )
    return min(wrong, 1)


if __name__ == "__main__":
    raise SystemExit(main())
