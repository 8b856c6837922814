"""Every file and directory that root, or a helper of an endpoint, opens: lists all their problems at once.

The programs that open them check again (mep/boundary/file_trust.py). Here, the administrator gets the whole list.
Used by the resolver, and therefore by `mep check`, `mep start`, `mep restart` and at SIGHUP.
"""

from __future__ import annotations

import os
import pwd
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mep.boundary.file_trust import Trust
from mep.boundary.pam_service import DIRECTORIES, find_service
from mep.config import paths as names
from mep.config.options import EndpointOptions
from mep.config.paths import EndpointPaths
from mep.config.template_bundle import find_file, included_files
from mep.config.template_files import refusal, trust_in


def check_files(where: EndpointPaths, options: EndpointOptions | None) -> None:
    """Raise ConfigRefused, listing every untrusted file of the endpoint and of the installation.

    `options` is None if config.yaml itself isn't trusted. Then the default paths of the other files are checked, but
    not the owners of the keys, which config.yaml names.
    """
    trust = trust_in(os.geteuid())
    found = [*_directories(where, trust), *_state(where, options, trust)]
    found += [problem for path in _configuration(where, options) for problem in _existing(trust.problems, path)]
    if options is not None and options.pam.enable and where.privileged:
        service = find_service(options.pam.service_name) or DIRECTORIES[0]
        found += Trust().problems(service)
    if where.privileged:
        found += installation_problems()
    if found:
        raise refusal(list(dict.fromkeys(found)), str(where.config_dir))


def _directories(where: EndpointPaths, trust: Trust) -> Iterator[str]:
    for path in (where.config_dir, where.state_dir, where.runtime_dir):
        if os.path.lexists(path):
            yield from trust.problems(path, private=True)
        else:
            yield from _existing(trust.problems, path)


def _existing(problems: Callable[[Path], list[str]], path: Path) -> list[str]:
    """Return the problems of `path`, or if it doesn't exist yet, of the lowest directory above it."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return problems(path)


def _configuration(where: EndpointPaths, options: EndpointOptions | None) -> Iterator[Path]:
    given = options or EndpointOptions()
    yield where.config
    template = find_file(where.config_dir, given.user_config_template_path, names.TEMPLATE, names.TEMPLATE_OLD)
    yield template
    if template.parent.is_dir():
        yield from included_files(template, where.config_dir)
    yield find_file(where.config_dir, given.user_config_schema_path, names.SCHEMA)
    yield where.config_dir / names.ENVIRONMENT
    if given.multi_user or options is None:
        yield find_file(where.config_dir, given.identity_mapping_config_path, names.MAPPING)
    for hook in (given.pre_start_hook.path, given.post_stop_hook.path):
        if hook is not None:
            yield Path(hook)


def _state(where: EndpointPaths, options: EndpointOptions | None, trust: Trust) -> Iterator[str]:
    given = options or EndpointOptions()
    for name in (names.REGISTRATION, names.KEY_RECORD, names.FUNCTION_PINS):
        yield from _existing(trust.problems, where.state_dir / name)
    keys = ((names.LINK_KEY, given.manager_account), (names.UNSEAL_KEY, given.mapper_account))
    for name, account in keys:
        path = where.state_dir / name
        if os.path.lexists(path):
            key_trust = _key_trust(where, account, trust) if options else replace(trust, last_owner=path.lstat().st_uid)
            yield from key_trust.problems(path, secret=True)
    logs = (
        (given.audit_log_path, "audit.log"), (given.log_path, "endpoint.log"), (given.task_log_path, "tasks.log")
    )  # fmt: skip
    for configured, default in logs:
        yield from _existing(trust.problems, find_file(where.state_dir, configured, default))


def _key_trust(where: EndpointPaths, account: str, trust: Trust) -> Trust:
    try:
        uid = pwd.getpwnam(account).pw_uid
    except KeyError:  # the resolver reports it
        return trust
    return Trust(trust.owners, uid, account) if where.privileged else trust


def installation_problems() -> list[str]:
    """Return the problems of the interpreter and its imports, as root's processes run them.

    A directory must be closed to others even if it is sticky: an account that can add a file to it adds a module.
    """
    trust = Trust()
    trees = [sysconfig.get_path("scripts"), *(path for path in sys.path if Path(path).exists())]
    found = [problem for path in (sys.prefix, sys.executable, *trees) for problem in trust.problems(path, private=True)]
    if found:  # don't look below an untrusted directory
        return found
    real = dict.fromkeys(os.path.realpath(tree) for tree in trees if Path(tree).is_dir())
    return [problem for tree in real for problem in trust.problems_below(tree)]
