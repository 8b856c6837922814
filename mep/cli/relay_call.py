"""`python -I -m mep.cli.relay_call`: one request to the relay's HTTP API, as an account without privilege.

Says `ready`, reads a JSON document from standard input (url, method, path, token, body), and prints one: `{"status",
"body"}` for an answer, `{"failed": reason}` where there was none. Says on standard error when it tries again. The token
comes on standard input, so that it is in no process list, and once no other process of this account can look into this
one: it is an administrator's, and the account is that of the manager, which may be taken over. Trusts the server only
as far as TLS proves it; the answer is size-capped and parsed by the caller into a typed struct.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from mep.boundary.child import forbid_core_and_ptrace

TIMEOUT_S = 15.0
ATTEMPTS = 4
_FIRST_WAIT_S = 1.0
_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_AGAIN = frozenset({429, 502, 503, 504})


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)


def _ask(call: dict[str, Any]) -> dict[str, Any]:
    connection = _connection(call["url"])
    try:
        headers = {
            "Authorization": f"Bearer {call['token']}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        body = None if call["body"] is None else json.dumps(call["body"])
        connection.request(call["method"], urlsplit(call["url"]).path.rstrip("/") + call["path"], body, headers)
        answer = connection.getresponse()
        data = answer.read(_MAX_ANSWER_BYTES + 1)
        if len(data) > _MAX_ANSWER_BYTES:
            return {"failed": f"its answer is larger than {_MAX_ANSWER_BYTES} bytes"}
        return {"status": answer.status, "body": data.decode("utf-8", "replace")}
    finally:
        connection.close()


def _ask_patiently(call: dict[str, Any]) -> dict[str, Any]:
    wait_s = _FIRST_WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            answer = _ask(call)
        except ssl.SSLCertVerificationError as error:
            return {"failed": f"its certificate is not accepted: {error.verify_message}"}
        except (OSError, http.client.HTTPException) as error:
            answer = {"failed": getattr(error, "strerror", None) or str(error) or type(error).__name__}
        if "failed" not in answer and answer["status"] not in _AGAIN:
            return answer
        if attempt < ATTEMPTS:
            reason = answer.get("failed") or f"status {answer['status']}"
            sys.stderr.write(f"relay {call['url']}: {reason}; trying again in {wait_s:g} s\n")
            sys.stderr.flush()
            time.sleep(wait_s)
            wait_s *= 2
    return answer


def main() -> None:
    """Make the one request."""
    if 0 in os.getresuid() or 0 in os.getresgid():
        sys.exit("relay_call: refuses to run as root")
    forbid_core_and_ptrace()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdout.write(json.dumps(_ask_patiently(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
