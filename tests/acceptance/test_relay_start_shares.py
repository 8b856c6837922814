"""Starts that hang at a site: one account's keep no other's from being asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from relay.dispatch.start_requests import MAX_UNDER_WAY
from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person


def test_one_account_has_no_more_than_half_of_the_starts_under_way(tmp_path: Path) -> None:
    with RelayProcess(tmp_path) as relay:
        alice, bob, carol = (Person(relay, name) for name in ("alice", "bob", "carol"))
        lab = FakeManager(relay, alice.token)
        lab.hello()
        for person in (alice, bob, carol):
            function = person.function()
            for number in range(MAX_UNDER_WAY):
                person.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"n": number})
        asked = Counter(str(lab.take_start()[0].identity_set) for _ in range(MAX_UNDER_WAY))
        assert len(asked) == 3, "everybody has a start under way, though none was answered"
        assert max(asked.values()) == MAX_UNDER_WAY // 2
        lab.close()
