"""Rendering in a child that exits: jinja2, YAML and JSON schema leave no memory behind, and a template that
does not end can be killed.

It starts as early as possible, since rendering takes longest. On its pipe it says when it has the names of the
account's groups, and then gives its answer. A directory that is slow to name groups has as long as the whole start
may take; the deadline here is for the template. Called by startup.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from mep_wire.bundle import decode_bundle
from mep_wire.errors import MepError
from mep_wire.start_request import VerifiedStart, decode_start, decode_verified_start
from user_endpoint.group_names import with_group_names
from user_endpoint.keeper_report import StartFailure
from user_endpoint.process_exit import run_and_exit
from user_endpoint.settings import UepSettings, decode_settings
from user_endpoint.shortage import interrupted, killed, reason_of

DEADLINE_S = 20.0
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_MISCONFIGURED = "The endpoint is misconfigured; your request is not at fault. Tell its administrators."
_NAMED = b"N"
"""Precedes the answer, once the groups have their names."""
_account_decoder = msgspec.json.Decoder(dict[str, Any])
_failure_decoder = msgspec.msgpack.Decoder(tuple[str, str, str])


class Rendering:
    """A child that renders; `result` waits for it."""

    def __init__(self, start: bytes, bundle: bytes, account: bytes = b"", *, close: Sequence[int]) -> None:
        """`account` is the keeper's document on the local account; empty if there is none."""
        self._read, write = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            for descriptor in (self._read, *close):
                os.close(descriptor)
            run_and_exit(
                lambda: _child(write, start, bundle, account),
                lambda detail: _write_all(write, _failure("ENDPOINT_MISCONFIGURED", _MISCONFIGURED, detail)),
            )
        os.close(write)

    def fileno(self) -> int:
        """The pipe's reading end, which other children must not keep."""
        return self._read

    def result(self) -> UepSettings:
        """Return the settings. Raises StartFailure with the renderer's reason."""
        try:
            data = self._answer()
        finally:
            os.close(self._read)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)  # it has answered, or has had its time
            _, status = os.waitpid(self._pid, 0)
        try:
            if data[:1] == b"S":
                return decode_settings(data[1:])
            code, public, detail = _failure_decoder.decode(data[1:])
        except msgspec.MsgspecError as error:
            if failure := killed("the process that reads the configuration", status):
                raise failure from None
            raise StartFailure("ENDPOINT_MISCONFIGURED", _MISCONFIGURED, f"rendering gave no answer: {error}") from None
        raise StartFailure(code, public, detail)

    def _answer(self) -> bytes:
        parts: list[bytes] = []
        ends_at = float("inf")
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        while sum(map(len, parts)) <= _MAX_ANSWER_BYTES:
            left = ends_at - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000 if parts else None):
                raise StartFailure("ENDPOINT_MISCONFIGURED", _MISCONFIGURED, f"rendering took over {DEADLINE_S:g} s")
            part = os.read(self._read, 1 << 16)
            if not part:
                break
            if not parts:
                ends_at = time.monotonic() + DEADLINE_S
            parts.append(part)
        return b"".join(parts).removeprefix(_NAMED)


def _child(write: int, start: bytes, bundle: bytes, account: bytes) -> int:
    gc.disable()
    _write_all(write, _render(start, bundle, account, lambda: _write_all(write, _NAMED)))
    return 0


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _failure(code: str, public: str, detail: str) -> bytes:
    return b"E" + msgspec.msgpack.encode((code, public, detail))


def _mapped_identity(verified: VerifiedStart, local: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mapped_identity`: the relay's identity as the mapper gives it, with the account as this host's NSS does.

    The mapper's words about the account give way to the keeper's.
    """
    known = verified.mapped_identity
    return {**known, "local": {**known.get("local", {}), **local}}


def _render(start: bytes, bundle: bytes, account: bytes, named: Callable[[], None]) -> bytes:
    try:
        local = with_group_names(_account_decoder.decode(account)) if account else {}
        named()
        from user_endpoint.render import render_settings  # the parent never pays for these

        verified = decode_verified_start(start)
        document = decode_bundle(bundle)
        settings = render_settings(document, decode_start(verified.request), _mapped_identity(verified, local))
    except MepError as error:
        return _failure(error.code, error.text, error.detail)
    except (MemoryError, OSError) as error:
        if not (reason := reason_of(error)):
            raise
        failure = interrupted(reason, repr(error))
        return _failure(failure.code, failure.public, failure.detail)
    return b"S" + msgspec.msgpack.encode(settings)
