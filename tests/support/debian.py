"""Debian systems for tests: bootstrapped once and cached, then booted in a container or packed as an image's base.

`boot` starts systemd as process 1 by systemd-nspawn, on the host's kernel: in a second, where the virtual machines of
tests/vm take a minute. The system is a layer in memory over the cached directory. It has no network but loopback.
Needs root, debootstrap and systemd-container.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.vm.harness import CACHE, GuestResult, locked, mirror, running_release

__all__ = ["BOOTED", "boot", "pack", "running_release", "system"]

BOOTED = ("dbus", "python3", "systemd", "systemd-sysv")
"""Packages of a system that boots."""
_UNIT = """\
[Unit]
Description=Run the script of the host's test, then power off
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sh /guest/run > /guest/out/log 2>&1; echo $? > /guest/out/status; \\
journalctl -b --no-pager -o cat -n 400 > /guest/out/journal; systemctl poweroff --force --force'

[Install]
WantedBy=multi-user.target
"""
_CALLS = "@keyring landlock_create_ruleset landlock_add_rule landlock_restrict_self"
_IN_GROUP = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
_BOOTSTRAP_LIMIT_S = 900


def system(release: str, packages: tuple[str, ...]) -> Path:
    """Return the directory of a Debian with these packages, made on first use and cached. Do not write to it."""
    wanted = sorted(packages)
    key = hashlib.sha256("\n".join([release, *wanted, _UNIT]).encode()).hexdigest()[:16]
    home = CACHE / f"{release}-{key}"
    with locked(CACHE, f"{release}-{key}.lock"):
        if not home.exists():
            _bootstrap(home, release, wanted)
    return home


def _bootstrap(home: Path, release: str, packages: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        root = Path(temporary, "root")
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", release, str(root), mirror()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BOOTSTRAP_LIMIT_S)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr
        shutil.rmtree(root / "var/cache/apt/archives")
        (root / "var/cache/apt/archives/partial").mkdir(parents=True)
        unit = root / "etc/systemd/system/mep-guest.service"
        unit.write_text(_UNIT)
        wants = root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / unit.name).symlink_to(f"../{unit.name}")
        root.rename(home)


def pack(root: Path, archive: Path) -> None:
    """Pack a system without the unit of `boot`, as the only layer of a container image."""
    left_out = [f"--exclude=./etc/systemd/system/{name}" for name in ("mep-guest.service", "*/mep-guest.service")]
    subprocess.run(["tar", "-C", root, *left_out, "-cf", archive, "."], check=True, timeout=300)


@contextlib.contextmanager
def _own_group() -> Iterator[Path]:
    """A control group in which systemd-nspawn makes those of one container, away from those of other containers."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    top = next(place for _, place, kind, *_ in mounts if kind == "cgroup2")
    group = Path(top, f"meptest-{secrets.token_hex(4)}")
    group.mkdir()
    try:
        yield group
    finally:
        for path in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        group.rmdir()


def boot(root: Path, script: str, files: Mapping[Path, str], work: Path, *, timeout_s: float = 300) -> GuestResult:
    """Boot `root`, run `script` as root with `files` below /guest (host path to relative name), and power off.

    The empty directory `work` is /guest. Files left in /guest/out come back.
    """
    (work / "out").mkdir()
    (work / "run").write_text(script)
    for source, name in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, work / name)
    command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={root}", "--volatile=overlay"]
    command += ["--setenv=TERM=dumb", "--register=no", "--keep-unit", "--private-network"]
    command += ["--link-journal=no", "--resolv-conf=off"]
    # What systemd-nspawn keeps from containers, and a machine of a site has: session keyrings, and Landlock.
    command += [f"--machine=meptest-{secrets.token_hex(4)}", f"--system-call-filter={_CALLS}", f"--bind={work}:/guest"]
    environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    console = work / "console"
    with _own_group() as group, console.open("wb") as log:
        subprocess.run(
            ["sh", "-c", _IN_GROUP, "sh", group, "timeout", "--kill-after=20", f"{timeout_s:g}", *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, check=False,
        )  # fmt: skip
    found = {path.name: path.read_bytes() for path in (work / "out").iterdir()}
    status, log_text = found.pop("status", b"").strip(), found.pop("log", b"").decode(errors="replace")
    return GuestResult(int(status) if status else None, log_text, console.read_text(errors="replace"), found)
