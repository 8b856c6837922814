"""Run as root inside the guest by test_cgroups.py: a relay, an endpoint with limits under systemd, people's tasks.

Every check prints one line; the first that fails ends the run with a traceback.
"""

import contextlib
import functools
import json
import os
import pathlib
import pwd
import signal
import subprocess
import sys
import time

BIN = "/opt/mep/bin"
NAME = "the-site"
SLICE = "/sys/fs/cgroup/mep.slice/mep-the\\x2dsite.slice"
MIB = 2**20
WAIT_S = 120

sys.path.append(os.path.dirname(__file__))
import waiting  # noqa: E402  # tests/support/waiting.py, which test_cgroups.py puts beside this file

until = functools.partial(waiting.until, seconds=WAIT_S, unready=(OSError, ValueError))


def run(*argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, **options)
    if done.returncode:
        raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def passed(what):
    print(f"{time.monotonic():.1f} PASSED {what}", flush=True)


def status():
    return json.loads(pathlib.Path(f"/run/mep/{NAME}/status.json").read_text())


def records():
    return [json.loads(path.read_text()) for path in pathlib.Path(f"/run/mep/{NAME}/keepers").rglob("*.json")]


def processes_of(uid):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                found.append(int(entry.name))
    return found


def cgroup_of(pid):
    return "/sys/fs/cgroup" + pathlib.Path(f"/proc/{pid}/cgroup").read_text().split("::")[1].strip()


def helpers():
    monitor = status()["pid"]
    children = pathlib.Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
    titles = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_text().partition(":")[0] for pid in children}
    return {title.removeprefix("mep."): int(pid) for pid, title in titles.items() if title.startswith("mep.")}


def check_helpers(found, pattern):
    for kind, memory, tasks in (("manager", 512 * MIB, 64), ("mapper", 2048 * MIB, 256)):
        path = cgroup_of(found[kind])
        assert path == pattern.format(kind, found[kind]), path
        held = [pathlib.Path(path, name).read_text().strip() for name in ("memory.max", "pids.max")]
        assert held == [str(memory), str(tasks)], held
        limits = pathlib.Path(f"/proc/{found[kind]}/status").read_text()
        assert "Seccomp:\t2" in limits


def prepare():
    for account in ("mep", "mep-idmap", "mep-relay", "mep-register"):
        run(
            "/usr/sbin/useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", account
        )
    for account in ("alice", "bob"):
        run("/usr/sbin/useradd", "--create-home", "--shell", "/bin/bash", account)
    run("/usr/sbin/groupadd", "big")
    run("/usr/sbin/usermod", "-aG", "big", "bob")
    os.makedirs("/var/lib/mep-relay", mode=0o700)
    run("chown", "mep-relay:mep-relay", "/var/lib/mep-relay")
    relay = subprocess.Popen([f"{BIN}/mep-relay", "serve"], stdout=sys.stdout, stderr=sys.stdout)
    until("the relay answers", lambda: json.loads(pathlib.Path("/var/lib/mep-relay/relay.json").read_text())["url"])
    return relay


def add_person(name):
    return json.loads(run(f"{BIN}/mep-relay", "user", "add", name, "--json"))["token"]


LIMITS = """
multi_user: true
audit_required: true
limits:
  memory_max: 160M
  tasks_max: 40
  cpu_max: 0.5
  person_memory_max: 400M
  open_files: 512
  by_group:
    big: {memory_max: 200M}
caps: {start_timeout_s: 120, stop_grace_s: 20}
"""


def configure():
    token = add_person("admin@example.edu")
    pathlib.Path("/root/token").write_text(token)
    os.chmod("/root/token", 0o600)
    url = json.loads(pathlib.Path("/var/lib/mep-relay/relay.json").read_text())["url"]
    run(f"{BIN}/mep", "configure", NAME, "--multi-user", "--relay", url, "--token-file", "/root/token")
    directory = pathlib.Path("/etc/mep", NAME)
    config = directory / "config.yaml"
    kept = [line for line in config.read_text().splitlines() if not line.startswith(("#", "multi_user")) and line]
    config.write_text("\n".join(kept) + LIMITS)
    mapping = {"source": "{username}", "match": "(.*)@example.edu", "output": "{0}"}
    (directory / "identity_mapping.json").write_text(
        json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [mapping]}])
    )
    (directory / "user_config_template.yaml.j2").write_text("engine: {type: ProcessPoolEngine, max_workers: 1}\n")
    passed("mep check: " + run(f"{BIN}/mep", "check", NAME).splitlines()[0])
    return url


def where():
    import os
    import resource

    with open("/proc/self/cgroup") as file:
        path = "/sys/fs/cgroup" + file.read().split("::")[1].strip()
    values = {}
    for name in ("memory.max", "pids.max", "cpu.max"):
        with open(f"{path}/{name}") as file:
            values[name] = file.read().strip()
    with open(os.path.dirname(path) + "/memory.max") as file:
        values["person"] = file.read().strip()
    return path, values, resource.getrlimit(resource.RLIMIT_NOFILE), os.getppid()


def hog():
    held = [b"x" * 2**20 for _ in range(1000)]
    return len(held)


def bomb():
    import os
    import signal

    pids = []
    try:
        while len(pids) < 200:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            pids.append(pid)
    except BlockingIOError:
        return len(pids)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return -1


def careless():
    import os
    import signal

    pids = []
    try:
        while len(pids) < 200:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            pids.append(pid)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def hog_in_the_user_endpoint_s_place(endpoint_pid):
    with open(f"/proc/{endpoint_pid}/oom_score_adj", "w") as file:
        file.write("1000")
    return len([b"x" * 2**20 for _ in range(1000)])


def tell_the_pid():
    import os

    pid = os.getppid()
    with open(f"/proc/{pid}/status") as file:
        parent = next(line.split()[1] for line in file if line.startswith("PPid"))
    return pid, int(parent)


def failure(future):
    try:
        value = future.result(timeout=WAIT_S)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"no failure but {value!r}")


def main():
    relay = prepare()
    from mep_sdk import Executor

    url = configure()
    people = {name: add_person(f"{name}@example.edu") for name in ("alice", "bob")}
    run("systemctl", "daemon-reload")
    run("systemctl", "start", f"mep@{NAME}")
    passed("Type=notify: systemctl start returned, state " + status()["state"])
    check_helpers(helpers(), f"{SLICE}/mep-the\\x2dsite-{{}}-{{}}.scope")
    passed("manager and mapper stand in scopes with their limits")
    until("its link is up", lambda: status()["link_state"] == "up")
    endpoint_id = status()["endpoint_id"]
    alice = Executor(endpoint_id=endpoint_id, relay_url=url, token=people["alice"])
    bob = Executor(endpoint_id=endpoint_id, relay_url=url, token=people["bob"])
    uid = pwd.getpwnam("alice").pw_uid

    began = time.monotonic()
    path, values, files, _ = alice.submit(where).result(timeout=WAIT_S)
    passed(f"first result with a scope after {time.monotonic() - began:.2f} s")
    record = records()[0]
    assert os.path.dirname(path) == f"{SLICE}/mep-the\\x2dsite-{uid}.slice", path
    assert path == record["cgroup"] and path.endswith(".scope"), (path, record)
    person = {"memory.max": str(160 * MIB), "pids.max": "40", "cpu.max": "50000 100000", "person": str(400 * MIB)}
    assert values == person and list(files) == [512, 512], (values, files)
    passed(f"limits as configured: {values}")
    assert "mep@" in cgroup_of(record["keeper_pid"]), cgroup_of(record["keeper_pid"])
    assert path == cgroup_of(record["uep_pid"])
    passed("the keeper stands in the service's group, the user endpoint in its scope")
    assert bob.submit(where).result(timeout=WAIT_S)[1]["memory.max"] == str(200 * MIB)
    passed("a group's values")

    forked = alice.submit(bomb).result(timeout=WAIT_S)
    assert 10 < forked < 40, forked
    passed(f"fork refused after {forked}")
    error = alice.submit(careless).exception(timeout=WAIT_S)
    said = "\n".join([repr(error), *error.__notes__])
    assert isinstance(error, BlockingIOError) and "TOO_MANY_PROCESSES" in said and "(limit 40)" in said, said
    passed("a function whose fork is refused says why")
    said = failure(alice.submit(hog))
    assert "died: it was killed by SIGKILL (9): out of memory (limit 160 MiB)" in said, said
    passed(f"a worker that took too much: {said}")
    assert alice.submit(where).result(timeout=WAIT_S)[0] == path
    passed("the user endpoint lives on")

    # --- restart ---
    before = {one["uep_id"]: one["uep_pid"] for one in records()}
    main_pid = run("systemctl", "show", "-P", "MainPID", f"mep@{NAME}")
    began = time.monotonic()
    run("systemctl", "restart", f"mep@{NAME}")
    assert run("systemctl", "show", "-P", "MainPID", f"mep@{NAME}") != main_pid
    assert {one["uep_id"]: one["uep_pid"] for one in records()} == before
    until("its link is up", lambda: status()["link_state"] == "up")
    assert alice.submit(where).result(timeout=WAIT_S)[0] == path
    passed(f"systemctl restart keeps user endpoints ({time.monotonic() - began:.1f} s with a result)")
    run("systemctl", "reload", f"mep@{NAME}")

    # --- the user endpoint itself ---
    record = next(one for one in records() if one["uid"] == uid)
    said = failure(alice.submit(hog_in_the_user_endpoint_s_place, record["uep_pid"]))
    passed(f"a user endpoint that took too much: {said}")
    until("its record is gone", lambda: all(one["uep_pid"] != record["uep_pid"] for one in records()))
    audit = pathlib.Path(f"/var/lib/mep/{NAME}/audit.log").read_text()
    ends = [one for one in map(json.loads, audit.splitlines()) if one["event"] == "end"]
    print(ends, flush=True)
    assert ends and ends[0]["code"] == "OUT_OF_MEMORY", ends
    assert "out of memory" in said and "limit 160 MiB" in said, said
    passed("its end is recorded as OUT_OF_MEMORY, and so is the reason of the lost task")

    # --- everything in the group dies ---
    path, *_ = alice.submit(where).result(timeout=WAIT_S)
    record = next(one for one in records() if one["uid"] == uid)
    os.kill(record["keeper_pid"], signal.SIGKILL)
    until("nothing of it is left", lambda: not os.path.exists(path))
    passed("a killed keeper takes its group along")

    # --- stop ---
    alice.shutdown(wait=False, cancel_futures=True)
    bob.shutdown(wait=False, cancel_futures=True)
    run(f"{BIN}/mep", "stop", NAME)
    for name in people:
        assert not processes_of(pwd.getpwnam(name).pw_uid), name
    assert not list(pathlib.Path(f"/run/mep/{NAME}").glob("keepers/*"))
    listing = ["systemctl", "list-units", "--no-legend", "--plain", "mep*.scope", "mep*.slice"]
    try:
        until("no scope is left", lambda: "the" not in run(*listing))
    except AssertionError as error:
        raise AssertionError(f"{error}: {run(*listing)}") from None
    assert not pathlib.Path(SLICE).exists()
    passed("mep stop leaves no process, record, scope or slice")
    by_hand()
    relay.terminate()


def by_hand():
    """The tree of a host without systemd, made beside systemd's."""
    from mep.boundary.resolved_config import Limits
    from mep.root.kernel import cgroup

    child = subprocess.Popen(["sleep", "600"])
    limits = Limits(memory_max=50 * MIB, tasks_max=20, cpu_max=1.5, io_weight=50, person_memory_max=100 * MIB)
    group = cgroup._enter_by_hand(cgroup.Member(child.pid, "site", "uep", 4711, limits))
    assert cgroup_of(child.pid) == group.path == "/sys/fs/cgroup/mep/endpoint-site/uid-4711/uep"
    values = {
        name: pathlib.Path(group.path, name).read_text().strip()
        for name in ("memory.max", "pids.max", "cpu.max", "io.weight")
    }
    assert values == {
        "memory.max": str(50 * MIB),
        "pids.max": "20",
        "cpu.max": "150000 100000",
        "io.weight": "default 50",
    }, values
    assert pathlib.Path(group.path, "../memory.max").read_text().strip() == str(100 * MIB)
    group.end()
    assert child.wait() == -signal.SIGKILL
    group.close()
    assert not os.path.exists("/sys/fs/cgroup/mep")
    cgroup.under_systemd = lambda: False  # as on such a host
    child = subprocess.Popen(["sleep", "600"])
    cgroup.enter_helper_group(child.pid, "site", "manager", Limits(memory_max=50 * MIB, tasks_max=20), lambda: 5.0)
    assert cgroup_of(child.pid) == "/sys/fs/cgroup/mep/endpoint-site/helper-manager"
    assert pathlib.Path(cgroup_of(child.pid), "pids.max").read_text().strip() == "20"
    child.kill()
    child.wait()
    until(
        "it is empty",
        lambda: not pathlib.Path("/sys/fs/cgroup/mep/endpoint-site/helper-manager/cgroup.procs").read_text(),
    )
    cgroup.remove_helper_group("site", "manager")
    assert not os.path.exists("/sys/fs/cgroup/mep")
    passed("a tree without systemd")


try:
    main()
finally:
    sys.stdout.flush()
    for command in (
        f"journalctl -b -u mep@{NAME} --no-pager -o cat > /guest/out/journal",
        "cp /var/lib/mep/*/audit.log /guest/out/",
        "cat /home/*/.mep/uep/*/*.log > /guest/out/ueps",
    ):
        subprocess.run(command, shell=True)  # the guest's own words
