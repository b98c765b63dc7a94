"""What the runtime's programs know of this board and its models. Standard library only, Python 3.9 and up.

The place of this file says where the system's root is, so that an unpacked package works where it lies.
"""

import contextlib
import json
import os
import re
import struct
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parent
ROOT = LIB.parents[2]
MODELS = (ROOT / "var/lib/pillm/models", ROOT / "usr/share/pillm/models")
"""Where models are: added by hand, and from packages. The first wins."""
ETC = ROOT / "etc/pillm"
SPOOL = ROOT / "var/spool/pillm"
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,62}\Z")
MIB = 1 << 20

EXIT_USAGE, EXIT_MISSING, EXIT_NETWORK, EXIT_RESOURCE = 2, 3, 4, 5
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SPARE = 48 * MIB
"""What a service takes beside llama-server: the watching Python, and pages of the file in flight."""
FIRST_PORT = 8080

DEFAULTS = {
    "HOST": "127.0.0.1",
    "PORT": "",
    "CONTEXT": "",
    "KV_TYPE": "",
    "UBATCH": "",
    "THREADS": "",
    "THREADS_BATCH": "",
    "MEMORY_MAX": "",
    "IDLE_SECONDS": "900",
    "THERMAL_GUARD": "1",
    "EXTRA": "",
}
"""Settings of a model and what they are unless its file says otherwise; empty: chosen for the board."""


class Trouble(Exception):
    """Something that a person has to set right: what is wrong, what to do, and the exit code."""

    def __init__(self, message, hint="", code=1):
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


def fail(trouble):
    """Say it on stderr; returns the exit code."""
    print(f"{Path(sys.argv[0]).name}: {trouble.message}", file=sys.stderr)
    if trouble.hint:
        print(f"  {trouble.hint}", file=sys.stderr)
    return trouble.code


def run(main):
    """Run a program's `main(argv)` and end with its exit code; people never see a traceback."""
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except Trouble as trouble:
        code = fail(trouble)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Who read stdout went away; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = fail(Trouble(f"{where}{error.strerror or error}", "", EXIT_RESOURCE))
    sys.exit(code)


# The board


def machine():
    """`arm64` or another processor's name in Debian's words."""
    return {"aarch64": "arm64", "x86_64": "amd64"}.get(os.uname().machine, os.uname().machine)


def features():
    """The class of this processor in a model's table: `dotprod`, `avx512`, `avx2` or `plain`."""
    if machine() == "arm64":
        # Linux, arch/arm64/include/uapi/asm/hwcap.h: bit 20 is asimddp. /proc/cpuinfo tells of the host under emulation.
        return "dotprod" if _hwcap() >> 20 & 1 else "plain"
    with contextlib.suppress(OSError):
        words = Path("/proc/cpuinfo").read_text("ascii", "replace").split()
        return "avx512" if "avx512f" in words else "avx2" if "avx2" in words else "plain"
    return "plain"


def _hwcap():
    try:
        auxv = Path("/proc/self/auxv").read_bytes()
    except OSError:
        return 0
    return dict(struct.iter_unpack("@LL", auxv[: len(auxv) // 16 * 16])).get(16, 0)


def variant():
    """The CPU backend that llama.cpp picks here, as far as the features tell; empty off the Pi."""
    if machine() != "arm64":
        return ""
    if features() == "plain":
        return "armv8.0_1"
    return "armv8.2_2" if _hwcap() >> 10 & 1 else "armv8.2_1"  # bit 10 is asimdhp: fp16 arithmetic


def memory():
    """Bytes of memory that Linux has, and that are available."""
    found = {}
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return found["MemTotal"], found.get("MemAvailable", found["MemTotal"])


def room(total):
    """Bytes for a model on a board where Linux counts `total`: what the board was sold with, less what the system keeps."""
    # The firmware's share is already missing from what Linux counts. The model packages' preinst does the same.
    sold = min((size * MIB for size in (512, 1024, 2048, 4096, 8192, 16384) if total <= size * MIB), default=total)
    return min(sold - profile()[0], total - 128 * MIB) - SPARE


def title():
    """The board's name as its firmware tells it; empty on a PC."""
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    return ""


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def profile():
    """What the table of boards says of this one: bytes the system keeps, threads for decoding."""
    here = title()
    keeps, threads = 330 * MIB, cores()
    for line in (LIB / "boards.tsv").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, reserved, best = line.split("\t")
            if here.startswith(name):
                keeps, threads = int(reserved) * MIB, min(int(best), cores())
    return keeps, threads


def throttled(sys_root=Path("/sys")):
    """Whether the board is slowed down now: the firmware's word on a Pi, else a zone beyond its passive trip point."""
    try:
        # 1 under-voltage, 2 capped, 4 throttled, 8 soft temperature limit; higher bits tell of the past.
        said = (sys_root / "devices/platform/soc/soc:firmware/get_throttled").read_text("ascii").strip()
        return bool(int(said, 16) & 0xF)
    except (OSError, ValueError):
        pass
    for zone in sorted(sys_root.glob("class/thermal/thermal_zone*")):
        with contextlib.suppress(OSError, ValueError):
            now = int((zone / "temp").read_text("ascii"))
            for kind in zone.glob("trip_point_*_type"):
                if kind.read_text("ascii").strip() == "passive":
                    limit = int((zone / kind.name.replace("_type", "_temp")).read_text("ascii"))
                    if 0 < limit <= now:
                        return True
    return False


# Models


def names():
    """Names of all models, sorted."""
    return sorted({path.name for place in MODELS if place.is_dir() for path in place.iterdir() if _whole(path)})


def _whole(folder):
    return NAME.match(folder.name) is not None and (folder / "model.gguf").is_file()


def folder_of(name):
    """A model's folder. Raises Trouble if there is none of that name."""
    if NAME.match(name):
        for place in MODELS:
            if _whole(place / name):
                return place / name
    known = ", ".join(names())
    raise Trouble(f"{name}: there is no model of this name", f"there is: {known}" if known else _NONE, EXIT_USAGE)


_NONE = "no model is installed: apt install a pillm-model-... package, or pillm-models add FILE.gguf"


def default():
    """The name of the model that is meant where none is said. Raises Trouble if there is none."""
    with contextlib.suppress(OSError):
        said = (ETC / "default").read_text("utf-8").strip()
        if said in names():
            return said
    known = names()
    if len(known) == 1:
        return known[0]
    if not known:
        raise Trouble("there is no model", _NONE, EXIT_USAGE)
    raise Trouble(
        "which model?",
        f"say --model NAME, or: sudo pillm-models default NAME (there is {', '.join(known)})",
        EXIT_USAGE,
    )


def manifest(name):
    """What the model's manifest says; empty without one."""
    try:
        return json.loads((folder_of(name) / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def said_settings(name):
    """`/etc/pillm/NAME.env`: KEY=VALUE lines. Raises Trouble with file and line of what is none."""
    path, found = ETC / f"{name}.env", {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Trouble(f"{path}: {error.strerror}", "", EXIT_RESOURCE) from error
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or key.strip() not in DEFAULTS:
            raise Trouble(f"{path}:{number}: not a setting: {line}", f"settings are {', '.join(DEFAULTS)}", EXIT_USAGE)
        found[key.strip()] = value.strip().strip("\"'")
    return found


def _number(name, said, key):
    value = said.get(key) or DEFAULTS[key]
    if value and not value.isdigit():
        raise Trouble(f"{ETC / name}.env: {key}={value} is not a whole number", "", EXIT_USAGE)
    return int(value) if value else None


def table(name):
    """Rows of a model's table of memory: (features, context, type of the cache, ubatch, bytes), the best first."""
    rows = []
    for line in (folder_of(name) / "memory.tsv").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            kind, context, cache, ubatch, size = line.split("\t")
            rows.append((kind, int(context), cache, int(ubatch), int(size)))
    return rows


def settings(name, total=None):
    """How the model is run here: the model's file of settings, and for the rest the best that fits.

    `total` is the board's memory in bytes. Raises Trouble (exit code 5) where nothing fits.
    """
    said = said_settings(name)
    total = memory()[0] if total is None else total
    threads, free = profile()[1], room(total)
    rows = [row for row in table(name) if row[0] == features()] or table(name)
    context, ubatch = _number(name, said, "CONTEXT"), _number(name, said, "UBATCH")
    wanted = [
        row for row in rows
        # A context between two of the table's counts as the larger one.
        if (context is None or row[1] == min((r[1] for r in rows if r[1] >= context), default=max(r[1] for r in rows)))
        and (ubatch is None or row[3] == min((r[3] for r in rows if r[3] >= ubatch), default=max(r[3] for r in rows)))
        and (not said.get("KV_TYPE") or row[2] == said["KV_TYPE"])
    ]  # fmt: skip
    if not wanted:
        raise Trouble(
            f"{ETC / name}.env: KV_TYPE={said.get('KV_TYPE')} is not in the model's table",
            "take f16 or q8_0",
            EXIT_USAGE,
        )
    # Without a word in the settings, contexts beyond 4096 are not taken: they cost memory that few use.
    usual = [row for row in wanted if context is not None or row[1] <= 4096] or wanted
    fitting = [row for row in usual if row[4] <= free]
    if not fitting:
        least = min(usual, key=lambda row: row[4])
        raise Trouble(
            f"{name} does not fit: it needs {least[4] // MIB} MB with a context of {least[1]} tokens, "
            f"and this board has {max(free, 0) // MIB} MB for a model ({total // MIB} MB less what the system keeps)",
            "take a smaller model or quantization, or a board with more memory",
            EXIT_RESOURCE,
        )
    row = fitting[0]
    own = _number(name, said, "MEMORY_MAX")
    # The file's pages are taken back under pressure, so beyond what is needed they only have to find some room.
    limit = own * MIB if own else min(row[4] + row[4] // 10, free) + SPARE
    return {
        "HOST": said.get("HOST") or DEFAULTS["HOST"],
        "PORT": _number(name, said, "PORT") or FIRST_PORT,
        "CONTEXT": context or row[1],
        "KV_TYPE": row[2],
        "UBATCH": ubatch or row[3],
        "THREADS": _number(name, said, "THREADS") or threads,
        "THREADS_BATCH": _number(name, said, "THREADS_BATCH") or cores(),
        "MEMORY_MAX": limit,
        "NEEDED": row[4],
        "IDLE_SECONDS": _number(name, said, "IDLE_SECONDS"),
        "THERMAL_GUARD": _number(name, said, "THERMAL_GUARD"),
        "EXTRA": said.get("EXTRA", ""),
    }


def key_of(name):
    """The server's key: from the environment, systemd's credentials, or its file; None if there is none or it is not ours to read."""
    if own := os.environ.get("PILLM_API_KEY"):
        return own
    places = [ETC / f"{name}.key"]
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        places.insert(0, Path(credentials) / "api-key")
    for place in places:
        with contextlib.suppress(OSError):
            said = place.read_text("ascii").strip()
            # `none` is what the units hand in where there is no key.
            if said and said != "none":
                return said
    return None


def address(name):
    """Where programs on this board reach the model's server."""
    said = said_settings(name)
    host = said.get("HOST") or DEFAULTS["HOST"]
    # Who listens everywhere listens on loopback, too.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return host, _number(name, said, "PORT") or FIRST_PORT


# Files


def write_file(path, text, mode=0o644):
    """Replace a file in one step: written beside, fsynced, renamed."""
    partial = path.with_name(f".{path.name}.new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.chmod(mode)
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder):
    """Make renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
