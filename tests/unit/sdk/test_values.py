"""Arguments and results travel; classes come back as the person's own."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import subprocess
import sys
import textwrap
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mep_sdk import encoding
from mep_sdk.errors import ArgumentsUnserializable, DataCorrupt, DataUnreadable
from mep_sdk.serialize import (
    load_arguments,
    load_exception,
    load_result,
    serialize_arguments,
    serialize_exception,
    serialize_result,
)

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.frozensets(st.text())
    ),
    max_leaves=20,
)


@given(st.lists(plain_values), st.dictionaries(st.text(), plain_values))
def test_plain_values_come_back(args, kwargs):
    data = serialize_arguments(tuple(args), kwargs)
    assert data[3:4] == encoding.PICKLE
    assert load_arguments(data) == (tuple(args), kwargs)


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        decimal.Decimal("1.5"),
        collections.OrderedDict(a=1),
        range(3),
        complex(1, 2),
        int,
        len,
    ],
)
def test_library_types_are_plain(value):
    data = serialize_result(value)
    assert data[3:4] == encoding.PICKLE
    assert load_result(data) == value


@dataclasses.dataclass
class Point:
    x: int


class Colour(enum.Enum):
    RED = 1


def test_classes_of_a_script_travel_and_come_back_as_themselves():
    script = """
        import sys
        from mep_sdk.serialize import load_arguments, serialize_result
        (point, colour), _ = load_arguments(bytes.fromhex(sys.stdin.read()))
        point.x += 1
        sys.stdout.write(serialize_result([point, colour]).hex())
    """
    given = serialize_arguments((Point(1), Colour.RED), {}).hex()
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=given,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    point, colour = load_result(bytes.fromhex(run.stdout))
    assert type(point) is Point
    assert point == Point(2)
    assert colour is Colour.RED


def test_what_does_not_pickle_is_named():
    with pytest.raises(ArgumentsUnserializable, match=r"f cannot be sent.*lock"):
        serialize_arguments((threading.Lock(),), {}, name="f")


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:-1], lambda d: b"x" + d, lambda d: d + b"x"])
@pytest.mark.parametrize("load", [load_arguments, load_result, load_exception])
def test_damage_is_named(damage, load):
    for data in (serialize_result(3), serialize_exception(ValueError())):
        with pytest.raises(DataCorrupt):
            load(damage(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_named_error(body):
    for kind in (encoding.PICKLE, encoding.CLOUDPICKLE, encoding.EXCEPTION, b"?"):
        for load in (load_result, load_exception):
            with contextlib.suppress(DataCorrupt, DataUnreadable):
                load(encoding.frame(kind, body))


def test_a_class_that_is_not_here_is_named():
    data = encoding.frame(encoding.PICKLE, b"\x80\x05cnot_installed\nThing\n.")
    with pytest.raises(DataUnreadable, match="not_installed"):
        load_result(data)


def test_a_cloudpickle_of_another_python_names_both():
    data = encoding.frame(encoding.CLOUDPICKLE, bytes([12]) + b"cpython-3.99" + b"rest")
    with pytest.raises(DataUnreadable, match=f"cpython-3.99 and this is {encoding.PYTHON}"):
        load_result(data)
