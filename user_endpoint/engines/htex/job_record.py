"""Which scheduler jobs this user endpoint has started, on disk, so that none outlives it for long.

Where the user endpoint is killed, its blocks would wait in the scheduler's queue, or idle until their nodes give
up. The next user endpoint of the same person and configuration ends them. The file is the user's own.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JobRecord:
    """The jobs of one user endpoint, by the id the scheduler gave them. Errors of the disk are not worth failing."""

    def __init__(self, path: Path, provider: str) -> None:
        self._path, self._provider = path, provider
        self._new = path.with_suffix(".new")

    def left_over(self) -> dict[str, dict[str, str]]:
        """Return the jobs that an earlier process recorded with the same provider and did not end.

        With each comes the data that the provider needs to end it. The unfinished record of a process that was killed
        while it wrote is removed.
        """
        self._remove_unfinished()
        try:
            found = json.loads(self._path.read_text())
            jobs = found["jobs"] if found["provider"] == self._provider else {}
            if isinstance(jobs, list):  # as versions before wrote them
                return {job: {} for job in jobs if isinstance(job, str)}
            return {str(job): _texts(details) for job, details in jobs.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}

    def write(self, jobs: Mapping[str, Mapping[str, str]]) -> None:
        """Record that these jobs exist, and no others."""
        try:
            with self._new.open("w") as file:
                json.dump({"provider": self._provider, "jobs": jobs}, file)
                file.flush()
                os.fsync(file.fileno())
            self._new.replace(self._path)
        except OSError:
            self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        with contextlib.suppress(OSError):
            self._new.unlink()


def _texts(details: Any) -> dict[str, str]:
    return {name: value for name, value in details.items() if isinstance(value, str)}
