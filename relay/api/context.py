"""The state that the handlers share: the store, the dispatcher, the accounts, the relay's own keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mep_wire.api import EarlierRelayKeys
from relay.api.body_budget import BodyBudget
from relay.api.rate_limit import Rate
from relay.api.readiness import Readiness
from relay.api.user_config_check import UserConfigChecks
from relay.auth.tokens import TokenAuth
from relay.dispatch.dispatcher import Dispatcher
from relay.dispatch.submissions import PersonLimits
from relay.store.base import Store


@dataclass(slots=True)
class ApiContext:
    """One relay, as its HTTP API sees it. The keys are hexadecimal."""

    store: Store
    dispatcher: Dispatcher
    auth: TokenAuth
    link_address: str
    link_public_key: str
    signing_public_key: str
    earlier_keys: list[EarlierRelayKeys]
    """The pairs before, oldest first."""
    bodies: BodyBudget = field(default_factory=BodyBudget)
    function_digests: dict[int, str] = field(default_factory=dict)
    """SHA-256 of functions' code in hexadecimal, by row."""
    checks: UserConfigChecks = field(default_factory=UserConfigChecks)
    limits: PersonLimits = field(default_factory=PersonLimits)
    figures: Callable[[], str] = lambda: ""
    """Returns the answer of GET /metrics."""
    readiness: Readiness = field(init=False)
    requests: Rate = field(init=False)
    tasks: Rate = field(init=False)

    def __post_init__(self) -> None:
        """Make what follows from the others."""
        self.readiness = Readiness(self.store)
        self.requests = Rate(self.limits.requests_per_s, "requests")
        self.tasks = Rate(self.limits.tasks_per_s, "tasks")
