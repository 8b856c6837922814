"""Stands in for manager and mapper: hands the inherited descriptors to the test, then sleeps."""

import os
import signal
import socket
import sys

kind, control = sys.argv[1:]
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect(control)
    socket.send_fds(connection, [f"{kind} {os.getpid()}".encode()], [3, 4, 5])
for inherited in (3, 4, 5):
    os.close(inherited)
while True:
    signal.pause()
