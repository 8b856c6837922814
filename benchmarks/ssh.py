"""Measures `ssh user@127.0.0.1 python -c ...`, a person's way without MEP, over a separate server on a free port.

The system's own ssh service is neither used nor started. If no ssh server is installed, root installs one; for other
users this column is left out.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sitekit.accounts import Account
from sitekit.daemon import Daemon, command
from sitekit.site import Site

SSHD = Path("/usr/sbin/sshd")


def available() -> bool:
    """Return whether there is an ssh server and client. As root, install them if they are missing."""
    if not SSHD.exists() and os.geteuid() == 0 and shutil.which("apt-get"):
        installer = Path(__file__).resolve().parents[1] / "packaging" / "install.py"
        packages = ["--packages", "openssh-server", "openssh-client"]  # which starts no service
        subprocess.run([sys.executable, str(installer), *packages], stdout=sys.stderr, check=False)
    return SSHD.exists() and shutil.which("ssh") is not None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(site: Site, account: Account, *, pam: bool) -> tuple[Daemon, list[str]]:
    """Start a server that lets `account` in with a new key; return it and the ssh command line to use."""
    directory = site.root / "ssh"
    directory.mkdir()
    for name in ("host", "person"):
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name, env={})
    shutil.copy(directory / "person.pub", directory / "authorized_keys")
    (directory / "authorized_keys").chmod(0o644)
    port = _free_port()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    options = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": directory / "host",
        "AuthorizedKeysFile": directory / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "yes" if pam and os.geteuid() == 0 else "no",
        "PrintMotd": "no",
        "UseDNS": "no",
    }
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    server = Daemon(SSHD, "-D", "-e", "-f", "/dev/null", *flags, env={}, log=directory / "log", ledger=site.ledger)
    trust = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    client = ["ssh", "-F", "/dev/null", "-i", str(directory / "person"), "-p", str(port), *trust, "-o", "BatchMode=yes"]
    return server, [*client, f"{account.name}@127.0.0.1"]


def first_result_s(site: Site, account: Account, *, pam: bool, repeat: int = 7) -> float:
    """Return the median time of one command over ssh, in seconds, with the interpreter MEP uses."""
    server, client = _serve(site, account, pam=pam)
    try:
        server.wait_for("listening ssh server", lambda: True if "listening" in server.log.read_text() else None)
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            command(*client, f"{sys.prefix}/bin/python -I -c 'print(6 * 7)'", env={})
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    finally:
        server.stop()
