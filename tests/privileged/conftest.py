"""Shared by the tests of root's code."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.accounts import LocalAccount, account
from tests.support.cli import Cli, open_directory
from tests.support.pam import Site
from tests.support.registrar import TOKEN, Registrar


@pytest.fixture(scope="module")
def alice() -> Iterator[LocalAccount]:
    """An account that the tests of a module share."""
    with account() as made:
        yield made


@pytest.fixture
def site() -> Iterator[Site]:
    """A PAM service of the test's own, and scripts."""
    made = Site()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def registrar() -> Iterator[Registrar]:
    server = Registrar()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mep() -> Iterator[Cli]:
    with open_directory() as directory:
        token = directory / "token"
        token.write_text(TOKEN + "\n")
        token.chmod(0o600)
        yield Cli(directory)
