"""The reports of a user endpoint to its keeper: ready, failed, ended, or a notice, one datagram each.

The keeper trusts none of it. The text for the person and the text for the administrator alone are separate
lines. Called by main and the loop.
"""

from __future__ import annotations

import os

MAX_REPORT_BYTES = 4096
_MAX_PUBLIC_BYTES = 1024


class StartFailure(Exception):
    """This user endpoint cannot start. `public` may leave the host, `detail` is for the administrator."""

    def __init__(self, code: str, public: str, detail: str = "") -> None:
        self.code, self.public, self.detail = code, public, detail
        super().__init__(f"{code}: {public}" + (f" ({detail})" if detail else ""))


def _line(text: str, cap: int) -> bytes:
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat.encode("utf-8", "replace")[:cap].decode("utf-8", "ignore").encode()


class Reporter:
    """The report channel. A keeper that is gone or does not read is not waited for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The channel's descriptor: end-of-file there means that the keeper is gone."""
        return self._descriptor

    def ready(self) -> None:
        """The link is joined and the engine takes tasks."""
        self._send(b"READY")

    def failed(self, failure: StartFailure) -> None:
        """This process could not start, and ends."""
        public = _line(failure.public, _MAX_PUBLIC_BYTES)
        detail = _line(failure.detail, MAX_REPORT_BYTES - _MAX_PUBLIC_BYTES - 128)
        self._send(b"\n".join([b"FAILED", _line(failure.code, 64), public, detail]))

    def notice(self, code: str, text: str) -> None:
        """Something that the administrator must know, while this process goes on."""
        self._send(b"\n".join([b"NOTICE", _line(code, 64), _line(text, _MAX_PUBLIC_BYTES)]))

    def ended(self, code: str, text: str) -> None:
        """This process has ended in good order (`IDLE`, `STOPPED`) or with an error's code."""
        self._send(b"\n".join([b"ENDED", _line(code, 64), _line(text, _MAX_PUBLIC_BYTES)]))

    def _send(self, report: bytes) -> None:
        try:
            os.write(self._descriptor, report)
        except OSError:
            return
