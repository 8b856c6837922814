"""`python -I -m user_endpoint.render_command FD`: the part of `mep render` that reads templates and values.

It runs as the account that a start would have, or as an account without privilege, and refuses to run as root.
The request comes on descriptor FD, one JSON document goes to standard output. Nothing is run but the template, in its
sandbox.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mep_wire.bundle import UepBundle, decode_bundle
from mep_wire.errors import EndpointMisconfigured, MepError, UserConfigInvalid, UserConfigReserved
from mep_wire.start_request import StartRequest
from user_endpoint.group_names import with_group_names
from user_endpoint.render import render_text, settings_of
from user_endpoint.render.origins import OriginEnvironment, line_origins
from user_endpoint.render.pieces import Fragment, Text
from user_endpoint.render.quoting_habits import habits_of
from user_endpoint.render.rendered_text import RenderedLine, yaml_lines
from user_endpoint.render.user_config_check import all_refusals, check_user_config
from user_endpoint.render.yaml_document import YamlInvalid, document_from, document_of, marked
from user_endpoint.settings import SettingsInvalid, line_of
from user_endpoint.template_check import account_environment, invented_identity, invented_start

DEADLINE_S = 20
MAX_SETS = 1000
_WHERE = re.compile(r"(.+?): line (\d+)(?:: |$)")


class InputInvalid(Exception):
    """Options or runtime cannot be read: the text names the source and the reason."""


@dataclass
class Rendered:
    """The outcome for one set of options. `faults` are [kind, text]; the kind is `options` or `template`."""

    options: dict[str, Any]
    lines: list[RenderedLine] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)


def render_one(bundle: UepBundle, start: StartRequest, identity: dict[str, Any]) -> Rendered:
    """Render for one request, and describe every mistake."""
    result = Rendered(start.user_endpoint_config)
    try:
        result.faults += [("options", error.text) for error in all_refusals(bundle.schema, result.options)]
        if not result.faults:
            habits = habits_of(bundle)
            result.faults += [("template", f"{one.template}:{one.line}: {one.text}") for one in habits]
            _render(bundle, start, identity, result)
    except (UserConfigInvalid, UserConfigReserved) as error:
        result.faults.append(("options", _with_place(error)))
    except EndpointMisconfigured as error:
        result.faults.append(("template", _WHERE.sub(r"\1:\2: ", error.detail, count=1)))
    return result


def _with_place(error: MepError) -> str:
    """Return the text, and where the template uses the value."""
    place = _WHERE.match(error.detail)
    return f"{error.text} ({place[1]}:{place[2]})" if place else error.text


def _render(bundle: UepBundle, start: StartRequest, identity: dict[str, Any], result: Rendered) -> None:
    check_user_config(bundle.schema, result.options)
    fragment = render_text(bundle, start, identity, OriginEnvironment)
    source = marked(fragment)
    try:
        document = document_of(source)
    except YamlInvalid as error:
        result.faults.append(("template", f"{_place(fragment, error.line)}{error.reason}: {error.excerpt}"))
        return
    result.lines = yaml_lines(fragment, source, document)
    try:
        settings_of(bundle, document, result.options)
    except EndpointMisconfigured as error:
        if not isinstance(error.__cause__, SettingsInvalid):
            raise
        line = line_of(error.__cause__.path, document.lines)
        result.faults.append(("template", f"{_place(fragment, line)}{error.__cause__}"))


def _place(fragment: Fragment, line: int) -> str:
    """Return template and line of a line of the output; empty if that is not known."""
    origins = line_origins(fragment)
    place = origins[line - 1] if 0 < line <= len(origins) else None
    return f"{place[0]}:{place[1]}: " if place else ""


def option_sets(sources: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Return the sets of options that the sources give: files, and KEY=VALUE, which is added to each set.

    Raises InputInvalid.
    """
    added: dict[str, Any] = {}
    sets: list[dict[str, Any]] = []
    for name, data in sources:
        if name:
            sets += _sets_in(name, data)
        else:
            key, _, value = _text("KEY=VALUE", data).partition("=")
            added[key] = _value(value)
    if len(sets) > MAX_SETS:
        raise InputInvalid(f"more than {MAX_SETS} sets of options: give a part of them")
    return [{**one, **added} for one in sets or [{}]]


def _sets_in(name: str, data: bytes) -> list[dict[str, Any]]:
    found = _read(name, _text(name, data))
    sets = found if isinstance(found, list) else [found]
    for one in sets:
        if not isinstance(one, dict) or not all(isinstance(key, str) for key in one):
            raise InputInvalid(f"{name}: must be a mapping of options, or a list of such mappings")
    return sets


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputInvalid(f"{name}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def _read(name: str, text: str) -> Any:
    """Return what JSON, JSON in each line, or YAML gives."""
    for attempt in (json.loads, lambda many: [json.loads(line) for line in many.splitlines() if line.strip()]):
        try:
            return attempt(text)
        except ValueError:
            continue
        except RecursionError:
            raise InputInvalid(f"{name}: nested too deeply") from None
    try:
        return document_from(Fragment((Text(text),))).data
    except YamlInvalid as error:
        raise InputInvalid(f"{name}:{error.line}: neither JSON nor YAML: {error.reason}") from None


def _value(text: str) -> Any:
    """Return a value as JSON if it is JSON, else as text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a request: for each bundle, what each set of options gives."""
    try:
        sets = option_sets(request["options"])
        runtime = option_sets(request["runtime"])[0] if request["runtime"] else {}
        reserved = {key: option_sets([(name, data)])[0] for key, (name, data) in request["reserved"].items()}
    except InputInvalid as error:
        return {"refused": str(error)}
    bundles = [decode_bundle(data) for data in request["bundles"]]
    if "parent_config" in reserved:
        bundles = [msgspec.structs.replace(one, parent_config=reserved["parent_config"]) for one in bundles]
    known = request["identity"]
    identity = invented_identity(with_group_names(known.get("local") or {}), known.get("globus"))
    identity = reserved.get("mapped_identity", identity)
    os.environ.update(account_environment(identity.get("local") or {}))
    starts = [invented_start(config, known.get("globus"), runtime) for config in sets]
    return {"rendered": [[_plain(render_one(bundle, start, identity)) for start in starts] for bundle in bundles]}


def _plain(rendered: Rendered) -> dict[str, Any]:
    lines = [[line.text, *(line.origin or ("", 0))] for line in rendered.lines]
    return {"options": rendered.options, "lines": lines, "faults": rendered.faults}


def main() -> None:
    """Read the request, render, print the answer."""
    if 0 in os.getresuid():
        sys.exit("user_endpoint.render_command: refuses to run as root")
    signal.alarm(DEADLINE_S)  # a template that does not end
    with open(int(sys.argv[1]), "rb", closefd=False) as file:
        request = msgspec.msgpack.decode(file.read())
    json.dump(answer(request), sys.stdout, default=str)


if __name__ == "__main__":
    main()
