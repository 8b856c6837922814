"""Whether the relay works, for a supervisor, a proxy and a monitoring system: /healthz, /readyz, /metrics.

The first two tell nothing else, and anybody may ask. The figures are told to this host and to people with a token.
"""

from __future__ import annotations

import msgspec

from mep_wire.errors import RelayUnavailable
from relay.api.context import ApiContext
from relay.api.http import Request


class Health(msgspec.Struct, kw_only=True):
    """GET /healthz and /readyz."""

    status: str = "ok"


async def healthz(service: ApiContext, request: Request) -> Health:
    """GET /healthz: the event loop answers."""
    return Health()


async def readyz(service: ApiContext, request: Request) -> Health:
    """GET /readyz: tasks can be stored, and are taken."""
    if service.dispatcher.live.draining:
        raise RelayUnavailable(reason="it is being drained")
    await service.readiness.check()
    return Health()


async def metrics(service: ApiContext, request: Request) -> str:
    """GET /metrics: the relay's figures, in Prometheus' text format."""
    return service.figures()
