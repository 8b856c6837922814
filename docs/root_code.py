"""The parts of root's code, in an order for reading. docs/generate.py counts their lines and writes two tables of them.

A test requires that each file of `mep/root`, and each of `mep/boundary` that root's processes load, is in one part.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """Files that a reviewer reads together."""

    name: str
    files: tuple[str, ...]
    """Below `mep/`, without `.py`; `root/` is left out."""
    controls: str
    """The input that an attacker controls here, by the role that the attacker holds."""
    why: str
    """The reason why this is root's."""
    tests: tuple[str, ...]
    """Files below `tests/` that attack it."""

    def paths(self) -> list[str]:
        """Return the files from the top of the repository."""
        return [f"mep/{file if file.startswith('boundary/') else f'root/{file}'}.py" for file in self.files]


PARTS = (
    Part(
        "messages and their decoder",
        ("boundary/messages", "boundary/channel", "boundary/memfd", "boundary/errors", "boundary/text", "boundary/log"),
        "manager, mapper, member of `admin_group`: each byte and each descriptor of a datagram",
        "Root decodes what less privileged processes send. The same code is at their end.",
        ("boundary/test_contracts.py", "fuzz/test_boundary_decoder.py"),
    ),
    Part(
        "the table of powers, and the loop",
        (
            "monitor/permissions", "monitor/child", "monitor/event_loop", "monitor/part", "monitor/configuration",
            "monitor/fd_closer", "monitor/fd_limit", "boundary/fd_reserve",
        ),
        "the same: which message comes when and how often, and whether answers are read",
        "It decides what root does for whom. Foreign descriptors are closed in a child, since close(2) may block.",
        ("boundary/test_hostile_children.py", "fuzz/test_boundary_sessions.py"),
    ),
    Part(
        "starts, re-checks and records",
        (
            "monitor/start", "monitor/start_requests", "monitor/to_manager", "monitor/rechecks", "monitor/log_budget",
            "monitor/audit_log",
        ),
        "manager: the time and number of requests. Mapper: account, identities, digest of the person, codes, texts",
        "The queue is the manager's and the mapping is the mapper's. Here are the caps, the age of each mapping and "
        "the audit log, which neither may change.",
        ("boundary/test_hostile_children.py", "privileged/test_monitor_rechecks.py", "privileged/test_audit_log.py"),
    ),
    Part(
        "from fork to exec",
        ("kernel/spawn", "kernel/syscalls", "kernel/network_namespace", "boundary/untraceable"),
        "local user: processes of the same account that trace or signal the child",
        "Only root changes accounts, groups, capabilities and namespaces.",
        ("privileged/test_monitor_start.py", "privileged/test_registration_attack.py"),
    ),
    Part(
        "manager and mapper as processes",
        ("monitor/helper_process", "monitor/helper_limits", "account/system_accounts"),
        "manager, mapper: each line on its log pipe, its end, its silence",
        "Their accounts differ from each other's and from root's. A log that a helper could open, it could forge.",
        ("boundary/test_helper_logs.py", "privileged/test_helper_confinement.py"),
    ),
    Part(
        "a keeper's start",
        (
            "keeper/keeper", "account/lookup", "account/nss", "boundary/nss_database", "account/shadow", "keeper/hooks",
            "kernel/program",
        ),
        "mapper: the account's name. Local user: shell and GECOS field of the own account. The output of hooks",
        "The answer decides which uid root becomes, so an unprivileged process that looked it up would be trusted as "
        "much. Only root reads shadow entries. Hooks run as root because sites ask for that.",
        ("boundary/test_accounts.py", "privileged/test_nss_answers.py", "privileged/test_hooks.py"),
    ),
    Part(
        "from exec to the end",
        (
            "keeper/supervisor", "keeper/account_recheck", "account/account_check", "keeper/monitor_link",
            "kernel/unix_socket", "kernel/process_tree", "kernel/signals", "kernel/process_exit", "kernel/cgroup",
            "boundary/cgroup_support",
        ),
        "user endpoint: its reports, all processes below it, the resources that they use",
        "It kills processes that may have changed their uid, writes control groups, and checks the account when no "
        "monitor runs.",
        ("privileged/test_monitor_hostile_users.py", "privileged/test_fork_storms.py", "vm/test_cgroups.py"),
    ),
    Part(
        "PAM",
        ("keeper/pam_session", "pam/session_process", "pam/libpam", "pam/process_context", "boundary/pam_service"),
        "local user: files in the own home that modules read; what modules then say and set",
        "Session modules need root. A process of its own keeps their changes, and their faults, out of the keeper.",
        ("privileged/test_pam_modules.py", "privileged/test_pam_process.py"),
    ),
    Part(
        "user endpoints as the monitor sees them",
        (
            "monitor/keepers", "monitor/user_endpoints", "kernel/keeper_record", "boundary/runtime_files",
            "monitor/runtime_dir", "monitor/adoption", "monitor/orphans", "monitor/liveness",
        ),
        "user endpoint: the time and the way of its end, and the texts in its record",
        "A new monitor knows by the records which processes to take over and which to signal.",
        ("privileged/test_keeper_adoption.py", "privileged/test_monitor_restarts.py"),
    ),
    Part(
        "administrators",
        (
            "monitor/admin_socket", "monitor/administration", "boundary/restrictions", "boundary/figures",
            "monitor/status_file",
        ),
        "member of `admin_group`: each message. User endpoint: its page of figures, which is passed on unread",
        "It stops processes of all accounts. A front process would say who the administrator is, and would have to be "
        "trusted with every stop.",
        ("boundary/test_administrators.py", "acceptance/test_administration.py"),
    ),
    Part(
        "configuration, and the whole",
        (
            "monitor/main", "monitor/__main__", "boundary/lazy_inspect", "monitor/monitor", "monitor/reload",
            "boundary/resolved_config", "boundary/file_trust", "monitor/sd_notify",
        ),
        "local user: links, modes and ACLs on the way to a file that root trusts",
        "Only root may open the keys and the configuration. YAML is parsed by the resolver, a process that ends. "
        "systemd listens to the main process alone.",
        ("privileged/test_file_trust.py", "privileged/test_live_reload.py"),
    ),
)  # fmt: skip
