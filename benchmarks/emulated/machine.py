"""An emulated board that boots: Debian's kernel and systemd on `qemu-system-aarch64 -M virt`, reached by ssh on 127.0.0.1.

The disk is made from a root (rootfs.py) by `mke2fs -d`, with a user `pi` who may use sudo, and kept in the user's cache;
each machine writes to a file of its own above it. Emulated speed says nothing about a board's.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from emulated import rootfs
from pillm.core.paths import cache_dir

CORES = {"cortex-a72": "armv8.0_1", "cortex-a76": "armv8.2_2"}
"""A Pi 4's and a Pi 5's core, and the CPU backend that llama.cpp must choose there."""
HOST = "emulated-board"
KERNEL = "linux-image-cloud-arm64"
MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtio_net", "virtio_rng")
DISK_GB = 6
_HERE = Path(__file__).parent
_NEEDED = {
    "qemu-system-aarch64": "qemu-system-arm", "qemu-img": "qemu-utils", "mke2fs": "e2fsprogs", "ssh": "openssh-client",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "cpio": "cpio", "dpkg-deb": "dpkg",
}  # fmt: skip
_MASKED = ("serial-getty@ttyAMA0.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer",
           "e2scrub_all.timer", "getty@tty1.service")  # fmt: skip


def lacking() -> str:
    """Why no machine can be made here; empty where it can."""
    for program, package in _NEEDED.items():
        if not shutil.which(program):
            return f"{program} is not on this machine (Debian: apt install {package})"
    return rootfs.lacking()


def kernel(suite: str) -> Path:
    """A folder with `vmlinuz` and `initrd` out of Debian's kernel for arm64; fetched by apt, once."""
    key = hashlib.sha256((_HERE / "init.c").read_bytes() + repr(MODULES).encode()).hexdigest()[:10]
    folder = cache_dir() / "emulated" / f"kernel-{suite}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "kernel.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix="kernel-", dir=folder.parent) as work:
                made = Path(work) / "made"
                made.mkdir()
                tree = Path(work) / "tree"
                subprocess.run(["dpkg-deb", "-x", _fetched(suite, Path(work)), tree], check=True)
                shutil.copy(next((tree / "boot").glob("vmlinuz-*")), made / "vmlinuz")
                _initrd(tree, Path(work) / "initrd", made / "initrd")
                made.rename(folder)
    return folder


def _fetched(suite: str, work: Path) -> Path:
    """The kernel's package, by this machine's apt with lists of another architecture beside its own."""
    (work / "lists/partial").mkdir(parents=True)
    (work / "archives/partial").mkdir(parents=True)
    (work / "status").touch()
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (work / "sources.list").write_text(f"deb [signed-by={key}] {rootfs.mirror()} {suite} main\n")
    words = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State::lists": work / "lists", "Dir::State::status": work / "status",
        "Dir::Cache::archives": work / "archives", "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "", "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "-", "APT::Sandbox::User": "root", "Acquire::Languages": "none",
    }  # fmt: skip
    options = [word for name, value in words.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *options, "update"], check=True, capture_output=True)
    said = subprocess.run(["apt-cache", *options, "depends", KERNEL], check=True, capture_output=True, text=True).stdout
    name = re.search(r"Depends: (linux-image-\S+)", said)
    if not name:
        raise SystemExit(f"{KERNEL} depends on no kernel: {said}")
    subprocess.run(["apt-get", *options, "download", name[1]], check=True, capture_output=True, cwd=work)
    return next(work.glob("linux-image-*.deb"))


def _initrd(tree: Path, folder: Path, path: Path) -> None:
    """init.c and the modules it loads, each after those it depends on. Modules that are not files are in the kernel."""
    found = {file.name.split(".ko")[0].replace("-", "_"): file for file in tree.rglob("*.ko*")}
    ordered: list[str] = []

    def add(name: str) -> None:
        if name in found and name not in ordered:
            data = _module(found[name])
            depends = re.search(rb"\0depends=([^\0]*)\0", data)
            for one in (depends[1].decode() if depends else "").split(","):
                add(one.replace("-", "_"))
            # ext4's checksums are looked up by name when it mounts.
            for one in ("crc32c_generic", "libcrc32c") if name == "ext4" else ():
                add(one)
            ordered.append(name)
            (folder / f"{name}.ko").write_bytes(data)

    folder.mkdir()
    for module in MODULES:
        add(module)
    (folder / "modules").write_text("".join(f"/{name}.ko\n" for name in ordered))
    argv = ["aarch64-linux-gnu-gcc", "-static", "-Os", "-Wall", "-o", folder / "init", _HERE / "init.c"]
    subprocess.run(argv, check=True)
    names = "\n".join(sorted(file.name for file in folder.iterdir()))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc"], input=names.encode(), cwd=folder, check=True, capture_output=True
    )
    path.write_bytes(packed.stdout)


def _module(file: Path) -> bytes:
    if file.suffix == ".xz":
        import lzma

        return lzma.decompress(file.read_bytes())
    return file.read_bytes()


def disk(suite: str) -> Path:
    """A disk image of a board that was just set up, with the keys for it beside (`user_key`, `known_hosts`); once."""
    key = hashlib.sha256(Path(__file__).read_bytes() + rootfs.packed(suite).name.encode()).hexdigest()[:10]
    folder = cache_dir() / "emulated" / f"disk-{suite}-{key}"
    with FileLock(folder.parent / "disk.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix="disk-", dir=folder.parent) as work:
                made = Path(work) / "made"
                made.mkdir()
                root = rootfs.unpack(suite, Path(work) / "root")
                _set_up(root, made)
                image = made / "disk.ext4"
                subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, f"{DISK_GB}G"], check=True)
                made.rename(folder)
    return folder


def _set_up(root: Path, keys: Path) -> None:
    """What the person does who sets up a board: a user, a key, a network."""
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", keys / name], check=True)
    for old in (root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    for end, mode in (("", 0o600), (".pub", 0o644)):
        shutil.copy(keys / f"host_key{end}", root / f"etc/ssh/ssh_host_ed25519_key{end}")
        (root / f"etc/ssh/ssh_host_ed25519_key{end}").chmod(mode)
    subprocess.run(["chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", "pi"], check=True)
    for name, text in {
        "home/pi/.ssh/authorized_keys": (keys / "user_key.pub").read_text(),
        "etc/sudoers.d/pi": "pi ALL=(ALL) NOPASSWD: ALL\n",
        "etc/hostname": f"{HOST}\n",
        "etc/hosts": f"127.0.0.1 localhost {HOST}\n",
        "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
        "etc/systemd/network/wired.network": "[Match]\nType=ether\n[Network]\nDHCP=ipv4\n",
        # Journal on the disk, so that it can be read after a power cut.
        "var/log/journal/.keep": "",
        "etc/machine-id": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["chroot", root, "chown", "-R", "pi:pi", "/home/pi"], check=True)
    units = root / "etc/systemd/system"
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(parents=True, exist_ok=True)
    for name in ("systemd-networkd.service", "ssh.service"):
        (wanted / name).unlink(missing_ok=True)
        (wanted / name).symlink_to(f"/lib/systemd/system/{name}")
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")


class Machine:
    """A board that is on, or can be switched on again: its disk is `folder`/disk.qcow2."""

    def __init__(self, folder: Path, suite: str, cpu: str, memory_mb: int = 1024) -> None:
        self.folder, self.cpu, self.memory_mb = folder, cpu, memory_mb
        self.base, self.kernel = disk(suite), kernel(suite)
        self.console, self.config = folder / "console.log", folder / "ssh_config"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        image = folder / "disk.qcow2"
        if not image.exists():
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.base / "disk.ext4", image]
            subprocess.run(argv, check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        host_key = (self.base / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        # ssh refuses a key that others may read, and the cache may be shared.
        shutil.copy(self.base / "user_key", folder / "user_key")
        (folder / "user_key").chmod(0o600)
        self.config.write_text(
            f"Host {HOST}\n  HostName 127.0.0.1\n  Port {self.port}\n  User pi\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        )

    def on(self) -> None:
        """Switch on, and return when ssh answers."""
        argv = [
            "qemu-system-aarch64", "-M", "virt", "-cpu", self.cpu, "-smp", "2", "-m", f"{self.memory_mb}M", "-accel", "tcg,thread=multi",
            "-kernel", self.kernel / "vmlinuz", "-initrd", self.kernel / "initrd",
            "-append", "console=ttyAMA0 loglevel=4 systemd.log_target=journal net.ifnames=0",
            "-drive", f"if=none,id=disk,format=qcow2,file={self.folder}/disk.qcow2", "-device", "virtio-blk-pci,drive=disk",
            "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci", "-display", "none", "-monitor", "none", "-serial", f"file:{self.console}", "-no-reboot",
        ]  # fmt: skip
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 600
        while self.run("true", check=False, seconds=30).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the machine does not come up; see {self.console}")
            time.sleep(1)

    def run(self, script: str, *, check: bool = True, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """A shell script there, as root."""
        argv = [
            "ssh",
            "-F",
            self.config,
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
            HOST,
            "sudo",
            "-n",
            "sh",
            "-s",
        ]
        try:
            done = subprocess.run(
                argv, input=f"{script}\n", capture_output=True, text=True, check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(argv, 255, "", f"no end after {seconds} s")
        if check and done.returncode:
            raise SystemExit(f"{script!r} failed there ({done.returncode}): {done.stdout}{done.stderr}")
        return done

    def off(self) -> None:
        """Power off as a person does."""
        if self._process and self._process.poll() is None:
            self.run("systemctl poweroff", check=False)
            try:
                self._process.wait(240)
            except subprocess.TimeoutExpired:
                self.cut()

    def cut(self) -> None:
        """The power goes: what the system has not written to its disk is lost."""
        if self._process:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def machine(folder: Path, suite: str, cpu: str, memory_mb: int = 1024) -> Iterator[Machine]:
    """A board that is on; its power is cut with the block."""
    made = Machine(folder, suite, cpu, memory_mb)
    try:
        made.on()
        yield made
    finally:
        made.cut()
