"""The packages' files: bytes that come again, Debian's own checks, systemd's own checks, apt's own reading."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pillm.core.artifacts import sha256_file
from pillm.core.errors import UsageError
from pillm.core.events import silent
from pillm.deploy.package import deb, elf, memory, model, repo, runtime
from pillm.deploy.package.options import ModelOptions, RepoOptions
from pillm.llamacpp.portable import TARGETS, TOOLS

ARM64 = TARGETS["arm64"]
SERVICES = ("pillm-server@.service", "pillm-decode@.service", "pillm-bench@.service")


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not on this machine: {', '.join(missing)}")


def extracted(package: Path, folder: Path) -> Path:
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    return folder


def lintian(package: Path) -> str:
    """What Debian's checker says at its strictest: errors, warnings, infos, pedantic and experimental ones."""
    argv = ["lintian", "--no-cfg", "--display-info", "--pedantic", "--display-experimental", "--allow-root", package]
    said = subprocess.run(argv, capture_output=True, text=True)
    return said.stdout


@pytest.fixture(scope="module")
def tutor(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    return model.build(smollm2_gguf, "tutor", tmp_path_factory.mktemp("debs"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime for arm64, with the cross-built llama.cpp (built here, if it is not in the cache)."""
    if shutil.which(f"{ARM64.triplet}-g++") is None:
        pytest.skip("no cross compiler")
    return runtime.build("arm64", tmp_path_factory.mktemp("runtime"), silent)


@needs("dpkg-deb", "lintian")
def test_a_model_package_is_whole_and_lintian_has_nothing_to_say(
    tutor: Path, tmp_path: Path, smollm2_gguf: Path
) -> None:
    tree = extracted(tutor, tmp_path / "tree")
    home = tree / "usr/share/pillm/models/tutor"
    assert sha256_file(home / "model.gguf") == sha256_file(smollm2_gguf)
    facts = json.loads((home / "manifest.json").read_bytes())
    assert (facts["license"], facts["sha256"]) == ("apache-2.0", sha256_file(smollm2_gguf))
    control = dict(line.split(": ", 1) for line in (tree / "DEBIAN/control").read_text().splitlines() if ": " in line)
    rows = [int(line.split("\t")[4]) for line in (home / "memory.tsv").read_text().splitlines()[1:]]
    assert int(control["Pillm-Memory"]) == min(rows) == facts["memory_bytes"]
    assert "Apache-2.0" in (tree / "usr/share/doc/pillm-model-tutor/copyright").read_text()
    assert lintian(tutor) == ""


@needs("dpkg-deb")
def test_a_model_package_made_again_has_the_same_bytes(tutor: Path, tmp_path: Path, smollm2_gguf: Path) -> None:
    copy = tmp_path / "elsewhere" / smollm2_gguf.name
    copy.parent.mkdir()
    shutil.copyfile(smollm2_gguf, copy)
    again = model.build(copy, "tutor", tmp_path / "out")
    assert sha256_file(again) == sha256_file(tutor)


def test_a_model_without_a_known_licence_is_refused(tmp_path: Path, smollm2_gguf: Path) -> None:
    alone = tmp_path / "alone/model.gguf"
    alone.parent.mkdir()
    alone.symlink_to(smollm2_gguf)
    with pytest.raises(UsageError, match="Debian does not have the text of gemma") as error:
        model.run(ModelOptions(model=alone, name="x", out=tmp_path / "out", license="gemma"), silent)
    assert "--license-file" in error.value.hint
    assert not list((tmp_path / "out").iterdir())


@needs("dpkg-deb")
def test_card_licence_and_system_message_go_in(tmp_path: Path, smollm2_gguf: Path) -> None:
    (tmp_path / "card.md").write_text("# My card\n")
    (tmp_path / "terms").write_text("Be kind.\n\nAlways.\n")
    options = ModelOptions(
        model=smollm2_gguf, name="kind", out=tmp_path / "out", card=tmp_path / "card.md", license="LicenseRef-Kind",
        license_file=tmp_path / "terms", system="You are kind.", package_version="2.5", copyright="2026 Ada Lovelace",
    )  # fmt: skip
    tree = extracted(model.run(options, silent).outputs["package"], tmp_path / "tree")
    share = tree / "usr/share/doc/pillm-model-kind"
    assert (share / "README.md").read_text() == "# My card\n"
    assert (
        "Copyright: 2026 Ada Lovelace\nLicense: LicenseRef-Kind\n\nLicense: LicenseRef-Kind\n Be kind.\n .\n Always.\n"
        in (share / "copyright").read_text()
    )
    home = tree / "usr/share/pillm/models/kind"
    assert json.loads((home / "warmup.json").read_bytes())["messages"][0]["content"] == "You are kind."
    assert 'SYSTEM """You are kind."""' in (home / "Modelfile").read_text()


@pytest.mark.llamacpp
@needs("dpkg-deb", "lintian")
def test_the_runtime_is_hardened_reproducible_and_lintian_has_nothing_to_say(llama: Path, tmp_path: Path) -> None:
    assert lintian(llama) == ""
    # The folder's name and the caller's umask leave no trace.
    script = "import sys, os; os.umask(0o077); from pathlib import Path; from pillm.deploy.package import runtime; from pillm.core.events import silent; runtime.build('arm64', Path(sys.argv[1]), silent)"
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "another place"],
        check=True,
        env={**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"},
    )
    assert sha256_file(tmp_path / "another place" / llama.name) == sha256_file(llama)
    tree = extracted(llama, tmp_path / "tree")
    lib = tree / "usr/lib/pillm-runtime"
    programs = [path for path in lib.iterdir() if path.read_bytes()[:4] == b"\x7fELF" and not path.is_symlink()]
    assert {path.name for path in programs} >= {*TOOLS, *(f"libggml-cpu-{variant}.so" for variant in ARM64.variants)}
    assert elf.unhardened(programs, ARM64.triplet) == []
    assert str(Path.home()).encode() not in b"".join(path.read_bytes() for path in programs)
    listed = json.loads((tree / "usr/share/doc/pillm-runtime/sbom.cdx.json").read_bytes())
    hashes = {each["name"]: each["hashes"][0]["content"] for each in listed["components"] if each["type"] == "file"}
    for path in programs:
        assert hashes["/" + path.relative_to(tree).as_posix()] == sha256_file(path)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    folder = tmp_path / "usr/lib/systemd/system"
    runtime._units(folder, deb.sources() / "runtime/units")
    return folder


@needs("systemd-analyze")
@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_exposed_at_most_1_1(units: Path, name: str) -> None:
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=11", units / name], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout


@needs("systemd-analyze")
def test_systemd_understands_every_line_of_the_units(units: Path, tmp_path: Path) -> None:
    # The programs have to be there for `verify`.
    for name in (
        "usr/bin/pillm-bench",
        *(f"usr/lib/pillm-runtime/{p}" for p in ("pillm-serve", "pillm-limit", "pillm-decode")),
    ):
        deb.write(tmp_path / name, "#!/bin/sh\n", 0o755)
    for path in sorted(units.iterdir()):
        shutil.copy(path, tmp_path / path.name.replace("@.", "@tutor."))
        argv = [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            f"--root={tmp_path}",
            path.name.replace("@.", "@tutor."),
        ]
        said = subprocess.run(argv, capture_output=True, text=True)
        ours = [line for line in said.stderr.splitlines() if "pillm" in line]
        assert ours == []


@needs("shellcheck")
def test_shell_scripts_pass_shellcheck() -> None:
    packaging = deb.sources()
    files = [path for path in packaging.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh")]
    assert len(files) >= 9
    for path in files:
        text = (
            path.read_text()
            .replace("@BOARDS@", "")
            .replace("@MEMORY_MIB@", "1")
            .replace("@DISK_MIB@", "1")
            .replace("@KEEPS@", "1")
            .replace("@SPARE@", "1")
        )
        said = subprocess.run(["shellcheck", "--shell=sh", "-"], input=text, capture_output=True, text=True)
        assert said.stdout == "", path


@needs("gpg", "apt-get", "dpkg-deb")
def test_apt_takes_packages_from_the_signed_repository_and_refuses_a_changed_one(
    tmp_path: Path, tutor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(keys))
    folder = tmp_path / "repo"
    (folder / "pool").mkdir(parents=True)
    shutil.copy(tutor, folder / "pool")
    with pytest.raises(UsageError, match="gpg has no secret key"):
        repo.run(RepoOptions(folder=folder), silent)
    subprocess.run(
        [
            "gpg",
            "--batch",
            "--quiet",
            "--passphrase",
            "",
            "--quick-generate-key",
            "fleet@example.org",
            "ed25519",
            "sign",
        ],
        check=True,
    )
    try:
        with pytest.raises(UsageError, match="gpg has no such key"):
            repo.run(RepoOptions(folder=folder, key="nobody@example.org"), silent)
        # The only key there is.
        repo.run(RepoOptions(folder=folder), silent)
        system = tmp_path / "system"
        for name in (
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
            "var/lib/dpkg",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
        ):
            (system / name).mkdir(parents=True)
        (system / "var/lib/dpkg/status").touch()
        source = f"deb [signed-by={folder}/pillm-archive-keyring.gpg] file:{folder} stable main\n"
        (system / "etc/apt/sources.list").write_text(source)
        argv = [
            "apt-get",
            "-o",
            f"Dir={system}",
            "-o",
            f"Dir::State::status={system}/var/lib/dpkg/status",
            "-o",
            "APT::Architecture=arm64",
            "-o",
            "APT::Architectures=arm64",
            "-o",
            "APT::Sandbox::User=root",
        ]

        def apt(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*argv, *words],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            )

        done = apt("update")
        assert (done.returncode, "W:" in done.stderr) == (0, False), done.stderr
        done = apt("download", "pillm-model-tutor")
        assert done.returncode == 0, done.stderr
        assert sha256_file(next(tmp_path.glob("pillm-model-tutor_*.deb"))) == sha256_file(tutor)
        # A larger version comes by `apt upgrade`.
        listed = folder / "dists/stable/main/binary-arm64/Packages"
        assert "Filename: pool/pillm-model-tutor_" in listed.read_text()
        # Somebody changes a list on the server: nothing of it is taken.
        release = folder / "dists/stable/InRelease"
        release.write_text(release.read_text().replace("Origin: Pi-LLM", "Origin: Pi-LLN"))
        done = apt("update")
        assert "BADSIG" in done.stderr or "invalid" in done.stderr
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], check=False)


def test_two_contents_of_one_version_are_refused(tmp_path: Path, tutor: Path) -> None:
    for number in (1, 2):
        with deb.tree(tmp_path / "out") as folder:
            deb.write(folder / "usr/share/x", f"{number}\n")
            deb.build(
                folder,
                "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b>\nDescription: x\n",
                {},
                tmp_path / f"out/{number}.deb",
                compression="gzip",
            )
    with pytest.raises(UsageError, match="and another content"):
        repo.run(RepoOptions(folder=tmp_path / "out", key="any"), silent)


def test_least_memory_is_of_the_shortest_context(smollm2_gguf: Path) -> None:
    from pillm.plan.source import source

    rows = memory.table(source(str(smollm2_gguf), silent).model)
    assert memory.least(rows) == next(
        row.bytes for row in rows if row.context == 1024 and row.cache == "q8_0" and row.ubatch == 128
    )
    # More is never needed for less.
    for earlier, later in itertools.pairwise(rows):
        if earlier.processor == later.processor and earlier.context == later.context and earlier.cache == later.cache:
            assert later.bytes <= earlier.bytes
