"""Refusals end to end: the error text of each, and that no process was started."""

from __future__ import annotations

from typing import Any

import pytest
from sitekit.endpoint import TEMPLATE

from mep_sdk import Client, ComputeSerializer, Executor
from mep_wire import limits
from mep_wire.errors import MepError

RESULT_S = 60


def _refusal(campus: Any, who: str, **config: Any) -> MepError:
    """Return the error that a task of `who` ends with."""
    with campus.executor(who, **config) as executor, pytest.raises(MepError) as caught:
        executor.submit(pow, 2, 3).result(timeout=RESULT_S)
    return caught.value


def test_a_value_against_the_schema_is_refused_before_any_process_starts(campus: Any) -> None:
    before = campus.starts()
    error = _refusal(campus, campus.anybody, workers=64, project="never")
    assert error.code == "USER_CONFIG_INVALID"
    assert "workers" in error.text
    assert "64" in error.text or "4" in error.text
    assert campus.starts() == before


def test_an_unknown_key_is_named(campus: Any) -> None:
    error = _refusal(campus, campus.anybody, wrokers=2)
    assert error.code == "USER_CONFIG_INVALID"
    assert "wrokers" in error.text


@pytest.mark.parametrize("name", sorted(limits.RESERVED_TEMPLATE_VARIABLES))
def test_a_reserved_variable_is_refused(campus: Any, name: str) -> None:
    error = _refusal(campus, campus.anybody, **{name: {}})
    assert error.code == "USER_CONFIG_RESERVED"
    assert name in error.text


@pytest.mark.root
def test_somebody_whom_the_site_does_not_map_reads_why(multi_user: Any) -> None:
    error = _refusal(multi_user, "stranger")
    assert error.code == "IDENTITY_NOT_MAPPED"
    assert error.correlation_id
    assert error.correlation_id in multi_user.log(), "the administrator finds the same id in the log"


@pytest.mark.root
@pytest.mark.parametrize("who", ["rooty", "ghost", "system", "manager", "mapper"])
def test_no_identity_gets_root_a_missing_account_or_the_endpoints_own(multi_user: Any, who: str) -> None:
    """Refused with the policy's words, which tell a remote person nothing about local accounts."""
    allowed = {account.name for account in multi_user.accounts.values()}
    error = _refusal(multi_user, who)
    assert error.code in {"ACCOUNT_REFUSED", "IDENTITY_NOT_MAPPED"}
    assert not any(word in error.text for word in ("root", "daemon", "mep-idmap", "ghost"))
    running = [each for each in multi_user.endpoint.status()["user_endpoints"] if each["state"] == "running"]
    assert all(each["local_user"] in allowed for each in running)


def test_a_single_user_endpoint_is_for_its_owner_alone(single_user: Any) -> None:
    error = _refusal(single_user, "somebody-else")
    assert error.code == "ENDPOINT_FORBIDDEN"


def test_an_unknown_token_is_refused(campus: Any) -> None:
    with pytest.raises(MepError) as caught:
        Client(relay_url=campus.site.relay.url, token="mep_not_a_token").get_version()
        Client(relay_url=campus.site.relay.url, token="mep_not_a_token").get_endpoints()
    assert caught.value.code == "TOKEN_UNKNOWN"


def test_unknown_ids_are_named(campus: Any) -> None:
    client, nobody = campus.client(campus.anybody), "00000000-0000-4000-8000-000000000000"
    with pytest.raises(MepError) as caught:
        client.get_task(nobody)
    assert (caught.value.code, nobody in caught.value.text) == ("TASK_NOT_FOUND", True)
    with pytest.raises(MepError) as caught:
        client.run(endpoint_id=campus.endpoint.id, function_id=nobody)
    assert caught.value.code == "FUNCTION_NOT_FOUND"
    with pytest.raises(MepError) as caught:
        client.run(endpoint_id=nobody, function_id=client.register_function(pow))
    assert caught.value.code == "ENDPOINT_NOT_FOUND"


def test_arguments_over_the_limit_are_refused(campus: Any) -> None:
    with campus.executor(campus.anybody) as executor, pytest.raises(MepError) as caught:
        executor.serializer = ComputeSerializer(strategy_data="JSONData")  # which does not go by reference
        executor.submit(len, "x" * (limits.MAX_PAYLOAD_BYTES + 1)).result(timeout=RESULT_S)
    assert caught.value.code == "PAYLOAD_TOO_LARGE"


def test_a_template_that_renders_to_bad_yaml_is_the_administrators_to_mend(own_place: Any) -> None:
    own_place.endpoint.write(TEMPLATE, "engine:\n  type: ProcessPoolEngine\n broken: [\n")
    own_place.endpoint.start()
    who = own_place.anybody
    error = _refusal(own_place, who)
    assert error.code == "ENDPOINT_MISCONFIGURED"
    assert "broken" not in error.text, "what the template says is not for remote people"
    assert error.correlation_id in own_place.log()
    assert "line" in own_place.log()


def test_an_executor_without_settings_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("MEP_RELAY_URL", "MEP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MepError, match="MEP_RELAY_URL"):
        Executor(endpoint_id="00000000-0000-4000-8000-000000000000")
