"""Checks a person's user_endpoint_config before anything is queued: reserved names, the endpoint's schema.

Schemas come from endpoint owners and values from anybody, so neither is trusted: a `$ref` never leaves the
schema, patterns run on re2 (linear time), and a check that takes too long is a refusal.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import marshal
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jsonschema
import re2
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend, validator_for
from jsonschema_specifications import REGISTRY as SPECIFICATIONS  # type: ignore[import-untyped]  # it has no stubs
from referencing import Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from mep_wire.errors import BodyInvalid, RelayBusy, UserConfigInvalid, UserConfigReserved
from mep_wire.ids import canonical_json
from mep_wire.limits import RESERVED_TEMPLATE_VARIABLES
from mep_wire.user_values import check_characters

T = TypeVar("T")

MAX_SCHEMA_BYTES = 256 * 1024
QUICK_S = 0.01
"""How long a check may take in the event loop's thread; one that takes longer is made in another."""
CHECK_S = 0.5
"""Longest that one check may take."""
MAX_SLOW = 16
"""Most slow checks that run or wait; they run one at a time."""
KEPT = 256
"""The number of endpoints with a cached validator."""
MAX_PASSED = 256
"""Configurations of one endpoint that are known to pass: most submissions have that of the one before."""
MAX_REASON = 500
MAX_KEYS_NAMED = 20
"""Most allowed keys that a refusal lists."""

_deadline: contextvars.ContextVar[float] = contextvars.ContextVar("deadline")
Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooSlow(Exception):
    """A check took longer than CHECK_S."""


def _timed(keyword: Keyword) -> Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if time.monotonic() > _deadline.get():
            raise _TooSlow
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not re2.search(pattern, instance):
        yield ValidationError(f"{instance[:100]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for key, value in instance.items():
                if re2.search(pattern, key):
                    yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    patterns = list(schema.get("patternProperties", {}))
    for key, value in instance.items():
        if key in schema.get("properties", {}) or any(re2.search(pattern, key) for pattern in patterns):
            continue
        if isinstance(allowed, dict):
            yield from validator.descend(value, allowed, path=key)
        elif allowed is False:
            yield ValidationError(f"this key is not allowed{_allowed_keys(schema)}", path=[key])


def _allowed_keys(schema: Any) -> str:
    """Return a list of the schema's keys for an error; empty if there are none, too many, or patterns of keys."""
    known = list(schema.get("properties", {}))
    if schema.get("patternProperties") or not 0 < len(known) <= MAX_KEYS_NAMED:
        return ""
    return f"; allowed: {', '.join(known)}"


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if unique and isinstance(instance, list) and len({canonical_json(item) for item in instance}) < len(instance):
        yield ValidationError("has items that are not unique")


_OWN: Mapping[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}


def _validator_class(base: Any) -> Any:
    keywords = {**base.VALIDATORS, **{name: own for name, own in _OWN.items() if name in base.VALIDATORS}}
    timed = {name: _timed(keyword) for name, keyword in keywords.items()}
    return extend(base, timed)  # type: ignore[no-untyped-call]  # the stubs give it no types


_classes: dict[Any, Any] = {}


def _class_for(schema: Mapping[str, Any]) -> Any:
    base = validator_for(schema, default=jsonschema.Draft202012Validator)
    made = _classes.get(base)
    if made is None:
        made = _classes[base] = _validator_class(base)
    return made


def _first_error(validator: Any, value: Any, limit_s: float = CHECK_S) -> ValidationError | None:
    """Return the first error. Raises _CHECK_FAILURES."""
    token = _deadline.set(time.monotonic() + limit_s)
    try:
        return next(iter(validator.iter_errors(value)), None)
    finally:
        _deadline.reset(token)


_CHECK_FAILURES = (_TooSlow, RecursionError, Unresolvable, re2.error)
"""The errors that a hostile or broken schema can cause in a check."""


def _fault(schema: Mapping[str, Any]) -> str | None:
    """Return the fault inside `schema`: a reference that leads out of it, or a pattern that re2 cannot take."""
    resource: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    waiting = [(resource, SPECIFICATIONS.resolver_with_root(resource))]
    while waiting:
        one, resolver = waiting.pop()
        if isinstance(one.contents, Mapping):
            fault = _fault_here(one.contents, resolver)
            if fault is not None:
                return fault
        waiting.extend((sub, resolver.in_subresource(sub)) for sub in one.subresources())
    return None


def _fault_here(contents: Mapping[str, Any], resolver: Any) -> str | None:
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        target = contents.get(keyword)
        try:
            if isinstance(target, str):
                resolver.lookup(target)
        except Unresolvable:
            return f"the reference {str(target)[:200]!r} leads nowhere in it (nothing is ever fetched)"
    for pattern in [contents.get("pattern", ""), *contents.get("patternProperties", {})]:
        try:
            re2.compile(pattern)
        except re2.error as error:
            return f"the pattern {pattern[:200]!r} cannot be used (no look-around or back-reference): {error}"
    return None


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check an endpoint's user_config_schema, made plain, at its registration. Raises BodyInvalid."""
    try:
        kind = _class_for(schema)
        error = _first_error(kind(kind.META_SCHEMA, registry=SPECIFICATIONS), schema)
        if error is None:
            fault = _fault(schema)
            if fault is not None:
                raise BodyInvalid(reason=f"user_config_schema: {fault}")
            _first_error(kind(schema, registry=SPECIFICATIONS), {})
            return
        reason = f"user_config_schema: {_where(error)}: {error.message[:MAX_REASON]}"
    except _CHECK_FAILURES as failure:
        reason = f"user_config_schema cannot be used: {type(failure).__name__}: {str(failure)[:MAX_REASON]}"
    raise BodyInvalid(reason=reason)


def _where(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.absolute_path) or "(top level)"


class _Kept:
    """A schema, what checks by it, and the digests of configurations that have passed."""

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        self.schema, self.passed = schema, set[bytes]()
        self.validator = None if schema is None else _class_for(schema)(schema, registry=SPECIFICATIONS)


class UserConfigChecks:
    """Checks configurations, with the validators of recently used endpoints kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "schema-check")
        self._slow = 0

    async def check(self, endpoint_id: str, schema: Mapping[str, Any] | None, config: Mapping[str, Any]) -> None:
        """Raises UserConfigReserved, UserConfigInvalid or RelayBusy. `config` is plain (see relay.api.json_values)."""
        kept, digest = self._kept_for(endpoint_id, schema), hashlib.sha256(marshal.dumps(dict(config), 2)).digest()
        if digest in kept.passed:
            return
        for key in config:
            if key in RESERVED_TEMPLATE_VARIABLES:
                raise UserConfigReserved(key=key)
        check_characters(config)
        try:
            error = None if kept.validator is None else await self._error(kept.validator, config)
        except _CHECK_FAILURES as failure:
            reason = f"the endpoint's schema cannot be applied to it ({type(failure).__name__})"
            raise UserConfigInvalid(key="(top level)", reason=reason, detail=str(failure)) from failure
        if error is not None:
            raise UserConfigInvalid(key=_where(error), reason=error.message[:MAX_REASON])
        if len(kept.passed) >= MAX_PASSED:
            kept.passed.clear()
        kept.passed.add(digest)

    async def _error(self, validator: Any, config: Mapping[str, Any]) -> ValidationError | None:
        """Return the first error. Raises _CHECK_FAILURES or RelayBusy."""
        try:
            return _first_error(validator, config, QUICK_S)
        except _TooSlow:
            return await self._in_thread(_first_error, validator, config)

    async def check_schema(self, schema: Mapping[str, Any]) -> None:
        """Check an endpoint's user_config_schema, made plain, at its registration. Raises BodyInvalid or RelayBusy."""
        await self._in_thread(check_schema, schema)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._slow >= MAX_SLOW:
            raise RelayBusy(what="everybody's")
        self._slow += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        finally:
            self._slow -= 1

    def _kept_for(self, endpoint_id: str, schema: Mapping[str, Any] | None) -> _Kept:
        kept = self._kept.get(endpoint_id)
        if kept is None or kept.schema != schema:
            kept = self._kept[endpoint_id] = _Kept(schema)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return kept
