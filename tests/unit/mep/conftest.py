"""The relay's side of a start request, at a fixed time."""

from __future__ import annotations

import pytest

from tests.support.start_requests import RelaySide


@pytest.fixture
def relay() -> RelaySide:
    return RelaySide()
