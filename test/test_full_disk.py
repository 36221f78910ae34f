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
"""A disk that is full, read-only, or fails: what is in memory stays.

Over a restart state goes through memory, so no disk can lose it; a kill leaves
it in named shared memory; and whoever reads the log learns once that storing
fails, and once that it works again.
"""

import os
import signal

import pytest

import httpd as harness
import sharedmem
import shim
from rundir import (CANNOT_STORE, FROM_MEMORY, WORKS_AGAIN, Disk, in_directory,
                    in_file, left_over, put, text_of, wait_stored)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CONF = """
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate cleared 64 10 persist+clearinuse
SlotmemTestCreate none 64 10 persist anonymous
"""
MANY = "\n".join(f"SlotmemTestCreate seg{n} 64 10 persist" for n in range(40))
STATE = "seg", "cleared"


@pytest.fixture
def disks():
    made = []
    yield made
    for disk in made:
        disk.close()


@pytest.fixture
def on_disk(disks, httpd):
    """on_disk(conf, ...) makes a server whose runtime directory is on a disk
    of its own, server.disk; it is not started."""
    def make(conf=CONF, size="1m", **more):
        disks.append(Disk(size))
        server = in_directory(httpd(conf, start=False, **more),
                              disks[-1].run_dir)
        server.disk = disks[-1]
        server.allow_log("AH00098")
        shim.preload(server, "hurry")
        return server
    return make


def put_all(server, text):
    for name in STATE:
        put(server, text, name)


def check_all(server, text):
    assert [text_of(server, name) for name in STATE] == [text] * len(STATE)
    assert server.slotmem().in_use("seg") == [0]


def test_positive_control_disk_with_room(on_disk, mpm):
    """Stored over restarts and stops, and nothing is said."""
    server = on_disk(mpm=mpm).start()
    put_all(server, b"monday")
    server.graceful()
    check_all(server, b"monday")
    wait_stored(server, b"monday")
    put_all(server, b"tuesday")
    server.stop()
    assert in_file(server) == b"tuesday"
    assert not server.log_lines(CANNOT_STORE)
    assert not server.log_lines(WORKS_AGAIN)


@pytest.mark.parametrize("step", ["graceful", "restart"])
def test_restart_on_a_full_disk(on_disk, mpm, step):
    """monday came back; tuesday was in memory, and kill -9 would have kept
    it."""
    server = on_disk(mpm=mpm).start()
    put_all(server, b"monday")
    server.graceful()
    wait_stored(server, b"monday")
    server.disk.fill()
    server.expect_log(CANNOT_STORE)
    server.allow_nameless()
    for text in b"tuesday", b"wednesday":
        put_all(server, text)
        getattr(server, step)()
        check_all(server, text)
    put_all(server, b"thursday")
    if sharedmem.kind() == "posix":     # else the names take room there, too
        server.kill_all()
        server.start()
        check_all(server, b"thursday")
    server.graceful()
    check_all(server, b"thursday")
    server.disk.free()
    wait_stored(server, b"thursday")
    put_all(server, b"friday")
    server.stop()
    assert in_file(server) == b"friday"


def test_full_disk_is_told_once(on_disk):
    """Three lines a segment in 35 s hide what matters, and watchers page
    somebody for each."""
    sharedmem.need_posix("a restart takes key files away, and that makes room")
    server = on_disk(MANY, size="2m").start()
    for n in range(40):
        put(server, b"monday", f"seg{n}")
    server.graceful()
    wait_stored(server, b"monday", "seg39")
    server.disk.fill()
    server.expect_log(CANNOT_STORE)
    for number in range(3):
        for n in range(40):
            put(server, b"tuesday%d" % number, f"seg{n}")
        server.graceful()
    harness.wait_for(lambda: server.log_lines(CANNOT_STORE), "the message")
    # Rounds of checkpoints that fail as well.
    put(server, b"last", "seg39")
    server.graceful()
    assert len(server.log_lines(CANNOT_STORE)) == 1, \
        "\n".join(server.log_lines(CANNOT_STORE)[:4])
    assert not server.log_lines(WORKS_AGAIN)
    server.disk.free()
    wait_stored(server, b"last", "seg39")
    harness.wait_for(lambda: server.log_lines(WORKS_AGAIN), "the good news")
    server.graceful()
    put(server, b"very last", "seg39")
    wait_stored(server, b"very last", "seg39")
    assert len(server.log_lines(WORKS_AGAIN)) == 1
    # And when it begins anew it is told anew.
    server.disk.fill()
    put(server, b"again", "seg0")
    server.graceful()
    harness.wait_for(lambda: len(server.log_lines(CANNOT_STORE)) == 2,
                     "the message of the second time")
    assert text_of(server, "seg0") == b"again"
    server.disk.free()


def test_stop_on_a_full_disk(on_disk, mpm):
    """The old file stays, for it is whole; what is newer waits in memory for
    the next start, and is then gone from there."""
    server = on_disk(mpm=mpm, may_leak=True).start()
    put_all(server, b"monday")
    server.graceful()
    wait_stored(server, b"monday")
    server.disk.fill()
    server.expect_log(CANNOT_STORE)
    put_all(server, b"tuesday")
    server.stop()
    assert in_file(server) == b"monday"
    assert [name for name in os.listdir(server.run_dir)
            if name.endswith(".new")] == []
    server.disk.free()
    server.start()
    check_all(server, b"tuesday")
    server.stop()
    assert in_file(server) == b"tuesday"
    assert left_over(server) == set()


def test_read_only_directory_from_the_start(on_disk, mpm):
    """All state was lost at every reload, and two objects stayed in /dev/shm
    after a kill."""
    server = on_disk(mpm=mpm, may_leak=False)
    server.disk.read_only()
    server.allow_log(r"slotmem_shm: cannot|AH02334")
    server.allow_nameless()
    server.start()
    put_all(server, b"monday")
    for text in b"tuesday", b"wednesday":
        server.graceful()
        put_all(server, text)
        server.restart()
        check_all(server, text)
    server.kill_all()
    left = left_over(server)
    assert left or sharedmem.kind() != "posix"      # no name without its file
    server.start()
    server.kill_all()
    server.start()
    server.stop()
    # Nothing lists what later generations had; the first one's names tell.
    assert left_over(server) <= left, "of killed runs"
    server.may_leak = True
    server.disk.read_only(False)
    server.start()


def test_read_only_directory_while_it_runs(on_disk, mpm):
    """A file system that goes read-only after an error, with files open."""
    server = on_disk("Mutex sem\n" + "PidFile ${ROOT}/logs/httpd.pid\n" + CONF,
                     mpm=mpm, shm_size="8m")
    faults = shim.Faults(server)
    server.env["FAULTS_PREFIX"] = server.run_dir
    server.start()
    put_all(server, b"monday")
    server.graceful()
    wait_stored(server, b"monday")
    server.allow_log(r"slotmem_shm: cannot|AH02334")
    faults.arm("1+", "EROFS", who="any",
               calls="write,rename,unlink,unlinkat,ftruncate")
    put_all(server, b"tuesday")
    for text in b"wednesday", b"thursday":
        server.graceful()
        put_all(server, text)
    server.graceful()
    check_all(server, b"thursday")
    server.kill_all()
    server.start()
    check_all(server, b"thursday")
    faults.disarm()
    wait_stored(server, b"thursday")
    server.stop()
    assert in_file(server) == b"thursday"
    assert os.listdir(server.shm_dir) == []


def test_disk_that_fails_every_write(on_disk, mpm):
    """EIO: as a full disk, but no room helps."""
    server = on_disk("Mutex sem\n" + CONF, mpm=mpm, shm_size="8m")
    faults = shim.Faults(server)
    server.start()
    put_all(server, b"monday")
    server.graceful()
    wait_stored(server, b"monday")
    server.expect_log(CANNOT_STORE)
    faults.arm("1+", "EIO", who="any", calls="write,fsync,fdatasync,syncfs")
    for text in b"tuesday", b"wednesday":
        put_all(server, text)
        server.graceful()
        check_all(server, text)
    faults.disarm()
    wait_stored(server, b"wednesday")


def test_file_that_cannot_be_flushed_is_stored_when_it_can(on_disk):
    """It was written, and did not take its place: the same content is to be
    stored again, though nothing has changed since."""
    server = on_disk("Mutex sem\n" + CONF, mpm="prefork", shm_size="8m")
    faults = shim.Faults(server)
    server.start()
    put_all(server, b"monday")
    wait_stored(server, b"monday")
    server.expect_log(CANNOT_STORE)
    faults.arm("1+", "EIO", who="any", calls="fsync,fdatasync,syncfs")
    put_all(server, b"tuesday")
    harness.wait_for(lambda: server.log_lines(CANNOT_STORE), "the message")
    assert in_file(server) == b"monday"
    faults.disarm()
    wait_stored(server, b"tuesday")


def test_memory_without_a_name_on_a_full_disk(on_disk, mpm):
    """A container with too small a /dev/shm: the parent inherits what the
    children have, so it goes over a restart all the same."""
    server = on_disk("SlotmemTestCreate seg 4096 100 persist+pregrab",
                     mpm=mpm, shm_size="64k")
    server.allow_log(r"AH02611|AH02334|slotmem_shm: ")
    server.start()
    put(server, b"monday")
    server.graceful()
    assert text_of(server) == b"monday"
    server.disk.fill()
    put(server, b"tuesday")
    for _ in range(2):
        server.graceful()
        assert text_of(server) == b"tuesday"
        assert server.slotmem().in_use("seg") == [0]
    server.disk.free()


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGWINCH])
def test_room_that_comes_back_before_the_stop(on_disk, ends):
    """The stop stores it all, though nothing has changed since it failed."""
    server = on_disk().start()
    server.expect_log(CANNOT_STORE)
    server.allow_nameless()
    server.disk.fill()
    put_all(server, b"monday")
    server.graceful()
    harness.wait_for(lambda: server.log_lines(CANNOT_STORE), "the message")
    server.disk.free()
    server._end(ends)
    assert in_file(server) == b"monday"
    server.start()
    check_all(server, b"monday")
    assert not server.log_lines(FROM_MEMORY)
