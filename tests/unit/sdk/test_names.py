"""What pickles by its name in the person's script, which no worker has, travels by value and comes back as itself."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

WORKER = """
    import sys
    from mep_sdk.task_runner import run_task
    cache = {}
    for line in sys.stdin:
        code, payload = (bytes.fromhex(each) for each in line.split())
        outcome = run_task(code, payload, max_result_bytes=1 << 20, cache=cache)
        print(repr(outcome.code + outcome.text) if outcome.code else outcome.payload.hex(), flush=True)
"""
HEAD = """
    import collections, copyreg, enum, functools, subprocess, sys, typing
    from mep_sdk.serialize import load_result, serialize_arguments, serialize_function

    worker = subprocess.Popen(
        [sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )

    def submit(function, *args):
        print(serialize_function(function).hex(), serialize_arguments(args, {}).hex(), file=worker.stdin, flush=True)
        answer = worker.stdout.readline().strip()
        assert not answer.startswith("'"), answer
        return load_result(bytes.fromhex(answer))

    def echo(value):
        return value
"""
SCRIPTS = {
    "lru_cache": """
        calls = []

        def slow(x):
            calls.append(x)
            return [x]

        table = functools.lru_cache(maxsize=7)(slow)

        def use(x):
            return table(x) is table(x), table.cache_parameters()["maxsize"], table.__name__

        assert submit(use, 3) == (True, 7, "slow")
        assert submit(table, 3) == [3]
        assert submit(lambda f: f(4), table) == [4]
        assert calls == []
    """,
    "cache that recurses": """
        @functools.cache
        def fibonacci(n):
            return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

        assert submit(fibonacci, 90) == submit(lambda n: fibonacci(n), 90) == 2880067194370816120
    """,
    "cache of a library's function": """
        import math

        root = functools.lru_cache(math.sqrt)
        assert submit(lambda: root(9.0)) == submit(root, 9.0) == 3.0
    """,
    "cached method and property": """
        class Wide:
            def __init__(self, n):
                self.n = n

            @functools.cached_property
            def area(self):
                return self.n * self.n

            @functools.lru_cache
            def plus(self, m):
                return self.n + m

        assert submit(lambda wide: (wide.area, wide.area, wide.plus(1)), Wide(3)) == (9, 9, 4)
        assert submit(Wide, 4).area == 16
    """,
    "sentinel": """
        class Missing:
            def __reduce__(self):
                return "MISSING"

        MISSING = Missing()

        def pick(value=MISSING):
            return "none" if value is MISSING else value

        assert submit(pick) == "none"
        assert submit(pick, MISSING) == "none"
        assert submit(pick, 3) == 3
        assert submit(echo, MISSING) is MISSING
        assert submit(lambda: [MISSING, MISSING]) == [MISSING, MISSING]
    """,
    "sentinel with state": """
        class Marker:
            __slots__ = ("name", "level")

            def __init__(self, name, level):
                self.name, self.level = name, level

            def __reduce__(self):
                return f"Markers.{self.name}"

        class Markers:
            LOW = Marker("LOW", 1)
            HIGH = Marker("HIGH", 2)

        assert submit(lambda marker: marker.level, Markers.HIGH) == 2
        assert submit(echo, [Markers.LOW, Markers.HIGH]) == [Markers.LOW, Markers.HIGH]
    """,
    "enum by global name": """
        @enum.global_enum
        class Level(enum.IntEnum):
            LOW = 1
            HIGH = 2

        assert submit(lambda level: level is Level.HIGH and level + 1, Level.HIGH) == 3
        assert submit(echo, HIGH) is Level.HIGH
    """,
    "registered by copyreg": """
        class Unit:
            pass

        METRE = Unit()
        copyreg.pickle(Unit, lambda unit: "METRE")
        assert type(submit(echo, METRE)) is Unit
        assert submit(lambda unit: type(unit).__name__, METRE) == "Unit"
    """,
    "type variables": """
        T = typing.TypeVar("T", bound=int)
        P = typing.ParamSpec("P")
        Ts = typing.TypeVarTuple("Ts")
        UserId = typing.NewType("UserId", int)

        class Box(typing.Generic[T]):
            def __init__(self, value: T) -> None:
                self.value = value

        def opened(box: Box[T]) -> T:
            return box.value, UserId(3), T.__bound__.__name__, P.__name__, Ts.__name__

        assert submit(opened, Box[int](5)) == (5, 3, "int", "P", "Ts")
        assert submit(lambda kinds: [kind.__name__ for kind in kinds], [T, P, Ts, UserId]) == ["T", "P", "Ts", "UserId"]
    """,
    "singledispatch": """
        @functools.singledispatch
        def describe(value):
            return "something"

        @describe.register
        def _(value: int):
            return "number"

        @describe.register(list)
        def _(value):
            return [describe(each) for each in value]

        class Shape:
            pass

        describe.register(Shape, lambda value: "shape")

        assert submit(lambda: describe([1, "a", Shape()])) == ["number", "something", "shape"]
        assert submit(describe, [1, Shape()]) == ["number", "shape"]
    """,
    "neighbour": """
        import neighbour

        assert submit(lambda: neighbour.cached(3)) == 6
        assert submit(neighbour.cached, 4) == 8
        assert submit(lambda value: value is neighbour.NOTHING, neighbour.NOTHING)
        assert submit(lambda kind: kind.__name__, neighbour.T) == "T"
    """,
}
NEIGHBOUR = """
    import functools, typing

    T = typing.TypeVar("T")

    @functools.cache
    def cached(n):
        return 2 * n

    class Nothing:
        def __reduce__(self):
            return "NOTHING"

    NOTHING = Nothing()
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_may_use(name: str, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text(textwrap.dedent(NEIGHBOUR))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(HEAD) + textwrap.dedent(SCRIPTS[name]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # as `make test` sets
    ran = subprocess.run(
        [sys.executable, script, textwrap.dedent(WORKER)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_names_that_the_worker_can_import_stay_names() -> None:
    import json.decoder
    import signal

    from mep_sdk import encoding

    for value in (json.decoder.NaN, signal.SIGINT, NotImplemented, ..., {"a": signal.SIGTERM}):
        assert encoding.dumps(value, local_by_value=True)[3:4] == encoding.PICKLE
