"""`python -I -m mep.cli.relay_probe FD`: can this host reach the relay, is it the one that was pinned, and its clock.

For `mep check`, as an account without privilege. It reads a JSON document from descriptor FD (url, link, key in
hexadecimal, skew_s) and prints {"notes": [...]}. It asks without a token, sends nothing of the endpoint's, and trusts
the answer in nothing but what it reports. Each step has a time limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from urllib.parse import urlsplit

from mep.cli import relay_request

HTTP_S, LINK_S = 5.0, 5.0
_MAX_REQUEST = 64 * 1024


def probe(url: str, link: str, key: bytes, skew_s: float) -> Iterator[str]:
    """Yield a note for each thing that would keep the endpoint from working with its relay."""
    yield from _http(url, skew_s)
    yield from _link(link, key)


def _http(url: str, skew_s: float) -> Iterator[str]:
    try:
        with contextlib.closing(relay_request.connection(url, HTTP_S)) as connection:
            connection.request("GET", urlsplit(url).path.rstrip("/") + "/openapi.json")
            answer = connection.getresponse()
            now, date, status = time.time(), answer.getheader("Date"), answer.status
    except (OSError, HTTPException) as error:
        reason = relay_request.reason_of(error, url)
        yield f"relay {url} cannot be reached from here: {reason}; check network, proxy and firewall"
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


def main() -> None:
    """Read the request, probe, print the notes."""
    if os.geteuid() == 0:
        sys.exit("mep.cli.relay_probe: refuses to run as root")
    with open(int(sys.argv[1]), "rb", closefd=False) as file:
        asked = json.loads(file.read(_MAX_REQUEST))
    notes = list(probe(asked["url"], asked["link"], bytes.fromhex(asked["key"]), asked["skew_s"]))
    json.dump({"notes": notes}, sys.stdout)


if __name__ == "__main__":
    main()
