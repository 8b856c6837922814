"""The state of an endpoint as `mep status` and `mep top` show it, from the monitor, its files, and /proc.

While the monitor runs, it is asked at its socket. After it was killed, its keepers' records (root) or its last status
file (the administrators' group) say which user endpoints still run. Text of people and user endpoints is data here;
endpoint_view.py escapes it.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from mep.boundary import messages as m
from mep.boundary.errors import ConfigRefused
from mep.boundary.figures import decode, read_page
from mep.boundary.restrictions import Restriction, Restrictions
from mep.boundary.runtime_files import MonitorStatus, read_reasons, read_status, running_monitor, start_ticks
from mep.cli.admin_client import ANSWER_S, AdminClient, account_name, is_foreign
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.orphaned_keepers import living_records
from mep.cli.process_figures import ProcessFigures
from mep.config.registration import read_registration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mep.config.paths import EndpointPaths

_BY_UID = re.compile(r"by uid (\d+)")
_WHERE_WHY = "the log says why"
_BAD_LINKS = frozenset({"down", "refused", "gone"})


def describe(where: EndpointPaths) -> dict[str, Any]:
    """Return the endpoint's own state. Raises CliFailed for an account that may not see it."""
    pid = running_monitor(where.runtime_dir)
    status = read_status(where.runtime_dir) if pid is not None else None
    try:
        registration = read_registration(where.registration, where.name)
        endpoint_id, relay = registration.endpoint_id, registration.relay_url
        relay_key = registration.relay_keys.fingerprint
    except ConfigRefused:
        endpoint_id, relay, relay_key = "", "", ""
    known = status if status is not None else MonitorStatus("", 0, 0.0)
    reasons = read_reasons(where.runtime_dir) if status is not None else {}
    return {
        "name": where.name,
        "state": _state(pid, status, registered=bool(endpoint_id) or is_foreign(where)),
        "problem": known.problem,
        "endpoint_id": endpoint_id or known.endpoint_id,
        "relay": relay,
        "relay_key": relay_key,
        "pid": pid,
        "link": known.link_state,
        "link_detail": known.link_detail,
        "configured_at": known.configured_at or None,
        "configuration_problem": _problem(known.configuration_problem, reasons.get("configuration")),
        "configuration_refused_at": known.configuration_refused_at or None,
        "mapping": known.mapping_loaded,
        "mapping_problem": _problem(known.mapping_problem, reasons.get("mapping")),
        "mapping_refused_at": known.mapping_refused_at or None,
        "overdue": sum(bool(one.get("overdue")) for one in known.user_endpoints),
        "accounts_overdue": sum(bool(one.get("account_overdue")) for one in known.user_endpoints),
        "user_endpoints": known.user_endpoints,
        "restrictions": [],
        "failures": [],
    }


def _state(pid: int | None, status: MonitorStatus | None, *, registered: bool) -> str:
    if pid is not None:
        return status.state if status is not None else "starting"
    return "stopped" if registered else "not registered"


def _problem(public: str, reason: str | None) -> str:
    """Return the problem, with the reason if this account may read it."""
    return public.replace(_WHERE_WHY, reason) if public and reason else public


def describe_all(where: EndpointPaths, client: AdminClient | None, timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """Return the endpoint's state with its user endpoints, restrictions and failures. Raises CliFailed.

    Without a `client`, the user endpoints are those of a monitor that no longer runs.
    """
    value = describe(where)
    if client is None:
        if value["pid"] is None:
            value["user_endpoints"] = _left(where)
        value["restrictions"] = _restrictions(where, [])
        return value
    found = client.listing(timeout_s)
    value["failures"] = [_failure(one) for one in found if isinstance(one, m.AdminFailure)]
    value["restrictions"] = _restrictions(where, _all_restrictions(where, client, found, timeout_s))
    value["user_endpoints"] = [
        _user_endpoint(one, value["failures"]) for one in found if isinstance(one, m.AdminEndpoint)
    ]
    return value


def exit_code(value: Mapping[str, Any]) -> Exit:
    """Return the exit code of `mep status`: the worst comes first."""
    if value["pid"] is None:
        return Exit.NOT_RUNNING
    if value["link"] in _BAD_LINKS:
        return Exit.LINK_DOWN
    if value["mapping_problem"] or value["configuration_problem"]:
        return Exit.REFUSED
    return Exit.OVERDUE if value["overdue"] or value["accounts_overdue"] else Exit.OK


def add_process_figures(value: dict[str, Any], found: Mapping[int, ProcessFigures]) -> None:
    """Add CPU time and memory to the user endpoints."""
    for one in value["user_endpoints"]:
        figures = found.get(one.get("keeper_pid", 0))
        if figures is not None:
            one |= {"cpu_s": round(figures.cpu_s, 2), "memory_bytes": figures.memory_bytes}
            one["processes"] = figures.processes


def keepers_of(value: Mapping[str, Any]) -> Iterable[int]:
    """Return the keepers of the user endpoints."""
    return [one["keeper_pid"] for one in value["user_endpoints"] if one.get("keeper_pid")]


def person_of(identities: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the name of the person and all identities, from the JSON of the audit log."""
    try:
        value = json.loads(identities)
    except (ValueError, RecursionError):  # the mapper's words are not trusted
        return "", []
    known = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]
    names = [str(one[key]) for one in known for key in ("username", "email", "name", "sub", "id") if one.get(key)]
    return (names[0] if names else ""), known


def _user_endpoint(row: m.AdminEndpoint, failures: list[dict[str, Any]]) -> dict[str, Any]:
    person, identities = person_of(row.identities)
    value: dict[str, Any] = {
        "uep_id": row.uep_id, "local_user": row.local_user, "uid": row.uid, "person": person,
        "identities": identities, "state": row.state, "since": row.since_ms / 1000,
        "started_at": row.started_ms / 1000, "pid": row.pid, "keeper_pid": row.keeper_pid,
        "correlation_id": row.correlation_id,
    }  # fmt: skip
    times = {"mapping_checked_at": row.mapping_checked_ms, "account_checked_at": row.account_checked_ms}
    value |= {name: at / 1000 for name, at in times.items() if at}
    flags = {"overdue": row.overdue, "account_overdue": row.account_overdue}
    value |= {name: True for name, flag in flags.items() if flag}
    value |= _own_figures(row.figures)
    if not value["last_failure"]:
        own = [one for one in failures if one["local_user"] == row.local_user and row.local_user]
        ended = "ended: " if own and own[-1]["event"] == "end" else ""
        value["last_failure"] = f"{own[-1]['code']}: {ended}{own[-1]['detail']}" if own else ""
    return value


def _own_figures(page: bytes) -> dict[str, Any]:
    figures = decode(page)
    if figures is None:
        return {"tasks": None, "values": "", "blocks": "", "trouble": "", "last_failure": "", "log_path": ""}
    counts = {key: getattr(figures, key) for key in ("waiting", "running", "done", "failed")}
    texts = {"values": figures.values, "blocks": figures.blocks, "trouble": figures.trouble}
    return {"tasks": counts, **texts, "last_failure": figures.failure, "log_path": figures.log_path}


def _all_restrictions(
    where: EndpointPaths, client: AdminClient, told: Sequence[m.Message], timeout_s: float
) -> Sequence[m.Message]:
    """Return the drains and bans for a member: those that came with the list, if these are not just the latest."""
    if not is_foreign(where) or sum(isinstance(one, m.AdminRestriction) for one in told) < m.MAX_ADMIN_ROWS:
        return told
    try:
        return client.restrictions(timeout_s)
    except CliFailed:
        return told  # a monitor of the version before knows no such question


def _restrictions(where: EndpointPaths, told: Iterable[m.Message]) -> list[dict[str, Any]]:
    """Return the drains and bans: the owner reads the file, a member takes the monitor's words."""
    if not is_foreign(where):
        try:
            return [_restriction(one, one.since) for one in Restrictions(str(where.state_dir)).all]
        except (OSError, ConfigRefused):
            pass  # the monitor's own words are left
    return [_restriction(one, one.since_ms / 1000) for one in told if isinstance(one, m.AdminRestriction)]


def _restriction(one: Restriction | m.AdminRestriction, since: float) -> dict[str, Any]:
    value = {"kind": one.kind, "local_user": one.local_user, "message": one.message, "refuse": bool(one.refuse)}
    return {**value, "by_uid": one.by_uid, "since": since}


def _failure(row: m.AdminFailure) -> dict[str, Any]:
    person, _ = person_of(row.identities)
    return {
        "at": row.at_ms / 1000, "local_user": row.local_user, "person": person, "code": row.code,
        "event": "end" if row.detail.startswith(m.ENDED) else "start",
        "detail": _BY_UID.sub(lambda found: f"by {account_name(int(found[1]))}", row.detail.removeprefix(m.ENDED)),
        "correlation_id": row.correlation_id,
    }  # fmt: skip


# --- user endpoints without a monitor ---------------------------------------------------------------------


def _left(where: EndpointPaths) -> list[dict[str, Any]]:
    """Return the user endpoints that still run although the monitor does not."""
    if not is_foreign(where):
        return [_left_by_record(record) for record in living_records(where)]
    status = read_status(where.runtime_dir)
    known = status.user_endpoints if status is not None else []
    return [one for one in known if start_ticks(int(one.get("keeper_pid") or 0)) is not None]


def _left_by_record(record: dict[str, Any]) -> dict[str, Any]:
    person, identities = person_of(str(record.get("identities", "")))
    keys = ("uep_id", "local_user", "uid", "state", "started_at", "keeper_pid", "correlation_id")
    value: dict[str, Any] = {key: record.get(key) for key in keys}
    value |= {"person": person, "identities": identities, "pid": record.get("uep_pid"), "since": value["started_at"]}
    return value | _own_figures(_page_of(value["keeper_pid"], record.get("figures_fd", -1)))


def _page_of(keeper: Any, number: Any) -> bytes:
    if not isinstance(keeper, int) or not isinstance(number, int) or number < 0:
        return b""
    try:
        with open(f"/proc/{keeper}/fd/{number}", "rb", buffering=0) as file:
            return read_page(file.fileno())
    except OSError:
        return b""


def ages(at: Any) -> str:
    """Return how long ago a time was."""
    if not isinstance(at, int | float) or not at:
        return "not yet"
    seconds = max(0, round(time.time() - at))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
