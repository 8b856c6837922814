"""Whether the relay works, for a supervisor, a proxy and a monitoring system: /healthz, /readyz, /metrics.

The first two tell nothing else, and anybody may ask. The figures are told to people with a token. Programs of this host
have relay.metrics_listener: here, each request that a proxy passes on comes from this host as well.
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


async def ready(service: ApiContext) -> None:
    """Raises RelayUnavailable, with the reason, where tasks can't be stored or are not taken."""
    if service.dispatcher.live.draining:
        raise RelayUnavailable(reason="it is being drained")
    await service.readiness.check()


async def readyz(service: ApiContext, request: Request) -> Health:
    """GET /readyz: tasks can be stored, and are taken. The reason why not is no matter of strangers'."""
    try:
        await ready(service)
    except RelayUnavailable as error:
        raise RelayUnavailable(
            reason="it is not ready; the relay's log says why", detail=f"{error.text} {error.detail}".rstrip()
        ) from error
    return Health()


async def metrics(service: ApiContext, request: Request) -> str:
    """GET /metrics: the relay's figures, in Prometheus' text format."""
    return service.figures()
