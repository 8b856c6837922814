"""`mep register` pins the code of the functions that config.yaml lists by id, with a real relay."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person

KIND = ["--multi-user"] if os.geteuid() == 0 else []
CODE, OTHER = b"the code", b"other code"


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path) as running:
        yield running


@pytest.fixture
def person(relay: RelayProcess) -> Person:
    return Person(relay)


@pytest.fixture
def site(relay: RelayProcess) -> Iterator[Cli]:
    with open_directory() as directory:
        cli = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu")})
        cli("configure", "site", *KIND, "--relay", relay.url)
        yield cli


def listing(site: Cli, *entries: str) -> None:
    """List these functions in config.yaml, in its last line."""
    path = site.path("etc", "site", "config.yaml")
    kept = [line for line in path.read_text().splitlines() if not line.startswith("allowed_functions:")]
    path.write_text("\n".join([*kept, f"allowed_functions: [{', '.join(entries)}]", ""]))


def pins(site: Cli) -> dict[str, str]:
    found: dict[str, str] = json.loads(site.path("var", "site", "function_pins.json").read_text())
    return found


def digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()


def tamper(relay: RelayProcess, function_id: str, code: bytes) -> None:
    """Have the relay serve other code under an id, as a compromised relay would."""
    relay.stop()
    with sqlite3.connect(relay.state / "relay.db") as database:
        assert (
            database.execute("UPDATE functions SET code = ? WHERE function_id = ?", (code, function_id)).rowcount == 1
        )
    database.close()
    relay.start()


def test_an_id_is_pinned_at_registration(site: Cli, person: Person) -> None:
    """Another person's private function can be pinned too: its digest doesn't reveal its code."""
    function = person.function(CODE.decode())
    listing(site, function.upper())
    done = site("check", "site", expect=4)
    assert f"allowed_functions: no code is pinned for function {function}" in done.stderr
    assert "mep register site --again" in done.stderr
    site("register", "site", "--again")
    assert pins(site) == {function: digest(CODE)}
    info = site.path("var", "site", "function_pins.json").stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (os.geteuid(), 0o644)
    site("check", "site")


def test_other_code_under_a_pinned_id_is_refused(site: Cli, relay: RelayProcess, person: Person) -> None:
    function = person.function(CODE.decode())
    listing(site, function)
    site("register", "site", "--again")
    tamper(relay, function, OTHER)
    said = site("register", "site", "--again", "--relay", relay.url, expect=5).stderr
    assert f"has other code for function {function} than is pinned here" in said
    assert f"pinned: sha256:{digest(CODE)}" in said
    assert f"now:    sha256:{digest(OTHER)}" in said
    assert pins(site) == {function: digest(CODE)}
    listing(site, f"sha256:{digest(OTHER)}")
    site("register", "site", "--again", "--relay", relay.url)
    assert pins(site) == {}
    site("check", "site")


def test_a_function_that_the_relay_does_not_know(site: Cli) -> None:
    listing(site, unknown := str(uuid.uuid4()))
    said = site("register", "site", "--again", expect=4).stderr
    assert f"knows no function {unknown}: take it out of allowed_functions" in said
    assert not site.path("var", "site", "function_pins.json").exists()


def test_a_digest_needs_no_pin(site: Cli) -> None:
    listing(site, f"sha256:{digest(CODE)}", f"sha256:{digest(OTHER).upper()}")
    site("check", "site")


def test_many_ids_are_asked_for_in_turns(site: Cli, relay: RelayProcess, person: Person) -> None:
    functions = [person.function(f"code {number}") for number in range(3)]
    with sqlite3.connect(relay.state / "relay.db") as database:
        made = [(str(uuid.uuid4()), f"made {number}".encode()) for number in range(300)]
        database.executemany(
            "INSERT INTO functions (function_id, owner, public, code, body, used_at) VALUES (?, '', 0, ?, x'', 0)", made
        )
    database.close()
    listing(site, *functions, *(one for one, _ in made))
    site("register", "site", "--again")
    assert pins(site) == {
        **{one: digest(f"code {number}".encode()) for number, one in enumerate(functions)},
        **{one: digest(code) for one, code in made},
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "damaged"), ('{"x": "12"}', "not a digest of 32 bytes"), ('{"x": "y"}', "damaged"), ("[]", "damaged")],
)
def test_a_damaged_pin_file_is_named(site: Cli, person: Person, text: str, says: str) -> None:
    listing(site, person.function())
    site("register", "site", "--again")
    site.path("var", "site", "function_pins.json").write_text(text)
    done = site("check", "site", expect=4)
    assert "function_pins.json" in done.stderr
    assert says in done.stderr


def test_a_pin_file_that_others_can_write_is_refused(site: Cli, person: Person) -> None:
    listing(site, person.function())
    site("register", "site", "--again")
    path = site.path("var", "site", "function_pins.json")
    path.chmod(0o666)
    assert f"chmod go-w {path}" in site("check", "site", expect=4).stderr


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("abc", "'abc' is not a UUID"),
        ("sha256:abc", "`sha256:` must be followed by 64 hexadecimal digits"),
        (f"sha256:{'g' * 64}", "64 hexadecimal digits"),
        (f"sha256:{'0' * 63}", "64 hexadecimal digits"),
        (f"SHA256:{'0' * 64}", "in lower case"),
        ("SHA256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg", "in lower case"),
        ("0" * 64, f"write sha256:{'0' * 64}"),
        ("6d0ba55fde154af2827d05c50c338aa7", "not a UUID"),
    ],
)
def test_a_malformed_entry_is_named_with_its_line(site: Cli, entry: str, says: str) -> None:
    listing(site, f"'{entry}'")
    path = site.path("etc", "site", "config.yaml")
    line = len(path.read_text().splitlines())
    said = site("check", "site", expect=4).stderr
    assert f"{path}:{line}: allowed_functions: " in said
    assert says in said


def test_check_says_where_arguments_can_carry_code(site: Cli) -> None:
    listing(site, f"sha256:{digest(CODE)}")
    assert "allowed_functions: pickled arguments can carry code of their own" in site("check", "site").stderr
    template = site.path("etc", "site", "user_config_template.yaml.j2")
    template.write_text(
        "engine:\n  type: ProcessPoolEngine\n  allowed_serializers: [PureSourceTextInspect, JSONData]\n"
    )
    assert "pickled arguments" not in site("check", "site").stderr


def test_check_renders_the_templates_list(site: Cli) -> None:
    template = site.path("etc", "site", "user_config_template.yaml.j2")
    template.write_text(f"engine:\n  type: ThreadPoolEngine\nallowed_functions:\n  - {uuid.uuid4()}\n")
    said = site("check", "site", expect=4).stderr
    assert f"{template}:3: " in said
    assert "allowed_functions: no code is pinned for" in said
