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
"""Two servers on one runtime directory.

graceful-stop and then start is how httpd documents an upgrade; a rolling
update of containers on one volume looks alike, and so do two units that are
started by mistake.  The one that holds the directory is its owner.  The other
one is its heir: it begins with what is stored, never writes, and is owner once
the first has gone.
"""

import concurrent.futures
import glob
import os
import signal

import pytest

import httpd as harness
import sharedmem
import shim
import storedfile
from rundir import (ANOTHER, helper_of, in_file, left_over, marker, put,
                    relation, successor, text_of, wait_relation, wait_stored)

CONF = """
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate cleared 64 10 persist+clearinuse
SlotmemTestCreate plain 64 10 pregrab
"""


def files_of(server):
    return {path: storedfile.identity(path)
            for path in glob.glob(server.run_dir + "/slotmem*.persist")}


def begin_graceful_stop(server):
    """Its requests go on; its ports are free for the next server."""
    os.kill(server.pid, signal.SIGWINCH)
    harness.wait_for(lambda: not server.port_answers(), "the ports to be free")


def end_graceful_stop(server):
    assert server._wait_exit("the first server to end") == 0


def test_positive_control_servers_with_a_directory_each(httpd, mpm):
    """Both are owners, and nobody is told about anybody."""
    servers = [httpd(CONF, mpm=mpm, modules=["status"]) for _ in range(2)]
    for server in servers:
        assert relation(server) == "owner"
        put(server, server.root.encode()[-20:])
    for server in servers:
        server.graceful()
        assert text_of(server) == server.root.encode()[-20:]


@pytest.mark.parametrize("change", ["kept", "killed"])
def test_graceful_stop_with_an_open_request_then_start(httpd, mpm, change):
    """The new server began empty, stored nothing even after the old one had
    ended, and its next graceful restart brought the old file back."""
    first = httpd(CONF, mpm=mpm, modules=["status"])
    put(first, b"monday")
    put(first, b"balancer", "cleared", 3)
    with first.held_request():
        begin_graceful_stop(first)
        second = successor(httpd, first, CONF, mpm=mpm, modules=["status"])
        second.expect_log(ANOTHER)
        second.start()
        assert text_of(second) == b"monday", "it began without the state"
        assert text_of(second, "cleared", 3) == b"balancer"
        assert second.slotmem().in_use("seg") == [0]
        assert relation(second) == "heir"
        put(second, b"tuesday")
    end_graceful_stop(first)
    wait_relation(second, "owner")
    assert text_of(second) == b"tuesday", "restored over live memory"
    wait_stored(second, b"tuesday")
    if change == "killed":
        put(second, b"wednesday")
        second.kill_all()
        second.start()
    else:
        put(second, b"wednesday")
        second.graceful()
    assert text_of(second) == b"wednesday"
    second.stop()
    assert in_file(second) == b"wednesday"
    assert not os.path.exists(marker(second))
    assert left_over(first) | left_over(second) == set()


def test_heir_says_so_once(httpd):
    """One warning with the owner's process number, one notice at the end;
    not one at every restart."""
    first = httpd(CONF)
    second = successor(httpd, first, CONF, modules=["status"])
    second.expect_log(ANOTHER)
    second.start()
    for _ in range(2):
        second.graceful()
    told = second.log_lines(ANOTHER)
    assert len(told) == 1 and f"process {first.pid})" in told[0]
    first.stop()
    wait_relation(second, "owner")
    second.graceful()
    assert len(second.log_lines(ANOTHER)) == 1
    assert len(second.log_lines(
        r"slotmem_shm:notice\].*runtime directory|slotmem_shm:notice\].*ours"
        )) == 1


def test_heir_never_writes(httpd, mpm):
    """Nor reads again: over its own restarts its state goes through memory,
    and the owner's files stay the owner's."""
    first = httpd(CONF, mpm=mpm)
    put(first, b"first")
    first.graceful()
    wait_stored(first, b"first")
    second = successor(httpd, first, CONF, mpm=mpm)
    second.expect_log(ANOTHER)
    second.start()
    objects, files = first.shm_objects(), files_of(first)
    assert second.shm_objects() & objects == set()
    assert text_of(second) == b"first"
    for step, text in (second.graceful, b"one"), (second.restart, b"two"), \
            (second.graceful, b"three"):
        put(second, text)
        step()
        assert text_of(second) == text, "an heir's restart lost its state"
    second.stop()
    assert files_of(first) == files
    assert first.shm_objects() == objects
    assert text_of(first) == b"first"
    first.graceful()
    assert text_of(first) == b"first"


def test_children_of_an_heir_share_what_they_create(httpd, mpm):
    """Both creates succeeded, and shared nothing."""
    first = httpd(CONF, mpm=mpm)
    put(first, b"first's", "plain")
    second = successor(httpd, first, CONF, mpm=mpm)
    second.expect_log(ANOTHER)
    second.start()
    for turn in range(2):
        name = f"late{turn}"
        one, other = second.children()[:2]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            made = list(pool.map(
                lambda pid: second.slotmem(pid).create(name, 64, 4, "pregrab"),
                (one, other)))
        assert all(answer.ok for answer in made)
        assert sorted(second.slotmem(pid).grab(name).id
                      for pid in (one, other)) == [0, 1], "not one segment"
        put(second, b"shared", name, 0, one)
        assert text_of(second, name, 0, other) == b"shared"
        # The owner's of that name is another one.
        mine = first.children()[0]
        assert first.slotmem(mine).create(name, 64, 4, "pregrab").ok
        assert first.slotmem(mine).grab(name).id == 0
        assert text_of(first, name, 0, mine) == b""
        second.graceful()
    second.stop()
    assert left_over(second) == set()


def test_owner_that_is_killed_is_inherited(httpd, mpm):
    """The heir goes on with what it has, stores it, and removes what the
    owner's run has left in memory; what only the owner had is stored."""
    first = httpd(CONF + "SlotmemTestCreate extra 64 4 persist", mpm=mpm)
    second = successor(httpd, first, CONF, mpm=mpm, modules=["status"])
    second.expect_log(ANOTHER)
    second.start()
    put(first, b"first's")
    put(first, b"extra", "extra")
    put(second, b"second's")
    assert first.shm_objects()
    first.kill_all()
    wait_relation(second, "owner")
    assert text_of(second) == b"second's"
    wait_stored(second, b"second's")
    wait_stored(second, b"extra", "extra")
    harness.wait_for(lambda: not left_over(first),
                     lambda: f"{left_over(first)} to be removed")
    second.graceful()
    assert text_of(second) == b"second's"
    second.stop()
    assert in_file(second) == b"second's"


def test_heir_that_lives_keeps_its_memory_when_a_third_is_owner(httpd):
    """The third comes first to the lock, and cannot know of the heir but by
    what that has in memory, which is of this directory and in no list."""
    first = httpd(CONF)
    put(first, b"state")
    second = successor(httpd, first, CONF)
    second.expect_log(ANOTHER)
    second.start()
    objects = second.shm_objects()
    assert objects
    os.kill(second.pid, signal.SIGSTOP)
    try:
        first.stop()
        third = successor(httpd, first, CONF, modules=["status"])
        third.start()
        assert relation(third) == "owner"
        assert text_of(third) == b"state"
        assert {path for path in objects if sharedmem.exists(path)} == objects
    finally:
        os.kill(second.pid, signal.SIGCONT)
    second.stop()
    third.stop()
    assert left_over(second) | left_over(third) == set()


def test_heir_that_is_killed_leaves_the_owner_alone_and_no_memory(httpd):
    """Its segments stand in no marker but must not stay for good."""
    first = httpd(CONF)
    put(first, b"first")
    second = successor(httpd, first, CONF)
    second.expect_log(ANOTHER)
    second.start()
    assert second.slotmem(second.children()[0]).create("late", 64, 4, "0").ok
    second.graceful()
    objects = second.shm_objects()
    assert objects
    second.kill_all()
    assert text_of(first) == b"first"
    second.start()
    assert {path for path in objects if os.path.exists(path)} \
        <= second.shm_objects()
    assert text_of(first) == b"first"
    second.stop()
    first.graceful()
    assert text_of(first) == b"first"


def test_heir_with_segments_of_its_own(httpd):
    """A foreign server in the directory: its state is stored as well, as soon
    as nobody else answers for the directory."""
    first = httpd(CONF)
    second = successor(httpd, first, "SlotmemTestCreate mine 64 4 persist",
                       modules=["status"])
    second.expect_log(ANOTHER)
    second.start()
    put(second, b"mine", "mine")
    assert not os.path.exists(second.persist_path("mine"))
    put(first, b"first")
    first.stop()
    wait_relation(second, "owner")
    wait_stored(second, b"mine", "mine")
    assert in_file(first) == b"first"
    second.stop()


@pytest.mark.parametrize("round", range(3))
def test_servers_that_start_at_once(httpd, round):
    """One of them is the owner; that there were two was seen by their files
    only, which both wrote."""
    first = httpd(CONF, start=False, modules=["status"])
    servers = [first] + [successor(httpd, first, CONF, modules=["status"])
                         for _ in range(3)]
    for server in servers:
        server.allow_log(ANOTHER)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda server: server.start(), servers))
    relations = [relation(server) for server in servers]
    assert sorted(relations) == ["heir", "heir", "heir", "owner"]
    owner = servers[relations.index("owner")]
    text = f"pid {owner.pid}".encode()
    put(owner, text)
    owner.graceful()
    wait_stored(owner, text)
    run = storedfile.read(marker(owner)).decode()
    assert f" {owner.pid} " in run
    # When the owner goes, one of the others follows.
    owner.stop()
    rest = [server for server in servers if server is not owner]
    harness.wait_for(
        lambda: sorted(map(relation, rest)) == ["heir", "heir", "owner"],
        "one heir to become owner")
    for server in rest:
        server.stop()
    assert not os.path.exists(marker(first))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_start_that_locks_a_marker_just_removed(httpd):
    """Between its open and its lock the old server removes the file and a
    third one makes another: the lock is on a file that nobody will find."""
    first = httpd(CONF)
    put(first, b"first")
    late = successor(httpd, first, "Mutex sem\n" + CONF, shm_size="8m",
                     modules=["status"])
    late.allow_log(ANOTHER)
    faults = shim.Faults(late)
    faults.arm(1, "wait", calls="lock")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        started = pool.submit(late.start)
        harness.wait_for(faults.counted, "the late one to come to its lock")
        first.stop()
        third = successor(httpd, first, CONF, modules=["status"])
        third.start()
        faults.go()
        started.result()
    assert relation(third) == "owner"
    assert relation(late) == "heir"
    put(late, b"late")
    put(third, b"third")
    late.graceful()
    third.graceful()
    wait_stored(third, b"third")
    late.stop()
    assert in_file(third) == b"third"
    third.kill_all()
    third.start()
    assert text_of(third) == b"third"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_rolling_update_on_one_volume(httpd, mpm):
    """Containers: a /dev/shm each, one directory.  Newer state is not lost,
    and what the old one stores at its end harms no more than itself."""
    first = httpd(CONF, mpm=mpm, shm_size="8m")
    put(first, b"monday")
    wait_stored(first, b"monday")   # there is no other way to the new one
    with first.held_request():
        begin_graceful_stop(first)
        second = successor(httpd, first, CONF, mpm=mpm, shm_size="8m",
                           modules=["status"])
        second.expect_log(ANOTHER)
        second.start()
        assert text_of(second) == b"monday"
        put(second, b"tuesday")
        second.graceful()
        assert text_of(second) == b"tuesday"
    end_graceful_stop(first)
    wait_relation(second, "owner")
    wait_stored(second, b"tuesday")
    # And the next one, with the memory of the second gone.
    put(second, b"wednesday")
    wait_stored(second, b"wednesday")
    second.kill_all()
    for name in os.listdir(second.shm_dir):
        os.unlink(os.path.join(second.shm_dir, name))
    second.start()
    assert text_of(second) == b"wednesday"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_heir_that_cannot_read_the_list(httpd):
    """It begins with what is in the files."""
    first = httpd(CONF)
    put(first, b"first")
    wait_stored(first, b"first")
    second = successor(httpd, first, "Mutex sem\n" + CONF, shm_size="8m",
                       modules=["status"])
    second.expect_log(ANOTHER)
    faults = shim.Faults(second)
    second.env["FAULTS_PREFIX"] = marker(second)
    faults.arm(2, "EACCES", "leader", "open")
    second.start()
    assert len(faults.disarm()) >= 2
    assert relation(second) == "heir"
    assert text_of(second) == b"first"


def test_owner_that_loses_its_directory_stores_there_no_more(httpd):
    """Somebody has removed the marker, and another server was quicker to make
    a new one: two owners would write one file in turn."""
    first = httpd(CONF, start=False, modules=["status"])
    shim.preload(first, "hurry")
    first.start()
    helper = harness.wait_for(lambda: helper_of(first), "a helper")
    os.kill(first.pid, signal.SIGSTOP)
    os.unlink(marker(first))
    second = successor(httpd, first, CONF, modules=["status"])
    second.start()
    assert relation(second) == "owner"
    first.expect_log(ANOTHER)
    os.kill(first.pid, signal.SIGCONT)
    wait_relation(first, "heir")
    first.wait_gone([helper])
    put(second, b"second")
    wait_stored(second, b"second")
    put(first, b"first")
    first.graceful()
    assert text_of(first) == b"first"
    assert in_file(first) == b"second"
    second.stop()
    wait_stored(first, b"first")
