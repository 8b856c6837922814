"""What tests of root's code share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.accounts import LocalAccount, account
from tests.support.pam import Site


@pytest.fixture(scope="module")
def alice() -> Iterator[LocalAccount]:
    """An account that the tests of a module share."""
    with account() as made:
        yield made


@pytest.fixture
def site() -> Iterator[Site]:
    """A PAM service of the test's own, and scripts."""
    made = Site()
    try:
        yield made
    finally:
        made.close()
