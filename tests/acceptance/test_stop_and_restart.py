"""`mep restart` and `mep stop --keep-user-endpoints` disturb no running task; `mep stop` ends everything."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from sitekit.daemon import BIN, command

RESULT_S = 60


def mep(campus: Any, *words: str) -> str:
    """Run `mep` as the account that the site belongs to."""
    site = campus.site
    return command(BIN / "mep", *words, env=site.env, run_as=site.run_as)


def test_restart_keeps_and_stop_ends(own_place: Any) -> None:
    own_place.endpoint.start()
    name, who = own_place.endpoint.name, own_place.anybody
    with own_place.executor(who) as executor:
        pid = executor.submit(os.getppid).result(timeout=RESULT_S)
        mep(own_place, "restart", name)
        assert executor.submit(os.getppid).result(timeout=RESULT_S) == pid
        mep(own_place, "stop", name, "--keep-user-endpoints")
        assert Path(f"/proc/{pid}").exists()
        waiting = executor.submit(pow, 2, 5)  # over its own link: it needs no manager
        assert waiting.result(timeout=RESULT_S) == 32
        assert "User endpoints stopped that it had left: 1." in mep(own_place, "stop", name)
        assert not Path(f"/proc/{pid}").exists()
    assert not list((own_place.endpoint.runtime_dir / "keepers").glob("*.json"))  # the relay knows of all ends


def test_after_a_killed_monitor_and_a_stop_the_next_task_need_not_wait_for_silence(own_place: Any) -> None:
    """The stop tells the relay of the end. Otherwise the relay logs no end, and gives the silent link up much later."""
    own_place.endpoint.start()
    name, who = own_place.endpoint.name, own_place.anybody
    with own_place.executor(who) as executor:
        assert executor.submit(pow, 2, 3).result(timeout=RESULT_S) == 8
        os.kill(int((own_place.endpoint.runtime_dir / "monitor.pid").read_text().split()[0]), signal.SIGKILL)
        mep(own_place, "stop", name)
        mep(own_place, "start", name, "--detach")
        try:
            assert executor.submit(pow, 2, 4).result(timeout=2 * RESULT_S) == 16
            assert "user endpoint ended" in (own_place.site.root / "logs" / "relay.log").read_text()
        finally:
            mep(own_place, "stop", name)
