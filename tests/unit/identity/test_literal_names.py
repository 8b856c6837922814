"""Which answers of a mapping file spell the account's name themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import identity.loader
from mep.mapper.mapper import _person
from mep_wire.identity import Identity, IdentitySet

WHO = {"id": "i-1", "username": "anna@example.edu", "email": "a@example.edu", "status": "used"}


def expression(match: str, output: str, **more: Any) -> dict[str, Any]:
    rule = {"source": "{username}", "match": match, "output": output, **more}
    return {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}


@pytest.mark.parametrize(
    ("document", "literal"),
    [
        (expression(".*@example\\.edu", "shared"), True),
        (expression("anna@example.edu", "anna", literal=True), True),
        (expression("(.*)@example\\.edu", "{0}"), False),
        (expression("(.*)@example\\.edu", "u-{0}"), False),
        (expression(".*", "{id}"), False),
        ({"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.edu"}, False),
    ],
)
def test_only_an_output_without_fields_and_groups_is_literal(
    tmp_path: Path, document: dict[str, Any], literal: bool
) -> None:
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps([document]))
    assert identity.loader.load(path).map([WHO]).literal is literal


def test_a_person_is_the_same_with_each_of_their_identities_and_nobody_else() -> None:
    one, two = (Identity(id=name, username=f"{name}@example.edu") for name in ("a", "b"))
    digest = _person(IdentitySet("account-1", (one, two)))
    assert len(digest) == 32
    assert digest == _person(IdentitySet("account-1", (two,)))
    assert digest != _person(IdentitySet("account-2", (one, two)))
