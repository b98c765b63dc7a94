"""What the runtime package is made of, as CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/)."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from pillm.core.artifacts import sha256_file
from pillm.deploy.package import deb
from pillm.llamacpp import pin

# Name, version where the source says one, licence: what is compiled in, from llama.cpp's `vendor` and `ggml` folders.
_VENDORED = (
    ("ggml", "", "MIT"),
    ("cpp-httplib", "", "MIT"),
    ("nlohmann-json", "", "MIT"),
    ("stb_image", "", "MIT"),
    ("miniaudio", "", "MIT-0"),
    ("subprocess.h", "", "Unlicense"),
    ("xxHash", "0.8.3", "BSD-2-Clause"),
    ("rotate-bits", "", "MIT"),
    ("sha1 by Steve Reid", "", ""),
    ("sha256 by Igor Pavlov", "", ""),
    ("llamafile sgemm", "", "MIT"),
)


def sbom(folder: Path, version: str, architecture: str) -> bytes:
    """The document about a tree of files. Its serial number follows from the content, so that it is reproducible, too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    hashed = [(path.relative_to(folder).as_posix(), sha256_file(path)) for path in files]
    upstream = {
        **_component("llama.cpp", ".".join(map(str, pin.VERSION)), "MIT"),
        "purl": f"pkg:pypi/{pin.DISTRIBUTION}@{pin.RELEASE}",
        "hashes": [{"alg": "SHA-256", "content": pin.SHA256}],
        "description": f"llama.cpp at commit {pin.COMMIT}, as the source distribution of {pin.DISTRIBUTION} {pin.RELEASE} carries it",
        "components": [_component(*row) for row in _VENDORED],
    }
    listed = [
        {"type": "file", "name": f"/{name}", "hashes": [{"alg": "SHA-256", "content": digest}]}
        for name, digest in hashed
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, version + architecture + str(hashed))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(deb.epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                **_component("pillm-runtime", version, "Apache-2.0"),
                "type": "application",
                "purl": f"pkg:deb/pillm-runtime@{version}?arch={architecture}",
            },
        },
        "components": [upstream, *listed],
    }
    return msgspec.json.format(msgspec.json.encode(document)) + b"\n"


def _component(name: str, version: str, licence: str) -> dict[str, Any]:
    licences = [{"license": {"id": licence}}] if licence else [{"license": {"name": "public domain"}}]
    return {"type": "library", "name": name, **({"version": version} if version else {}), "licenses": licences}
