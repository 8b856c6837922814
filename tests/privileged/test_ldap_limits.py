"""LDAP mapping with servers that are slow, loud or elsewhere, and with files and answers that grow old."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from identity import loader
from identity.chain import Chain
from identity.concurrency_limits import MAX_AT_ONE
from identity.errors import AmbiguousMapping, MappingFileInvalid, NameRefused, NoMapping, SourceBusy, SourceUnavailable
from identity.reloader import SETTLE_S, Reloader
from tests.support import raw_ldap
from tests.support.slapd import READER, READER_PASSWORD, SUFFIX, Authority, Slapd, group, person, referral, tree

GENERAL = {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.edu"}
MANY = tuple(f"member-with-a-rather-long-name-{i:05}" for i in range(6000))
LDIF = (
    tree()
    + person("alice", "alice@example.edu")
    + person("bob", "bob@example.edu")
    + person("agent", "agent@example.edu", unit="closed")
    + person("carol", "carol@example.edu", unit="partial")
    + referral("elsewhere", "ldap://other.example.org", unit="partial")
    + group("everybody", members=("alice", *MANY))
)
BOUND_S = 30.0
"""An operation with a deadline of a few seconds ends within this bound, however busy the host is.

Without the deadline it would take at least twice as long.
"""


def who(username: str, **fields: str) -> dict[str, str]:
    return {"id": f"id of {username}", "username": username, "status": "used", **fields}


class Clock:
    """Seconds that the test counts."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Slapd]:
    with Slapd(tmp_path_factory.mktemp("slapd") / "main", LDIF, authority) as server:
        yield server


Write = Callable[..., pathlib.Path]


@pytest.fixture
def write(tmp_path: pathlib.Path, slapd: Slapd, authority: Authority) -> Write:
    """A writer of a mapping file with one LDAP document, with defaults that work."""

    def make(*others: dict[str, Any], **keys: Any) -> pathlib.Path:
        document = {
            "DATA_TYPE": "ldap_identity_mapping#1.0.0", "servers": [slapd.ldaps], "ca_file": str(authority.file),
            "base": f"ou=people,{SUFFIX}", "filter": "(mail={username})", "operation_timeout_s": 5, **keys,
        }  # fmt: skip
        path = tmp_path / "identity_mapping.json"
        path.write_text(json.dumps([{k: v for k, v in document.items() if v is not None}, *others]))
        return path

    return make


Loader = Callable[..., Chain]


@pytest.fixture
def load(write: Write, clock: Clock) -> Iterator[Loader]:
    """A loader of such a file that closes each chain it loaded."""
    loaded: list[Chain] = []

    def make(*others: dict[str, Any], **keys: Any) -> Chain:
        loaded.append(loader.load(write(*others, **keys), clock=clock))
        return loaded[-1]

    yield make
    for chain in loaded:
        chain.close()


# --- deadlines and sizes ------------------------------------------------------------------------------


def plain(port: int, **keys: Any) -> dict[str, Any]:
    return {"servers": [f"ldap://127.0.0.1:{port}"], "start_tls": False, "ca_file": None, **keys}


def fails_in_time(chain: Chain, reason: str, *identities: dict[str, str]) -> None:
    began = time.monotonic()
    with pytest.raises(SourceUnavailable, match=reason):
        chain.map(identities or [who("alice@example.edu")])
    assert time.monotonic() - began < BOUND_S


def test_a_server_that_drips_its_answer_costs_one_deadline(load: Loader) -> None:
    with raw_ldap.serve(lambda connection, _: raw_ldap.drip(connection)) as port:
        fails_in_time(load(GENERAL, **plain(port, operation_timeout_s=1)), "timed out|in time")


def test_a_server_that_drips_from_the_first_byte_on(load: Loader) -> None:
    with raw_ldap.serve(lambda *_: None, on_connect=raw_ldap.drip) as port:
        fails_in_time(load(**plain(port, operation_timeout_s=1)), "timed out|in time")


def test_a_handshake_that_drips(load: Loader) -> None:
    def drip(connection: socket.socket) -> None:
        raw_ldap.drip(connection, b"\x16\x03\x03\x40\x00" + bytes(600))

    with raw_ldap.serve(lambda *_: None, on_connect=drip) as port:
        fails_in_time(load(servers=[f"ldaps://127.0.0.1:{port}"], connect_timeout_s=1), "timed out")


def test_all_linked_identities_of_a_person_have_one_deadline(load: Loader) -> None:
    asked = []

    def nobody_slowly(connection: socket.socket, number: int) -> None:
        asked.append(number)
        time.sleep(1)
        connection.sendall(raw_ldap.done(number, 0x65))

    linked = [who(f"alice{i}@example.edu") for i in range(64)]
    with raw_ldap.serve(nobody_slowly) as port:
        fails_in_time(load(GENERAL, **plain(port, timeout_s=3)), "within 3 s|timed out|in time", *linked)
        assert 1 < len(asked) < 10


def test_all_servers_together_have_one_deadline(load: Loader) -> None:
    def never(_connection: socket.socket, _number: int) -> None:
        time.sleep(120)

    with raw_ldap.serve(never) as port:
        servers = [f"ldap://127.0.0.1:{port}"] * 40
        keys = plain(port, operation_timeout_s=2, timeout_s=5)
        fails_in_time(load(**keys | {"servers": servers}), "within 5 s")


def test_an_answer_that_is_too_large_is_a_failure_at_once(load: Loader) -> None:
    sent = []

    def flood(connection: socket.socket, _number: int) -> None:
        connection.sendall(b"\x30\x84\x7f\xff\xff\xff")
        sent.extend(connection.send(bytes(65536)) for _ in range(20_000))

    with raw_ldap.serve(flood) as port:
        chain = load(**plain(port, operation_timeout_s=60, timeout_s=60))
        with pytest.raises(SourceUnavailable, match="more than 262144 bytes"):
            chain.map([who("alice@example.edu")])
        assert sum(sent) < 200_000_000


def test_a_group_of_many_members_is_not_read(load: Loader) -> None:
    chain = load(required_group=f"cn=everybody,ou=groups,{SUFFIX}")
    assert chain.map([who("alice@example.edu")]).name == "alice"
    with pytest.raises(NoMapping):
        chain.map([who("bob@example.edu")])


def test_people_whose_directory_hangs_hold_up_nobody_else(write: Write) -> None:
    hang = threading.Event()

    def until_let_go(connection: socket.socket, number: int) -> None:
        hang.wait(60)
        connection.sendall(raw_ldap.done(number, 0x65))

    with raw_ldap.serve(until_let_go) as port, concurrent.futures.ThreadPoolExecutor(40) as pool:
        path = write(GENERAL, **plain(port, max_connections=4, operation_timeout_s=60, timeout_s=60))
        path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
        chain = loader.load(path)
        asked = [pool.submit(chain.map, [who(f"person{i}@elsewhere.example")]) for i in range(40)]
        done = list(itertools.islice(concurrent.futures.as_completed(asked, timeout=50), 40 - MAX_AT_ONE))
        assert {type(one.exception()) for one in done} == {SourceBusy}
        assert chain.map([who("alice@example.edu")]).name == "alice"
        hang.set()
        assert {type(one.exception()) for one in asked if one not in done} == {NoMapping}


# --- references -----------------------------------------------------------------------------------------


def test_a_search_that_finds_only_references_elsewhere_is_a_failure(load: Loader) -> None:
    partial = f"ou=partial,{SUFFIX}"
    with pytest.raises(SourceUnavailable, match=r"references to other servers \(ldap://other\.example\.org.*ignore"):
        load(GENERAL, base=partial).map([who("bob@example.edu")])
    with pytest.raises(NoMapping):
        load(base=partial, references="ignore").map([who("bob@example.edu")])
    assert load(GENERAL, base=partial, references="ignore").map([who("bob@example.edu")]).name == "bob"


@pytest.mark.parametrize("references", ["fail", "ignore"])
def test_an_entry_beside_references_counts(load: Loader, references: str) -> None:
    chain = load(base=f"ou=partial,{SUFFIX}", references=references)
    assert chain.map([who("carol@example.edu")]).name == "carol"


@pytest.mark.parametrize("references", ["fail", "ignore"])
def test_a_base_that_is_elsewhere_is_a_failure(load: Loader, references: str) -> None:
    chain = load(GENERAL, base=f"cn=elsewhere,ou=partial,{SUFFIX}", references=references)
    with pytest.raises(SourceUnavailable, match="referral"):
        chain.map([who("bob@example.edu")])


# --- cached answers ---------------------------------------------------------------------------------------


def test_found_and_not_found_are_forgotten_each_in_its_time(
    load: Loader, clock: Clock, authority: Authority, tmp_path: pathlib.Path
) -> None:
    with Slapd(tmp_path / "server", LDIF, authority) as server:
        chain = load(servers=[server.ldaps], cache_s=300, negative_cache_s=30)
        assert chain.map([who("alice@example.edu")]).name == "alice"
        with pytest.raises(NoMapping):
            chain.map([who("frank@example.edu")])
        server.modify(person("frank", "frank@example.edu"))
        clock.now += 29.9
        with pytest.raises(NoMapping):
            chain.map([who("frank@example.edu")])
        clock.now += 0.2
        assert chain.map([who("frank@example.edu")]).name == "frank"
        server.stop()
        clock.now += 269.8
        assert chain.map([who("alice@example.edu")]).name == "alice"
        clock.now += 0.2
        with pytest.raises(SourceUnavailable):
            chain.map([who("alice@example.edu")])
        assert chain.map([who("frank@example.edu")]).name == "frank"
        clock.now += 30
        with pytest.raises(SourceUnavailable):
            chain.map([who("frank@example.edu")])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (person("alice2", "alice@example.edu"), AmbiguousMapping),
        ("add: uid\nuid: second", AmbiguousMapping),
        ("replace: uid\nuid: ../root", NameRefused),
        ("delete: uid", NameRefused),
    ],
)
def test_what_a_recheck_refuses_is_not_remembered_from_before(
    load: Loader, authority: Authority, tmp_path: pathlib.Path, change: str, error: type[Exception]
) -> None:
    with Slapd(tmp_path / "server", LDIF, authority) as server:
        chain = load(servers=[server.ldaps])
        assert chain.map([who("alice@example.edu")]).name == "alice"
        if change.startswith("dn:"):
            server.modify(change)
        else:
            server.change(f"dn: cn=alice,ou=people,{SUFFIX}\nchangetype: modify\n{change}\n")
        assert chain.map([who("alice@example.edu")]).name == "alice"
        with pytest.raises(error):
            chain.map([who("alice@example.edu")], certain=True)
        with pytest.raises(error):
            chain.map([who("alice@example.edu")])


# --- files that change ------------------------------------------------------------------------------------


def follow(path: pathlib.Path, clock: Clock) -> Reloader:
    return Reloader(path, clock=clock, sleep=lambda _: None)


def settle(reloader: Reloader, clock: Clock) -> None:
    reloader.check()
    clock.now += SETTLE_S
    reloader.check()


def agent(reloader: Reloader) -> str:
    return reloader.chain.map([who("agent@example.edu")]).name


def secret(path: pathlib.Path, text: str | bytes) -> pathlib.Path:
    path.touch(mode=0o600)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_changed_password_is_used(write: Write, clock: Clock, tmp_path: pathlib.Path) -> None:
    password = secret(tmp_path / "password", "wrong")
    path = write(base=f"ou=closed,{SUFFIX}", bind_dn=READER, password_file=str(password), cache_s=0)
    reloader = follow(path, clock)
    with pytest.raises(SourceUnavailable, match="invalidCredentials"):
        agent(reloader)
    secret(password, READER_PASSWORD)
    settle(reloader, clock)
    assert agent(reloader) == "agent"
    secret(password, "wrong again")
    settle(reloader, clock)
    with pytest.raises(SourceUnavailable, match="invalidCredentials"):
        agent(reloader)


def test_a_changed_authority_is_used(write: Write, clock: Clock, authority: Authority, tmp_path: pathlib.Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    ours = tmp_path / "ours.pem"
    ours.write_bytes(stranger.file.read_bytes())
    reloader = follow(write(ca_file=str(ours), cache_s=0), clock)
    with pytest.raises(SourceUnavailable, match="its certificate is not accepted"):
        reloader.chain.map([who("alice@example.edu")])
    ours.write_bytes(authority.file.read_bytes())
    settle(reloader, clock)
    assert reloader.chain.map([who("alice@example.edu")]).name == "alice"
    ours.write_bytes(stranger.file.read_bytes())
    settle(reloader, clock)
    with pytest.raises(SourceUnavailable, match="its certificate is not accepted"):
        reloader.chain.map([who("alice@example.edu")])


def test_a_changed_client_certificate_and_key_are_used(
    write: Write, clock: Clock, authority: Authority, tmp_path: pathlib.Path
) -> None:
    right, other = authority.issue("mapper"), authority.issue("other")
    mine = tmp_path / "mine.crt", secret(tmp_path / "mine.key", "")
    for target, source in zip(mine, other, strict=True):
        target.write_bytes(source.read_bytes())
    path = write(
        base=f"ou=closed,{SUFFIX}", sasl="external", cache_s=0,
        client_certificate_file=str(mine[0]), client_key_file=str(mine[1]),
    )  # fmt: skip
    reloader = follow(path, clock)
    with pytest.raises(SourceUnavailable, match="noSuchObject"):  # "other" may not read it
        agent(reloader)
    mine[0].write_bytes(right[0].read_bytes())
    settle(reloader, clock)
    assert "client_certificate_file" in reloader.status.problem, "the key is still the other one's"
    mine[1].write_bytes(right[1].read_bytes())
    settle(reloader, clock)
    assert reloader.status.problem == ""
    assert agent(reloader) == "agent"


# --- refused at load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "({name}=x)",
        "({name}{email})",
        "(&{name})",
        "{name}",
        "(mail=x){name}",
        "(&(mail=x){name}(uid=y))",
        "(cn:{name}:=x)",
        "({name}:dn:=x)",
        "(cn:{name}:={email})",
        "(&(mail={email})({name}=x))",
        "(mail=\\2{name})",
    ],
)
def test_a_field_of_the_identity_stands_only_in_a_value(load: Loader, template: str) -> None:
    with pytest.raises(MappingFileInvalid, match="document 0: filter"):
        load(filter=template)


@pytest.mark.parametrize(
    "template",
    [
        "(mail={email})",
        "(mail=x{email}y)",
        "(&(a=b)(|(mail={email})(cn={name}{email})))",
        "(cn:caseExactMatch:={name})",
    ],
)
def test_a_field_in_a_value_is_fine(load: Loader, template: str) -> None:
    load(filter=template)
