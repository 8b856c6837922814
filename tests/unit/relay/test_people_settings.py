"""The settings of logins: what is refused, by key and reason; and which addresses may be sent secrets."""

from __future__ import annotations

import pytest

from relay.api.login_pages import SCOPE_TEXTS
from relay.auth.settings import SCOPES, SettingsRefused, from_toml, is_safe_url

PROVIDER = 'name = "campus"\nissuer = "https://login.example.edu"\nclient_id = "relay"\n'
INTROSPECT = 'introspect = true\naudience = "api"'


def provider(*lines: str, replaced: str = PROVIDER) -> str:
    return "[[providers]]\n" + replaced + "\n".join(lines) + "\n"


def test_an_empty_file_is_a_relay_with_built_in_accounts() -> None:
    settings = from_toml(b"", "people.toml")
    assert settings.providers == ()
    assert settings.password is None


def test_a_whole_file_is_taken() -> None:
    text = (
        'public_url = "https://relay.example.edu"\n' + provider('audience = "api"') + '[password]\ndomain = "h.edu"\n'
    )
    settings = from_toml(text.encode(), "people.toml")
    assert settings.providers[0].algorithms == ("RS256", "ES256", "EdDSA")
    assert settings.password is not None
    assert settings.password.service == "mep-relay"


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("nonsense", "", "people.toml"),
        ("surprise = 1\n", "surprise", "unknown field"),
        ("audit_days = 1\n", "audit_days", "unknown field"),
        ('public_url = "http://relay.example.edu"\n', "public_url", "https"),
        ("access_token_s = 0\n", "access_token_s", "1 second"),
        (provider('algorithms = ["none"]'), "algorithms", "none"),
        (provider('algorithms = ["HS256"]'), "algorithms", "HS256"),
        (provider("algorithms = []"), "algorithms", "at least one"),
        (provider('audience = "relay"'), "audience", "ID token"),
        (provider('bearer_scopes = ["all"]'), "bearer_scopes", "all"),
        (provider('scopes = ["email"]'), "scopes", "openid"),
        (provider("skew_s = 1000"), "skew_s", "600"),
        (provider(replaced='name = "x"\nissuer = "https://a.example"\n'), "client_id", "of no use"),
        (provider(replaced='name = "x"\nissuer = "http://a.example"\nclient_id = "c"\n'), "issuer", "https"),
        (provider(replaced='name = "Big Name"\nissuer = "https://a.example"\nclient_id = "c"\n'), "name", "lower-case"),
        (provider() + provider(), "name", "stands twice"),
        (provider(INTROSPECT) + provider(INTROSPECT).replace("campus", "lab"), "introspect", "one"),
        (provider("introspect = true"), "providers[0].introspect", "audience or required_scope"),
        (provider("accept_any_client = true"), "accept_any_client", "set introspect"),
        (provider(INTROSPECT, "accept_any_client = true"), "accept_any_client", "contradicts"),
        (provider("introspect = true", 'required_scope = "s"', "accept_any_client = true"), "accept", "contradicts"),
        ('[password]\ndomain = ""\n', "password.domain", "empty"),
        ('[password]\ndomain = "x"\nservice = "../x"\n', "password.service", "pam.d"),
    ],
)
def test_a_mistake_is_named(text: str, key: str, reason: str) -> None:
    with pytest.raises(SettingsRefused) as caught:
        from_toml(text.encode(), "people.toml")
    assert key in str(caught.value)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("people.toml")


@pytest.mark.parametrize("bound", ['audience = "api"', 'required_scope = "compute"', "accept_any_client = true"])
def test_introspection_says_whose_tokens_it_takes(bound: str) -> None:
    assert from_toml(provider("introspect = true", bound).encode(), "people.toml").providers[0].introspect


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://a.example", True), ("https://a.example:8443/x?y", True), ("http://127.0.0.1:1", True),
        ("http://[::1]:1/x", True), ("http://localhost", True), ("http://a.example", False), ("ftp://127.0.0.1", False),
        ("https://user@a.example", False), ("https://a.example#x", False), ("http://127.0.0.1.evil.example", False),
        ("https://", False), ("", False), ("https://a.example:port", False), ("file:///etc/passwd", False),
    ],
)  # fmt: skip
def test_secrets_are_sent_to_safe_addresses_alone(url: str, safe: bool) -> None:
    assert is_safe_url(url) is safe


def test_every_scope_has_words_for_the_consent_page() -> None:
    assert set(SCOPE_TEXTS) == set(SCOPES)
