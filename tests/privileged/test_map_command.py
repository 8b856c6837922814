"""`mep map` as root: real accounts and groups, an endpoint's policy, a callout run as the mapper's account."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sitekit import accounts

from tests.support.accounts import account
from tests.support.cli import Cli
from tests.support.registrar import Registrar, configure
from tests.support.slapd import READER, READER_PASSWORD, SUFFIX, Authority, Slapd, tree
from tests.support.slapd import person as ldif_person
from tests.unit.identity.test_map_command import file, mep_map  # noqa: F401  # a fixture

NAME, GROUP = f"meptest-{os.getpid()}-mapped", f"meptest-{os.getpid()}-mapgroup"


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[accounts.Account]:
    accounts.make_group(GROUP)
    account = accounts.make(NAME, tmp_path_factory.mktemp("home") / NAME, [GROUP])
    yield account
    accounts.remove(NAME)
    accounts.remove(GROUP)


def test_one_usable_account(person: accounts.Account, file: str) -> None:  # noqa: F811  # the fixture
    done = mep_map("--file", file, "--json", "--identity", f"{NAME}@example.org")
    value = json.loads(done.stdout)
    assert (done.returncode, value["usable"], value["problem"]) == (0, True, "")
    assert value["account"]["uid"] == person.uid
    assert GROUP in [group["name"] for group in value["account"]["groups"]]
    assert f"uid {person.uid}, groups {NAME}" in mep_map("--file", file, "--identity", f"{NAME}@example.org").stdout


def test_the_policy_of_an_endpoint(person: accounts.Account, tmp_path: pathlib.Path) -> None:
    for parent in (tmp_path, *list(tmp_path.parents)[:-2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    directory = tmp_path / "site"
    directory.mkdir()
    mapping = [{"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.org"}]
    (directory / "identity_mapping.json").write_text(json.dumps(mapping))
    for groups, code in ((GROUP, 0), ("meptest-other", 1)):
        config = f"multi_user: true\nrelay_url: https://relay.example.org\npolicy:\n  allowed_groups: [{groups}]\n"
        (directory / "config.yaml").write_text(config)
        done = mep_map(
            "site", "--identity", f"{NAME}@example.org", MEP_ETC=str(tmp_path), MEP_VAR=str(tmp_path / "var")
        )
        assert done.returncode == code, done.stdout + done.stderr
    assert "none of allowed_groups" in done.stdout


@pytest.fixture
def passing() -> Iterator[str]:
    """An account that a test may close."""
    with account() as made:
        yield made.name


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ([["usermod", "--password", "$6$salt$hash"], ["usermod", "--lock"]], "the account is locked"),
        ([["usermod", "--password", "*"], ["passwd", "--lock"]], "the account is locked"),
        ([["usermod", "--lock", "--expiredate", "1"]], "the account has expired (1970-01-02)"),
        ([["chage", "--maxdays", "9", "--inactive", "9", "--lastday", "2020-01-01"]], "the account is inactive"),
    ],
)
def test_a_closed_account_is_not_usable(
    passing: str,
    file: str,  # noqa: F811  # the fixture
    commands: list[list[str]],
    said: str,
) -> None:
    asked = ("--file", file, "--identity", f"{passing}@example.org")
    done = mep_map(*asked)
    assert (done.returncode, "State         open" in done.stdout) == (0, True)
    for command in commands:
        subprocess.run([*command, passing], check=True, capture_output=True)
    done = mep_map(*asked)
    assert done.returncode == 1
    assert f"State         {said}" in done.stdout
    assert f"Refused       {said}" in done.stdout
    value = json.loads(mep_map("--json", *asked).stdout)
    assert (value["usable"], value["refused_at"]) == (False, "POLICY")
    assert said in value["account_state"]


def test_who_is_not_root_is_told_that_it_is_not_known(passing: str, file: str) -> None:  # noqa: F811  # the fixture
    nobody = pwd.getpwnam("nobody")
    done = subprocess.run(
        [sys.executable, "-I", "-m", "mep.cli", "map", "--file", file, "--identity", f"{passing}@example.org"],
        user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], capture_output=True, text=True, check=False, cwd="/",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Local user    " + passing in done.stdout
    assert "Not known     only root can see whether it is locked" in done.stdout


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [
        ("pam_permit.so", 0, "Usable        yes"),
        ("pam_deny.so", 1, "(a start would end at stage PAM_ACCOUNT)"),
        ("pam_of_nobody.so", 1, "(a start would end at stage PAM_ACCOUNT)"),
    ],
)
def test_pam_is_asked_where_a_start_would_ask_it(
    passing: str, tmp_path: pathlib.Path, module: str, code: int, said: str
) -> None:
    for parent in (tmp_path, *list(tmp_path.parents)[:-2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    directory = tmp_path / "site"
    directory.mkdir()
    mapping = [{"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.org"}]
    (directory / "identity_mapping.json").write_text(json.dumps(mapping))
    service = pathlib.Path("/etc/pam.d", passing)
    pam = f"pam:\n  enable: true\n  service_name: {service.name}\n"
    (directory / "config.yaml").write_text(f"multi_user: true\nrelay_url: https://relay.example.org\n{pam}")
    service.write_text(f"account required {module}\n")
    try:
        roots = {"MEP_ETC": str(tmp_path), "MEP_VAR": str(tmp_path / "var")}
        done = mep_map("site", "--identity", f"{passing}@example.org", **roots)
    finally:
        service.unlink()
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
    assert f"PAM service {service.name}" in done.stdout


def test_a_file_that_the_mapper_cannot_read_says_as_whom(file: str) -> None:  # noqa: F811  # the fixture
    pathlib.Path(file).chmod(0o600)
    for arguments in (("--check", file), ("--file", file, "--identity", "a@example.org")):
        done = mep_map(*arguments)
        assert done.returncode == 4
        assert "cannot be read: Permission denied (to mep-idmap, which the mapper runs as" in done.stderr


def test_a_file_that_others_could_have_written(
    person: accounts.Account,
    file: str,  # noqa: F811  # the fixture
    mep: Cli,  # the fixture
    registrar: Registrar,  # the fixture
) -> None:
    asked = ("--file", file, "--identity", f"{NAME}@example.org")
    assert mep_map(*asked).stderr == ""
    os.chown(file, person.uid, -1)
    done = mep_map(*asked)
    assert (done.returncode, f"{file}: belongs to uid {person.uid}" in done.stderr) == (0, True)
    configure(mep, registrar, "--domain", "example.org")
    asked = ("map", "site", "--identity", f"{NAME}@example.org")
    mep(*asked)
    mapping = mep.directory / "etc" / "site" / "identity_mapping.json"
    mapping.chmod(0o646)
    assert "bad permissions: chmod go-w" in mep(*asked, expect=4).stderr


def test_a_callout_runs_as_the_mapper(file: str) -> None:  # noqa: F811  # the fixture
    try:
        mapper = pwd.getpwnam("mep-idmap")
    except KeyError:
        pytest.fail("the account mep-idmap is missing: run `make install`")
    program = pathlib.Path(file).with_name("callout")
    program.write_text(
        "#!/bin/sh\necho uid $(id -u) groups $(id -G) $(grep NoNewPrivs /proc/self/status) >&2\necho '{}'\n"
    )
    program.chmod(0o755)
    path = pathlib.Path(file).with_name("callout.json")
    path.write_text(json.dumps([{"DATA_TYPE": "external_identity_mapping#1.0.0", "command": [str(program)]}]))
    path.chmod(0o644)
    done = mep_map("--file", str(path), "--identity", "a@example.org")
    assert f"wrote to standard error: 'uid {mapper.pw_uid} groups {mapper.pw_gid} NoNewPrivs: 1'" in done.stdout


@pytest.mark.parametrize("domains", [("example.org",), ("example.org", "example.net")])
def test_configure_writes_the_mapping_of_a_domain(
    mep: Cli,  # the fixture
    registrar: Registrar,  # the fixture
    person: accounts.Account,
    domains: tuple[str, ...],
) -> None:
    done = configure(mep, registrar, *(word for domain in domains for word in ("--domain", domain)))
    assert "mep map site --identity name@example.org" in done.stdout
    for domain in domains:
        assert mep.json("map", "site", "--identity", f"{NAME}@{domain}")["account"]["uid"] == person.uid
    mep("map", "site", "--identity", f"{NAME}@example.edu", expect=1)


def test_configure_refuses_what_is_no_domain(mep: Cli, registrar: Registrar) -> None:  # the fixtures
    assert "is not a domain" in configure(mep, registrar, "--domain", "a@b", expect=2).stderr
    assert registrar.calls == []
    assert not (mep.directory / "etc").exists()


def test_a_directory_with_a_password_that_the_mapper_alone_may_read(
    tmp_path_factory: pytest.TempPathFactory,
    mep: Cli,  # the fixture
    registrar: Registrar,  # the fixture
    person: accounts.Account,
) -> None:
    directory = tmp_path_factory.mktemp("slapd")
    authority = Authority(directory)
    ldif = tree() + ldif_person(NAME, f"{NAME}@example.edu", unit="closed")
    with Slapd(directory / "server", ldif, authority) as slapd:
        configure(mep, registrar)
        site = mep.directory / "etc" / "site"
        (site / "ca.pem").write_bytes(authority.file.read_bytes())
        password = site / "ldap.password"
        password.touch(mode=0o600)
        password.write_text(READER_PASSWORD + "\n")
        document = {
            "DATA_TYPE": "ldap_identity_mapping#1.0.0", "servers": [slapd.ldaps], "ca_file": str(site / "ca.pem"),
            "bind_dn": READER, "password_file": str(password), "base": f"ou=closed,{SUFFIX}",
            "filter": "(mail={email})",
        }  # fmt: skip
        (site / "identity_mapping.json").write_text(json.dumps([document]))
        person_asked = ("map", "site", "--identity", f"{NAME}@example.edu")
        assert "ldap.password cannot be read: Permission denied" in mep(*person_asked, expect=4).stderr
        mep("check", "site", expect=4)
        os.chown(password, 0, mep.helpers("site")[1].pw_gid)
        password.chmod(0o640)
        mep("check", "site")
        assert mep.json(*person_asked)["account"]["uid"] == person.uid
        password.chmod(0o644)
        assert "the mapper's account alone may read it" in mep(*person_asked, expect=4).stderr
