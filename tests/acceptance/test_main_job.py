"""The main job end to end: people's functions run as their own accounts, by every engine, and come back."""

from __future__ import annotations

from typing import Any

import pytest

from mep_wire.errors import MepError
from tests.support.waiting import until

RESULT_S = 60
ENGINES = ["ProcessPoolEngine", "ThreadPoolEngine", "GlobusComputeEngine"]


def who_am_i(workplace: str) -> dict[str, Any]:
    import os
    import pathlib
    import pwd

    return {
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "uids": os.getresuid(),
        "gids": os.getresgid(),
        "groups": sorted({os.getgid(), *os.getgroups()}),
        "home": os.environ["HOME"],
        "project": pathlib.Path(os.path.expandvars(workplace), "project").read_text(),
    }


@pytest.mark.root
def test_two_people_run_as_two_accounts_with_the_values_they_chose(multi_user: Any) -> None:
    with multi_user.executor("alice", project="turbines") as a, multi_user.executor("bob", project="galaxies") as b:
        futures = {"alice": a.submit(who_am_i, "$HOME"), "bob": b.submit(who_am_i, "$HOME")}
        found = {name: future.result(timeout=RESULT_S) for name, future in futures.items()}
    for name, project in (("alice", "turbines"), ("bob", "galaxies")):
        account = multi_user.accounts[name]
        assert found[name] == {
            "user": account.name,
            "uids": (account.uid,) * 3,
            "gids": (account.gid,) * 3,
            "groups": account.groups,
            "home": str(account.home),
            "project": project,
        }
    assert len(multi_user.accounts["alice"].groups) == 2


def test_a_single_user_endpoint_runs_as_its_owner(single_user: Any) -> None:
    with single_user.executor("me", project="mine") as executor:
        found = executor.submit(who_am_i, single_user.site.workplace).result(timeout=RESULT_S)
    assert found["uids"] == (single_user.accounts["me"].uid,) * 3
    assert found["home"] == str(single_user.accounts["me"].home)
    assert found["project"] == "mine"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_runs_functions(campus: Any, engine: str) -> None:
    def power(base: int, exponent: int = 2) -> int:
        return base**exponent

    with campus.executor(campus.anybody, engine=engine) as executor:
        assert list(executor.map(power, range(100), timeout=RESULT_S)) == [n * n for n in range(100)]
        assert executor.submit(power, 2, exponent=10).result(timeout=RESULT_S) == 1024


def test_a_remote_exception_keeps_its_type_and_tells_where(campus: Any) -> None:
    def look_up(key: str) -> int:
        return {"here": 1}[key]

    with campus.executor(campus.anybody) as executor, pytest.raises(KeyError) as caught:
        executor.submit(look_up, "elsewhere").result(timeout=RESULT_S)
    assert "look_up" in "".join(
        [str(caught.value), *getattr(caught.value, "__notes__", []), str(caught.value.__cause__)]
    )


def test_a_result_that_cannot_be_serialized_is_named(campus: Any) -> None:
    def a_lock() -> Any:
        import threading

        return threading.Lock()

    with campus.executor(campus.anybody) as executor, pytest.raises(MepError) as caught:
        executor.submit(a_lock).result(timeout=RESULT_S)
    assert caught.value.code == "RESULT_UNSERIALIZABLE"


def test_the_same_values_share_a_process_and_others_do_not(campus: Any) -> None:
    def parent() -> int:
        import os

        return os.getppid()

    who = campus.anybody
    with campus.executor(who, project="one") as first, campus.executor(who, project="one") as again:
        one = first.submit(parent).result(timeout=RESULT_S)
        assert again.submit(parent).result(timeout=RESULT_S) == one
    with campus.executor(who, project="two") as other:
        assert other.submit(parent).result(timeout=RESULT_S) != one


def test_a_registered_function_is_called_by_its_id(campus: Any) -> None:
    def double(number: int) -> int:
        return number * 2

    client = campus.client(campus.anybody)
    function_id = client.register_function(double)
    task_id = client.run(21, endpoint_id=campus.endpoint.id, function_id=function_id)
    until("the task's end", lambda: not client.get_task(task_id)["pending"])
    assert client.get_result(task_id) == 42


def test_an_idle_user_endpoint_ends_and_the_next_task_starts_it_again(campus: Any) -> None:
    who = campus.anybody
    with campus.executor(who, idle=1, project="idle") as executor:
        before = campus.pids()
        assert executor.submit(pow, 2, 3).result(timeout=RESULT_S) == 8
        (started,) = campus.new_pids(before)
        until("the end of the idle user endpoint", lambda: started not in campus.pids())
        assert executor.submit(pow, 2, 4).result(timeout=RESULT_S) == 16
