"""A Debian root for arm64, made once by debootstrap under qemu-user and kept as a tar file in the user's cache.

    python benchmarks/emulated/rootfs.py bookworm trixie

The mirror is the one that this machine's apt uses. Needs root, debootstrap and qemu-user-static.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pillm.core.paths import cache_dir

SUITES = ("bookworm", "trixie")
PACKAGES = (
    "adduser",
    "iproute2", "kmod", "libgomp1", "libstdc++6", "openssh-server", "procps", "python3", "sudo", "systemd", "systemd-sysv", "udev",
)  # fmt: skip
"""What Raspberry Pi OS has, too, of what the packages and `pillm deploy` use there."""
HOOK = "emulated-hook"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


def lacking() -> str:
    """Why no root can be made or entered on this machine; empty where it can."""
    if os.geteuid():
        return "only root can make and enter another system's root"
    for program, package in (("debootstrap", "debootstrap"), ("qemu-aarch64-static", "qemu-user-static")):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            return f"{program} is not on this machine (Debian: apt install {package})"
    return _registered()


def _registered() -> str:
    """Have the kernel run programs of arm64 by qemu. Containers and small machines boot without this."""
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT], capture_output=True, check=False)
    if (_BINFMT / "qemu-aarch64").exists():
        return ""
    line = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
    try:
        (_BINFMT / "register").write_text(line.read_text().strip())
    except OSError as error:
        return f"the kernel does not take {line} ({error.strerror})"
    return ""


def mirror() -> str:
    """The address that this machine's apt takes Debian from."""
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for line in said.splitlines():
        origin, component, address = line.rsplit(" ", 2)
        if origin == "Debian" and component == "main" and "security" not in address:
            return address.rstrip("/")
    raise SystemExit("this machine's apt knows no Debian mirror")


def packed(suite: str) -> Path:
    """The root as a tar file; made if it is not in the cache (some minutes, once)."""
    key = hashlib.sha256(" ".join((suite, *PACKAGES)).encode()).hexdigest()[:10]
    folder = cache_dir() / "emulated"
    path = folder / f"{suite}-arm64-{key}.tar"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{suite}.lock"):
        if not path.is_file():
            with (
                tempfile.TemporaryDirectory(prefix=f"{suite}-", dir=folder) as made,
                (folder / f"{suite}.log").open("wb") as log,
            ):
                root, partial = Path(made) / "root", Path(made) / "root.tar"
                argv = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite,
                        root, mirror()]  # fmt: skip
                subprocess.run(argv, check=True, stdout=log, stderr=log)
                _spare_the_emulator(root)
                argv = ["chroot", root, "/debootstrap/debootstrap", "--second-stage"]
                subprocess.run(argv, check=True, stdout=log, stderr=log, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
                (root / HOOK).unlink()
                (root / "etc/dpkg/dpkg.cfg.d/emulated").unlink()
                for deb in (root / "var/cache/apt/archives").glob("*.deb"):
                    deb.unlink()
                subprocess.run(["tar", "--numeric-owner", "--xattrs", "-cf", partial, "-C", root, "."], check=True)
                partial.rename(path)
    return path


def _spare_the_emulator(root: Path) -> None:
    """What takes minutes of emulation and is not needed: reading of all that Debian has once for each package, keys of the
    ssh server, Python's compiled library, waiting for the disk."""
    fetched = {deb.name.partition("_")[0] for deb in (root / "var/cache/apt/archives").glob("*.deb")}
    for path in (root / "var/lib/apt/lists").glob("*_Packages"):
        parts = [
            part
            for part in path.read_text().split("\n\n")
            if part.partition("\n")[0].removeprefix("Package: ") in fetched
        ]
        path.write_text("\n\n".join(parts) + "\n\n")
    (root / "etc/ssh").mkdir(parents=True, exist_ok=True)
    for kind in ("rsa", "ecdsa", "ed25519"):
        argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", root / f"etc/ssh/ssh_host_{kind}_key"]
        subprocess.run(argv, check=True)
    (root / HOOK).write_text(
        "#!/bin/sh\n"
        "for script in /var/lib/dpkg/info/*python3*.postinst; do\n"
        '  if grep -qs "py_\\?3\\?compile" "$script"; then printf "#!/bin/sh\\nexit 0\\n" > "$script"; fi\n'
        "done\n"
    )
    (root / HOOK).chmod(0o755)
    (root / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/dpkg/dpkg.cfg.d/emulated").write_text(f"force-unsafe-io\npre-invoke=/{HOOK}\n")


def unpack(suite: str, folder: Path) -> Path:
    """A fresh copy of the root in `folder`."""
    folder.mkdir(parents=True)
    subprocess.run(["tar", "--numeric-owner", "--xattrs", "-xf", packed(suite), "-C", folder], check=True)
    return folder


@contextmanager
def entered(root: Path) -> Iterator[None]:
    """The kernel's file systems, mounted in a root while something runs in it; no service starts there (policy-rc.d)."""
    mounts = [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"), ("tmpfs", "run"), ("devpts", "dev/pts")]
    done: list[Path] = []
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        for kind, name in mounts:
            argv = (
                ["mount", "--bind", "/dev", root / name] if name == "dev" else ["mount", "-t", kind, kind, root / name]
            )
            subprocess.run(argv, check=True)
            done.append(root / name)
            if name == "dev":
                # Else what is mounted below it would show in this machine's own /dev, too.
                subprocess.run(["mount", "--make-private", root / name], check=True)
        yield
    finally:
        for place in reversed(done):
            subprocess.run(["umount", place], check=True)
        policy.unlink()


if __name__ == "__main__":
    if reason := lacking():
        raise SystemExit(reason)
    for name in sys.argv[1:] or SUITES:
        print(packed(name))
