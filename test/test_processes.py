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
"""What the module does to processes, and what it believes of them.

A number of a process may be somebody else's by now; what belongs to the whole
process is not for one thread to change; a process that another one forked is
not that one.
"""

import contextlib
import ctypes
import os
import signal
import struct

import pytest

import hostile
import httpd as harness
import sharedmem
import shim
from rundir import helper_of

needs_root = pytest.mark.skipif(os.geteuid() != 0,
                                reason="numbers of processes are root's to choose")


# ---------------------------------------------------------------------------
# The checkpoint helper, whose end the MPM takes for that of a child
# ---------------------------------------------------------------------------

class CloneArgs(ctypes.Structure):
    """struct clone_args of Linux, as of 5.5."""
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack",
        "stack_size", "tls", "set_tid", "set_tid_size")]


SYS_CLONE3 = 435


@contextlib.contextmanager
def bystander(pid):
    """A process of that number, which is free, that has no part in this."""
    chosen = (ctypes.c_int * 1)(pid)
    args = CloneArgs(exit_signal=signal.SIGCHLD,
                     set_tid=ctypes.addressof(chosen), set_tid_size=1)
    libc = ctypes.CDLL(None, use_errno=True)
    made = libc.syscall(SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args))
    if made == 0:
        while True:
            signal.pause()
    assert made == pid, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def caught_helper(server, not_this=None):
    """The helper, halted at once, for it may be gone in a moment."""
    def catch():
        pid = helper_of(server)
        if pid is None or pid == not_this:
            return None
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return None
        return pid if harness.is_alive(pid) else None

    return harness.wait_for(catch, "a checkpoint helper", interval=0.002)


# 64 MiB, so that a helper is at work for long enough to be seen.
LARGE = "SlotmemTestCreate large 65536 1024 persist+pregrab\n"


def stolen_helper(factory, mpm, **more):
    """(server, number of its helper), which has ended as a child of httpd's
    would, says the scoreboard."""
    server = factory(hostile.attacker_conf() + LARGE, mpm=mpm, start=False,
                     modules=["status"], **more)
    server.start()
    assert server.slotmem().put("large", 0, b"x").rv
    helper = caught_helper(server)
    attacker = hostile.Attacker(server, server.children()[0])
    attacker.claim(helper)
    server.expect_log(rf"slotmem_shm: checkpoint process {helper} ended .*"
                      "nobody asked")
    server.allow_log(rf"AH0005[12].*child (process|pid) {helper} exit signal|"
                     "AH00488: |AH00291: |AH00166: ")   # it was the attacker's
    # As the kernel does when memory is short.
    os.kill(helper, signal.SIGKILL)
    harness.wait_for(lambda: harness.process_stat(helper) is None,
                     "the MPM to reap the helper")
    server.kill_child(attacker.pid)
    server.wait_children(without=[attacker.pid])
    return server, helper


@needs_root
@pytest.mark.parametrize("how", ["graceful", "restart", "stop"])
def test_nobody_else_is_signalled_in_the_helper_s_stead(httpd, mpm, how):
    """A child writes the helper's number into its place in the scoreboard;
    the MPM then reaps the helper as its own, and tells nobody.  The number is
    given to somebody else, whom the root parent killed (as CVE-2007-3304)."""
    server, number = stolen_helper(httpd, mpm)
    with bystander(number):
        getattr(server, how)()
        assert harness.is_alive(number)


@needs_root
def test_checkpoints_go_on_after_the_helper_s_end_was_not_told(httpd, mpm):
    """Else a child could end them for good by that, and the next power cut
    would cost all since then."""
    server, number = stolen_helper(httpd, mpm)
    assert server.slotmem().fgrab("large", 7).ok
    assert server.slotmem().put("large", 7, b"after").ok
    path = server.persist_path("large")

    def stored():
        try:
            with open(path, "rb") as file:
                file.seek(8 + 7 * 65536)
                return file.read(5) == b"after"
        except FileNotFoundError:
            return False

    harness.wait_for(stored, "a checkpoint by another helper", limit=60)
    assert helper_of(server) != number


@needs_root
def test_only_its_own_children_are_signalled_by_the_parent(httpd, mpm):
    """The same as seen by the parent's calls: no number that is not its
    child's, whoever bears it."""
    def watched(conf, **options):
        server = httpd(conf, **options)
        shim.watch(server)
        return server

    server, _ = stolen_helper(watched, mpm)
    server.graceful()
    server.stop()
    assert shim.trespasses(server, "kill") == []


@needs_root
def test_without_proc_a_number_alone_has_to_do(httpd):
    """A hardened system may hide it: when a process began is not known, and
    nobody who lives is taken for dead."""
    server = httpd("SlotmemTestCreate seg 4096 10 persist+pregrab",
                   mpm="prefork", start=False)
    faults = shim.Faults(server)
    server.env["FAULTS_PREFIX"] = "/proc/"
    faults.arm("1+", "EACCES", "any", "open")
    server.start()
    assert faults.counted()
    one, other = server.children()[:2]
    assert server.slotmem(one).fgrab("seg", 3).ok
    for n in range(10):
        assert server.slotmem(one).put("seg", 3, b"%d" % n * 4096).ok
        assert server.slotmem(other).get("seg", 3, 4096).bytes \
            == b"%d" % n * 4096
    server.kill_child(one)
    assert server.slotmem(other).put("seg", 3, b"x" * 4096).ok
    server.kill_all()
    server.start()
    assert server.slotmem().get("seg", 3, 4096).bytes == b"x" * 4096


# ---------------------------------------------------------------------------
# The mask of the whole process
# ---------------------------------------------------------------------------

def test_files_of_other_threads_keep_their_mode_while_a_child_creates(
        httpd, mpm):
    """A DAV MKCOL in another thread made a directory of mode 0600, into which
    its own server cannot go."""
    server = httpd(hostile.attacker_conf(), mpm=mpm)
    pid = server.children()[0]
    attacker = hostile.Attacker(server, pid)
    sm = server.slotmem(pid)
    attacker.make(server.ctl_dir)
    for i in range(50):
        assert sm.create(f"late{i}", 4096, 256).ok
    made, odd = attacker.made()
    assert made > 0
    assert odd == 0
    # And the objects are private nevertheless.
    for i in range(50):
        assert sharedmem.modes(server.shm_path(f"late{i}")) == {0o600}


def test_objects_are_private_whatever_the_mask(httpd, mpm):
    """Secrets of AJP members lie in them.  APR before 1.7.5 asks for 0644."""
    server = httpd("SlotmemTestCreate seg 64 10 persist\n", mpm=mpm,
                   wrapper=["sh", "-c", 'umask 0; exec "$@"', "sh"])
    assert server.slotmem(server.children()[0]).create("late", 64, 10).ok
    for name in "seg", "late":
        assert sharedmem.modes(server.shm_path(name)) == {0o600}
    server.graceful()
    assert os.stat(server.persist_path("seg")).st_mode & 0o777 == 0o600


# ---------------------------------------------------------------------------
# A process that a child forked, and that writes
# ---------------------------------------------------------------------------

WIDE = 1 << 20      # bytes: a put of them is most of what the process does


@contextlib.contextmanager
def grandchild(factory, mpm):
    """(server, number of a process that puts slot 0 without end, number of
    the child that forked it, the provider in another child)"""
    source = os.path.join(harness.TOP, "test", "attacker",
                          "mod_slotmem_grandchild.c")
    server = factory(
        f"LoadModule slotmem_grandchild_module {harness.build_module(source)}\n"
        f"SlotmemTestCreate wide {WIDE} 2 0\n", mpm=mpm)
    assert server.slotmem().put("wide", 0, bytes(WIDE)).ok
    status, text = server.get("/slotmem-grandchild?wide")
    assert status == 200
    pid, parent = map(int, text.split())
    server.allow_log("died while it wrote to")
    try:
        yield server, pid, parent, server.slotmem(
            [child for child in server.children() if child != parent][0])
    finally:
        end(pid)


def end(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    harness.wait_for(lambda: not harness.is_alive(pid), "its end")


def halt_while_it_writes(sibling, pid):
    """SIGSTOP in the middle of a put, which a read by another then shows."""
    def halted():
        os.kill(pid, signal.SIGSTOP)
        harness.wait_for(lambda: harness.process_stat(pid)[0] == "T",
                         f"{pid} to halt")
        if sibling.get("wide", 0, WIDE).rv == "APR_TIMEUP":
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    harness.wait_for(halted, "a put to be interrupted", limit=60)


def test_forked_process_that_dies_while_it_writes_is_mended_after(httpd, mpm):
    """It bore the number of the child that forked it, as mpm-itk does for
    each connection; and as that one lived on, every get and put of the slot
    ended in APR_TIMEUP for good."""
    with grandchild(httpd, mpm) as (_, pid, _, sibling):
        halt_while_it_writes(sibling, pid)
        end(pid)
        assert sibling.get("wide", 0, WIDE).rv == "APR_EINCOMPLETE"
        assert sibling.put("wide", 0, b"a" * WIDE).ok
        assert sibling.get("wide", 0, WIDE).bytes == b"a" * WIDE


def test_forked_process_that_writes_outlives_the_child_that_forked_it(
        httpd, mpm):
    """It bore a number that was then nobody's: its lock was taken from it
    while it wrote, and half of two puts was handed out."""
    with grandchild(httpd, mpm) as (server, pid, parent, sibling):
        halt_while_it_writes(sibling, pid)
        server.kill_child(parent)
        server.wait_children(without=[parent])
        assert sibling.get("wide", 0, WIDE).rv == "APR_TIMEUP"
        os.kill(pid, signal.SIGCONT)
        for _ in range(20):
            got = sibling.get("wide", 0, WIDE)
            assert got.ok and len(set(got.bytes)) == 1


# ---------------------------------------------------------------------------
# Pages of a segment that others use
# ---------------------------------------------------------------------------

PAGE = 4096


def unpopulated_module():
    """The module as it is where MADV_POPULATE_WRITE is not known."""
    source = os.path.join(harness.BUILD, "slotmem_shm_unpopulated.c")
    os.makedirs(harness.BUILD, exist_ok=True)
    with open(os.path.join(harness.TOP, "mod_slotmem_shm.c")) as file:
        text = file.read()
    with open(f"{source}.{os.getpid()}", "w") as file:
        file.write(text)
    os.replace(f"{source}.{os.getpid()}", source)
    return harness.build_module(
        source, f"-I{harness.TOP}/include", "-Wc,-std=gnu11", "-Wc,-include",
        f"-Wc,{harness.TOP}/test/portability/no_populate.h")


def test_attach_loses_nobody_s_update_where_pages_are_touched(httpd):
    """Other systems than Linux have no call that backs pages: each was read
    and written back, by every process that attached, and what another process
    had written in between was gone."""
    server = httpd(hostile.attacker_conf(), mpm="prefork",
                   slotmem_module=unpopulated_module())
    first, second = server.children()
    attacker = hostile.Attacker(server, first)
    writer, reader = server.slotmem(first), server.slotmem(second)
    lost = 0
    for i in range(100):
        assert writer.create(f"late{i}", PAGE, 4).ok
        where = attacker.range(f"late{i}")
        # The first word of a page is where a page is touched.
        word = where.start + (where.slots - where.start + PAGE) // PAGE * PAGE
        attacker.storm("add", word, 8)
        harness.wait_for(lambda: word_at(attacker, word), "the storm")
        assert reader.attach(f"late{i}").ok
        lost += 1024 * attacker.calm() - word_at(attacker, word)
    assert lost == 0


def word_at(attacker, address):
    return struct.unpack("=Q", attacker.get(address, 8))[0]
