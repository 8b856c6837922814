"""Decoders are made while a module is imported, never by the thread that first needs one.

msgspec builds its data about a type on first use, without a lock. mep_wire.struct_info describes the consequence, and
tests/unit/wire/test_decoder_races.py shows it.
"""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("identity", "mep", "mep_link", "mep_sdk", "mep_wire", "relay", "user_endpoint")
FILES = sorted(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))
MAKERS = {"Decoder", "Encoder"}
READERS = {"decode", "convert"}
IN_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _type_given(call: ast.Call) -> ast.expr | None:
    """Return the type that a call of msgspec's decode or convert names."""
    second = call.args[1] if len(call.args) > 1 and _name(call.func) == "convert" else None
    return next((keyword.value for keyword in call.keywords if keyword.arg == "type"), second)


def _built_at_import(tree: ast.Module) -> set[str]:
    """Return the names of types for which the module makes a decoder outside its functions."""
    inside = {id(node) for each in ast.walk(tree) if isinstance(each, IN_FUNCTIONS) for node in ast.walk(each)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in inside]
    return {_name(call.args[0]) for call in calls if _name(call.func) == "Decoder" and call.args}


def first_uses_in_functions(text: str) -> Iterator[str]:
    """Yield each line in a function where msgspec may have to build its data about a type."""
    tree = ast.parse(text)
    built = _built_at_import(tree)
    for function in ast.walk(tree):
        if not isinstance(function, IN_FUNCTIONS):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            kind = _type_given(node) if _name(node.func) in READERS else None
            late = kind is not None and not (_name(node.func) == "convert" and _name(kind) in built)
            if late or _name(node.func) in MAKERS:
                yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_function_makes_a_decoder(file: Path) -> None:
    text = file.read_text()
    if "msgspec" in text and file.name != "struct_info.py":
        assert not set(first_uses_in_functions(text))


def test_the_rule_notices_a_breach() -> None:
    wrong = (
        "msgspec.json.decode(data, type=A)",
        "msgspec.msgpack.Decoder(A)",
        "Decoder(A)",
        "decode(data, type=A)",
        "msgspec.convert(data, A)",
        "msgspec.convert(data, type=A)",
        "[msgspec.msgpack.Encoder() for _ in data]",
    )
    for each in wrong:
        assert list(first_uses_in_functions(f"def f(data):\n    return {each}\n")), each
        assert not list(first_uses_in_functions(f"data = b''\nmade = {each}\n")), each
    right = "made = msgspec.msgpack.Decoder(A)\ndef f(data):\n    return msgspec.convert(data, A)\n"
    assert not list(first_uses_in_functions(right))


SHARED = sorted(file.stem for file in (ROOT / "mep_wire").glob("*.py") if "msgspec.Struct" in file.read_text())
LOOK = """
import gc, importlib, msgspec
module = importlib.import_module("mep_wire.{}")
structs = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)]
print(len(structs), [each.__name__ for each in structs
    if not any(type(found).__name__ == "StructInfo" for found in gc.get_referents(each))])
"""


@pytest.mark.parametrize("module", [name for name in SHARED if name != "struct_info"])
def test_structs_that_several_modules_decode_are_whole_once_their_own_is_imported(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOOK.format(module)], capture_output=True, text=True, check=True)
    count, _, missing = done.stdout.strip().partition(" ")
    assert int(count)
    assert missing == "[]"


def test_the_relay_has_a_decoder_for_each_body_of_its_routes() -> None:
    from relay.api import http, routes

    bodies = {route.body for route in routes.ROUTES if route.body is not None}
    assert bodies == set(http._json_decoders) == set(http._msgpack_decoders)


def test_msgspec_still_shows_what_it_has_built() -> None:
    """The test's own test: before a first use there is nothing to see."""
    import msgspec

    class Late(msgspec.Struct):
        value: int

    def seen() -> bool:
        return any(type(found).__name__ == "StructInfo" for found in gc.get_referents(Late))

    assert not seen()
    msgspec.msgpack.Decoder(Late)
    assert seen()
