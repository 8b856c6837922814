"""config.yaml: every complaint names file, line and key; everything that is said of the keys comes from one place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mep.boundary.errors import ConfigRefused
from mep.config.example import example_files
from mep.config.option_docs import commented_config, docs_table, help_text, keys
from mep.config.options import IGNORED_KEYS, EndpointOptions, relay_url_problem
from mep.config.parser import read_document


def refused(text: str) -> ConfigRefused:
    with pytest.raises(ConfigRefused) as caught:
        read_document(text, "/etc/mep/site/config.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "key", "reason"),
    [
        ("multi_user: true\ndisplay_nam: x\n", 2, "display_nam", "did you mean display_name?"),
        ("multi_user: yes please\n", 1, "multi_user", "true or false"),
        ("multi_user: 1\n", 1, "multi_user", "true or false"),
        ("\n\npolicy:\n  min_uid: lots\n", 4, "policy.min_uid", "a whole number"),
        ("policy:\n  min_uid: true\n", 2, "policy.min_uid", "a whole number"),
        ("policy:\n  min_uid: 0\n", 2, "policy.min_uid", "at least 1"),
        ("policy:\n  min_udi: 5\n", 2, "policy.min_udi", "did you mean policy.min_uid?"),
        ("policy: 5\n", 1, "policy", "a mapping"),
        ("policy: [1]\n", 1, "policy", "a mapping"),
        ("policy:\n  min_uid: 2000\n  max_uid: 1500\n", 2, "policy.min_uid", "greater than max_uid 1500"),
        ("policy: {max_uid: 900}\n", 1, "policy.max_uid", "min_uid 1000 is greater"),
        ("policy:\n  denied_users: bob\n", 2, "policy.denied_users", "a list of texts"),
        ("policy:\n  denied_users: [1]\n", 2, "policy.denied_users", "a list of texts"),
        ("policy:\n  denied_groups: ['a:b']\n", 2, "policy.denied_groups", "is not a name"),
        ("policy:\n  denied_groups: ['%wheel']\n", 2, "policy.denied_groups", "is not a name"),
        ("policy:\n  denied_groups: ['wheel ']\n", 2, "policy.denied_groups", "is not a name"),
        ("policy:\n  denied_users: ['bo*']\n", 2, "policy.denied_users", "is not a name"),
        ("policy:\n  denied_users: ['#1001']\n", 2, "policy.denied_users", "is not a name"),
        ("manager_account: 'a b'\n", 1, "manager_account", "is not a name"),
        ("caps:\n  start_timeout_s: .nan\n", 2, "caps.start_timeout_s", "a number"),
        ("caps:\n  start_timeout_s: .inf\n", 2, "caps.start_timeout_s", "a number"),
        ("caps:\n  start_timeout_s: 1e9\n", 2, "caps.start_timeout_s", "a number"),
        ("caps:\n  max_user_endpoints: 0\n", 2, "caps.max_user_endpoints", "between"),
        ("allowed_functions: [abc]\n", 1, "allowed_functions", "not a UUID"),
        ("debug: true\nallowed_functions: ['sha256:abc']\n", 2, "allowed_functions", "64 hexadecimal digits"),
        (f"allowed_functions: ['SHA256:{'0' * 64}']\n", 1, "allowed_functions", "in lower case"),
        ("admins: null\n", 1, "admins", "a list of texts"),
        ("multi_user: true\nmulti_user: false\n", 2, "multi_user", "given twice"),
        ("user_search_path: bin\n", 1, "user_search_path", "absolute"),
        ("user_search_path: ''\n", 1, "user_search_path", "absolute"),
        ("user_state_dir: ../x\n", 1, "user_state_dir", "absolute"),
        ("relay_url: ftp://x\n", 1, "relay_url", "https"),
        ("relay_url: http://relay.example.org\n", 1, "relay_url", "https"),
        ("display_name: ''\n", 1, "display_name", "printable"),
        ("display_name: !!python/object:os.system x\n", 1, "", "plain value"),
        ("engine:\n  type: ThreadPoolEngine\n", 1, "engine", "user_config_template.yaml.j2"),
        ("authentication_policy: 0b2bb5a8\n", 1, "authentication_policy", "not a UUID"),
        ("high_assurance: 1\n", 1, "high_assurance", "true or false"),
        ("pam:\n  service_name: ../x\n", 2, "pam.service_name", "must be the name"),
        ("log_format: xml\n", 1, "log_format", "must be text or json"),
        ("setuid_programs: some\n", 1, "setuid_programs", "must be deny or allow"),
        ("pre_start_hook:\n  path: x\n", 2, "pre_start_hook.path", "must be an absolute path"),
        ("- a\n- b\n", 1, "", "mapping of keys"),
        ("just text\n", 1, "", "mapping of keys"),
        ("1: 2\n", 1, "1", "unknown key"),
        ("[a]: 2\n", 1, "?", "unknown key"),
        ("a: b: c\n", 1, "", "not valid YAML"),
        ("a: 'x\n", 2, "", "not valid YAML"),
        ("multi_user: \x01\n", 0, "", "not valid YAML"),
    ],
)  # fmt: skip
def test_every_complaint_names_file_line_and_key(text: str, line: int, key: str, reason: str) -> None:
    error = refused(text)
    where = "/etc/mep/site/config.yaml"
    assert error.where == (f"{where}:{line}" if line else where), error
    assert error.key == key
    assert reason in error.reason


def test_aliases_are_refused() -> None:
    assert "aliases" in refused("policy: &p {min_uid: 5}\ncaps: *p\n").reason


def test_deep_nesting_is_refused() -> None:
    assert refused("a: " + "[" * 5000).where


@pytest.mark.parametrize("key", sorted(IGNORED_KEYS))
def test_keys_that_do_not_apply_are_accepted_with_a_warning(key: str) -> None:
    document = read_document(f"multi_user: true\n{key}: 5\n", "config.yaml")
    assert document.options.multi_user
    assert document.warnings == [f"config.yaml:2: {key}: does not apply here and is ignored: {IGNORED_KEYS[key]}"]


@pytest.mark.parametrize("line", ["high_assurance: false", "pam: {enable: false}", "authentication_policy: null"])
def test_restrictions_that_restrict_nothing_are_accepted(line: str) -> None:
    assert read_document(line + "\n", "config.yaml").warnings == []


def test_a_globus_compute_config_works() -> None:
    text = """\
display_name: Debug queue, 1-block max
multi_user: true
identity_mapping_config_path: /etc/mep/site/example_identity_mapping_config.json
user_config_template_path: /etc/mep/site/user_config_template.yaml.j2
user_config_schema_path: /etc/mep/site/user_config_schema.json
allowed_functions:
- 6d0ba55f-de15-4af2-827d-05c50c338aa7
amqp_port: 443
heartbeat_period: 30
public: true
debug: false
"""
    document = read_document(text, "config.yaml")
    assert document.options.allowed_functions == ["6d0ba55f-de15-4af2-827d-05c50c338aa7"]
    assert len(document.warnings) == 2


def test_an_empty_file_is_the_defaults() -> None:
    assert read_document("", "config.yaml").options == EndpointOptions()
    assert read_document("# nothing\n", "config.yaml").options == EndpointOptions()


def test_the_commented_config_says_what_was_asked_for() -> None:
    values = {"relay_url": "https://relay.example.org", "display_name": 'A "quoted": name # x', "multi_user": True}
    document = read_document(commented_config(values), "config.yaml")
    assert document.options.display_name == values["display_name"]
    assert document.options.relay_url == values["relay_url"]
    assert document.values == values


def test_the_commented_config_with_every_comment_taken_away_is_valid() -> None:
    lines = []
    for line in commented_config({}).splitlines():
        bare = line.removeprefix("#")
        if (line and not bare.lstrip().startswith("#") and not bare.startswith(" ")) or (
            bare.startswith("  ") and "# " not in bare
        ):
            lines.append(bare)
    document = read_document("\n".join(lines), "config.yaml")
    assert document.options.policy.denied_users == ["guest"]
    assert document.options.caps == EndpointOptions().caps
    assert document.warnings == []


def test_every_key_is_in_help_config_and_docs() -> None:
    for key, _, declared in keys():
        name = key.rpartition(".")[2]
        assert declared.metadata["doc"]
        assert f"{key} " in help_text()
        assert f"| `{key}` |" in docs_table()
        assert f"{name}: " in commented_config({})


@pytest.mark.parametrize("url", ["https://relay.example.org", "https://r:8443/base", "http://127.0.0.1:8650",
                                 "http://localhost:1", "http://[::1]:8650"])  # fmt: skip
def test_relay_urls(url: str) -> None:
    assert relay_url_problem(url) == ""


@pytest.mark.parametrize("url", ["", "relay", "https://", "http://relay", "https://u:p@relay", "https://relay?x=1",
                                 "https://relay:99999", "https://relay:0", "http://127.0.0.1.evil.example", "file:///x",
                                 "http://localhost.evil.example"])  # fmt: skip
def test_urls_that_are_no_relays(url: str) -> None:
    assert relay_url_problem(url)


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        read_document(text, "config.yaml")
    except ConfigRefused as error:
        assert error.where.startswith("config.yaml")


def test_the_example_endpoint_is_current() -> None:
    directory = Path(__file__).parents[3] / "etc" / "mep" / "example"
    for name, text in example_files().items():
        assert (directory / name).read_text() == text, "run: python -m mep.config.example etc/mep/example"
    assert read_document(example_files()["config.yaml"], "config.yaml").options.multi_user
