"""What the built programs ask of a system, read with binutils from the programs themselves, and their symbols taken out."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pillm.core.errors import MissingError, PillmError

PACKAGES = {
    "libc.so.6": "libc6",
    "libm.so.6": "libc6",
    "ld-linux-aarch64.so.1": "libc6",
    "ld-linux-x86-64.so.2": "libc6",
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libgomp.so.1": "libgomp1",
}
"""Debian's package of each library that llama.cpp is linked with."""
_GCC = {29: "11", 30: "12", 31: "13", 32: "13", 33: "14", 34: "15"}
"""The first GCC with GLIBCXX_3.4.N (https://gcc.gnu.org/onlinedocs/libstdc++/manual/abi.html)."""
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
_SYMBOL = re.compile(r"\bName: (GLIBC|GLIBCXX)_([\d.]+)")


def strip(files: Sequence[Path], triplet: str) -> None:
    """Take out what only debuggers read. Raises MissingError (no binutils for it), PillmError."""
    _run(
        [
            _tool(triplet, "strip"),
            "--strip-unneeded",
            "--remove-section=.comment",
            "--remove-section=.note",
            *map(str, files),
        ]
    )


def dependencies(files: Sequence[Path], triplet: str) -> str:
    """The libraries as a control file's Depends: Debian's packages with the least versions that have every symbol.

    Raises PillmError for a library that is neither Debian's nor among the files.
    """
    said = _run([_tool(triplet, "readelf"), "--dynamic", "--version-info", "--wide", *map(str, files)])
    # Libraries are asked for by the names of links to them.
    own = {path.name for folder in {path.parent for path in files} for path in folder.iterdir()}
    needed = set(_NEEDED.findall(said)) - own
    if unknown := needed - PACKAGES.keys():
        raise PillmError(f"the programs need {', '.join(sorted(unknown))}, which no package is known for")
    versions: dict[str, tuple[int, ...]] = {}
    for kind, version in _SYMBOL.findall(said):
        versions[kind] = max(versions.get(kind, ()), tuple(map(int, version.split("."))))
    least = {"libc6": ".".join(map(str, versions.get("GLIBC", (2, 17))))}
    if glibcxx := versions.get("GLIBCXX"):
        least["libstdc++6"] = _GCC.get(glibcxx[-1], "11") if len(glibcxx) == 3 else "11"
    names = sorted({PACKAGES[name] for name in needed})
    return ", ".join(f"{name} (>= {least[name]})" if name in least else name for name in names)


def unhardened(files: Sequence[Path], triplet: str) -> list[str]:
    """`file: what is missing` of each program or library without full RELRO, or that is not position-independent, or has an executable stack."""
    found = []
    for path in files:
        said = _run([_tool(triplet, "readelf"), "--file-header", "--program-headers", "--dynamic", "--wide", str(path)])
        stack = next((line for line in said.splitlines() if "GNU_STACK" in line), "")
        for wanted, there in (
            ("position-independent", "DYN" in said),
            ("RELRO", "GNU_RELRO" in said),
            ("BIND_NOW", "BIND_NOW" in said or re.search(r"\(FLAGS(?:_1)?\).*NOW", said) is not None),
            ("a stack that is not executable", stack != "" and "RWE" not in stack),
        ):
            if not there:
                found.append(f"{path.name}: {wanted}")
    return found


def _tool(triplet: str, name: str) -> str:
    tool = f"{triplet}-{name}"
    if shutil.which(tool) is None:
        raise MissingError(
            f"{tool} is not on this machine", f"Debian, Ubuntu: sudo apt install binutils-{triplet.replace('_', '-')}"
        )
    return tool


def _run(argv: list[str]) -> str:
    said = subprocess.run(
        argv, capture_output=True, text=True, errors="replace", env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    )
    if said.returncode:
        raise PillmError(f"{argv[0]} failed: {said.stderr.strip() or said.returncode}")
    return said.stdout
