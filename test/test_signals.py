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
"""A signal that arrives while the parent stores; a disk that makes it wait.

httpd clears its own stop flag in a cleanup that runs after the module's, so a
SIGTERM that came while a restart was storing was forgotten; and a restart that
waits for a disk is an outage.
"""

import os
import signal

import pytest

import httpd as harness
import shim
from rundir import halt_helper, in_file, put, text_of, wait_stored

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CONF = """
Mutex sem
PidFile ${ROOT}/logs/httpd.pid
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate other 700 200 persist
"""
FLUSH = "fsync,fdatasync,syncfs"


@pytest.fixture
def slow(httpd):
    """slow(...) starts a server whose file operations a test can hold."""
    def make(**more):
        server = httpd(CONF, start=False, shm_size="8m", **more)
        server.allow_log("AH00098")
        shim.preload(server, "hurry")
        server.faults = shim.Faults(server)
        return server.start()
    return make


def restarted(server, count):
    return len(server.log_lines("resuming normal operations")) >= 1 + count


def test_positive_control_the_stop_does_wait(slow):
    """What is held is what the module flushes: a stop ends after it."""
    server = slow()
    halt_helper(server)
    put(server, b"state")
    server.faults.arm("1", "wait", "leader", FLUSH)
    os.kill(server.pid, signal.SIGTERM)
    harness.wait_for(server.faults.counted, "the stop to flush")
    assert harness.is_alive(server.pid)
    server.faults.go()
    assert server._wait_exit("the server to stop") == 0
    assert in_file(server) == b"state"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_no_restart_waits_for_a_disk(slow, mpm, number):
    """Every flush of every process is held; the restart ends all the same,
    and what it could not flush is flushed afterwards."""
    server = slow(mpm=mpm)
    put(server, b"before")
    wait_stored(server, b"before", limit=60)
    server.faults.arm("1+", "wait", "any", FLUSH)
    for text in b"one", b"two":
        put(server, text)
        server._restart(number, True)
        assert text_of(server) == text
        server.generation = server._newest_generation()
    assert not [call for call in server.faults.counted()
                if call[0] not in FLUSH.split(",")]
    server.faults.go()
    wait_stored(server, b"two")


@pytest.mark.parametrize("call", ["write", "open", "rename"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGWINCH])
def test_stop_that_arrives_while_a_restart_stores(slow, mpm, call, number):
    """It was forgotten; 20 s later the server still served."""
    server = slow(mpm=mpm)
    halt_helper(server)
    put(server, b"state")
    server.faults.arm("1", "wait", "leader", call)
    os.kill(server.pid, signal.SIGUSR1)
    harness.wait_for(server.faults.counted,
                     f"the restart to come to its {call}")
    os.kill(server.pid, number)
    server.faults.go()
    status = server._wait_exit("the server to stop", limit=20)
    assert status == 0
    assert in_file(server) == b"state"
    server.faults.disarm()
    server.start()
    assert text_of(server) == b"state"


def test_restart_that_arrives_while_a_restart_stores(slow):
    """The two are one, or two: either way it serves, with the state."""
    server = slow()
    halt_helper(server)
    put(server, b"state")
    server.faults.arm("1", "wait", "leader", "write")
    os.kill(server.pid, signal.SIGUSR1)
    harness.wait_for(server.faults.counted, "the restart to write")
    os.kill(server.pid, signal.SIGUSR1)
    server.faults.go()
    harness.wait_for(lambda: restarted(server, 1), "the restart")
    server.faults.disarm()
    server.generation = harness.wait_for(server._newest_generation,
                                         "the new generation")
    server.wait_children()
    assert text_of(server) == b"state"
    server.graceful()
    assert text_of(server) == b"state"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGWINCH])
def test_stop_that_arrives_while_a_stop_stores(slow, second):
    """docker stop, and then somebody who has no patience."""
    server = slow()
    halt_helper(server)
    put(server, b"state")
    server.faults.arm("1", "wait", "leader", "write")
    os.kill(server.pid, signal.SIGTERM)
    harness.wait_for(server.faults.counted, "the stop to write")
    os.kill(server.pid, second)
    server.faults.go()
    assert server._wait_exit("the server to stop") == 0
    assert in_file(server) == b"state"
