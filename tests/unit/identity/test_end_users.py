"""End users of science gateways: who learns of them, and which accounts may follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from identity import loader
from identity.chain import Chain
from identity.errors import MappingFileInvalid, NameRefused, NoMapping

PORTAL = {"id": "0b2bb5a8-6a5f-4b3c-8f5b-aaaaaaaaaaaa", "username": "portal@gateway.example", "status": "used"}
OTHER = {"id": "0b2bb5a8-6a5f-4b3c-8f5b-bbbbbbbbbbbb", "username": "mallory@example.edu", "status": "used"}
RULE = {
    "source": "{username}",
    "match": r"portal@gateway\.example",
    "end_user": r"(.*)@example\.edu",
    "output": "gw-{0}",
}
PLAIN = {"source": "{username}", "match": r"portal@gateway\.example", "output": "gw-common"}


def chain(directory: Path, *rules: dict[str, Any], accounts: Any = ("gw-*",), **more: Any) -> Chain:
    document = {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": list(rules), **more}
    file = directory / "mapping.json"
    file.write_text(json.dumps([document | ({"end_user_accounts": list(accounts)} if accounts else {})]))
    return loader.load(file)


def test_an_end_user_chooses_among_the_accounts_of_the_gateway(tmp_path: Path) -> None:
    made = chain(tmp_path, RULE, PLAIN)
    assert made.map([PORTAL], end_user="ada@example.edu").name == "gw-ada"
    assert made.map([PORTAL], end_user="ada@elsewhere.example").name == "gw-common"
    assert made.map([PORTAL]).name == "gw-common"


def test_an_end_user_maps_nobody_by_themselves(tmp_path: Path) -> None:
    with pytest.raises(NoMapping):
        chain(tmp_path, RULE).map([OTHER], end_user="ada@example.edu")


def test_no_other_account_follows_from_an_end_user(tmp_path: Path) -> None:
    wide = {**RULE, "end_user": "(.*)", "output": "{0}"}
    made = chain(tmp_path, wide)
    assert made.map([PORTAL], end_user="gw-x").name == "gw-x"
    for name in ("alice", "root", "GW-x", "gw-x\n"):
        with pytest.raises(NameRefused):
            made.map([PORTAL], end_user=name)


def test_other_documents_do_not_learn_of_them(tmp_path: Path) -> None:
    assert chain(tmp_path, PLAIN, accounts=()).map([PORTAL], end_user="ada@example.edu").name == "gw-common"


def test_the_decision_does_not_carry_the_name_further(tmp_path: Path) -> None:
    assert chain(tmp_path, RULE).map([PORTAL], end_user="ada@example.edu").identity == PORTAL


def test_what_was_tried_is_explained(tmp_path: Path) -> None:
    (step,) = chain(tmp_path, RULE).explain([PORTAL], end_user="ada@example.edu").steps
    assert any("end user 'ada@example.edu' matches" in line for line in step.trace)


@pytest.mark.parametrize(
    ("rule", "accounts", "reason"),
    [
        (RULE, (), "end_user_accounts: missing"),
        (PLAIN, ("gw-*",), "end_user_accounts: no rule has end_user"),
        ({**RULE, "end_user": "(?P<x>"}, ("gw-*",), "end_user"),
        ({**RULE, "output": "gw-{1}"}, ("gw-*",), "match group"),
        ({**RULE, "output": "{end_user}"}, ("gw-*",), ""),
    ],
)
def test_documents_that_cannot_be_meant_are_refused(tmp_path: Path, rule: Any, accounts: Any, reason: str) -> None:
    if not reason:  # the name is no field of the identity: only what its pattern took is there
        with pytest.raises(NameRefused, match="no field end_user"):
            chain(tmp_path, rule, accounts=accounts).map([PORTAL], end_user="ada@example.edu")
        return
    with pytest.raises(MappingFileInvalid, match=reason):
        chain(tmp_path, rule, accounts=accounts)


def test_a_domain_mapping_has_no_end_users(tmp_path: Path) -> None:
    file = tmp_path / "mapping.json"
    document = {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.edu", "end_user_accounts": ["gw-*"]}
    file.write_text(json.dumps(document))
    with pytest.raises(MappingFileInvalid, match="end_user_accounts: unknown key"):
        loader.load(file)


@pytest.mark.parametrize("pattern", ["*", "**", "?*", "[a-z]*", "[!r]*"])
def test_a_pattern_that_fits_every_account_is_warned_of(tmp_path: Path, pattern: str) -> None:
    (doubt,) = chain(tmp_path, RULE, accounts=("gw-*", pattern)).doubts
    assert f"end_user_accounts[1]: {pattern!r} fits every account" in doubt


@pytest.mark.parametrize("pattern", ["gw-*", "*-gw", "g*", "gateway", "[gh]w-?"])
def test_a_pattern_of_certain_accounts_is_not(tmp_path: Path, pattern: str) -> None:
    assert not chain(tmp_path, RULE, accounts=(pattern,)).doubts
