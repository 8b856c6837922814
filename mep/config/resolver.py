"""Resolves an endpoint's directory into the two documents for the monitor.

Run by `mep start`, `mep check` and, on SIGHUP, by the monitor as a child of its own. It is the only code that parses
YAML as root, and reads only files that no account but root can have written. No process of it stays running.
"""

from __future__ import annotations

import grp
import importlib.util
import logging
import os
import pwd
import shlex
import stat
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import Trust
from mep.boundary.resolved_config import OVERDUE_INTERVALS, Caps, ManagerSection, MapperSection, Policy, Resolved
from mep.boundary.restrictions import FILE, banned_accounts
from mep.config import paths as names
from mep.config.function_pins import pins_for
from mep.config.limits import resolved_limits
from mep.config.options import EndpointOptions
from mep.config.pam_and_hooks import checked_hook, checked_pam
from mep.config.parser import MAX_CONFIG_BYTES, ConfigDocument, read_document
from mep.config.paths import EndpointPaths, Roots, no_such_endpoint
from mep.config.registration import Registration, digest, facts, read_registration
from mep.config.system_accounts import helper_accounts, own_accounts
from mep.config.template_bundle import (
    encode_bundle,
    find_file,
    own_environment,
    read_environment,
    read_schema,
    read_templates,
)
from mep.config.template_files import read_trusted, trust_in
from mep.config.trusted_files import check_files
from mep_wire.bundle import UepBundle


@dataclass(frozen=True, slots=True)
class Resolution:
    """The documents, and the messages for the administrator."""

    resolved: Resolved
    bundle: bytes
    warnings: list[str]
    endpoint: EndpointOptions
    registration: Registration


def read_config(where: EndpointPaths) -> ConfigDocument:
    """Return the endpoint's config.yaml. Raises ConfigRefused."""
    if not where.config.exists():
        raise no_such_endpoint(where)
    text = read_trusted(where.config, cap=MAX_CONFIG_BYTES, owner=os.geteuid())
    return read_document(text, str(where.config))


def _trusted_config(where: EndpointPaths) -> ConfigDocument:
    """Return config.yaml. Raises ConfigRefused with every untrusted file, including the file of a bad config.yaml."""
    if where.config.exists() and trust_in(os.geteuid()).problems(where.config):
        check_files(where, None)
    document = read_config(where)
    if where.privileged and document.options.multi_user:
        helper_accounts(where, document.options)  # the future owners of the keys
    check_files(where, document.options)
    return document


def _check_directories(where: EndpointPaths, document: ConfigDocument) -> None:
    """Raise ConfigRefused for a file of root's in a directory that doesn't exist: a start would make it as root."""
    for key in ("log_path", "audit_log_path", "task_log_path"):
        given: str | None = getattr(document.options, key)
        directory = find_file(where.state_dir, given, key).parent
        if given is not None and not directory.is_dir():
            source = f"{where.config}:{document.lines.get(key, 1)}"
            remedy = f"if the path is right, run: install -d -m 755 {shlex.quote(str(directory))}"
            raise ConfigRefused(source, key, f"there is no directory {directory}; {remedy}")


def resolve(where: EndpointPaths, roots: Roots, *, log_to_file: bool, debug: bool = False) -> Resolution:
    """Return the monitor's configuration for the endpoint. Raises ConfigRefused naming file, key and reason.

    `debug` is as if config.yaml had it, also after a reload.
    """
    document = _trusted_config(where)
    if debug:
        document = replace(document, options=replace(document.options, debug=True))
    try:
        return _resolved(where, roots, document, log_to_file=log_to_file, debug=debug)
    except ConfigRefused as error:
        if error.where != str(where.config) or not (line := _line_of(document, error.key)):
            raise
        raise ConfigRefused(f"{where.config}:{line}", error.key, error.reason) from error.__cause__


def _line_of(document: ConfigDocument, key: str) -> int:
    """Return the line of a key, or of the key that it is below; 0 for one that is not in the file."""
    while key and key not in document.lines:
        key = key.rpartition(".")[0]
    return document.lines.get(key, 0)


def _resolved(
    where: EndpointPaths, roots: Roots, document: ConfigDocument, *, log_to_file: bool, debug: bool
) -> Resolution:
    options = document.options
    _check_directories(where, document)
    warnings = list(document.warnings)
    multi_user = _multi_user(where, options, warnings)
    registration = read_registration(where.registration, where.name)
    schema = _schema(where, options)
    warnings += _drift(where, options, registration, facts(where.name, options, schema, multi_user=multi_user))
    bundle = _bundle(where, document, registration, schema, multi_user=multi_user)
    limits, group_limits = resolved_limits(where, options)
    resolved = Resolved(
        name=where.name,
        multi_user=multi_user,
        python=sys.executable,
        user_endpoint_main=user_endpoint_main(),
        state_dir=str(where.state_dir),
        runtime_dir=str(where.runtime_dir),
        log_path=_log_path(where, options) if log_to_file else "",
        log_format=options.log_format,
        audit_path=str(find_file(where.state_dir, options.audit_log_path, "audit.log")),
        user_environment_path=_search_path(document, multi_user=multi_user),
        own_accounts=own_accounts(roots, options),
        policy=policy_in_force(where, options),
        caps=Caps(**asdict(options.caps)),
        manager=_manager_section(where, options, registration, multi_user=multi_user),
        mapper=_mapper_section(where, options, registration, warnings, multi_user=multi_user),
        resolver_argv=_resolver_argv(
            where, roots, log_to_file=log_to_file, debug=debug, log_json=options.log_format == "json"
        ),
        limits=limits,
        group_limits=group_limits,
        audit_required=options.audit_required,
        task_log_path=_task_log_path(where, options),
        pam=checked_pam(where, options, warnings, multi_user=multi_user),
        setuid_programs=options.setuid_programs == "allow",
        pre_start_hook=checked_hook(where, "pre_start_hook", options.pre_start_hook),
        post_stop_hook=checked_hook(where, "post_stop_hook", options.post_stop_hook),
        # All user endpoints of a single-user endpoint belong to its owner.
        shared_accounts=options.shared_accounts or "" if multi_user else "allow",
        recheck_max_age_s=_recheck_max_age(where, options),
        admin_gid=_admin_gid(where, options, warnings, multi_user=multi_user),
    )
    return Resolution(resolved, bundle, warnings, options, registration)


def _search_path(document: ConfigDocument, *, multi_user: bool) -> str:
    """Return the PATH of user endpoints: of a person's own endpoint, that of its start, unless config.yaml says it."""
    if multi_user or "user_search_path" in document.values:
        return document.options.user_search_path
    own = [part for part in os.environ.get("PATH", "").split(":") if part.startswith("/")]
    return ":".join(own) or document.options.user_search_path


def _recheck_max_age(where: EndpointPaths, options: EndpointOptions) -> float:
    """Return recheck_max_age_s. Refuse a value so low that one or two missed checks would end user endpoints."""
    least = OVERDUE_INTERVALS * options.recheck_interval_s
    if 0 < options.recheck_max_age_s < least:
        reason = f"must be 0, or at least {OVERDUE_INTERVALS} times recheck_interval_s: {least:g}"
        raise ConfigRefused(str(where.config), "recheck_max_age_s", reason)
    return options.recheck_max_age_s


def policy_in_force(where: EndpointPaths, options: EndpointOptions) -> Policy:
    """Return the policy of config.yaml, with the accounts that `mep ban` has added. Raises ConfigRefused."""
    policy = Policy(**asdict(options.policy))
    try:
        banned = banned_accounts(str(where.state_dir))
    except OSError as error:
        raise ConfigRefused(str(where.state_dir / FILE), "", str(error.strerror or error)) from None
    added = [name for name in banned if name not in policy.denied_users]
    return replace(policy, denied_users=[*policy.denied_users, *added])


def _admin_gid(where: EndpointPaths, options: EndpointOptions, warnings: list[str], *, multi_user: bool) -> int:
    """Return the gid of admin_group, -1 for none. Raises ConfigRefused for a group that may not be one."""
    name = options.admin_group
    if name is None:
        return -1
    if not multi_user:
        warnings.append(f"{where.config}: admin_group: a person's own endpoint obeys that person alone")
        return -1
    try:
        group = grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)
    except KeyError:
        raise ConfigRefused(str(where.config), "admin_group", f"there is no group {name} on this host") from None
    if group.gr_gid == 0:
        raise ConfigRefused(str(where.config), "admin_group", "group 0 is root's own: make a group for this alone")
    helpers = helper_accounts(where, options)
    for account in (helpers.manager, helpers.mapper):
        if account.pw_gid == group.gr_gid or account.pw_name in group.gr_mem:
            reason = f"{account.pw_name}, which runs a process of the endpoint, is a member of {name}"
            raise ConfigRefused(str(where.config), "admin_group", reason)
    return group.gr_gid


def _drift(
    where: EndpointPaths, options: EndpointOptions, registration: Registration, now: dict[str, Any]
) -> list[str]:
    found = []
    if options.relay_url not in {None, registration.relay_url}:
        found.append(f"relay_url is {options.relay_url}, and it is registered with {registration.relay_url}")
    if registration.told and registration.told != digest(now):
        found.append("names, schema, allowed_functions or admins have changed since the relay was told")
    return [f"{where.config}: {what}: run `mep register {where.name} --again`" for what in found]


def _multi_user(where: EndpointPaths, options: EndpointOptions, warnings: list[str]) -> bool:
    if where.privileged and not options.multi_user:
        raise ConfigRefused(
            str(where.config),
            "multi_user",
            "a single-user endpoint would run people's functions as root: set multi_user: true, or start it as the "
            "person whose endpoint it is",
        )
    if options.multi_user and not where.privileged:
        warnings.append(
            f"{where.config}: multi_user: needs root to become other accounts; "
            "serving only the identities of the person who registered it"
        )
    return options.multi_user and where.privileged


def _log_path(where: EndpointPaths, options: EndpointOptions) -> str:
    return str(find_file(where.state_dir, options.log_path, "endpoint.log"))


def _task_log_path(where: EndpointPaths, options: EndpointOptions) -> str:
    return str(find_file(where.state_dir, options.task_log_path, "tasks.log")) if options.audit_tasks else ""


def _schema(where: EndpointPaths, options: EndpointOptions) -> dict[str, Any] | None:
    path = find_file(where.config_dir, options.user_config_schema_path, names.SCHEMA)
    return read_schema(path, required=options.user_config_schema_path is not None, owner=os.geteuid())


_PRIVATE = frozenset(
    {
        "admins", "admin_group", "policy", "pam", "pre_start_hook", "post_stop_hook", "manager_account",
        "mapper_account", "identity_mapping_config_path", "audit_log_path", "task_log_path", "log_path",
    }
)  # fmt: skip
"""Keys of config.yaml that templates don't get, because every person can read `parent_config` in their own process."""


def _parent_config(options: EndpointOptions, registration: Registration, *, multi_user: bool) -> dict[str, Any]:
    """Return config.yaml as templates see it: every public key, with its default where it isn't given."""
    public = {key: value for key, value in asdict(options).items() if key not in _PRIVATE}
    return {**public, "relay_url": registration.relay_url, "multi_user": multi_user}


def _bundle(
    where: EndpointPaths,
    document: ConfigDocument,
    registration: Registration,
    schema: dict[str, Any] | None,
    *,
    multi_user: bool,
) -> bytes:
    options, owner = document.options, os.geteuid()
    template = find_file(where.config_dir, options.user_config_template_path, names.TEMPLATE, names.TEMPLATE_OLD)
    bundle = UepBundle(
        endpoint_id=registration.endpoint_id,
        endpoint_name=where.name,
        relay_link_address=registration.link_address,
        relay_link_key=bytes.fromhex(registration.link_public_key),
        template_name=template.name,
        templates=read_templates(template, where.config_dir, owner),
        schema=schema,
        user_environment=read_environment(where.config_dir / names.ENVIRONMENT, owner),
        parent_config=_parent_config(options, registration, multi_user=multi_user),
        allowed_functions=options.allowed_functions,
        function_pins=pins_for(where, options.allowed_functions, owner),
        multi_user=multi_user,
        debug=options.debug,
        log_format=options.log_format,
        audit_tasks=options.audit_tasks,
        user_state_dir=options.user_state_dir,
        quoting=options.quoting,
        own_environment={} if multi_user else own_environment(os.environ),
    )
    return encode_bundle(bundle, where.config_dir)


def _manager_section(
    where: EndpointPaths, options: EndpointOptions, registration: Registration, *, multi_user: bool
) -> ManagerSection:
    return ManagerSection(
        endpoint_id=registration.endpoint_id,
        relay_link_address=registration.link_address,
        relay_link_key=registration.link_public_key,
        account=helper_accounts(where, options).manager.pw_name if multi_user else "",
        link_key_path=_key_path(where, names.LINK_KEY),
        recheck_interval_s=options.recheck_interval_s,
        audit_tasks=options.audit_tasks,
        audit_required=options.audit_required,
        log_level="DEBUG" if options.debug else "INFO",
        log_format=options.log_format,
        max_starting=options.caps.max_starting,
        title=_title(where, options),
        metrics_port=options.metrics_port,
    )


def _mapper_section(
    where: EndpointPaths, options: EndpointOptions, registration: Registration, warnings: list[str], *, multi_user: bool
) -> MapperSection:
    path, network, programs = _checked_mapping(where, options, warnings) if multi_user else ("", False, False)
    return MapperSection(
        endpoint_id=registration.endpoint_id,
        relay_signing_key=registration.signing_public_key,
        account=helper_accounts(where, options).mapper.pw_name if multi_user else "",
        unseal_key_path=_key_path(where, names.UNSEAL_KEY),
        mapping_path=str(path),
        owner_identities=[] if multi_user else [one.id for one in registration.owner],
        own_user="" if multi_user else pwd.getpwuid(os.geteuid()).pw_name,
        clock_skew_s=options.clock_skew_s,
        log_level="DEBUG" if options.debug else "INFO",
        log_format=options.log_format,
        network=network,
        programs=programs,
        allowed_domains=options.allowed_domains,
        excluded_domains=options.excluded_domains,
        title=_title(where, options),
    )


def _title(where: EndpointPaths, options: EndpointOptions) -> str:
    """Return endpoint and site, as a command line shows them."""
    return f"{where.name} at {options.display_name or os.uname().nodename}"


def _key_path(where: EndpointPaths, name: str) -> str:
    path = where.state_dir / name
    if not path.is_file():
        raise ConfigRefused(str(path), "", f"is missing: run `mep register {where.name} --again`")
    return str(path)


def _checked_mapping(where: EndpointPaths, options: EndpointOptions, warnings: list[str]) -> tuple[Path, bool, bool]:
    """Return the mapping's path, and whether it needs the network and runs programs. Raises ConfigRefused.

    What is odd about the mapping is added to `warnings`.
    """
    import identity.errors
    import identity.loader
    import identity.tracked_files

    logging.getLogger("identity").addHandler(logging.NullHandler())  # doubts are returned: see below
    path = find_file(where.config_dir, options.identity_mapping_config_path, names.MAPPING)
    mapper = helper_accounts(where, options).mapper
    # As at each reload by the mapper, which also trusts files of its own account that the mapping names.
    own, named = trust_in(os.geteuid()), Trust(frozenset({os.geteuid(), mapper.pw_uid}))
    files = identity.tracked_files.Files(identity.tracked_files.Rules(mapping=own, named=named))
    try:
        chain = identity.loader.load(path, files=files)
    except identity.errors.MappingFileInvalid as error:
        source = f"{path}:{error.line}" if error.line else str(path)
        raise ConfigRefused(source, "", str(error).removeprefix(f"{source}: ")) from None
    for one in {path, *files.signatures}:
        _check_usable_by(one, mapper, is_program=one in files.programs)
    chain.close()
    warnings += chain.doubts
    return path, chain.network, chain.programs


def _check_usable_by(path: Path, account: pwd.struct_passwd, *, is_program: bool) -> None:
    real = path.resolve()
    for one in [*reversed(real.parents), real]:
        info = one.stat()
        shift = 6 if info.st_uid == account.pw_uid else 3 if info.st_gid == account.pw_gid else 0
        wanted = 0o1 if is_program or stat.S_ISDIR(info.st_mode) else 0o4
        if not (info.st_mode >> shift) & wanted:
            remedy = f"chmod o+x {one}" if wanted == 0o1 else f"chgrp {account.pw_name} {one} && chmod 0640 {one}"
            # Never advise opening root's home directory for this, which a migrated config.yaml often points to.
            closed = f"move {path} to the directory of config.yaml" if one == Path("/root") else f"run: {remedy}"
            verb = "run" if is_program and one == real else "read"
            raise ConfigRefused(str(one), "", f"cannot be {verb} by account {account.pw_name}; {closed}")


def user_endpoint_main() -> str:
    """Return the absolute path of the file that user endpoints execute. Raises ConfigRefused."""
    spec = importlib.util.find_spec("user_endpoint")
    if spec is None or spec.origin is None:
        raise ConfigRefused("installation", "user_endpoint", "the package is not installed")
    return str(Path(spec.origin).resolve().with_name("__main__.py"))


def _resolver_argv(where: EndpointPaths, roots: Roots, **flags: bool) -> list[str]:
    """`flags` are those of `mep resolve`: log_to_file, debug, log_json."""
    argv = [sys.executable, "-I", "-m", "mep.cli", "resolve", where.name]
    argv += ["--etc", str(roots.etc), "--var", str(roots.var), "--run", str(roots.run)]
    return [*argv, *(f"--{name.replace('_', '-')}" for name, given in flags.items() if given)]


def summary(resolution: Resolution) -> dict[str, Any]:
    """Return the content of `mep check`'s output."""
    resolved = resolution.resolved
    return {
        "name": resolved.name,
        "endpoint_id": resolution.registration.endpoint_id,
        "multi_user": resolved.multi_user,
        "relay_url": resolution.registration.relay_url,
        "relay_link": resolution.registration.link_address,
        "bundle_bytes": len(resolution.bundle),
        "warnings": resolution.warnings,
    }
