"""What is to be planned for: the shapes of a model's tensors, from the least that must be read."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pillm.core.errors import UsageError
from pillm.core.events import Emit, Log
from pillm.core.paths import expanded
from pillm.devices.architecture import from_config
from pillm.devices.formats import BLOCKS, FLOATS
from pillm.devices.header import shape_of
from pillm.devices.model import Model, Tensor
from pillm.llamacpp.gguf_file import GgufFile, describe
from pillm.models.refs import HubRef, PackageRef, PathRef, ServerRef, parse, resolve

if TYPE_CHECKING:  # huggingface_hub takes long to import, and a local model does without it
    from pillm.models.header import Remote

_FIRST_BYTES = 2**20
_MOST_BYTES = 2**28
_CONFIG_BYTES = 2**22
_PART = re.compile(r"(?P<stem>.+)-00001-of-(?P<count>\d{5})\.gguf")
_PAST = "goes on past its end"


class Source(msgspec.Struct, frozen=True):
    """A model, and whether its types are fixed: a quantized file cannot become another type."""

    model: Model
    fixed: bool
    read: str
    """What was read of it, in words."""


def source(text: str, emit: Emit) -> Source:
    """The model that a reference means. Of a hub, only a config or the header of a GGUF file is fetched.

    Raises UsageError (no such file; not a model; an architecture that is not known here, with file and line),
    MissingError and NetworkError (hub).
    """
    match parse(text):
        case HubRef() as ref:
            return _from_hub(ref, emit)
        case PackageRef():
            return _from_path(resolve(text, emit))
        case PathRef(path):
            return _from_path(expanded(path))
        case ServerRef(url):
            raise UsageError(f"{url}: a server does not say its model's shapes", "give a model's folder or file")


def _from_path(path: Path) -> Source:
    if path.is_dir():
        config = path / "config.json"
        if config.is_file():
            try:
                text = config.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{config}: cannot be read ({error})", "download the file again") from error
            return Source(from_config(text, str(config), path.resolve().name), False, "config.json")
        found = sorted(f for f in path.glob("*.gguf") if not f.name.startswith("mmproj"))
        firsts = [file for file in found if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", file.name)]
        if len(firsts) != 1:
            what = f"holds {len(firsts)} GGUF files" if firsts else "holds neither config.json nor a GGUF file"
            raise UsageError(f"{path}: {what}", "name a .gguf file, or a folder with config.json")
        path = firsts[0]
    parts = [path]
    if match := _PART.fullmatch(path.name):
        count = int(match["count"])
        parts = [path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    return _from_ggufs([describe(part) for part in parts], "header of the file")


def _from_hub(ref: HubRef, emit: Emit) -> Source:
    from pillm.models import header, hub

    remote = header.remote(ref, emit)
    paths = {file.path: file.size for file in remote.files}
    name = ref.repo.rpartition("/")[2]
    if not ref.file and "config.json" in paths:
        text = remote.begin("config.json", _CONFIG_BYTES).decode("utf-8", "replace")
        return Source(from_config(text, f"{ref}/config.json", name), False, "config.json of the hub")
    wanted = [file for file in hub.choose(ref, list(remote.files)) if file.path.endswith(".gguf")]
    described, read = [], 0
    for file in wanted:
        found, count = _remote_header(remote, file.path, file.size)
        described.append(found)
        read += count
    emit(Log(f"{ref}: read {read / 1e6:.1f} MB of {sum(file.size for file in wanted) / 1e6:,.1f} MB"))
    return _from_ggufs(described, f"the first {read / 1e6:.1f} MB of the file on the hub")


def _remote_header(remote: Remote, path: str, size: int) -> tuple[GgufFile, int]:
    """A file's header from as many bytes as it has: four times as many each time, until the table of tensors is there."""
    count = _FIRST_BYTES
    with tempfile.TemporaryDirectory(prefix="pillm-header-") as folder:
        part = Path(folder) / Path(path).name
        while True:
            data = remote.begin(path, count)
            part.write_bytes(data)
            if len(data) < size:
                try:
                    describe(part)
                except UsageError as error:
                    if _PAST in error.message and count < min(size, _MOST_BYTES):
                        count *= 4
                        continue
                # The header is whole; its tensors lie beyond what was read, in a file of the right size.
                with part.open("r+b") as file:
                    file.truncate(size)
            return describe(part), len(data)


def _from_ggufs(parts: list[GgufFile], read: str) -> Source:
    file = parts[0]
    tensors = []
    for part in parts:
        for tensor in part.tensors:
            if tensor.type not in BLOCKS:
                raise UsageError(f"{file.path}: tensor {tensor.name} is in the type {tensor.type}, not known here")
            tensors.append(Tensor(tensor.name, tensor.type, tensor.shape))
    fixed = any(tensor.type not in FLOATS for tensor in tensors)
    quant = file.file_type if fixed else _float_type(tensors)
    shape = shape_of(file.architecture, file.metadata, tensors, str(file.path))
    return Source(
        Model(file.name, quant, shape, tuple(tensors), file.lengths.get("tokenizer.ggml.merges", 0)), fixed, read
    )


def _float_type(tensors: list[Tensor]) -> str:
    matrices = [tensor for tensor in tensors if tensor.is_matrix]
    return max(matrices, key=lambda tensor: tensor.elements).type if matrices else "F16"
