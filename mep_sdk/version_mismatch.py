"""Describes the differences between the person's Python and the one in which their tasks run.

Most differences do no harm: functions and classes travel with their source text. So the person is warned once for each
endpoint where the versions of Python are known to differ, and a failure that a package causes names its version on
both sides. Imported where there is something to say, and so only then paid for.
"""

from __future__ import annotations

import re
import sys
import threading
import warnings

from mep_sdk.importable import other_pythons
from mep_wire.text import printable

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}(?![0-9])")
_MODULE = re.compile(r"<module '([A-Za-z0-9_.]+)'")
_ON_ENDPOINT = re.compile(r"\b([A-Za-z0-9_]+) (?:[^\s;]+ is|is not) installed on the endpoint")


class PythonDiffers(UserWarning):
    """Endpoint {endpoint_id} runs these tasks with Python {theirs}, and this script runs with {own}."""


_warned: set[tuple[str, str]] = set()
_lock = threading.Lock()


def warn_of_python(endpoint_id: str, theirs: str) -> None:
    """Warn, once for each endpoint, where its workers' Python (as in 3.12.1; empty: unknown) is another than this."""
    found = _VERSION.match(theirs)
    minor = found[0] if found else ""
    if not minor or minor == OWN:
        return
    with _lock:
        if (endpoint_id, minor) in _warned:
            return
        _warned.add((endpoint_id, minor))
    other_pythons.add(minor)
    text = (
        f"Endpoint {printable(endpoint_id)} runs tasks with Python {minor} and this script runs with {OWN}. Functions "
        "and classes with source text work; those without it (made by exec, or typed at some prompts) fail there."
    )
    warnings.warn(text, PythonDiffers, stacklevel=3)


def _version(module: str) -> str:
    """Return the version of the installed package that has a module, empty where there is none."""
    import importlib.metadata  # only a failure needs it

    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(module, [])
        return importlib.metadata.version(names[0]) if names else ""


def _culprit(error: BaseException) -> str:
    """Return the package that is missing or has another version and so caused an error; empty if there is none."""
    if isinstance(error, ImportError):
        return (error.name or "").partition(".")[0]
    found = _MODULE.search(str(error)) if isinstance(error, AttributeError) else None
    return found[1].partition(".")[0] if found else ""


def explain(error: BaseException, where: str) -> str:
    """Return what to add to the text of an error that arose where something was loaded: the package's version there."""
    module = _culprit(error)
    if not module or module in sys.stdlib_module_names or module in ("__main__", "__mp_main__"):
        return ""
    python = f"Python {sys.version.split()[0]} at {sys.prefix}"
    version = _version(module)
    if not version and isinstance(error, AttributeError):
        return ""
    said = f"{module} {version} is" if version else f"{module} is not"
    return f"; {said} installed {where} ({python})"


def missing(error: ImportError) -> str:
    """Return what to say of an import that failed inside a task: the package there, and what is there like it."""
    said = explain(error, "on the endpoint").removeprefix("; ")
    module = _culprit(error)
    if not said or _version(module):
        return said
    import difflib
    import importlib.metadata

    there = {str(each.name): each.version for each in importlib.metadata.distributions()}
    like = difflib.get_close_matches(module, there, n=3)
    among = f", among them {', '.join(f'{name} {there[name]}' for name in like)}" if like else ""
    return f"{said}. It has {len(there)} others{among}: mep-sdk describe ENDPOINT --packages lists them"


def note_own_version(error: BaseException) -> None:
    """Add to an exception from an endpoint the version here of the package that one of its notes names."""
    notes: list[str] = getattr(error, "__notes__", [])
    for at, note in enumerate(notes):
        if found := _ON_ENDPOINT.search(str(note)):
            version = _version(found[1])
            said = f"{found[1]} {version}" if version else f"{found[1]} is not installed"
            notes.insert(at + 1, f"here: {said} (Python {sys.version.split()[0]} at {sys.prefix})")
            return


def with_own_version(text: str) -> str:
    """Return an error's text from an endpoint, with the version here of the package that it names."""
    found = _ON_ENDPOINT.search(text)
    if found is None:
        return text
    version = _version(found[1])
    return f"{text}; here it is {version} (Python {sys.version.split()[0]})" if version else text
