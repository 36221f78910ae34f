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
"""Slots that many processes share, some of which are killed while they do.

What threads can show is in unit/, what no run can show is in model/; here are
real children of a real httpd, with SIGKILL at random instants.
SLOTMEM_KILLS says how many altogether (1000).
"""

import concurrent.futures
import os

import pytest

import soak

KILLS = int(os.environ.get("SLOTMEM_KILLS", "1000"))
MECHANISMS = ["fcntl", "flock", "sysvsem", "posixsem", "pthread"]


def test_positive_control_a_slot_that_is_held_is_found(httpd):
    """Else the rounds below would find nothing, whatever happened."""
    server = httpd(soak.CONF, mpm="prefork", children=2)
    slotmem = server.slotmem()
    assert slotmem.grab("own64").ok
    with pytest.raises(soak.Trouble):
        soak.every_slot_can_be_grabbed(server)


@pytest.mark.parametrize("mpm_killed", ["prefork", "event"])
def test_kills_at_any_instant_cost_nobody_a_slot(httpd, mpm_killed):
    """One slot, two owners; a slot nobody can grab any more; half of a put; a
    call that waits for the dead: an administrator sees members that vanish."""
    server = httpd(soak.CONF, mpm=mpm_killed, children=soak.CHILDREN,
                   loglevel="notice")     # so that a child that crashes shows
    # A put that a kill cut in two is told, once, when somebody waits for it.
    server.allow_log(r"died while it wrote")
    server.allow_log("AH10392: children are killed successively")
    counts = soak.run(server, lambda now: now["kills"] < KILLS / 2)
    print(dict(counts))
    assert counts["kills"] >= KILLS / 2 and counts["done"] > 0


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_two_children_make_one_segment_under_every_mutex(httpd, mechanism):
    """The mutex decides who makes it; each mechanism must, after a kill too."""
    # A server without any segment makes no mutex.
    server = httpd(f"Mutex {mechanism} slotmem-shm\n"
                   "SlotmemTestCreate seg 64 10 0", mpm="prefork", children=4)
    for turn in range(3):
        pids = server.wait_children(4)[:4]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            made = list(pool.map(
                lambda pid: server.slotmem(pid).create(f"late{turn}", 64, 4,
                                                       "pregrab"), pids))
        assert all(answer.ok for answer in made)
        ids = [server.slotmem(pid).grab(f"late{turn}").id for pid in pids]
        assert sorted(ids) == [0, 1, 2, 3], "not one segment"
        server.kill_child(pids[0])
