"""`setuid_programs: deny` and `allow`, read from /proc of a live user endpoint and tried with a real setuid program."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest

from mep.root.kernel.syscalls import SECUREBITS_LOCKED
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, start_as
from tests.support.pam import Site
from tests.support.waiting import until

LOOKS = """import ctypes, json, os, signal, socket, subprocess, time
print = None
facts = {
    "securebits": ctypes.CDLL(None).prctl(27, 0, 0, 0, 0),
    "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
    "euid": subprocess.run([PROGRAM, "-u"], capture_output=True, text=True).stdout.strip(),
}
with open(os.environ["HOME"] + "/facts.new", "w") as file:
    json.dump(facts, file)
os.rename(os.environ["HOME"] + "/facts.new", os.environ["HOME"] + "/facts")
socket.socket(fileno=5).send(b"READY")
time.sleep(3600)
"""
SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def look(who: LocalAccount, **options: Any) -> tuple[dict[str, str], dict[str, Any], dict[str, str], int]:
    """Start a user endpoint; return its status, its own report, the monitor's status, its oom_score_adj."""
    with MonitorRun(**options) as run:
        program = run.root / "id-as-root"
        shutil.copy("/usr/bin/id", program)
        program.chmod(0o4755)
        (run.root / "uep_standin.py").write_text(f"PROGRAM = {str(program)!r}\n{LOOKS}")
        manager, mapper = run.ready()
        uep_id, answer = start_as(manager, mapper, who.name)
        assert answer.outcome == "started"
        pid = run.record(uep_id)["uep_pid"]
        facts = pathlib.Path(who.home, "facts")
        until("it has looked", facts.exists)
        said = json.loads(facts.read_text())
        facts.unlink()
        oom = int(pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text())
        return status_of(pid), said, status_of(run.pid), oom


@pytest.mark.parametrize("with_pam", [False, True])
@pytest.mark.parametrize("allow", [False, True])
def test_both_ways(alice: LocalAccount, allow: bool, with_pam: bool) -> None:
    site = Site()
    try:
        pam = {"pam": site.define()} if with_pam else {}
        status, said, monitor, oom = look(alice, setuid_programs=allow, **pam)
    finally:
        site.close()
    for name in SETS:
        assert int(status[name], 16) == 0, name
    assert (status["SigBlk"], status["SigIgn"]) == ("0" * 16, "0000000001001000")  # Python's own: SIGPIPE, SIGXFSZ
    assert oom >= 0
    assert said["dumpable"] == 1, "closed to others until exec, and its user's own from then on"
    assert status["Uid"].split() == [str(alice.uid)] * 4
    if allow:
        assert (status["NoNewPrivs"], status["CapBnd"], said["securebits"]) == ("0", monitor["CapBnd"], 0)
        assert said["euid"] == "0", "a setuid program works"
    else:
        assert (status["NoNewPrivs"], int(status["CapBnd"], 16)) == ("1", 0)
        assert said["securebits"] == SECUREBITS_LOCKED
        assert said["euid"] == str(alice.uid), "a setuid program gives nothing"
