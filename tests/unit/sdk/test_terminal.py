"""A relay's texts reach the terminal of a script without their control characters."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator

import pytest

from mep_sdk import Client, Executor, version_mismatch
from mep_sdk.result_stream import ResultListener
from mep_sdk.settings import ClientSettings

ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe\x7f"
RAW = set("\x1b\x07\x9b\u202e\x7f")
GROUP = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def terminal() -> Iterator[io.StringIO]:
    """The output of the SDK's log where a script has set up Python's logging in the plainest way."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    log = logging.getLogger("mep_sdk")
    log.addHandler(handler)
    yield written
    log.removeHandler(handler)


def fail(*_: object) -> None:
    raise ValueError(f"an answer with {ATTACK}")


def test_a_version_that_is_none_is_not_shown() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        version_mismatch.warn_of_python(GROUP, f"3.{ATTACK}")
        version_mismatch.warn_of_python(GROUP, f"{ATTACK}.1")
        version_mismatch.warn_of_python(f"id{ATTACK}", "3.99.1")
    (one,) = caught
    assert not RAW & set(str(one.message))
    assert "Python 3.99" in str(one.message)


def test_a_failure_of_the_thread_that_sends(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(GROUP, client=Client("http://127.0.0.1:9", "token"))
    monkeypatch.setattr(executor._session, "_send", fail)
    error = executor.submit(pow, 2, 3).exception(20)
    executor.shutdown(wait=False)
    assert "Sending the task failed: ValueError" in str(error)
    assert "Traceback" in terminal.getvalue()
    assert not RAW & set(terminal.getvalue() + str(error))


def test_a_failure_of_the_thread_that_reads(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Exception] = []
    listener = ResultListener(
        ClientSettings("http://127.0.0.1:9", "token"), GROUP, fail, lambda _group, error: said.append(error)
    )
    monkeypatch.setattr(listener, "_stream_once", fail)
    listener.run()
    assert "Traceback" in terminal.getvalue()
    assert not RAW & set(terminal.getvalue() + str(said[0]))
