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
from mep.cli.remedies import placed, with_command
from mep.cli.unprivileged_child import TIMEOUT_S, run_module

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths
    from mep.config.resolver import Resolution

UNPRIVILEGED = "nobody"
MAX_SHOWN = 20
"""Most mistakes of a template that are shown at once."""


THOROUGH_S = 300
"""How long `mep check --thorough` may try."""


def try_template(where: EndpointPaths, resolution: Resolution, *, thorough: bool = False) -> list[str]:
    """Return notes for the administrator. Raises ConfigRefused, with file and line, for mistakes that fail starts.

    `thorough`: try as many options as 5 minutes allow.
    """
    from mep.config.template_syntax import template_path

    account = pwd.getpwnam(UNPRIVILEGED) if where.privileged else None
    descriptor = sealed_memfd("mep-bundle", resolution.bundle)
    try:
        os.set_inheritable(descriptor, True)
        words = [str(descriptor), resolution.resolved.user_environment_path]
        words += [str(THOROUGH_S)] if thorough else []
        limit = THOROUGH_S + TIMEOUT_S if thorough else TIMEOUT_S
        said = run_module(
            "user_endpoint.template_check", words, account=account, descriptor=descriptor, timeout_s=limit
        )
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
    found = []
    for line, text, name in problems[:MAX_SHOWN]:
        template = path.parent / name  # of the template itself, or of one that it includes
        place = f"{template}:{line}" if line else str(template)
        found.append(ConfigRefused(place, "", f"the template's output is refused: {text}"))
    if not found:
        return
    first, *others = found
    more = [f"and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
    lines = "".join(f"\n{one}" for one in [*(with_command(str(other)) for other in others), *more])
    first_text = with_command(str(first)).removeprefix(f"{first.where}: ") if others else first.reason
    raise ConfigRefused(first.where, "", f"{first_text}{lines}")
