"""A real PostgreSQL server for tests: its own directory, a throw-away account, a free port, and an end.

PostgreSQL refuses to run as root, so as root the server gets an account of its own. Each test makes a database.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.support import accounts
from tests.support.slapd import free_port
from tests.support.waiting import until

_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))
_SETTINGS = """
listen_addresses = '127.0.0.1'
max_connections = 60
shared_buffers = 32MB
fsync = off
autovacuum_naptime = 10s
"""
"""No test loses power, so without fsync all is as before, and quicker."""


class Postgres:
    """One server. `start` and `stop` may be repeated; port and databases stay. A context manager."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        self._accounts = contextlib.ExitStack()
        self._as: dict[str, Any] = {}
        self.port, self.password = free_port(), secrets.token_hex(16)
        self.data = directory / "data"
        if os.geteuid() == 0:
            made = self._accounts.enter_context(accounts.account(home=False))
            os.chown(directory, made.uid, made.gid)
            self._as = {"user": made.uid, "group": made.gid, "extra_groups": []}
        secret = directory / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        words = ["-D", self.data, "-U", "mep", "--auth=scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "-N"]
        self._run("initdb", *words, "--locale=C.UTF-8")
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(f"{_SETTINGS}port = {self.port}\nunix_socket_directories = '{directory}'\n{settings}")
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "log"

    def _run(self, program: str, *words: str | Path) -> None:
        subprocess.run([_BIN / program, *words], check=True, capture_output=True, cwd="/", timeout=120, **self._as)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        self._accounts.close()

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._spawn()
        until("PostgreSQL", self._answers, unready=(psycopg.Error,), details=self._log.read_text)

    def _spawn(self) -> None:
        with self._log.open("ab") as log:
            command = [_BIN / "postgres", "-D", self.data]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._as)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:  # some of a killed one's are still there
            self._spawn()
        self.do("SELECT 1")
        return True

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it: SIGINT as an administrator would, SIGQUIT without tidying, SIGKILL as a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def url(self, database: str, port: int = 0) -> str:
        """Return the address of a database, with the password."""
        return f"postgresql://mep:{self.password}@127.0.0.1:{port or self.port}/{database}"

    def do(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run a statement as the server's administrator; return the rows."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]  # the tests' own text
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self, options: str = "") -> Iterator[str]:
        """A new database for the length of a `with` block: its address."""
        name = "t" + secrets.token_hex(6)
        self.do(f"CREATE DATABASE {name} {options}")
        try:
            yield self.url(name)
        finally:
            if self._process is not None:
                self.do(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def postgres(settings: str = "") -> Iterator[Postgres]:
    """A server for the length of a `with` block."""
    directory = Path(tempfile.mkdtemp(prefix="mep-postgres-"))
    try:
        with Postgres(directory, settings) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)
