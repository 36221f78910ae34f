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
"""A put that a kill cut in two: nobody is handed half of it, ever.

The child is killed inside the provider's own copy: the source of its put runs
into a page that it may not read, and it waits there for the end.
"""

import contextlib
import os
import threading

import pytest

import httpd as harness

SIZE = 64 * 1024
CONF = f"SlotmemTestCreate seg {SIZE} 4 persist+pregrab"
SMALL = "SlotmemTestCreate seg 16 4 persist+pregrab"
DIED = r"died while it wrote"


@contextlib.contextmanager
def half_put(server, slot, length, at, byte=0xbb, name="seg"):
    """A child waits in the middle of a put; yields its pid, and what lets
    it go on."""
    pid = server.children()[0]
    until = os.path.join(server.ctl_dir, f"half-{os.urandom(4).hex()}")

    def write():
        # Its end is what most tests are about.
        with contextlib.suppress(harness.HttpdError):
            server.slotmem(pid).call("halfput", h=name, i=slot, len=length,
                                     at=at, byte=byte, until=until)

    writer = threading.Thread(target=write)
    writer.start()

    def go_on():
        with open(until, "w"):
            pass
        writer.join()

    try:
        harness.wait_for(lambda: os.path.exists(until + ".reached"),
                         "a put to reach its middle")
        yield pid, go_on
    finally:
        go_on()


def tear(server, slot, length, at, **more):
    """Kills a child in the middle of a put."""
    server.allow_log(DIED)
    with half_put(server, slot, length, at, **more) as (pid, _):
        server.kill_child(pid)
    server.wait_children()


def fill(server, slot, byte, length=SIZE, name="seg"):
    slotmem = server.slotmem()
    assert slotmem.fgrab(name, slot).ok
    assert slotmem.call("put", h=name, i=slot, len=length, byte=byte).ok


def get(server, slot, length=SIZE, name="seg"):
    return server.slotmem().get(name, slot, length)


def test_positive_control_a_put_that_goes_on(httpd):
    """The wait itself harms nothing; it was in the middle, for half of it is
    in memory; and readers wait, or give up, but are not handed that."""
    server = httpd(CONF)
    fill(server, 1, 0xaa)
    with half_put(server, 1, SIZE, SIZE // 2) as (_, go_on):
        content = server.slotmem().read("seg", 1, SIZE)
        assert set(content) == {0xaa, 0xbb}, "it had not begun"
        answer = get(server, 1)
        assert answer.rv != "APR_SUCCESS" or set(answer.bytes) != {0xaa, 0xbb}
        go_on()
    assert get(server, 1).bytes == b"\xbb" * SIZE


def test_torn_put_is_told_until_a_whole_one_heals_it(httpd, mpm):
    server = httpd(CONF, mpm=mpm)
    fill(server, 1, 0xaa)
    tear(server, 1, SIZE, SIZE // 2)
    answer = get(server, 1)
    assert not answer.ok, "half of a put was handed out"
    assert get(server, 0).ok or get(server, 0).rv == "APR_NOTFOUND"
    fill(server, 1, 0xcc)
    assert get(server, 1).bytes == b"\xcc" * SIZE


def test_torn_put_over_several_slots(httpd):
    """Each slot that it was to write is suspect; a get over several tells if
    one of them is."""
    server = httpd(CONF)
    for slot in range(4):
        fill(server, slot, 0xaa)
    tear(server, 1, 2 * SIZE, SIZE + SIZE // 2)
    for slot, length in (1, SIZE), (2, SIZE), (0, 2 * SIZE), (2, 2 * SIZE):
        assert not get(server, slot, length).ok, (slot, length)
    for slot in 0, 3:
        assert get(server, slot).bytes == b"\xaa" * SIZE
    fill(server, 1, 0xcc, 2 * SIZE)
    assert get(server, 1, 2 * SIZE).bytes == b"\xcc" * 2 * SIZE
    assert get(server, 0, 4 * SIZE).ok


@pytest.mark.parametrize("step", ["graceful", "restart", "kill", "twice"])
def test_mark_goes_along(httpd, mpm, step):
    """get said EINCOMPLETE; after a graceful restart it handed out half."""
    server = httpd(CONF, mpm=mpm)
    fill(server, 1, 0xaa)
    fill(server, 2, 0xaa)
    tear(server, 1, SIZE, SIZE // 2)
    before = get(server, 1).rv
    assert before != "APR_SUCCESS"
    if step == "kill":
        server.kill_all()
        server.start()
    else:
        for _ in range(1 + (step == "twice")):
            server.restart() if step == "restart" else server.graceful()
    assert get(server, 1).rv == before
    assert get(server, 2).bytes == b"\xaa" * SIZE
    fill(server, 1, 0xcc)
    assert get(server, 1).ok
    server.graceful()
    assert get(server, 1).bytes == b"\xcc" * SIZE


def test_kill_of_everybody_in_the_middle_of_a_put(httpd, mpm):
    """No child that lives on finds it; the next run must."""
    server = httpd(CONF, mpm=mpm)
    fill(server, 1, 0xaa)
    server.allow_log(DIED)
    with half_put(server, 1, SIZE, SIZE // 2):
        server.kill_all()
    server.start()
    answer = get(server, 1)
    assert not answer.ok, f"handed out: {set(answer.bytes)}"
    fill(server, 1, 0xcc)
    assert get(server, 1).ok


def test_put_under_way_over_a_graceful_restart(httpd, mpm):
    """An old child in the middle of its put, when the state is copied: the
    new generation has the whole of one, or is told.  It lives: what it
    writes later is the old memory's."""
    server = httpd(CONF, mpm=mpm)
    fill(server, 1, 0xaa)
    server.allow_log(DIED)
    with half_put(server, 1, SIZE, SIZE // 2) as (pid, go_on):
        server.graceful(wait_old=False)
        answer = get(server, 1)
        assert not answer.ok or len(set(answer.bytes)) == 1, \
            "half of a put was handed out"
        go_on()
    server.wait_gone([pid])
    fill(server, 1, 0xcc)
    assert get(server, 1).bytes == b"\xcc" * SIZE


def test_put_under_way_over_a_restart_that_moves_the_module(httpd, mpm):
    """A restart loads the module anew, and elsewhere if another comes before
    it.  While the copy waited for that put, it called what lay where the
    module's functions had been: the parent died (arm64), or memory was given up
    for the stored file, which lacks what was put since."""
    server = httpd(CONF, mpm=mpm)
    fill(server, 1, 0xaa)
    server.allow_log(DIED)
    with half_put(server, 1, SIZE, SIZE // 2) as (pid, go_on):
        server.modules += ["rewrite", "proxy", "headers"]
        server.write_config()
        server.graceful(wait_old=False)
        assert server.log_lines("seg goes on with the memory of the former")
        go_on()
    server.wait_gone([pid])
    fill(server, 1, 0xcc)
    assert get(server, 1).bytes == b"\xcc" * SIZE


def test_slot_is_healed_by_what_reaches_as_far(httpd, mpm):
    """A module that always puts 8 of 16 bytes got EINCOMPLETE for good."""
    server = httpd(SMALL, mpm=mpm)
    fill(server, 0, 0xaa, 16)
    tear(server, 0, 8, 4)
    assert not get(server, 0, 8).ok
    fill(server, 0, 0xcc, 8)
    assert get(server, 0, 8).bytes == b"\xcc" * 8
    assert get(server, 0, 16).bytes == b"\xcc" * 8 + b"\xaa" * 8
    server.graceful()
    assert get(server, 0, 16).ok


def test_slot_is_not_healed_by_less(httpd):
    """16 bytes were torn: the upper half is still neither old nor new."""
    server = httpd(SMALL)
    fill(server, 0, 0xaa, 16)
    tear(server, 0, 16, 4)
    fill(server, 0, 0xcc, 8)
    assert not get(server, 0, 16).ok
    fill(server, 0, 0xdd, 16)
    assert get(server, 0, 16).bytes == b"\xdd" * 16


def test_mark_of_8_bytes_goes_along(httpd):
    """How far it reached goes along, too."""
    server = httpd(SMALL)
    fill(server, 0, 0xaa, 16)
    tear(server, 0, 8, 4)
    server.graceful()
    assert not get(server, 0, 8).ok
    fill(server, 0, 0xcc, 8)
    assert get(server, 0, 16).ok
