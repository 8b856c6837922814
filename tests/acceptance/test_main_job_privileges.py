"""PAM, setuid_programs and hooks through the whole chain: a person's task runs under the administrator's settings."""

from __future__ import annotations

import grp
import json
import os
import pathlib
import pwd
import shutil
from typing import Any

import pytest
from sitekit.errors import SiteError

from mep_wire.errors import MepError, TaskNotFound
from tests.support.campus import make_campus
from tests.support.pam import Site as PamSite
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 60


def look(program: str) -> dict[str, Any]:
    import os
    import pathlib
    import resource
    import subprocess

    done = subprocess.run([program, "-u"], capture_output=True, text=True, check=False)
    status = dict(
        line.split(":\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines() if ":\t" in line
    )
    return {
        "euid": done.stdout.strip(),
        "uid": os.getuid(),
        "status": status,
        "place": os.environ.get("MEPTEST_PLACE"),
        "loader": os.environ.get("LD_PRELOAD"),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


@pytest.mark.parametrize("allow", [False, True])
def test_a_task_under_both(allow: bool) -> None:
    pam = PamSite()
    try:
        env = pam.write("env", 'MEPTEST_PLACE DEFAULT="here"\nLD_PRELOAD DEFAULT="/nowhere.so"\n')
        limits = pam.write("limits", "* - nofile 777\n")
        lines = [
            f"session required pam_env.so conffile={env} readenv=0",
            f"session required pam_limits.so conf={limits}",
        ]
        pam.define(*lines, f"session required pam_exec.so quiet {pam.recorder()}")
        hook = pam.script("hook", f'cat > {pam.root}/"$1".json')
        program = pam.root / "id-as-root"
        shutil.copy("/usr/bin/id", program)
        program.chmod(0o4755)
        with make_campus("multi", "priv") as campus:
            config = (
                f"pam: {{enable: true, service_name: {pam.service}}}\nsetuid_programs: {'allow' if allow else 'deny'}\n"
            )
            hooks = f"pre_start_hook: {{path: {hook}}}\npost_stop_hook: {{path: {hook}}}\n"
            campus.endpoint.add_config(config + hooks)
            campus.endpoint.start()
            with campus.executor("alice") as executor:
                found = executor.submit(look, str(program)).result(timeout=RESULT_S)
            uid = campus.accounts["alice"].uid
            assert (found["uid"], found["place"], found["loader"], found["files"]) == (uid, "here", None, 777)
            assert found["euid"] == ("0" if allow else str(uid))
            assert found["status"]["NoNewPrivs"] == ("0" if allow else "1")
            for pid in campus.pids().values():
                bounding = pathlib.Path(f"/proc/{pid}/status").read_text().split("CapBnd:\t")[1].split()[0]
                assert (int(bounding, 16) != 0) == allow
            campus.endpoint.stop()
            assert pam.recorded() == ["open_session", "close_session"]
            assert (pam.root / "pre_start.json").exists() and (pam.root / "post_stop.json").exists()
    finally:
        pam.close()


def test_what_a_person_reads_of_a_refusal() -> None:
    pam = PamSite()
    try:
        pam.define("account required pam_deny.so")
        with make_campus("multi", "deny") as campus:
            campus.endpoint.add_config(f"pam: {{enable: true, service_name: {pam.service}}}\n")
            campus.endpoint.start()
            with campus.executor("alice") as executor, pytest.raises(MepError) as caught:
                executor.submit(look, "/usr/bin/id").result(timeout=RESULT_S)
            assert "site's policy does not admit you" in str(caught.value)
            assert "pam_acct_mgmt" not in str(caught.value)
            assert "PAM_ACCOUNT" in campus.log() and "pam_acct_mgmt" in campus.log()
    finally:
        pam.close()


def test_logins_that_are_off_and_on_again() -> None:
    """With nologin the task waits, the person reads its text, and the task runs once the file is gone."""
    pam = PamSite()
    try:
        notice = pam.write("nologin", "Maintenance until noon.\n")
        pam.define(f"account required pam_nologin.so file={notice}")
        with make_campus("multi", "off") as campus:
            campus.endpoint.add_config(f"pam: {{enable: true, service_name: {pam.service}}}\n")
            campus.endpoint.start()
            with campus.executor("alice") as executor:
                future = executor.submit(pow, 2, 5)

                def reason() -> str:
                    said = executor.client.get_task(future.task_id).get("reason") or ""
                    return said if "Maintenance until noon" in said else ""

                unready = (LookupError, TaskNotFound)  # the submission is on its way
                assert "Your tasks wait" in until("the reason is shown", reason, unready=unready)
                assert not future.done()
                notice.unlink()
                assert future.result(timeout=RESULT_S) == 32
    finally:
        pam.close()


def test_what_a_template_knows_of_the_account_and_the_endpoint() -> None:
    """By a real start: all that `mep check` supposes, from this host's NSS, and the defaults of config.yaml."""
    said = "{{ [_GC.mapped_identity.local, parent_config] | tojson | shell_escape }}"
    template = f"engine: {{type: ProcessPoolEngine}}\nendpoint_setup: printf %s {said} > ~/known.json\n"
    with make_campus("multi", "known", template) as campus:
        campus.endpoint.start()
        with campus.executor("alice") as executor:
            executor.submit(pow, 2, 5).result(timeout=RESULT_S)
        entry = pwd.getpwnam(campus.accounts["alice"].name)
        local, config = json.loads(pathlib.Path(entry.pw_dir, "known.json").read_text())
        gids = [entry.pw_gid, *sorted(set(os.getgrouplist(entry.pw_name, entry.pw_gid)) - {entry.pw_gid})]
        assert local == {
            "uname": entry.pw_name, "uid": entry.pw_uid, "gid": entry.pw_gid, "groups": gids,
            "group_names": [grp.getgrgid(gid).gr_name for gid in gids], "gecos": entry.pw_gecos, "dir": entry.pw_dir,
            "shell": entry.pw_shell,
        }  # fmt: skip
        assert (config["multi_user"], config["caps"]["max_starting"], config["debug"]) == (True, 16, False)
        assert not {"policy", "admins", "pam", "audit_log_path"} & set(config)


def test_a_service_file_that_is_missing() -> None:
    with make_campus("multi", "none") as campus:
        campus.endpoint.add_config("pam: {enable: true, service_name: meptest-none}\n")
        with pytest.raises(SiteError, match=r"/etc/pam\.d/meptest-none"):
            campus.endpoint._mep("check", "none")


def test_a_single_user_endpoint_says_that_pam_is_not_used() -> None:
    with make_campus("single", "own") as campus:
        campus.endpoint.add_config("pam: {enable: true}\n")
        said = json.loads(campus.endpoint._mep("check", "own", "--json"))
        assert any("PAM is not used" in warning for warning in said["warnings"])
