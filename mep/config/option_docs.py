"""Texts made from the declaration of config.yaml: the commented file, the help and the docs' table."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from textwrap import wrap
from typing import Any, Union, get_args, get_origin, get_type_hints

from mep.config.options import IGNORED_KEYS, EndpointOptions

_WIDTH = 96


def _default(declared: Field[Any]) -> Any:
    factory = declared.default_factory
    return declared.default if factory is MISSING else factory()


def keys(cls: type[Any] = EndpointOptions, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """Yield (full key, type, declaration) of every key, including the sections' own keys."""
    hints = get_type_hints(cls)
    for declared in fields(cls):
        kind = hints[declared.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from keys(kind, f"{prefix}{declared.name}.")
        else:
            yield prefix + declared.name, kind, declared


def type_text(kind: Any) -> str:
    """Return a type in words, for the docs."""
    if get_origin(kind) in {Union, types.UnionType}:
        return " or ".join(type_text(one) for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is list:
        return "list of texts"
    if get_origin(kind) is dict:
        return "mapping of names"
    return {bool: "true/false", int: "whole number", float: "number", str: "text"}[kind]


def _note(declared: Field[Any]) -> str:
    doc: str = declared.metadata["doc"]
    unit = declared.metadata["unit"]
    return f"{doc} In {unit}." if unit else doc


def _scalar(value: Any) -> str:
    """Return a value as YAML in one line (YAML 1.2 accepts JSON)."""
    if isinstance(value, list | dict) and not value:
        return "[]" if isinstance(value, list) else "{}"
    return json.dumps(value)


def commented_config(values: Mapping[str, Any]) -> str:
    """Return a config.yaml that sets `values` and shows every other key, commented out, with its default."""
    lines = ["# The configuration of this endpoint. Every key is shown; those commented out have their default."]
    section, open_sections = "", {key.rpartition(".")[0] for key in values}
    for key, _, declared in keys():
        parent, _, name = key.rpartition(".")
        if parent != section:
            section = parent
            lines += ["", f"# {_section_doc(parent)}", f"{'' if parent in open_sections else '#'}{parent}:"]
        indent = "#  " if parent else ""
        lines += [""] if not parent else []
        lines += [f"{'#  ' if parent else ''}# {line}" for line in wrap(_note(declared), _WIDTH)]
        if key in values:
            lines.append(f"{'  ' if parent else ''}{name}: {_scalar(values[key])}")
        else:
            default = _default(declared)
            example = declared.metadata["example"]
            shown = example if example is not None and default in (None, [], {}) else default
            lines.append(f"{indent or '#'}{name}: {_scalar(shown)}")
    return "\n".join(lines) + "\n"


def _section_doc(name: str) -> str:
    doc = str(get_type_hints(EndpointOptions)[name].__doc__)
    return doc.splitlines()[0]


def help_text() -> str:
    """Return the list of keys for `mep configure --help-config`."""
    lines = []
    for key, kind, declared in keys():
        lines.append(f"{key}  ({type_text(kind)}, default {_scalar(_default(declared))})")
        lines += [f"    {line}" for line in wrap(_note(declared), _WIDTH - 4)]
    lines += ["", "Accepted in existing files, and ignored with a warning:"]
    lines += [f"    {line}" for line in wrap(", ".join(sorted(IGNORED_KEYS)), _WIDTH - 4)]
    return "\n".join(lines)


def docs_table() -> str:
    """Return the Markdown table of docs/configuration.md."""
    rows = ["| key | type | default | what it does |", "| --- | --- | --- | --- |"]
    for key, kind, declared in keys():
        rows.append(f"| `{key}` | {type_text(kind)} | `{_scalar(_default(declared))}` | {_note(declared)} |")
    rows += ["", "Keys of Globus Compute that don't apply here. They are accepted with a warning:", ""]
    rows += [f"- `{key}`: {reason}" for key, reason in sorted(IGNORED_KEYS.items())]
    return "\n".join(rows) + "\n"
