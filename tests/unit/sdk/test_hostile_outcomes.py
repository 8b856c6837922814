"""Whatever the person's code does while an outcome is written or read ends that one task, readably, and no more."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import sys
import threading
import traceback
from typing import Any, ClassVar

import msgspec
import pytest

from mep_sdk import encoding
from mep_sdk.errors import DataUnreadable, RemoteError, RemoteTraceback
from mep_sdk.function_serializer import LoadedFunction
from mep_sdk.futures import TaskFuture
from mep_sdk.result_decoding import settle
from mep_sdk.serialize import (
    load_arguments,
    load_exception,
    load_result,
    serialize_arguments,
    serialize_exception,
    serialize_function,
    serialize_result,
)
from mep_sdk.submitter import Submitter
from mep_sdk.task_runner import TaskOutcome, run_task
from mep_wire import api
from mep_wire.data_frames import DataFrame, Part, encode_data
from mep_wire.errors import DeserializationError, MepError, by_code
from mep_wire.states import TaskState

LIMIT = 1 << 20


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    what: str = "ice"


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenInSlots(Exception):
    code: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenByKeyword(Exception):
    code: int


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code, *, unit):
        super().__init__(f"{code} {unit}")
        self.code = code


class SetattrRaises(Exception):
    def __setattr__(self, name, value):
        raise RuntimeError("no attributes")


class AddNoteRaises(Exception):
    def add_note(self, note):
        raise SystemExit(3)


class NotesAreNoList(Exception):
    def __init__(self, *args):
        super().__init__(*args)
        self.__dict__["__notes__"] = "text"


class TextTwice(Exception):
    def __init__(self, name):
        super().__init__(f"no molecule {name}")


class GetattrRaises(Exception):
    def __getattribute__(self, name):
        raise SystemExit(f"asked for {name}")


class GetattrExits(Exception):
    def __getattr__(self, name):
        sys.exit(name)


class StrExits(Exception):
    def __str__(self):
        sys.exit("text")


class StrRaisesBase(Exception):
    def __str__(self):
        raise KeyboardInterrupt


class StrIsNoStr(Exception):
    def __str__(self):
        return 3


class ReprRaises(Exception):
    def __repr__(self):
        raise GeneratorExit

    def __str__(self):
        return repr(self)


class OddStr(str):
    def __len__(self):
        raise RuntimeError("no length")

    def encode(self, *_):
        raise RuntimeError("no bytes")

    def __format__(self, _):
        raise RuntimeError("no format")


class StrIsOdd(Exception):
    def __str__(self):
        return OddStr("odd")


class ReduceExits(Exception):
    def __reduce__(self):
        sys.exit("reduced")


class ReduceRaisesBase(Exception):
    def __reduce_ex__(self, _):
        raise KeyboardInterrupt


class ReduceIsNonsense(Exception):
    def __reduce__(self):
        return 5


class RebuiltAsOther(Exception):
    def __reduce__(self):
        return dict, ()


class RebuildExits(Exception):
    def __reduce__(self):
        return sys.exit, ("rebuilt",)


class RebuildInterrupts(Exception):
    def __reduce__(self):
        return interrupt, ()


class RebuildRecurses(Exception):
    def __reduce__(self):
        return recurse, ()


class ClassProperty(Exception):
    __class__ = property(lambda self: sys.exit("class"))


class CauseProperty(Exception):
    __cause__ = property(lambda self: sys.exit("cause"))


class NotesProperty(Exception):
    __notes__ = property(lambda self: sys.exit("notes"))


class ArgsProperty(Exception):
    args = property(lambda self: sys.exit("args"))


class DictProperty(Exception):
    __dict__ = property(lambda self: sys.exit("dict"))


class NoModule(Exception):
    __module__ = None


class OddMeta(type):
    def __getattribute__(cls, name):
        if name == "__qualname__":
            raise SystemExit("name")
        return super().__getattribute__(name)


class OddName(Exception, metaclass=OddMeta):
    pass


class CodeIsNumber(MepError):
    """Odd."""

    code = 5


class TextExits(MepError):
    """Odd."""

    text = property(lambda self: sys.exit("text"), lambda self, value: None)


class Base(BaseException):
    pass


class NoNote(Exception):
    """Its members have odd slots."""

    __slots__ = ("code",)


NoNote.__slots__ = 7  # type: ignore[assignment]


class OfOs(FileNotFoundError):
    def __init__(self, path, *, code):
        super().__init__(2, "gone", path)
        self.code = code


class OfImport(ImportError):
    def __init__(self, what, *, code):
        super().__init__(f"no {what}", name=what, path="/there")
        self.code = code


class OfUnicode(UnicodeDecodeError):
    def __init__(self, *, code):
        super().__init__("utf-8", b"abc", 0, 1, "odd")
        self.code = code


class OfSyntax(SyntaxError):
    def __init__(self, what, *, code):
        super().__init__(what, ("file", 3, 4, "text"))
        self.code = code


class OfKey(KeyError):
    def __new__(cls, *, code):
        return super().__new__(cls)

    def __init__(self, *, code):
        super().__init__("a key")
        self.code = code


class IsFalse(Exception):
    def __len__(self):
        return 0


class BoolRaises(Exception):
    def __bool__(self):
        raise RuntimeError("no truth")


def interrupt():
    raise KeyboardInterrupt


def recurse():
    return recurse()


def in_a_circle():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    one.__context__, other.__context__ = other, one
    return one


def in_a_long_chain():
    error = ValueError("0")
    for number in range(1, 3000):
        after = ValueError(str(number))
        after.__cause__, error = error, after
    return error


def unpicklable_class():
    lock = threading.Lock()

    class Local(Exception):
        def locked(self):
            return lock

    return Local("held")


def with_a_bad_attribute():
    error = ValueError("odd attribute")
    error.bad = RebuildExits()
    return error


def mute_member():
    return ExceptionGroup("several", [StrExits("x"), ReduceExits("y"), ValueError("z")])


READ_BACK = [
    pytest.param(lambda: Frozen(3), id="frozen dataclass"),
    pytest.param(lambda: FrozenInSlots(4), id="frozen dataclass with slots"),
    pytest.param(lambda: FrozenByKeyword(code=5), id="frozen dataclass by keyword"),
    pytest.param(lambda: Slotted(6, unit="m"), id="slots"),
    pytest.param(lambda: SetattrRaises("a"), id="__setattr__ raises"),
    pytest.param(lambda: AddNoteRaises("b"), id="add_note raises"),
    pytest.param(lambda: NotesAreNoList("c"), id="notes that are no list"),
    pytest.param(lambda: TextTwice("H2O"), id="text made by __init__"),
    pytest.param(lambda: ValueError("lone \udc80 surrogate"), id="surrogate"),
    pytest.param(lambda: NoNote("d"), id="slots that are no names"),
    pytest.param(lambda: OfOs("/x", code=1), id="of OSError"),
    pytest.param(lambda: OfImport("x", code=1), id="of ImportError"),
    pytest.param(lambda: OfUnicode(code=1), id="of UnicodeDecodeError"),
    pytest.param(lambda: OfSyntax("x", code=1), id="of SyntaxError"),
    pytest.param(lambda: OfKey(code=1), id="of KeyError"),
    pytest.param(in_a_circle, id="circle of causes"),
    pytest.param(in_a_long_chain, id="long chain of causes"),
]
TOLD = [
    pytest.param(kind, id=kind.__name__)
    for kind in (
        *(GetattrExits, GetattrRaises, StrExits, StrRaisesBase, StrIsNoStr, StrIsOdd, ReprRaises, ReduceExits),
        *(ReduceRaisesBase, ReduceIsNonsense, RebuiltAsOther, RebuildExits, RebuildInterrupts, RebuildRecurses),
        *(CauseProperty, NotesProperty, ArgsProperty, DictProperty, ClassProperty, NoModule, Base),
        *(CodeIsNumber, TextExits, unpicklable_class, with_a_bad_attribute, mute_member),
    )
]


def contained(call: Any) -> Any:
    """Return what a call of ours returns. An exception that it lets pass could end the test run as well."""
    escaped = ""
    try:
        return call()
    except BaseException as error:
        escaped = type(error).__name__
    pytest.fail(f"{escaped} got through")


def run_here(function: Any) -> TaskOutcome:
    """Run a function with classes known on both sides, as those of an installed package are."""
    code = serialize_function(recurse)
    cache = {code: LoadedFunction(function, "function")}
    outcome = contained(lambda: run_task(code, serialize_arguments((), {}), max_result_bytes=LIMIT, cache=cache))
    return msgspec.convert(
        msgspec.msgpack.decode(msgspec.msgpack.encode(outcome)), TaskOutcome
    )  # as it crosses the relay


def raised_by(make: Any) -> TaskOutcome:
    def fail():
        raise make()

    return run_here(fail)


def raise_made(make):
    raise make()


@pytest.fixture
def session() -> Submitter:
    return Submitter(None, lost_relay_timeout_s=10.0)  # type: ignore[arg-type]  # nothing is asked of the relay


def delivered(session: Submitter, *results: api.StreamedResult) -> list[TaskFuture]:
    futures = [TaskFuture(result.task_id, "group", session) for result in results]
    session._pending |= {future.task_id: future for future in futures}
    contained(lambda: session._deliver(list(results)))
    session._loaders.wait()
    return futures


def failure(task_id: str, outcome: TaskOutcome) -> api.StreamedResult:
    return api.StreamedResult(task_id, TaskState.FAILED, outcome.code, outcome.text, outcome.payload)


def success(task_id: str, payload: bytes) -> api.StreamedResult:
    return api.StreamedResult(task_id, TaskState.SUCCESS, "", "", payload)


@pytest.mark.parametrize("make", READ_BACK)
def test_an_exception_arrives_with_its_type_and_text(make: Any, session: Submitter) -> None:
    outcome = raised_by(make)
    assert outcome.code == "TASK_FAILED"
    error, after = delivered(session, failure("odd", outcome), success("next", serialize_result(1)))
    original, arrived = make(), error.exception(0)
    assert type(arrived) is type(original)
    assert str(arrived) == str(original)
    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert "remote traceback" in arrived.__dict__["__notes__"][-1]
    assert "fail" in "".join(traceback.format_exception(arrived))
    assert after.result(0) == 1


@pytest.mark.parametrize("field", ["code", "what"])
def test_fields_of_frozen_exceptions_arrive(field: str) -> None:
    assert getattr(load_exception(raised_by(lambda: Frozen(3)).payload), field) == getattr(Frozen(3), field)
    assert load_exception(raised_by(lambda: Slotted(6, unit="m")).payload).code == 6
    assert load_exception(raised_by(lambda: FrozenByKeyword(code=5)).payload).code == 5


def with_a_lock():
    error = KeyError("k")
    error.lock, error.code = threading.Lock(), 3
    return error


def with_much():
    error = ValueError("much")
    error.much, error.code = bytes(2 * LIMIT), 3
    return error


@pytest.mark.parametrize(
    "make",
    [
        with_a_lock,
        with_much,
        lambda: TakesTwo(threading.Lock(), "node"),
        lambda: OSError(2, "x" * 2 * LIMIT),
        lambda: TypeError("lock", threading.Lock()),
    ],
)
def test_what_does_not_travel_of_an_exception_leaves_type_and_text(make: Any) -> None:
    original = make()
    arrived = load_exception(raised_by(lambda: original).payload)
    assert type(arrived) is type(original)
    assert str(original.args[-1])[:2000] in str(arrived)
    assert getattr(arrived, "code", 3) == 3


@pytest.mark.parametrize("kind", [IsFalse, BoolRaises])
def test_an_exception_that_is_false_is_raised(kind: type[Exception], session: Submitter) -> None:
    future, later = (TaskFuture(name, "group", session) for name in ("a", "b"))
    session._pending |= {each.task_id: each for each in (future, later)}
    waiting = threading.Thread(target=lambda: got.append(later.exception(60)))
    got: list[BaseException | None] = []
    waiting.start()
    for each in (future, later):
        each.resolve(None, kind("false"))
    waiting.join(60)
    for each in (future, later):
        with pytest.raises(kind, match="false"):
            each.result(0)
    assert len(got) == 1


VALUES = [
    lambda: TakesTwo("a", "node 3"),
    lambda: Slotted(6, unit="m"),
    lambda: Frozen(3),
    lambda: OfOs("/x", code=1),
    lambda: OfKey(code=1),
    lambda: OwnGroup("own", [TakesTwo("a", "b")], run=7),
]


@pytest.mark.parametrize("make", VALUES)
def test_exceptions_are_values_too(make: Any) -> None:
    arrived = load_result(serialize_result([make()]))[0]
    assert type(arrived) is type(make())
    assert str(arrived) == str(make())
    assert vars(arrived) == vars(make())
    assert getattr(arrived, "code", 0) == getattr(make(), "code", 0)
    (argument,), _ = load_arguments(serialize_arguments((make(),), {}))
    assert (type(argument), str(argument)) == (type(make()), str(make()))


@pytest.mark.parametrize("make", TOLD)
def test_an_exception_that_does_anything_else_is_told_of(make: Any, session: Submitter) -> None:
    outcome = raised_by(lambda: made(make))
    assert outcome.code == "TASK_FAILED"
    assert outcome.text
    error, after = delivered(session, failure("odd", outcome), success("next", serialize_result(1)))
    assert issubclass(type(error.exception(0)), Exception)
    assert after.result(0) == 1


def made(make: Any) -> BaseException:
    if not isinstance(make, type):
        return make()
    return make(text="odd") if issubclass(make, MepError) else make("odd")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, Base])
def test_an_exception_that_would_end_the_script_is_named(kind: type[BaseException]) -> None:
    error = load_exception(raised_by(lambda: kind("now")).payload)
    assert type(error) is RemoteError
    assert error.type_name.endswith(kind.__name__)
    assert "now" in str(error)


class ResultExits:
    def __reduce__(self):
        return sys.exit, ("loaded",)


class ResultInterrupts:
    def __reduce__(self):
        return interrupt, ()


class ResultRecurses:
    def __reduce__(self):
        return recurse, ()


class ResultRaisesMute:
    def __reduce__(self):
        return raise_made, (StrExits,)


class ResultRaisesSurrogate:
    def __reduce__(self):
        return raise_made, (surrogate,)


def surrogate():
    return ValueError("\udc80")


@pytest.mark.parametrize(
    "kind", [ResultExits, ResultInterrupts, ResultRecurses, ResultRaisesMute, ResultRaisesSurrogate]
)
def test_a_result_that_cannot_be_loaded_is_that_futures_failure(kind: type, session: Submitter) -> None:
    frame = encoding.frame(encoding.PICKLE, pickle.dumps(kind()))
    listener = threading.Thread(target=lambda: got.extend(delivered(session, success("a", frame), success("b", ONE))))
    got: list[TaskFuture] = []
    listener.start()
    listener.join(60)
    with pytest.raises(DataUnreadable) as caught:
        got[0].result(0)
    assert caught.value.text.encode()
    assert got[1].result(0) == 1


class Waits:
    """Loaded, it waits for another result."""

    other: Any

    def __reduce__(self):
        return wait_for_other, ()


def wait_for_other():
    return Waits.other.result(60)


def test_results_that_wait_when_they_are_loaded_hold_up_no_other(session: Submitter) -> None:
    futures = [TaskFuture(name, "group", session) for name in ("a", "b", "c", "d")]
    session._pending |= {each.task_id: each for each in futures}
    Waits.other = futures[3]
    waits = encoding.frame(encoding.PICKLE, pickle.dumps(Waits()))
    session.stop(cancel_futures=False)
    session._deliver([success("a", waits), success("b", waits), success("c", waits), success("d", ONE)])
    session.wait()
    assert [each.result(0) for each in futures] == [1, 1, 1, 1]
    assert session.unfinished() == 0


ONE = serialize_result(1)


def test_ctrl_c_while_a_result_is_read_by_hand_is_the_persons() -> None:
    frame = encoding.frame(encoding.PICKLE, pickle.dumps(ResultInterrupts()))
    with pytest.raises(KeyboardInterrupt):
        settle(success("a", frame))


class Runs:
    """Unpickled, it runs code here."""

    ran: ClassVar[list[str]] = []

    def __reduce__(self):
        return Runs.ran.append, ("code of the endpoint's",)


class RunsAsError(Exception):
    __reduce__ = Runs.__reduce__


def hostile_payloads() -> list[bytes]:
    pickled = encoding.frame(encoding.PICKLE, pickle.dumps(Runs()))
    clouds = encoding.frame(encoding.CLOUDPICKLE, b"\0" + pickle.dumps(Runs()))
    return [
        *(pickled, clouds, encoding.with_output(pickled, [b"", b""]), encoding.request(["json"], pickled)),
        *(encoding.with_output(encoding.with_output(pickled, [b"", b""]), [b"", b""]), b"", b"MEPo", b"MEPr"),
        encode_data(DataFrame(encoding.PICKLE, "", 1, [Part(len(pickled), inline=pickled)])),
    ]


@pytest.mark.parametrize("number", range(len(hostile_payloads())))
def test_where_json_alone_was_asked_for_no_result_is_unpickled(session: Submitter, number: int) -> None:
    """An endpoint can send anything, whatever it was asked for."""
    future = TaskFuture("a", "group", session)
    future.only_json = True
    session._pending["a"] = future
    session._deliver([success("a", hostile_payloads()[number])])
    session.wait()
    assert isinstance(future.exception(10), DeserializationError)
    assert not Runs.ran


def test_where_json_alone_was_asked_for_no_exception_is_unpickled(session: Submitter) -> None:
    payload = serialize_exception(RunsAsError("its text\x1b[2J"))
    future = TaskFuture("a", "group", session)
    future.only_json = True
    session._pending["a"] = future
    session._deliver([failure("a", TaskOutcome("TASK_FAILED", "it failed", payload))])
    error = future.exception(10)
    assert isinstance(error, RemoteError)
    assert error.type_name.endswith("RunsAsError")
    assert "its text" in str(error)
    assert "\x1b" not in str(error)
    assert not Runs.ran


@pytest.mark.parametrize("error", [ValueError("no"), ZeroDivisionError("by zero"), TimeoutError("late"), KeyError("a")])
def test_built_in_exceptions_keep_their_types_without_a_pickle(error: Exception) -> None:
    loaded = load_exception(serialize_exception(error), unpickle=False)
    assert type(loaded) in (type(error), RemoteError)
    assert str(error) in str(loaded)
    assert isinstance(loaded, RemoteError) == isinstance(error, KeyError)  # its text is not its argument
    assert isinstance(loaded.__cause__, RemoteTraceback)


class PickleExits:
    def __reduce__(self):
        sys.exit("written")


class PickleInterrupts:
    def __reduce__(self):
        raise KeyboardInterrupt


class PickleRaisesMute:
    def __reduce__(self):
        raise StrExits


class PickleRaisesSurrogate:
    def __reduce__(self):
        raise ValueError("\udc80" * 100_000)


@pytest.mark.parametrize("kind", [PickleExits, PickleInterrupts, PickleRaisesMute, PickleRaisesSurrogate])
def test_a_result_that_cannot_be_written_is_that_tasks_failure(kind: type) -> None:
    outcome = run_here(kind)
    assert outcome.code == "RESULT_UNSERIALIZABLE"
    assert len(outcome.text) < 20_000


@pytest.mark.parametrize("kind", [ResultExits, ResultInterrupts, ResultRecurses, ResultRaisesMute])
def test_arguments_that_cannot_be_loaded_are_that_tasks_failure(kind: type) -> None:
    payload = encoding.frame(encoding.PICKLE, pickle.dumps(((kind(),), {})))
    outcome = run_task(serialize_function(raise_made), payload, max_result_bytes=LIMIT)
    assert outcome.code == "DATA_UNREADABLE"
    assert outcome.text


def test_a_future_that_the_script_has_ended_itself_holds_up_no_other(session: Submitter, caplog: Any) -> None:
    futures = [TaskFuture(name, "group", session) for name in ("a", "b")]
    session._pending |= {future.task_id: future for future in futures}
    futures[0].set_result("mine")
    with caplog.at_level(logging.WARNING, "mep_sdk"):
        session._deliver([success("a", ONE), success("b", ONE)])
    assert (futures[0].result(0), futures[1].result(0)) == ("mine", 1)
    assert "task a" in caplog.text


# --- groups ---------------------------------------------------------------------------------------------


class TakesTwo(Exception):
    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")
        self.where = where


class OwnGroup(ExceptionGroup):
    def __new__(cls, message, members, *, run):
        made = super().__new__(cls, message, members)
        made.run = run
        return made

    def __init__(self, message, members, *, run):
        super().__init__(message, members)


def told(error: BaseException) -> Any:
    if isinstance(error, BaseExceptionGroup):
        return error.message, [told(each) for each in error.exceptions]
    return type(error).__name__, str(error)


GROUPS = [
    pytest.param(lambda: ExceptionGroup("g", [TakesTwo("a", "b"), ValueError(1)]), id="other arguments"),
    pytest.param(lambda: ExceptionGroup("g", [Frozen(3), TextTwice("x")]), id="frozen"),
    pytest.param(
        lambda: ExceptionGroup("g", [ExceptionGroup("inner", [TakesTwo("a", "b")]), Slotted(1, unit="m")]), id="nested"
    ),
    pytest.param(lambda: OwnGroup("own", [TakesTwo("a", "b")], run=7), id="own class of group"),
    pytest.param(lambda: BaseExceptionGroup("base", [TakesTwo("a", "b"), KeyError("k")]), id="base group"),
]


@pytest.mark.parametrize("make", GROUPS)
def test_groups_keep_type_and_text_of_every_member(make: Any) -> None:
    arrived = load_exception(raised_by(make).payload)
    assert type(arrived) is type(make())
    assert told(arrived) == told(make())


def test_a_groups_own_fields_arrive() -> None:
    arrived = load_exception(raised_by(lambda: OwnGroup("own", [TakesTwo("a", "node 3")], run=7)).payload)
    assert (arrived.run, arrived.exceptions[0].where) == (7, "node 3")


def test_members_that_cannot_be_rebuilt_are_named_in_the_group() -> None:
    group = load_exception(
        raised_by(
            lambda: BaseExceptionGroup("g", [KeyboardInterrupt("now"), ReduceExits("x"), ValueError("y")])
        ).payload
    )
    assert type(group) is ExceptionGroup
    ended, unpickled, plain = group.exceptions
    assert type(ended) is RemoteError and ended.type_name == "KeyboardInterrupt" and "now" in str(ended)
    assert str(unpickled).find("x") >= 0
    assert type(plain) is ValueError and plain.args == ("y",)


def test_a_large_group_arrives_whole() -> None:
    group = load_exception(raised_by(lambda: ExceptionGroup("g", [ValueError(n) for n in range(1000)])).payload)
    assert len(group.exceptions) == 1000
    assert type(group.exceptions[0]) is ValueError
    assert "999" in str(group.exceptions[-1])


@pytest.mark.parametrize("code", ["MEP_ERROR", "TASK_FAILED", 5])
def test_a_scripts_own_error_class_is_not_made_from_a_code(code: Any) -> None:
    class Own(MepError):
        """A script's own."""

    Own.code = code
    assert Own not in by_code().values()
    assert all(isinstance(each, str) for each in by_code())
