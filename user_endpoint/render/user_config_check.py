"""Is a person's user_endpoint_config acceptable: reserved names and the administrator's JSON schema.

The schema is the administrator's, the configuration a person's. Called before anything is rendered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mep_wire.errors import EndpointMisconfigured, UserConfigInvalid, UserConfigReserved
from mep_wire.limits import RESERVED_TEMPLATE_VARIABLES
from mep_wire.user_values import check_characters
from user_endpoint.render.schema_fast_path import surely_valid


def check_user_config(schema: Mapping[str, Any] | bool | None, config: Mapping[str, Any]) -> None:
    """Raises UserConfigReserved, UserConfigInvalid, or EndpointMisconfigured for an invalid schema."""
    for key in config:
        if key in RESERVED_TEMPLATE_VARIABLES:
            raise UserConfigReserved(key=key)
    check_characters(config)
    if schema is not None and not surely_valid(schema, config):
        _validate(schema, config)


def all_refusals(schema: Mapping[str, Any] | bool | None, config: Mapping[str, Any]) -> list[UserConfigInvalid]:
    """Return every mistake that the schema finds, by key. A start names one. Raises EndpointMisconfigured."""
    refusals = [] if schema is None else map(_refusal, _errors(schema, config))
    return sorted(refusals, key=lambda one: str(one.fields["key"]))


def _validate(schema: Any, config: Mapping[str, Any]) -> None:
    if errors := _errors(schema, config):
        import jsonschema

        raise _refusal(jsonschema.exceptions.best_match(errors))


def _errors(schema: Any, config: Mapping[str, Any]) -> list[Any]:
    import jsonschema  # 30 ms, which only an unusual schema or a refusal pays
    import jsonschema_specifications  # type: ignore[import-untyped] # it has no stubs
    import referencing.exceptions

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
        # The registry holds the published meta-schemas and fetches nothing: an outside $ref stays unresolved.
        validator = kind(schema, registry=jsonschema_specifications.REGISTRY)
        return list(validator.iter_errors(config))
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path))
        raise EndpointMisconfigured(
            detail=f"user_config_schema.json: {where or 'top level'}: {error.message}"
        ) from error
    except referencing.exceptions.Unresolvable as error:
        reason = f"$ref {error.ref!r} is not in the schema, and nothing outside of it is fetched"
        raise EndpointMisconfigured(detail=f"user_config_schema.json: {reason}") from error


def _refusal(error: Any) -> UserConfigInvalid:
    keys: Iterable[Any] = error.absolute_path
    path = ".".join(str(key) for key in keys)
    if not path and error.validator in ("required", "additionalProperties"):
        path = _quoted_name(error.message)
    return UserConfigInvalid(key=path or "user_endpoint_config", reason=error.message[:500])


def _quoted_name(message: str) -> str:
    """Return the key that a sentence like "'NODES' is a required property" is about."""
    parts = message.split("'")
    return parts[1] if len(parts) > 2 else ""
