"""The `limits` of config.yaml: accepted values, and their form for the monitor. Used by options.py and the resolver."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from mep.boundary import cgroup_support
from mep.boundary.errors import ConfigRefused
from mep.boundary.resolved_config import GroupLimits, Limits
from mep.config.options import SIZE_UNITS, EndpointOptions, LimitValues
from mep.config.paths import EndpointPaths

_SIZES = frozenset({"memory_max", "memory_high", "person_memory_max", "person_memory_high", "file_size"})


def size(value: int | str) -> int:
    """Return the bytes of a checked size: a number, or one with K, M, G or T."""
    if isinstance(value, int):
        return value
    number, unit = re.fullmatch(r"([0-9.]+)([KMGT]?)", value).groups()  # type: ignore[union-attr]  # was checked
    return int(float(number) * SIZE_UNITS[unit])


def _values(options: LimitValues) -> dict[str, Any]:
    found = {one.name: getattr(options, one.name) for one in fields(LimitValues)}
    return {name: size(value) if name in _SIZES else value for name, value in found.items() if value is not None}


def resolved_limits(where: EndpointPaths, options: EndpointOptions) -> tuple[Limits, list[GroupLimits]]:
    """Return the default limits and those of groups. Raises ConfigRefused if this host can't enforce them."""
    common = _values(options.limits)
    limits = Limits(**common)
    groups = [
        GroupLimits(group, Limits(**{**common, **_values(own)})) for group, own in options.limits.by_group.items()
    ]
    if problem := cgroup_support.problem([limits, *(one.limits for one in groups)]):
        raise ConfigRefused(str(where.config), "limits", problem)
    return limits, groups
