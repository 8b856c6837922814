"""The resolved configuration, which the resolver (the CLI, which parses YAML) passes to the monitor.

One JSON document on a sealed memfd, typed here. `from_json` refuses unknown and missing keys and wrong
types. It comes from root's own short-lived process, but is checked all the same. Paths are absolute.
A second memfd goes with it: the bundle for user endpoints (mep_wire.bundle), which the monitor passes
on without reading it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mep.boundary.errors import ConfigRefused

MAX_RESOLVED_BYTES = 1024 * 1024
HELPER_UIDS = range(61184, 65520)
"""The uids that `mep configure` gives to the accounts of managers and mappers: the range of systemd's DynamicUser
(systemd.exec(5)), which contains no person's account. The policy refuses the whole range."""
OVERDUE_INTERVALS = 4
"""A re-check is overdue, with a warning, after this many intervals without a good answer."""
_T = TypeVar("_T")


PRIVILEGED_GROUPS = ("disk", "kmem", "shadow")
"""Groups whose members can read or write any file of the host. Group 0 always counts as one too."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The accounts that a keeper may start a process for, whatever the mapper says. Root is never allowed."""

    min_uid: int = 1000
    max_uid: int = 2**31 - 1
    denied_users: list[str] = field(default_factory=list)
    allowed_groups: list[str] = field(default_factory=list)
    denied_groups: list[str] = field(default_factory=list)
    require_valid_shell: bool = False
    privileged_groups: list[str] = field(default_factory=lambda: list(PRIVILEGED_GROUPS))
    allowed_privileged_groups: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Caps:
    """How many user endpoints may run, and how long a start may take."""

    max_user_endpoints: int = 1000
    max_user_endpoints_per_user: int = 10
    max_starting: int = 16
    start_timeout_s: float = 60.0
    stop_grace_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Pam:
    """Whether user endpoints get a PAM session, and of which service."""

    enable: bool = False
    service_name: str = "mep"
    recheck: bool = False
    """Whether the account stage is asked again for running user endpoints."""


@dataclass(frozen=True, slots=True)
class Hook:
    """An administrator's program, run by the keeper; no hook if `path` is empty."""

    path: str = ""
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one user endpoint, and (`person_`) of one account with all its user endpoints. 0 is no limit."""

    memory_max: int = 0
    """In bytes. Above it, the kernel kills."""
    memory_high: int = 0
    """In bytes. Above it, the kernel slows the processes down and reclaims memory."""
    cpu_max: float = 0.0
    """Processors."""
    tasks_max: int = 0
    """Processes and threads."""
    io_weight: int = 0
    """1 to 10000; the default of all others is 100."""
    person_memory_max: int = 0
    person_memory_high: int = 0
    person_cpu_max: float = 0.0
    person_tasks_max: int = 0
    person_io_weight: int = 0
    open_files: int = 0
    """RLIMIT_NOFILE of each process."""
    file_size: int = 0
    """RLIMIT_FSIZE, in bytes."""
    processes: int = 0
    """RLIMIT_NPROC, which counts all processes of the account, wherever they were started."""


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The limits of the members of one UNIX group, in place of the default limits."""

    group: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class ManagerSection:
    """The manager's configuration. It gets no other part of the endpoint's configuration."""

    endpoint_id: str
    relay_link_address: str
    relay_link_key: str
    """The relay's CURVE public key, 64 hexadecimal digits."""
    account: str
    """System account it runs as; empty in single-user mode."""
    link_key_path: str
    """Path of its CURVE secret key, opened by the monitor and read by the manager from descriptor 5."""
    recheck_interval_s: float = 300.0
    """Interval at which manager and monitor re-check a running user endpoint; 0 is never."""
    audit_tasks: bool = False
    """Whether it writes task records, to a file that the monitor passes to it."""
    audit_required: bool = False
    """Whether it passes on no start while it can't write them."""
    log_level: str = "INFO"
    log_format: str = "text"
    max_starting: int = 16
    """How many starts the monitor begins at a time (caps.max_starting); the manager keeps the others back."""
    title: str = ""
    """Endpoint and site, for its command line in ps and top."""
    metrics_port: int = 0
    """TCP port on loopback where it serves figures for Prometheus; 0 for none."""


@dataclass(frozen=True, slots=True)
class MapperSection:
    """The mapper's configuration."""

    endpoint_id: str
    relay_signing_key: str
    """The relay's Ed25519 public key, 64 hexadecimal digits."""
    account: str
    unseal_key_path: str
    mapping_path: str
    """The administrator's identity mapping, read by the mapper; empty in single-user mode."""
    owner_identities: list[str]
    """The ids of the only identities that a single-user endpoint accepts; empty in multi-user mode."""
    own_user: str
    """Single-user mode: the account that all processes run as."""
    clock_skew_s: float = 30.0
    log_level: str = "INFO"
    log_format: str = "text"
    network: bool = False
    """Whether the mapping names a directory or a program, for which the mapper needs the network."""
    programs: bool = False
    """Whether the mapping names a program, which the mapper runs."""
    allowed_domains: list[str] = field(default_factory=list)
    """If not empty: only identities of these domains count."""
    excluded_domains: list[str] = field(default_factory=list)
    """Identities of these domains don't count."""
    title: str = ""
    """Endpoint and site, for its command line in ps and top."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The monitor's whole configuration."""

    name: str
    multi_user: bool
    python: str
    """Absolute path of the interpreter for every child (`python -I`)."""
    user_endpoint_main: str
    """Absolute path of user_endpoint/__main__.py."""
    state_dir: str
    """/var/lib/mep/NAME."""
    runtime_dir: str
    """/run/mep/NAME: keepers/ with exit records, monitor.pid, status.json."""
    log_path: str
    """Path of the monitor's log; empty for standard error."""
    audit_path: str
    user_environment_path: str
    """PATH given to user endpoints."""
    own_accounts: list[str]
    """The endpoint's own accounts, which no identity may map to."""
    policy: Policy
    caps: Caps
    manager: ManagerSection
    mapper: MapperSection
    resolver_argv: list[str]
    """The command that the monitor runs on SIGHUP to get a new document."""
    log_format: str = "text"
    """`text` or `json`, for the log of every process."""
    limits: Limits = field(default_factory=Limits)
    group_limits: list[GroupLimits] = field(default_factory=list)
    """The limits of the first group that an account belongs to apply."""
    audit_required: bool = False
    """Whether a start that can't be recorded is refused."""
    task_log_path: str = ""
    """Path of the manager's task records; empty for none."""
    pam: Pam = field(default_factory=Pam)
    setuid_programs: bool = False
    """Whether setuid programs may work in user endpoints."""
    pre_start_hook: Hook = field(default_factory=Hook)
    post_stop_hook: Hook = field(default_factory=Hook)
    shared_accounts: str = ""
    """Whether two people's user endpoints may run as one account at a time: `allow`, `refuse`, or empty. Empty allows
    it only if the mapping file spells the account's name for both."""
    log_bytes_a_day: int = 64 * 1024 * 1024
    """How much manager and mapper may each add to root's logs in a day, including refusals that they cause."""
    admin_gid: int = -1
    """The group of administrators (besides root) that the monitor obeys at its socket; -1 for none."""
    recheck_max_age_s: float = 1209600.0
    """How long a user endpoint may run after the last confirmation of its owner's mapping; 0 is no limit."""


def to_json(resolved: Resolved) -> bytes:
    """Return the document for `resolved`."""
    return json.dumps(asdict(resolved)).encode()


def section_json(section: ManagerSection | MapperSection) -> bytes:
    """Return the document with which the monitor starts the manager or the mapper."""
    return json.dumps(asdict(section)).encode()


def from_json(data: bytes) -> Resolved:
    """Return the typed configuration. Raises ConfigRefused naming the key."""
    return read_section(Resolved, data)


def read_section(cls: type[_T], data: bytes) -> _T:
    """Return a `cls` (one of the dataclasses above) from its JSON. Raises ConfigRefused naming the key."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ConfigRefused("resolved configuration", "", f"not JSON: {error}") from None
    result: _T = _typed(cls, value, cls.__name__)
    return result


def _typed(kind: Any, value: Any, key: str) -> Any:
    if is_dataclass(kind):
        return _typed_dataclass(kind, value, key)
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise ConfigRefused("resolved configuration", key, "not a list")
        return [_typed(get_args(kind)[0], item, f"{key}[{i}]") for i, item in enumerate(value)]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigRefused("resolved configuration", key, f"not {kind.__name__}")
    return value


def _typed_dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigRefused("resolved configuration", key, "not a mapping")
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    if surplus := set(value) - names:
        raise ConfigRefused("resolved configuration", f"{key}.{sorted(surplus)[0]}", "unknown key")
    if missing := names - set(value):
        raise ConfigRefused("resolved configuration", f"{key}.{sorted(missing)[0]}", "missing")
    return kind(**{name: _typed(hints[name], value[name], f"{key}.{name}") for name in names})
