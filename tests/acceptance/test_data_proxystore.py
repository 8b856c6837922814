"""ProxyStore's proxies with MEP, in a real script: arguments and results, with classes of the script's `__main__`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.campus import Campus
from tests.support.science import PYTHON, environment, science_campus

SCRIPT = """
from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import Store

from mep_sdk import Executor


class Field:
    def __init__(self, values):
        self.values = values

    def __eq__(self, other):
        return isinstance(other, Field) and self.values == other.values


def scaled(field, factor):
    from proxystore.proxy import Proxy
    from proxystore.store import get_store

    assert type(field) is Proxy and isinstance(field, Field), type(field)
    return get_store(field).proxy(Field([factor * value for value in field.values]))


def untouched(field):
    from proxystore.proxy import is_resolved

    return is_resolved(field), field


def among(fields, *, extra):
    return [each.values for each in [*fields, extra["field"]]]


with Store("fields", FileConnector({directory!r}), register=True) as store:
    with Executor(endpoint_id={endpoint!r}) as executor:
        argument = store.proxy(Field([1.0, 2.0, 3.0]))
        result = executor.submit(scaled, argument, 2.0).result(timeout=120)
        assert type(result) is Proxy, type(result)
        print("values", result.values)
        print("own class", isinstance(result, Field), result == Field([2.0, 4.0, 6.0]))

        fresh = store.proxy(Field([7.0]), populate_target=False)
        was_resolved, back = executor.submit(untouched, fresh).result(timeout=120)
        print("resolved on the way", is_resolved(fresh), was_resolved, is_resolved(back))
        print("back", back.values)
        print("inside", executor.submit(among, [fresh, Field([8.0])], extra={{"field": result}}).result(timeout=120))
"""


@pytest.fixture(scope="module")
def science() -> Iterator[Campus]:
    with science_campus("proxies") as made:
        yield made


def test_proxies_and_classes_of_the_script_travel(science: Campus, tmp_path: Path) -> None:
    directory = Path(science.site.workplace, "proxystore")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(directory=str(directory), endpoint=science.endpoint.id))
    directory.mkdir()
    directory.chmod(0o777)
    done = subprocess.run(
        [PYTHON, script], env=environment(science, tmp_path), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "values [2.0, 4.0, 6.0]",
        "own class True True",
        "resolved on the way False False False",
        "back [7.0]",
        "inside [[7.0], [8.0], [2.0, 4.0, 6.0]]",
    ]
