# Licensed to the Apache Software Foundation (ASF) under one or more
# contributor license agreements.  See the NOTICE file distributed with
# this work for additional information regarding copyright ownership.
# The ASF licenses this file to You under the Apache License, Version 2.0
# (the "License"); you may not use this file except in compliance with
# the License.  You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What the tests of the runtime directory share: servers that meet in one,
disks that fill up, and the questions that are asked of both."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile

import httpd as harness
import shim
from storedfile import Stored

# What the log says; loosely, for its words may change.
ANOTHER = r"slotmem_shm: .*another httpd \(process"
CANNOT_STORE = r"AH02334.*cannot store"
WORKS_AGAIN = r"slotmem_shm: .*works again"
FROM_MEMORY = "goes on with the memory of a run that was killed"


def put(server, text, name="seg", slot=0, pid=None):
    slotmem = server.slotmem(pid)
    assert slotmem.fgrab(name, slot).ok
    assert slotmem.put(name, slot, text.ljust(32, b"\0")).ok


def text_of(server, name="seg", slot=0, pid=None):
    return server.slotmem(pid).read(name, slot, 64).rstrip(b"\0")


def in_file(server, name="seg", slot=0):
    """None while there is no file; raises if it is not whole."""
    try:
        return Stored(server.persist_path(name)).slots[slot].rstrip(b"\0")
    except FileNotFoundError:
        return None


def wait_stored(server, text, name="seg", slot=0, **more):
    harness.wait_for(lambda: in_file(server, name, slot) == text,
                     lambda: f"{text} to be stored; the file has "
                     f"{in_file(server, name, slot)}", **more)


def marker(server):
    return os.path.join(server.run_dir, "slotmem-shm.run")


def relation(server):
    """owner, heir or unlisted, as the status page says it."""
    _, page = server.get("/server-status?auto")
    found = re.search(r"(?m)^SlotmemRuntimeDir: (\w+)$", page)
    assert found, "no SlotmemRuntimeDir on the status page:\n" + page
    return found[1]


def wait_relation(server, wanted):
    harness.wait_for(lambda: relation(server) == wanted,
                     lambda: f"the server to be {wanted}; it is "
                     f"{relation(server)}")


def helper_of(server):
    """The checkpoint helper: the parent's child that serves no requests."""
    serving = server.children()
    for pid in server.processes():
        stat = harness.process_stat(pid)
        if pid not in serving and pid != server.pid and stat \
                and stat[1] == server.pid:
            return pid
    return None


def halt_helper(server):
    """From now on the parent alone stores, at a stop or restart, which ends
    the helper."""
    pid = harness.wait_for(lambda: helper_of(server), "a checkpoint helper")
    os.kill(pid, signal.SIGSTOP)
    harness.wait_for(lambda: harness.process_stat(pid)[0] == "T",
                     "the helper to halt")
    return pid


def read_only_dev_shm():
    """A wrapper for a server: no shared memory can have a name."""
    return ["unshare", "-m", "sh", "-c",
            'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "sh"]


def left_over(server):
    """Of the objects it ever had, those that nobody who lives has mapped."""
    return server.leaked_shm() - server.shm_objects()


def in_directory(server, folder):
    """Moves a server that was not started to another runtime directory.

    Its PidFile stays where it was.
    """
    assert server.process is None
    server.run_dir = folder
    return server


def successor(httpd, first, conf, quick=True, **more):
    """A server on the same runtime directory, not started.

    quick: it looks at the directory every half second, not every ten.
    """
    second = in_directory(httpd(conf, start=False, **more), first.run_dir)
    if quick:
        shim.preload(second, "hurry")
    return second


class Disk:
    """A file system of its own that a test fills, frees, or makes read-only."""

    def __init__(self, size="1m"):
        self.path = tempfile.mkdtemp(prefix="slotmem-disk-", dir="/tmp")
        os.chmod(self.path, 0o755)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755",
                        "tmpfs", self.path], check=True)
        self.run_dir = os.path.join(self.path, "run")
        os.mkdir(self.run_dir)
        self._filler = os.path.join(self.path, "filler")

    def fill(self):
        # What is there for a moment would leave room behind.
        harness.wait_for(
            lambda: not [name for name in os.listdir(self.run_dir) if name
                         .endswith((".new", ".checkpoint", ".before"))],
            "the helper to be done")
        with open(self._filler, "ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x")

    def free(self):
        os.unlink(self._filler)

    def read_only(self, on=True):
        subprocess.run(["mount", "-o", "remount," + ("ro" if on else "rw"),
                        self.path], check=True)

    def close(self):
        subprocess.run(["umount", "-l", self.path], check=False)
        shutil.rmtree(self.path, ignore_errors=True)
