"""The work of `mep render`: collects what a start would get, and has a child without root render it.

Root reads the administrator's files as bytes, and passes them on. Templates, options and runtime are parsed in the
child, which runs as the person, or as an account without privilege.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mep.boundary.memfd import sealed_memfd
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.template_check import UNPRIVILEGED
from mep.cli.unprivileged_child import TIMEOUT_S, clean_environment, run_module
from mep.config import paths as names
from mep.config.template_bundle import find_file, read_schema, read_templates
from mep_wire.bundle import UepBundle

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths

MAX_INPUT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RenderFor:
    """The person that a template is rendered for."""

    account: pwd.struct_passwd | None = None
    """The account that the child becomes; None: the present one."""
    identity: dict[str, Any] = field(default_factory=dict)
    """The parts of `mapped_identity` that are known."""
    shown: str = ""


def render_for(where: EndpointPaths | None, user: str | None, identity: str | None) -> RenderFor:
    """Return the person to render for. Raises CliFailed."""
    privileged = os.geteuid() == 0
    globus = None
    if identity is not None:
        if where is None:
            raise CliFailed("--identity: is mapped by an endpoint: give its NAME", Exit.USAGE)
        user, globus = _mapped(where.name, identity)
    if user is None and privileged:
        account = pwd.getpwnam(UNPRIVILEGED)
        return RenderFor(account, {}, f"an invented person, by {UNPRIVILEGED}: --as USER names one")
    return _as_account(user or pwd.getpwuid(os.geteuid()).pw_name, globus, privileged=privileged)


def _as_account(name: str, globus: dict[str, str] | None, *, privileged: bool) -> RenderFor:
    from mep.root.account.lookup import StartRefused, facts_of, lookup

    try:
        found = lookup(name)
    except StartRefused as error:
        raise CliFailed(f"{name}: {error.detail}") from None
    if found.uid == 0:
        raise CliFailed(f"{name}: has uid 0, and no template is rendered as root: name another account", Exit.USAGE)
    if not privileged and found.uid != os.geteuid():
        raise CliFailed(f"--as {name}: only root can become another account: run this as root", Exit.USAGE)
    identity: dict[str, Any] = {"local": facts_of(found)}
    if globus is not None:
        identity["globus"] = globus
    account = pwd.struct_passwd((found.name, "x", found.uid, found.gid, "", found.home, found.shell))
    return RenderFor(account if privileged else None, identity, found.name)


def _mapped(endpoint: str, identity: str) -> tuple[str, dict[str, str]]:
    """Return the account and the identity that decided, as `mep map` finds them: as the mapper's account."""
    argv = [sys.executable, "-I", "-m", "mep.cli", "map", endpoint, "--identity", identity, "--json"]
    roots = {name: os.environ[name] for name in ("MEP_ETC", "MEP_VAR", "MEP_RUN", "HOME") if name in os.environ}
    environment = {**clean_environment(), **roots}
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, timeout=TIMEOUT_S, check=False
        )
        verdict = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise CliFailed(f"--identity: the mapping gave no answer within {TIMEOUT_S} s") from None
    except ValueError:
        raise CliFailed(f"--identity: `mep map {endpoint}` failed with status {done.returncode}: see above") from None
    if verdict["problem"]:
        raise CliFailed(f"{identity}: {verdict['problem']}; `mep map {endpoint} --identity ...` shows why")
    return verdict["user"], verdict["identity"]


def read_input(name: str) -> tuple[str, bytes]:
    """Return the name and the bytes of a file (`-`: standard input). Raises CliFailed, OSError."""
    if name == "-":
        shown, data = "standard input", sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    else:
        with Path(name).open("rb") as file:
            shown, data = name, file.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise CliFailed(f"{shown}: larger than {MAX_INPUT_BYTES} bytes", Exit.USAGE)
    return shown, data


def inputs(given: Sequence[str]) -> list[tuple[str, bytes]]:
    """Return the sources of options: files, and KEY=VALUE with an empty name. Raises CliFailed, OSError."""
    if given.count("-") > 1:
        raise CliFailed("standard input can be read once: give `-` once", Exit.USAGE)
    return [
        ("", one.encode("utf-8", "replace")) if "=" in one and not Path(one).exists() else read_input(one)
        for one in given
    ]


def endpoint_bundle(where: EndpointPaths, template: str | None, schema: str | None) -> bytes:
    """Return what user endpoints of an endpoint get, with another template or schema if one is given.

    Raises ConfigRefused.
    """
    from mep.config.paths import here
    from mep.config.resolver import resolve

    bundle = resolve(where, here(), log_to_file=False).bundle
    return changed_bundle(bundle, template, schema) if template or schema else bundle


def changed_bundle(bundle: bytes, template: str | None, schema: str | None) -> bytes:
    """Return `bundle` with another template, or another schema. Raises ConfigRefused."""
    from mep_wire.bundle import decode_bundle

    changes: dict[str, Any] = {}
    if template is not None:
        changes.update(_template(Path(template).absolute()))
    if schema is not None:
        changes["schema"] = read_schema(Path(schema).absolute(), required=True, owner=os.geteuid())
    return msgspec.msgpack.encode(msgspec.structs.replace(decode_bundle(bundle), **changes))


def _template(path: Path) -> dict[str, Any]:
    return {"template_name": path.name, "templates": read_templates(path, path.parent, os.geteuid())}


def directory_bundle(bundle: bytes, directory: str) -> bytes:
    """Return `bundle` with template and schema of an endpoint's directory. Raises ConfigRefused, CliFailed."""
    from mep.config.parser import read_document
    from mep.config.template_files import read_trusted
    from mep_wire.limits import MAX_BUNDLE_BYTES

    top = Path(directory).absolute()
    if not top.is_dir():
        raise CliFailed(f"--diff {directory}: is no directory", Exit.USAGE)
    config = top / names.CONFIG
    text = read_trusted(config, cap=MAX_BUNDLE_BYTES, owner=os.geteuid()) if config.exists() else "multi_user: true\n"
    options = read_document(text, str(config)).options
    template = find_file(top, options.user_config_template_path, names.TEMPLATE, names.TEMPLATE_OLD)
    schema = find_file(top, options.user_config_schema_path, names.SCHEMA)
    bare = changed_bundle(bundle, str(template), str(schema) if schema.exists() else None)
    return bare if schema.exists() else _without_schema(bare)


def _without_schema(bundle: bytes) -> bytes:
    from mep_wire.bundle import decode_bundle

    return msgspec.msgpack.encode(msgspec.structs.replace(decode_bundle(bundle), schema=None))


def template_bundle(template: str, schema: str | None) -> bytes:
    """Return a bundle for a template that belongs to no endpoint. Raises ConfigRefused."""
    empty = UepBundle(
        endpoint_id="", endpoint_name="", relay_link_address="", relay_link_key=b"", template_name="", templates={},
        schema=None, user_environment={}, parent_config={},
    )  # fmt: skip
    return changed_bundle(msgspec.msgpack.encode(empty), template, schema)


def rendered(
    bundles: list[bytes], person: RenderFor, options: list[tuple[str, bytes]], runtime: list[tuple[str, bytes]],
    reserved: dict[str, tuple[str, bytes]],
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Return for each bundle what each set of options gives. Raises CliFailed.

    `reserved` has the name and bytes of files that replace `parent_config` and `mapped_identity`.
    """
    request = {
        "bundles": bundles, "options": options, "runtime": runtime, "identity": person.identity, "reserved": reserved,
    }  # fmt: skip
    descriptor = sealed_memfd("mep-render", msgspec.msgpack.encode(request))
    try:
        os.set_inheritable(descriptor, True)
        said = run_module(
            "user_endpoint.render_command", [str(descriptor)], account=person.account, descriptor=descriptor
        )
    finally:
        os.close(descriptor)
    verdict: dict[str, Any] = json.loads(said)
    if "refused" in verdict:
        raise CliFailed(verdict["refused"], Exit.USAGE)
    found: list[list[dict[str, Any]]] = verdict["rendered"]
    return found
