"""Looks at an endpoint again and again, through restarts and kills of its monitor. For `mep top`.

A look never fails once one has succeeded. While the monitor is away, its keepers' records say which user endpoints
still run, and a notice names the unknown. After the return, it names the user endpoints that have ended.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mep.boundary.errors import ConfigRefused
from mep.cli.admin_client import AdminClient
from mep.cli.endpoint_state import describe_all
from mep.cli.exit_codes import CliFailed

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths

ANSWER_S = 5.0
"""How long one look may wait for the monitor."""
RETURN_SHOWN_S = 60.0
"""How long the notice of a return is shown."""
_UNKNOWN = "its link, drains, bans and failures are unknown until it is back"


@dataclass(slots=True)
class _Absence:
    """The time without the monitor that had `pid`; `before` are its user endpoints at the last look."""

    pid: int
    began: float
    before: dict[str, str]


class EndpointWatch:
    """The looks at one endpoint."""

    def __init__(self, where: EndpointPaths) -> None:
        self._where = where
        self._client: AdminClient | None = None
        self._last: dict[str, Any] | None = None
        self._last_at = 0.0
        self._absence: _Absence | None = None
        self._returned, self._returned_at = "", 0.0

    def look(self) -> dict[str, Any]:
        """Return the endpoint's state, with a `notice`. Raises CliFailed, ConfigRefused and OSError at first only."""
        trouble = ""
        try:
            value = self._ask()
        except (CliFailed, ConfigRefused, OSError) as error:
            self.close()
            if self._last is None:
                raise
            trouble = error.text if isinstance(error, CliFailed) else str(error)
            value = {**self._last, "user_endpoints": [dict(one) for one in self._last["user_endpoints"]]}
        notice = self._notice(value, trouble)
        if not trouble and value["pid"] is not None:
            self._last, self._last_at = value, time.monotonic()
        return {"name": value["name"], "state": value["state"], "notice": notice} | value

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _ask(self) -> dict[str, Any]:
        """Return the state by the monitor itself, by another one if that has ended, or by its keepers."""
        if self._client is not None:
            try:
                return describe_all(self._where, self._client, ANSWER_S)
            except CliFailed:
                self.close()
        self._client = AdminClient.connect(self._where)
        return describe_all(self._where, self._client, ANSWER_S)

    def _notice(self, value: dict[str, Any], trouble: str) -> str:
        now = time.monotonic()
        if trouble or value["pid"] is None:
            return self._away(now, trouble)
        if self._client is None:  # it begins, or it is of a version that is not asked
            return self._away(now, trouble) if self._absence is not None else ""
        if self._absence is None and self._last is not None and self._last["pid"] != value["pid"]:
            self._begin_absence(self._last_at)  # it was restarted between two looks
        if self._absence is not None:
            self._returned, self._returned_at = _return(self._absence, value, now), now
            self._absence = None
        return self._returned if self._returned and now - self._returned_at < RETURN_SHOWN_S else ""

    def _away(self, now: float, trouble: str) -> str:
        if self._last is None:
            return ""
        if self._absence is None:
            self._begin_absence(now)
        assert self._absence is not None, "it has begun"
        gone = f"{now - self._absence.began:.0f} s"
        if trouble:
            return f"the monitor (pid {self._absence.pid}) gives no answer for {gone}: {trouble}. The last one is shown"
        return (
            f"the monitor (pid {self._absence.pid}) is gone for {gone}. User endpoints are shown as their keepers "
            f"recorded them; {_UNKNOWN}"
        )

    def _begin_absence(self, at: float) -> None:
        assert self._last is not None, "a monitor was seen"
        before = {one["uep_id"]: str(one.get("local_user", "")) for one in self._last["user_endpoints"]}
        self._absence = _Absence(self._last["pid"], at, before)


def _return(absence: _Absence, value: dict[str, Any], now: float) -> str:
    """Describe a monitor's return, and the user endpoints that have ended since."""
    there = {one["uep_id"] for one in value["user_endpoints"]}
    lost = [f"{uep_id} ({user})" for uep_id, user in absence.before.items() if uep_id not in there]
    ended = f"; ended meanwhile: {', '.join(lost)}" if lost else ""
    away = f"{now - absence.began:.0f} s"
    if value["pid"] == absence.pid:
        return f"the monitor answers again after {away}{ended}"
    kept = f"{len(absence.before) - len(lost)} of {len(absence.before)} user endpoints"
    return f"a monitor is back after {away} (pid {value['pid']}, before {absence.pid}); it took over {kept}{ended}"
