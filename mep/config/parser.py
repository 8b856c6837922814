"""Reads config.yaml into `EndpointOptions`: typed, checked, and with file, line and key in every error.

Only the administrator's own file is parsed here, never a person's input. Aliases, duplicate keys and tags other
than YAML's own are refused. Used by the resolver and by `mep configure`.
"""

from __future__ import annotations

import difflib
import types
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from mep.boundary.errors import ConfigRefused
from mep.config.options import (
    IGNORED_KEYS,
    MOVED_KEYS,
    EndpointOptions,
)
from mep_wire.user_values import unusable_texts

MAX_CONFIG_BYTES = 1024 * 1024
_MOVED = "belongs to user_config_template.yaml.j2 here: every endpoint's engine comes from its template"


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """The content of a file: the options, the warnings to print, and the plain values for templates."""

    options: EndpointOptions
    warnings: list[str]
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    """The line of each key that the file gives, sections' keys with a dot."""


def read_document(text: str, path: str) -> ConfigDocument:
    """Parse `text`, the content of file `path`. Raises ConfigRefused with file, line, key and reason."""
    reader = _Reader(path)
    node = reader.compose(text)
    options = EndpointOptions() if node is None else reader.section(node, EndpointOptions, "")
    values = {} if node is None else reader.plain(node)
    _check_together(path, options, reader.lines)
    return ConfigDocument(options, reader.warnings, values, reader.lines)


def _check_together(path: str, options: EndpointOptions, lines: dict[str, int]) -> None:
    """Raise ConfigRefused for values that each may stand, but not together."""
    low, high = options.policy.min_uid, options.policy.max_uid
    if low > high:
        key = "policy.min_uid" if "policy.min_uid" in lines else "policy.max_uid"
        reason = f"min_uid {low} is greater than max_uid {high}, so no account may be used; swap them"
        raise ConfigRefused(f"{path}:{lines.get(key, 1)}", key, reason)


class _Reader:
    def __init__(self, path: str) -> None:
        self._path = path
        self.warnings: list[str] = []
        self.lines: dict[str, int] = {}

    def compose(self, text: str) -> yaml.MappingNode | None:
        try:
            loader = yaml.SafeLoader(text)
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
                raise ConfigRefused(self._path, "", "YAML aliases (*name) are not used here")
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self._path}:{mark.line + 1}" if mark else self._path
            raise ConfigRefused(where, "", f"not valid YAML: {error.problem or error}") from None
        except yaml.YAMLError as error:
            raise ConfigRefused(self._path, "", f"not valid YAML: {error}") from None
        except RecursionError:
            raise ConfigRefused(self._path, "", "nested too deeply") from None
        if node is None or isinstance(node, yaml.MappingNode):
            return node
        raise ConfigRefused(self._where(node), "", "must be a mapping of keys to values")

    def plain(self, node: yaml.Node) -> Any:
        try:
            return yaml.SafeLoader("").construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            problem = getattr(error, "problem", None) or str(error)
            raise ConfigRefused(self._where(node), "", f"not a plain value: {problem}") from None

    def _where(self, node: yaml.Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}"

    def section(self, node: yaml.MappingNode, cls: type[Any], prefix: str) -> Any:
        declared = {f.name: f for f in fields(cls)}
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            if key in seen:
                raise ConfigRefused(self._where(key_node), prefix + key, "given twice")
            seen.add(key)
            if key not in declared:
                self._undeclared(key_node, value_node, key, prefix, list(declared))
                continue
            self.lines[prefix + key] = key_node.start_mark.line + 1
            values[key] = self._value(value_node, hints[key], prefix + key)
            check = declared[key].metadata["check"]
            if check and (problem := check(values[key])):
                raise ConfigRefused(self._where(value_node), prefix + key, problem)
        return cls(**values)

    def _undeclared(self, key_node: yaml.Node, value: yaml.Node, key: str, prefix: str, declared: list[str]) -> None:
        where = self._where(key_node)
        if not prefix and key in IGNORED_KEYS:
            self.warnings.append(f"{where}: {key}: does not apply here and is ignored: {IGNORED_KEYS[key]}")
            return
        if not prefix and key in MOVED_KEYS:
            raise ConfigRefused(where, key, _MOVED)
        near = difflib.get_close_matches(key, declared, n=1, cutoff=0.6)
        hint = f"; did you mean {prefix}{near[0]}?" if near else "; `mep configure --help-config` lists the keys"
        raise ConfigRefused(where, prefix + key, f"unknown key{hint}")

    def _value(self, node: yaml.Node, kind: Any, key: str) -> Any:
        if get_origin(kind) is dict:
            return self._named(node, get_args(kind)[1], key)
        if isinstance(kind, type) and is_dataclass(kind):
            if isinstance(node, yaml.MappingNode):
                return self.section(node, kind, f"{key}.")
            raise ConfigRefused(self._where(node), key, "must be a mapping of keys to values")
        value = self.plain(node)
        for path, problem in unusable_texts(value):
            raise ConfigRefused(self._where(node), f"{key}.{path}" if path else key, problem)
        kinds = get_args(kind) if get_origin(kind) in {Union, types.UnionType} else (kind,)
        for one in kinds:
            accepted, converted = _convert(value, one)
            if accepted:
                return converted
        wanted = " or ".join(_describe(one) for one in kinds)
        raise ConfigRefused(self._where(node), key, f"must be {wanted}, and is {_shown(value)}")

    def _named(self, node: yaml.Node, kind: type[Any], key: str) -> dict[str, Any]:
        """Read a mapping of arbitrary names to sections of one kind."""
        if not isinstance(node, yaml.MappingNode):
            raise ConfigRefused(self._where(node), key, "must be a mapping of names to values")
        found: dict[str, Any] = {}
        for name_node, value in node.value:
            name = self.plain(name_node)
            if not isinstance(name, str) or name in found:
                raise ConfigRefused(self._where(name_node), key, "every name must be a text, and stand once")
            found[name] = self._value(value, kind, f"{key}.{name}")
        return found


def _convert(value: Any, kind: Any) -> tuple[bool, Any]:
    if kind is type(None):
        return value is None, None
    if get_origin(kind) is list:
        ok = isinstance(value, list) and all(type(item) is get_args(kind)[0] for item in value)
        return ok, value
    if kind is float:
        ok = type(value) in {int, float} and value == value and abs(value) != float("inf")
        return ok, float(value) if ok else None
    return type(value) is kind, value


def _describe(kind: Any) -> str:
    if get_origin(kind) is list:
        return "a list of texts"
    return {
        bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "absent (null)"
    }[kind]  # fmt: skip


def _shown(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "the text", list: "a list",
             dict: "a mapping", type(None): "null"}  # fmt: skip
    shown = repr(value)
    return f"{names.get(type(value), type(value).__name__)} {shown if len(shown) < 60 else shown[:57] + '...'}"
