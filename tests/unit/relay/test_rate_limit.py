"""The rate of one person's requests and tasks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mep_wire.errors import RateLimited
from relay import rate_limit
from relay.api.app import App
from relay.rate_limit import BURST_S, Rate


class Scene:
    def __init__(self, per_s: float) -> None:
        self.now = 1000.0
        self.rate = Rate(per_s, "requests", lambda: self.now)

    def refused(self, account_id: str = "alice", amount: int = 1) -> int:
        """Return the seconds that a refusal asks for."""
        with pytest.raises(RateLimited) as caught:
            self.rate.spend(account_id, amount)
        wait_s = caught.value.fields["wait_s"]
        assert isinstance(wait_s, int)
        return wait_s


def test_ten_seconds_worth_may_be_used_at_once_and_then_the_average_holds() -> None:
    scene = Scene(2.0)
    for _ in range(int(2 * BURST_S) + 1):
        scene.rate.spend("alice")
    assert scene.refused() == 1
    scene.rate.spend("bob")
    scene.now += 1.0
    for _ in range(2):
        scene.rate.spend("alice")
    scene.refused()


def test_a_large_submission_is_taken_and_paid_for_by_waiting() -> None:
    scene = Scene(100.0)
    scene.rate.spend("alice", 10_000)
    assert scene.refused(amount=1) == 90
    scene.now += 89.0
    assert scene.refused(amount=1) == 1
    scene.now += 1.0
    scene.rate.spend("alice", 10_000)


def test_no_limit_remembers_nobody() -> None:
    scene = Scene(0.0)
    for _ in range(1000):
        scene.rate.spend("alice", 1000)
    assert scene.rate._left == {}


def test_people_remembered_are_bounded_and_debts_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_REMEMBERED", 10)
    scene = Scene(1.0)
    scene.rate.spend("debtor", 1000)
    for number in range(100):
        scene.rate.spend(str(number))
    assert len(scene.rate._left) <= 11
    scene.refused("debtor")


@pytest.mark.parametrize(
    ("address", "together"),
    [("2001:db8::{}", True), ("2001:db8:0:{}::1", False), ("192.0.2.{}", False), ("::ffff:192.0.2.{}", False)],
)
def test_a_peer_with_many_addresses_has_one_rate(address: str, *, together: bool) -> None:
    app = App(SimpleNamespace(strangers=Rate(1.0, "logins", lambda: 0.0)))  # type: ignore[arg-type]
    statuses: list[int] = []

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def ask(number: int) -> None:
        client = (address.format(number), 1)
        scope = {"type": "http", "method": "GET", "path": "/device", "headers": [], "client": client}
        await app(scope, None, send)  # type: ignore[arg-type]

    for number in range(1, 21):
        asyncio.run(ask(number))
    assert (429 in statuses) is together
    assert statuses[0] == 200
