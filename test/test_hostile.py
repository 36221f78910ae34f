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
"""A child that an attacker holds, against its siblings and the root parent.

It can write every word of every segment, give its pages back, make objects in
/dev/shm and files where its user may.  All calls stay in bounds (guard pages
lie around each mapping, and AddressSanitizer watches the module), none hangs,
the parent stores, restarts and stops in good order, and no other segment is
touched.
"""

import concurrent.futures
import hashlib
import os
import pwd
import random
import sys
import threading
import time

import pytest

import hostile
import httpd as harness
import layout
import sharedmem
import storedfile

NUM = 5000          # two levels of the table, every stripe
SMALL = 70          # two levels, and few enough words to try each
CONF = (f"SlotmemTestCreate seg 64 {NUM} persist+pregrab\n"
        f"SlotmemTestCreate plain 24 {SMALL} persist\n"
        "SlotmemTestCreate one 8 1 persist+pregrab+clearinuse\n")


@pytest.fixture(scope="module")
def watched():
    """Options for a server that AddressSanitizer watches, with guards."""
    module, env = hostile.address_sanitizer()
    return {"slotmem_module": module, "env": env, "mpm": "event"}


@pytest.fixture(scope="module")
def guarded():
    """Options for the module as it ships, with guards."""
    return {"env": {"LD_PRELOAD": hostile.guard_pages()}, "mpm": "prefork"}


def begin(factory, options, conf=CONF, **more):
    server = factory(hostile.attacker_conf() + hostile.canary_conf() + conf,
                     **{**options, **more})
    server.allow_log(hostile.EXPECTED_LOG)
    if server.process is not None:
        hostile.canary_set(server)
    return server


def attack(server):
    """(attacker, pid of a sibling)"""
    first, second = server.children(server.generation)[:2]
    return hostile.Attacker(server, first), second


def image(path):
    """Slots and table of a stored file, which must be whole."""
    data, kinds = storedfile.split_trailer(storedfile.read(path))
    size, num, _ = harness.file_descriptor().unpack(data[-16:])
    assert len(data) == 8 + num * (size + 1) + 16 + 16
    assert hashlib.md5(data[:-32]).digest() == data[-32:-16]
    table = data[8 + num * size:-32]
    assert set(table) <= {0, 1}
    assert kinds is None or (len(kinds) == num and set(kinds) <= {0, 1, 2})
    return data[8:8 + num * size], table


# ---------------------------------------------------------------------------
# The plumbing, so that the rest fails for the right reason
# ---------------------------------------------------------------------------

def test_guard_pages_stop_who_runs_past_a_segment(httpd, guarded):
    """A positive control: reading one byte behind the mapping is the end."""
    server = begin(httpd, guarded)
    attacker, other = attack(server)
    where = attacker.range("seg")
    server.expect_log("AH0005[012].*exit signal Segmentation fault")
    for address in (where.end, where.start - 1):
        with pytest.raises((harness.HttpdError, ConnectionError)):
            attacker.get(address, 1)
        server.wait_gone([attacker.pid])
        server.wait_children(without=[attacker.pid])
        attacker = hostile.Attacker(server, server.children()[0])


@sharedmem.needs_root
def test_attacker_has_the_child_s_rights_and_no_more(httpd, guarded):
    """The parent's objects are not its to open, cut or replace."""
    server = begin(httpd, guarded)
    attacker, _ = attack(server)
    path = server.shm_path("seg")
    where = attacker.range("seg")
    for order in (f"shorten {path} 0", f"plant {path} {where.start:x} 1000",
                  f"plant {server.run_dir}/x {where.start:x} 1000"):
        with pytest.raises(harness.HttpdError):
            attacker.order(order)


# ---------------------------------------------------------------------------
# Every call
# ---------------------------------------------------------------------------

FILLS = ("zero", "ones", "random", "more", "less", "dead")


def overwrite(attacker, kind, where, source):
    if kind == "foreign":
        attacker.copy(where.start, source.start,
                      min(where.length, source.length))
    else:
        attacker.fill(kind, where.start, where.length)


def test_every_call_on_a_segment_that_was_overwritten_whole(httpd, watched):
    server = begin(httpd, watched)
    attacker, other = attack(server)
    seg, plain, one = [attacker.range(h) for h in ("seg", "plain", "one")]
    for kind in FILLS + ("foreign",):
        for where, handle, num, source in ((seg, "seg", NUM, plain),
                                           (plain, "plain", SMALL, seg),
                                           (one, "one", 1, seg)):
            overwrite(attacker, kind, where, source)
            hostile.call_all(server, other, handle, num)
    hostile.canary_check(server)
    for how in ("graceful", "stop"):
        hostile.lifecycle(server, how)
        hostile.canary_check(server)


def test_locks_that_a_live_process_seems_to_hold_cost_a_second_a_call(
        httpd, watched):
    """get and put end in APR_TIMEUP; nothing else is touched by locks."""
    server = begin(httpd, watched)
    attacker, other = attack(server)
    where = attacker.range("seg")
    attacker.fill("held", where.start, where.control)
    op = harness.op_line
    answers = hostile.call_all(server, other, "seg", NUM, lines=[
        op("info", h="seg"), op("fgrab", h="seg", i=5),
        op("put", h="seg", i=5, data=b"x"), op("get", h="seg", i=5, len=1),
        op("get", h="seg", i=5, len=64 * 20), op("release", h="seg", i=5),
        op("dptr", h="seg", i=5)])
    assert [a.rv for a in answers[2:5]] == ["APR_TIMEUP"] * 3
    assert answers[5].ok and answers[6].ok
    server.graceful()
    assert server.slotmem().info("seg").num_slots == NUM
    hostile.canary_check(server)


WORDS = (0, -1, 1, 4, 1 << 63 | 1)


def values(old, rng):
    return WORDS + (old + 1, old - 1, rng.getrandbits(64), ~old)


def some(values, at, count=3):
    """Some of the values, others for the next word."""
    first = at * count % len(values)
    return (values + values)[first:first + count]


def test_every_call_with_each_word_before_the_slots_changed(httpd, watched):
    """One word at a time, in a segment small enough to try all of them;
    hostile.py tries each word with anything at all, for longer."""
    server = begin(httpd, watched)
    attacker, other = attack(server)
    where = attacker.range("plain")
    before = attacker.get(where.start, where.control)
    rng = random.Random(6)
    op = harness.op_line
    for at in range(0, where.control, 8):
        old = int.from_bytes(before[at:at + 8], sys.byteorder)
        slot = at // 8 % SMALL
        for value in some(values(old, rng), at // 8):
            attacker.word(where.start + at, value)
            # The mend of a lock that seems to be a dead process's takes 5 ms.
            server.slotmem(other).run(
                op("info", h="plain"), op("grab", h="plain"),
                op("put", h="plain", i=slot, data=b"1" * 24),
                op("get", h="plain", i=SMALL - 1, len=24),
                op("release", h="plain", i=slot),
                limit=4 * hostile.PATIENCE)
        attacker.put(where.start + at, before[at:at + 8])
    hostile.call_all(server, other, "plain", SMALL)
    hostile.canary_check(server)


# ---------------------------------------------------------------------------
# The parent: restarts, stop, take-over
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("how", hostile.LIFECYCLES)
def test_parent_goes_on_after_whole_segments_were_overwritten(
        httpd, guarded, how):
    server = begin(httpd, guarded)
    for kind in ("ones", "random", "less", "foreign"):
        attacker, other = attack(server)
        seg, plain, one = [attacker.range(h) for h in ("seg", "plain", "one")]
        overwrite(attacker, kind, seg, plain)
        overwrite(attacker, kind, plain, seg)
        overwrite(attacker, kind, one, seg)
        hostile.lifecycle(server, how)
        hostile.canary_check(server)
        for handle, num in (("seg", NUM), ("plain", SMALL), ("one", 1)):
            assert server.slotmem().info(handle).num_slots == num
    server.stop()
    for name in ("seg", "plain", "one", "canary"):
        image(server.persist_path(name))


def changes(server):
    """(word, value): each value for APR's word, the header and the top of the
    table, one for each of the other words before the slots."""
    attacker, _ = attack(server)
    words = attacker.range("probe").control // 8
    return [(word, value) for word in range(words)
            for value in (WORDS if word < 32 else some(WORDS, word, 1))]


def test_parent_goes_on_after_each_word_was_changed(httpd, watched):
    """As many segments as there are changes to try; one word of each is
    changed; then all that a server goes through.  A 4 in APR's size word
    made take-over map one page of a larger segment, and the root parent ended
    with SIGSEGV at every start."""
    probe = begin(httpd, watched,
                  f"SlotmemTestCreate probe 24 {SMALL} persist\n")
    tried = changes(probe)
    probe.stop()
    count = len(tried)
    server = begin(httpd, watched,
                   "".join(f"SlotmemTestCreate w{i} 24 {SMALL} persist\n"
                           for i in range(count)), mpm="prefork",
                   loglevel="info")
    for how in ("kill",) + hostile.LIFECYCLES:
        attacker, _ = attack(server)
        starts = mapped_at(server, attacker.pid)
        for i, (word, value) in enumerate(tried):
            attacker.word(starts[server.shm_path(f"w{i}")] + word * 8, value)
        hostile.lifecycle(server, how)
        hostile.canary_check(server)
        sm = server.slotmem()
        for i in range(0, count, 97):
            assert sm.info(f"w{i}").num_slots == SMALL


def mapped_at(server, pid):
    """{shared memory object: where a process has it mapped}"""
    found = {}
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            for name in sharedmem.mapped(line):
                found[name] = int(line.split("-")[0], 16)
    return found


# ---------------------------------------------------------------------------
# While it happens
# ---------------------------------------------------------------------------

def storm(attacker, handles=("seg", "plain", "one"), kind="random", seed=7):
    for handle in handles:
        where = attacker.range(handle)
        attacker.storm(kind, where.start, where.control, seed)
    where = attacker.range(handles[0])
    attacker.storm("one", where.start, where.length, seed)


def test_every_call_during_a_storm_and_a_checkpoint(httpd, watched):
    """All words change as fast as a child can change them, until a checkpoint
    has been made of it, and while a sibling calls."""
    server = begin(httpd, watched, loglevel="info slotmem_shm:trace1")
    attacker, other = attack(server)
    path = server.persist_path("seg")
    harness.wait_for(lambda: os.path.exists(path), "a file")
    storm(attacker, kind="flip")
    before = storedfile.identity(path)
    harness.wait_for(lambda: storedfile.identity(path) != before,
                     "a checkpoint")
    assert attacker.calm() > 0
    assert not server.log_lines(hostile.PUT_THERE), \
        "the helper took its own file for somebody's"
    for kind in ("flip", "random", "bits", "more", "dead"):
        storm(attacker, kind=kind)
        for handle, num in (("seg", NUM), ("plain", SMALL), ("one", 1)):
            hostile.call_all(server, other, handle, num)
        assert attacker.calm() > 0
    hostile.canary_check(server)
    for name in ("seg", "plain", "one", "canary"):
        image(server.persist_path(name))


@pytest.mark.parametrize("how", hostile.LIFECYCLES)
def test_parent_goes_on_during_a_storm(httpd, guarded, how):
    """A graceful restart with the attacker at work in an old child: the file
    stored meanwhile is whole, and restores."""
    server = begin(httpd, guarded, mpm="event")
    for kind in ("flip", "random"):
        if how == "graceful":
            with server.held_request() as pid:
                attacker = hostile.Attacker(server, pid)
                storm(attacker, kind=kind)
                old = server.graceful(wait_old=False)
                hostile.canary_check(server)
                image(server.persist_path("seg"))
                assert attacker.calm() > 0
            server.wait_gone(old)
        else:
            attacker, _ = attack(server)
            storm(attacker, kind=kind)
            hostile.lifecycle(server, how)
        hostile.canary_check(server)
        assert server.slotmem().info("seg").num_slots == NUM


# ---------------------------------------------------------------------------
# Memory that goes away
# ---------------------------------------------------------------------------

GONE = (r"AH02334: .*cannot store \S+-(seg|plain|one)\.shm\.persist: .*"
        r"memory for .* failed|storing works again")


@pytest.mark.parametrize("how", hostile.LIFECYCLES)
def test_pages_given_back_while_dev_shm_is_full_do_not_kill_the_parent(
        httpd, guarded, how):
    """A child gives the pages of its segments back and takes what /dev/shm
    has: to read them is a SIGBUS, which was the end of the root parent."""
    server = begin(httpd, guarded, shm_size="1m")
    attacker, _ = attack(server)
    for handle in ("seg", "plain", "one"):
        attacker.punch(attacker.range(handle))
    assert attacker.hoard() > 0
    server.allow_log("AH02611: .*The segment is made without a name")
    (server.allow_log if how == "kill" else server.expect_log)(GONE)
    hostile.lifecycle(server, how)
    os.unlink(os.path.join(server.shm_dir, "hoard"))
    hostile.canary_check(server)
    server.graceful()
    assert server.slotmem().info("seg").num_slots == NUM
    hostile.canary_check(server)


@sharedmem.only_posix("nobody can shorten a System V segment")
def test_owner_of_an_object_cuts_it_short(httpd, guarded):
    """Without root, parent and children are one user, and any child may cut
    the objects: the parent still stops in good order."""
    user = harness.unprivileged_user()
    server = httpd(hostile.attacker_conf() + CONF, user="", start=False,
                   wrapper=["setpriv", f"--reuid={user}", f"--regid={user}",
                            "--clear-groups"], **guarded)
    os.system(f"chown -R {user}: {server.root}")
    server.start()
    attacker, _ = attack(server)
    attacker.shorten(server.shm_path("seg"), 4096)
    attacker.shorten(server.shm_path("plain"), 0)
    server.expect_log(GONE)
    server.graceful()
    assert server.slotmem().info("seg").num_slots == NUM


# ---------------------------------------------------------------------------
# Objects that an attacker makes
# ---------------------------------------------------------------------------

@sharedmem.only_posix("a key's number is not known before there is a file")
def test_planted_segments_are_in_bounds_for_a_sibling(httpd, watched):
    """Objects under names that a child will ask for, with a header that fits
    but for one word, each word in turn; and APR's size word before it.  What
    is believed must be there to its last slot."""
    server = begin(httpd, watched)
    attacker, other = attack(server)
    where = attacker.range("plain")
    size = os.path.getsize(server.shm_path("plain"))
    rng = random.Random(6)
    original = attacker.get(where.start, layout.header_end())
    planted = []
    try:
        count = 0
        for at in range(0, len(original), 8):
            old = int.from_bytes(original[at:at + 8], sys.byteorder)
            for value in values(old, rng):
                attacker.word(where.start + at, value)
                path = server.shm_path(f"late{count}")
                attacker.plant(path, where.start, size)
                planted.append(path)
                count += 1
            attacker.put(where.start + at, original[at:at + 8])
        server.allow_log("AH0230[02]: |AH02611: ")
        sm = server.slotmem(other)
        op = harness.op_line
        believed = 0
        for i in range(count):
            # It may be attached, or made anew, or refused.
            if sm.attach(f"late{i}", h="late").ok:
                believed += 1
                num = sm.info("late").num_slots
                sm.run(op("grab", h="late"), op("release", h="late", i=0),
                       op("get", h="late", i=max(num, 1) - 1, len=1),
                       op("doall", h="late", stop=SMALL))
            sm.create(f"late{i}", 24, SMALL, h="late")
        # The words that are for information only may hold anything.
        assert 0 < believed < count
    finally:
        for path in planted:
            os.unlink(path)
    hostile.canary_check(server)


# Slot size and number: of what is smaller than the planted object, of what is
# larger, and of what is smaller once a multiplication or a sum has wrapped.
FORGED = [(8, SMALL), (24, SMALL - 6), (1, 1), (0, SMALL), (24, 0),
          (25, SMALL), (4096, SMALL), (24, 1 << 20), (24, (1 << 32) - 1),
          (1 << 40, 1), (1 << 61, 8), (1 << 32, 1 << 31),
          ((1 << 64) - 1, 1), ((1 << 64) - 64, 2), (24, (1 << 32) + SMALL)]


@sharedmem.only_posix("a key's number is not known before there is a file")
def test_planted_segments_that_lie_in_all_words_at_once(httpd, watched):
    """The header agrees with itself and with APR's size: only what the kernel
    says of the object tells that there is not as much as that, or how much
    more."""
    server = begin(httpd, watched)
    attacker, other = attack(server)
    where = attacker.range("plain")
    size = os.path.getsize(server.shm_path("plain"))
    original = attacker.get(where.start, layout.header_end())
    claimed, whole = (int.from_bytes(original[at:at + 8], sys.byteorder)
                      for at in (0, layout.field("total_size")))
    server.allow_log("AH0230[02]: |AH02611: |was made with")
    sm, op = server.slotmem(other), harness.op_line
    planted, attached = [], []
    try:
        for number, (slot, num) in enumerate(FORGED):
            offset = layout.slots_offset(num & 0xffffffff)
            total = layout.part_end(offset + slot * num + layout.SLACK)
            for at, value in ((0, claimed - whole + total),
                              (layout.field("item_size"), slot),
                              (layout.field("item_num"), num),
                              (layout.field("slots_offset"), offset),
                              (layout.field("total_size"), total)):
                attacker.word(where.start + at, value)
            name = f"lie{number}"
            planted.append(server.shm_path(name))
            attacker.plant(planted[-1], where.start,
                           total + size - whole if total < whole else size)
            attacker.put(where.start, original)
            if sm.attach(name, h="lie").ok:
                attached.append((slot, num))
                sm.run(op("grab", h="lie"), op("release", h="lie", i=0),
                       op("get", h="lie", i=max(num, 1) - 1, len=min(slot, 1)),
                       op("doall", h="lie", stop=SMALL))
            sm.create(name, 24, SMALL, h="lie")
    finally:
        for path in planted:
            os.unlink(path)
    hostile.canary_check(server)
    # What is all there is what its maker said it is: a child's own.
    assert attached == [one for one in FORGED if one[0] * one[1] < 24 * SMALL]


@sharedmem.only_posix("a key's number is not known before there is a file")
def test_parent_makes_its_own_where_an_attacker_was_first(httpd, guarded):
    """The next generation's names can be foretold, and the run's identity is
    in every header: the parent must neither use nor believe such an object.

    The parent is held in post_config just before it makes its segments: what
    lay there earlier would have been swept away, and show nothing.
    """
    server = begin(httpd, guarded, start=False,
                   conf="SlotmemTestPostConfig hold until=${ROOT}/htdocs/go\n"
                        + CONF)
    gate = os.path.join(server.root, "htdocs", "go")
    with open(gate, "w"):
        pass
    server.start()
    hostile.canary_set(server)
    names = {name: server.shm_path(name, server.generation + 1)
             for name in ("seg", "plain", "early")}
    server.at_stage("post_config", harness.op_line("attach", name="early"))
    try:
        with server.held_request() as pid, \
                concurrent.futures.ThreadPoolExecutor(1) as pool:
            attacker = hostile.Attacker(server, pid)
            where = attacker.range("seg")
            os.unlink(gate)
            os.unlink(gate + ".reached")
            restart = pool.submit(server.graceful, wait_old=False)
            try:
                harness.wait_for(lambda: os.path.exists(gate + ".reached"),
                                 "the parent to be about to make its segments")
                for path in names.values():
                    attacker.plant(path, where.start, where.length)
            finally:
                with open(gate, "w"):
                    pass
                old = restart.result()
        server.wait_gone(old)
        assert not server.stage("post_config")[-1].ok
        for name in ("seg", "plain"):
            assert os.stat(names[name]).st_uid == 0
        assert server.slotmem().info("seg").num_slots == NUM
        assert server.slotmem().info("plain").num_slots == SMALL
        hostile.canary_check(server)
    finally:
        if os.path.exists(names["early"]):
            os.unlink(names["early"])


@sharedmem.needs_root
def test_parent_attaches_nothing_that_a_child_has_made(httpd):
    """Without root, parent and children are one user, and a child of the last
    generation knows the run's identity: only the registry tells them apart."""
    server = httpd("SlotmemTestPostConfig hold until=${ROOT}/htdocs/go\n" + CONF,
                   mpm="event", run_as=harness.unprivileged_user(),
                   start=False)
    gate = os.path.join(server.root, "htdocs", "go")
    name = os.path.join(server.root, "planted")
    with open(gate, "w"):
        pass
    server.start()
    server.at_stage("post_config", harness.op_line("attach", name=name))
    with server.held_request() as pid, \
            concurrent.futures.ThreadPoolExecutor(1) as pool:
        child = server.slotmem(pid)
        child.ping()
        os.unlink(gate)
        os.unlink(gate + ".reached")
        restart = pool.submit(server.graceful, wait_old=False)
        try:
            harness.wait_for(lambda: os.path.exists(gate + ".reached"),
                             "the parent to be about to make its segments")
            assert child.create(name, 64, 10).ok
        finally:
            with open(gate, "w"):
                pass
            old = restart.result()
    server.wait_gone(old)
    assert not server.stage("post_config")[-1].ok
    if sharedmem.kind() == "sysv":
        # Its memory goes with the server; where the key file of an absolute
        # name is, only its maker knows.
        server.stop()
        os.unlink(name)


class Shortener(threading.Thread):
    """Cuts a file and makes it longer again, over and over: long enough for
    it to be found whole, short enough to be cut while it is read."""

    def __init__(self, path, size):
        super().__init__()
        self.path, self.size, self.ended = path, size, False

    def run(self):
        with open(self.path, "r+b") as file:
            while not self.ended:
                file.truncate(self.size)
                time.sleep(random.random() / 500)
                file.truncate(4096)
                time.sleep(random.random() / 500)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended = True
        self.join()


@sharedmem.only_posix("nobody can shorten a System V segment")
def test_take_over_of_an_object_that_is_cut_meanwhile(httpd, guarded):
    """Whoever owns an object under a name that the marker lists may cut it
    while the root parent of the next start reads it."""
    server = begin(httpd, guarded)
    path = server.shm_path("seg")
    with open(path, "rb") as file:
        data = file.read()
    server.allow_log("AH00098: pid file .* overwritten")
    server.allow_log(GONE)
    user = pwd.getpwnam(server.user).pw_uid
    for _ in range(6):
        server.kill_all()
        if os.path.exists(path):
            os.unlink(path)
        with open(path, "wb") as file:
            file.write(data)
        os.chown(path, user, user)
        with Shortener(path, len(data)):
            server.start()
        assert server.slotmem().info("seg").num_slots == NUM
        hostile.canary_check(server)
        with open(server.shm_path("seg"), "rb") as file:
            data = file.read()
