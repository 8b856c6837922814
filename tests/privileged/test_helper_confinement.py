"""The powers of a compromised manager or mapper: hostile code behind the same confinement, and the real processes.

The hostile code runs in a process of the helper's account that has confined itself as the helper's main.py does, with
the same profile, files and ports. The real helpers are looked at in /proc.
"""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mep.boundary.confinement import Needs
from mep.boundary.messages import MAX_DOCUMENT_BYTES
from mep.boundary.resolved_config import ManagerSection, MapperSection
from mep.manager import main as manager_main
from mep.mapper import main as mapper_main
from mep.root.monitor.child import ChildKind
from mep.root.monitor.helper_limits import helper_limits
from tests.support.campus import Campus, make_campus
from tests.support.waiting import until

MANAGER = ManagerSection("id", "tcp://relay.example.edu:7000", "00" * 32, "mep", "")
RELAY_PORT = 7000
RTF_REJECT = 0x200
MAPPING = "/etc/mep/site/identity_mapping.json"
HOSTILE = """
import ctypes, errno, mmap, os, resource, signal, socket, sys, threading
from mep.boundary.confinement import Needs, confine
from mep.boundary.log import Log
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(one) for one in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
record = int(sys.argv[1])
os.umask(0)
libc.prctl(38, 1, 0, 0, 0)
if {confined}:
    confine({needs}, Log("hostile", "ERROR"))
try:
    {attempt}
except OSError as error:
    os.write(1, errno.errorcode[error.errno].encode())
    os._exit(0)
os.write(1, b"done")
os._exit(0)
"""
CANNOT = {
    "create a file": ("open('{directory}/made', 'w')", "EPERM"),
    "open a file for writing": ("open('{directory}/writable', 'r+')", "EPERM"),
    "append to a file": ("os.open('{directory}/writable', os.O_WRONLY | os.O_APPEND)", "EPERM"),
    "make an unnamed file": ("os.open('{directory}', os.O_RDWR | os.O_TMPFILE)", "EPERM"),
    "truncate a file by name": ("os.truncate('{directory}/writable', 0)", "EPERM"),
    "truncate the file of records that it holds": ("os.ftruncate(record, 0)", "EPERM"),
    "remove a file": ("os.unlink('{directory}/writable')", "EPERM"),
    "rename a file": ("os.rename('{directory}/writable', '{directory}/other')", "EPERM"),
    "make a directory": ("os.mkdir('{directory}/d')", "EPERM"),
    "make a link": ("os.symlink('/', '{directory}/l')", "EPERM"),
    "make a FIFO": ("os.mkfifo('{directory}/f')", "EPERM"),
    "change a mode": ("os.chmod('{directory}/writable', 0o777)", "EPERM"),
    "fork": ("os.fork()", "EPERM"),
    "signal another process": ("os.kill({victim}, 9)", "EPERM"),
    "signal another process's thread": ("libc.tgkill and call({tgkill}, {victim}, {victim}, 9)", "EPERM"),
    "listen": ("socket.socket().listen()", "EPERM"),
    "raise a limit": ("call({prlimit64}, 0, 7, 4096, 0)", "EPERM"),
    "let itself be traced": ("(libc.prctl(4, 1, 0, 0, 0) or os.close(-1)) if False else call({prctl}, 4, 1)", "EPERM"),
}
UNREADABLE = {
    "read a file of others": ("open('{directory}/readable')", "EACCES"),
    "read the command lines of others": ("open('/proc/1/cmdline')", "EACCES"),
}
DIES = {
    "run a program": "os.execv('/bin/true', ['true'])",
    "run a program by descriptor": "os.execve(os.open('/usr/bin/true', os.O_RDONLY), ['true'], {})",
    "trace": "libc.ptrace(0, 0, 0, 0)",
    "mount": "libc.mount(b'none', b'/mnt', b'tmpfs', 0, None)",
    "enter another namespace": "libc.unshare(0x10000000)",
}
NUMBERS = {
    "x86_64": {"tgkill": 234, "prctl": 157, "prlimit64": 302, "ptrace": 101, "clone": 56},
    "aarch64": {"tgkill": 131, "prctl": 167, "prlimit64": 261, "ptrace": 117, "clone": 220},
}[os.uname().machine]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A world-writable directory, outside the files that a helper reads."""
    path = pathlib.Path("/var/tmp") / f"meptest-confinement-{os.getpid()}"
    path.mkdir()
    path.chmod(0o777)
    for name in ("readable", "writable"):
        (path / name).write_text("text")
        (path / name).chmod(0o666)
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


def mapper(*, network: bool = False, programs: bool = False) -> Needs:
    section = MapperSection("id", "00" * 32, "mep-idmap", "", MAPPING, [], "", network=network, programs=programs)
    return mapper_main.needs(section, [MAPPING])


ROLES = {"manager": manager_main.needs(MANAGER), "mapper": mapper(), "mapper with LDAP": mapper(network=True)}
ACCOUNTS = {
    "manager": "mep",
    "mapper": "mep-idmap",
    "mapper with LDAP": "mep-idmap",
    "mapper with a callout": "mep-idmap",
}


def tries(role: str, needs: Needs, directory: pathlib.Path, attempt: str, *, confined: bool = True) -> tuple[int, str]:
    """Run `attempt` in a process of the helper's account; return its exit status, negative for a signal, and answer."""
    victim = subprocess.Popen(["/bin/sleep", "60"], user=ACCOUNTS[role], start_new_session=True)
    record = os.open(directory / "record", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        text = attempt.replace("{directory}", str(directory)).replace("{victim}", str(victim.pid))
        for name, number in NUMBERS.items():
            text = text.replace("{" + name + "}", str(number))
        code = HOSTILE.format(confined=confined, needs=repr(needs), attempt=text)
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, str(record)],
            user=ACCOUNTS[role], group=pwd.getpwnam(ACCOUNTS[role]).pw_gid, extra_groups=[],
            pass_fds=(record,), capture_output=True, text=True, timeout=60, cwd="/", check=False,
        )  # fmt: skip
        if done.stderr:
            print(done.stderr)
        return done.returncode, done.stdout.strip()
    finally:
        os.close(record)
        victim.kill()
        victim.wait()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("what", CANNOT)
def test_it_cannot(role: str, what: str, directory: pathlib.Path) -> None:
    attempt, refusal = CANNOT[what]
    assert tries(role, ROLES[role], directory, attempt) == (0, refusal)
    assert (directory / "writable").read_text() == "text" and not (directory / "made").exists()


@pytest.mark.parametrize("role", ["manager", "mapper"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_it_cannot_read(role: str, what: str, directory: pathlib.Path) -> None:
    attempt, refusal = UNREADABLE[what]
    assert tries(role, ROLES[role], directory, attempt) == (0, refusal)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("what", DIES)
def test_it_dies_when_it_tries_to(role: str, what: str, directory: pathlib.Path) -> None:
    assert tries(role, ROLES[role], directory, DIES[what])[0] == -signal.SIGSYS


def test_a_mapper_without_ldap_or_callout_opens_no_socket(directory: pathlib.Path) -> None:
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"):
        assert tries("mapper", ROLES["mapper"], directory, f"socket.socket(socket.{family}, socket.SOCK_DGRAM)") == (
            0,
            "EPERM",
        )


def connects(port: int) -> str:
    return f"socket.create_connection(('127.0.0.1', {port}), 5)"


def test_the_manager_connects_to_the_relays_port_alone(directory: pathlib.Path) -> None:
    assert tries("manager", ROLES["manager"], directory, connects(RELAY_PORT)) == (0, "ECONNREFUSED")
    assert tries("manager", ROLES["manager"], directory, connects(22)) == (0, "EACCES")


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket().sendto(b'x', socket.MSG_FASTOPEN, ('127.0.0.1', 22))",
        "socket.socket().sendmsg([b'x'], [], socket.MSG_FASTOPEN, ('127.0.0.1', 22))",
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(('127.0.0.1', 22))",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)",
    ],
    ids=["fast open, sendto", "fast open, sendmsg", "MPTCP", "netlink of the kernel's audit"],
)
def test_the_manager_reaches_no_other_port_by_a_way_that_landlock_does_not_see(
    directory: pathlib.Path, attempt: str
) -> None:
    assert tries("manager", ROLES["manager"], directory, attempt) == (0, "EPERM")


def test_what_a_helper_needs_it_can_do(directory: pathlib.Path) -> None:
    good = [
        "import json.tool, encodings.idna, sqlite3",  # reads the standard library, and loads a library
        "os.write(record, b'a record') and os.fdatasync(record)",
        "os.write(os.memfd_create('document', os.MFD_ALLOW_SEALING), b'x' * 1000)",
        "thread = threading.Thread(target=os.getpid); thread.start(); thread.join()",
        "socket.getaddrinfo('localhost', 7000)",
    ]
    for attempt in good:
        assert tries("manager", ROLES["manager"], directory, attempt) == (0, "done"), attempt
    binds = "socket.socket().bind(('0.0.0.0', 0))"  # as ldap3 does before it connects
    assert tries("mapper with LDAP", ROLES["mapper with LDAP"], directory, binds) == (0, "done")


def test_a_callout_may_do_what_a_program_does(directory: pathlib.Path) -> None:
    needs = mapper(network=True, programs=True)
    for attempt in (
        "open('{directory}/of-a-callout', 'w')",
        "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    ):
        assert tries("mapper with a callout", needs, directory, attempt) == (0, "done")
    assert tries("mapper with a callout", needs, directory, "call({ptrace}, 0)")[1] == "EPERM"


@pytest.mark.parametrize(
    "attempt, refusal",
    [
        ("libc.unshare(0x10000000) and call({ptrace}, 0)", "EPERM"),
        ("call({clone}, 0x10000000 | 17, 0, 0, 0, 0)", "EPERM"),
        ("call({clone}, 0x10000000 | 0x40000000 | 17, 0, 0, 0, 0)", "EPERM"),
        ("words = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17); call(435, ctypes.addressof(words), 64)", "ENOSYS"),
    ],
)
def test_a_callout_makes_no_user_namespace(directory: pathlib.Path, attempt: str, refusal: str) -> None:
    """It would have every capability there, and with them the kernel's code that only root reaches."""
    needs = mapper(network=True, programs=True)
    assert tries("mapper with a callout", needs, directory, attempt) == (0, refusal)


# --- the real processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def campus() -> Iterator[Campus]:
    with make_campus("multi", "confined") as made:
        made.endpoint.add_config("audit_tasks: true\n")
        made.endpoint.start()
        yield made


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def children_of(pid: int) -> dict[str, int]:
    """Return the children of a process by the module or file that each runs, or its name."""
    found = {}
    for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        line = pathlib.Path(f"/proc/{child}/cmdline").read_text()
        module = next((one for one in ("mep.manager", "mep.mapper") if one in line), "")
        found[module or status_of(int(child))["Name"]] = int(child)
    return found


def helpers(campus: Campus) -> tuple[int, int, int]:
    """Return the pids of monitor, manager and mapper, all of which serve."""
    monitor = int(campus.endpoint.status()["pid"])
    found = children_of(monitor)
    return monitor, found["mep.manager"], found["mep.mapper"]


def network_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def interfaces(pid: int) -> dict[str, int]:
    """Return the bytes that each interface of a process's network namespace has received."""
    lines = pathlib.Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip(): int(line.partition(":")[2].split()[0]) for line in lines}


def routes(pid: int) -> list[str]:
    four = pathlib.Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]
    six = pathlib.Path(f"/proc/{pid}/net/ipv6_route").read_text().splitlines()
    return four + [line for line in six if not int(line.split()[8], 16) & RTF_REJECT]


def test_the_monitor_has_no_network(campus: Campus) -> None:
    monitor, manager, mapper_pid = helpers(campus)
    host = network_of(os.getpid())
    assert network_of(monitor) != host and network_of(manager) == host
    assert network_of(mapper_pid) not in (host, network_of(monitor))
    for pid in (monitor, mapper_pid):
        assert interfaces(pid) == {"lo": 0} and routes(pid) == []


def test_every_child_of_the_monitor_is_in_the_hosts_network(campus: Campus) -> None:
    def networks() -> list[str]:
        return [os.readlink("/proc/self/ns/net"), os.readlink(f"/proc/{os.getppid()}/ns/net")]

    host = network_of(os.getpid())
    with campus.executor("alice", project="net") as executor:
        assert executor.submit(networks).result(timeout=60) == [host, host]
        monitor = helpers(campus)[0]
        keepers = {name: pid for name, pid in children_of(monitor).items() if not name.startswith("mep.")}
        assert keepers and {network_of(pid) for pid in keepers.values()} == {host}


def test_the_real_helpers_are_confined(campus: Campus) -> None:
    _, manager, mapper_pid = helpers(campus)
    for pid in (manager, mapper_pid):
        for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
            assert status_of(int(thread.name))["Seccomp"] == "2"
        found = status_of(pid)
        assert found["NoNewPrivs"] == "1" and found["CapBnd"] == "0" * 16
    assert "confined profile=manager landlock=" in campus.log() and "confined profile=mapper landlock=" in campus.log()
    assert campus.log().count("cannot confine the process fully") == 0


def limit_of(pid: int, name: str) -> list[str]:
    """Return the soft and the hard limit."""
    lines = pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith(name))[len("Max realtime timeout     ") :].split()[:2]


def test_the_real_helpers_have_their_limits(campus: Campus) -> None:
    _, manager, mapper_pid = helpers(campus)
    declared = {"Max processes": 256, "Max open files": 1024, "Max address space": 2 * 2**30}
    for name, value in declared.items():
        assert limit_of(manager, name) == [str(value)] * 2
    assert limit_of(manager, "Max file size") == ["unlimited"] * 2  # it writes task records
    assert limit_of(mapper_pid, "Max file size") == [str(MAX_DOCUMENT_BYTES)] * 2
    assert limit_of(mapper_pid, "Max processes") == ["512"] * 2
    for pid in (manager, mapper_pid):
        held = [stat.S_ISREG(os.stat(f"/proc/{pid}/fd/{fd}").st_mode) for fd in os.listdir(f"/proc/{pid}/fd")]
        assert len(held) < 64


def test_user_endpoints_and_keepers_are_not_confined_by_it(campus: Campus) -> None:
    def mine() -> list[str]:
        import pathlib

        written = pathlib.Path("/tmp/meptest-written")
        written.touch()
        written.unlink()
        return [
            line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("Seccomp:")
        ]

    with campus.executor("alice", project="net") as executor:
        assert executor.submit(mine).result(timeout=60) == ["Seccomp:\t0"]
    monitor = helpers(campus)[0]
    for name, pid in children_of(monitor).items():
        assert status_of(pid)["Seccomp"] == ("2" if name.startswith("mep.") else "0")


CALLOUT = """#!/usr/bin/python3 -IS
import json, os, socket, sys
asked = json.load(sys.stdin)["identities"]
open("/var/tmp/meptest-callout", "w").write("written"); socket.socket().close()
result = [{"id": one["id"], "output": "%s"} for one in asked if one["username"] == "carol@example.edu"]
print(json.dumps({"DATA_TYPE": "identity_mapping_output#1.0.0", "result": result}))
"""


def test_a_mapping_that_comes_to_name_a_callout_has_the_mapper_replaced(campus: Campus) -> None:
    """By a process that may run it; and by a confined one again when the callout is gone."""
    written = pathlib.Path("/var/tmp/meptest-callout")
    written.unlink(missing_ok=True)  # an earlier run's belongs to another mapper's account, and the callout would fail
    mapping = campus.endpoint.config_dir / "identity_mapping.json"
    before, first = json.loads(mapping.read_text()), helpers(campus)[2]
    program = campus.endpoint.config_dir / "callout"
    program.write_text(CALLOUT % campus.accounts["bob"].name)
    program.chmod(0o755)
    document = {"DATA_TYPE": "external_identity_mapping#1.0.0", "command": [str(program)]}
    mapping.write_text(json.dumps([document, *before]))
    until("a confined process in the log", lambda: "confined profile=mapper-programs" in campus.log())
    second = until("the mapper", lambda: children_of(helpers(campus)[0]).get("mep.mapper"))
    assert second != first and network_of(second) == network_of(os.getpid())
    with campus.executor("carol", project="callout") as executor:
        assert executor.submit(os.getuid).result(timeout=60) == campus.accounts["bob"].uid
    assert written.read_text() == "written"
    count = campus.log().count("confined profile=mapper ")
    mapping.write_text(json.dumps(before))
    until("a confined process in the log", lambda: campus.log().count("confined profile=mapper ") > count)


def test_limits_of_a_mapper_with_programs_are_not_its_programs() -> None:
    resolved: Any = type("R", (), {"multi_user": True, "task_log_path": "", "mapper": mapper_section(programs=True)})
    assert helper_limits(ChildKind.MAPPER, resolved).rlimits == [(resource.RLIMIT_NOFILE, 4096)]
    resolved = type("R", (), {"multi_user": False, "task_log_path": "", "mapper": mapper_section(programs=False)})
    manager = helper_limits(ChildKind.MANAGER, resolved).rlimits
    assert (resource.RLIMIT_FSIZE, MAX_DOCUMENT_BYTES) in manager and resource.RLIMIT_NPROC not in dict(manager)


def mapper_section(*, programs: bool) -> MapperSection:
    return MapperSection("id", "00" * 32, "mep-idmap", "", MAPPING, [], "", network=programs, programs=programs)
