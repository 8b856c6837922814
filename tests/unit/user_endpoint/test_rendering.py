"""The child that renders: it answers, fails with a reason, or is killed; and it is gone afterwards."""

from __future__ import annotations

import errno
import grp
import itertools
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep_wire.bundle import UepBundle
from mep_wire.errors import StartInterrupted
from mep_wire.identity import Identity, IdentitySet
from mep_wire.start_request import StartRequest, VerifiedStart, encode_start
from user_endpoint import render_process
from user_endpoint.keeper_report import StartFailure
from user_endpoint.render_process import Rendering
from user_endpoint.settings import ProcessPoolSettings
from user_endpoint.shortage import reason_of


def documents(template: str, config: dict[str, Any] | None = None, schema: Any = None) -> tuple[bytes, bytes]:
    request = StartRequest(
        endpoint_id="e", uep_id=str(uuid.uuid4()), identity_set=IdentitySet("a", (Identity("i", "a@example.edu"),)),
        user_endpoint_config=config or {}, user_runtime={}, issued_at=0.0, expires_at=0.0, nonce=b"", epoch=b"",
        sealed_join_token=b"", correlation_id="c",
    )  # fmt: skip
    start = VerifiedStart(request=encode_start(request), join_token=b"", local_user="alice", mapped_identity={})
    bundle = UepBundle(
        endpoint_id="e", endpoint_name="n", relay_link_address="", relay_link_key=b"", template_name="t",
        templates={"t": template}, schema=schema, user_environment={}, parent_config={},
    )  # fmt: skip
    return msgspec.msgpack.encode(start), msgspec.msgpack.encode(bundle)


def failure(template: str, config: dict[str, Any] | None = None, schema: Any = None) -> StartFailure:
    before = children()
    with pytest.raises(StartFailure) as caught:
        Rendering(*documents(template, config, schema), close=()).result()
    assert children() <= before
    return caught.value


def children() -> set[str]:
    """Return this process's children, ended ones that nothing has reaped included."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_settings_come_out_typed() -> None:
    template = "engine: {type: ProcessPoolEngine, max_workers: {{ WORKERS }}}"
    settings = Rendering(*documents(template, {"WORKERS": 3}), close=()).result()
    assert settings.engine == ProcessPoolSettings(max_workers=3)


def test_the_renderer_names_the_groups_and_takes_the_keepers_word_before_the_mappers() -> None:
    template = "engine: {type: ProcessPoolEngine}\ndisplay_name: {{ mapped_identity.local.uid }} "
    template += "{{ mapped_identity.local.group_names | join(' ') }}"
    start, bundle = documents(template)
    verified = msgspec.msgpack.decode(start, type=VerifiedStart)
    forged = msgspec.structs.replace(verified, mapped_identity={"local": {"uid": 0, "group_names": ["forged"]}})
    account = msgspec.json.encode({"uname": "alice", "uid": 4711, "groups": [7, 60000]})
    settings = Rendering(msgspec.msgpack.encode(forged), bundle, account, close=()).result()
    assert settings.display_name == f"4711 {grp.getgrgid(7).gr_name} 60000"


def test_a_directory_that_is_slow_to_name_groups_has_more_time_than_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The keeper bounds the whole start."""
    ticks = itertools.chain([0.0], itertools.repeat(100.0))  # it takes long before the renderer's first word alone
    monkeypatch.setattr(render_process.time, "monotonic", lambda: next(ticks))
    assert Rendering(*documents("engine: {type: ProcessPoolEngine}"), close=()).result()


def test_the_keepers_document_on_the_account_completes_the_identity() -> None:
    template = "engine: {type: ProcessPoolEngine}\ndisplay_name: {{ mapped_identity.local.uid }} {{ _GC.mapped_identity"
    template += ".local.group_names[0] }}"
    account = msgspec.json.encode({"uname": "alice", "uid": 4711, "groups": [7], "group_names": ["staff"]})
    settings = Rendering(*documents(template), account, close=()).result()
    assert settings.display_name == "4711 staff"


def test_the_persons_mistake_and_the_administrators() -> None:
    schema = {"type": "object", "properties": {"N": {"type": "integer"}}}
    theirs = failure("engine: {type: ProcessPoolEngine}", {"N": "x"}, schema)
    assert (theirs.code, "N" in theirs.public) == ("USER_CONFIG_INVALID", True)
    ours = failure("engine: {type: NoSuchEngine}")
    assert ours.code == "ENDPOINT_MISCONFIGURED"
    assert "NoSuchEngine" in ours.detail
    assert "NoSuchEngine" not in ours.public


def test_a_template_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_process, "DEADLINE_S", 0.5)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    said = failure(endless + "{% endfor %}\nengine: {type: ProcessPoolEngine}")
    assert time.monotonic() - began < 25
    assert said.code == "ENDPOINT_MISCONFIGURED"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGXCPU])
def test_a_renderer_that_is_killed_says_nothing_against_the_configuration(number: signal.Signals) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    rendering = Rendering(*documents(endless), close=())
    os.kill(rendering._pid, number)
    with pytest.raises(StartFailure) as caught:
        rendering.result()
    assert caught.value.code == StartInterrupted.code
    assert f"was killed by {number.name}" in caught.value.public


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "x"), OSError(errno.ENOSPC, "x"), MemoryError()])
def test_a_renderer_that_is_short_of_something_says_nothing_against_the_configuration(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> None:
        raise error

    monkeypatch.setattr(render_process, "decode_bundle", short)
    said = failure("engine: {type: ProcessPoolEngine}")
    assert said.code == StartInterrupted.code
    assert reason_of(error) in said.public


def test_a_renderer_that_errs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_process, "_render", lambda *_documents: 1 / 0)
    said = failure("")
    assert said.code == "ENDPOINT_MISCONFIGURED"
    assert "ZeroDivisionError" in said.detail
    assert "ZeroDivisionError" not in said.public
