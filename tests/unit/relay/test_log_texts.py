"""What the relay logs about its disk and its clients says which."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import socket

import pytest

from mep_wire.errors import RelayUnavailable
from mep_wire.identity import Identity
from relay import log
from relay.store.sqlite import SqliteStore


def test_a_full_disk_is_named(tmp_path: pathlib.Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    pages = store._write.execute("PRAGMA page_count").fetchone()[0]
    store._write.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own "database or disk is full"
    failure: BaseException | None = None
    for number in range(2000):
        person = Identity(id=f"i{number}", username="x" * 500)
        account = f"account-{number}"
        failure = store.submit(lambda tx, a=account, p=person: tx.add_account(a, p)).exception()  # type: ignore[misc]
        if failure is not None:
            break
    store.close()
    assert isinstance(failure, RelayUnavailable)
    assert failure.detail == f"OperationalError: database or disk is full ({tmp_path / 'relay.db'})"


def test_a_client_that_has_gone_is_no_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """asyncio warns at the fifth write to a connection that has ended."""
    root, asyncios = logging.getLogger(), logging.getLogger("asyncio")
    before, filters, level = root.handlers[:], asyncios.filters[:], root.level
    log.set_up()

    async def write_on() -> None:
        ours, theirs = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ours)
        theirs.close()
        for _ in range(20):
            writer.transport.write(b"x" * 65536)
            await asyncio.sleep(0)
        writer.close()

    try:
        asyncio.run(write_on())
        asyncios.warning("something else")
        root.handlers[0].flush()
    finally:
        root.handlers[:], asyncios.filters[:] = before, filters
        root.setLevel(level)
    said = capsys.readouterr().err
    assert "something else" in said
    assert "raised exception" not in said
