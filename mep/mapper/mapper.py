"""The mapper's loop: requests from the monitor, verified in order, each answered once when it is mapped.

Trusts the monitor's messages. The descriptor in a request was made by the manager and may be anything. The verified
start goes on as bytes in a sealed memfd. Neither monitor nor keeper reads it, and the manager can't change it. Called
by mep/mapper/main.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from identity.allowed_domains import AllowedDomains
from mep.boundary.channel import Channel, DescriptorsLost, clip
from mep.boundary.errors import SCARCE, BoundaryViolation, ConfigRefused, Refusal
from mep.boundary.log import Log
from mep.boundary.memfd import NotSealed, read_sealed, sealed_memfd
from mep.boundary.messages import (
    Mapped,
    MapperReady,
    MappingStatus,
    MapRequest,
    Message,
    NoLongerMapped,
    NotMapped,
    ReloadNeeded,
    Shutdown,
    StillMapped,
)
from mep.boundary.resolved_config import MapperSection
from mep.mapper.start_verifier import MAX_DOCUMENT_BYTES, EpochSpent, Verifier
from mep.mapper.user_mapping import FileMapping, MappedUser, Mapping, OwnerMapping
from mep_wire.errors import MapperUnavailable, MepError, StartRequestRefused
from mep_wire.identity import IdentitySet
from mep_wire.limits import MAX_PUBLIC_TEXT
from mep_wire.start_request import JOIN_TOKEN_BYTES, SEAL_CONTEXT, StartRequest, VerifiedStart, incarnation_of

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
MAX_MAPPING_THREADS = 32
"""How many start requests may be mapped at once: as many as the monitor sends at once (its start_requests.MAX_MAPPING),
and well above the limit of callouts and directory look-ups (identity.concurrency_limits.MAX_SLOW). Others therefore
always find a thread."""
MAX_RECHECK_THREADS = 4
"""How many re-checks may run at once, in threads of their own, so that no start waits for them."""
MAX_RECHECKS_WAITING = 4
"""How many more re-checks may wait. A further one is answered "unknown" at once, and asked again later. Together with
MAX_SLOW, it must leave some of the monitor's concurrent requests to people with a quick mapping."""
REFRESH_MS = 1000
"""How often the mapping file is checked while there are no requests."""
_TOO_MANY = f"{MAX_RECHECK_THREADS + MAX_RECHECKS_WAITING} re-checks are under way; this one will be made later"
_MAX_END_USER = 256
_MAX_DETAIL, _MAX_IDENTITIES_TEXT, _MAX_ID = 4096, 4096, 64


class MapperProcess:
    """Verifies, maps and answers. `epoch` is the random value that requests must carry."""

    def __init__(self, section: MapperSection, secret: bytes, channel: Channel, log: Log, *, epoch: bytes) -> None:
        self._channel = channel
        self._log = log
        self._epoch = epoch
        self._sending = threading.Lock()
        self._threads = ThreadPoolExecutor(MAX_MAPPING_THREADS, thread_name_prefix="mapping")
        self._recheck_threads = ThreadPoolExecutor(MAX_RECHECK_THREADS, thread_name_prefix="recheck")
        self._recheck_places = threading.BoundedSemaphore(MAX_RECHECK_THREADS + MAX_RECHECKS_WAITING)
        self._unseal_key = X25519PrivateKey.from_private_bytes(secret)
        self._verifier = Verifier(
            endpoint_id=section.endpoint_id,
            signing_key=bytes.fromhex(section.relay_signing_key),
            epoch=epoch,
            clock_skew_s=section.clock_skew_s,
        )
        self._mapping = self._mapping_for(section)

    def _mapping_for(self, section: MapperSection) -> Mapping:
        if section.account and not section.mapping_path:
            raise ConfigRefused("mapper", "mapping_path", "a multi-user endpoint needs a mapping file")
        if not section.mapping_path:
            return OwnerMapping(section.owner_identities, section.own_user)
        return FileMapping(
            Path(section.mapping_path), section.endpoint_id, section.account, self._report_mapping,
            network=section.network, programs=section.programs, need_reload=lambda: self._send(ReloadNeeded()),
            domains=AllowedDomains(section.allowed_domains, section.excluded_domains),
        )  # fmt: skip

    def readable(self) -> list[str]:
        """Return the files that it reads while it runs."""
        return self._mapping.readable()

    def _report_mapping(self, loaded: str, problem: str) -> None:
        self._send(MappingStatus(loaded=clip(loaded, 1024), problem=clip(problem, _MAX_DETAIL)))

    def _send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        with self._sending:
            self._channel.send(message, descriptors)

    def run(self) -> None:
        """Answer until the monitor closes the channel or sends Shutdown, or the epoch is spent."""
        self._send(MapperReady(epoch=self._epoch))
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        try:
            while True:
                while not poll.poll(REFRESH_MS):
                    self._mapping.refresh()
                try:
                    received = self._channel.receive()
                except DescriptorsLost as lost:
                    self._refuse_unread(lost)
                    continue
                if received is None or isinstance(received[0], Shutdown):
                    return
                self._take(*received)
        except EpochSpent:
            self._log.warning("restarting: this epoch has used all its nonces")
        finally:
            for threads in (self._threads, self._recheck_threads):
                threads.shutdown(wait=False, cancel_futures=True)
            for threads in (self._threads, self._recheck_threads):
                threads.shutdown()

    def _take(self, message: Message, descriptors: list[int]) -> None:
        if not isinstance(message, MapRequest):
            raise BoundaryViolation(f"{type(message).__name__} to the mapper")
        try:
            data, request = self._verifier.verify(_read(descriptors[0]))
        except MepError as error:
            self._refuse(message.ref, None, error)
            return
        finally:
            os.close(descriptors[0])
        if request.recheck:
            self._take_recheck(message.ref, request)
        else:
            self._threads.submit(self._answer_map_request, message.ref, data, request).add_done_callback(_check)

    def _refuse_unread(self, lost: DescriptorsLost) -> None:
        """Refuse a request that lost its document because this process had no room for it."""
        if isinstance(lost.message, MapRequest):
            self._refuse(lost.message.ref, None, MapperUnavailable(detail=str(lost)))

    def _take_recheck(self, ref: int, request: StartRequest) -> None:
        if not self._recheck_places.acquire(blocking=False):
            correlation_id = request.correlation_id
            self._say_not_mapped(ref, request, MapperUnavailable(detail=_TOO_MANY, correlation_id=correlation_id))
            return
        done = self._recheck_threads.submit(self._answer_recheck, ref, request)
        done.add_done_callback(lambda _: self._recheck_places.release())
        done.add_done_callback(_check)

    def _answer_map_request(self, ref: int, data: bytes, request: StartRequest) -> None:
        """Map a verified request and answer it. Runs in a thread, because directories may block."""
        try:
            verified, user = self._map(data, request)
            self._accept(ref, request, verified, literal=user.literal)
        except MepError as error:
            self._refuse(ref, request, error)
        except OSError as error:
            if error.errno not in SCARCE:
                raise
            detail = f"no room for the verified start: {error.strerror}"
            self._refuse(ref, request, MapperUnavailable(detail=detail, correlation_id=request.correlation_id))

    def _answer_recheck(self, ref: int, request: StartRequest) -> None:
        """Report the account that a user endpoint's owner maps to now. Runs in a thread: directories may block."""
        try:
            user = self._mapping.map(
                request.identity_set, request.correlation_id, certain=True, end_user=request.end_user
            )
        except MepError as error:
            self._say_not_mapped(ref, request, error)
            return
        correlation_id = clip(request.correlation_id, _MAX_ID)
        self._send(StillMapped(ref, request.uep_id, user.name, correlation_id, request.incarnation))

    def _say_not_mapped(self, ref: int, request: StartRequest, error: MepError) -> None:
        who = _audit_text(request)
        self._log.warning("re-check", code=error.code, detail=error.detail, uep=request.uep_id, identities=who)
        public, detail = clip(error.text, MAX_PUBLIC_TEXT), clip(error.detail, _MAX_DETAIL)
        correlation_id = clip(request.correlation_id, _MAX_ID)
        code = Refusal(error.code).value
        self._send(
            NoLongerMapped(ref, request.uep_id, code, public, detail, correlation_id, incarnation=request.incarnation)
        )

    def _map(self, data: bytes, request: StartRequest) -> tuple[VerifiedStart, MappedUser]:
        token = self._join_token(request)
        user: MappedUser = self._mapping.map(request.identity_set, request.correlation_id, end_user=request.end_user)
        verified = VerifiedStart(
            request=data,
            join_token=token,
            local_user=user.name,
            mapped_identity={"local": {"uname": user.name}, "globus": user.identity},
        )
        return verified, user

    def _join_token(self, request: StartRequest) -> bytes:
        info = SEAL_CONTEXT + request.uep_id.encode("ascii", "replace")
        try:
            token = _SUITE.decrypt(request.sealed_join_token, self._unseal_key, info)
        except (InvalidTag, ValueError) as error:
            raise StartRequestRefused(
                reason="its join token is not sealed for this endpoint",
                detail=f"{type(error).__name__} {error}; is unseal.key the one that was registered?",
                correlation_id=request.correlation_id,
            ) from None
        if len(token) != JOIN_TOKEN_BYTES:
            raise StartRequestRefused(reason="its join token has a wrong length", correlation_id=request.correlation_id)
        return token

    def _accept(self, ref: int, request: StartRequest, verified: VerifiedStart, *, literal: bool) -> None:
        answer = Mapped(
            ref=ref,
            uep_id=request.uep_id,
            local_user=verified.local_user,
            identities=_audit_text(request, verified.mapped_identity["globus"]),
            correlation_id=clip(request.correlation_id, _MAX_ID),
            person=_person(request.identity_set),
            literal=int(literal),
            incarnation=incarnation_of(verified.join_token),
        )
        descriptor = sealed_memfd("mep-verified-start", msgspec.msgpack.encode(verified))
        try:
            self._send(answer, [descriptor])
        finally:
            os.close(descriptor)
        self._log.info(
            "start request mapped",
            uep=request.uep_id,
            user=verified.local_user,
            identity=verified.mapped_identity["globus"].get("username", ""),
            correlation_id=request.correlation_id,
        )

    def _refuse(self, ref: int, request: StartRequest | None, error: MepError) -> None:
        """Refuse a request, which may be unreadable or not genuine."""
        uep_id, identities = (request.uep_id, _audit_text(request)) if request else ("", "")
        self._log.warning(
            "start request refused",
            code=error.code,
            text=error.text,
            detail=error.detail,
            uep=uep_id,
            identities=identities,
            correlation_id=error.correlation_id,
        )
        self._send(
            NotMapped(
                ref=ref,
                uep_id=uep_id,
                code=Refusal(error.code).value,
                public=clip(error.text, MAX_PUBLIC_TEXT),
                detail=clip(error.detail, _MAX_DETAIL),
                correlation_id=clip(error.correlation_id, _MAX_ID),
                identities=identities,
            )
        )


def _check(done: Future[None]) -> None:
    """End the process if answering failed. The monitor starts another, and the relay asks again."""
    if done.cancelled() or (error := done.exception()) is None:
        return
    if not isinstance(error, BrokenPipeError | ConnectionError):  # the monitor is gone: the loop notices that itself
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(1)


def _read(descriptor: int) -> bytes:
    try:
        return read_sealed(descriptor, MAX_DOCUMENT_BYTES)
    except NotSealed as error:
        raise StartRequestRefused(reason="it did not come as a sealed document", detail=str(error)) from None


def _person(who: IdentitySet) -> bytes:
    """Return the digest that tells one of the relay's people from another, whichever identity they logged in with."""
    return hashlib.sha256(b"mep person v1\0" + who.account_id.encode("utf-8", "surrogatepass")).digest()


def _audit_text(request: StartRequest, decided: dict[str, Any] | None = None) -> str:
    """Return JSON for the audit log: the identity that decided, if any, and as many of the linked ones as fit.

    The first of the linked ones is the identity that the person logged in with. A gateway's end user is named too.
    """
    who = request.identity_set
    more = {"end_user": request.end_user[:_MAX_END_USER]} if request.end_user else {}
    decided = decided or {"id": "", "username": ""}
    names = [f"{one.username} ({one.id}, {one.status})" for one in who.identities]
    while True:
        value = {
            "account": who.account_id,
            "id": decided["id"],
            "username": decided["username"],
            **more,
            "linked": names,
        }
        text = json.dumps(value)
        if len(text) <= _MAX_IDENTITIES_TEXT or not names:
            return clip(text, _MAX_IDENTITIES_TEXT)
        names = names[: len(names) // 2]
