"""The administrator's template, schema and environment as one document for user endpoints.

This content ends up in the memory of people's own processes, so it must hold no secret. Only Jinja files are taken
from the endpoint's directory itself, never identity_mapping.json or a password file beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from mep.boundary.errors import ConfigRefused
from mep.config.template_files import check_inside, read_trusted, walk_tree
from mep_wire.bundle import EXPANDED, UepBundle
from mep_wire.limits import MAX_BUNDLE_BYTES, RESERVED_TEMPLATE_VARIABLES
from mep_wire.user_values import unusable_texts

_JINJA_SUFFIXES = frozenset({".j2", ".jinja", ".jinja2"})
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")  # of JSON Schema
_UNREPLACED = re.compile(r"\$\{?[A-Za-z_][A-Za-z0-9_]*\}?|\$\(")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_ONE_PROCESS = re.compile(
    r"_?MEP_|NOTIFY_|LISTEN_|WATCHDOG_|(?:INVOCATION_ID|JOURNAL_STREAM|MAINPID|SYSTEMD_EXEC_PID|SHLVL|PWD|OLDPWD|_)$"
)


def find_file(config_dir: Path, configured: str | None, *defaults: str) -> Path:
    """Return the configured path (relative ones from `config_dir`), or the first default that exists."""
    if configured is not None:
        return config_dir / Path(configured).expanduser()
    present = [config_dir / name for name in defaults if (config_dir / name).exists()]
    return present[0] if present else config_dir / defaults[0]


def included_files(template: Path, config_dir: Path) -> Iterator[Path]:
    """Yield the files that `template` may include."""
    own_directory = template.parent.resolve() == config_dir.resolve()
    for path in walk_tree(template.parent):
        if path != template and (not own_directory or path.suffix in _JINJA_SUFFIXES):
            yield path


def read_templates(template: Path, config_dir: Path, owner: int) -> dict[str, str]:
    """Return the template and the files that it may include, by relative path. Raises ConfigRefused."""
    top = template.parent
    found = {template.name: read_trusted(template, cap=MAX_BUNDLE_BYTES, owner=owner)}
    total = 0
    for path in included_files(template, config_dir):
        check_inside(path, top)
        text = read_trusted(path, cap=MAX_BUNDLE_BYTES, owner=owner)
        total += len(text)
        if total > MAX_BUNDLE_BYTES:
            raise ConfigRefused(str(top), "", f"the template directory is larger than {MAX_BUNDLE_BYTES} bytes")
        found[path.relative_to(top).as_posix()] = text
    return found


def read_schema(path: Path, *, required: bool, owner: int) -> dict[str, Any] | None:
    """Return the JSON schema in `path` after checking it; None if there is none. Raises ConfigRefused."""
    if not required and not path.exists():
        return None
    text = read_trusted(path, cap=MAX_BUNDLE_BYTES, owner=owner)
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigRefused(f"{path}:{error.lineno}", "", f"not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ConfigRefused(str(path), "", "nested too deeply") from None
    if not isinstance(schema, dict):
        raise ConfigRefused(str(path), "", "a schema must be a JSON object")
    _check_schema(path, schema)
    return schema


def _check_schema(path: Path, schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        key = "/".join(str(part) for part in error.absolute_path)
        types = "; types are " + ", ".join(_TYPES) if error.absolute_path and error.absolute_path[-1] == "type" else ""
        raise ConfigRefused(str(path), key, f"not a valid JSON schema: {error.message}{types}") from None
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise ConfigRefused(str(path), "$ref", f"{reference!r} is outside this file, and nothing is fetched")
    taken = RESERVED_TEMPLATE_VARIABLES.intersection(_keys(schema.get("properties")))
    if taken:
        raise ConfigRefused(str(path), f"properties/{sorted(taken)[0]}", "the endpoint sets that variable itself")


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for item in value for found in _references(item)]
    if not isinstance(value, dict):
        return []
    own = [v for k, v in value.items() if k in {"$ref", "$dynamicRef"} and isinstance(v, str)]
    return own + [found for item in value.values() for found in _references(item)]


def read_environment(path: Path, owner: int) -> dict[str, str]:
    """Return the variables of user_environment.yaml; empty if it is absent. Raises ConfigRefused."""
    if not path.exists():
        return {}
    text = read_trusted(path, cap=MAX_BUNDLE_BYTES, owner=owner)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigRefused(where, "", f"not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigRefused(str(path), "", "nested too deeply") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigRefused(str(path), "", "must be a mapping of variables to values")
    return {_variable(path, key): _text(path, key, item) for key, item in value.items()}


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a person's own user endpoints take over from the environment of their start.

    MEP's own variables stay behind, among them the access token, and what systemd and a shell set for one process.
    """
    return {
        name: value
        for name, value in environment.items()
        if _VARIABLE.fullmatch(name) and not _OF_ONE_PROCESS.match(name) and not list(unusable_texts(value))
    }


def environment_notes(path: Path, environment: dict[str, str]) -> list[str]:
    """Return a warning for each value with a `$` that no process will replace, with its line."""
    lines = read_text_lines(path)
    return [
        f"{path}{_line_of(lines, name)}: {name}: {found[0]} stays as it is: only ${{HOME}} and ${{USER}} are replaced "
        "here; write the value, or export it in the template's worker_init"
        for name, value in environment.items()
        if (found := _UNREPLACED.search(EXPANDED.sub("", value)))
    ]


def read_text_lines(path: Path) -> list[str]:
    """Return the lines of a file that was read before; none if it is gone."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return []


def _line_of(lines: list[str], name: str) -> str:
    found = [number for number, line in enumerate(lines, 1) if re.match(rf"[\"']?{re.escape(name)}[\"']?\s*:", line)]
    return f":{found[0]}" if len(found) == 1 else ""


def _variable(path: Path, key: Any) -> str:
    if not isinstance(key, str) or not _VARIABLE.fullmatch(key):
        raise ConfigRefused(str(path), str(key), "not a variable's name")
    return key


def _text(path: Path, key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        place = f"{path}{_line_of(read_text_lines(path), key)}"
        raise ConfigRefused(place, key, "must be a text or a number (put it in quotes)")
    for _, problem in unusable_texts(value):
        raise ConfigRefused(str(path), key, problem)
    return str(value)


def encode_bundle(bundle: UepBundle, config_dir: Path) -> bytes:
    """Return the bundle's bytes. Raises ConfigRefused if it is too large for user endpoints."""
    data = msgspec.msgpack.encode(bundle)
    if len(data) > MAX_BUNDLE_BYTES:
        raise ConfigRefused(
            str(config_dir),
            "",
            f"templates, schema and environment have {len(data)} bytes, more than {MAX_BUNDLE_BYTES}",
        )
    return data
