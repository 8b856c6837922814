"""The trial rendering of `mep check`: done by a child without privilege, which gets only the bundle.

It repeats a start's work as the mapped person, with made-up values, so that an error in the template's output is found
before a person's task runs into it.
"""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mep.boundary.errors import ConfigRefused
from mep.boundary.memfd import sealed_memfd
from mep.cli.exit_codes import CliFailed
from mep.cli.remedies import placed
from mep.cli.unprivileged_child import run_module

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths
    from mep.config.resolver import Resolution

UNPRIVILEGED = "nobody"


def try_template(where: EndpointPaths, resolution: Resolution) -> list[str]:
    """Return notes for the administrator. Raises ConfigRefused, with file and line, if every start would fail."""
    from mep.config.template_syntax import template_path

    account = pwd.getpwnam(UNPRIVILEGED) if where.privileged else None
    descriptor = sealed_memfd("mep-bundle", resolution.bundle)
    try:
        os.set_inheritable(descriptor, True)
        words = [str(descriptor), resolution.resolved.user_environment_path]
        said = run_module("user_endpoint.template_check", words, account=account, descriptor=descriptor)
    except CliFailed:
        path = template_path(where, resolution)
        raise ConfigRefused(str(path), "", "could not be rendered within 20 s, or not at all: see above") from None
    finally:
        os.close(descriptor)
    verdict: dict[str, Any] = json.loads(said)
    _refuse(template_path(where, resolution), verdict["problems"])
    directory = template_path(where, resolution).parent
    return [placed(directory, str(note)) for note in verdict["notes"]]


def _refuse(path: Path, problems: list[tuple[int, str, str]]) -> None:
    if problems:
        line, text, name = problems[0]
        template = path.parent / name  # of the template itself, or of one that it includes
        raise ConfigRefused(
            f"{template}:{line}" if line else str(template), "", f"the template's output is refused: {text}"
        )
