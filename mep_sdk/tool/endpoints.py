"""The commands endpoints and describe."""

from __future__ import annotations

import argparse
from typing import Any

from mep_sdk.executor import Executor
from mep_sdk.tool import output
from mep_sdk.tool.logins import client_of
from mep_sdk.tool.values import config_of


def endpoints(options: argparse.Namespace) -> int:
    """List endpoints: one's own and, without --mine, those that are open to all."""
    found = client_of(options).get_endpoints(None if options.mine else "any")
    if options.json:
        output.as_json(found)
        return 0
    rows = [(each["uuid"], each["name"], each["display_name"], each.get("alias"), each["multi_user"]) for each in found]
    output.table(("id", "name", "display name", "alias", "multi-user"), rows)
    return 0


def describe(options: argparse.Namespace) -> int:
    """Show one endpoint, and with --packages what its workers have."""
    client = client_of(options)
    config = config_of(options.config)
    found = client.describe(options.endpoint)
    if options.packages:
        executor = Executor(found["uuid"], client, user_endpoint_config=config)
        try:
            found["workers"] = executor.get_worker_packages(options.timeout)
        except TimeoutError:
            output.note(f"No worker has answered within {options.timeout:g} s. Without --timeout it is waited for.")
            return 2
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
    if options.json:
        output.as_json(found)
        return 0
    _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    allowed, workers = found.get("allowed_functions"), found.get("workers")
    pythons = [workers["python"]] if workers else found["worker_pythons"]
    output.fields(
        {
            "id": found["uuid"],
            "name": found.get("name"),
            "display name": found.get("display_name"),
            "alias": found.get("alias"),
            "status": found["status"],
            "multi-user": found.get("multi_user"),
            "open to all": found.get("public"),
            "locked": found.get("locked"),
            "functions": "any" if allowed is None else f"{len(allowed)} allowed",
            "your workers' Python": ", ".join(pythons) or "not known yet: --packages asks a worker",
        }
    )
    if rows := found["config_keys"]:
        output.say("\nuser_endpoint_config:")
        output.table(list(rows[0]), [tuple(row.values()) for row in rows])
    output.say(f"\nexample:\n  Executor({found['uuid']!r}, user_endpoint_config={found['example_config']!r})")
    if workers:
        output.say(f"\npackages of {workers['executable']}:")
        output.table(("package", "version"), list(workers["packages"].items()))
