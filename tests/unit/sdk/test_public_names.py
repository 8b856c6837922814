"""Every name that a script needs is in mep_sdk, and costs its import only when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mep_sdk
from mep_sdk import errors
from mep_wire import errors as wire_errors


@pytest.mark.parametrize("module", [errors, wire_errors])
def test_every_public_error_is_in_mep_sdk(module):
    kinds = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Exception)]
    assert len(kinds) > 10
    for kind in kinds:
        assert getattr(mep_sdk, kind.__name__) is kind
        assert kind.__name__ in dir(mep_sdk)


def test_by_name():
    from mep_sdk import MepError, RemoteError, TaskFailed, TaskFuture, WorkerLost

    assert issubclass(WorkerLost, MepError) and issubclass(RemoteError, MepError)
    assert TaskFailed.__name__ == "TaskFailed" and TaskFuture


@pytest.mark.parametrize("name", ["NoSuchThing", "nothing", "_private"])
def test_other_names_are_refused(name):
    with pytest.raises(AttributeError, match=name):
        getattr(mep_sdk, name)


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, mep_sdk; print(*sorted(name for name in sys.modules if name.startswith('mep_')))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["mep_sdk", "mep_sdk.version"]
