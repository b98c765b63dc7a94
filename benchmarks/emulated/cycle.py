"""The life of the packages in an arm64 root: install, use, upgrade, downgrade, remove, purge; and what is left after it.

    sudo python -m emulated.cycle --suite bookworm RUNTIME.deb MODEL.deb        (in benchmarks/)

Programs run under qemu-user, so no service is started; `use` is the model answering on both kinds of cores, with the CPU
backend that llama.cpp says it loaded. The newer packages are the given ones under a higher version.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from emulated import rootfs
from emulated.machine import CORES

# What apt and dpkg themselves keep: logs, lists, the copy of the last state.
_THEIRS = re.compile(r"var/log/(apt/|dpkg\.log|alternatives\.log)|var/(cache|lib)/(apt|debconf|dpkg|man|ucf)/|var/cache/ldconfig/|.*/__pycache__|etc/(passwd|group|shadow|gshadow|subuid|subgid)-$|tmp/")  # fmt: skip
_APT = (
    "apt-get",
    "-q",
    "-y",
    "--no-install-recommends",
    "-o",
    "APT::Sandbox::User=root",
    "-o",
    "DPkg::Options::=--force-unsafe-io",
)


class Wrong(Exception):
    """A step that did not go as it has to."""


def cycle(suite: str, runtime: Path, model: Path, work: Path) -> Iterator[tuple[str, str, float]]:
    """Each step's name, what was seen, and its seconds. Raises Wrong."""
    root = rootfs.unpack(suite, work / "root")
    newer = [reversioned(deb, work / "newer") for deb in (runtime, model)]
    place = root / "root/packages"
    place.mkdir()
    for deb in (runtime, model, *newer):
        shutil.copy(deb, place)
    first, second = ([f"/root/packages/{deb.name}" for deb in pair] for pair in ((runtime, model), newer))
    name = _field(model, "Pillm-Name")
    env = root / "etc/pillm" / f"{name}.env"
    with rootfs.entered(root):
        before, users = files(root), (root / "etc/passwd").read_text()

        def step(what: str, *argv: str) -> tuple[str, str, float]:
            began = time.monotonic()
            said = inside(root, *argv)
            return what, said, round(time.monotonic() - began, 1)

        yield step("install", *_APT, "install", *first)
        _expect(env.is_file(), f"{env} is not there after install")
        for cpu, variant in CORES.items():
            yield use(root, name, cpu, variant)
        yield step("helpers", "pillm-models", "list")
        env.write_text(env.read_text() + "CONTEXT=512\n")
        yield step("upgrade", *_APT, "install", *second)
        _expect("CONTEXT=512" in env.read_text(), "the settings did not survive the upgrade")
        _expect(_version(root) == _field(newer[0], "Version"), "the upgrade did not bring the newer version")
        yield step("downgrade", *_APT, "--allow-downgrades", "install", *first)
        _expect("CONTEXT=512" in env.read_text(), "the settings did not survive the downgrade")
        _expect(_version(root) == _field(runtime, "Version"), "the downgrade did not bring the older version")
        packages = (f"pillm-model-{name}", "pillm-runtime")
        yield step("remove", *_APT, "remove", *packages)
        _expect("CONTEXT=512" in env.read_text(), "remove took the settings along, which only purge may")
        yield step("purge", *_APT, "purge", *packages)
        left = sorted(files(root) - before)
        _expect(not left, f"left after purge: {', '.join(left)}")
        lost = sorted(before - files(root))
        _expect(not lost, f"lost after purge: {', '.join(lost)}")
        _expect((root / "etc/passwd").read_text() == users, "a user is left after purge")
        yield "left after purge", f"none more, none less than the {len(before)} paths before", 0.0


def use(root: Path, name: str, cpu: str, variant: str) -> tuple[str, str, float]:
    """The model goes on with a sentence, on a kind of core."""
    began = time.monotonic()
    model = f"/usr/share/pillm/models/{name}/model.gguf"
    script = (
        f"cd /usr/lib/pillm-runtime && ./llama-completion -m {model} -p 'The capital of France is' -n 6 --temp 0 -no-cnv -t 2 -c 256 "
        "-v </dev/null"
    )
    said = inside(root, "sh", "-c", script, QEMU_CPU=cpu)
    loaded = re.findall(r"loaded CPU backend from \S*libggml-cpu-(\S+)\.so", said)
    _expect(loaded == [variant], f"{cpu}: loaded {loaded}, expected {variant}")
    # The prompt stands in its log, too; the answer is on stdout, which comes first.
    answers = [line for line in re.findall(r"The capital of France is[^\n]*", said) if "Paris" in line]
    _expect(bool(answers), f"{cpu}: no answer names Paris: {said[-500:]}")
    return f"use ({cpu})", f"{variant}: {answers[-1]}", round(time.monotonic() - began, 1)


def inside(root: Path, *argv: str, **more: str) -> str:
    """What a program of the root says. Raises Wrong if it fails."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
           "PYTHONDONTWRITEBYTECODE": "1", "QEMU_CPU": "cortex-a72", **more}  # fmt: skip
    done = subprocess.run(
        ["chroot", root, *argv], capture_output=True, text=True, errors="replace", env=env, check=False
    )
    if done.returncode:
        raise Wrong(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def files(root: Path) -> set[str]:
    """Every path of a root, but for the kernel's file systems and what apt and dpkg themselves keep."""
    found = set()
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        if str(here) in ("proc", "sys", "dev", "run"):
            folders.clear()
            continue
        found |= {str(here / one) for one in (*names, *folders)}
    return {path for path in found if not _THEIRS.match(path)}


def reversioned(deb: Path, folder: Path) -> Path:
    """The same package under a higher version."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / deb.stem
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+newer1", control.read_text()))
    name, version, rest = deb.stem.split("_")
    path = folder / f"{name}_{version}+newer1_{rest}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", tree, path], check=True, capture_output=True
    )
    shutil.rmtree(tree)
    return path


def _field(deb: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "-f", deb, name], capture_output=True, text=True, check=True).stdout.strip()


def _version(root: Path) -> str:
    return inside(root, "dpkg-query", "-W", "-f", "${Version}", "pillm-runtime").strip()


def _expect(right: bool, wrong: str) -> None:
    if not right:
        raise Wrong(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--suite", action="append", choices=rootfs.SUITES, help="default: all")
    given = parser.parse_args()
    if reason := rootfs.lacking():
        raise SystemExit(reason)
    failed = 0
    print("| Debian | step | seconds (emulated) | seen |")
    print("|---|---|---|---|")
    for suite in given.suite or rootfs.SUITES:
        with tempfile.TemporaryDirectory(prefix="cycle-") as work:
            try:
                for what, said, seconds in cycle(suite, given.runtime, given.model, Path(work)):
                    shown = said.strip().splitlines()[-1] if said.strip() else ""
                    print(f"| {suite} | {what} | {seconds} | {shown[:120]} |", flush=True)
            except Wrong as wrong:
                failed += 1
                print(f"| {suite} | **wrong** | | {wrong} |", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
