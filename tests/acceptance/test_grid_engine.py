"""People's functions in jobs of a real Grid Engine, as their own accounts, with the template of the starter library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sitekit.endpoint import SCHEMA

from mep_wire.errors import UserConfigInvalid, WorkerLost
from tests.support.campus import make_campus
from tests.support.grid_engine import GridEngine, GridEngineFailed
from tests.support.waiting import until

pytestmark = pytest.mark.root
LIBRARY = Path(__file__).parents[2] / "etc/templates/gridengine"
RESULT_S = 100


def where() -> dict[str, Any]:
    import os

    return {name: os.environ.get(name, "") for name in ("JOB_ID", "QUEUE", "NSLOTS", "SITE_SAYS")} | {
        "uids": os.getresuid()
    }


def nap(mark: str) -> None:
    import os
    import time

    with open(mark, "w") as file:
        file.write(os.environ["JOB_ID"])
    time.sleep(120)


@pytest.fixture(scope="module")
def grid() -> Iterator[GridEngine]:
    with GridEngine() as made:
        yield made


@pytest.fixture(scope="module")
def campus(grid: GridEngine) -> Iterator[Any]:
    template = (LIBRARY / "user_config_template.yaml.j2").read_text()
    with make_campus("multi", "cluster", template) as made:
        made.endpoint.write("user_environment.yaml", yaml.safe_dump({**grid.variables, "SITE_SAYS": "hello"}))
        made.endpoint.write(SCHEMA, json.loads((LIBRARY / "user_config_schema.json").read_text()))
        made.endpoint.register_again()
        made.endpoint.start()
        yield made


def test_two_peoples_functions_run_in_jobs_of_their_own(grid: GridEngine, campus: Any) -> None:
    for who, workers in (("alice", 1), ("bob", 2)):
        account = campus.accounts[who]
        with campus.executor(who, workers=workers, account="phys-101", walltime="00:03:00") as executor:
            seen = executor.submit(where).result(timeout=RESULT_S)
            again = executor.submit(where).result(timeout=RESULT_S)
        assert seen["uids"] == (account.uid,) * 3
        assert (seen["QUEUE"], seen["NSLOTS"], seen["SITE_SAYS"]) == ("all.q", str(workers), "hello")
        assert again["JOB_ID"] == seen["JOB_ID"]
        assert grid.jobs()[seen["JOB_ID"]][0] == account.name[:12]
        shown = grid.run("qstat", "-j", seen["JOB_ID"])
        assert "h_rt=180" in shown
        assert "phys-101" in shown


def test_qdel_fails_the_running_task_and_the_next_one_gets_a_new_job(grid: GridEngine, campus: Any) -> None:
    mark = Path(campus.accounts["alice"].home, "mark")
    with campus.executor("alice", workers=1) as executor:
        running = executor.submit(nap, str(mark))
        until("running task", lambda: mark.exists() and mark.read_text())
        job = mark.read_text()
        waiting = executor.submit(where)
        grid.run("qdel", job)
        with pytest.raises(WorkerLost):
            running.result(timeout=RESULT_S)
        assert waiting.result(timeout=RESULT_S)["JOB_ID"] not in {"", job}


def test_the_queue_and_the_bounds_are_the_sites(campus: Any) -> None:
    for config in ({"queue": "root.q"}, {"workers": 33}, {"walltime": "99:00:00"}):
        with pytest.raises(UserConfigInvalid), campus.executor("alice", **config) as executor:
            executor.submit(where).result(timeout=RESULT_S)


def test_the_jobs_end_with_the_endpoint(grid: GridEngine, campus: Any) -> None:
    assert grid.jobs()
    campus.endpoint.stop()
    until("end of the jobs", lambda: not grid.jobs(), unready=(GridEngineFailed,))
