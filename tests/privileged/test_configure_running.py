"""A started endpoint's manager and mapper: their identity and resources, and that either may die without a loss."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess
from tests.support.waiting import until


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with open_directory() as directory, RelayProcess(tmp_path_factory.mktemp("relay")) as relay:
        mep = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu")})
        mep("configure", "site", "--multi-user", "--relay", relay.url)
        mep("start", "site", "--detach")
        yield mep
        mep("stop", "site", "--kill")


def child(site: Cli, module: str) -> int | None:
    """Return the pid of the monitor's child that runs `module`."""
    monitor = site.json("status", "site")["pid"]
    for pid in Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split():
        if module in Path(f"/proc/{pid}/cmdline").read_text():
            return int(pid)
    return None


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def is_up(site: Cli) -> bool:
    return bool(site.json("status", "site")["link"] == "up")


CHILDREN = pytest.mark.parametrize(("module", "number"), [("mep.manager", 0), ("mep.mapper", 1)])


@CHILDREN
def test_who_they_are(site: Cli, module: str, number: int) -> None:
    pid = until("the child of the monitor", lambda: child(site, module))
    entry = site.helpers("site")[number]
    status = status_of(pid)
    assert status["Uid"].split() == [str(entry.pw_uid)] * 4
    assert status["Gid"].split() == [str(entry.pw_gid)] * 4
    assert set(status["Groups"].split()) <= {str(entry.pw_gid)}
    for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"MEP_TOKEN" not in environment


@CHILDREN
def test_their_own_account_cannot_look_into_them(site: Cli, module: str, number: int) -> None:
    pid = until("the child of the monitor", lambda: child(site, module))
    until("a process that can be traced no more", lambda: os.stat(f"/proc/{pid}/environ").st_uid == 0)
    entry = site.helpers("site")[number]
    code = f"open('/proc/{pid}/mem', 'rb')"
    done = subprocess.run([sys.executable, "-I", "-c", code], user=entry.pw_uid, group=entry.pw_gid, extra_groups=[],
                          capture_output=True, text=True, timeout=30, check=False)  # fmt: skip
    assert "PermissionError" in done.stderr


@CHILDREN
def test_what_they_hold(site: Cli, module: str, number: int) -> None:
    pid = until("the child of the monitor", lambda: child(site, module))
    until("a link that is up", lambda: is_up(site))
    targets = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    for target in targets:
        assert not target.endswith((".key", ".json", ".yaml")), target
        assert "memfd" not in target
    internet = [t for t in targets if t.startswith("socket:") and is_internet(t)]
    assert len(internet) == (1 if module == "mep.manager" else 0)


def is_internet(target: str) -> bool:
    inode = target.removeprefix("socket:[").removesuffix("]")
    tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6", "udp", "udp6")]
    return any(f" {inode} " in table for table in tables)


@CHILDREN
def test_one_that_dies_is_replaced_and_the_link_comes_back(site: Cli, module: str, number: int) -> None:
    until("a link that is up", lambda: is_up(site))
    before = until("the child of the monitor", lambda: child(site, module))
    os.kill(before, signal.SIGKILL)
    after = until("the child of the monitor", lambda: (pid := child(site, module)) != before and pid)
    assert pwd.getpwuid(os.stat(f"/proc/{after}").st_uid).pw_name in {site.helpers("site")[number].pw_name, "root"}
    until("a link that is up", lambda: is_up(site))


def test_the_files_of_a_running_endpoint(site: Cli) -> None:
    assert stat.S_IMODE(site.path("run", "site").stat().st_mode) == 0o755
    for name, mode in (("status.json", 0o600), ("monitor.pid", 0o644)):
        found = site.path("run", "site", name).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, mode)
    for name in ("endpoint.log", "audit.log"):
        found = site.path("var", "site", name).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode) & 0o007) == (0, 0)


def test_a_log_cannot_be_led_elsewhere(site: Cli) -> None:
    site("stop", "site")
    log = site.path("var", "site", "endpoint.log")
    log.unlink()
    log.symlink_to("/etc/debian_version")
    before = Path("/etc/debian_version").read_bytes()
    site("start", "site", "--detach", expect=1)
    assert Path("/etc/debian_version").read_bytes() == before
    log.unlink()
    site("start", "site", "--detach")
