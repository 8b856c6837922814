"""Stands in for manager and mapper: hands the inherited descriptors to the test, then sleeps."""

import os
import signal
import socket
import sys

from mep.boundary.untraceable import end_with, gain_no_privilege

# The first steps of manager and mapper, except closing itself to tracers: tests look into this one.
group = os.getegid()
os.setresgid(group, group, group)
gain_no_privilege()
end_with(os.getppid())

kind, control = sys.argv[1:]
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect(control)
    socket.send_fds(connection, [f"{kind} {os.getpid()}".encode()], [3, 4, 5])
for inherited in (3, 4, 5):
    os.close(inherited)
while True:
    signal.pause()
