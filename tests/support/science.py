"""The environment of a researcher, which `make test` installs beside the service's, and sites with workers in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sitekit.endpoint import SCHEMA

from tests.support.campus import Campus, make_campus

PYTHON = Path(f"{sys.prefix}-science", "bin", "python")
"""Sees the service's packages too, of which mep_sdk and parsl are ones that a researcher has."""
TEMPLATE = f"""\
heartbeat_period: 5
engine:
  type: ProcessPoolEngine
  max_workers: 2
  python: {PYTHON}
"""


@contextmanager
def science_campus(name: str) -> Iterator[Campus]:
    """A running endpoint of one's own. Its workers have the packages that the docs' examples use."""
    with make_campus("single", name, TEMPLATE) as made:
        made.endpoint.write(SCHEMA, {"type": "object", "additionalProperties": False})
        made.endpoint.register_again()
        made.endpoint.start()
        yield made


def environment(campus: Campus, home: Path) -> dict[str, str]:
    """Return the variables of a person's script, with files of programs like Jupyter below `home`."""
    person = campus.person(campus.anybody)
    return {
        "MEP_RELAY_URL": person.relay_url,
        "MEP_TOKEN": person.token,
        "HOME": str(home),
        "PATH": f"{PYTHON.parent}:/usr/bin:/bin",
        "JUPYTER_PLATFORM_DIRS": "0",
        "PYTHONWARNINGS": "default::ResourceWarning",
    }
