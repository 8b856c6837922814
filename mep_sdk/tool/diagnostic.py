"""The command diagnostic: one report that helps to find a fault. It holds no token, password or secret."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from mep_sdk.client import Client
from mep_sdk.connection import proxy_for
from mep_sdk.executor import Executor
from mep_sdk.foreign_code import attempt
from mep_sdk.http import Connections
from mep_sdk.private_files import write_private
from mep_sdk.profiles import config_dir, default_profile, profile_names
from mep_sdk.settings import ClientSettings
from mep_sdk.tool import output
from mep_sdk.tool.logins import client_of, userinfo
from mep_sdk.version import __version__
from mep_wire.text import printable

_LIBRARIES = ("cloudpickle", "msgspec", "urllib3", "websockets", "pysocks", "python-socks")
_VARIABLES = (
    *("MEP_RELAY_URL", "MEP_TOKEN", "MEP_PROFILE", "MEP_CLIENT_ID", "MEP_CLIENT_SECRET"),
    *("https_proxy", "http_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
_MOST_LINES = 200
_ANSWER_S = 10.0
_TASK_S = 120.0


class _RecentLog(logging.Handler):
    """Keeps the last lines that the SDK logs while this report is made: the checks' journey, retries included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: deque[str] = deque(maxlen=_MOST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        self.lines.append(f"{at}Z {record.levelname} {printable(record.getMessage())}")

    def without(self, *secrets: str) -> list[str]:
        """Return the lines. No part of the SDK logs a token; if one ever does, it is not in the report."""
        told = "\n".join(self.lines)
        for each in filter(None, secrets):
            told = told.replace(each, "(left out)")
        return told.split("\n") if told else []


def diagnostic(options: argparse.Namespace) -> int:
    """Collect the report and print it, or write it into a file; 1 if a check failed."""
    report: dict[str, Any] = {"versions": _versions(), "settings": _settings()}
    client: list[Client] = []
    kept = _RecentLog()
    logging.getLogger("mep_sdk").addHandler(kept)
    logging.getLogger("mep_sdk").setLevel(logging.DEBUG)
    checks: dict[str, Callable[[], Any]] = {
        "client": lambda: _made(client, options),
        "proxy": lambda: str(proxy_for(client[0].settings.relay_url) or "none"),
        "connection": lambda: _connection(client[0].settings),
        "login": lambda: _login(client[0].settings),
        "endpoints": lambda: len(client[0].get_endpoints("any")),
    }
    if options.endpoint:
        checks["sample task"] = lambda: _sample(client[0], options.endpoint)
    failed = 0
    for name, check in checks.items():
        if name != "client" and not client:
            continue
        started = time.monotonic()
        value, error = attempt(check)  # each failure is what the report is for
        if isinstance(error, KeyboardInterrupt):
            raise error
        found: dict[str, Any] = {"ok": True, "found": value}
        if error is not None:
            found, failed = {"ok": False, "error": f"{type(error).__name__}: {error}"}, 1
        report[name] = {**found, "seconds": round(time.monotonic() - started, 3)}
    logging.getLogger("mep_sdk").setLevel(logging.ERROR)
    token, _ = attempt(client[0].settings.bearer) if client else ("", None)
    report["log"] = kept.without(token or "")
    if options.out:
        write_private(Path(options.out), json.dumps(report, indent=2, default=repr).encode() + b"\n")
        output.note(f"The report is in {options.out}. It holds names and addresses, but no secrets.")
    if options.json or not options.out:
        output.as_json(report)
    return failed


def _made(made: list[Client], options: argparse.Namespace) -> str:
    """Make the client; return the relay's address."""
    made.append(client_of(options))
    return made[0].settings.relay_url


def _versions() -> dict[str, str]:
    found = {"mep-sdk": __version__, "python": sys.version, "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _settings() -> dict[str, Any]:
    """Return which settings there are, without their values: proxies' addresses may have passwords."""
    return {
        "variables": [name for name in _VARIABLES if os.environ.get(name)],
        "directory": str(config_dir()),
        "profiles": profile_names(),
        "default profile": default_profile(),
        "client.toml": Path("~/.mep/client.toml").expanduser().exists(),
    }


def _connection(settings: ClientSettings) -> dict[str, Any]:
    """Return what the relay answers without a token, and how far this clock is from its own."""
    connections = Connections(settings)
    try:
        answer = connections.ask("GET", "/v2/version?service=all", None, {"Accept": "application/json"}, _ANSWER_S)
    finally:
        connections.close()
    found: dict[str, Any] = {"status": answer.status, "answer": answer.body[:500].decode(errors="replace")}
    if answer.date:
        found["clock_ahead_s"] = round(time.time() - parsedate_to_datetime(answer.date).timestamp(), 1)
    return found


def _login(settings: ClientSettings) -> dict[str, Any]:
    person = userinfo(settings)
    return {"username": person.get("preferred_username"), "scopes": (person.get("mep") or {}).get("scopes")}


def _sample(client: Client, endpoint: str) -> str:
    from mep_sdk.hardware_report import hardware_report

    executor = Executor(endpoint, client)
    try:
        return str(executor.submit(hardware_report).result(_TASK_S))
    finally:
        executor.shutdown(wait=False)
