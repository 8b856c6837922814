"""A virtual machine with a kernel and a systemd of its own, for what the host's cannot show (cgroup v2, scopes).

A Debian is bootstrapped once into an ext4 image, kept in a cache directory, and booted by qemu's TCG, so that no
hardware support and no network is needed. A run copies files in as a tar archive on a second disk, runs one
script as root after boot, and reads `/guest/out` back from a third disk:

    guest = Guest(image())
    result = guest.run("systemctl is-system-running --wait", {Path("src.tar"): "guest/src.tar"})
    assert result.status == 0

Needs root (debootstrap), debootstrap, qemu-system-x86 and e2fsprogs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path(os.environ.get("MEP_TEST_VM_CACHE", "/var/cache/mep-test-vm"))
PACKAGES = (
    "dbus",
    "iproute2",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "passwd",
    "procps",
    "python3",
    "python3-venv",
    "systemd",
    "systemd-sysv",
    "udev",
)
IMAGE_SIZE = "3G"
BOOTSTRAP_LIMIT_S = 900
OUT_BYTES = 64 * 1024 * 1024
_UNIT = """\
[Unit]
Description=Run what the host's test asked for, then power off
After=multi-user.target

[Service]
Type=oneshot
StandardOutput=journal+console
ExecStart=/bin/sh -c 'mkdir -p /guest/out; tar -xf /dev/vdb -C / && sh /guest/run > /guest/out/log 2>&1; \
echo $? > /guest/out/status; tar -cf /dev/vdc -C /guest out; sync; systemctl poweroff --force --force'

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Image:
    """A bootable system: kernel, initial ram disk and root file system, all read-only."""

    kernel: Path
    initrd: Path
    disk: Path


@dataclass(frozen=True, slots=True)
class GuestResult:
    """The outcome of one run: the script's exit status (None: it did not end in time), its output, its files."""

    status: int | None
    log: str
    console: str
    files: dict[str, bytes] = field(default_factory=dict)


def image(packages: tuple[str, ...] = ()) -> Image:
    """Return the image with PACKAGES and `packages`, made on first use (about two minutes) and cached."""
    wanted = sorted({*PACKAGES, *packages})
    key = hashlib.sha256("\n".join([*wanted, _UNIT, IMAGE_SIZE]).encode()).hexdigest()[:16]
    home = CACHE / key
    with locked(CACHE):
        if not (home / "disk.ext4").exists():
            _bootstrap(home, wanted)
    return Image(home / "vmlinuz", home / "initrd", home / "disk.ext4")


@contextlib.contextmanager
def locked(directory: Path, name: str = "lock") -> Iterator[None]:
    """Hold the lock file `name` in a directory, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mirror() -> str:
    """Return the package site that this host itself is installed from."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    sites = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return next(site for site in sites if "security" not in site)


def running_release() -> str:
    """Return the code name of this host's Debian."""
    with Path("/etc/os-release").open() as file:
        values = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    return values["VERSION_CODENAME"].strip('"')


def _bootstrap(home: Path, packages: list[str]) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        root = Path(temporary, "root")
        command = [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            running_release(),
            str(root),
            mirror(),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=BOOTSTRAP_LIMIT_S)
        unit = root / "etc/systemd/system/mep-guest.service"
        unit.write_text(_UNIT)
        wants = root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit.name).symlink_to(f"../{unit.name}")
        (root / "etc/hostname").write_text("guest\n")
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        shutil.copy(next((root / "boot").glob("vmlinuz-*")), home / "vmlinuz")
        shutil.copy(next((root / "boot").glob("initrd.img-*")), home / "initrd")
        disk = home / "disk.partial"
        subprocess.run(["mkfs.ext4", "-q", "-d", str(root), str(disk), IMAGE_SIZE], check=True)
        disk.rename(home / "disk.ext4")


class Guest:
    """One virtual machine, freshly booted for every run from an unchanged image."""

    def __init__(self, booted: Image, *, memory_mib: int = 1024, processors: int = 2, reboots: bool = False) -> None:
        """With `reboots` a reboot keeps the disk, and runs the script again. Otherwise it ends the run."""
        self._image, self._memory_mib, self._processors, self._reboots = booted, memory_mib, processors, reboots

    def run(self, script: str, files: Mapping[Path, str] | None = None, *, timeout_s: float = 300) -> GuestResult:
        """Boot, put `files` (host path to path from the guest's root) in place, run `script` as root, power off.

        `timeout_s` covers the boot. Everything the script leaves in /guest/out comes back.
        """
        with tempfile.TemporaryDirectory(prefix="mep-test-vm-", dir=CACHE) as temporary:
            work = Path(temporary)
            _archive(work / "in.tar", script, files or {})
            with (work / "out.tar").open("wb") as out:
                out.truncate(OUT_BYTES)
            console = self._boot(work, timeout_s)
            return _read_back(work / "out.tar", console)

    def _boot(self, work: Path, timeout_s: float) -> str:
        disks = [
            (self._image.disk, "snapshot=on"),
            (work / "in.tar", "readonly=on"),
            (work / "out.tar", "cache=writeback"),
        ]
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-m", str(self._memory_mib)]
        command += ["-smp", str(self._processors), "-nographic", "-net", "none"]
        command += [] if self._reboots else ["-no-reboot"]
        command += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)]
        command += ["-append", "root=/dev/vda rw console=ttyS0 quiet no_timer_check systemd.show_status=0"]
        for disk, option in disks:
            command += ["-drive", f"file={disk},if=virtio,format=raw,{option}"]
        environment = {**os.environ, "TMPDIR": str(work)}  # where qemu keeps the guest's writes to its root disk
        console = work / "console"
        with console.open("wb") as log, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=timeout_s, env=environment
            )
        return console.read_text(errors="replace")


def _archive(target: Path, script: str, files: Mapping[Path, str]) -> None:
    with tarfile.open(target, "w") as archive:
        entry = tarfile.TarInfo("guest/run")
        data = script.encode()
        entry.size, entry.mode = len(data), 0o755
        archive.addfile(entry, io.BytesIO(data))
        for source, name in files.items():
            archive.add(source, name.lstrip("/"), filter=_as_root)


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _read_back(archive: Path, console: str) -> GuestResult:
    found: dict[str, bytes] = {}
    with contextlib.suppress(tarfile.ReadError), tarfile.open(archive) as tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isfile() else None
            if content is not None:
                found[entry.name.removeprefix("out/")] = content.read()
    status = found.pop("status", b"").strip()
    log = found.pop("log", b"").decode(errors="replace")
    return GuestResult(int(status) if status else None, log, console, found)
