"""A person's value that no command line, environment or YAML file can hold is refused where it is given, by its key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mep.boundary.errors import ConfigRefused
from mep.config.parser import read_document
from mep_sdk import Executor
from mep_sdk.batch import Batch
from mep_wire.errors import EndpointMisconfigured, MepError, UserConfigInvalid
from mep_wire.user_values import check_characters, unusable_texts
from relay.api.user_config_check import UserConfigChecks
from tests.unit.render.test_refusals import ENGINE, settings

ENDPOINT = "00000000-0000-4000-8000-000000000000"
REFUSED = [
    ({"A": "x\0y"}, "A", "a NUL character at character 2"),
    ({"A": ["x", {"b": "\x1b[31m"}]}, "A.1.b", "the character U+001B at character 1"),
    ({"A": {"x\0": 1}}, "A.x\\x00", "a NUL character"),
    ({"A": "\ud800"}, "A", "the lone surrogate U+D800"),
    ({"A": "\ufffe"}, "A", "the character U+FFFE"),
    ({"\0": 1}, "\\x00", "a NUL character"),
]
TAKEN = [{"A": "tab\t and lines\r\n\x85"}, {"A": "\U0001f600 é \u202e \u2028"}, {"A": [1, None, True, 1.5]}, {}]


@pytest.mark.parametrize(("config", "key", "reason"), REFUSED)
def test_refused_everywhere_with_the_key(config: dict[str, Any], key: str, reason: str) -> None:
    def by_batch() -> None:
        Batch(None, user_endpoint_config=config)

    def by_executor() -> None:
        Executor(ENDPOINT, user_endpoint_config=config, relay_url="https://relay.example.org", token="t")

    def by_relay() -> None:
        asyncio.run(UserConfigChecks().check("e", None, config))

    for step in (by_batch, by_executor, by_relay, lambda: settings(ENGINE, config)):
        with pytest.raises(UserConfigInvalid) as caught:
            step()
        assert caught.value.fields["key"] == key
        assert reason in caught.value.text
        assert "\0" not in str(caught.value)


@pytest.mark.parametrize("config", TAKEN)
def test_taken(config: dict[str, Any]) -> None:
    check_characters(config)
    Batch(None, user_endpoint_config=config)
    asyncio.run(UserConfigChecks().check("e", None, config))
    settings(ENGINE, config)


def test_a_value_that_holds_itself() -> None:
    config: dict[str, Any] = {"A": ["x", "y\0"]}
    config["A"] += [config, config["A"]]
    assert [path for path, _ in unusable_texts(config)] == ["A.1"]


@given(st.text(st.characters(codec=None), max_size=4))
def test_the_rule_is_that_of_yaml(text: str) -> None:
    refused = False
    try:
        yaml.reader.Reader(text)
    except yaml.reader.ReaderError:
        refused = True
    try:
        check_characters({"A": text})
    except UserConfigInvalid:
        assert refused
    else:
        assert not refused


@pytest.mark.parametrize(
    ("source", "runtime", "kind", "says"),
    [
        (ENGINE + 'display_name: "a\\0b"', {}, EndpointMisconfigured, "display_name"),
        (ENGINE + 'endpoint_setup: "echo {{ user_runtime.note }}"', {"note": "a\0b"}, EndpointMisconfigured, "NUL"),
        (ENGINE + "display_name: {{ A | replace('-', '\\0') }}", {}, UserConfigInvalid, "A"),
    ],
)
def test_what_a_template_makes(source: str, runtime: dict[str, str], kind: type[MepError], says: str) -> None:
    """A NUL that comes about later stops the start in good order: nothing is run with it."""
    with pytest.raises(kind) as caught:
        settings(source, {"A": "x-y"}, runtime=runtime)
    assert says in caught.value.text + caught.value.detail
    assert "line 3" in caught.value.detail


@pytest.mark.parametrize("text", ['display_name: "a\\0b"', 'audit_log_path: "/a\\0b"', 'admins: ["a\\0b"]'])
def test_the_administrators_own_values(text: str) -> None:
    with pytest.raises(ConfigRefused, match="NUL character"):
        read_document(text, "/etc/mep/site/config.yaml")


def test_every_such_text_is_found() -> None:
    assert [path for path, _ in unusable_texts({"a": "\0", "b": ["\0", "\x1b"], "c": "x"})] == ["a", "b.0"]
