"""Python objects to self-describing bytes and back: the frame around everything that is serialized.

A frame is `MEP`, one byte for its kind, four bytes of CRC-32 over the rest, and the rest. Kinds of value are
a plain pickle, which any Python can read, a cloudpickle, which carries code and so names the Python
that made it, and JSON, on request. Input is trusted as far as pickles can be: it can run
code. People read what their own tasks returned, workers what their own user sent; the relay reads none of it.
Called by the SDK and, in workers, by the task runner; so cloudpickle, which is slow to import, is imported only
where it is needed.
"""

from __future__ import annotations

import _thread  # `threading` itself costs each worker 200 kB
import contextlib
import functools
import io
import pickle
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeVar

from mep_sdk.errors import DataCorrupt, DataUnreadable
from mep_sdk.foreign_code import attempt, failure_text
from mep_sdk.importable import (
    NotSerializable,
    local_modules,
    named_elsewhere,
    needs_value,
    other_pythons,
    own_reduction,
    reduces_itself,
)

_T = TypeVar("_T")

MAGIC = b"MEP"
FUNCTION = b"f"
PICKLE = b"p"
CLOUDPICKLE = b"c"
EXCEPTION = b"e"
JSON = b"j"
REQUEST = b"r"
"""Arguments in a frame within, after the ways in which the result may be sent: a byte, and so many bytes of names."""
INPUTS = b"i"
"""Arguments in a frame within, after the results of other tasks that they refer to: a number of four bytes, so many
lengths, and the frames of these results."""
OUTPUT = b"o"
"""The task's stdout and stderr before the frame of its result or exception: two lengths of four bytes, and both."""
OUTPUT_WANTED = b"\n\t \n\t "
"""Follows a call's arguments where the caller takes an OUTPUT frame. Readers of pickles and of JSON pass over it."""
LIVE_OUTPUT_WANTED = b"\n\n\t\t" + OUTPUT_WANTED
"""Follows them where the caller takes it while the task runs, too. Workers that only know the other one see that."""
_BOTH = b"MEP+"
"""Follows a frame by source text, and its length, behind the same value by value. Older workers pass over it."""
_HEADER_BYTES, _LENGTH_BYTES = 8, 4
_BEHIND_BYTES = len(_BOTH + LIVE_OUTPUT_WANTED)
MAX_FALLBACK_BYTES = 256 * 1024
"""The most that a second way to load a function or value may have."""

BY_SOURCE = "+source"
"""Follows the Python in the tag of a cloudpickle without code objects, which every version reads."""
PYTHON = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"
"""The Python version of the code objects that this process makes and reads, e.g. cpython-3.11."""


def frame(kind: bytes, body: bytes) -> bytes:
    """Return `body` as a frame of this kind."""
    return b"%b%b%b%b" % (MAGIC, kind, zlib.crc32(body).to_bytes(4, "big"), body)


def unframe(data: bytes, what: str) -> tuple[bytes, memoryview]:
    """Return kind and body of a frame. `what` names it in the error. Raises DataCorrupt."""
    if len(data) < _HEADER_BYTES or data[:3] != MAGIC:
        raise DataCorrupt(what=what, reason="it does not begin as serialized data does")
    body = memoryview(data)[_HEADER_BYTES:]
    if zlib.crc32(body) != int.from_bytes(data[4:8], "big"):
        raise DataCorrupt(what=what, reason="its checksum does not fit")
    return data[3:4], body


class _NeedsValue(Exception):
    """An object to be pickled belongs to a module that the other side does not have."""


class _Pickler(pickle.Pickler):
    """A pickler that stops at objects that the other side could not import.

    The C pickler asks `reducer_override` only about objects that are not of the plain built-in types, so
    numbers, strings and containers of them cost nothing extra.
    """

    local_by_value = False

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is object:  # told from others by identity, by_value keeps that
            raise _NeedsValue
        named = issubclass(type(obj), (type, FunctionType, BuiltinFunctionType))  # isinstance would resolve a proxy
        owner = obj if named else type(obj)
        if needs_value(getattr(owner, "__module__", None) or "builtins", local=self.local_by_value):
            raise _NeedsValue
        if named or not reduces_itself(type(obj)):
            return NotImplemented
        reduced = own_reduction(obj)
        if isinstance(reduced, str) and named_elsewhere(obj, reduced, local=self.local_by_value):
            raise _NeedsValue
        return reduced


class _LocalPickler(_Pickler):
    local_by_value = True


class OverLimit(Exception):
    """A value has more bytes than were allowed: it is not pickled further."""


class _Capped(io.BytesIO):
    """A file in memory that takes no more than `left` bytes."""

    left = 0

    def write(self, data: Any, /) -> int:
        self.left -= len(data) if type(data) is bytes else memoryview(data).nbytes
        if self.left < 0:
            raise OverLimit
        return _add(self, data)


_add = io.BytesIO.write
"""Also writes the tail, which no limit counts."""


def _buffer(limit: int) -> io.BytesIO:
    """Return a file in memory; 0 is no limit."""
    if not limit:
        return io.BytesIO()
    made = _Capped()
    made.left = limit
    return made


def dumps(
    value: object, *, local_by_value: bool, tail: bytes = b"", limit: int = 0, for_this_python: bool = False
) -> bytes:
    """Return the frame of `value`: a plain pickle where that is enough, else a cloudpickle. `tail` follows it within.

    What belongs to `__main__` travels by value; with `local_by_value`, as scripts use it, so does what belongs to
    modules that are not installed (a script's neighbours). Unless it is `for_this_python`, code travels as source text
    where another Python is known to be on the other side, and a script's code both ways. Raises NotSerializable, and
    OverLimit where there are more than `limit` bytes, unless that is 0.
    """
    plain = functools.partial(_dumps_locally_plain if local_by_value else _dumps_plain, tail=tail, limit=limit)
    by_value = functools.partial(_dumps_by_value, local=local_by_value, tail=tail, limit=limit)
    if for_this_python:
        return _first_that_works(plain, by_value, value=value)
    if other_pythons:
        return _first_that_works(plain, functools.partial(by_value, by_source=True), by_value, value=value)
    if local_by_value:
        return _first_that_works(plain, functools.partial(_dumps_both_ways, tail=tail, limit=limit), value=value)
    return _first_that_works(plain, by_value, value=value)


def dump_into(make: Callable[[], Any], values: Sequence[object], *, local_by_value: bool) -> tuple[bytes, str]:
    """Pickle values one after the other, with one memo, into a file of `make`'s; return the kind of the pickles, and
    which Python and cloudpickle made the code in them. Another file is made where plain pickles are not enough. Its
    `end_value` is called after each value. Raises NotSerializable, and what the file's `write` raises."""
    raised: list[Exception] = []

    def opened() -> Any:
        return _Watched(make(), raised)

    def plain(_: object) -> tuple[bytes, str]:
        file = opened()
        _dump_all((_LocalPickler if local_by_value else _Pickler)(file, 5), values, file)
        return PICKLE, ""

    def by_value(_: object, *, source: bool = False) -> tuple[bytes, str]:
        with (_with_source if source else _registered_modules)(local=local_by_value) as (kind, tag):
            file = opened()
            _dump_all(kind(file, protocol=5), values, file)
        return CLOUDPICKLE, tag

    by_source = [functools.partial(by_value, source=True)] if other_pythons or local_by_value else []
    try:
        made: tuple[bytes, str] = _first_that_works(plain, *by_source, by_value, value=None, stops=lambda: bool(raised))
        return made
    except NotSerializable:
        if raised:
            raise raised[0] from None
        raise


class _Watched:
    """A file that remembers what its `write` raised: picklers pass that on as if a value had."""

    def __init__(self, file: Any, raised: list[Exception]) -> None:
        self._write, self._raised = file.write, raised
        self.end_value = file.end_value

    def write(self, data: Any) -> int:
        try:
            return int(self._write(data))
        except Exception as error:
            self._raised.append(error)
            raise


def _dump_all(pickler: pickle.Pickler, values: Sequence[object], file: _Watched) -> None:
    for value in values:
        pickler.dump(value)
        file.end_value()


def way_to_fault(value: object, name: str, *, local_by_value: bool) -> str:
    """Return which part of a value does not pickle, as words to add to the reason; empty if it is the value itself."""
    from mep_sdk.unpicklable import path_to_fault  # only a failure needs it

    def pickles(part: object) -> bool:
        return attempt(lambda: dumps(part, local_by_value=local_by_value))[1] is None

    path = path_to_fault(value, name, pickles)
    return f" ({path})" if path else ""


def dumps_by_value(value: object, module: ModuleType) -> bytes:
    """Return a frame in which everything of this module, and of local ones, travels by value. Raises
    NotSerializable."""
    return _first_that_works(functools.partial(_dumps_by_value, local=True, also=(module,)), value=value)


def dumps_by_source(value: object, limit: int) -> bytes:
    """Return a frame in which the source text of functions stands for their code. Raises NotSerializable, and
    OverLimit where it has more than `limit` bytes."""
    way = functools.partial(_dumps_by_value, local=True, by_source=True, limit=limit)
    return _first_that_works(way, value=value)


def _first_that_works(*ways: Callable[[object], _T], value: object, stops: Callable[[], bool] = lambda: False) -> _T:
    reason = ""
    for way in ways:
        data, failure = attempt(way, value)  # the value's own code pickles itself
        if data is not None:
            return data
        if isinstance(failure, KeyboardInterrupt | OverLimit):
            raise failure
        if stops():
            break
        reason = failure_text(failure) if failure is not None else ""
    raise NotSerializable(reason)


def _dumps_plain(value: object, tail: bytes, limit: int) -> bytes:
    buffer = _buffer(limit)
    _Pickler(buffer, 5).dump(value)
    _add(buffer, tail)
    return frame(PICKLE, buffer.getvalue())


def _dumps_locally_plain(value: object, tail: bytes, limit: int) -> bytes:
    buffer = _buffer(limit)
    _LocalPickler(buffer, 5).dump(value)
    _add(buffer, tail)
    return frame(PICKLE, buffer.getvalue())


def plain_pickler(file: Any) -> pickle.Pickler:
    """Return a pickler that stops at what the other side could not import: its `dump` then raises."""
    return _LocalPickler(file, 5)


def dump_by_value(value: object, file: Any) -> None:
    """Write a pickle in which everything that the other side could not import travels by value."""
    with _registered_modules(local=True) as (kind, _):
        kind(file, protocol=5).dump(value)


_registering = _thread.allocate_lock()


def _dumps_by_value(
    value: object,
    *,
    local: bool,
    also: tuple[ModuleType, ...] = (),
    tail: bytes = b"",
    limit: int = 0,
    by_source: bool = False,
) -> bytes:
    buffer = _buffer(limit)
    with (_with_source if by_source else _registered_modules)(local=local, also=also) as (kind, tag):
        kind(buffer, protocol=5).dump(value)
        _add(buffer, tail)
    name = tag.encode()
    return frame(CLOUDPICKLE, bytes([len(name)]) + name + buffer.getvalue())


def _dumps_both_ways(value: object, tail: bytes, limit: int) -> bytes:
    """Return a script's value by value, with the same by source text behind it for workers of another Python.

    A large one goes by source text alone, if that can be had.
    """
    data = _dumps_by_value(value, local=True, tail=tail, limit=limit)
    is_large = len(data) > MAX_FALLBACK_BYTES
    most, behind = (limit, tail) if is_large else (MAX_FALLBACK_BYTES, b"")
    way = functools.partial(_dumps_by_value, local=True, tail=behind, limit=most, by_source=True)
    try:
        by_source = _first_that_works(way, value=value)
    except (NotSerializable, OverLimit):
        return data  # workers of this Python still read it
    if is_large:
        return by_source
    body = memoryview(data)[_HEADER_BYTES : len(data) - len(tail)]
    return frame(CLOUDPICKLE, b"".join((body, by_source, len(by_source).to_bytes(_LENGTH_BYTES, "big"), _BOTH, tail)))


def _source_behind(body: memoryview) -> bytes:
    """Return the frame by source text that `_dumps_both_ways` put behind a value; empty where there is none."""
    end = bytes(body[-_BEHIND_BYTES:])
    for tail in (LIVE_OUTPUT_WANTED, OUTPUT_WANTED, b""):
        if end.endswith(_BOTH + tail):
            end_at = len(body) - len(_BOTH + tail) - _LENGTH_BYTES
            length = int.from_bytes(body[end_at : end_at + _LENGTH_BYTES], "big")
            return bytes(body[end_at - length : end_at]) if 0 <= length <= end_at else b""
    return b""


@contextlib.contextmanager
def _registered_modules(*, local: bool, also: tuple[ModuleType, ...] = ()) -> Iterator[tuple[Any, str]]:
    """Have modules travel by value meanwhile; yield the pickler's class, and which Python and cloudpickle it is."""
    import cloudpickle  # 5 ms that most workers never need

    from mep_sdk import by_value

    with _registering:  # cloudpickle's register is one for the whole process
        already = cloudpickle.list_registry_pickle_by_value()
        modules = {module.__name__: module for module in (*also, *(local_modules() if local else ()))}
        mine = [module for name, module in modules.items() if name not in already]
        for module in mine:
            cloudpickle.register_pickle_by_value(module)
        try:
            kind = by_value.LocalPickler if local else by_value.Pickler
            yield kind, f"{PYTHON} cloudpickle-{cloudpickle.__version__}"
        finally:
            for module in mine:
                cloudpickle.unregister_pickle_by_value(module)


@contextlib.contextmanager
def _with_source(*, local: bool, also: tuple[ModuleType, ...] = ()) -> Iterator[tuple[Any, str]]:
    """The same, for a pickler that has source text in place of code."""
    from mep_sdk import source_pickler

    with _registered_modules(local=local, also=also) as (_, tag):
        python, _, maker = tag.partition(" ")
        kind = source_pickler.LocalSourcePickler if local else source_pickler.SourcePickler
        yield kind, f"{python}{BY_SOURCE} {maker}"


def dumps_json(value: object, tail: bytes = b"") -> bytes:
    """Return the frame of `value` as JSON; `tail` follows it within. Raises NotSerializable."""
    import json

    text, failure = attempt(json.dumps, value)
    if text is None:
        raise NotSerializable(failure_text(failure) if failure is not None else "") from failure
    return frame(JSON, text.encode() + tail)


def with_output(payload: bytes, output: Sequence[bytes]) -> bytes:
    """Return a frame of a task's stdout and stderr, and of `payload`: its result, its exception or nothing."""
    lengths = (len(each).to_bytes(_LENGTH_BYTES, "big") for each in output)
    return frame(OUTPUT, b"".join((*lengths, *output, payload)))


def split_output(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Return stdout, stderr and the frame within that `with_output` was given; other payloads as they are. Raises
    DataCorrupt."""
    if payload[:4] != MAGIC + OUTPUT:
        return b"", b"", payload
    body = bytes(unframe(payload, "result")[1])
    begin = 2 * _LENGTH_BYTES
    middle = begin + int.from_bytes(body[:_LENGTH_BYTES], "big")
    end = middle + int.from_bytes(body[_LENGTH_BYTES:begin], "big")
    if len(body) < end or len(body) < begin:
        raise DataCorrupt(what="result", reason="the lengths of its parts do not fit")
    return body[begin:middle], body[middle:end], body[end:]


def with_inputs(arguments: bytes, results: Sequence[bytes]) -> bytes:
    """Return a frame of the results of other tasks, and of arguments that refer to them."""
    lengths = (len(each).to_bytes(_LENGTH_BYTES, "big") for each in results)
    return frame(INPUTS, b"".join((len(results).to_bytes(_LENGTH_BYTES, "big"), *lengths, *results, arguments)))


def split_inputs(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the results and the arguments that `with_inputs` was given; other data as it is. Raises DataCorrupt."""
    if data[:4] != MAGIC + INPUTS:
        return [], data
    body = bytes(unframe(data, "argument list")[1])
    at = _LENGTH_BYTES * (1 + int.from_bytes(body[:_LENGTH_BYTES], "big"))
    heads = range(_LENGTH_BYTES, min(at, len(body)), _LENGTH_BYTES)
    lengths = [int.from_bytes(body[head : head + _LENGTH_BYTES], "big") for head in heads]
    if len(body) < at + sum(lengths):
        raise DataCorrupt(what="argument list", reason="the lengths of its parts do not fit")
    results = []
    for length in lengths:
        results.append(body[at : at + length])
        at += length
    return results, body[at:]


def request(ways: list[str], arguments: bytes) -> bytes:
    """Return the frame `arguments` with the ways in which the result may be sent."""
    names = ",".join(ways).encode()
    return frame(REQUEST, bytes([len(names)]) + names + arguments)


def inner(data: bytes) -> bytes:
    """Return the arguments within a frame that `request` made."""
    return data[_HEADER_BYTES + 1 + data[_HEADER_BYTES] :] if len(data) > _HEADER_BYTES else b""


def ways_wanted(data: bytes) -> list[str]:
    """Return the ways in which the result may be sent; none where arguments do not say."""
    if data[3:4] != REQUEST or len(data) <= _HEADER_BYTES:
        return []
    names = data[_HEADER_BYTES + 1 : _HEADER_BYTES + 1 + data[_HEADER_BYTES]]
    return names.decode("ascii", "replace").split(",")


def _loads_json(body: memoryview, what: str) -> Any:
    import json

    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise DataCorrupt(what=what, reason=f"it is not JSON: {error}") from error


def loads(data: bytes, what: str, where: str = "on the endpoint") -> Any:
    """Return the value of a frame that `dumps` made. `what` and `where` this is read are named in errors.

    Raises DataCorrupt, and DataUnreadable where the frame is whole and its value cannot be made here.
    """
    kind, body = unframe(data, what)
    tag = ""
    if kind == CLOUDPICKLE:
        end = 1 + (body[0] if body else 0)
        tag, body = bytes(body[1:end]).decode("ascii", "replace"), body[end:]
        if tag.partition(" ")[0] != PYTHON and (by_source := _source_behind(body)):
            return loads(by_source, what, where)
    elif kind == JSON:
        return _loads_json(body, what)
    elif kind != PICKLE:
        raise DataCorrupt(what=what, reason=f"its kind is {kind!r}")
    return load_with(functools.partial(pickle.loads, body), tag, what, where)


def is_by_source(data: bytes) -> bool:
    """Return whether a frame is one of `dumps_by_source`."""
    head = data[_HEADER_BYTES + 1 : _HEADER_BYTES + 1 + data[_HEADER_BYTES]] if len(data) > _HEADER_BYTES else b""
    return data[3:4] == CLOUDPICKLE and head.partition(b" ")[0].endswith(BY_SOURCE.encode())


def load_with(load: Callable[[], _T], tag: str, what: str, where: str) -> _T:
    """Return what `load` unpickles. `tag` says which Python and cloudpickle made the code in it; empty: there is none.

    Raises DataUnreadable.
    """
    python, _, maker = tag.partition(" ")
    if tag and python != PYTHON and not python.endswith(BY_SOURCE):
        raise DataUnreadable(what=what, where=where, reason=f"it holds code made by {python} and this is {PYTHON}")
    if tag and python not in (PYTHON, PYTHON + BY_SOURCE):
        other_pythons.add(python.removesuffix(BY_SOURCE))
    value, failure = attempt(load)  # see the module's docstring
    if failure is None:
        return value  # type: ignore[return-value]  # what `load` returned, None included
    differing, _ = attempt(_differing, failure, maker, where)
    reason = f"{failure_text(failure)}{differing or ''}"
    raise DataUnreadable(what=what, where=where, reason=reason) from failure


def _differing(error: BaseException, maker: str, where: str) -> str:
    """Return which versions differ, where that may be why something cannot be loaded."""
    from mep_sdk import version_mismatch  # only a failure needs it

    try:
        import cloudpickle

        own = f"cloudpickle-{cloudpickle.__version__}"
    except ImportError:
        own = ""
    made = f"; it was made with {maker} and this is {own}" if maker and own and maker != own else ""
    return version_mismatch.explain(error, where) + made
