"""What a relay tells an endpoint's administrator: about their own endpoint alone, in bounds."""

from __future__ import annotations

from mep_wire.errors import BodyInvalid
from relay.dispatch.stories import MAX_ENDPOINTS, MAX_EVENTS, MAX_LINES, Stories


def test_events_are_those_of_one_start_and_of_its_own_endpoint() -> None:
    now = [100.0]
    stories = Stories(lambda: now[0])
    stories.note("e", "INFO", "here")
    stories.note("e", "INFO", "asked", uep_id="u", correlation_id="c-1")
    stories.note("f", "INFO", "asked", uep_id="u", correlation_id="c-1")
    stories.note("e", "INFO", "other", uep_id="v", correlation_id="c-2")
    now[0] += 1
    stories.note("e", "WARNING", "no\nforged line", uep_id="u", correlation_id="c-1")
    assert [one.text for one in stories.about("e", {"c-1"})] == ["here", "asked", "no\\nforged line"]
    assert stories.about("e", {"c-9"}) == []
    assert [one.text for one in stories.about("f", {"u"})] == ["asked"]


def test_a_flood_pushes_out_its_own_endpoints_events_alone() -> None:
    stories = Stories()
    stories.note("e", "INFO", "kept", uep_id="u")
    for number in range(MAX_EVENTS + 10):
        stories.note("f", "INFO", str(number), uep_id="u")
    assert [one.text for one in stories.about("e", {"u"})] == ["kept"]
    found = stories.about("f", {"u"})
    assert len(found) == MAX_LINES
    assert found[-1].text == str(MAX_EVENTS + 9)
    for number in range(MAX_ENDPOINTS):
        stories.note(f"e{number}", "INFO", "x", uep_id="u")
    assert stories.about("e", {"u"}) == []


def test_refused_submissions_are_found_and_push_nothing_out() -> None:
    stories = Stories()
    stories.note("e", "INFO", "asked", uep_id="u", correlation_id="c-1")
    errors = [BodyInvalid(reason=str(number)) for number in range(MAX_EVENTS + 1)]
    for error in errors:
        stories.refused("e", error)
    (last,) = [one for one in stories.about("e", {errors[-1].correlation_id}) if one.level == "WARNING"]
    assert last.text == f"submission refused: code=BODY_INVALID {errors[-1].text}"
    assert [one.text for one in stories.about("e", {"c-1"})] == ["asked"]
