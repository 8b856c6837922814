"""Rotation of the three logs of a running endpoint, by the commands of etc/logrotate.d/mep."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess
from tests.support.waiting import until

SHIPPED = Path(__file__).resolve().parents[2] / "etc" / "logrotate.d" / "mep"
WAIT_S = 60
LOGS = ("endpoint.log", "audit.log", "tasks.log")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with open_directory() as directory, RelayProcess(tmp_path_factory.mktemp("relay")) as relay:
        mep = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu")})
        mep("configure", "site", "--multi-user", "--relay", relay.url)
        config = mep.path("etc", "site", "config.yaml")
        config.write_text(config.read_text() + "\naudit_tasks: true\n")
        mep("start", "site", "--detach")
        yield mep
        mep("stop", "site", "--kill")


def scripts() -> list[str]:
    """Return the shell commands that follow a rotation, as shipped."""
    return re.findall(r"postrotate\n(.*?)endscript", SHIPPED.read_text(), re.DOTALL)


def test_every_log_is_rotated() -> None:
    blocks = re.findall(r"^(/\S.*?)\{", SHIPPED.read_text(), re.MULTILINE)
    named = {Path(path).name for block in blocks for path in block.split()}
    assert named == set(LOGS)
    assert len(scripts()) == len(blocks)


@pytest.mark.parametrize("script", scripts())
def test_what_is_written_after_a_rotation_is_in_the_new_files(site: Cli, script: str) -> None:
    directory = site.path("var", "site")
    until("the log files", lambda: all((directory / name).exists() for name in LOGS))
    old = {name: directory / f"{name}.1" for name in LOGS}
    for name, aside in old.items():
        (directory / name).rename(aside)
    sizes = {name: aside.stat().st_size for name, aside in old.items()}
    command = script.replace("/run/mep", str(site.path("run", "site").parent))
    subprocess.run(["/bin/sh", "-e", "-c", command], check=True, timeout=60)
    until("the log files", lambda: all((directory / name).exists() for name in LOGS))
    until("the configuration is reloaded", lambda: "configuration reloaded" in (directory / "endpoint.log").read_text())
    until("the reload in the audit log", lambda: '"event": "reload"' in (directory / "audit.log").read_text())
    for name, aside in old.items():
        found = (directory / name).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode) & 0o007) == (0, 0)
        assert aside.stat().st_size - sizes[name] < 4096  # a line that was under way may still go there
        aside.unlink()
    held = {os.readlink(entry) for pid in processes(site) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert not [target for target in held if any(f"{name}.1" in target for name in LOGS[1:])]


def processes(site: Cli) -> list[int]:
    """Return the monitor and the manager: they write the logs that must not lose a line."""
    monitor = int(site.json("status", "site")["pid"])
    children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
    manager = [int(pid) for pid in children if b"mep.manager" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [monitor, *manager]


def test_a_monitor_that_has_ended_is_not_signalled(site: Cli, tmp_path: Path) -> None:
    """A pid that another process has by now is told from the monitor's by its start time."""
    other = tmp_path / "run" / "gone"
    other.mkdir(parents=True)
    victim = subprocess.Popen(["/bin/sleep", "600"])
    try:
        (other / "monitor.pid").write_text(f"{victim.pid} 12345\n")
        command = scripts()[0].replace("/run/mep", str(tmp_path / "run"))
        subprocess.run(["/bin/sh", "-e", "-c", command], check=True, timeout=60)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
