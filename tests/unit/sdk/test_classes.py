"""Classes of a script there and back: a result leaves the script's own class as it is, and a copy is like it.

Each script runs as `__main__` in a process of its own; `there` calls a function in another one, as a worker does.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PRELUDE = '''
import abc, collections, dataclasses, enum, functools, subprocess, sys, typing
from mep_sdk.serialize import load_exception, load_result, serialize_arguments, serialize_function

WORKER = """
import sys
from mep_sdk.task_runner import run_task
for line in sys.stdin:
    function, payload = map(bytes.fromhex, line.split())
    outcome = run_task(function, payload, max_result_bytes=1 << 20)
    print(outcome.code or "OK", outcome.payload.hex() or "-", ascii(outcome.text), flush=True)
"""
worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

def there(function, *args):
    call = serialize_function(function).hex() + " " + serialize_arguments(args, {}).hex()
    worker.stdin.write(call + "\\n")
    worker.stdin.flush()
    code, payload, text = worker.stdout.readline().split(" ", 2)
    if code != "OK":
        raise load_exception(bytes.fromhex(payload)) if payload != "-" else RuntimeError(text)
    return load_result(bytes.fromhex(payload))

def same(value):
    return value
'''


def run(script: str) -> str:
    text = PRELUDE + textwrap.dedent(script) + "\nworker.stdin.close()\nworker.wait()\n"
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, cwd="/")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


GET = "\n  def get(self): return level"
KINDS = {
    "class": "class K:\n  count = 0" + GET,
    "enum": f"class K(enum.Enum):\n  A = 1{GET}\nK.count = 0",
    "data class": "@dataclasses.dataclass\nclass K:\n  x: int = 1\n  count: typing.ClassVar = 0" + GET,
    "abstract": f"class B(abc.ABC):\n  @abc.abstractmethod\n  def get(self): ...\nclass K(B):\n  count = 0{GET}",
    "generic": "T = typing.TypeVar('T')\nclass K(typing.Generic[T]):\n  count = 0" + GET,
    "exception": "class K(Exception):\n  count = 0" + GET,
    "named tuple": f"class K(typing.NamedTuple):\n  x: int = 1{GET}\nK.count = 0",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_leaves_the_scripts_class_as_it_is(kind: str) -> None:
    script = f"""
level = 1
{KINDS[kind]}
one = (lambda: list(K)[0]) if issubclass(K, enum.Enum) else K
def work():
    K.count = 99
    return one()
get = K.get
made = there(work)
level = 2
assert type(made) is K
print(K.count, K.get is get, made.get(), there(lambda: one().get()))
level = 3
K.count = 5
print(there(lambda: K.count))
"""
    assert run(script) == "0 True 2 2\n5"


def test_what_a_class_registers_is_registered_once() -> None:
    script = """
    class Plugin:
        names = []
        def __init_subclass__(cls): Plugin.names.append(cls.__name__)
    class One(Plugin): pass
    class Keyed:
        keys = {}
        def __init_subclass__(cls, *, key): cls.key = key; Keyed.keys[key] = cls.__name__
    class Two(Keyed, key="two"): pass
    class Three(dict, Keyed, key="three"): pass
    print(there(lambda: (One(), Plugin.names))[1], Plugin.names)
    print(there(lambda: (Two(), Two.key, Keyed.keys))[1:], Two.__mro__ == (Two, Keyed, object))
    print(there(lambda: ([k.__name__ for k in Three.__mro__], Three(a=1))))
    """
    assert run(script).splitlines() == [
        "['One'] ['One']",
        "('two', {'two': 'Two', 'three': 'Three'}) True",
        "(['Three', 'dict', 'Keyed', 'object'], {'a': 1})",
    ]


SLOTS = {
    "plain": ("class K:\n  __slots__ = ('a', 'b')\n  def __init__(self): self.a = 1", "made.a"),
    "one": ("class K:\n  __slots__ = 'a'\n  def __init__(self): self.a = 1", "made.a"),
    "private": ("class K:\n  __slots__ = ('__a',)\n  def __init__(self): self.__a = 1", "made._K__a"),
    "weak": ("class K:\n  __slots__ = ('a', '__weakref__')\n  def __init__(self): self.a = 1", "made.a"),
    "described": ("class K:\n  __slots__ = {'a': 'its text'}\n  def __init__(self): self.a = 1", "made.a"),
    "inherited": (
        "class B:\n  __slots__ = ('a',)\nclass K(B):\n  __slots__ = ('b',)\n  def __init__(self): self.a = 1",
        "made.a",
    ),
    "data class": ("@dataclasses.dataclass(slots=True)\nclass K:\n  a: int = 1", "made.a"),
    "frozen": ("@dataclasses.dataclass(slots=True, frozen=True)\nclass K:\n  a: int = 1", "made.a"),
}


@pytest.mark.parametrize("kind", SLOTS)
def test_classes_with_slots_have_them_there_too(kind: str) -> None:
    definition, read = SLOTS[kind]
    script = f"""
{definition}
made = there(same, K())
print(type(made) is K, {read})
made = there(lambda: K())
print(type(made) is K, {read}, there(lambda: hasattr(K(), "__dict__")))
"""
    assert run(script).splitlines() == ["True 1", "True 1 False"]


def test_objects_that_are_compared_by_identity_stay_one() -> None:
    script = """
    MISSING = object()
    STORE = {}
    def default(value=MISSING): return value is MISSING
    def stored(key, store=STORE):
        store[key] = 1
        return key in STORE
    def first(store=STORE): return store
    def both(): return first() is STORE
    print(there(default), there(default, MISSING), there(default, object()), there(lambda: MISSING) is MISSING)
    print(there(stored, "a"), there(both), there(lambda x: [x is MISSING, x], MISSING)[0])
    """
    assert run(script).splitlines() == ["True True False True", "True True True"]
