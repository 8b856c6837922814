"""Errors: unique codes, sentences that can be filled in, and the fields that survive the network."""

from __future__ import annotations

import pickle
import string

import pytest

from mep_wire.errors import EndpointNotFound, MepError, by_code, rebuild


def _fields(cls: type[MepError]) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(cls.__doc__ or "") if name]


@pytest.mark.parametrize("cls", by_code().values(), ids=lambda cls: cls.code)
def test_the_docstring_is_the_sentence(cls: type[MepError]) -> None:
    error = cls(**dict.fromkeys(_fields(cls), "VALUE"))
    assert "{" not in error.text
    assert error.code in str(error)
    assert error.correlation_id in str(error)


def test_codes_are_unique_and_stable_in_form() -> None:
    found: list[type[MepError]] = []
    queue: list[type[MepError]] = [MepError]
    while queue:
        cls = queue.pop()
        found.append(cls)
        queue += cls.__subclasses__()
    ours = [cls for cls in found if cls.__module__ == "mep_wire.errors"]
    assert len({cls.code for cls in ours}) == len(ours)
    assert all(set(cls.code) <= set(string.ascii_uppercase + "_") for cls in ours)


def test_what_the_administrator_reads_does_not_travel() -> None:
    error = EndpointNotFound(endpoint_id="e", detail="only for the log")
    travelled = pickle.loads(pickle.dumps(error))
    assert isinstance(travelled, EndpointNotFound)
    assert (travelled.text, travelled.correlation_id) == (error.text, error.correlation_id)
    assert travelled.detail == ""
    assert "only for the log" not in str(error)


def test_an_unknown_code_is_still_an_error_with_its_text() -> None:
    error = rebuild("FROM_THE_FUTURE", "Something new.", "c-1")
    assert type(error) is MepError
    assert "Something new." in str(error)


def test_a_persons_own_subclass_is_not_in_the_catalogue() -> None:
    made = type("EndpointNotFound", (MepError,), {"code": EndpointNotFound.code, "__module__": "__main__"})
    assert by_code()[EndpointNotFound.code] is EndpointNotFound is not made
    assert type(rebuild(EndpointNotFound.code, "text")) is EndpointNotFound
