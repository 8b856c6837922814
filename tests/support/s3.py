"""An S3-compatible storage for tests: moto's server, a process of its own on a free port."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.relay import EXTRAS
from tests.support.slapd import free_port
from tests.support.waiting import until

KEY_ID, SECRET, REGION = "test", "correct-horse", "us-east-1"


class Storage:
    """One server with one bucket. `stop` and `start` may be repeated; a start forgets everything but the bucket."""

    def __init__(self, log: Path) -> None:
        self.port, self._log = free_port(), log
        self.bucket = "relay"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and make the bucket."""
        code = f"import sys; sys.path.append({EXTRAS!r}); from moto.server import main; main()"
        command = [sys.executable, "-P", "-c", code, "-H", "127.0.0.1", "-p", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "HOME": "/nonexistent"}
            )
        until("moto", self._answers, unready=(BotoCoreError, ClientError), details=self._log.read_text)

    def _answers(self) -> bool:
        self.client.create_bucket(Bucket=self.bucket)
        return True

    @property
    def client(self) -> object:
        """A client of boto3."""
        return boto3.client(
            "s3", endpoint_url=self.url, region_name=REGION, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET
        )

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def storage() -> Iterator[Storage]:
    """A storage for the length of a `with` block."""
    with tempfile.TemporaryDirectory() as directory:
        made = Storage(Path(directory, "log"))
        made.start()
        try:
            yield made
        finally:
            made.stop()
