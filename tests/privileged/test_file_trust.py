"""Files that a local user could have written or exchanged: `mep check` and `mep start` refuse each, with a remedy.

Each test is an attack: the file that it spoils was accepted once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mep.boundary.errors
from mep.boundary.file_trust import UntrustedPath
from mep.boundary.pam_service import check_service
from mep.boundary.resolved_config import Hook
from tests.support.accounts import LocalAccount
from tests.support.cli import Cli, open_directory
from tests.support.monitor import running_monitor, start_as
from tests.support.pam import Site, pam_monitor
from tests.support.relay import RelayProcess

MAPPING = [
    {
        "DATA_TYPE": "expression_identity_mapping#1.0.0",
        "mappings": [{"source": "{username}", "match": "x", "output": "x"}],
    }
]
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER, _UNUSED = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0xFFFFFFFF


def set_acl(path: Path, *entries: tuple[int, int, int]) -> None:
    """Give `path` an ACL that lets named ones do something, while its mode keeps others out."""
    base = [(_USER_OBJ, 6, _UNUSED), (_GROUP_OBJ, 4, _UNUSED), (_MASK, 6, _UNUSED), (_OTHER, 4, _UNUSED)]
    packed = b"".join(struct.pack("<HHI", *entry) for entry in sorted([*base, *entries]))
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with open_directory() as directory, RelayProcess(tmp_path_factory.mktemp("relay")) as relay:
        mep = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu")})
        mep("configure", "site", "--multi-user", "--relay", relay.url)
        mep.path("etc", "site", "identity_mapping.json").write_text(json.dumps(MAPPING))
        yield mep


@pytest.fixture
def endpoint(configured: Cli) -> Iterator[Cli]:
    """A registered endpoint that is as it was for every test."""
    trees = [configured.directory / kind for kind in ("etc", "var")]
    for tree in trees:
        subprocess.run(["cp", "-a", str(tree), f"{tree}.kept"], check=True)
    configured("check", "site")
    try:
        yield configured
    finally:
        with contextlib.suppress(AssertionError):
            configured("stop", "site", "--kill")
        for tree in trees:
            shutil.rmtree(tree)
            os.rename(f"{tree}.kept", tree)


def assert_refused(mep: Cli, *texts: str) -> None:
    """`mep check` and `mep start` both refuse the endpoint and say each of `texts`."""
    for words in (("check", "site"), ("start", "site", "--detach")):
        said = mep(*words, expect=4).stderr
        for text in texts:
            assert text in said, f"mep {' '.join(words)}: {said}"
    assert not mep.path("run", "site", "monitor.pid").exists()


def state(mep: Cli, *names: str) -> Path:
    return mep.path("var", "site", *names)


def etc(mep: Cli, *names: str) -> Path:
    return mep.path("etc", "site", *names)


# --- the state directory and its files ---------------------------------------------------------------------


def test_a_registration_that_everybody_may_write(endpoint: Cli) -> None:
    state(endpoint, "registration.json").chmod(0o666)
    assert_refused(endpoint, f"bad permissions: chmod go-w {state(endpoint, 'registration.json')}")


def test_a_registration_of_somebody_else(endpoint: Cli, alice: LocalAccount) -> None:
    os.chown(state(endpoint, "registration.json"), alice.uid, alice.gid)
    assert_refused(endpoint, f"bad ownership: chown root {state(endpoint, 'registration.json')}")


def test_a_registration_with_an_acl(endpoint: Cli, alice: LocalAccount) -> None:
    path = state(endpoint, "registration.json")
    set_acl(path, (_USER, 6, alice.uid))
    assert not path.stat().st_mode & 0o002
    assert_refused(endpoint, f"bad permissions: setfacl -b {path}")


def test_a_state_directory_that_a_group_may_write(endpoint: Cli, alice: LocalAccount) -> None:
    os.chown(state(endpoint), 0, alice.gid)
    state(endpoint).chmod(0o775)
    assert_refused(endpoint, f"bad permissions: chmod go-w {state(endpoint)}")


def test_a_state_directory_with_an_acl_for_a_group(endpoint: Cli, alice: LocalAccount) -> None:
    set_acl(state(endpoint), (_GROUP, 7, alice.gid))
    assert_refused(endpoint, f"bad permissions: setfacl -b {state(endpoint)}")


def test_a_state_directory_where_everybody_makes_files(endpoint: Cli) -> None:
    """The sticky bit protects the files that exist; a log that doesn't exist yet isn't protected."""
    state(endpoint).chmod(0o1777)
    assert_refused(endpoint, f"bad permissions: chmod go-w {state(endpoint)}")


def test_a_parent_directory_that_everybody_may_write(endpoint: Cli) -> None:
    state(endpoint).parent.chmod(0o777)
    assert_refused(endpoint, f"bad permissions: chmod go-w {state(endpoint).parent}")


@pytest.mark.parametrize("name", ["link.key", "unseal.key"])
def test_a_key_that_others_may_read(endpoint: Cli, name: str) -> None:
    state(endpoint, name).chmod(0o644)
    assert_refused(endpoint, f"bad permissions: chmod 600 {state(endpoint, name)}")


@pytest.mark.parametrize("name", ["link.key", "unseal.key"])
def test_a_key_with_an_acl(endpoint: Cli, name: str, alice: LocalAccount) -> None:
    path = state(endpoint, name)
    base = [(_USER_OBJ, 6, _UNUSED), (_GROUP_OBJ, 0, _UNUSED), (_MASK, 4, _UNUSED), (_OTHER, 0, _UNUSED)]
    packed = b"".join(struct.pack("<HHI", *entry) for entry in sorted([*base, (_USER, 4, alice.uid)]))
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    assert_refused(endpoint, f"bad permissions: setfacl -b {path}")


@pytest.mark.parametrize(("name", "helper"), [("link.key", 0), ("unseal.key", 1)])
def test_a_key_of_the_wrong_owner(endpoint: Cli, name: str, helper: int, alice: LocalAccount) -> None:
    os.chown(state(endpoint, name), alice.uid, alice.gid)
    account = endpoint.helpers("site")[helper].pw_name
    assert_refused(endpoint, f"bad ownership: chown {account} {state(endpoint, name)}")


def test_the_key_of_the_one_helper_is_not_the_others(endpoint: Cli) -> None:
    key = state(endpoint, "unseal.key")
    os.chown(key, state(endpoint, "link.key").stat().st_uid, 0)
    assert_refused(endpoint, f"bad ownership: chown {endpoint.helpers('site')[1].pw_name} {key}")


@pytest.mark.parametrize("name", ["audit.log", "endpoint.log", "tasks.log"])
def test_a_log_that_everybody_may_write(endpoint: Cli, name: str) -> None:
    with etc(endpoint, "config.yaml").open("a") as config:
        config.write("\naudit_tasks: true\n")
    state(endpoint, name).touch()
    state(endpoint, name).chmod(0o666)
    assert_refused(endpoint, f"bad permissions: chmod go-w {state(endpoint, name)}")


@pytest.mark.parametrize("key", ["log_path", "audit_log_path"])
def test_a_log_through_a_link_of_a_user(endpoint: Cli, alice: LocalAccount, key: str) -> None:
    """The user has it lead to another file of root's whenever they like."""
    link = Path(alice.home, f"log-{key}")
    link.symlink_to(state(endpoint))
    with etc(endpoint, "config.yaml").open("a") as config:
        config.write(f"\n{key}: {link}/some.log\n")
    assert_refused(endpoint, f"bad ownership: chown root {alice.home}")


def test_all_that_is_wrong_is_listed(endpoint: Cli, alice: LocalAccount) -> None:
    state(endpoint, "registration.json").chmod(0o666)
    state(endpoint, "link.key").chmod(0o644)
    etc(endpoint, "config.yaml").chmod(0o622)
    os.chown(etc(endpoint, "user_config_schema.json"), alice.uid, alice.gid)
    assert_refused(
        endpoint,
        f"chmod go-w {state(endpoint, 'registration.json')}",
        f"chmod 600 {state(endpoint, 'link.key')}",
        f"chmod go-w {etc(endpoint, 'config.yaml')}",
        f"chown root {etc(endpoint, 'user_config_schema.json')}",
    )


# --- the configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "user_config_template.yaml.j2", "user_config_schema.json", "user_environment.yaml",
     "identity_mapping.json"],
)  # fmt: skip
def test_a_file_of_the_configuration(endpoint: Cli, alice: LocalAccount, name: str) -> None:
    path = etc(endpoint, name)
    kept = (path.stat(), path.read_bytes())
    os.chown(path, 0, alice.gid)
    path.chmod(0o664)
    assert_refused(endpoint, f"bad permissions: chmod go-w {path}")
    path.chmod(0o640)
    os.chown(path, 0, kept[0].st_gid)
    set_acl(path, (_USER, 6, alice.uid))
    assert_refused(endpoint, f"bad permissions: setfacl -b {path}")


def test_a_template_that_the_template_includes(endpoint: Cli) -> None:
    path = etc(endpoint, "part.j2")
    path.write_text("")
    path.chmod(0o666)
    assert_refused(endpoint, f"bad permissions: chmod go-w {path}")


def test_a_template_through_a_link_of_a_user(endpoint: Cli, alice: LocalAccount) -> None:
    """Root's file, by way of a link in the user's directory, which leads elsewhere tomorrow."""
    link = Path(alice.home, "template-link")
    link.symlink_to(etc(endpoint, "user_config_template.yaml.j2"))
    first = endpoint.directory / "etc" / "template.j2"
    first.symlink_to(link)
    with etc(endpoint, "config.yaml").open("a") as config:
        config.write(f"\nuser_config_template_path: {first}\n")
    assert_refused(endpoint, f"bad ownership: chown root {alice.home}")


def test_a_link_in_a_directory_where_all_may_write(endpoint: Cli) -> None:
    """Root's own link in /tmp: its name may be another's after it was removed, and nothing else protects it."""
    shared = endpoint.directory / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "schema.json"
    link.symlink_to(etc(endpoint, "user_config_schema.json"))
    with etc(endpoint, "config.yaml").open("a") as config:
        config.write(f"\nuser_config_schema_path: {link}\n")
    assert_refused(endpoint, f"{link}: a symbolic link in a directory that others may write to")


def test_a_callout(endpoint: Cli, alice: LocalAccount) -> None:
    program = endpoint.directory / "etc" / "callout"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    document = [{"DATA_TYPE": "external_identity_mapping#1.0.0", "command": [str(program)]}]
    etc(endpoint, "identity_mapping.json").write_text(json.dumps(document))
    endpoint("check", "site")
    program.chmod(0o775)
    assert_refused(endpoint, f"bad permissions: chmod go-w {program}")
    program.chmod(0o755)
    os.chown(program, alice.uid, alice.gid)
    assert_refused(endpoint, f"bad ownership: chown root {program}")


def test_a_hook(endpoint: Cli, alice: LocalAccount) -> None:
    hook = endpoint.directory / "etc" / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    with etc(endpoint, "config.yaml").open("a") as config:
        config.write(f"\npre_start_hook: {{path: {hook}}}\n")
    endpoint("check", "site")
    set_acl(hook, (_USER, 6, alice.uid))
    assert_refused(endpoint, f"bad permissions: setfacl -b {hook}")


def test_a_pam_service_that_everybody_may_write(endpoint: Cli, site: Site) -> None:
    site.define()
    service = Path("/etc/pam.d", site.service)
    with etc(endpoint, "config.yaml").open("a") as config:
        config.write(f"\npam: {{enable: true, service_name: {site.service}}}\n")
    endpoint("check", "site")
    service.chmod(0o666)
    assert_refused(endpoint, f"bad permissions: chmod go-w {service}")


@pytest.mark.parametrize(
    "line",
    [
        "account include {path}",
        "account INCLUDE {path}",
        "-account Substack {path}",
        "account [include] {path}",
        "account include [{path}]",
        "account \\\n  include {path}",
        "account required {path}",
        "account [success=ok default=die] {path} quiet",
        "account [success=ok \\\n default=die] \\\n {path}",
    ],
)
def test_what_a_pam_service_names_by_path(line: str, tmp_path: Path, alice: LocalAccount) -> None:
    """Each is a spelling by which PAM reads the file, or loads it, in a process of root's."""
    named, service = tmp_path / "named", tmp_path / "service"
    named.write_text("account required pam_permit.so\n")
    service.write_text("account required pam_permit.so\n" + line.format(path=named) + "\n")
    check_service(str(service))
    os.chown(named, alice.uid, alice.gid)
    with pytest.raises(UntrustedPath, match=f"chown root {named}"):
        check_service(str(service))


def test_a_pam_service_that_leaves_the_account_to_other(tmp_path: Path) -> None:
    """PAM takes `other` for each type that a service has no line of, so an emptied file is as a removed one."""
    service = tmp_path / "service"
    for text in ("", "# account required pam_unix.so\n", "auth required pam_unix.so\n", "account\n"):
        service.write_text(text)
        with pytest.raises(FileNotFoundError, match="account"):
            check_service(str(service))
    included = tmp_path / "included"
    included.write_text("Account required pam_unix.so\n")
    service.write_text(f"@include {included}\n")
    check_service(str(service))


# --- the installation ------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("which", ["lib", "package", "module", "bin"])
def test_an_installation_that_everybody_may_write(endpoint: Cli, which: str) -> None:
    package = Path(mep.boundary.errors.__file__).parent
    path = {
        "lib": package.parents[2],
        "package": package,
        "module": package / "errors.py",
        "bin": Path(sys.prefix, "bin"),
    }[which]
    mode = path.stat().st_mode & 0o7777
    path.chmod(mode | 0o022)
    try:
        assert_refused(endpoint, f"bad permissions: chmod go-w {path}")
    finally:
        path.chmod(mode)
    endpoint("check", "site")


@pytest.mark.alone
def test_what_an_installation_imports_through_a_link(endpoint: Cli, alice: LocalAccount, tmp_path: Path) -> None:
    """A package that was linked into site-packages for its development is root's code as any other."""
    target = tmp_path / "package"
    target.mkdir()
    (target / "__init__.py").touch()
    os.chown(target / "__init__.py", alice.uid, alice.gid)
    link = Path(mep.boundary.errors.__file__).parents[2] / "linked_for_a_test"
    link.symlink_to(target)
    try:
        assert_refused(endpoint, "bad ownership: chown root")
    finally:
        link.unlink()
    endpoint("check", "site")


@pytest.mark.alone
def test_a_directory_of_an_installation_where_all_make_files(endpoint: Cli) -> None:
    """The sticky bit keeps a file from being exchanged, and not a new module from being imported."""
    path = Path(mep.boundary.errors.__file__).parents[2]
    mode = path.stat().st_mode & 0o7777
    path.chmod(0o1777)
    try:
        assert_refused(endpoint, f"bad permissions: chmod go-w {path}")
    finally:
        path.chmod(mode)
    endpoint("check", "site")


# --- checked in one form, used in another -----------------------------------------------------------------------


def test_a_hook_behind_a_link_of_a_user_is_never_the_users(alice: LocalAccount, site: Site) -> None:
    """The user exchanges the link while hooks are checked and run: 3 of 200 runs were theirs, as root."""
    theirs, loot = Path(alice.home, "theirs"), Path(alice.home, "loot")
    theirs.write_text(f"#!/bin/sh\nid -u > {loot}\n")
    theirs.chmod(0o755)
    good = site.script("good", "exit 0")
    link = Path(alice.home, "link")
    link.symlink_to(good)
    hook = site.root / "hook"
    hook.symlink_to(link)
    swap = (
        f"i=0; while [ $i -lt 200000 ]; do i=$((i+1)); ln -sfn {theirs} {alice.home}/a; mv -fT {alice.home}/a {link};"
        f" ln -sfn {good} {alice.home}/b; mv -fT {alice.home}/b {link}; done"
    )
    swapper = subprocess.Popen(["sh", "-c", swap], user=alice.uid, group=alice.gid, extra_groups=[])
    try:
        code = (
            "import sys\nfrom mep.boundary.resolved_config import Hook\nfrom mep.root.keeper.hooks import run_hook\n"
            "for _ in range(400):\n"
            f"    run_hook(Hook({str(hook)!r}, 5.0), 'pre_start', b'', left_s=5.0)\n"
        )
        subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=300)
    finally:
        swapper.kill()
        swapper.wait()
    assert not loot.exists(), f"the user's program ran as uid {loot.read_text().strip()}"


@pytest.mark.parametrize("kind", ["script", "program"])
def test_a_hook_is_run_by_the_descriptor_that_was_checked(alice: LocalAccount, site: Site, kind: str) -> None:
    path = site.script("hook", "cat > /dev/null; exit 0")
    if kind == "program":
        path.unlink()
        shutil.copy("/bin/true", path)
    hook = Hook(str(path), 5.0)
    with running_monitor(pre_start_hook=hook) as (_run, manager, mapper):
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"


# --- the relay ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "command"),
    [
        ("", 0o755, "chmod 700"), ("link.key", 0o644, "chmod 600"), ("signing.key", 0o640, "chmod 600"),
        ("relay.db", 0o666, "chmod 600"), ("serve.lock", 0o644, "chmod 600"),
    ],
)  # fmt: skip
def test_a_relays_state_that_others_may_reach(tmp_path: Path, name: str, mode: int, command: str) -> None:
    relay = RelayProcess(tmp_path)
    relay.start().stop()
    relay.add_user("alice@example.edu")
    path = relay.state / name
    path.chmod(mode)
    done = relay.cli("user", "list", check=False)
    assert done.returncode == 1 and f"bad permissions: {command} {path}" in done.stderr, done.stdout + done.stderr
    with pytest.raises(RuntimeError, match=f"bad permissions: {command} {path}"):
        relay.start()


def test_a_relays_state_whose_parent_others_may_write(tmp_path: Path, alice: LocalAccount) -> None:
    relay = RelayProcess(tmp_path)
    relay.add_user("alice@example.edu")
    set_acl(tmp_path, (_USER, 7, alice.uid))
    assert f"setfacl -b {tmp_path}" in relay.cli("user", "list", check=False).stderr


# --- while it runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "writable", "foreign"])
def test_a_pam_service_that_is_spoilt_while_the_endpoint_runs(alice: LocalAccount, site: Site, how: str) -> None:
    """PAM would use its file `other` for a missing service file."""
    service = Path("/etc/pam.d", site.service)
    spoil: dict[str, Callable[[], None]] = {
        "removed": service.unlink,
        "writable": lambda: service.chmod(0o666),
        "foreign": lambda: os.chown(service, alice.uid, alice.gid),
    }
    with _permissive_other(), pam_monitor(site) as (run, manager, mapper):
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        spoil[how]()
        _, answer = start_as(manager, mapper, alice.name, ref=2)
        assert answer.code == "START_FAILED"
        record = [one for one in run.audit_records() if one["event"] == "start"][-1]
        assert record["stage"] == "PAM_ACCOUNT" and str(service) in record["detail"], record


@contextlib.contextmanager
def _permissive_other() -> Iterator[None]:
    """As on some hosts: a file `other` that admits every account."""
    other = Path("/etc/pam.d/other")
    kept = other.read_bytes() if other.exists() else None
    other.write_text("".join(f"{kind} required pam_permit.so\n" for kind in ("auth", "account", "session")))
    try:
        yield
    finally:
        other.unlink()
        if kept is not None:
            other.write_bytes(kept)


def test_a_lock_that_everybody_can_hold() -> None:
    """A user who holds the pid file's lock, or that of another file that all may read, keeps no endpoint down."""
    with running_monitor() as (run, _manager, _mapper):
        readable = [path for path in run.run.iterdir() if path.is_file() and path.stat().st_mode & 0o004]
        assert run.run / "monitor.pid" in readable
        holders = [_hold(path) for path in readable]
        try:
            os.kill(run.pid, 9)
            assert run.process is not None
            run.process.wait()
            run.start()
            run.ready()
            assert run.status()["pid"] == run.pid
        finally:
            for holder in holders:
                holder.kill()
                holder.wait()


def _hold(path: Path) -> subprocess.Popen[bytes]:
    """As the account `nobody`: take a lock on `path` as soon as possible, and keep it."""
    code = (
        "import fcntl, os, sys, time\nfile = open(sys.argv[1])\nos.write(1, b'x')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen(
        ["/usr/bin/python3", "-I", "-c", code, str(path)], stdout=subprocess.PIPE, user=65534, group=65534,
        extra_groups=[],
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.read(1) == b"x"
    return holder
