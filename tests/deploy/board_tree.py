"""The runtime package's programs in a folder of their own, with this machine's llama.cpp: what runs is what a board runs."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

from pillm.bench import pi_bench
from pillm.core.events import silent
from pillm.deploy.package import deb, memory, runtime
from pillm.plan.source import source


def make(root: Path, bin_folder: Path | None, gguf: Path | None, name: str = "tutor") -> Path:
    """A root with the programs, the tools of a folder and a model. Returns the root."""
    lib, packaging = root / "usr/lib/pillm-runtime", deb.sources() / "runtime"
    shutil.copytree(packaging / "lib", lib)
    shutil.copytree(packaging / "bin", root / "usr/bin")
    for path in [*(root / "usr/bin").iterdir(), *lib.glob("pillm-*")]:
        path.chmod(0o755)
    shutil.copy(pi_bench.__file__, lib / "pi_bench.py")
    (lib / "boards.tsv").write_text(runtime.boards())
    (root / "var").mkdir()
    for tool in bin_folder.iterdir() if bin_folder else ():
        if not (lib / tool.name).exists():
            (lib / tool.name).symlink_to(tool)
    if gguf:
        home = root / "usr/share/pillm/models" / name
        home.mkdir(parents=True)
        (home / "model.gguf").symlink_to(gguf)
        (home / "memory.tsv").write_text(memory.text(memory.table(source(str(gguf), silent).model)))
    return root


def module(root: Path, name: str) -> ModuleType:
    """A program or module of a tree as a Python module, with that tree's `board`."""
    lib = root / "usr/lib/pillm-runtime"
    for each in ("board", "rough", "pi_bench"):
        sys.modules.pop(each, None)
    sys.path.insert(0, str(lib))
    try:
        path = next(lib / each for each in (f"{name}.py", name) if (lib / each).exists())
        loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(path))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec
        made = importlib.util.module_from_spec(spec)
        loader.exec_module(made)
    finally:
        sys.path.remove(str(lib))
        for each in ("board", "rough", "pi_bench"):
            sys.modules.pop(each, None)
    return made
