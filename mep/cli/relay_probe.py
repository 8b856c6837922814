"""Asks whether this host can reach the relay, whether it is the one that was pinned, and its clock.

For `mep check`, in a child that has dropped root (mep/cli/unprivileged_child.py). It asks without a token and sends
nothing of the endpoint's. Its answer is notes, each a record of one fixed size (mep/cli/relay_answer.py). Root reads
nothing else of it. Each step has a time limit.
"""

from __future__ import annotations

import contextlib
import pwd
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPException
from urllib.parse import urlsplit

from mep.cli import relay_request
from mep.cli.exit_codes import CliFailed
from mep.cli.relay_answer import MAX_NOTES, RECORD_BYTES, AnswerKind, RecordInvalid, RelayAnswer, decode, encode
from mep.cli.unprivileged_child import UnprivilegedChild

HTTP_S, LINK_S = 5.0, 5.0
_ANSWER_S = 30.0
_THREADS = 64
"""Most threads of the account: libzmq has two of its own in each child. The kernel counts those of other checks too,
and of a container of this host whose account has the same number."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The relay that an endpoint is registered with, and the clock skew that the endpoint allows."""

    url: str
    link: str
    key: bytes
    skew_s: float


def ask(relay: Pinned, account: pwd.struct_passwd | None) -> list[str]:
    """Return a note for each thing that would keep the endpoint from working with `relay`, from a child.

    The child becomes `account`, or keeps ours if it is None. Raises CliFailed if it fails.
    """
    notes: list[str] = []
    try:
        with UnprivilegedChild(partial(_work, relay), account, threads=_THREADS) as child:
            while len(notes) <= MAX_NOTES:
                answer = decode(child.receive(RECORD_BYTES, _ANSWER_S))
                if answer.kind is AnswerKind.DONE:
                    return notes
                notes.append(answer.text)
    except RecordInvalid as error:
        raise CliFailed(f"the process that asked relay {relay.url} failed: {error}") from None
    raise CliFailed(f"the process that asked relay {relay.url} sent too many notes")


def _work(relay: Pinned, answers: socket.socket) -> None:
    for note in probe(relay):
        answers.send(encode(RelayAnswer(AnswerKind.NOTE, note)))
    answers.send(encode(RelayAnswer(AnswerKind.DONE)))


def probe(relay: Pinned) -> Iterator[str]:
    """Yield a note for each thing that would keep the endpoint from working with its relay."""
    yield from _http(relay.url, relay.skew_s)
    yield from _link(relay.link, relay.key)


def _http(url: str, skew_s: float) -> Iterator[str]:
    try:
        with contextlib.closing(relay_request.connection(url, HTTP_S)) as connection:
            connection.request("GET", urlsplit(url).path.rstrip("/") + "/openapi.json")
            answer = connection.getresponse()
            now, date, status = time.time(), answer.getheader("Date"), answer.status
    except (OSError, HTTPException) as error:
        reason = relay_request.reason_of(error, url)
        remedy = f"check network, proxy and firewall; run: curl -v {url}"
        yield f"relay {url} cannot be reached from here: {reason}; {remedy}"
        return
    if status != 200:
        yield f"relay {url} answers HTTP status {status} to GET /openapi.json: is this address a MEP relay's?"
    yield from clock_notes(url, date, now, skew_s)


def clock_notes(url: str, date: str | None, now: float, skew_s: float) -> Iterator[str]:
    """Yield a note if the `Date` of an answer that came at `now` differs by more than `skew_s` seconds."""
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return
    if abs(now - theirs) > max(1.0, skew_s):
        which = "ahead of" if now > theirs else "behind"
        yield (
            f"this host's clock is {abs(now - theirs):.0f} s {which} that of relay {url}, and clock_skew_s allows "
            f"{skew_s:g} s: starts are refused as START_REQUEST_STALE; run `timedatectl set-ntp true` on both"
        )


def _link(address: str, key: bytes) -> Iterator[str]:
    """Do the handshake of a link as a client that the relay does not know: only the owner of `key` can answer it."""
    import zmq
    from zmq.utils import z85
    from zmq.utils.monitor import recv_monitor_message

    events = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    events |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.curve_serverkey = z85.encode(key)
        client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
        monitor = client.get_monitor_socket(events)
        client.connect(address)
        connected, end = False, time.monotonic() + LINK_S
        while (left := end - time.monotonic()) > 0 and monitor.poll(int(left * 1000) + 1):
            event = recv_monitor_message(monitor)["event"]
            if event in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH):
                break
            if event == zmq.EVENT_CONNECTED:
                connected = True
            elif connected:
                yield (
                    f"what answers on the link {address} does not hold the key that was pinned at registration; "
                    "ask its operator what `mep-relay key` prints, and run `mep register --again`"
                )
                break
        else:
            reason = "no handshake" if connected else "no connection"
            yield f"the relay's link {address} cannot be reached from here: {reason} in {LINK_S:g} s; open that port"
        client.disable_monitor()
