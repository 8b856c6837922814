"""Functions and classes travel with source text for workers of another Python, and run from that alone.

Here the worker has this Python, and is not given the code objects; acceptance/test_interpreters.py has other ones.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import enum
import functools
import itertools
import linecache
import math
import subprocess
import sys
import types
import typing
import xml.sax.saxutils
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep_sdk import code_source, data_pickles, encoding, importable, strategies, task_runner
from mep_sdk.function_record import SerializedFunction, read_record
from mep_sdk.function_serializer import FunctionSource, LoadedFunction, load_function, serialize_function
from mep_sdk.serialize import load_arguments, load_exception, load_result, serialize_arguments, serialize_result
from mep_wire.errors import FunctionUnloadable

FOREIGN = "cpython-3.99"
BASE = 10


class Unlucky(Exception):
    def __init__(self, code, *, why):
        super().__init__(f"{code}: {why}")
        self.code = code


class Worse(Unlucky):
    def __str__(self):
        return f"worse, {super().__str__()}"


class Account:
    __fee = 3

    def __init__(self, value):
        self.__value = value

    def total(self, more=1, *, extra=2):
        return self.__value + more + extra + self.__fee + BASE

    @property
    def twice(self):
        return 2 * self.__value

    @classmethod
    def named(cls, value):
        return cls(value).twice, cls.__name__

    @staticmethod
    def plus(value):
        return value + BASE


class Savings(Account):
    def total(self, more=1, *, extra=2):
        return 100 + super().total(more, extra=extra)


@dataclasses.dataclass(order=True)
class Point:
    x: int
    notes: list = dataclasses.field(default_factory=list, metadata={"unit": "m"})
    y: int = 5

    def total(self):
        return self.x + self.y + len(self.notes)


@dataclasses.dataclass
class Named(Point):
    name: str = "n"


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    a: int = 1


Point.y = 6


class Color(enum.Enum):
    RED = 1
    BLUE = 2

    def twice(self):
        return self.value * 2


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...


class Square(Shape):
    def area(self):
        return 7


def times(factor):
    def decorate(function):
        @functools.wraps(function)
        def inner(*args, **kwargs):
            return factor * function(*args, **kwargs)

        return inner

    return decorate


@times(3)
def decorated(x: int, y: int = 2) -> int:
    return x + y + BASE


def adds(n):
    return lambda x: x + n + BASE


def counter():
    count = 0

    def up():
        nonlocal count
        count += 1
        return count

    return up


def recursive():
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    return factorial


@functools.lru_cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@functools.singledispatch
def kind_of(_value):
    return "object"


@kind_of.register
def _(_value: int):
    return "int"


@contextlib.contextmanager
def doubled(x):
    yield x * 2


def with_context(x):
    with doubled(x) as y:
        return y + Account(1).total()


def catches(code):
    try:
        raise Worse(code, why="so")
    except Unlucky as error:
        return error.code, str(error)


def with_points():
    plain = Point(1, [1])
    return plain.total(), Point(1) < Point(2), Point(1) == Point(1), repr(Point(1)), len({Fixed(), Fixed(1)}), Point.y


def with_fields():
    return [(each.name, dict(each.metadata)) for each in dataclasses.fields(Named)], Named(1).total()


def with_modules(x):
    return math.floor(xml.sax.saxutils.escape("<") and x) + len(list(itertools.chain([x], [x])))


def with_default(x, key=lambda y: y + BASE):
    return key(x)


# fmt: off
two = (lambda x: x + 1, lambda x: x + 2)
nested = [(lambda x: lambda y: x * y * k) for k in (2, 3)]  # noqa: B023
if BASE: within = lambda a, *b, c=3, **d: (a, b, c, sorted(d), BASE)  # noqa: E701, E731
# fmt: on

CASES = {
    "lambda": (lambda x: x * BASE, (2,), 20),
    "the first of two lambdas in a line": (two[0], (1,), 2),
    "the second": (two[1], (1,), 3),
    "a lambda in a lambda": (nested[1](5), (1,), 15),
    "a lambda after a colon": (within, (1, 2), (1, (2,), 3, [], 10)),
    "closure": (adds(5), (1,), 16),
    "nonlocal": (counter(), (), 1),
    "recursive closure": (recursive(), (5,), 120),
    "decorated": (decorated, (1,), 39),
    "partial of a closure": (functools.partial(adds(1), 3), (), 14),
    "partial of a decorated function": (functools.partial(decorated, y=1), (1,), 36),
    "bound method": (Account(1).total, (1,), 17),
    "method with super": (Savings(1).total, (), 117),
    "class method": (Savings.named, (4,), (8, "Savings")),
    "static method": (Account.plus, (1,), 11),
    "property": (lambda: Account(4).twice, (), 8),
    "own exceptions": (catches, (4,), (4, "worse, 4: so")),
    "cached": (fibonacci, (10,), 55),
    "singledispatch": (kind_of, (1,), "int"),
    "context manager": (with_context, (3,), 23),
    "abstract base": (lambda: Square().area(), (), 7),
    "enum": (lambda n: (Color(n).twice(), Color.RED.name), (2,), (4, "RED")),
    "dataclass": (with_points, (), (7, True, True, "Point(x=1, notes=[], y=5)", 1, 6)),
    "dataclass fields": (
        with_fields,
        (),
        ([("x", {}), ("notes", {"unit": "m"}), ("y", {}), ("name", {})], 6),
    ),
    "modules": (lambda x: adds(1)(math.floor(with_modules(x))), (1.5,), 14),
    "a lambda as a default": (with_default, (1,), 11),
}

WORKER = """
import sys
from mep_sdk.task_runner import run_task
for line in sys.stdin:
    code, payload = (bytes.fromhex(each) for each in line.split())
    outcome = run_task(code, payload, max_result_bytes=1 << 20)
    print(outcome.code or "-", outcome.payload.hex() or "-", outcome.text)
"""


def record_of(function: Any) -> SerializedFunction:
    return read_record(serialize_function(function))


def without_code(function: Any) -> bytes:
    """Return a function's bytes as they are where another Python made them."""
    record = record_of(function)
    pickled = record.pickled if record.codes else record.pickled[1:]
    codes = tuple(msgspec.structs.replace(each, code=b"not for us") for each in record.codes)
    foreign = msgspec.structs.replace(record, python=FOREIGN, codes=codes, pickled=pickled)
    return encoding.frame(encoding.FUNCTION, msgspec.msgpack.encode(foreign))


def run_elsewhere(*tasks: tuple[bytes, bytes]) -> list[tuple[str, bytes, str]]:
    """Run functions with their arguments in a Python that has nothing of this module."""
    given = "\n".join(f"{code.hex()} {payload.hex()}" for code, payload in tasks)
    command = [sys.executable, "-c", WORKER]
    ran = subprocess.run(command, input=given, capture_output=True, text=True, check=True, cwd="/")
    parts = [line.split(" ", 2) for line in ran.stdout.splitlines()]
    return [(code, bytes.fromhex(payload.strip("-")), text) for code, payload, text in parts]


@pytest.fixture(autouse=True)
def _other_pythons_are_forgotten() -> Iterator[None]:
    known = set(importable.other_pythons)
    yield
    importable.other_pythons &= known


@pytest.fixture
def knows_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importable, "other_pythons", {FOREIGN})
    monkeypatch.setattr(encoding, "other_pythons", {FOREIGN})


@pytest.mark.parametrize("name", CASES)
def test_runs_from_source_text_alone(name: str) -> None:
    function, args, expected = CASES[name]
    [(code, payload, text)] = run_elsewhere((without_code(function), serialize_arguments(args, {})))
    assert code == "-", text
    assert load_result(payload) == expected


@pytest.mark.parametrize("name", CASES)
def test_the_code_object_stays_first(name: str) -> None:
    record = record_of(CASES[name][0])
    assert record.codes or not encoding.is_by_source(record.pickled[0])
    assert load_function(serialize_function(CASES[name][0])).call(*CASES[name][1]) == CASES[name][2]


def test_an_own_exception_comes_back_as_itself_with_its_lines() -> None:
    def fails(code):
        raise Worse(code, why="so")

    [(code, payload, _)] = run_elsewhere((without_code(fails), serialize_arguments((4,), {})))
    assert code == "TASK_FAILED"
    error = load_exception(payload)
    assert type(error) is Worse
    assert (error.code, str(error)) == (4, "worse, 4: so")


def test_results_go_back_as_source_text_too() -> None:
    """A worker of another Python can pickle its own code only for itself."""
    gives = without_code(lambda value: (Account(value), Point(value), adds(value)))
    [(code, payload, text)] = run_elsewhere((gives, serialize_arguments((4,), {})))
    assert code == "-", text
    # The worker has this Python here, and so does not see that the person has another.
    account, point, add = load_result(payload)
    assert (type(account), type(point), account.total(), point, add(1)) == (Account, Point, 20, Point(4), 15)


@pytest.mark.usefixtures("knows_of_others")
def test_values_go_as_source_text_once_another_python_is_known() -> None:
    data = serialize_arguments((Account(4), Point(4), adds(4)), {})
    assert encoding.is_by_source(data)
    account, point, add = load_arguments(data)[0]
    assert (type(account), account.total(), point, add(1)) == (Account, 20, Point(4), 15)
    assert encoding.is_by_source(serialize_result(adds(1)))


@pytest.mark.usefixtures("knows_of_others")
def test_functions_are_the_same_bytes_once_another_python_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = serialize_function(adds(4))
    monkeypatch.setattr(encoding, "other_pythons", set())
    assert serialize_function(adds(4)) == known


@pytest.mark.usefixtures("knows_of_others")
def test_values_without_source_text_go_as_code() -> None:
    space: dict[str, Any] = {}
    exec("def adds(n):\n    return lambda x: x + n\n", space)
    data = serialize_arguments((space["adds"](1),), {})
    assert data[3:4] == encoding.CLOUDPICKLE
    assert not encoding.is_by_source(data)


def test_a_worker_that_read_another_pythons_source_text_answers_with_source_text(monkeypatch) -> None:
    monkeypatch.setattr(encoding, "other_pythons", set())
    data = record_of(adds(4)).pickled[1]
    body = bytes(encoding.unframe(data, "test")[1])
    tag = body[1 : 1 + body[0]].replace(encoding.PYTHON.encode(), FOREIGN.encode())
    foreign = encoding.frame(encoding.CLOUDPICKLE, bytes([len(tag)]) + tag + body[1 + body[0] :])
    assert not encoding.is_by_source(serialize_result(adds(4)))
    assert encoding.loads(foreign, "test")(1) == 15
    assert encoding.is_by_source(serialize_result(adds(4)))


def module_of(tmp_path: Path, name: str, text: str) -> types.ModuleType:
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    module = types.ModuleType(name)
    exec(compile(text, str(file), "exec"), module.__dict__)
    return module


def test_a_file_that_was_changed_since_gives_no_source_text(tmp_path: Path) -> None:
    module = module_of(tmp_path, "edited", "def adds(n):\n    return lambda x: x + n\n")
    (tmp_path / "edited.py").write_text("def adds(n):\n    return lambda x: x - n\n")
    with pytest.raises(code_source.SourceUnknown):
        code_source.source_of(module.adds(1).__code__)
    assert len(record_of(module.adds(1)).pickled) == 1


CLASSES = (
    "class A:\n\tdef f(self):\n\t\tn = 2\n\t\tclass B:\n\t\t\tdef g(self, x):\n\t\t\t\t'é'; return x + n\n"
    "\t\treturn B().g\nmade = A().f()\n"
)


@pytest.mark.parametrize(
    "text",
    [
        "made = (lambda n: (lambda x: x + n))(2)\n",
        "made = (lambda n:\n(\nlambda x:\n x + n))(2)\n",
        CLASSES,
        "made = [lambda x, é='é': x + n for n in (1, 2)][1]\n",
        "try:\n    raise KeyError\nexcept KeyError:\n    def made(x, *, n=2, **_: lambda: 0):\n        return x + n\n",
    ],
)
def test_wherever_a_function_is_in_its_file(tmp_path: Path, text: str) -> None:
    made = module_of(tmp_path, f"odd_{abs(hash(text))}", text).made
    code = getattr(made, "__func__", made).__code__
    source = code_source.source_of(code)
    again = code_source.load(*source)
    assert again.co_freevars == code.co_freevars
    assert list(again.co_positions()) == list(code.co_positions())


def test_without_source_text_the_error_names_both_pythons() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def adds(n):\n    return lambda x: x + n\n", space)
    record = record_of(space["adds"](1))
    tag = f"{FOREIGN} cloudpickle-9.9".encode()
    pickled = encoding.frame(encoding.CLOUDPICKLE, bytes([len(tag)]) + tag + b"for another")
    foreign = msgspec.structs.replace(record, python=FOREIGN, pickled=(pickled, *record.pickled[1:]))
    with pytest.raises(FunctionUnloadable) as caught:
        load_function(encoding.frame(encoding.FUNCTION, msgspec.msgpack.encode(foreign)))
    assert FOREIGN in caught.value.text
    assert encoding.PYTHON in caught.value.text


def test_source_text_that_this_python_cannot_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    piece = code_source.source_of(adds(1).__code__)
    monkeypatch.setattr(code_source, "source_of", lambda _: piece._replace(text="def adds(n):\n    return new syntax"))
    monkeypatch.setattr("mep_sdk.function_serializer._known_sources", {})
    function = without_code(adds(1))
    with pytest.raises(FunctionUnloadable, match="cannot read the source text: invalid syntax") as caught:
        load_function(function)
    assert FOREIGN in caught.value.text
    assert encoding.PYTHON in caught.value.text


def test_large_closures_are_not_sent_twice() -> None:
    large = bytes(300_000)
    assert len(record_of(lambda: (large, adds)).pickled) == 1


def test_source_text_of_one_class_is_in_a_function_once() -> None:
    text = record_of(Savings(1).total).pickled[1]
    assert text.count(b"def plus(") == 1
    assert b"CASES" not in text


def test_a_site_that_takes_source_text_alone_gets_no_pickled_one() -> None:
    """With source text in place of code it is a pickle all the same, and can run code."""
    record = record_of(adds(1))
    assert strategies.only(record, frozenset({strategies.SOURCE, strategies.REFERENCE})) is None
    mixed = record_of(with_default)
    assert mixed.pickled
    kept = strategies.only(mixed, frozenset({strategies.SOURCE}))
    assert kept is not None
    assert kept.pickled == ()


def test_a_changed_line_cache_does_not_matter_to_loaded_code() -> None:
    call = load_function(without_code(adds(4))).call
    linecache.clearcache()
    assert code_source.source_of(call.__code__).name == "<lambda>"


def test_tracebacks_in_the_worker_show_the_lines() -> None:
    def fails(n):
        first = lambda: 0  # noqa: E731
        return lambda: first() or 1 // n

    code = without_code(fails(0))
    texts = {each.first_line: each.text for each in load_function(code).sources}
    line = fails.__code__.co_firstlineno
    assert {at - line: text.strip() for at, text in texts.items()} == {1: "lambda: 0)", 2: "lambda: first() or 1 // n)"}
    [(_, payload, _)] = run_elsewhere((code, serialize_arguments((), {})))
    assert load_exception(payload).__cause__ is not None


def test_lines_of_functions_that_overlap_are_shown_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linecache, "cache", {})
    texts = [(2, "def a():\n    f(lambda: 1)\n    return 0\n"), (3, "      lambda: 1\n"), (6, "last\n")]
    sources = tuple(FunctionSource("/no/such/file.py", *each) for each in texts)
    task_runner._show_source(LoadedFunction(print, "print", sources))
    shown = [linecache.getline("/no/such/file.py", at).strip() for at in range(1, 7)]
    assert shown == ["", "def a():", "lambda: 1", "return 0", "", "last"]


def test_no_more_of_a_function_around_goes_along_than_its_name() -> None:
    def outer():
        token = "mep_" + "secret"

        def inner(x):
            return lambda y: x + y

        return inner(1) if token else None

    code = serialize_function(outer())
    assert encoding.is_by_source(read_record(code).pickled[1])
    assert b"lambda y: x + y" in code
    assert b"secret" not in code


Pair = collections.namedtuple("Pair", ["first", "second"], defaults=[BASE])  # noqa: PYI024 - as scripts have it
Alone = collections.namedtuple("Alone", "only")  # noqa: PYI024 - as above


class Typed(typing.NamedTuple):
    first: int
    second: str = "x"

    def both(self) -> str:
        return f"{self.first}{self.second}"


def in_foreign_python(monkeypatch: pytest.MonkeyPatch, data: bytes, load: Callable[[bytes], Any]) -> Any:
    """Load data where the code objects in it are another Python's, and no class is known."""
    with monkeypatch.context() as context:
        context.setattr(encoding, "PYTHON", FOREIGN)
        return load(data)


@pytest.mark.parametrize("tail", [{}, {"wants_output": True}, {"live_output": True}, {"result_ways": ["pickle"]}])
def test_the_first_values_are_read_by_another_python_too(monkeypatch, tail) -> None:
    data = serialize_arguments((Account(4), Point(4), adds(4)), {"more": [Pair(1), Alone(2), Typed(3)]}, **tail)
    assert not encoding.is_by_source(data)
    for args, kwargs in (load_arguments(data), in_foreign_python(monkeypatch, data, load_arguments)):
        account, point, add = args
        assert (type(account), account.total(), point, add(1)) == (Account, 20, Point(4), 15)
        assert kwargs == {"more": [(1, BASE), (2,), (3, "x")]}


def test_large_values_go_by_source_text_alone() -> None:
    data = serialize_arguments((Account("x" * encoding.MAX_FALLBACK_BYTES),), {}, wants_output=True)
    assert encoding.is_by_source(data)
    assert encoding.MAX_FALLBACK_BYTES < len(data) < 2 * encoding.MAX_FALLBACK_BYTES
    with pytest.raises(encoding.OverLimit):
        serialize_arguments((Account("x" * encoding.MAX_FALLBACK_BYTES),), {}, limit=encoding.MAX_FALLBACK_BYTES)


def test_values_by_reference_go_by_source_text() -> None:
    frame = data_pickles.dump([(Account(4),), {}], lambda *_: None, 1 << 20, local_by_value=True)
    assert encoding.BY_SOURCE in frame.tag


def named_tuples() -> tuple[Any, ...]:
    return Pair(1), Alone(2), Typed(3), Typed(4).both(), Pair(1)._replace(first=5)._asdict()


def makes_a_class(value: int) -> Any:
    class Within:
        def __init__(self) -> None:
            self.value = value

        def more(self) -> int:
            return self.value + 1

    return Within()


def test_named_tuples_travel_as_source_text() -> None:
    [(code, payload, text)] = run_elsewhere((without_code(named_tuples), serialize_arguments((), {})))
    assert code == "-", text
    assert load_result(payload) == ((1, BASE), (2,), (3, "x"), "4x", {"first": 5, "second": BASE})


def test_a_class_that_a_function_makes_comes_back_from_another_python() -> None:
    [(code, payload, text)] = run_elsewhere((without_code(makes_a_class), serialize_arguments((1,), {})))
    assert code == "-", text
    assert load_result(payload).more() == 2


def test_a_traceback_shows_the_lines_of_what_travels_as_code_objects(tmp_path: Path) -> None:
    text = "class Spoiled(Exception):\n    pass\n\n\ndef spoils(code):\n    raise Spoiled(code)\n"
    module = module_of(tmp_path, "spoiling", text)
    function = serialize_function(module.spoils)
    assert not encoding.is_by_source(read_record(function).pickled[0])
    (tmp_path / "spoiling.py").unlink()  # as on the endpoint
    [(code, payload, _)] = run_elsewhere((function, serialize_arguments((4,), {})))
    assert code == "TASK_FAILED"
    assert "raise Spoiled(code)" in str(load_exception(payload).__cause__)
