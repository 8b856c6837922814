"""Functions travel: the forms that a person may send, run in a fresh Python that has nothing of theirs."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import subprocess
import sys
import textwrap
import xml.dom.minidom
import xml.etree.ElementTree

import cloudpickle
import msgspec
import pytest

from mep_sdk import encoding
from mep_sdk.errors import FunctionUnserializable
from mep_sdk.function_record import SerializedFunction
from mep_sdk.function_serializer import load_function, serialize_function
from mep_sdk.serialize import load_result, serialize_arguments
from mep_sdk.task_runner import run_task
from mep_wire.errors import FunctionUnloadable

LIMIT = 1 << 20
OFFSET = 7
SEEN: list[int] = []


def plain(a, b=2, *, c=3):
    return a + b + c


def recursive(n):
    return 1 if n < 2 else n * recursive(n - 1)


def uses_module(x):
    return math.sqrt(x)


def uses_submodules(text):
    return xml.etree.ElementTree.fromstring(text).tag, xml.dom.minidom.parseString(text).documentElement.tagName


def imports_inside(x):
    import json as j

    return j.dumps(x)


def uses_global(x):
    return x + OFFSET


def uses_helper(x):
    return uses_global(x) * 2


def is_even(n):
    return n == 0 or is_odd(n - 1)


def is_odd(n):
    return n != 0 and is_even(n - 1)


async def double_later(x):
    await asyncio.sleep(0)
    return 2 * x


def runs_async(x):
    return asyncio.run(double_later(x))


def counts():
    SEEN.append(len(SEEN))
    return SEEN


def uses_class(n):
    return Counter(n).plus(1)


def uses_decorated(x):
    return decorated(x)


def shadows_nothing():
    class Inner:
        value = 3

    return Inner.value


def knows_its_module():
    return __name__


def doubling(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return 2 * function(*args, **kwargs)

    return wrapper


@doubling
def decorated(x):
    return x + 1


def registering(function):
    return function


@registering
def registered(x, factor=OFFSET):
    return x * factor


class Counter:
    def __init__(self, start):
        self.start = start

    def plus(self, n):
        return self.start + n

    @staticmethod
    def fixed():
        return "static"

    @classmethod
    def named(cls):
        return cls.__name__

    def __call__(self, n):
        return self.start * n


def closure(n):
    return lambda x: x + n


CASES = [
    pytest.param(plain, (1,), 6, id="plain"),
    pytest.param(recursive, (5,), 120, id="recursive"),
    pytest.param(uses_module, (9,), 3.0, id="module"),
    pytest.param(uses_submodules, ("<a/>",), ("a", "a"), id="submodules"),
    pytest.param(imports_inside, ([1],), "[1]", id="import inside"),
    pytest.param(uses_global, (1,), 8, id="global"),
    pytest.param(uses_helper, (1,), 16, id="helper"),
    pytest.param(is_even, (10,), True, id="each other"),
    pytest.param(runs_async, (3,), 6, id="async helper"),
    pytest.param(counts, (), [0], id="mutable global"),
    pytest.param(uses_class, (1,), 2, id="class of the script"),
    pytest.param(uses_decorated, (1,), 4, id="decorated helper"),
    pytest.param(shadows_nothing, (), 3, id="class inside"),
    pytest.param(decorated, (1,), 4, id="decorated"),
    pytest.param(registered, (2,), 14, id="registered"),
    pytest.param(lambda x: x * 2, (4,), 8, id="lambda"),
    pytest.param(closure(3), (4,), 7, id="closure"),
    pytest.param(Counter(5).plus, (4,), 9, id="method"),
    pytest.param(Counter(5), (4,), 20, id="callable"),
    pytest.param(Counter.fixed, (), "static", id="staticmethod"),
    pytest.param(Counter.named, (), "Counter", id="classmethod"),
    pytest.param(functools.partial(plain, 1, c=0), (1,), 2, id="partial"),
    pytest.param(json.dumps, ([1],), "[1]", id="library function"),
    pytest.param(math.sqrt, (4,), 2.0, id="built-in"),
    pytest.param(dict, ([(1, 2)],), {1: 2}, id="class"),
]


@pytest.mark.parametrize(("function", "args", "expected"), CASES)
def test_runs_in_a_fresh_python(function, args, expected):
    script = """
        import sys
        from mep_sdk.task_runner import run_task
        code, payload = (bytes.fromhex(each) for each in sys.stdin.read().split())
        outcome = run_task(code, payload, max_result_bytes=1 << 20)
        sys.stdout.write(outcome.code + outcome.text if outcome.code else outcome.payload.hex())
    """
    given = f"{serialize_function(function).hex()} {serialize_arguments(args, {}).hex()}"
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=given,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert load_result(bytes.fromhex(run.stdout)) == expected


@pytest.mark.parametrize(
    "function",
    [
        plain,
        recursive,
        uses_module,
        imports_inside,
        registered,
        uses_global,
        uses_helper,
        is_even,
        runs_async,
        lambda: 1,
    ],
)
def test_plain_functions_travel_as_code(function):
    assert _record(function).codes


@pytest.mark.parametrize("function", [uses_class, uses_decorated, decorated, closure(1), lambda: Counter(1)])
def test_what_needs_more_is_pickled(function):
    assert _record(function).pickled


def _record(function) -> SerializedFunction:
    _, body = encoding.unframe(serialize_function(function), "function")
    return msgspec.msgpack.decode(body, type=SerializedFunction)


def _as_if_from(function, python: str, **changes) -> bytes:
    record = msgspec.structs.replace(_record(function), python=python, **changes)
    codes = tuple(msgspec.structs.replace(each, code=b"not for us") for each in record.codes)
    record = msgspec.structs.replace(record, codes=codes)
    return encoding.frame(encoding.FUNCTION, msgspec.msgpack.encode(record))


def test_plain_functions_need_no_pickling_library():
    script = """
        import sys
        from mep_sdk.task_runner import run_task
        code, payload = (bytes.fromhex(each) for each in sys.stdin.read().split())
        assert not run_task(code, payload, max_result_bytes=1 << 20).code
        heavy = {"cloudpickle", "dill", "http", "websockets", "socket", "ssl", "asyncio", "tokenize"}
        print(*sorted(heavy & sys.modules.keys()))
    """
    given = f"{serialize_function(plain).hex()} {serialize_arguments((1,), {}).hex()}"
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], input=given, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() in ([], ["tokenize"])


def test_another_python_compiles_the_source():
    loaded = load_function(_as_if_from(registered, "cpython-3.99"))
    assert loaded.call(2) == 14
    assert loaded.call(2, 3) == 6


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [(lambda x: x + OFFSET, (1,), 8), (uses_helper, (1,), 16), (is_even, (10,), True), (runs_async, (3,), 6)],
)
def test_another_python_compiles_what_the_function_uses_too(function, args, expected):
    assert load_function(_as_if_from(function, "cpython-3.99")).call(*args) == expected


def test_another_python_without_source_names_both():
    made = eval("lambda: 1", {"__name__": "__main__"})
    with pytest.raises(FunctionUnloadable) as caught:
        load_function(_as_if_from(made, "cpython-3.99"))
    assert "cpython-3.99" in caught.value.text
    assert encoding.PYTHON in caught.value.text


def test_a_cloudpickle_of_another_python_names_both():
    body = cloudpickle.dumps(uses_class)
    foreign = encoding.frame(encoding.CLOUDPICKLE, bytes([12]) + b"cpython-3.99" + body)
    with pytest.raises(FunctionUnloadable) as caught:
        load_function(_as_if_from(uses_class, "cpython-3.99", pickled=(foreign,)))
    assert "cpython-3.99" in caught.value.text
    assert encoding.PYTHON in caught.value.text


def test_a_function_of_a_missing_package_comes_by_value(tmp_path, monkeypatch):
    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "only_here.py").write_text("STEP = 2\ndef step(x):\n    return x + STEP\n")
    monkeypatch.syspath_prepend(str(package))
    import only_here

    code = serialize_function(only_here.step)
    monkeypatch.delitem(sys.modules, "only_here")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(package)])
    assert load_function(code).call(1) == 3


def test_a_scripts_neighbour_module_comes_by_value(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("def helper(x):\n    return x * 10\ndef work(x):\n    return helper(x)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import neighbour

    code = serialize_function(lambda x: neighbour.work(x))
    monkeypatch.delitem(sys.modules, "neighbour")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path)])
    assert load_function(code).call(4) == 40


async def coroutine():
    await asyncio.sleep(0)


async def async_generator():
    yield 1


def generator():
    yield 1


class AsyncCallable:
    async def __call__(self):
        pass


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (coroutine, "async"),
        (async_generator, "async"),
        (AsyncCallable(), "async"),
        (functools.partial(coroutine), "async"),
        (generator, "generator"),
        (3, "called"),
    ],
)
def test_refused_with_a_reason(function, says):
    with pytest.raises(FunctionUnserializable, match=says):
        serialize_function(function)


def test_what_does_not_pickle_is_refused():
    lock = __import__("threading").Lock()
    with pytest.raises(FunctionUnserializable, match="lock"):
        serialize_function(lambda: lock)


@pytest.mark.parametrize("cut", [0, 3, 7, 8, 20, -1])
def test_damaged_bytes_are_named(cut):
    with pytest.raises(FunctionUnloadable):
        load_function(serialize_function(plain)[:cut])


def test_flipped_bit_is_noticed():
    code = bytearray(serialize_function(plain))
    code[-5] ^= 1
    with pytest.raises(FunctionUnloadable, match="checksum"):
        load_function(bytes(code))


def test_module_name_is_kept():
    assert load_function(serialize_function(knows_its_module)).call() == __name__


def test_a_script_keeps_its_own_globals():
    assert load_function(serialize_function(counts)).call() == [0]
    assert SEEN == []


def test_functions_are_cached_by_their_bytes():
    cache = {}
    code, payload = serialize_function(plain), serialize_arguments((1,), {})
    for _ in range(3):
        assert load_result(run_task(code, payload, max_result_bytes=LIMIT, cache=cache).payload) == 6
    assert len(cache) == 1
