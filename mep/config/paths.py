"""The paths of an endpoint's files, and the names that an endpoint may have. No I/O but the environment.

As root: /etc/mep/NAME, /var/lib/mep/NAME, /run/mep/NAME. As a person: ~/.mep/NAME with `state` and `run` in it.
MEP_ETC, MEP_VAR and MEP_RUN move the three roots, for tests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mep.boundary.errors import ConfigRefused

MANAGER_ACCOUNT, MAPPER_ACCOUNT, RELAY_ACCOUNT = "mep", "mep-idmap", "mep-relay"
REGISTER_ACCOUNT = "mep-register"
"""Talks to the relay for root, when an endpoint is registered or deleted. It owns nothing, and runs nothing else."""
CONFIG, SCHEMA, ENVIRONMENT = "config.yaml", "user_config_schema.json", "user_environment.yaml"
TEMPLATE, TEMPLATE_OLD = "user_config_template.yaml.j2", "user_config_template.yaml"
MAPPING = "identity_mapping.json"
FIVE_FILES = (CONFIG, TEMPLATE, SCHEMA, ENVIRONMENT, MAPPING)
LINK_KEY, UNSEAL_KEY, REGISTRATION, KEY_RECORD = "link.key", "unseal.key", "registration.json", "keys.json"
FUNCTION_PINS = "function_pins.json"
FORMER_REGISTRATION = "registration.former.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_RESERVED = frozenset({"relay", "uep", "state", "run"})


@dataclass(frozen=True, slots=True)
class Roots:
    """The three directories that hold the endpoints' directories. `privileged` is whether this is root's."""

    etc: Path
    var: Path
    run: Path
    privileged: bool


@dataclass(frozen=True, slots=True)
class EndpointPaths:
    """The three directories of one endpoint."""

    name: str
    config_dir: Path
    state_dir: Path
    runtime_dir: Path
    privileged: bool

    @property
    def config(self) -> Path:
        """The administrator's config.yaml."""
        return self.config_dir / CONFIG

    @property
    def registration(self) -> Path:
        """The relay's answer to the registration."""
        return self.state_dir / REGISTRATION

    @property
    def function_pins(self) -> Path:
        """The digests of the functions that config.yaml lists by id."""
        return self.state_dir / FUNCTION_PINS

    @property
    def former_registration(self) -> Path:
        """The registration that `mep register --new-id` replaces, until it has: the relay's keys in it stay pinned."""
        return self.state_dir / FORMER_REGISTRATION


def find_roots(environ: Mapping[str, str], *, privileged: bool, home: Path) -> Roots:
    """Return the roots for root (`privileged`) or for the person with home directory `home`."""
    etc, var, run = ("/etc/mep", "/var/lib/mep", "/run/mep") if privileged else (str(home / ".mep"),) * 3
    return Roots(
        Path(environ.get("MEP_ETC", etc)).absolute(),
        Path(environ.get("MEP_VAR", var)).absolute(),
        Path(environ.get("MEP_RUN", run)).absolute(),
        privileged,
    )


def here(environ: Mapping[str, str] | None = None) -> Roots:
    """Return the roots of the account that runs this process."""
    return find_roots(
        os.environ if environ is None else environ, privileged=os.geteuid() == 0, home=Path("~").expanduser()
    )


def roots_of_root(environ: Mapping[str, str] | None = None) -> Roots:
    """Return root's roots for another account, which may look whether it may do something there."""
    found = find_roots(os.environ if environ is None else environ, privileged=True, home=Path("/"))
    return Roots(found.etc, found.var, found.run, False)


def check_name(name: str) -> str:
    """Return `name` if it is a valid endpoint name. Raises ConfigRefused."""
    if not _NAME.fullmatch(name):
        raise ConfigRefused(
            "endpoint name", name, "must be 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit"
        )
    if name in _RESERVED:
        raise ConfigRefused("endpoint name", name, "is reserved; choose another")
    return name


def endpoint_paths(roots: Roots, name: str) -> EndpointPaths:
    """Return the directories of endpoint `name`. Raises ConfigRefused for an invalid name."""
    check_name(name)
    # A person's roots are one directory, so state and run need subdirectories.
    shared = len({roots.etc, roots.var, roots.run}) < 3
    state = roots.var / name / "state" if shared else roots.var / name
    run = roots.run / name / "run" if shared else roots.run / name
    return EndpointPaths(name, roots.etc / name, state, run, roots.privileged)


def no_such_endpoint(where: EndpointPaths) -> ConfigRefused:
    """Return the error of every command for a name that no endpoint has."""
    remedy = f"run `mep configure {where.name}`, or `mep list` to see which there are"
    return ConfigRefused(str(where.config), "", f"there is no endpoint {where.name} here: {remedy}")


def list_names(roots: Roots) -> list[str]:
    """Return the names of the endpoints that are configured here, sorted."""
    try:
        found = [entry.name for entry in roots.etc.iterdir() if _NAME.fullmatch(entry.name)]
    except OSError:
        return []
    return sorted(name for name in found if name not in _RESERVED and (roots.etc / name / CONFIG).exists())


def own_accounts(*configured: str) -> list[str]:
    """Return the accounts of endpoints and relay, to which no identity is mapped: `configured` and the default ones."""
    return list(dict.fromkeys([*configured, MANAGER_ACCOUNT, MAPPER_ACCOUNT, RELAY_ACCOUNT, REGISTER_ACCOUNT]))
