"""The mapper's loop over a real channel: one answer for each request, whatever descriptor it comes with."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep.boundary.channel import Channel
from mep.boundary.errors import BoundaryViolation
from mep.boundary.log import Log
from mep.boundary.memfd import read_sealed, sealed_memfd
from mep.boundary.messages import (
    Mapped,
    MapperReady,
    MappingStatus,
    MapRequest,
    Message,
    NotMapped,
    Shutdown,
    StartAnswered,
)
from mep.boundary.resolved_config import MapperSection
from mep.mapper.mapper import MapperProcess
from mep_wire.identity import IdentitySet
from mep_wire.start_request import VerifiedStart, decode_start
from tests.support.start_requests import ENDPOINT, EPOCH, RelaySide, alice

MAPPING = [
    {
        "DATA_TYPE": "expression_identity_mapping#1.0.0",
        "mappings": [{"source": "{username}", "match": r"(.*)@example\.edu", "output": "meptest-{0}"}],
    }
]


@pytest.fixture
def relay() -> RelaySide:
    return RelaySide(now=time.time(), token=bytes(range(32)))


class Running:
    """A mapper in a thread, and the monitor's end of its channel."""

    def __init__(self, relay: RelaySide, **changes: Any) -> None:
        self.monitor, theirs = Channel.pair(blocking=True)
        account = "mep-idmap" if "mapping_path" in changes else ""
        section = MapperSection(
            **{
                "endpoint_id": ENDPOINT, "relay_signing_key": relay.public_key.hex(), "account": account,
                "unseal_key_path": "", "mapping_path": "", "owner_identities": [], "own_user": "", **changes,
            }
        )  # fmt: skip
        self.failure: BaseException | None = None
        mapper = MapperProcess(section, relay.unseal_key.private_bytes_raw(), theirs, Log("mapper"), epoch=EPOCH)
        self.thread = threading.Thread(target=self._run, args=(mapper, theirs))
        self.thread.start()

    def _run(self, mapper: MapperProcess, channel: Channel) -> None:
        try:
            mapper.run()
        except BoundaryViolation as error:
            self.failure = error
        finally:
            channel.close()

    def receive(self) -> tuple[Message, list[int]]:
        received = self.monitor.receive()
        assert received is not None
        return received

    def ready(self) -> list[MappingStatus]:
        """Return the statuses that come before MapperReady."""
        statuses = []
        while not isinstance(message := self.receive()[0], MapperReady):
            assert isinstance(message, MappingStatus)
            statuses.append(message)
        assert message.epoch == EPOCH
        return statuses

    def ask(self, descriptor: int, ref: int = 7) -> tuple[Message, list[int]]:
        self.monitor.send(MapRequest(ref=ref), [descriptor])
        os.close(descriptor)
        return self.receive()

    def ask_document(self, document: bytes) -> tuple[Message, list[int]]:
        return self.ask(sealed_memfd("test", document))

    def end(self) -> None:
        self.monitor.close()
        self.thread.join(5)
        assert not self.thread.is_alive()


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "identity_mapping.json"
    path.write_text(json.dumps(MAPPING))
    return path


@pytest.fixture
def mapper(relay: RelaySide, mapping: Path) -> Iterator[Running]:
    running = Running(relay, mapping_path=str(mapping))
    running.ready()
    yield running
    running.end()


def refusal(answer: tuple[Message, list[int]], code: str) -> NotMapped:
    message, descriptors = answer
    assert isinstance(message, NotMapped), message
    assert (message.code, descriptors, message.ref) == (code, [], 7)
    return message


def test_a_genuine_request_is_mapped_and_handed_on_unchanged(relay: RelaySide, mapper: Running) -> None:
    document = relay.document()
    message, descriptors = mapper.ask_document(document)
    assert isinstance(message, Mapped)
    assert (message.ref, message.local_user, message.correlation_id) == (7, "meptest-alice", "correlation-1")
    verified = msgspec.msgpack.decode(read_sealed(descriptors[0], 1 << 20), type=VerifiedStart)
    os.close(descriptors[0])
    assert verified.request == msgspec.msgpack.decode(document)[0]
    assert verified.join_token == relay.token
    assert verified.mapped_identity["local"] == {"uname": "meptest-alice"}
    assert verified.mapped_identity["globus"]["username"] == "alice@example.edu"
    assert decode_start(verified.request).uep_id == message.uep_id
    assert json.loads(message.identities)["username"] == "alice@example.edu"


def test_nobody_is_mapped_and_the_audit_log_says_who_was_tried(relay: RelaySide, mapper: Running) -> None:
    who = IdentitySet("account-2", (alice(username="mallory@elsewhere.example"),))
    answer = refusal(mapper.ask_document(relay.document(identity_set=who)), "IDENTITY_NOT_MAPPED")
    assert "mallory@elsewhere.example" in json.loads(answer.identities)["linked"][0]
    assert "mallory" not in answer.public + answer.detail


def test_an_identity_that_is_not_in_use_does_not_count(relay: RelaySide, mapper: Running) -> None:
    who = IdentitySet("account-2", (alice(status="closed"),))
    refusal(mapper.ask_document(relay.document(identity_set=who)), "IDENTITY_NOT_MAPPED")


@pytest.mark.parametrize(
    ("rule", "user"),
    [
        ({"source": "{organization}", "match": "(Physics)?.*", "output": "guest"}, None),
        ({"source": "{username}", "match": r"(.*)@example\.edu", "output": "{0}{organization}"}, None),
        ({"source": "{username}", "match": r"(.*)@example\.edu", "output": "{0}"}, "alice"),
    ],
)
def test_a_field_that_is_empty_on_the_wire_is_one_that_the_identity_lacks(
    relay: RelaySide, mapping: Path, rule: dict[str, str], user: str | None
) -> None:
    mapping.write_text(json.dumps([{**MAPPING[0], "mappings": [rule]}]))
    running = Running(relay, mapping_path=str(mapping))
    running.ready()
    answer = running.ask_document(relay.document())
    if user is None:
        refusal(answer, "IDENTITY_NOT_MAPPED")
    else:
        message, descriptors = answer
        assert isinstance(message, Mapped)
        verified = msgspec.msgpack.decode(read_sealed(descriptors[0], 1 << 20), type=VerifiedStart)
        os.close(descriptors[0])
        assert verified.local_user == user
        assert verified.mapped_identity["globus"]["organization"] == "", "templates may name it all the same"
    running.end()


def test_a_replay_is_refused_by_the_running_mapper(relay: RelaySide, mapper: Running) -> None:
    document = relay.document()
    message, descriptors = mapper.ask_document(document)
    assert isinstance(message, Mapped)
    os.close(descriptors[0])
    refusal(mapper.ask_document(document), "START_REQUEST_STALE")


def test_a_token_sealed_for_another_endpoint(relay: RelaySide, mapper: Running) -> None:
    foreign = RelaySide(signing_key=relay.signing_key, now=relay.now)
    answer = refusal(mapper.ask_document(foreign.document()), "START_REQUEST_REFUSED")
    assert "join token" in answer.public


def test_a_token_sealed_for_another_user_endpoint(relay: RelaySide, mapper: Running) -> None:
    other = relay.request(user_endpoint_config={"x": 2})
    refusal(mapper.ask_document(relay.document(sealed_join_token=other.sealed_join_token)), "START_REQUEST_REFUSED")


def test_descriptors_that_are_no_sealed_document(mapper: Running, tmp_path: Path) -> None:
    unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    reader, writer = os.pipe()
    plain = os.open(tmp_path / "plain", os.O_RDWR | os.O_CREAT)
    directory = os.open(tmp_path, os.O_RDONLY)
    for descriptor in (unsealed, reader, writer, plain, directory, os.open("/dev/zero", os.O_RDONLY)):
        refusal(mapper.ask(descriptor), "START_REQUEST_REFUSED")


@pytest.mark.parametrize("size", [0, 1, 400_000])
def test_sealed_documents_of_any_size(mapper: Running, size: int) -> None:
    refusal(mapper.ask_document(bytes(size)), "START_REQUEST_REFUSED")


def test_a_broken_mapping_file_keeps_the_old_one_and_says_so(relay: RelaySide, mapper: Running, mapping: Path) -> None:
    mapping.write_text("{ not json")
    status, _ = mapper.receive()  # without being asked, soon
    assert isinstance(status, MappingStatus)
    assert str(mapping) in status.problem
    assert status.loaded
    message, descriptors = mapper.ask_document(relay.document())
    assert isinstance(message, Mapped)
    os.close(descriptors[0])


def test_a_mapping_file_that_was_never_good_is_unavailable(relay: RelaySide, tmp_path: Path) -> None:
    running = Running(relay, mapping_path=str(tmp_path / "absent.json"))
    assert "absent.json" in running.ready()[0].problem
    answer = refusal(running.ask_document(relay.document()), "MAPPER_UNAVAILABLE")
    assert "absent.json" in answer.detail
    assert "absent.json" not in answer.public
    running.end()


def test_a_single_user_endpoint_serves_its_owner_alone(relay: RelaySide) -> None:
    running = Running(relay, owner_identities=[alice().id], own_user="carol")
    running.ready()
    message, descriptors = running.ask_document(relay.document())
    assert isinstance(message, Mapped)
    assert message.local_user == "carol"
    os.close(descriptors[0])
    other = IdentitySet("account-2", (alice(id="ffffffff-0000-0000-0000-000000000000"),))
    refusal(running.ask_document(relay.document(identity_set=other)), "IDENTITY_NOT_MAPPED")
    running.end()


def test_sixty_four_long_identities_still_fit_the_answer(relay: RelaySide, mapper: Running) -> None:
    people = tuple(alice(id=str(i), username=f"{'x' * 200}{i}@example.edu") for i in range(63))
    who = IdentitySet("account-3", (alice(), *people))
    message, _ = mapper.ask_document(relay.document(identity_set=who))
    assert isinstance(message, Mapped | NotMapped)


def test_shutdown_ends_it(relay: RelaySide) -> None:
    running = Running(relay, owner_identities=["x"], own_user="carol")
    running.ready()
    running.monitor.send(Shutdown(reason="test"))
    running.thread.join(5)
    assert not running.thread.is_alive()
    assert running.failure is None


def test_a_message_that_the_monitor_never_sends_a_mapper_ends_it(relay: RelaySide) -> None:
    running = Running(relay, owner_identities=["x"], own_user="carol")
    running.ready()
    running.monitor.send(StartAnswered(ref=1, outcome="", uep_id="", code="", public="", correlation_id=""))
    running.thread.join(5)
    assert isinstance(running.failure, BoundaryViolation)
