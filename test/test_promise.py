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
"""At most three seconds: what is changed is stored, whatever the clock, the
disk or the way of stopping.

With the module as it is built for production.  The clocks of some tests are
not: shim/clock.c lets the wall clock step, and time pass faster for the parent
and its helper.
"""

import contextlib
import http.client
import os
import signal
import time

import pytest

import httpd as harness
import sharedmem
import shim
import storedfile
from rundir import in_file, put, text_of, wait_stored

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CONF = """
Mutex sem
PidFile ${ROOT}/logs/httpd.pid
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate other 700 200 persist
"""
FLUSH = "fsync,fdatasync,syncfs"


def empty_memory(server):
    """A new container's /dev/shm."""
    for path in server.leaked_shm():
        sharedmem.remove(path)


def shortest_delay(server, rounds=5, good=3.5):
    """Seconds from a change to the file that has it: the best of some, since
    the machine may be busy."""
    best = None
    for number in range(rounds):
        text = b"round %d %d" % (number, time.monotonic_ns())
        put(server, text)
        began = time.monotonic()
        wait_stored(server, text, limit=60)
        took = time.monotonic() - began
        best = took if best is None else min(best, took)
        if best < good:
            break
    return best


def test_change_is_stored_within_three_seconds(httpd, mpm):
    """Change, then docker stop 3 s later with a new, empty /dev/shm: lost."""
    server = httpd(CONF, mpm=mpm)
    assert shortest_delay(server) <= 3.5
    server.graceful()
    assert shortest_delay(server) <= 3.5
    put(server, b"kept")
    wait_stored(server, b"kept", limit=60)
    server.kill_all()
    empty_memory(server)
    server.start()
    assert text_of(server) == b"kept"


@needs_root
@pytest.mark.parametrize("hours", [-8, 8, -24 * 365])
def test_wall_clock_that_steps(httpd, hours):
    """None for hours, silently, and a reload did not heal it."""
    server = httpd(CONF, start=False)
    clock = shim.Clock(server)
    server.start()
    put(server, b"before")
    wait_stored(server, b"before", limit=60)
    clock.step(hours * 3600)
    for text in b"one", b"two":
        put(server, text)
        wait_stored(server, text, limit=60)
    server.graceful()
    put(server, b"three")
    wait_stored(server, b"three", limit=60)
    clock.step(0)
    put(server, b"four")
    wait_stored(server, b"four", limit=60)


@needs_root
def test_wall_clock_that_stepped_before_a_kill(httpd):
    """What is in memory is newer than its file, whatever the file's date."""
    server = httpd(CONF, start=False)
    clock = shim.Clock(server)
    server.start()
    put(server, b"older")
    wait_stored(server, b"older", limit=60)
    clock.step(-8 * 3600)
    server.graceful()
    put(server, b"newer")
    server.kill_all()
    server.start()
    assert text_of(server) == b"newer"


class SlowDisk:
    """A server whose time goes `speed` times as fast, for its helper, and
    whose disk takes a minute when it is told to."""

    def __init__(self, httpd, speed):
        self.speed = speed
        self.server = httpd(CONF, start=False, shm_size="8m")
        shim.Clock(self.server, speed)
        self.faults = shim.Faults(self.server)
        self.server.start()
        put(self.server, b"before")
        wait_stored(self.server, b"before")

    def slow_flush(self, text):
        self.faults.arm("1", "wait", "helper", FLUSH)
        put(self.server, text)
        harness.wait_for(self.faults.counted, "a helper to flush",
                         interval=0.001)
        time.sleep(60 / self.speed)     # the minute
        self.faults.go()
        self.faults.pass_on()
        wait_stored(self.server, text)

    def seconds_until_stored(self, text):
        began = time.monotonic()
        put(self.server, text)
        wait_stored(self.server, text, limit=90)
        return (time.monotonic() - began) * self.speed


@needs_root
@pytest.mark.parametrize("flushes, most", [(1, 150), (2, 900)])
def test_slow_flushes_delay_the_next_one_by_minutes_at_most(httpd, flushes,
                                                            most):
    """"The next one begins 1694 s after it", for one flush of 30 s.

    One changes nothing; two in a row (the disk is like that) delay the next
    by the five minutes that nothing exceeds.  Time goes 20 times as fast."""
    disk = SlowDisk(httpd, 20)
    for number in range(flushes):
        disk.slow_flush(b"slow %d" % number)
    assert disk.seconds_until_stored(b"after") < most


@needs_root
def test_much_that_changes_is_written_less_often(httpd):
    """32 MB that change all the time would wear a disk out at one a second.

    What is beyond five minutes' worth of 64 KiB a second is waited for: three
    minutes, of which this asks for one and a half."""
    speed = 20
    server = httpd(CONF + "SlotmemTestCreate big 1048576 32 persist",
                   start=False, shm_size="100m")
    shim.Clock(server, speed)
    server.start()
    path = server.persist_path("big")
    harness.wait_for(lambda: os.path.exists(path), "the first checkpoint")
    before, began = storedfile.identity(path), time.monotonic()
    put(server, b"text", "big")
    harness.wait_for(lambda: storedfile.identity(path) != before,
                     "the second checkpoint", limit=90)
    assert (time.monotonic() - began) * speed > 90


@needs_root
def test_stop_wakes_a_helper_that_rests(httpd):
    """After two slow flushes it rests for five minutes (30 s here), but a
    stop may end in a kill long before."""
    disk = SlowDisk(httpd, 10)
    server = disk.server
    for text in b"slow", b"slower":
        disk.slow_flush(text)
    with contextlib.suppress(OSError, http.client.HTTPException):
        with server.held_request():     # whose end the kill is
            put(server, b"last")
            begin_graceful_stop(server)
            wait_stored(server, b"last", limit=15)
            server.kill_all()
    assert in_file(server) == b"last"
    empty_memory(server)


def begin_graceful_stop(server):
    os.kill(server.pid, signal.SIGWINCH)


def test_stored_when_stopping_begins(httpd, mpm):
    """docker stop: SIGWINCH, an open request, SIGKILL after 10 s, and a new
    container with an empty /dev/shm.  What was changed just before is there.
    """
    server = httpd(CONF, mpm=mpm)
    put(server, b"older")
    server.graceful()
    wait_stored(server, b"older", limit=60)
    with contextlib.suppress(OSError, http.client.HTTPException):
        with server.held_request():     # whose end the kill is
            put(server, b"last")
            begin_graceful_stop(server)
            wait_stored(server, b"last", limit=8)
            server.kill_all()
    empty_memory(server)
    server.start()
    assert text_of(server) == b"last"
    assert server.slotmem().in_use("seg") == [0]


def test_stored_while_it_stops(httpd, mpm):
    """A graceful stop may take hours, for one websocket: the promise holds
    meanwhile."""
    server = httpd(CONF, mpm=mpm)
    put(server, b"older")
    with server.held_request() as pid:
        held = server.slotmem(pid)
        held.ping()
        begin_graceful_stop(server)
        wait_stored(server, b"older", limit=8)
        for text in b"one", b"two":
            assert held.put("seg", 0, text.ljust(32, b"\0")).ok
            wait_stored(server, text, limit=20)
    assert server._wait_exit("the server to end") == 0
    assert in_file(server) == b"two"


def test_stopping_with_a_disk_that_waits(httpd):
    """Stored when stopping begins must not mean that the end is later."""
    server = httpd(CONF, start=False, shm_size="8m")
    faults = shim.Faults(server)
    server.start()
    put(server, b"older")
    wait_stored(server, b"older", limit=60)
    faults.arm("1", "wait", "helper", FLUSH)
    put(server, b"last")
    harness.wait_for(faults.counted, "the helper to flush")
    os.kill(server.pid, signal.SIGTERM)
    faults.pass_on()
    assert server._wait_exit("the server to stop") == 0
    assert in_file(server) == b"last"
    faults.go()
