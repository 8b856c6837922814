"""Whether Jinja can parse the administrator's template. Used by `mep check` alone.

A template is rendered as the mapped person, with their values, and by `mep check` without privilege
(mep/cli/template_check.py). Here, as root, it is only parsed and compiled to the text of a program that is never run.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mep.boundary.errors import ConfigRefused
from mep.config import paths as names
from mep.config.paths import EndpointPaths
from mep.config.resolver import Resolution
from mep.config.template_bundle import find_file
from mep_wire.bundle import decode_bundle


def check_template(where: EndpointPaths, resolution: Resolution) -> None:
    """Raise ConfigRefused, with file and line, if the template's syntax is wrong."""
    bundle = decode_bundle(resolution.bundle)
    path = template_path(where, resolution)
    check_syntax(path, bundle.templates[path.name])


def template_path(where: EndpointPaths, resolution: Resolution) -> Path:
    """Return the path of the template."""
    configured = resolution.endpoint.user_config_template_path
    return find_file(where.config_dir, configured, names.TEMPLATE, names.TEMPLATE_OLD)


def check_syntax(path: Path, text: str) -> None:
    """Raise ConfigRefused, with file and line, if `text`, the content of file `path`, isn't a valid template."""
    # Not optimized: otherwise constant expressions would be evaluated here.
    environment = ImmutableSandboxedEnvironment(optimized=False)
    environment.filters["shell_escape"] = str
    try:
        environment.compile(text, name=path.name, raw=True)
    except TemplateSyntaxError as error:
        raise ConfigRefused(f"{path}:{error.lineno}", "", f"not a valid template: {error.message}") from None
