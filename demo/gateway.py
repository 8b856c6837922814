"""A science gateway in fifty lines: a portal's people press a button, and one function runs for them.

The portal authenticates its people and names them in X-Portal-User; this service has an account of its own at the
relay, which may run the gateway's functions and no others. The relay's audit log has the person's name.

    GATEWAY_CLIENT_ID=... GATEWAY_CLIENT_SECRET=... python gateway.py RELAY ENDPOINT FUNCTION PORT
"""

import json
import os
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

RELAY, ENDPOINT, FUNCTION, PORT = sys.argv[1:5]


def ask(path: str, token: str = "", form: dict[str, str] | None = None, body: Any = None) -> Any:
    """Return the relay's answer to a request. Raises OSError."""
    data = urlencode(form).encode() if form else json.dumps(body).encode() if body else None
    kind = "application/x-www-form-urlencoded" if form else "application/json"
    headers = {"Content-Type": kind, **({"Authorization": f"Bearer {token}"} if token else {})}
    with urlopen(Request(RELAY + path, data, headers), timeout=30) as answer:
        return json.load(answer)


def token_for(person: str) -> str:
    """Return an access token of the gateway's account, for one person of the portal."""
    secret = {name: os.environ[f"GATEWAY_{name.upper()}"] for name in ("client_id", "client_secret")}
    answer = ask("/oauth/token", form={"grant_type": "client_credentials", "end_user": person, **secret})
    return str(answer["access_token"])


class Gateway(BaseHTTPRequestHandler):
    """POST / runs the function with the body's JSON as its argument; GET /ACTION says how far it is."""

    def do_POST(self) -> None:
        """Run the function."""
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        task = {"function": FUNCTION, "args": [given]}
        run = {"request_id": str(uuid.uuid4()), "body": {"endpoint": ENDPOINT, "tasks": [task]}}
        self.reply(ask("/automate/compute/run", token_for(self.headers["X-Portal-User"]), body=run))

    def do_GET(self) -> None:
        """Say how far an action is."""
        self.reply(ask(f"/automate/compute{self.path}/status", token_for(self.headers["X-Portal-User"])))

    def reply(self, action: Any) -> None:
        """Answer with an action's state and its results."""
        told = {"action": action["action_id"], "status": action["status"], "results": action["details"]["results"]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(PORT)), Gateway).serve_forever()
