"""The command `mep-relay`: its output, its refusals, and that a serving relay sees its changes."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person


@pytest.fixture
def relay(tmp_path: Path) -> RelayProcess:
    return RelayProcess(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path_factory.mktemp("relay")) as running:
        yield running


def test_a_token_is_printed_once_and_only_its_hash_is_stored(relay: RelayProcess) -> None:
    done = relay.cli("user", "add", "alice@example.edu", "--name", "Alice")
    token = done.stdout.strip()
    assert re.fullmatch(r"mep_[A-Za-z0-9_-]{43}", token)
    assert done.stdout.count("\n") == 1  # nothing else, for use in scripts
    for name in relay.state.iterdir():
        assert token.encode() not in name.read_bytes()
    assert stat.S_IMODE(relay.state.stat().st_mode) == 0o700
    assert {stat.S_IMODE(name.stat().st_mode) for name in relay.state.iterdir()} == {0o600}


def test_adding_in_json(relay: RelayProcess) -> None:
    told = json.loads(relay.cli("user", "add", "alice@example.edu", "--json").stdout)
    assert told["username"] == "alice@example.edu"
    assert uuid.UUID(told["account_id"])
    assert told["token"].startswith("mep_")


def test_people_are_listed_linked_and_removed(relay: RelayProcess) -> None:
    done = relay.cli("user", "list", check=False)  # as with a mistyped --state
    assert done.returncode == 1
    assert f"there is no relay in {relay.state}: say where it is with --state" in done.stderr
    assert not (relay.state / "relay.db").exists()
    for name in ("alice@example.edu", "alice@lab.example.org", "bob@example.edu"):
        relay.cli("user", "add", name)
    relay.cli("user", "link", "alice@example.edu", "alice@lab.example.org")
    people = json.loads(relay.cli("user", "list", "--json").stdout)
    assert [sorted(one["usernames"]) for one in people] == [
        ["alice@example.edu", "alice@lab.example.org"],
        ["bob@example.edu"],
    ]
    assert "alice@example.edu, alice@lab.example.org" in relay.cli("user", "list").stdout
    relay.cli("user", "remove", "alice@lab.example.org")
    assert [one["usernames"] for one in json.loads(relay.cli("user", "list", "--json").stdout)] == [["bob@example.edu"]]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("user", "add", "bob@example.edu"), "there is a user bob@example.edu already"),
        (("user", "add", "BOB@example.edu"), "already"),
        (("user", "add", ""), "printable characters"),
        (("user", "add", "two words"), "printable characters"),
        (("user", "add", "a\x1b[31m"), "printable characters"),
        (("user", "token", "nobody"), "there is no user nobody"),
        (("user", "remove", "nobody"), "there is no user nobody"),
        (("user", "link", "bob@example.edu", "nobody"), "there is no user nobody"),
        (("user", "link", "bob@example.edu", "bob@example.edu"), "the same person already"),
    ],
)
def test_refusals_say_what_is_wrong(served: RelayProcess, words: tuple[str, ...], text: str) -> None:
    served.cli("user", "add", "bob@example.edu", check=False)
    done = served.cli(*words, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_removed_persons_name_is_given_away_by_hand(served: RelayProcess) -> None:
    owner, name = Person(served, "owner"), "gone@example.edu"
    served.cli("user", "add", name)
    owner.ok("POST", "/v3/groups", {"name": "g", "members": [name]})
    assert "the name stays theirs" in served.cli("user", "remove", name).stderr
    done = served.cli("user", "add", name.upper(), check=False)
    assert done.returncode == 1
    assert "mep-relay name free" in done.stderr
    [listed] = [one for one in json.loads(served.cli("name", "list", "--json").stdout) if one["name"] == name]
    assert listed["kind"] == "username"
    served.cli("name", "free", name)
    assert served.cli("user", "add", name).stdout.startswith("mep_")


def test_an_owner_of_endpoints_is_not_removed(served: RelayProcess) -> None:
    owner = Person(served, "owner")
    lab = FakeManager(served, owner.token)
    done = served.cli("user", "remove", owner.username, check=False)
    assert done.returncode == 1
    assert lab.endpoint_id in done.stderr
    listed = json.loads(served.cli("endpoint", "list", "--json").stdout)
    (mine,) = [one for one in listed if one["id"] == lab.endpoint_id]
    assert mine == {"id": lab.endpoint_id, "name": "lab", "multi_user": True, "owner": owner.username}
    assert f"{lab.endpoint_id}  multi-user   lab  {owner.username}" in served.cli("endpoint", "list").stdout
    owner.ok("DELETE", f"/v2/endpoints/{lab.endpoint_id}")
    served.cli("user", "remove", owner.username)


def test_a_function_is_shown_with_the_digest_of_its_code(served: RelayProcess) -> None:
    owner = Person(served, "owner")
    function_id = owner.function("the code")
    digest = hashlib.sha256(b"the code").hexdigest()
    assert json.loads(served.cli("function", "show", function_id.upper(), "--json").stdout) == {
        "id": function_id, "name": "f", "owner": owner.username, "public": False, "bytes": 8, "sha256": digest,
    }  # fmt: skip
    assert f"code: sha256:{digest}" in served.cli("function", "show", function_id).stdout
    done = served.cli("function", "show", "nonsense", check=False)
    assert done.returncode == 1
    assert "there is no function nonsense" in done.stderr


def test_a_serving_relay_sees_new_people_at_once(served: RelayProcess) -> None:
    new = Person(served, "new")
    assert new.ok("GET", "/v2/endpoints") == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("user",),
        ("serve",),
        ("user", "add"),
        ("user", "link"),
        ("user", "token"),
        ("user", "list"),
        ("user", "remove"),
        ("endpoint", "list"),
        ("function", "show"),
    ],
)
def test_help_says_what_it_does(relay: RelayProcess, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from relay.cli import main; main()", *words, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Usage:" in done.stdout
    assert words == ("user",) or "Example" in done.stdout


def test_a_state_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    relay = RelayProcess(tmp_path / "file")
    done = relay.cli("user", "list", check=False)
    assert done.returncode == 1
    assert str(tmp_path / "file" / "relay-state") in done.stderr


def test_a_damaged_key_is_not_replaced(relay: RelayProcess) -> None:
    with relay:
        pass
    (relay.state / "link.key").write_bytes(b"short")
    done = relay.cli("serve", "--port", "0", "--link-port", "0", check=False)
    assert done.returncode == 1
    assert "link.key is not a key of 32 bytes" in done.stderr


def test_a_state_of_a_newer_relay_is_refused(relay: RelayProcess) -> None:
    relay.cli("user", "add", "early@example.edu")
    with sqlite3.connect(relay.state / "relay.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    done = relay.cli("user", "list", check=False)
    assert done.returncode == 1
    assert "schema version 99" in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_stay_the_same(relay: RelayProcess) -> None:
    keys = []
    for _ in range(2):
        with relay:
            owner = Person(relay)
            keys.append(FakeManager(relay, owner.token).relay_key)
    assert keys[0] == keys[1]


# --- as root ----------------------------------------------------------------------------------------


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("mep-relay")
    except KeyError:
        return None


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every account can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="mep-relay-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def account() -> Iterator[pwd.struct_passwd]:
    """The account mep-relay, made for the test where the machine has none."""
    found, made = _account(), False
    if found is None:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "mep-relay"], check=True
        )
        found, made = _account(), True
    assert found is not None
    yield found
    if made:
        subprocess.run(["userdel", "mep-relay"], check=True)


@pytest.mark.root
def test_root_becomes_mep_relay_before_anything_is_opened(open_directory: Path, account: pwd.struct_passwd) -> None:
    relay = RelayProcess(open_directory, drop=True)
    relay.add_user("early@example.edu")  # the state is made by a command, before any server
    with relay:
        text = Path(f"/proc/{relay.pid}/status").read_text()
        for line in ("Uid", "Gid"):
            ids = text.partition(f"{line}:")[2].splitlines()[0].split()
            assert ids == [str(account.pw_uid if line == "Uid" else account.pw_gid)] * 4
        assert text.partition("Groups:")[2].splitlines()[0].split() in ([], [str(account.pw_gid)])
        relay.add_user("late@example.edu")
        assert relay.request("GET", "/v2/version")[0] == 200
        owners = {(name.stat().st_uid, name.stat().st_gid) for name in [relay.state, *relay.state.iterdir()]}
        assert owners == {(account.pw_uid, account.pw_gid)}
        (open_directory / "of-root").mkdir()
        refused = relay.cli("db", "backup", str(open_directory / "of-root" / "saved"), check=False)
        assert (refused.returncode, "install -d -m 700 -o mep-relay" in refused.stderr) == (1, True)


@pytest.mark.root
def test_root_without_state_uses_var_lib(account: pwd.struct_passwd) -> None:
    command = f'"{sys.executable}" -P -c "from relay.cli import main; main()"'
    script = f"""set -e
        mount -t tmpfs -o mode=755 tmpfs /var/lib
        {command} user add alice@example.edu
        {command} user list
        {command} db backup /var/lib/mep-relay/backup
        stat -c %u /var/lib/mep-relay/relay.db /var/lib/mep-relay/backup"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "alice@example.edu" in done.stdout
    assert done.stdout.splitlines()[-2:] == [str(account.pw_uid)] * 2


@pytest.mark.root
def test_root_does_not_use_a_state_of_another_account(open_directory: Path, account: pwd.struct_passwd) -> None:
    relay = RelayProcess(open_directory, drop=True)
    relay.state.mkdir()
    done = relay.cli("user", "list", check=False)
    assert done.returncode == 1
    assert "does not belong to mep-relay" in done.stderr
    assert list(relay.state.iterdir()) == []


@pytest.mark.root
def test_root_without_the_account_is_refused(open_directory: Path) -> None:
    code = "import relay.state_dir; relay.state_dir.ACCOUNT = 'mep-relay-no-such'; from relay.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "serve", "--state", str(open_directory / "state")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no account mep-relay-no-such" in done.stderr
    assert not (open_directory / "state").exists()


def test_relay_json_says_who_listens_where(served: RelayProcess) -> None:
    told = json.loads((served.state / "relay.json").read_text())
    assert told == {"url": served.url, "link_address": served.link_address, "pid": served.pid}
    assert os.stat(served.state / "relay.json").st_mode & 0o777 == 0o600
    assert time.time() - os.stat(served.state / "relay.json").st_mtime < 3600


def test_a_database_that_stays_locked_is_named_with_a_remedy(relay: RelayProcess) -> None:
    relay.cli("user", "add", "alice@example.edu")
    database = relay.state / "relay.db"
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    commands = ["user add bob@example.edu", "user list", "serve --port 0 --link-port 0"]
    try:
        with ThreadPoolExecutor() as at_once:  # each waits for 20 s
            ended = list(at_once.map(lambda words: relay.cli(*words.split(), check=False), commands))
    finally:
        other.close()
    for done in ended:
        assert done.returncode == 1
        assert "waiting for the database: another process may hold its lock" in done.stderr
        assert f"{database}: database is locked: a backup or a database shell has had its lock for 20 s" in done.stderr
        assert f"fuser -v {database}" in done.stderr
