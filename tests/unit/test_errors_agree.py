"""The codes of the two sides agree: each refusal code of the endpoint has a sentence for the person."""

from __future__ import annotations

import string

from mep.boundary.errors import Refusal, StartStage
from mep_wire import errors


def _declared() -> list[type[errors.MepError]]:
    return [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.MepError)]


def test_every_refusal_of_the_privileged_side_has_a_sentence() -> None:
    assert {refusal.value for refusal in Refusal} <= set(errors.by_code())


def test_a_refusal_is_named_as_it_is_spelled() -> None:
    assert all(refusal.name == refusal.value for refusal in Refusal)


def test_codes_belong_to_one_class_each_and_follow_its_name() -> None:
    codes = [cls.code for cls in _declared()]
    assert len(set(codes)) == len(codes)
    for cls in _declared():
        words = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in cls.__name__).lstrip("_")
        assert cls.code == words


def test_every_error_says_something_of_its_own_in_one_sentence_or_more() -> None:
    texts = [cls.__doc__ for cls in _declared()]
    assert len(set(texts)) == len(texts)
    for cls in _declared():
        assert (cls.__doc__ or "").rstrip().endswith((".", "}", ")")), cls.__name__
        assert all(field.isidentifier() for _, field, _, _ in string.Formatter().parse(cls.__doc__ or "") if field)


def test_statuses_are_http_errors() -> None:
    assert all(400 <= cls.http_status < 600 for cls in _declared())


def test_stages_are_numbered_in_the_order_in_which_they_happen() -> None:
    assert [stage.value for stage in StartStage] == list(range(1, len(StartStage) + 1))
