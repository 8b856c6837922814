"""From the administrator's template and a person's user_endpoint_config to a user endpoint's settings.

It runs as the mapped user, in a child of the user endpoint that exits afterwards and has a deadline. It trusts the
administrator's templates and schema; it trusts nothing in `user_endpoint_config` and `user_runtime`, which come from a
person and reach the document as data only (see `pieces` and `yaml_document`). Only `user_endpoint` may import it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mep_wire.bundle import UepBundle
from mep_wire.errors import EndpointMisconfigured, UserConfigInvalid
from mep_wire.limits import ENDPOINT_NAMESPACES, ENDPOINT_VARIABLES
from mep_wire.start_request import StartRequest
from mep_wire.user_values import unusable_texts
from user_endpoint.runtime import completed_runtime, start_environment
from user_endpoint.settings import SettingsInvalid, UepSettings, line_of, located, settings_from

if TYPE_CHECKING:
    from user_endpoint.render.pieces import Fragment
    from user_endpoint.render.sandbox import PieceEnvironment
    from user_endpoint.render.yaml_document import YamlDocument

__all__ = ["render_settings", "render_text", "settings_of"]


def render_settings(
    bundle: UepBundle,
    start: StartRequest,
    mapped_identity: dict[str, Any],
    environment: type[PieceEnvironment] | None = None,
) -> UepSettings:
    """Return the settings that `bundle`'s template gives for this person's request. `environment`: see `render_text`.

    Raises UserConfigInvalid and UserConfigReserved for mistakes that the person can correct. Raises
    EndpointMisconfigured, with file, line and reason in `detail`, for those that only the administrator can.
    """
    from user_endpoint.render.user_config_check import check_user_config
    from user_endpoint.render.yaml_document import YamlInvalid, document_from  # the child alone pays for these

    config = start.user_endpoint_config
    check_user_config(bundle.schema, config)
    fragment = render_text(bundle, start, mapped_identity, environment)
    try:
        document = document_from(fragment)
    except YamlInvalid as error:
        place = "" if environment else _place(bundle, start, mapped_identity, error.line)
        raise EndpointMisconfigured(detail=f"{bundle.template_name}: {error}{place}") from error
    try:
        return settings_of(bundle, document, config)
    except (EndpointMisconfigured, UserConfigInvalid) as error:
        if environment is None and isinstance(error.__cause__, SettingsInvalid):
            error.detail += _place(bundle, start, mapped_identity, line_of(error.__cause__.path, document.lines))
        raise


def _place(bundle: UepBundle, start: StartRequest, mapped_identity: dict[str, Any], line: int) -> str:
    """Return ` (TEMPLATE:LINE)` for a line of the rendered text, empty if that is not known.

    The template is rendered again for this, since a start that is accepted does not note where lines come from.
    """
    from user_endpoint.render.origins import OriginEnvironment, line_origins

    origins = line_origins(render_text(bundle, start, mapped_identity, OriginEnvironment))
    origin = origins[line - 1] if 0 < line <= len(origins) else None
    return f" ({origin[0]}:{origin[1]})" if origin else ""


def render_text(
    bundle: UepBundle,
    start: StartRequest,
    mapped_identity: dict[str, Any],
    environment: type[PieceEnvironment] | None = None,
) -> Fragment:
    """Return the template's output. Only `mep render` and `mep check` give an `environment` of their own.

    Raises as `render_settings`.
    """
    from user_endpoint.render.sandbox import PieceEnvironment
    from user_endpoint.render.template import render

    config, runtime = start.user_endpoint_config, completed_runtime(start.user_runtime)
    if environment is None:
        from user_endpoint.render.quoting_habits import refuse_habits

        refuse_habits(bundle)
        environment = PieceEnvironment
    if bundle.quoting == "json":
        from user_endpoint.render.json_quoting import quoted, quoting_environment  # only such templates pay for it

        config, runtime, environment = quoted(config), quoted(runtime), quoting_environment(environment)
    own = dict(zip(ENDPOINT_VARIABLES, (mapped_identity, runtime, bundle.parent_config), strict=True))
    namespace = {**own, "env": start_environment(bundle, os.environ, start.user_runtime)}
    variables = {**config, **own, **dict.fromkeys(ENDPOINT_NAMESPACES, namespace)}
    return render(
        bundle.templates, bundle.template_name, variables, schema=bundle.schema, config=config,
        environment=environment,
    )  # fmt: skip


def settings_of(bundle: UepBundle, document: YamlDocument, config: Mapping[str, Any]) -> UepSettings:
    """Return the settings that a rendered document gives. Raises as `render_settings`."""
    try:
        _check_texts(document.data)
        settings = settings_from(document.data, document.lines)
        _check_policy(bundle, settings)
        _check_serializers(settings)
    except SettingsInvalid as error:
        raise _blamed(error, document, config, bundle.template_name) from error
    return settings


def _check_texts(data: object) -> None:
    """Raises SettingsInvalid for a text that no argument and no variable of a process can hold."""
    for path, problem in unusable_texts(data):
        raise SettingsInvalid(path, problem)


def _check_policy(bundle: UepBundle, settings: UepSettings) -> None:
    """Raises SettingsInvalid for what a multi-user endpoint does not accept."""
    if bundle.multi_user and getattr(settings.engine, "encrypted", True) is False:
        raise SettingsInvalid("engine.encrypted", "must not be false on a multi-user endpoint")


def _check_serializers(settings: UepSettings) -> None:
    """Raises SettingsInvalid for strategies that there are not, or too few to run anything."""
    names = settings.engine.allowed_serializers
    if names is None:
        return
    from mep_sdk.strategies import Allowed  # only such templates pay for it

    try:
        Allowed(names)
    except ValueError as error:
        raise SettingsInvalid("engine.allowed_serializers", str(error)) from error


def _blamed(
    error: SettingsInvalid,
    document: YamlDocument,
    config: Mapping[str, Any],
    template_name: str,
) -> UserConfigInvalid | EndpointMisconfigured:
    """Attribute the mistake: it is the person's if the refused key holds a value of theirs.

    A key's name is theirs only inside a mapping that they gave.
    """
    path = tuple(error.path.split("."))
    where = f"{template_name}: {located(str(error), document.lines)}"
    names = {
        name
        for location, read in document.sources.items()
        if error.path and _concerns(location, path, about_name=error.about_name)
        for name in read
        if name in config
    }
    if names:
        return UserConfigInvalid(key=", ".join(sorted(names)), reason=f"{error.path}: {error.reason}", detail=where)
    return EndpointMisconfigured(detail=where)


def _concerns(location: tuple[str, ...], path: tuple[str, ...], *, about_name: bool) -> bool:
    """Tell whether a value at `location` can be at fault for the key `path`."""
    above = path[: len(location)] == location
    if about_name:
        return above and location != path
    return above or location[: len(path)] == path
