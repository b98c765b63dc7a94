"""`pillm package model`: a GGUF file as a Debian package, with all that a board needs to run it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pillm.core.artifacts import artifact_of, sha256_file
from pillm.core.errors import UsageError
from pillm.core.events import Emit, Log, Made, Progress, silent
from pillm.core.stage import Result
from pillm.deploy.package import deb, memory
from pillm.deploy.package.options import ModelOptions
from pillm.devices.boards import MIB, shipped
from pillm.llamacpp.gguf_file import GgufFile, describe
from pillm.plan.source import source

SPARE_MIB = 48
"""What a service takes beside llama-server, as in the runtime's board.py."""
KEEPS_MIB = 330
"""What the system keeps on a board that is not in the table, as there."""
_DISK_SPARE_MIB = 64
_COMMON = {
    "apache-2.0": ("Apache-2.0", "Apache-2.0"),
    "gpl-2.0": ("GPL-2", "GPL-2"),
    "gpl-3.0": ("GPL-3", "GPL-3"),
    "lgpl-3.0": ("LGPL-3", "LGPL-3"),
    "cc0-1.0": ("CC0-1.0", "CC0-1.0"),
    "mpl-2.0": ("MPL-2.0", "MPL-2.0"),
}
"""Licences whose text is on every Debian system, by SPDX id: their name in a copyright file, and the text's file."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` in the model's folder. `run` is that of the run that made the model, where there was one."""

    format: int = 1
    name: str
    version: str
    title: str
    architecture: str
    type: str
    parameters: int
    context_length: int | None
    bytes: int
    sha256: str
    license: str
    memory_bytes: int
    run: object = None


def run(options: ModelOptions, emit: Emit) -> Result:
    """Publish `pillm-model-NAME_VERSION_all.deb`.

    Raises UsageError (no GGUF file, an architecture or licence that is not known, a manifest that is no JSON),
    MissingError (dpkg-deb), ResourceError.
    """
    path = _build(options, emit)
    made = artifact_of(path)
    emit(Made("package", made))
    return Result({"package": path}, {"bytes": made.bytes, "sha256": made.sha256})


def build(
    gguf: Path, name: str, out: Path, emit: Emit = silent, *, version: str | None = None, license: str | None = None
) -> Path:
    """The package of a file, with what the file and its folder say. The same inputs give the same bytes. Raises as `run`."""
    said = {"model": gguf, "name": name, "out": out, "package_version": version, "license": license}
    return _build(ModelOptions.model_validate(said), emit)


def _build(options: ModelOptions, emit: Emit) -> Path:
    file = describe(options.model)
    rows = memory.table(source(str(options.model), emit).model)
    sha256 = sha256_file(options.model)
    version = options.package_version or f"1.0+{sha256[:8]}"
    licence = options.license or str(file.metadata.get("general.license", ""))
    with deb.tree(options.out) as folder:
        home, share = (
            folder / "usr/share/pillm/models" / options.name,
            folder / f"usr/share/doc/pillm-model-{options.name}",
        )
        home.mkdir(parents=True)
        emit(Progress(f"pack {options.model.name}", 0, file.bytes, "bytes"))
        shutil.copyfile(options.model, home / "model.gguf")
        (home / "model.gguf").chmod(0o644)
        deb.write(home / "memory.tsv", memory.text(rows))
        facts = Manifest(
            name=options.name, version=version, title=file.name, architecture=file.architecture, type=file.file_type,
            parameters=file.parameters, context_length=file.context_length, bytes=file.bytes, sha256=sha256,
            license=licence, memory_bytes=memory.least(rows), run=_run_manifest(options.manifest),
        )  # fmt: skip
        deb.write(home / "manifest.json", msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
        deb.write(home / "Modelfile", _modelfile(options, facts))
        if options.system:
            warm = {"messages": [{"role": "system", "content": options.system}, {"role": "user", "content": ""}]}
            deb.write(home / "warmup.json", msgspec.json.format(msgspec.json.encode(warm)) + b"\n")
        words = {
            "NAME": options.name,
            "VERSION": version,
            "MAINTAINER": deb.maintainer(options.maintainer),
            "DATE": deb.date(),
            "TITLE": _line(facts.title),
            "SHA256": sha256,
            "FACTS": f"{facts.parameters / 1e6:.0f} million weights, {facts.type}, {file.bytes / 1e6:.0f} MB, licence {licence or 'see below'}.",
            "MEMORY": str(facts.memory_bytes),
        }
        packaging = deb.sources() / "model"
        deb.write(share / "README.md", _card(options, facts))
        deb.write(share / "copyright", _copyright(options, file, licence))
        deb.write(share / "changelog.gz", deb.zipped(_filled(packaging, "changelog", words)))
        deb.write(
            folder / f"usr/share/lintian/overrides/pillm-model-{options.name}",
            _filled(packaging, "lintian-overrides", words),
        )
        words["SIZE"] = str(deb.installed_kib(folder))
        words |= {
            "KEEPS": str(KEEPS_MIB),
            "SPARE": str(SPARE_MIB),
            "BOARDS": _cases(),
            "MEMORY_MIB": str(math.ceil(facts.memory_bytes / MIB)),
            "DISK_MIB": str(math.ceil(file.bytes / MIB) + _DISK_SPARE_MIB),
        }
        scripts = {name: _filled(packaging, name, words) for name in ("preinst", "postinst", "prerm", "postrm")}
        place = options.out / f"pillm-model-{options.name}_{version}_all.deb"
        # Weights are as good as random: stronger compression would take minutes on a board and save nothing.
        deb.build(folder, _filled(packaging, "control", words), scripts, place, compression="gzip")
    emit(
        Log(f"{place}: {place.stat().st_size / 1e6:.1f} MB, needs {facts.memory_bytes / 1e6:.0f} MB of memory or more")
    )
    return place


def _filled(packaging: Path, name: str, words: Mapping[str, str]) -> str:
    return deb.filled((packaging / name).read_text("utf-8"), words)


def _line(text: str) -> str:
    """A text of the file's as a part of one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).replace("@", " at ").split())[:80] or "unnamed"


def _cases() -> str:
    """What each board's system keeps, as cases of a shell."""
    rows = {(device.device_tree, device.reserved_bytes // MIB) for device in shipped().values() if device.device_tree}
    return "\n".join(f"    '{name}'*) keeps={kept} ;;" for name, kept in sorted(rows))


def _run_manifest(path: Path | None) -> object:
    if path is None:
        return None
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error})", "give the manifest.json of a run") from error


def _modelfile(options: ModelOptions, facts: Manifest) -> str:
    """For ollama: https://github.com/ollama/ollama/blob/main/docs/modelfile.md. The chat template is in the file."""
    lines = ["FROM ./model.gguf", f"PARAMETER num_ctx {min(facts.context_length or 4096, 4096)}"]
    if options.system:
        lines.append('SYSTEM """' + options.system.replace('"""', '\\"\\"\\"') + '"""')
    return "\n".join(lines) + "\n"


def _card(options: ModelOptions, facts: Manifest) -> str:
    """The card that was given or lies beside the model, else the header's facts."""
    beside = options.model.with_name("README.md")
    path = options.card or (beside if beside.is_file() else None)
    if path:
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read ({error})", "give a model card in UTF-8 with --card") from error
    return (
        f"# {facts.title}\n\nMade from the header of the GGUF file; nobody wrote a card for it.\n\n"
        f"- architecture: {facts.architecture}\n- type: {facts.type}\n- weights: {facts.parameters:,}\n"
        f"- context: {facts.context_length or 'not said'}\n- size: {facts.bytes:,} bytes, sha256 {facts.sha256}\n- licence: {facts.license}\n"
    )


def _copyright(options: ModelOptions, file: GgufFile, licence: str) -> str:
    """A copyright file in Debian's form (DEP 5), with the licence's text or the place where Debian has it."""
    if not licence:
        raise UsageError(
            f"{options.model}: the file does not say its licence", "say it with --license, as in --license Apache-2.0"
        )
    named = file.metadata.get("general.author") or file.metadata.get("general.organization")
    holder = options.copyright or (str(named) if named else f"the authors of {file.name}")
    short, body = _license_text(options, licence)
    url = (
        file.metadata.get("general.source.url")
        or file.metadata.get("general.url")
        or file.metadata.get("general.repo_url")
    )
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        f"Upstream-Name: {_line(file.name)}\n" + (f"Source: {_line(str(url))}\n" if url else "") + "\n"
        f"Files: *\nCopyright: {_line(holder)}\nLicense: {short}\n\nLicense: {short}\n{body}\n"
    )


def _license_text(options: ModelOptions, licence: str) -> tuple[str, str]:
    beside = next(
        (p for p in (options.model.with_name(n) for n in ("LICENSE", "LICENSE.txt", "LICENSE.md")) if p.is_file()), None
    )
    path = options.license_file or beside
    short, common = _COMMON.get(licence.lower(), (licence.replace(" ", "-"), ""))
    if common and options.license_file is None:
        return short, f" On Debian systems, the full text is in the file\n /usr/share/common-licenses/{common}."
    if path is None:
        raise UsageError(
            f"{options.model}: Debian does not have the text of {licence}",
            "give it with --license-file, or as LICENSE beside the model",
        )
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})", "give the licence's text in UTF-8") from error
    return short, "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in lines)
