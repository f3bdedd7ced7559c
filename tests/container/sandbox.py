# SPDX-License-Identifier: Apache-2.0
"""Run in the container: its user is foreign, nothing but /out can be written to, and nobody can be reached."""

import errno
import os
import socket
import sys
import tempfile


def writable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


assert os.getuid() == 12345, os.getuid()
assert "HOME" not in os.environ, os.environ["HOME"]
assert writable("/out")
folders = ("/", "/tmp", "/var/tmp", "/home/gsbids", "/root", "/opt/gsbids", "/data", *sys.path[1:])
assert not [folder for folder in folders if writable(folder)]
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
    connection.settimeout(5)
    reached = connection.connect_ex(("192.0.2.1", 80))  # an address that belongs to nobody
assert reached == errno.ENETUNREACH, reached
print("a foreign user, nothing but /out to write to, no network")
