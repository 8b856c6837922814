"""Every key of config.yaml, declared once: type, default, unit, check and text.

The source of the defaults, checks, help, the commented config.yaml of `mep configure` and the table in
docs/configuration.md. Names follow Globus Compute if the same setting exists there. Holds no I/O; used by
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

from identity.allowed_domains import domain_problem
from mep.boundary.resolved_config import PRIVILEGED_GROUPS
from mep_wire.function_lists import entry_problem

Check = Callable[[Any], str]
"""Returns why a value is refused, or an empty string."""


def about(doc: str, *, check: Check | None = None, example: Any = None, unit: str = "") -> dict[str, Any]:
    """Return a key's declaration apart from type and default. `doc` is the text for administrators."""
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
    return _entries(list(value))


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def relay_url_problem(value: str | None) -> str:
    """Return why `value` is not an acceptable relay URL, or an empty string."""
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


def _policy_id(value: str | None) -> str:
    return "" if value is None else _uuids([value])


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


_ENTRY = re.compile(r"[\w.][^\x00-\x1f\x7f-\x9f:,/*?\[\]!]{0,255}")
"""An account or group of any directory, also `domain users` and a uid or gid. No pattern, and no mark of sudo's."""


def _entries(value: list[str]) -> str:
    bad = [name for name in value if not _ENTRY.fullmatch(name) or name != name.strip()]
    return f"{bad[0]!r} is not a name" if bad else ""


def _names(value: list[str]) -> str:
    bad = [name for name in value if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.$@-]{0,63}", name)]
    return f"{bad[0]!r} is not a name" if bad else ""


def _display_name(value: str | None) -> str:
    if value is None:
        return ""
    return "" if value.isprintable() and 0 < len(value) <= 256 else "must be 1 to 256 printable characters"


def _domains(value: list[str]) -> str:
    return next((problem for one in value if (problem := domain_problem(one))), "")


def _email(value: str | None) -> str:
    if value is None or re.fullmatch(r"[^\s@<>\x00-\x1f\x7f-\x9f]{1,64}@[^\s@<>\x00-\x1f\x7f-\x9f]{1,190}", value):
        return ""
    return "must be an address like hpc-help@example.org"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """Which accounts a user endpoint may run as, whatever the mapping says. Root and the endpoint's own never may."""

    min_uid: int = option("Lowest uid that may have a user endpoint.", 1000, check=at_least(1))
    max_uid: int = option("Highest uid that may have a user endpoint.", 2**31 - 1, check=at_least(1))
    denied_users: list[str] = field(
        default_factory=list,
        metadata=about(
            "Accounts (names or uids) that never get one, under any name of their uid.",
            check=_entries,
            example=["guest"],
        ),
    )
    allowed_groups: list[str] = field(
        default_factory=list,
        metadata=about(
            "If not empty: only members of one of these UNIX groups (names or gids).",
            check=_entries,
            example=["hpc-users"],
        ),
    )
    denied_groups: list[str] = field(
        default_factory=list,
        metadata=about(
            "Members of these UNIX groups (names or gids) never get one, under any name of their uid.", check=_entries
        ),
    )
    privileged_groups: list[str] = field(
        default_factory=lambda: list(PRIVILEGED_GROUPS),
        metadata=about(
            "Groups that are as good as root. Their members, and those of group 0, never get one unless "
            "`allowed_privileged_groups` names the group. Add docker, lxd or wheel if they are so here.",
            check=_entries,
        ),
    )
    allowed_privileged_groups: list[str] = field(
        default_factory=list,
        metadata=about(
            "Privileged groups (also group 0) that a user endpoint may be in. Its tasks then have their rights.",
            check=_entries,
            example=["docker"],
        ),
    )
    require_valid_shell: bool = option("Refuse accounts whose shell is not in /etc/shells.", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsOptions:
    """How many user endpoints may run, and how long a start may take."""

    max_user_endpoints: int = option("Most user endpoints of all people together.", 1000, check=between(1, 1_000_000))
    max_user_endpoints_per_user: int = option("Most user endpoints of one account.", 10, check=between(1, 100_000))
    max_starting: int = option("Most starts under way at once.", 16, check=between(1, 10_000))
    start_timeout_s: float = option(
        "A user endpoint that isn't ready after this time is ended.", 60.0, unit="seconds", check=between(1, 3600)
    )
    stop_grace_s: float = option(
        "Time between asking a user endpoint to end and killing it.", 10.0, unit="seconds", check=between(0, 3600)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PamOptions:
    """Give every user endpoint a PAM session: account checks, limits, environment (docs/privileges.md). Needs root."""

    enable: bool = option("Whether to use PAM.", default=False)
    service_name: str = option("Name of the file in /etc/pam.d.", "mep", check=_service_name)
    recheck: bool = option(
        "Ask the account stage also for running user endpoints. End them if it says that the account is expired, "
        "unknown or has no permission. Don't use this with modules that refuse temporarily (pam_time) or that act on "
        "the requesting process (pam_slurm_adopt).",
        default=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreStartHookOptions:
    """A program run as root before each start, which may refuse it (docs/privileges.md)."""

    path: str | None = option("Absolute path; only root may be able to write to it.", None, check=_absolute)
    timeout_s: float = option("It is killed after this time.", 30.0, unit="seconds", check=between(0.1, 3600))


@dataclass(frozen=True, slots=True, kw_only=True)
class PostStopHookOptions:
    """A program run as root after each end, unless pre_start_hook had refused the start (docs/privileges.md)."""

    path: str | None = option("Absolute path; only root may be able to write to it.", None, check=_absolute)
    timeout_s: float = option("It is killed after this time.", 30.0, unit="seconds", check=between(0.1, 3600))


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitValues:
    """Limits of user endpoints. A limit that is absent is not set."""

    memory_max: int | str | None = option(
        "Memory of one user endpoint. Above it, the kernel kills.", None, unit="bytes", check=_size, example="4G"
    )
    memory_high: int | str | None = option(
        "Memory of one user endpoint. Above it, the kernel throttles.", None, unit="bytes", check=_size, example="3G"
    )
    cpu_max: float | None = option(
        "Processors of one user endpoint.", None, unit="processors", check=at_least(0.01), example=2.0
    )
    tasks_max: int | None = option(
        "Processes and threads of one user endpoint.", None, check=at_least(16), example=1000
    )
    io_weight: int | None = option(
        "Share of disks of one user endpoint, 1 to 10000; the default of all other processes is 100.",
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
        "Processes and threads of the account, wherever they were started (RLIMIT_NPROC).",
        None,
        check=at_least(16),
        example=4000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsOptions(LimitValues):
    """Limits of user endpoints. memory, cpu, tasks and io need root and cgroup v2, with or without systemd."""

    by_group: dict[str, LimitValues] = field(
        default_factory=dict,
        metadata=about(
            "Limits of the members of UNIX groups, in place of the values of this section. The first group that an "
            "account belongs to applies.",
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
        "The name shown to people. Absent: the directory's name.", None, check=_display_name
    )
    multi_user: bool = option(
        "Serve every person that identity_mapping.json maps to a local account. Needs root. Otherwise the endpoint "
        "serves only the identities of the person who registered it.",
        default=False,
    )
    email: str | None = option(
        "The administrators' address. Templates see it as `parent_config.email`.",
        None,
        check=_email,
        example="hpc-help@example.org",
    )
    public: bool = option("Show the endpoint to all in the relay's list. Access isn't affected.", default=False)
    admin_group: str | None = option(
        "UNIX group of this host: its members may see and act on the endpoint as root may with `mep status`, `top`, "
        "`logs`, `stop --user` and `--uep`, `drain`, `ban` and `reload`. Absent: root alone. A member "
        "should run no functions here, since they would have the group too.",
        None,
        check=lambda value: "" if value is None else _entries([value]),
        example="mep-admins",
    )
    authentication_policy: str | None = option(
        "The id of an authentication policy of the relay's: who submits must have logged in as it says.",
        None,
        check=_policy_id,
        example="6d0ba55f-de15-4af2-827d-05c50c338aa7",
    )
    high_assurance: bool = option(
        "Run only functions that were registered for this endpoint, under an `authentication_policy` that is "
        "high_assurance at the relay.",
        default=False,
    )
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
    quoting: str = option(
        "How texts reach the template. `typed`: as they are. `json`: as JSON, with quotes, as in Globus Compute. "
        "An adopted directory has json (docs/templates.md).",
        "typed",
        check=one_of("typed", "json"),
    )
    user_config_schema_path: str | None = option(
        "JSON schema that a person's user_endpoint_config must fit. Absent: user_config_schema.json beside this file.",
        None,
    )
    identity_mapping_config_path: str | None = option(
        "Maps identities to local accounts. Absent: identity_mapping.json beside this file.", None
    )
    allowed_domains: list[str] = field(
        default_factory=list,
        metadata=about(
            "If not empty: only identities with a user name in one of these domains count for the mapping. `*.edu` "
            "is each domain below edu. For a multi-user endpoint.",
            check=_domains,
            example=["example.edu", "*.example.org"],
        ),
    )
    excluded_domains: list[str] = field(
        default_factory=list,
        metadata=about("Identities with a user name in one of these domains never count.", check=_domains),
    )
    audit_log_path: str | None = option(
        "File that records each start and end of a user endpoint. Absent: audit.log in the state directory.", None
    )
    audit_required: bool = option(
        "Refuse a start that can't be recorded in the audit log (because the disk is full, for instance). With "
        "audit_tasks, also refuse starts while tasks can't be recorded.",
        default=False,
    )
    audit_tasks: bool = option(
        "Record each step of a task (received, sent, begun, ended), with function, block and job. The manager writes "
        "these records from reports of the relay and of user endpoints.",
        default=False,
    )
    task_log_path: str | None = option("File of the task records. Absent: tasks.log in the state directory.", None)
    log_path: str | None = option(
        "Log file of a detached endpoint. Absent: endpoint.log in the state directory.", None, check=_absolute_or_home
    )
    log_format: str = option(
        "`json`: each line of the endpoint's log, and of the logs of its user endpoints, is one JSON object: `at`, "
        "`level`, `process`, `pid`, `event`, and the fields. `text`: lines for people.",
        "text",
        check=one_of("text", "json"),
    )
    debug: bool = option("Log more.", default=False)
    user_search_path: str = option(
        "PATH that user endpoints start with.",
        "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        check=_search_path,
    )
    user_state_dir: str | None = option(
        "Directory for the log, spool and run directory of user endpoints, for sites whose home directories need a "
        "ticket. From the part with `{user}` on, the account makes it (mode 0700), and what another account has made "
        "is refused. A directory that accounts share must be sticky. Absent: ~/.mep/uep of each account.",
        None,
        check=_absolute_or_home,
        example="/var/tmp/mep-{user}",  # noqa: S108  # the user endpoint makes it 0700 and checks its owner
    )
    clock_skew_s: float = option(
        "Largest difference between the relay's clock and this host's.", 30.0, unit="seconds", check=between(0, 3600)
    )
    manager_account: str = option(
        "Account of this host that the manager runs as: never root, and not the mapper's. `mep configure` makes one "
        "for each endpoint. If two endpoints share an account, it can read the keys of both and signal the processes "
        "of both.",
        "mep",
        check=lambda value: _names([value]),
    )
    mapper_account: str = option(
        "Account of this host that the mapper and its callouts run as: never root, and not the manager's. `mep "
        "configure` makes one for each endpoint. Sharing it has the same effect as for manager_account.",
        "mep-idmap",
        check=lambda value: _names([value]),
    )
    metrics_port: int = option(
        "TCP port of 127.0.0.1 where the manager serves figures for Prometheus at /metrics. They name no person, and "
        "every account of this host can read them. 0: none.",
        0,
        check=between(0, 65535),
        example=9469,
    )
    recheck_interval_s: float = option(
        "Interval of the checks that the owner of a running user endpoint still maps to its account, and that the "
        "account may still be used. If not, the user endpoint is ended. 0: never.",
        300.0,
        unit="seconds",
        check=between(0, 86400),
    )
    recheck_max_age_s: float = option(
        "How long a user endpoint may run without a confirmation that its owner still maps to its account, because "
        "the relay, the mapper's directory or the manager is down or asks for none. A warning is logged after four "
        "intervals. Choose a time longer than any outage that must not cost people's work. 0: no limit.",
        1209600.0,
        unit="seconds",
        check=between(0, 366 * 86400),
    )
    setuid_programs: str = option(
        "Whether setuid programs and file capabilities work in user endpoints. `deny` sets no_new_privs, an empty "
        "bounding set and locked securebits. `allow` is for schedulers with setuid commands (PBS). The same with and "
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
    "heartbeat_threshold": "the link's silence limit is fixed",
    "environment": "relay_url names the relay",
    "local_compute_services": "relay_url names the relay",
    "subscription_id": "a relay has no subscriptions",
    "force_mu_allow_same_user": "root never runs tasks here",
    "mu_child_ep_grace_period_s": "the relay requests a new start by itself after a user endpoint has ended",
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
"""Keys of Globus Compute that belong in another file here. They are refused, with the name of that file."""
