"""recheck_interval_s and recheck_max_age_s as `mep check` sees them."""

from __future__ import annotations

import pytest

from tests.support.cli import Cli
from tests.support.registrar import Registrar, configure


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("recheck_max_age_s: 1200", ""),
        ("recheck_max_age_s: 0", ""),
        ("recheck_max_age_s: 86400\nrecheck_interval_s: 0", ""),
        ("recheck_max_age_s: 1199", "recheck_max_age_s: must be 0, or at least 4 times recheck_interval_s: 1200"),
        ("recheck_max_age_s: 3600\nrecheck_interval_s: 3600", "at least 4 times recheck_interval_s: 14400"),
        ("recheck_max_age_s: -1", "recheck_max_age_s: must be between 0 and"),
        ("recheck_max_age_s: two weeks", "recheck_max_age_s"),
    ],
)
def test_a_greatest_age_leaves_time_to_ask(
    mep: Cli,  # the fixture
    registrar: Registrar,  # the fixture
    lines: str,
    said: str,
) -> None:
    configure(mep, registrar)
    config = mep.directory / "etc" / "site" / "config.yaml"
    config.write_text(f"{config.read_text()}\n{lines}\n")
    done = mep("check", "site", expect=4 if said else 0)
    assert said in done.stderr
