"""`mep map` as a process: its output and its exit status."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

RULES = [
    {"source": "{username}", "match": r"(root|nobody-has-this-name)@example\.edu", "output": "{0}"},
    {"source": "{username}", "match": r"(.*)@example\.org", "output": "{0}"},
]


def mep_map(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `mep map` with these arguments."""
    return subprocess.run(
        [sys.executable, "-I", "-m", "mep.cli", "map", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A mapping file that the mapper's account can read."""
    directory = tmp_path_factory.mktemp("map")
    for parent in (directory, *directory.parents):
        if parent.stat().st_uid == os.geteuid() and parent != pathlib.Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    path = directory / "mapping.json"
    path.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": RULES}]))
    path.chmod(0o644)
    return str(path)


def identity(username: str, **fields: Any) -> dict[str, Any]:
    return {"id": f"id of {username}", "username": username, "status": "used", **fields}


def test_nobody(file: str) -> None:
    done = mep_map("--file", file, "--identity", "x@example.net")
    assert done.returncode == 1
    assert "mappings[1]: x@example.net: 'x@example.net' does not match" in done.stdout
    assert "Refused       NoMapping" in done.stdout


def test_an_account_that_is_not_there_and_one_that_policy_refuses(file: str) -> None:
    done = mep_map("--file", file, "--identity", "nobody-has-this-name@example.edu")
    assert (done.returncode, "this host has no account" in done.stdout) == (1, True)
    done = mep_map("--file", file, "--identity", "root@example.edu")
    assert (done.returncode, "root is never used" in done.stdout) == (1, True)


def test_linked_identities_and_json(file: str) -> None:
    done = mep_map("--file", file, "--json", "--identity", "a@example.org", "--identity", "b@example.org")
    value = json.loads(done.stdout)
    assert done.returncode == 1
    assert value["usable"] is False
    assert "AmbiguousMapping" in value["problem"]
    assert [answer["name"] for answer in value["mappers"][0]["answers"]] == ["a", "b"]


@pytest.mark.parametrize("wrap", [lambda ids: ids, lambda ids: {"identities": ids}])
def test_identity_sets_as_the_globus_cli_prints_them(file: str, tmp_path: pathlib.Path, wrap: Any) -> None:
    people = wrap([identity("c@example.org", status="closed"), identity("root@example.edu", last_authentication=1)])
    path = tmp_path / "set.json"
    path.write_text(json.dumps(people))
    for arguments, stdin in ((("-i", str(path)), ""), (("-i", "-"), json.dumps(people)), ((), json.dumps(people))):
        done = mep_map("-c", file, *arguments, stdin=stdin)
        assert "Ignored       c@example.org: its status is closed" in done.stdout
        assert "Local user    root" in done.stdout


def test_an_identity_in_json(file: str) -> None:
    done = mep_map("--file", file, "--identity", json.dumps(identity("root@example.edu")))
    assert "Local user    root" in done.stdout


def test_an_empty_field_is_one_that_the_identity_lacks(file: str, tmp_path: pathlib.Path) -> None:
    rule = {"source": "{organization}", "match": "(Physics)?.*", "output": "root"}
    path = tmp_path / "organizations.json"
    path.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}]))
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o011)
    for fields, said in (({}, "has no field organization"), ({"organization": "Physics"}, "Local user    root")):
        done = mep_map("--file", str(path), "--identity", json.dumps(identity("a@example.edu", **fields)))
        assert said in done.stdout


def test_foreign_text_cannot_write_to_the_terminal(file: str) -> None:
    done = mep_map("--file", file, "--identity", json.dumps(identity("a\x1b[2J\n\u202e@example.net")))
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


def test_check(file: str, tmp_path: pathlib.Path) -> None:
    done = mep_map("--check", file)
    assert (done.returncode, done.stdout) == (0, f"{file} is good.\n  document 0: expression mapping of 2 rules\n")
    broken = pathlib.Path(file).with_name("broken.json")
    broken.write_text('[{"DATA_TYPE": "x#1"}]')
    broken.chmod(0o644)
    done = mep_map("--check", str(broken))
    assert done.returncode == 4
    assert f"{broken}:1: document 0: DATA_TYPE: 'x#1' is unknown" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        ([], "", 2),
        (["site", "--file", "FILE"], "", 2),
        (["--file", "FILE"], "[]", 2),
        (["--file", "FILE"], "[", 2),
        (["--file", "FILE"], "7", 2),
        (["--file", "/nonexistent"], "[]", 2),
        (["--file", "FILE", "--identity", "{"], "", 2),
        (["--file", "FILE", "--identity", ""], "", 2),
        (["--file", "FILE", "--identity", "[]"], "", 2),
        (["--file", "FILE"], "\xa0", 2),
        (["--file", "FILE", "--identity-set", "."], "", 2),
        (["--file", ".", "--identity", "a@b"], "", 2),
        (["--file", "-", "--identity", "a@b"], "", 2),
        (["--check", "FILE", "--identity", "a@b"], "", 2),
        (["--check", "FILE", "--file", "FILE"], "", 2),
        (["..", "--identity", "a@b"], "", 4),
        (["nosuchendpoint", "--identity", "a@b"], "", 4),
    ],
)
def test_wrong_usage(file: str, tmp_path: pathlib.Path, arguments: list[str], stdin: str, code: int) -> None:
    given = [file if argument == "FILE" else argument for argument in arguments]
    done = mep_map(*given, stdin=stdin, MEP_ETC=str(tmp_path))
    assert done.returncode == code, done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_without_an_identity_the_error_says_how_to_give_one(file: str) -> None:
    assert "standard input: is empty; give --identity NAME@DOMAIN" in mep_map("--file", file).stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[" * 100_000, "not JSON"),
        ("7", "neither an identity, a list of them, nor an object with `identities`"),
        ("{}", "neither an identity"),
        ('{"identities": 7}', "neither an identity"),
        ("[]", "the list of identities is empty"),
        ('[{"username": "a@b"}, 7]', "entry[1]: is not an object"),
        ('{"identities": [{"username": "a@b"}, {"username": ["x"]}]}', "identities[1]: username: must be a text"),
        ('[{"username": "a@b", "status": 1}]', "entry[0]: status: must be a text, and is 1"),
        ('[{"name": "x"}]', "entry[0]: has neither `username` nor `id`"),
        (json.dumps([{"username": "a"}] * 1001), "more than 1000 identities"),
        (" " * 4_194_305, "larger than 4194304 bytes"),
        ("  ", "is empty"),
    ],
)
def test_an_identity_set_that_is_none_names_file_entry_and_key(
    file: str, tmp_path: pathlib.Path, given: str, said: str
) -> None:
    path = tmp_path / "people.json"
    path.write_text(given)
    done = mep_map("--file", file, "--identity-set", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mep: {path}: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "wrap", [lambda one: one, lambda one: [one], lambda one: {"account_id": "x", "identities": [one]}]
)
def test_one_identity_in_any_of_its_forms(file: str, wrap: Any) -> None:
    one = wrap({"username": "root@example.edu", "name": None, "unknown": {"x": 1}})
    done = mep_map("--file", file, "--identity", json.dumps(one))
    assert "Local user    root" in done.stdout
    done = mep_map("--file", file, stdin="\ufeff" + json.dumps(one))
    assert "Local user    root" in done.stdout


def test_all_mappers_are_asked_and_the_first_decides_all_the_same(file: str) -> None:
    path = pathlib.Path(file).with_name("two.json")
    rules = [[{"source": "{username}", "match": "(.*)@example.edu", "output": name}] for name in ("root", "daemon")]
    path.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": one} for one in rules]))
    path.chmod(0o644)
    for options, outcomes in (
        ((), ["answered", "not tried"]),
        (("-f",), ["answered", "not tried"]),
        (("-a",), ["answered"] * 2),
    ):
        done = mep_map("-c", str(path), "--json", "--identity", "x@example.edu", *options)
        value = json.loads(done.stdout)
        assert value["user"] == "root"
        assert [one["outcome"] for one in value["mappers"]] == outcomes


def test_somebody_whom_one_mapper_refuses_is_refused_whatever_a_later_one_says(file: str) -> None:
    path = pathlib.Path(file).with_name("refusing.json")
    bad = [{"source": "{username}", "match": "(.*)@example.edu", "output": "-{0}"}]
    good = [{"source": "{username}", "match": "(.*)@example.edu", "output": "daemon"}]
    path.write_text(
        json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": one} for one in (bad, good)])
    )
    path.chmod(0o644)
    done = mep_map("-c", str(path), "--json", "--all", "--identity", "x@example.edu")
    value = json.loads(done.stdout)
    assert (done.returncode, value["user"], value["refused_at"]) == (1, None, "MAP")
    assert [one["outcome"] for one in value["mappers"]] == ["refused", "answered"]
