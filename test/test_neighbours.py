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
"""Servers on one machine that do not see each other: in containers, with
numbers of processes or directories of their own, and one /dev/shm."""

import contextlib
import os
import signal
import socket
import subprocess
import time

import pytest

import httpd as harness
import shim
from rundir import (ANOTHER, CANNOT_STORE, Disk, halt_helper, helper_of,
                    in_directory, in_file, put, relation, successor, text_of,
                    wait_relation, wait_stored)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CONF = "SlotmemTestCreate seg 64 10 persist+pregrab\n"


def shares(first, *more):
    """A wrapper: the /dev/shm of the first server, which has one of its own."""
    return ["sh", "-c", " && ".join(
        (f"mount --bind {first.shm_dir} /dev/shm",) + more)
            + ' && exec "$@"', "sh"]


def objects(server):
    return {name: os.stat(os.path.join(server.shm_dir, name)).st_ino
            for name in os.listdir(server.shm_dir)}


def refuses(server):
    try:
        socket.create_connection(("127.0.0.1", server.port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


@contextlib.contextmanager
def contained(server):
    """Runs a server that was not started as process 1 of a container's."""
    config = server.write_config()
    environment = dict(os.environ, SLOTMEM_TEST_DIR=server.ctl_dir)
    preloaded = server.env.get("LD_PRELOAD", "")
    with open(server.stderr_path, "a") as output:
        process = subprocess.Popen(
            ["unshare", "-m", "-p", "-f", "--mount-proc"] + server.wrapper
            + ["env", "LD_PRELOAD=" + preloaded, harness.httpd_program(), "-d",
               server.root, "-f", config, "-DFOREGROUND"], cwd=server.root,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=environment, start_new_session=True)
    try:
        harness.wait_for(server.port_answers, "the container to answer")
        yield
    finally:
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            os.kill(int(file.read().split()[0]), signal.SIGTERM)
        process.wait(harness.LIMIT)


def test_heir_in_another_container(httpd):
    """The owner's number says nothing there: the kernel gives 0, which was
    taken for our own before we had one, so the second server was no heir and
    wrote the first one's files; and it took number 1 for itself, so for dead,
    and took the first one's memory off the system."""
    first = httpd(CONF, shm_size="8m")
    put(first, b"monday")
    wait_stored(first, b"monday")
    second = successor(httpd, first, CONF, modules=["status"],
                       wrapper=shares(first))
    second.expect_log(ANOTHER + " 0, in another container")
    before = objects(first)
    with contained(second):
        assert relation(second) == "heir"
        assert text_of(second) == b"monday"
        assert before.items() <= objects(first).items()
        put(second, b"tuesday")
        time.sleep(2)       # nothing is to happen
        assert in_file(first) == b"monday"
        first.stop()
        wait_relation(second, "owner")
        wait_stored(second, b"tuesday")
    assert objects(first) == {}


def test_directories_of_one_path(httpd):
    """Containers of one image: each has a directory of its own, of one path,
    hence one name for its memory.  The second took the first one's memory off
    the system, and what the first had when it was killed was lost."""
    first = httpd(CONF, shm_size="8m")
    before = objects(first)
    own = os.path.join(first.root, "own")
    os.mkdir(own)
    second = in_directory(
        httpd(CONF, start=False, modules=["status"], wrapper=["unshare", "-m"]
              + shares(first, f"mount --bind {own} {first.run_dir}")),
        first.run_dir)
    second.start()
    assert relation(second) == "owner"
    assert objects(first).items() >= before.items()
    put(second, b"second's")
    halt_helper(first)
    put(first, b"first's")
    first.kill_all()
    first.start()
    assert text_of(first) == b"first's"
    halt_helper(second)
    put(second, b"later")
    second.kill_all()
    second.start()
    assert text_of(second) == b"later"
    theirs = objects(first)
    second.stop()
    assert len(objects(first)) == len(theirs) - 1
    first.kill_all()
    first.start()
    assert text_of(first) == b"first's"


def test_graceful_stop_with_a_listener_for_each_processor(httpd):
    """The helper kept all but the first: the kernel gave it connections that
    nobody accepts, for as long as the old server had requests open."""
    if os.cpu_count() < 2:
        pytest.skip("one processor has one listener")
    server = httpd(CONF + "ListenCoresBucketsRatio 1\n")
    harness.wait_for(lambda: helper_of(server), "a helper")
    with server.held_request():
        os.kill(server.pid, signal.SIGWINCH)
        # Not too often: a queue that is full refuses connections, too.
        harness.wait_for(lambda: refuses(server), "the port to be free",
                         harness.LIMIT / 3, interval=0.2)
    assert server._wait_exit("the server to end") == 0


def test_restart_that_fails_on_a_full_disk(httpd):
    """The log had just said that the state lives on in memory."""
    disk = Disk()
    try:
        server = in_directory(httpd(CONF, start=False), disk.run_dir)
        server.start()
        put(server, b"monday")
        wait_stored(server, b"monday")
        halt_helper(server)
        disk.fill()
        put(server, b"tuesday")
        server.expect_log(CANNOT_STORE)
        server.allow_log("AH00526|Invalid command|AH00098")
        server.conf = CONF + "NoSuchDirective\n"
        server.write_config()
        os.kill(server.pid, signal.SIGHUP)
        assert server._wait_exit("the server to give up") == 1
        server.conf = CONF
        disk.free()
        server.start()
        assert text_of(server) == b"tuesday"
        server.stop()
        assert in_file(server) == b"tuesday"
    finally:
        if server.process:
            server.stop()
        disk.close()


def test_file_systems_must_not_be_flushed(httpd):
    """A container may forbid syncfs: of more than 16 files the rest were never
    stored."""
    server = httpd("".join(f"SlotmemTestCreate seg{i} 64 4 persist\n"
                           for i in range(20)), start=False)
    shim.preload(server, "nosyncfs")
    server.start()
    for i in range(20):
        put(server, b"text", f"seg{i}")
    server.stop()
    assert [in_file(server, f"seg{i}") for i in range(20)] == [b"text"] * 20
