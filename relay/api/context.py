"""The state that the handlers share: the store, the dispatcher, the accounts, the relay's own keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mep_wire.api import EarlierRelayKeys
from relay.api.body_budget import BodyBudget
from relay.api.readiness import Readiness
from relay.api.user_config_check import UserConfigChecks
from relay.audit import AuditLog
from relay.auth.access import Access
from relay.auth.login import Logins
from relay.auth.oauth import AuthorizationServer
from relay.auth.people import People
from relay.auth.policies import Policies
from relay.auth.settings import PeopleSettings
from relay.auth.tokens import TokenAuth
from relay.dispatch.dispatcher import Dispatcher
from relay.dispatch.submissions import PersonLimits
from relay.rate_limit import Rate, RequestSlots
from relay.store.base import Store

STRANGERS_PER_S = 20.0
"""Requests about logins from one address, on average."""

MAX_STREAMS, MAX_STREAMS_OF_ONE = 1_000_000, 1000
"""Most open result streams: each holds a descriptor, and limits by address count them no longer once they are open."""


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
    read_secret: Callable[[str], str] = lambda _: ""
    """Returns the secret in a file that the settings name; empty for an empty name."""
    people_settings: PeopleSettings = field(default_factory=PeopleSettings)
    audit: AuditLog = field(default_factory=AuditLog)
    url: str = ""
    """Where the relay listens: its address for people, unless the settings name another."""
    people: People = field(init=False)
    oauth: AuthorizationServer = field(init=False)
    logins: Logins = field(init=False)
    access: Access = field(init=False)
    strangers: Rate = field(init=False)
    """Requests without a token, by address."""
    notes_delivery: bool = False
    """Whether results that were sent to their person are removed sooner than others."""
    readiness: Readiness = field(init=False)
    streams: RequestSlots = field(default_factory=lambda: RequestSlots(MAX_STREAMS, MAX_STREAMS_OF_ONE, "stream"))
    """Open result streams, by person."""
    requests: Rate = field(init=False)
    tasks: Rate = field(init=False)

    def __post_init__(self) -> None:
        """Make what follows from the others."""
        self.people = People(self.store, self.people_settings, auth=self.auth, read_secret=self.read_secret)
        self.oauth = AuthorizationServer(self.store, self.people, self.issuer)
        self.logins = Logins(self.people, self.oauth)
        self.access = Access(self.store, Policies(self.store, self.people_settings))
        self.strangers = Rate(STRANGERS_PER_S, "logins")
        self.readiness = Readiness(self.store)
        self.requests = Rate(self.limits.requests_per_s, "requests")
        self.tasks = Rate(self.limits.tasks_per_s, "tasks")

    def issuer(self) -> str:
        """Return the relay's address for people, without a slash at its end."""
        return (self.people_settings.public_url or self.url).rstrip("/")
