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
"""A machine that is short of semaphores: the server starts all the same.

The module's mutex guards what is rare.  A start that fails for want of it is a
worse harm than any that it prevents, and the stock module needs none.
"""

import concurrent.futures
import os
import subprocess

import pytest

import httpd as harness
import shim
from rundir import put, text_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0,
                                reason="namespaces need root")

CONF = """
Mutex sysvsem default
SlotmemTestCreate seg 64 10 persist+pregrab
"""


def short_of_semaphores(httpd, sets, conf=CONF, **more):
    """A server in a namespace with so many System V semaphore sets."""
    server = httpd(conf, start=False, **more)
    server.wrapper += [
        "unshare", "-i", "sh", "-c",
        f"echo 250 32000 32 {sets} >/proc/sys/kernel/sem && "
        'exec "$@"', "sh"]
    return server


def semaphores(server):
    """How many sets there are in its namespace."""
    table = subprocess.run(
        ["nsenter", "-t", str(server.pid), "-i", "cat", "/proc/sysvipc/sem"],
        check=True, text=True, stdout=subprocess.PIPE).stdout
    return len(table.splitlines()) - 1


@pytest.fixture
def needed(httpd, mpm, stock_module):
    """How many the server needs with the stock module."""
    server = short_of_semaphores(httpd, 32, mpm=mpm,
                                 slotmem_module=stock_module)
    server.start()
    count = semaphores(server)
    server.close(check=False)
    return count


def test_positive_control_the_limit_holds(httpd):
    """One set less than the MPM itself needs is no start for anybody."""
    server = short_of_semaphores(httpd, 0, mpm="prefork", ports=2)
    server.allow_log("AH|accept mutex")
    server.start(expect_failure=True)
    server = short_of_semaphores(httpd, 32, mpm="prefork", ports=2).start()
    assert semaphores(server) >= 1


def test_start_with_as_many_as_the_stock_module_needs(httpd, mpm, needed):
    """AH00023, and no start."""
    server = short_of_semaphores(httpd, needed, mpm=mpm)
    server.allow_log(r"slotmem_shm: .*mutex|AH00023.*slotmem-shm")
    server.start()
    put(server, b"one")
    server.graceful()
    put(server, b"two")
    server.restart()
    assert text_of(server) == b"two"
    server.kill_all()
    server.start()
    assert text_of(server) == b"two"


def test_children_that_create_without_it(httpd, mpm, needed):
    """What it guards: two children that ask for one name at once.  Without
    it they get one segment, or an error that is told; never two."""
    server = short_of_semaphores(httpd, needed, mpm=mpm)
    server.allow_log(r"slotmem_shm: .*mutex|AH00023.*slotmem-shm")
    server.start()
    pids = server.wait_children(2)[:2]
    for turn in range(5):
        name = f"late{turn}"
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            made = list(pool.map(
                lambda pid: server.slotmem(pid).create(name, 64, 4, "pregrab"),
                pids))
        good = [pid for pid, answer in zip(pids, made) if answer.ok]
        ids = [server.slotmem(pid).grab(name).id for pid in good]
        assert sorted(ids) == list(range(len(good))), "not one segment"


def test_none_is_made_where_nobody_will_need_it(httpd, mpm, stock_module):
    """A server that loads the module because its packager did, and has no
    segment at all."""
    counts = []
    for module in stock_module, None:
        more = {"slotmem_module": module} if module else {}
        server = short_of_semaphores(httpd, 32, "Mutex sysvsem default",
                                     mpm=mpm, consumer=None, **more)
        counts.append(semaphores(server.start()))
    assert counts[0] == counts[1]


def test_semaphores_do_not_pile_up(httpd):
    """They outlive their processes: each restart, and each stop, must return
    what it took."""
    server = short_of_semaphores(httpd, 32).start()
    count = semaphores(server)
    for _ in range(3):
        server.graceful()
    server.restart()
    assert semaphores(server) == count


@pytest.mark.parametrize("mechanism", ["fcntl", "flock"])
def test_mutex_that_fails_refuses_a_child_and_no_more(httpd, mechanism):
    """A file system without locks, under the directory of the mutex."""
    server = httpd(f"Mutex {mechanism}:${{RUN}} slotmem-shm\n"
                   "SlotmemTestCreate seg 64 10 persist+pregrab",
                   mpm="prefork", start=False)
    faults = shim.Faults(server)
    server.start()
    child = server.slotmem(server.children()[0])
    faults.arm("1+", "ENOLCK", "any", "lock")
    server.expect_log("No locks available: AH02300: create late: 64/4 failed")
    assert not child.create("late", 64, 4).ok
    assert not child.attach("late").ok
    faults.disarm()
    assert child.create("late", 64, 4).ok


def test_children_that_cannot_open_the_mutex_go_on_without(httpd):
    """No descriptor is left for its file, say."""
    server = httpd("Mutex flock:${RUN} slotmem-shm\n"
                   "SlotmemTestCreate seg 64 10 persist+pregrab",
                   mpm="prefork", start=False)
    faults = shim.Faults(server)
    server.env["FAULTS_PREFIX"] = server.run_dir + "/slotmem-shm."
    faults.arm("1+", "EMFILE", "helper", "open")
    server.expect_log("slotmem_shm:crit.*cannot open the mutex")
    server.allow_log("AH02334.*cannot store")       # nor can the helper open
    server.start()
    faults.pass_on()
    child = server.slotmem(server.children()[0])
    assert child.create("late", 64, 4, "pregrab").ok
    assert child.grab("late").ok
    put(server, b"text")
    server.graceful()
    assert text_of(server) == b"text"


def test_segment_that_is_being_made_is_waited_for(httpd, needed):
    """Without the mutex the second child may come while the first one is at
    it: the object is there, and nothing in it yet."""
    server = short_of_semaphores(httpd, needed, mpm="prefork", shm_size="8m",
                                 children=2)
    server.allow_log(r"slotmem_shm: .*mutex|AH00023.*slotmem-shm")
    faults = shim.Faults(server)
    server.start()
    one, other = server.children()[:2]
    # The one is empty when its bytes are written, the other large already.
    for num in 4, 1000:
        name = f"late-{num}"
        faults.arm(1, "wait", "helper", "pwrite")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first = pool.submit(server.slotmem(one).create, name, 64, num,
                                "pregrab")
            harness.wait_for(faults.counted, "the first one at its write")
            faults.arm(0, "none", "helper", "open")
            second = pool.submit(server.slotmem(other).create, name, 64, num,
                                 "pregrab")
            harness.wait_for(lambda: len(faults.counted()) > 3 or second.done(),
                             "the second one to look again and again")
            faults.go()
            assert first.result().ok and second.result().ok
        ids = [server.slotmem(pid).grab(name).id for pid in (one, other)]
        assert ids == [0, 1], "not one segment"
        faults.disarm()
