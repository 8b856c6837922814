"""Every key of config.yaml, declared once: type, default, unit, check and text.

Defaults, checks, help, the commented config.yaml of `mep configure` and the table in docs/configuration.md all
come from here. Names follow Globus Compute where the same thing exists there. Holds no I/O; used by
mep/config/parser.py (checks) and mep/config/option_docs.py (text).
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from mep_wire.function_lists import entry_problem

Check = Callable[[Any], str]
"""Returns why a value is not accepted, or an empty string."""


def about(doc: str, *, check: Check | None = None, example: Any = None, unit: str = "") -> dict[str, Any]:
    """Return what is declared of a key besides type and default. `doc` is what an administrator reads."""
    return {"doc": doc, "check": check, "example": example, "unit": unit}


def option(doc: str, default: Any, *, check: Check | None = None, example: Any = None, unit: str = "") -> Any:
    """Declare one key with its default."""
    return field(default=default, metadata=about(doc, check=check, example=example, unit=unit))


def at_least(low: float) -> Check:
    """Accept numbers from `low` on."""
    return lambda value: "" if value is None or value >= low else f"must be at least {low:g}"


def between(low: float, high: float) -> Check:
    """Accept numbers from `low` to `high`."""
    return lambda value: "" if low <= value <= high else f"must be between {low:g} and {high:g}"


def one_of(*words: str) -> Check:
    """Accept one of `words`."""
    return lambda value: "" if value in words else f"must be {' or '.join(words)}"


SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _size(value: int | str | None) -> str:
    ok = value is None or (
        value > 0 if isinstance(value, int) else re.fullmatch(r"[1-9][0-9]*(\.[0-9]+)?[KMGT]?", value)
    )
    return "" if ok else "must be a number of bytes, or one with K, M, G or T (512M, 1.5G)"


def _groups(value: dict[str, Any]) -> str:
    return _names(list(value))


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def relay_url_problem(value: str | None) -> str:
    """Return why `value` is no acceptable relay URL, or an empty string."""
    if value is None:
        return ""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        return "must be like https://relay.example.org or http://127.0.0.1:8650"
    if parts.username or parts.password:
        return "must not hold a user name or a password"
    if parts.query or parts.fragment:
        return "must not have a query or a fragment"
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        return "must be https, since it would carry a token in clear (http is accepted for this machine alone)"
    return ""


def _uuids(value: list[str] | None) -> str:
    for item in value or []:
        try:
            uuid.UUID(item)
        except ValueError:
            return f"{item!r} is not a UUID"
    return ""


def _function_entries(value: list[str] | None) -> str:
    return next((problem for item in value or [] if (problem := entry_problem(item))), "")


def _absolute_or_home(value: str | None) -> str:
    return "" if value is None or value.startswith("/") else "must be an absolute path ({user} stands for the account)"


def _absolute(value: str | None) -> str:
    return "" if value is None or value.startswith("/") else "must be an absolute path"


def _service_name(value: str) -> str:
    if re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", value):
        return ""
    return "must be the name of a file in /etc/pam.d, in lower case: PAM looks for no other"


def _search_path(value: str) -> str:
    bad = [part for part in value.split(":") if not part.startswith("/")]
    return f"every part must be an absolute path, and {bad[0]!r} is not" if bad else ""


def _names(value: list[str]) -> str:
    bad = [name for name in value if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.$@-]{0,63}", name)]
    return f"{bad[0]!r} is not a name" if bad else ""


def _display_name(value: str | None) -> str:
    if value is None:
        return ""
    return "" if value.isprintable() and 0 < len(value) <= 256 else "must be 1 to 256 printable characters"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """Which accounts a user endpoint may run as, whatever the mapping says. Root and the endpoint's own never."""

    min_uid: int = option("Lowest uid that may have a user endpoint.", 1000, check=at_least(1))
    max_uid: int = option("Highest uid that may have a user endpoint.", 2**31 - 1, check=at_least(1))
    denied_users: list[str] = field(
        default_factory=list, metadata=about("Accounts that never get one.", check=_names, example=["guest"])
    )
    allowed_groups: list[str] = field(
        default_factory=list,
        metadata=about("If not empty: only members of one of these UNIX groups.", check=_names, example=["hpc-users"]),
    )
    denied_groups: list[str] = field(
        default_factory=list, metadata=about("Members of these UNIX groups never get one.", check=_names)
    )
    require_valid_shell: bool = option("Refuse accounts whose shell is not in /etc/shells.", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsOptions:
    """How many user endpoints there may be, and how long a start may take."""

    max_user_endpoints: int = option("Most user endpoints of all people together.", 1000, check=between(1, 1_000_000))
    max_user_endpoints_per_user: int = option("Most user endpoints of one account.", 10, check=between(1, 100_000))
    max_starting: int = option("Most starts under way at once.", 16, check=between(1, 10_000))
    start_timeout_s: float = option(
        "A user endpoint that is not ready by then is ended.", 60.0, unit="seconds", check=between(1, 3600)
    )
    stop_grace_s: float = option(
        "Time between asking a user endpoint to end and killing it.", 10.0, unit="seconds", check=between(0, 3600)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PamOptions:
    """Give every user endpoint a PAM session: account checks, limits, environment (docs/privileges.md). Needs root."""

    enable: bool = option("Whether PAM is asked at all.", default=False)
    service_name: str = option("Name of the file in /etc/pam.d.", "mep", check=_service_name)
    recheck: bool = option(
        "Ask the account stage also of those whose user endpoints run, and end them where it says that the account is "
        "expired, unknown or has no permission. Not for a service with modules that refuse for a while (pam_time) or "
        "act on who asks (pam_slurm_adopt).",
        default=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreStartHookOptions:
    """A program of root's that is run before each start, and may refuse it (docs/privileges.md)."""

    path: str | None = option("Absolute path; nobody but root may be able to write to it.", None, check=_absolute)
    timeout_s: float = option("It is killed after this time.", 30.0, unit="seconds", check=between(0.1, 3600))


@dataclass(frozen=True, slots=True, kw_only=True)
class PostStopHookOptions:
    """A program of root's that is run after each end, whenever pre_start_hook had not refused (docs/privileges.md)."""

    path: str | None = option("Absolute path; nobody but root may be able to write to it.", None, check=_absolute)
    timeout_s: float = option("It is killed after this time.", 30.0, unit="seconds", check=between(0.1, 3600))


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitValues:
    """What user endpoints may use; what is absent is not limited."""

    memory_max: int | str | None = option(
        "Memory of one user endpoint; beyond, the kernel kills.", None, unit="bytes", check=_size, example="4G"
    )
    memory_high: int | str | None = option(
        "Memory of one user endpoint; beyond, the kernel slows it down.", None, unit="bytes", check=_size, example="3G"
    )
    cpu_max: float | None = option(
        "Processors of one user endpoint.", None, unit="processors", check=at_least(0.01), example=2.0
    )
    tasks_max: int | None = option(
        "Processes and threads of one user endpoint.", None, check=at_least(16), example=1000
    )
    io_weight: int | None = option(
        "Share of disks of one user endpoint, 1 to 10000, where everybody else has 100.",
        None,
        check=lambda value: "" if value is None else between(1, 10000)(value),
        example=50,
    )
    person_memory_max: int | str | None = option(
        "memory_max of all user endpoints of one account together.", None, unit="bytes", check=_size, example="16G"
    )
    person_memory_high: int | str | None = option(
        "memory_high of all user endpoints of one account together.", None, unit="bytes", check=_size, example="12G"
    )
    person_cpu_max: float | None = option(
        "cpu_max of all user endpoints of one account together.",
        None,
        unit="processors",
        check=at_least(0.01),
        example=4.0,
    )
    person_tasks_max: int | None = option(
        "tasks_max of all user endpoints of one account together.", None, check=at_least(16), example=4000
    )
    person_io_weight: int | None = option(
        "io_weight of all user endpoints of one account together.",
        None,
        check=lambda value: "" if value is None else between(1, 10000)(value),
        example=50,
    )
    open_files: int | None = option(
        "Open files of each process (RLIMIT_NOFILE).", None, check=at_least(64), example=65536
    )
    file_size: int | str | None = option(
        "Largest file that a process may write (RLIMIT_FSIZE).", None, unit="bytes", check=_size, example="100G"
    )
    processes: int | None = option(
        "Processes and threads of the account, wherever they came from (RLIMIT_NPROC).",
        None,
        check=at_least(16),
        example=4000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsOptions(LimitValues):
    """What user endpoints may use. memory, cpu, tasks and io need cgroup v2 with systemd, or without it, and root."""

    by_group: dict[str, LimitValues] = field(
        default_factory=dict,
        metadata=about(
            "Values of this section for the members of UNIX groups, in place of everybody's. The first group that an "
            "account is in decides.",
            check=_groups,
            example={"staff": {"memory_max": "16G"}},
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """The keys of config.yaml."""

    relay_url: str | None = option(
        "The relay that people send their tasks to.", None, check=relay_url_problem, example="https://relay.example.org"
    )
    display_name: str | None = option(
        "The name that people see. The directory's name where it is absent.", None, check=_display_name
    )
    multi_user: bool = option(
        "Serve everybody whom identity_mapping.json maps to a local account. Needs root. Otherwise the endpoint "
        "serves the identities of the person who registered it, and nobody else.",
        default=False,
    )
    public: bool = option("Show the endpoint to everybody in the relay's list (no matter of access).", default=False)
    admins: list[str] = field(
        default_factory=list,
        metadata=about("Ids of identities that may manage the endpoint at the relay.", check=_uuids),
    )
    allowed_functions: list[str] | None = field(
        default=None,
        metadata=about(
            "The only functions that may run here, each as `sha256:` and the digest of its code, or as its id at the "
            "relay. `mep register` pins the digest of an id's code. Absent: any function.",
            check=_function_entries,
            example=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
        ),
    )
    user_config_template_path: str | None = option(
        "Template of a user endpoint's configuration. Absent: user_config_template.yaml.j2 beside this file.", None
    )
    user_config_schema_path: str | None = option(
        "JSON schema that a person's user_endpoint_config must fit. Absent: user_config_schema.json beside this file.",
        None,
    )
    identity_mapping_config_path: str | None = option(
        "Which identity is which local account. Absent: identity_mapping.json beside this file.", None
    )
    audit_log_path: str | None = option(
        "Where each start and end of a user endpoint is recorded. Absent: audit.log in the state directory.", None
    )
    audit_required: bool = option(
        "Start no user endpoint whose start cannot be recorded in the audit log (a full disk, for instance), or, with "
        "audit_tasks, while tasks cannot be recorded.",
        default=False,
    )
    audit_tasks: bool = option(
        "Record what happens to each task (received, sent, begun, ended), with function, block and job. Written by the "
        "manager, from what the relay and user endpoints say.",
        default=False,
    )
    task_log_path: str | None = option("Where tasks are recorded. Absent: tasks.log in the state directory.", None)
    log_path: str | None = option(
        "Where a detached endpoint logs. Absent: endpoint.log in the state directory.", None, check=_absolute_or_home
    )
    debug: bool = option("Log more.", default=False)
    user_search_path: str = option(
        "PATH that user endpoints start with.",
        "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        check=_search_path,
    )
    user_state_dir: str | None = option(
        "Where user endpoints keep log, spool and run directory, for sites whose home directories need a ticket. "
        "Absent: ~/.mep/uep of each account.",
        None,
        check=_absolute_or_home,
        example="/var/tmp/mep-{user}",  # noqa: S108  # the user endpoint makes it 0700 and checks whose it is
    )
    clock_skew_s: float = option(
        "How far the relay's clock and this host's may be apart.", 30.0, unit="seconds", check=between(0, 3600)
    )
    manager_account: str = option(
        "Account of this host that the manager runs as: never root, and not the mapper's. `mep configure` makes one "
        "for each endpoint. An account that two endpoints share can read the keys of both and signal the processes of "
        "both.",
        "mep",
        check=lambda value: _names([value]),
    )
    mapper_account: str = option(
        "Account of this host that the mapper runs as, and with it callouts: never root, and not the manager's. `mep "
        "configure` makes one for each endpoint. Sharing it means the same as for manager_account.",
        "mep-idmap",
        check=lambda value: _names([value]),
    )
    recheck_interval_s: float = option(
        "How often it is checked that the person of a running user endpoint still maps to its account, and that the "
        "account may still be used; it is ended otherwise. 0: never.",
        300.0,
        unit="seconds",
        check=between(0, 86400),
    )
    recheck_max_age_s: float = option(
        "For how long a user endpoint may run on where nobody confirms that its person still maps to its account, "
        "because the relay, the mapper's directory or the manager is away or does not have it checked. It is warned of "
        "after four intervals, and ended after this. Longer than any outage that is to cost nobody's work. 0: never.",
        1209600.0,
        unit="seconds",
        check=between(0, 366 * 86400),
    )
    setuid_programs: str = option(
        "Whether setuid programs and file capabilities work in user endpoints: `deny` (no_new_privs, an empty bounding "
        "set, locked securebits) or `allow`, for schedulers whose commands are setuid (PBS). The same with and "
        "without PAM.",
        "deny",
        check=one_of("deny", "allow"),
    )
    shared_accounts: str | None = option(
        "Whether user endpoints of two people may run as one account at the same time: `allow` or `refuse`. They can "
        "read each other's memory, files and results. Absent: refuse, unless the `output` of an expression mapping "
        "spells the account for both.",
        None,
        check=lambda value: "" if value is None else one_of("refuse", "allow")(value),
        example="refuse",
    )
    pam: PamOptions = field(default_factory=PamOptions, metadata=about(""))
    pre_start_hook: PreStartHookOptions = field(default_factory=PreStartHookOptions, metadata=about(""))
    post_stop_hook: PostStopHookOptions = field(default_factory=PostStopHookOptions, metadata=about(""))
    policy: PolicyOptions = field(default_factory=PolicyOptions, metadata=about(""))
    caps: CapsOptions = field(default_factory=CapsOptions, metadata=about(""))
    limits: LimitsOptions = field(default_factory=LimitsOptions, metadata=about(""))


IGNORED_KEYS: dict[str, str] = {
    "amqp_port": "the link to the relay is not AMQP; its address comes with the registration",
    "heartbeat_period": "the relay sets the interval of the manager's heartbeats",
    "heartbeat_threshold": "the link's silence limit is the same everywhere",
    "environment": "relay_url says which relay it is",
    "local_compute_services": "relay_url says which relay it is",
    "subscription_id": "a relay has no subscriptions",
    "force_mu_allow_same_user": "root never runs tasks here",
    "mu_child_ep_grace_period_s": "the relay asks again by itself when a user endpoint has ended",
    "detach_endpoint": "use `mep start --detach`",
    "log_dir": "use log_path; user endpoints log in ~/.mep/uep of their accounts",
    "stdout": "use log_path",
    "stderr": "use log_path",
    "funcx_service_address": "use relay_url",
}
"""Keys of Globus Compute that do not apply here: accepted, and named in a warning."""

MOVED_KEYS = frozenset(
    {"engine", "executors", "idle_heartbeats_soft", "idle_heartbeats_hard", "endpoint_setup", "endpoint_teardown"}
)
"""Keys of Globus Compute that stand in another file here: refused, saying where they belong."""

UNENFORCED_KEYS: dict[str, str] = {
    "authentication_policy": "this relay has no authentication policies, and the endpoint would be open to more "
    "people than the key says; remove it, and limit access by identity_mapping.json and `policy`",
    "high_assurance": "there is no high-assurance mode here; remove the key or set it to false",
}
"""Keys of Globus Compute that restrict access and are not enforced here: refused unless they restrict nothing."""


def restricts_nothing(key: str, value: Any) -> bool:
    """Whether an `UNENFORCED_KEYS` value asks for nothing."""
    return value is None or value is False
