"""The same `pi_bench.py` on emulated boards: Cortex-A72 (Pi 4) and Cortex-A76 (Pi 5), Debian 12 and 13 for arm64.

    sudo python benchmarks/pi_bench_arm64.py MODEL.gguf --root bookworm --root trixie [--tools DIR]

A root is a Debian for arm64 with python3 and libgomp1, as made by

    debootstrap --arch=arm64 --variant=minbase --include=python3,libgomp1,libstdc++6 bookworm bookworm

and the tools are llama.cpp's with a CPU backend for each kind of core (default: what `pillm.llamacpp.portable` builds).
Programs of the root run under qemu-user, which the kernel starts by binfmt_misc (Debian: qemu-user-static). What is
checked: that it runs, that the document fits the schema, is marked as emulated and invalid, and names the right CPU
backend. **Emulated figures say nothing about a board's speed.** Needs root, for chroot and mounts that end with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jsonschema_rs
import msgspec

from pillm.bench import schema
from pillm.bench.program import PATH
from pillm.history.document import Run

CORES = {"cortex-a72": ("armv8.0_1", "Pi 4"), "cortex-a76": ("armv8.2_2", "Pi 5")}
"""The CPU backend that llama.cpp must choose: A72 has neither dot products nor half floats, A76 has both."""
WORDS = ("--prompt-tokens=8", "--gen-tokens=3", "--repetitions=1", "--requests=1", "--context=32", "--threads=1",
         "--splits=1/1", "--wait", "--json", "--limit=900")  # fmt: skip
# In a mount namespace of its own: nothing of it is left when the shell is gone.
MOUNT = """
set -e
root=$1 place=$2 tools=$3 model=$4 name=$5
shift 5
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount --bind "$tools" "$root$place/tools"
mount --bind "$model" "$root$place/$name"
cd "$root$place"
exec chroot "$root" /usr/bin/env HOME="$place" LC_ALL=C.UTF-8 "$@"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--root", type=Path, action="append", required=True, help="folder of a Debian for arm64")
    parser.add_argument("--tools", type=Path, help="folder of llama.cpp's tools for arm64")
    parser.add_argument("--core", choices=CORES, action="append", help="default: all")
    parser.add_argument("--out", type=Path, help="folder for the documents")
    given = parser.parse_args()
    if os.geteuid() or not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        raise SystemExit(
            "this needs root, and qemu-user registered with binfmt_misc (Debian: apt install qemu-user-static)"
        )
    tools = given.tools or _built()
    fits = jsonschema_rs.validator_for(schema.schema())
    failed = 0
    print("| root | core | Python | CPU backend | features | document | run (emulated, says nothing of a board) |")
    print("|---|---|---|---|---|---|---|")
    for root in given.root:
        for core in given.core or CORES:
            wanted, board = CORES[core]
            began = time.monotonic()
            done, python = _run(root.resolve(), core, tools.resolve(), given.model.resolve())
            seconds = time.monotonic() - began
            try:
                told = json.loads(done.stdout)
                wrong = [error.message for error in fits.iter_errors(told)]
                run = msgspec.json.decode(done.stdout, type=Run)
            except (ValueError, msgspec.MsgspecError) as error:
                print(f"| {root.name} | {core} | {python} | none | | **no document** ({error}) | |")
                sys.stderr.write(done.stderr)
                failed += 1
                continue
            if given.out:
                given.out.mkdir(parents=True, exist_ok=True)
                (given.out / f"{root.name}-{core}.json").write_text(done.stdout)
            if run.runtime.cpu_variant != wanted:
                wrong.append(f"the CPU backend is {run.runtime.cpu_variant}, not {wanted}")
            if not run.emulated or run.valid:
                wrong.append("it is not marked as emulated")
            unmeasured = [
                name for name in ("speeds", "latency", "load", "memory", "embeddings") if not getattr(run, name)
            ]
            wrong += [f"{name}: {run.absent.get(name)}" for name in unmeasured]
            wrong += [f"exit code {done.returncode}"] if done.returncode else []
            shown = " ".join(
                name for name in run.board.features if name in ("asimd", "asimddp", "asimdhp", "fphp", "i8mm")
            )
            print(f"| {run.board.os} | {core} ({board}) | {python} | {run.runtime.cpu_variant} | {shown} | "
                  f"{'**' + '; '.join(wrong) + '**' if wrong else 'fits the schema'} | {seconds:.0f} s |", flush=True)  # fmt: skip
            failed += bool(wrong)
    return 1 if failed else 0


def _built() -> Path:
    from pillm.core.events import silent
    from pillm.llamacpp.portable import TARGETS, ensure

    return ensure(TARGETS["arm64"], silent)


def _run(root: Path, core: str, tools: Path, model: Path) -> tuple[subprocess.CompletedProcess[str], str]:
    """What pi_bench says in the root, and the root's Python."""
    with tempfile.TemporaryDirectory(prefix="pi_bench-", dir=root / "tmp") as folder:
        place = Path("/") / Path(folder).relative_to(root)
        (Path(folder) / "tools").mkdir()
        (Path(folder) / model.name).touch()
        shutil.copy(PATH, folder)
        head = ["unshare", "--mount", "sh", "-c", MOUNT, "sh", root, place, tools, model, model.name]
        bench = ["python3", place / PATH.name, "--model", place / model.name, "--llama-bin", place / "tools", *WORDS]
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "QEMU_CPU": core}
        version = subprocess.run([*head, "python3", "--version"], capture_output=True, text=True, env=env, check=False)
        return subprocess.run(
            [*head, *bench], capture_output=True, text=True, env=env, check=False
        ), version.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
