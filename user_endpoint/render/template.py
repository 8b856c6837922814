"""Run one template in the sandbox; attribute a failure to the person or to the administrator."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, TemplateNotFound, TemplateSyntaxError

from mep_wire.errors import EndpointMisconfigured, UserConfigInvalid
from user_endpoint.render.pieces import Fragment
from user_endpoint.render.sandbox import MissingVariable, PieceEnvironment

_RAISED_BY_EXPRESSIONS = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""The errors of filters, operators and calls inside a template for arguments of the wrong kind."""


def render(
    templates: Mapping[str, str],
    name: str,
    variables: Mapping[str, Any],
    *,
    schema: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    environment: type[PieceEnvironment] = PieceEnvironment,
) -> Fragment:
    """Return the rendered template called `name`. `config` is the part of `variables` a person set.

    Raises UserConfigInvalid for a variable the person must give, else EndpointMisconfigured.
    """
    try:
        rendered = environment(templates).get_template(name).render(variables)
    except MissingVariable as error:
        raise _missing(error, templates, schema, config) from error
    except TemplateSyntaxError as error:
        raise EndpointMisconfigured(detail=f"{error.name}: line {error.lineno}: {error.message}") from error
    except TemplateNotFound as error:
        where = _location(error, templates) or name
        raise EndpointMisconfigured(detail=f"{where}: there is no template {error.name!r}") from error
    except _RAISED_BY_EXPRESSIONS as error:
        where = _location(error, templates) or name
        raise EndpointMisconfigured(detail=f"{where}: {type(error).__name__}: {error}") from error
    assert isinstance(rendered, Fragment), "PieceEnvironment.concat makes nothing else"
    return rendered


def _missing(
    error: MissingVariable, templates: Mapping[str, str], schema: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> UserConfigInvalid | EndpointMisconfigured:
    location = _location(error, templates)
    if error.name is not None and _may_be_given(error.name, schema):
        return UserConfigInvalid(key=error.name, reason="this endpoint needs a value for it", detail=location)
    for key, value in config.items():
        if _is_part_of(error.owner, value):
            return UserConfigInvalid(key=key, reason=f"this endpoint needs more in it: {error}", detail=location)
    return EndpointMisconfigured(detail=f"{location}: {error}")


def _may_be_given(name: str, schema: Mapping[str, Any] | None) -> bool:
    """Tell whether the schema lets a person set the variable `name`."""
    if not schema or schema.get("additionalProperties") is not False:
        return True
    return name in schema.get("properties", {}) or bool(schema.get("patternProperties"))


def _is_part_of(thing: object, whole: object) -> bool:
    """Tell whether `thing` is this very mapping or list, or one inside of it."""
    if thing is whole:
        return isinstance(whole, dict | list)
    if isinstance(whole, dict):
        return any(_is_part_of(thing, part) for part in whole.values())
    return isinstance(whole, list) and any(_is_part_of(thing, part) for part in whole)


def _location(error: BaseException, templates: Mapping[str, str]) -> str:
    """Return template and line at which an error arose, from the traceback that Jinja has rewritten."""
    frames = traceback.extract_tb(error.__traceback__)
    locations = [f"{frame.filename}: line {frame.lineno}" for frame in frames if frame.filename in templates]
    return locations[-1] if locations else ""
