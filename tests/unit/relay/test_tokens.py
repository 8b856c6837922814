"""Tokens: their form, their stored form, and how long an answer is kept."""

from __future__ import annotations

import hashlib

import pytest

from mep_wire.errors import TokenUnknown
from mep_wire.identity import Identity
from relay.auth.tokens import CACHE_S, CACHE_SIZE, TokenAuth, new_token, token_hash
from relay.store.records import TokenRecord
from relay.store.sqlite import SqliteStore

ALICES_TOKEN = TokenRecord(token_id="t", account_id="account", identity_id="identity", created_at=1.0)
ALICE = ALICES_TOKEN.caller


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> SqliteStore:
    made = SqliteStore(None)
    made.submit(lambda tx: tx.add_account("account", Identity(id="identity", username="alice"))).result()
    made.submit(lambda tx: tx.add_token(token_hash("secret"), ALICES_TOKEN)).result()
    return made


def test_tokens_are_long_random_and_recognizable() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith("mep_") and len(token) == 47 for token in tokens)


def test_what_is_stored_is_a_hash() -> None:
    assert token_hash("secret") == hashlib.sha256(b"secret").digest()


def test_a_bearer_token_leads_to_its_person(store: SqliteStore) -> None:
    auth = TokenAuth(store)
    assert auth.caller("Bearer secret") == ALICE
    assert auth.caller("bearer secret") == ALICE


@pytest.mark.parametrize(
    "header", ["", "secret", "Basic secret", "Bearer", "Bearer ", "Bearer other", "Bearer secret "]
)
def test_anything_else_is_unknown(store: SqliteStore, header: str) -> None:
    with pytest.raises(TokenUnknown):
        TokenAuth(store).caller(header)


def test_a_revoked_token_works_for_a_moment_only(store: SqliteStore) -> None:
    clock = Clock()
    auth = TokenAuth(store, clock)
    auth.caller("Bearer secret")
    store.submit(lambda tx: tx.remove_tokens("identity")).result()
    clock.now += CACHE_S / 2
    assert auth.caller("Bearer secret") == ALICE
    clock.now += CACHE_S
    with pytest.raises(TokenUnknown):
        auth.caller("Bearer secret")


def test_the_memory_of_answers_is_bounded(store: SqliteStore) -> None:
    auth = TokenAuth(store)
    auth._known = {str(number): (0.0, ALICE) for number in range(CACHE_SIZE)}
    auth.caller("Bearer secret")
    assert len(auth._known) == 1
