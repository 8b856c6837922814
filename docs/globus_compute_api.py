"""Prints the public names and arguments of the installed globus-compute-sdk as JSON, for docs/generate.py.

Run by an interpreter that has the package, which is no requirement of MEP's: the answer is kept beside this file.
"""

from __future__ import annotations

import importlib
import inspect
import json
from importlib.metadata import version
from typing import Any

MODULES = ("globus_compute_sdk", "globus_compute_sdk.errors", "globus_compute_sdk.serialize")


def arguments(call: Any) -> list[list[str]] | None:
    """Return a callable's arguments, each as [name, kind, default]; None where it has no signature."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return None
    return [
        [each.name, str(each.kind), "" if each.default is each.empty else repr(each.default)]
        for each in parameters
        if each.name != "self"
    ]


def described(value: Any, listed: Any = ()) -> dict[str, Any]:
    """Return a public name's kind, arguments, and for a class its own public names: without those of built-in classes
    and of base classes that are `listed` themselves."""
    if not isinstance(value, type):
        return {"kind": "function" if callable(value) else "value", "arguments": arguments(value)}
    bases = [each for each in value.__mro__[1:] if each.__module__ == "builtins" or each in listed]
    names = [name for name in dir(value) if not name.startswith("_") and not any(hasattr(each, name) for each in bases)]
    members = {name: inspect.getattr_static(value, name) for name in names}
    found: dict[str, Any] = {}
    for name, member in sorted(members.items()):
        if isinstance(member, property) or not callable(getattr(value, name, None)):
            found[name] = {"kind": "attribute", "arguments": None}
        else:
            found[name] = {"kind": "method", "arguments": arguments(getattr(value, name))}
    return {"kind": "class", "arguments": arguments(value), "members": found}


def api(modules: tuple[str, ...] = MODULES) -> dict[str, Any]:
    """Return what the modules offer, by the name of the module and of the thing."""
    found = {}
    for name in modules:
        module = importlib.import_module(name)
        values = {each: getattr(module, each) for each in sorted(module.__all__)}
        listed = [each for each in values.values() if isinstance(each, type)]
        found[name] = {each: described(value, listed) for each, value in values.items()}
    return found


if __name__ == "__main__":
    answer = {"version": version("globus-compute-sdk"), "modules": api()}
    print(json.dumps(answer, indent=1, sort_keys=True))
