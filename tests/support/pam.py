"""Real PAM services for tests: a file in /etc/pam.d with a unique name, removed afterwards."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from mep.boundary.resolved_config import Pam
from tests.support.accounts import unique_name
from tests.support.monitor import MonitorRun, Puppet, running_monitor

SERVICES = pathlib.Path("/etc/pam.d")
PERMIT = ["auth required pam_permit.so", "account required pam_permit.so", "session required pam_permit.so"]


class Site:
    """A directory of root's for the files that modules read, and a monitor that uses a private service."""

    def __init__(self) -> None:
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="meptest-pam-", dir="/tmp"))
        self.root.chmod(0o755)
        self.service = unique_name()
        self.record = self.root / "record"

    def write(self, name: str, text: str, mode: int = 0o644) -> pathlib.Path:
        """Write a file that modules may name."""
        path = self.root / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def script(self, name: str, body: str) -> pathlib.Path:
        """Write an executable shell script."""
        return self.write(name, f"#!/bin/sh\n{body}\n", 0o755)

    def recorder(self) -> pathlib.Path:
        """A script that records who calls it for what, to be run by pam_exec."""
        return self.script("recorder", f'echo "$PAM_TYPE $PAM_USER $PAM_SERVICE $(id -u)" >> {self.record}')

    def recorded(self) -> list[str]:
        """The first word of each line that the recorder wrote: PAM's type."""
        return [line.split()[0] for line in self.record.read_text().splitlines()] if self.record.exists() else []

    def define(self, *lines: str) -> Pam:
        """Write the service: `lines`, then modules that permit everything."""
        (SERVICES / self.service).write_text("\n".join([*lines, *PERMIT]) + "\n")
        return Pam(enable=True, service_name=self.service)

    def close(self) -> None:
        """Remove service and files."""
        (SERVICES / self.service).unlink(missing_ok=True)
        shutil.rmtree(self.root)


@contextlib.contextmanager
def pam_monitor(site: Site, *lines: str, **options: Any) -> Iterator[tuple[MonitorRun, Puppet, Puppet]]:
    """A running monitor. Its user endpoints get a session of a PAM service with these `lines`."""
    with running_monitor(pam=site.define(*lines), **options) as running:
        yield running
