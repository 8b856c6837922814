"""A real relay process for tests: `RelayProcess(tmp_path)` starts `mep-relay serve` on free ports.

`start` waits for relay.json, not for a time. `kill` is SIGKILL and leaves the state. `start` after it restarts a
crashed relay, on the same ports, where peers and clients find it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.support.waiting import until

START_S = 60.0
EXTRAS = str(Path(psycopg.__file__).parents[1])


class RelayProcess:
    """One relay with its own state. As root it still runs as the caller: see `as_account`."""

    def __init__(self, directory: Path, *options: str, drop: bool = False) -> None:
        self.state = directory / "relay-state"
        self._options = options
        self._drop = drop
        self._ports = ["--port", "0", "--link-port", "0"]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.link_address = ""
        self.log = directory / "relay.log"

    def _command(self, *words: str) -> list[str]:
        # Tests that run as root and are not about the drop run the relay as root's own single user.
        # The service's environment lacks the extras that a site may add; that of the tests has them.
        code = f"import sys; sys.path.append({EXTRAS!r}); from relay.cli import main; "
        if os.geteuid() == 0 and not self._drop:
            code += "import relay.cli_common; relay.cli_common.become = lambda _: None; "
        return [sys.executable, "-P", "-c", code + "main()", *words, "--state", str(self.state)]

    def start(self) -> RelayProcess:
        """Start it and wait until it listens."""
        (self.state / "relay.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            command = self._command("serve", *self._ports, *self._options)
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until("the relay", self._listens, START_S, details=self.log.read_text)
        told = json.loads((self.state / "relay.json").read_text())
        self.url, self.link_address = told["url"], told["link_address"]
        self._ports = ["--port", self.url.rpartition(":")[2], "--link-port", self.link_address.rpartition(":")[2]]
        return self

    def _listens(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the relay did not start:\n{self.log.read_text()}")
        return (self.state / "relay.json").exists()

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL it; its state stays."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM it; return its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        status = self._process.wait(timeout=20)
        self._process = None
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another `mep-relay` command on the same state."""
        return subprocess.run(self._command(*words), capture_output=True, text=True, check=check, timeout=60)

    def add_user(self, username: str) -> str:
        """Add a person; return their token."""
        return self.cli("user", "add", username).stdout.strip()

    def request(
        self, method: str, path: str, token: str | None = None, body: Any = None, raw: bytes | None = None
    ) -> tuple[int, Any]:
        """Make one HTTP request with JSON; return status and decoded answer, whatever the status."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
