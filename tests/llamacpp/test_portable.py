"""The cross build: a small project of llama.cpp's shape in its place (the real one is run under emulation by benchmarks/pi_bench_arm64.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pillm.core.errors import MissingError, PillmError
from pillm.core.events import silent
from pillm.llamacpp import pin, portable
from pillm.llamacpp.install import CONVERTER

ARM64 = portable.TARGETS["arm64"]
_AARCH64 = 183  # EM_AARCH64 of the ELF specification
LISTED = [*ARM64.variants, "armv8.6_1", "armv9.2_2"]
needs_compiler = pytest.mark.skipif(shutil.which(f"{ARM64.triplet}-g++") is None, reason="no cross compiler")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A source tree where the fetched one would stand; a tool is built after all CPU backends, as in llama.cpp."""
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path / "cache"))
    folder = pin.source_dir()
    (folder / "ggml/src").mkdir(parents=True)
    (folder / CONVERTER).touch()
    lines = [
        "cmake_minimum_required(VERSION 3.14)",
        "project(small C CXX)",
        "set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)",
        "set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)",
        "add_subdirectory(ggml/src)",
    ]
    for name in portable.TOOLS:
        (folder / f"{name}.cpp").write_text("int f(); int main() { return f(); }\n")
        lines += [f"add_executable({name} {name}.cpp)", f"target_link_libraries({name} ggml-cpu-{ARM64.variants[0]})"]
        lines += [f"add_dependencies({name} {' '.join(f'ggml-cpu-{variant}' for variant in ARM64.variants)})"]
    (folder / "CMakeLists.txt").write_text("\n".join(lines) + "\n")
    (folder / "ggml/src/backend.cpp").write_text("int f() { return 0; }\n")
    variants = "".join(f"            ggml_add_cpu_backend_variant({name}    DOTPROD)\n" for name in LISTED)
    (folder / "ggml/src/CMakeLists.txt").write_text(
        "function(ggml_add_cpu_backend_variant tag)\n"
        "  add_library(ggml-cpu-${tag} SHARED backend.cpp)\n"
        "endfunction()\n" + variants
    )
    return folder


@needs_compiler
def test_tools_libraries_and_only_the_boards_backends_are_published_for_arm64(source: Path) -> None:
    before = (source / "ggml/src/CMakeLists.txt").read_text()
    folder = portable.ensure(ARM64, silent)
    assert {path.name for path in folder.iterdir()} == {
        *portable.TOOLS,
        *(f"libggml-cpu-{name}.so" for name in ARM64.variants),
    }
    for path in folder.iterdir():
        assert int.from_bytes(path.read_bytes()[18:20], "little") == _AARCH64
    # The tools find their libraries beside them.
    assert b"$ORIGIN" in (folder / "llama-server").read_bytes()
    # The source that other builds use is as it was.
    assert (source / "ggml/src/CMakeLists.txt").read_text() == before
    assert portable.ensure(ARM64, silent) == folder


@needs_compiler
def test_a_list_without_the_boards_backends_is_an_error(source: Path) -> None:
    (source / "ggml/src/CMakeLists.txt").write_text("\n")
    with pytest.raises(PillmError, match=r"armv8.0_1, armv8.2_1, armv8.2_2 is not in the list"):
        portable.ensure(ARM64, silent)


def test_without_a_cross_compiler_it_says_how_to_get_one(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError) as error:
        portable.ensure(ARM64, silent)
    assert "apt install gcc-aarch64-linux-gnu" in error.value.hint
