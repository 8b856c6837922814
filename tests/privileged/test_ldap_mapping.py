"""LDAP mapping against a real slapd: matches, refusals, how it connects, and outages of the directory."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from identity import loader
from identity.chain import Chain
from identity.errors import AmbiguousMapping, MappingFileInvalid, NameRefused, NoMapping, SourceUnavailable
from identity.ldap import directory
from tests.support.slapd import READER, READER_PASSWORD, SUFFIX, Authority, Slapd, free_port, group, person, tree

BASE = f"ou=people,{SUFFIX}"
LDIF = (
    tree()
    + person("alice", "alice@example.edu")
    + person("bob", "bob@example.edu")
    + person("root", "root@example.edu")
    + person("twin1", "twin@example.edu")
    + person("twin2", "twin@example.edu")
    + person("carol", "carol@example.edu", uids=("carol", "caz"))
    + person("dave", "dave@example.edu", uids=())
    + person("eve", "eve@example.edu", uids=("../../root",))
    + person("odd", "o'd(d)*\\5c&|!@example.edu")
    + person("agent", "agent@example.edu", unit="closed")
    + group("cluster", members=("alice",))
    + group("posix", member_uids=("bob",))
)


def who(username: str, **fields: str) -> dict[str, str]:
    return {"id": f"id of {username}", "username": username, "status": "used", **fields}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Slapd]:
    with Slapd(tmp_path_factory.mktemp("slapd") / "main", LDIF, authority) as server:
        yield server


Loader = Callable[..., Chain]


@pytest.fixture
def load(tmp_path: pathlib.Path, slapd: Slapd, authority: Authority) -> Iterator[Loader]:
    """A loader of one LDAP document with working defaults. It closes each chain it loaded."""
    loaded: list[Chain] = []

    def make(*others: dict[str, Any], **keys: Any) -> Chain:
        document = {
            "DATA_TYPE": "ldap_identity_mapping#1.0.0",
            "servers": [slapd.ldaps],
            "ca_file": str(authority.file),
            "base": BASE,
            "filter": "(&(objectClass=inetOrgPerson)(mail={username}))",
            "connect_timeout_s": 1,
            "operation_timeout_s": 1,
            **keys,
        }
        path = tmp_path / "identity_mapping.json"
        path.write_text(json.dumps([{k: v for k, v in document.items() if v is not None}, *others]))
        loaded.append(loader.load(path))
        return loaded[-1]

    yield make
    for chain in loaded:
        chain.close()


# --- matches -------------------------------------------------------------------------------------------


def test_the_entry_found_gives_the_user(load: Loader) -> None:
    user = load().map([who("nobody@example.org"), who("alice@example.edu")])
    assert (user.name, user.identity["username"]) == ("alice", "alice@example.edu")


def test_a_value_full_of_special_characters_is_found_as_it_is(load: Loader) -> None:
    assert load().map([who("o'd(d)*\\5c&|!@example.edu")]).name == "odd"


def test_nobody_found_is_no_mapping(load: Loader) -> None:
    with pytest.raises(NoMapping):
        load().map([who("mallory@example.edu")])


def test_two_linked_people_are_ambiguous(load: Loader) -> None:
    people = [who("bob@example.edu"), who("alice@example.edu")]
    with pytest.raises(AmbiguousMapping):
        load().map(people)
    assert load(ambiguous="first").map(people).name == "bob"


def test_an_answer_that_is_not_unique_is_refused_even_where_the_first_would_do(load: Loader) -> None:
    for ambiguous in ("refuse", "first"):
        with pytest.raises(AmbiguousMapping, match=r"cn=twin1.*cn=twin2"):
            load(ambiguous=ambiguous).map([who("twin@example.edu")])


def test_two_names_in_one_entry_are_refused(load: Loader) -> None:
    with pytest.raises(AmbiguousMapping, match="carol, caz"):
        load().map([who("carol@example.edu")])


def test_an_entry_without_a_name_or_with_an_impossible_one_is_refused(load: Loader) -> None:
    with pytest.raises(NameRefused, match="has no uid"):
        load().map([who("dave@example.edu")])
    with pytest.raises(NameRefused, match="portable"):
        load().map([who("eve@example.edu")])


@pytest.mark.parametrize(
    "username",
    [
        "*",
        "*)(uid=root",
        "*)(|(uid=*",
        "x)(uid=root))(|(uid=x",
        "alice*",
        "alice@example.edu)(uid=*",
        "\\2a",
        "alice\\40example.edu",
        "alice@example.edu\0",
        "(mail=alice@example.edu)",
        "alice@example.edu ",
        " alice@example.edu",
        "al\u00adice@example.edu",
        "\uff41lice@example.edu",
        "al\u0131ce@example.edu",
        "ali\u034fce@example.edu",
        "",
    ],
)
def test_nothing_in_an_identity_changes_the_filter(load: Loader, username: str) -> None:
    with pytest.raises(NoMapping):
        load().map([who(username)])


@pytest.mark.parametrize("hostile", ["*", "*)(uid=root", "a)(|(uid=root)", "\\", "\\zz", "é\u202e", "a" * 4000])
def test_hostile_values_find_nothing_in_any_field(load: Loader, hostile: str) -> None:
    chain = load(filter="(|(cn={name})(&(mail={email})(uid={organization})))")
    with pytest.raises(NoMapping):
        chain.map([who("x", name=hostile, email=hostile, organization=hostile)])


def test_an_identity_without_the_field_is_not_looked_up(load: Loader) -> None:
    explanation = load(filter="(mail={email})").explain([who("alice@example.edu")])
    assert isinstance(explanation.error, NoMapping)
    assert "no such field" in explanation.steps[0].trace[0]


def test_group_by_dn(load: Loader) -> None:
    chain = load(required_group=f"cn=cluster,ou=groups,{SUFFIX}")
    assert chain.map([who("alice@example.edu")]).name == "alice"
    with pytest.raises(NoMapping):
        chain.map([who("bob@example.edu")])
    assert "not in cn=cluster" in chain.explain([who("bob@example.edu")]).steps[0].trace[0]


def test_group_by_member_uid(load: Loader) -> None:
    chain = load(required_group=f"cn=posix,ou=groups,{SUFFIX}", group_attribute="memberUid")
    assert chain.map([who("bob@example.edu")]).name == "bob"
    with pytest.raises(NoMapping):
        chain.map([who("alice@example.edu")])


def test_a_group_or_a_base_that_does_not_exist_is_a_failure(load: Loader) -> None:
    with pytest.raises(SourceUnavailable, match="noSuchObject"):
        load(required_group=f"cn=nothing,ou=groups,{SUFFIX}").map([who("alice@example.edu")])
    with pytest.raises(SourceUnavailable, match="noSuchObject"):
        load(base=f"ou=nothing,{SUFFIX}").map([who("alice@example.edu")])


def test_scope(load: Loader) -> None:
    with pytest.raises(NoMapping):
        load(base=SUFFIX, scope="one").map([who("alice@example.edu")])
    assert load(base=SUFFIX, scope="sub").map([who("alice@example.edu")]).name == "alice"


# --- how it connects -----------------------------------------------------------------------------------


def test_start_tls(load: Loader, slapd: Slapd) -> None:
    assert load(servers=[slapd.ldap]).map([who("alice@example.edu")]).name == "alice"


def test_plain_text_only_where_the_site_says_so(load: Loader, slapd: Slapd) -> None:
    assert load(servers=[slapd.ldap], start_tls=False, ca_file=None).map([who("alice@example.edu")]).name == "alice"


def test_address_in_the_certificate(load: Loader, slapd: Slapd) -> None:
    servers = [f"ldaps://127.0.0.1:{slapd.tls_port}"]
    assert load(servers=servers).map([who("alice@example.edu")]).name == "alice"


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
def test_an_authority_that_is_not_ours_is_refused(
    load: Loader, slapd: Slapd, tmp_path: pathlib.Path, scheme: str
) -> None:
    foreign = Authority(tmp_path, "foreign")
    servers = [getattr(slapd, scheme)]
    for ca_file in (str(foreign.file), None):
        with pytest.raises(
            SourceUnavailable, match=r"its certificate is not accepted \(.*name the authority"
        ) as caught:
            load(servers=servers, ca_file=ca_file).map([who("alice@example.edu")])
        assert not {"(", "["} & set(str(caught.value).partition("name the")[2]), "no tuple of Python's"
    assert load(servers=servers, ca_file=None, verify_certificate=False).map([who("alice@example.edu")]).name == "alice"


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
def test_a_certificate_for_another_host_is_refused(
    load: Loader, authority: Authority, tmp_path: pathlib.Path, scheme: str
) -> None:
    with Slapd(tmp_path / "other", LDIF, authority, hosts=("ldap.example.org",)) as other:
        chain = load(servers=[getattr(other, scheme)])
        with pytest.raises(SourceUnavailable, match=r"(?i)host"):
            chain.map([who("alice@example.edu")])


def password_file(tmp_path: pathlib.Path, password: str) -> str:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text(password)
    return str(path)


def test_bind_with_a_password(load: Loader, slapd: Slapd, tmp_path: pathlib.Path) -> None:
    closed = {"base": f"ou=closed,{SUFFIX}", "servers": [slapd.ldap]}
    with pytest.raises(SourceUnavailable, match="noSuchObject"):
        load(**closed).map([who("agent@example.edu")])
    keys = {**closed, "bind_dn": READER, "password_file": password_file(tmp_path, READER_PASSWORD + "\n")}
    assert load(**keys).map([who("agent@example.edu")]).name == "agent"
    keys["password_file"] = password_file(tmp_path, "wrong")
    with pytest.raises(SourceUnavailable, match="invalidCredentials") as caught:
        load(**keys).map([who("agent@example.edu")])
    assert "wrong" not in str(caught.value)


def test_sasl_external_over_the_local_socket(load: Loader, slapd: Slapd) -> None:
    chain = load(servers=[slapd.ldapi], sasl="external", base=f"ou=closed,{SUFFIX}")
    assert chain.map([who("agent@example.edu")]).name == "agent"


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
def test_sasl_external_with_a_client_certificate(load: Loader, slapd: Slapd, authority: Authority, scheme: str) -> None:
    certificate, key = authority.issue("mapper")
    chain = load(
        servers=[getattr(slapd, scheme)], sasl="external", base=f"ou=closed,{SUFFIX}",
        client_certificate_file=str(certificate), client_key_file=str(key),
    )  # fmt: skip
    assert chain.map([who("agent@example.edu")]).name == "agent"


# --- outages of the directory --------------------------------------------------------------------------


def test_failover_and_the_chain_stops_when_all_are_down(
    load: Loader, slapd: Slapd, authority: Authority, tmp_path: pathlib.Path
) -> None:
    general = {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.edu"}
    with Slapd(tmp_path / "second", LDIF, authority) as second:
        chain = load(general, servers=[f"ldaps://localhost:{free_port()}", second.ldaps, slapd.ldaps], cache_s=0)
        assert chain.map([who("alice@example.edu")]).name == "alice"
        second.stop()
        assert chain.map([who("alice@example.edu")]).name == "alice"
        chain = load(general, servers=[second.ldaps])
        with pytest.raises(SourceUnavailable, match="refused"):
            chain.map([who("bob@example.edu")])
        assert load(general, servers=[second.ldaps], on_error="next").map([who("bob@example.edu")]).name == "bob"


def test_a_server_that_comes_back_is_used_again(load: Loader, authority: Authority, tmp_path: pathlib.Path) -> None:
    with Slapd(tmp_path / "shaky", LDIF, authority) as shaky:
        chain = load(servers=[shaky.ldaps], cache_s=0, negative_cache_s=0)
        assert chain.map([who("alice@example.edu")]).name == "alice"
        shaky.stop()
        with pytest.raises(SourceUnavailable):
            chain.map([who("alice@example.edu")])
        shaky.start()
        assert chain.map([who("alice@example.edu")]).name == "alice"
        shaky.stop()
        shaky.start()  # the idle connection is dead now, which goes unnoticed
        assert chain.map([who("alice@example.edu")]).name == "alice"


def test_a_server_that_hangs_costs_its_timeout_and_no_more(
    load: Loader, slapd: Slapd, authority: Authority, tmp_path: pathlib.Path
) -> None:
    with Slapd(tmp_path / "hanging", LDIF, authority) as hanging:
        chain = load(servers=[hanging.ldaps, slapd.ldaps], cache_s=0)
        assert chain.map([who("alice@example.edu")]).name == "alice"
        hanging.freeze()
        began = time.monotonic()
        assert chain.map([who("alice@example.edu")]).name == "alice"
        assert time.monotonic() - began < 30
        in_order = chain._links[0].mapper._directory._servers_in_order()
        assert str(in_order[-1]) == hanging.ldaps, "a server that hung a moment ago is asked last"
        assert chain.map([who("alice@example.edu")]).name == "alice"
        hanging.thaw()


def test_a_server_that_talks_nonsense_is_a_failure(load: Loader) -> None:
    for nonsense in (
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x05\x02\x01\x01\x61\x00",
        b"",
    ):
        with socket.create_server(("127.0.0.1", 0)) as listener, concurrent.futures.ThreadPoolExecutor() as pool:

            def answer(listener: socket.socket = listener, nonsense: bytes = nonsense) -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(nonsense)

            served = pool.submit(answer)
            chain = load(servers=[f"ldap://localhost:{listener.getsockname()[1]}"], start_tls=False)
            with pytest.raises(SourceUnavailable):
                chain.map([who("alice@example.edu")])
            served.result()


# --- caching and pooling -------------------------------------------------------------------------------


def test_answers_are_remembered_and_the_memory_can_be_bypassed(
    load: Loader, authority: Authority, tmp_path: pathlib.Path
) -> None:
    with Slapd(tmp_path / "cached", LDIF, authority) as server:
        chain = load(servers=[server.ldaps])
        assert chain.map([who("alice@example.edu")]).name == "alice"
        with pytest.raises(NoMapping):
            chain.map([who("frank@example.edu")])
        server.modify(person("frank", "frank@example.edu"))
        with pytest.raises(NoMapping):
            chain.map([who("frank@example.edu")])
        assert chain.map([who("frank@example.edu")], bypass_cache=True).name == "frank"
        assert chain.map([who("frank@example.edu")]).name == "frank"
        server.stop()
        assert chain.map([who("alice@example.edu")]).name == "alice"
        with pytest.raises(SourceUnavailable):
            chain.map([who("alice@example.edu")], bypass_cache=True)


def test_many_threads_share_few_connections(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    connect = directory.Directory._connect
    monkeypatch.setattr(
        directory.Directory,
        "_connect",
        lambda self, server, until: (opened.append(server), connect(self, server, until))[1],
    )
    chain = load(max_connections=3, cache_s=0, operation_timeout_s=10)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        people = [who(("alice", "bob")[i % 2] + "@example.edu", id=str(i)) for i in range(60)]
        names = list(pool.map(lambda person: chain.map([person]).name, people))
    assert names == ["alice", "bob"] * 30
    assert 1 <= len(opened) <= 3


# --- refused at load -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"servers": []}, "servers"),
        ({"servers": ["http://x"]}, "servers: 'http://x'"),
        ({"servers": ["ldap://x:99999"]}, "servers"),
        ({"ca_file": "/nonexistent/ca.pem"}, "ca_file: /nonexistent/ca.pem cannot be read"),
        ({"ca_file": "/etc/passwd"}, "ca_file: not a PEM"),
        ({"ca_file": "ca.pem"}, "not an absolute path"),
        ({"base": "nonsense"}, "base"),
        ({"base": None}, "base: missing"),
        ({"scope": "everything"}, "scope"),
        ({"filter": "(mail={username}"}, "filter"),
        ({"filter": "(objectClass=*)"}, "uses no field"),
        ({"filter": "(mail={0})"}, "match group"),
        ({"attribute": "uid)(x"}, "attribute"),
        ({"required_group": "x"}, "required_group"),
        ({"group_attribute": "owner"}, "group_attribute"),
        ({"bind_dn": READER}, "password_file: missing"),
        ({"sasl": "external", "bind_dn": READER}, "sasl"),
        ({"operation_timeout_s": 0}, "operation_timeout_s"),
        ({"cache_s": -1}, "cache_s"),
        ({"serverz": 1}, "serverz: unknown key"),
    ],
)
def test_a_bad_document_is_refused_at_load(load: Loader, keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(MappingFileInvalid) as caught:
        load(**keys)
    assert reason in str(caught.value)
    assert caught.value.index == 0


def test_a_password_goes_into_no_file_that_others_read_and_over_no_open_line(
    load: Loader, slapd: Slapd, tmp_path: pathlib.Path
) -> None:
    path = pathlib.Path(password_file(tmp_path, READER_PASSWORD))
    keys = {"bind_dn": READER, "password_file": str(path)}
    with pytest.raises(MappingFileInvalid, match="unencrypted"):
        load(servers=[slapd.ldap], start_tls=False, **keys)
    path.chmod(0o644)
    with pytest.raises(MappingFileInvalid, match="mode 0644"):
        load(**keys)
    path.chmod(0o600)
    for content in ("", "\n", "two\nlines\n"):
        path.write_text(content)
        with pytest.raises(MappingFileInvalid, match="password_file"):
            load(**keys)
