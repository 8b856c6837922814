"""The storage quota of one person."""

from __future__ import annotations

from typing import cast

import pytest

from mep_wire.errors import StorageFull
from relay.dispatch.storage_quota import REFRESH_S, Quota
from relay.store.base import Store


class CountingStore:
    def __init__(self) -> None:
        self.sizes = {"alice": 600_000, "bob": 0}
        self.asked = 0

    def stored_bytes(self, account_id: str) -> int:
        self.asked += 1
        return self.sizes[account_id]


class Scene:
    def __init__(self, most: int = 1_000_000) -> None:
        self.now, self.store = 0.0, CountingStore()
        self.quota = Quota(cast("Store", self.store), most, lambda: self.now)


def test_a_person_over_the_limit_is_refused_with_the_numbers_and_others_are_not() -> None:
    scene = Scene()
    scene.quota.check("alice", 400_000)
    scene.quota.check("bob", 1_000_000)
    with pytest.raises(StorageFull, match=r"0\.6 MB of your 1\.0 MB") as caught:
        scene.quota.check("alice", 400_001)
    assert (caught.value.code, caught.value.http_status) == ("STORAGE_FULL", 429)


def test_the_store_is_asked_now_and_then_and_before_anybody_is_refused() -> None:
    scene = Scene()
    for _ in range(10):
        scene.quota.check("alice", 10)
        scene.quota.added("alice", 10)
    assert scene.store.asked == 1
    scene.quota.added("alice", 400_000)
    scene.quota.check("alice", 400_000)  # too much, as far as is remembered, and not by the store
    assert scene.store.asked == 2
    scene.store.sizes["alice"] = 1_000_000
    scene.quota.check("alice", 10)
    scene.now = REFRESH_S + 1
    with pytest.raises(StorageFull):
        scene.quota.check("alice", 10)


def test_no_limit_asks_for_nothing() -> None:
    scene = Scene(most=0)
    scene.quota.check("alice", 10**15)
    assert scene.store.asked == 0
