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
"""The checkpoint: what a power cut, or a container that dies, costs at most.

But for the first test, a preloaded library (shim/hurry.c) lets httpd run its
monitor hook more often; else each test in which the parent must see that its
helper has ended took ten seconds longer.
"""

import concurrent.futures
import glob
import os
import re
import signal
import threading
import time

import pytest

import httpd as harness
import sharedmem
import shim
import storedfile
from rundir import in_file, put, text_of, wait_stored
from storedfile import Stored

CONF = """
Mutex sem
PidFile ${ROOT}/logs/httpd.pid
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate other 700 200 persist
SlotmemTestCreate plain 64 10 0
"""
TRACE = "info slotmem_shm:trace1"
# What the MPM or a terminal sends to all processes of the server.
HELPER_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT,
                  signal.SIGUSR1, signal.SIGWINCH, signal.SIGPIPE)
# Said by whoever reaps it: the MPM, APR, or a monitor round.
ENDED_UNASKED = r"checkpoint process (\d+) ended .*nobody asked"
LOOK = (r"\[pid (\d+)[:\]].* slotmem_shm: stored \d+ segments, "
        r"\d+ unchanged, \d+ failed")


@pytest.fixture
def fast(httpd):
    """fast(conf, ...) starts a server that is quick to begin a helper anew."""
    def make(conf=CONF, faults=False, **more):
        start = more.pop("start", True)
        more.setdefault("children", 1)
        if faults:
            more["shm_size"] = "8m"
        server = httpd(conf, loglevel=TRACE, start=False, **more)
        server.allow_log("AH00098")
        shim.preload(server, "hurry")
        if faults:
            server.faults = shim.Faults(server)
        return server.start() if start else server
    return make


def begun(server):
    return {int(m) for m in re.findall(r"checkpoint process (\d+) began",
                                       server.log())}


def looks(server):
    """How often helpers have looked at everything."""
    return sum(int(m) in begun(server)
               for m in re.findall(LOOK, server.log()))


def wait_looks(server, count):
    """Until so many more have ended."""
    before = looks(server)
    harness.wait_for(lambda: looks(server) >= before + count,
                     f"{count} checkpoints")


def helpers(server):
    """Processes of the server that are neither parent nor children."""
    return sorted(begun(server) & set(server.processes()))


def wait_helper(server):
    return harness.wait_for(lambda: helpers(server), "a helper")[0]


def let_it_happen(fast):
    """Another server, begun later, goes through what must not happen in the
    test's: a monitor round begins a helper, and that stores something."""
    other = fast()
    with other.announced(ENDED_UNASKED):
        os.kill(wait_helper(other), signal.SIGKILL)
        harness.wait_for(lambda: len(begun(other)) == 2, "another helper")
    put(other, b"text")
    wait_stored(other, b"text")


def zombies(server):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = harness.process_stat(name)
            if stat and stat[0] == "Z" and stat[1] == server.pid:
                found.append(int(name))
    return found


def no_lost_child(server):
    assert not server.log_lines(r"long lost child|AH00488|AH00167")


def check_clean(server):
    """No half-written file after a stop."""
    left = [name for name in os.listdir(server.run_dir)
            if not name.endswith(".persist")]
    assert left == []


# ---------------------------------------------------------------------------
# That it comes
# ---------------------------------------------------------------------------

def test_checkpoint_comes_by_itself(httpd):
    """A file appears while the server runs, and one process sees to it, from
    the moment on in which the server serves."""
    server = httpd(CONF, loglevel=TRACE)
    for number, step in enumerate([None, server.graceful, server.restart], 1):
        if step:
            step()
        assert len(begun(server)) == number
        for text in b"first", b"second":
            put(server, text)
            wait_stored(server, text)
        assert len(begun(server)) == number
    assert os.listdir(server.run_dir).count("slotmem-shm-seg.shm.persist") == 1
    no_lost_child(server)


def test_killed_with_its_memory_gone_after_a_checkpoint(fast, mpm):
    """A container that dies, a power cut."""
    server = fast(mpm=mpm)
    for text in b"one", b"two":
        put(server, text)
        wait_stored(server, text)
        wait_looks(server, 1)
        server.kill_all()
        assert server.leaked_shm()
        for path in server.leaked_shm():
            sharedmem.remove(path)
        server.start()
        assert text_of(server) == text
        assert server.slotmem().in_use("seg") == [0]


def test_helper_is_a_child_that_the_mpm_knows(fast, mpm):
    """Else the log fills with "long lost child came home", and zombies; and
    nobody begins another one."""
    server = fast(mpm=mpm)
    for number in range(3):
        pid = wait_helper(server)
        with server.announced(ENDED_UNASKED):
            os.kill(pid, signal.SIGKILL)
            harness.wait_for(lambda: len(begun(server)) == number + 2,
                             "another helper")
        put(server, b"%d" % number)
        wait_stored(server, b"%d" % number)
    assert len(server.log_lines(ENDED_UNASKED)) == 3
    harness.wait_for(lambda: not zombies(server), "the helpers to be reaped")
    server.graceful()
    put(server, b"after")
    wait_stored(server, b"after")
    server.stop()
    no_lost_child(server)
    assert not server.log_lines(r"AH0005[0-2]|checkpoint.*:warn")
    check_clean(server)


def test_file_that_has_it_already_is_not_written(fast):
    """A balancer that nobody uses must not wear out the disk."""
    server = fast()
    put(server, b"text")
    wait_stored(server, b"text")
    names = "seg", "other"
    wait_looks(server, 1)
    began, looked = time.monotonic(), looks(server)
    before = {n: storedfile.identity(server.persist_path(n)) for n in names}
    wait_looks(server, 3)
    # One a second, else it took a processor for itself.
    assert looks(server) - looked <= time.monotonic() - began + 2
    assert before == {n: storedfile.identity(server.persist_path(n))
                      for n in names}
    put(server, b"more")
    wait_stored(server, b"more")
    assert (storedfile.identity(server.persist_path("other"))
            == before["other"])


def test_file_is_whole_at_any_time_under_load(fast):
    """Whoever reads it, a backup or the next start after a power cut."""
    server = fast("SlotmemTestCreate seg 300 400 persist")
    server.children_wanted = 1
    pid = server.children()[0]
    path, seen = server.persist_path("seg"), set()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        hammer = pool.submit(server.slotmem(pid).hammer, "seg", "write",
                             threads=2, ops=0)
        harness.wait_for(lambda: os.path.exists(path), "the first checkpoint")
        end = time.monotonic() + harness.LIMIT
        while len(seen) < 4 and time.monotonic() < end:
            stored = Stored(path)                # raises if it is not whole
            assert all(len(set(slot)) == 1 for slot in stored.slots)
            seen.add(stored.raw)
        server.slotmem(pid).stop()
        assert hammer.result().failed == 0
    assert len(seen) >= 4


def test_segments_without_persist_make_no_helper(fast):
    server = fast("SlotmemTestCreate plain 64 10 0")
    put(server, b"text", "plain")
    let_it_happen(fast)
    assert not server.log_lines("checkpoint")


# ---------------------------------------------------------------------------
# The helper
# ---------------------------------------------------------------------------

def test_helper_keeps_no_listener_and_is_nice(fast):
    """One that a dead disk holds would keep the port from the next server."""
    server = fast(faults=True)
    # However nice the tests are, the next helper is nicer than its server.
    os.setpriority(os.PRIO_PROCESS, server.pid, 3)
    server.graceful()
    server.faults.arm(1, "wait", "helper", "fsync")
    put(server, b"text")
    pid = wait_helper(server)
    harness.wait_for(server.faults.counted, "the helper to reach its fsync")
    listening = set()
    with open("/proc/net/tcp") as table:
        for line in table.readlines()[1:]:
            fields = line.split()
            if int(fields[1].split(":")[1], 16) in server.ports:
                listening.add(f"socket:[{fields[9]}]")
    opened = {os.readlink(path) for path in glob.glob(f"/proc/{pid}/fd/*")}
    assert listening and not listening & opened
    marker = os.path.join(server.run_dir, "slotmem-shm.run")
    assert os.path.exists(marker)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 13
    server.faults.go()
    wait_stored(server, b"text")


def test_helper_heeds_no_signal_for_the_group(fast):
    """An early end would lose what it has not stored yet."""
    server = fast()
    pid = wait_helper(server)
    for number in HELPER_SIGNALS:
        os.kill(pid, number)
        put(server, number.name.encode())
        wait_stored(server, number.name.encode())
    assert helpers(server) == [pid]


def test_helper_heeds_no_signal_before_it_has_begun(fast):
    """On a busy machine it may be a while before it runs.  It would end, the
    log would say that nobody asked it to, and nothing would be stored before
    a monitor round."""
    server = fast(faults=True, start=False)
    server.env["FAULTS_PREFIX"] += ":pipe"
    # All that is forked closes an end of the helper's pipe before everything
    # else, the children too.
    server.faults.arm(1, "wait", "helper", "close")
    starter = threading.Thread(target=server.start)
    starter.start()
    pid = wait_helper(server)
    harness.wait_for(server.faults.counted, "it to be held")
    for number in HELPER_SIGNALS:
        os.kill(pid, number)
    server.faults.go()
    starter.join()
    put(server, b"text")
    wait_stored(server, b"text")
    assert helpers(server) == [pid]


def test_helper_killed_in_the_middle_harms_nothing(fast):
    """By the out-of-memory killer, at any of its operations."""
    server = fast(faults=True)
    server.expect_log(ENDED_UNASKED)
    put(server, b"0")
    wait_stored(server, b"0")

    def died():
        return len(server.log_lines(ENDED_UNASKED))

    for n in range(1, 100):
        old, text, deaths, before = in_file(server), b"%d" % n, died(), \
            looks(server)
        server.faults.arm(n, "kill", "helper")
        put(server, text)
        put(server, text, "other", n)
        # The look that was under way, and one that sees all that is new.
        harness.wait_for(lambda: died() > deaths
                         or looks(server) > before + 2, "the helper's end")
        assert in_file(server) in (old, text)
        Stored(server.persist_path("other"))
        server.faults.disarm()
        if died() == deaths:
            break
        wait_stored(server, text)
    assert n > 8, "more operations than that were expected"
    no_lost_child(server)
    server.faults.arm(3, "kill", "helper")
    put(server, b"last")
    harness.wait_for(lambda: len(server.faults.counted()) >= 3, "the kill")
    server.faults.pass_on()
    server.stop()
    check_clean(server)
    assert in_file(server) == b"last"


def test_helper_that_is_stuck_holds_up_no_stop_and_no_restart(fast, mpm):
    """Nor does what it would have stored replace what is stored without it."""
    call = {"event": "fsync", "worker": "write", "prefork": "rename"}[mpm]
    server = fast(faults=True, mpm=mpm)
    server.allow_log("goes on with|AH0005[12].*exit signal Killed")
    for step in server.graceful, server.restart, server.stop:
        server.faults.arm(1, "wait", "helper", call)
        put(server, b"stuck")
        pid = wait_helper(server)
        harness.wait_for(server.faults.counted, f"the helper at its {call}")
        put(server, b"final")
        server.faults.pass_on()
        step()
        assert not harness.is_alive(pid)
        assert in_file(server) == b"final"
        server.faults.go()
        assert in_file(server) == b"final"
        server.faults.disarm()
    no_lost_child(server)
    check_clean(server)
    server.start()
    assert text_of(server) == b"final"


def test_helper_that_is_halted_holds_up_no_stop(fast):
    server = fast(faults=True)
    server.faults.arm(2, "wait", "helper", "write")
    put(server, b"halted")
    pid = wait_helper(server)
    harness.wait_for(lambda: len(server.faults.counted()) > 1, "a write")
    os.kill(pid, signal.SIGSTOP)
    put(server, b"final")
    server.stop()
    assert not harness.is_alive(pid)
    assert in_file(server) == b"final"
    check_clean(server)


@pytest.mark.parametrize("store", ["first", "later"])
def test_helper_ends_with_a_parent_that_is_killed(fast, store):
    """Else what it stores late replaced what the next run has stored.  And a
    file that was announced, and never came, has not been deleted."""
    server = fast(faults=True, start=False)
    if store == "later":
        server.start()
        wait_looks(server, 1)
    server.faults.arm(1, "wait", "helper", "rename")
    if store == "first":
        server.start()
    put(server, b"early")
    pid = wait_helper(server)
    harness.wait_for(server.faults.counted, "the helper at its rename")
    put(server, b"late")
    server.kill_parent()
    server.wait_gone([pid])
    server.end_orphans()
    server.faults.disarm()
    server.start()
    assert text_of(server) == b"late"
    server.stop()
    assert in_file(server) == b"late"
    check_clean(server)


def test_new_file_that_is_removed_before_its_rename(fast):
    """By whoever cleans up, as the helper flushes it: that is told, the file
    of before stays, and the next look stores."""
    server = fast(faults=True)
    put(server, b"before")
    wait_stored(server, b"before")
    wait_looks(server, 1)       # the directory is flushed after the rename
    server.faults.arm(1, "wait", "helper", "fsync,fdatasync")
    put(server, b"after")
    harness.wait_for(server.faults.counted, "the helper at its flush")
    new, = glob.glob(server.persist_path("seg") + ".checkpoint")
    os.unlink(new)
    with server.announced("AH02334.*No such file|No such file.*AH02334"):
        server.faults.go()
        wait_stored(server, b"after")
    server.stop()
    check_clean(server)


class Freezer:
    """Holds a process in the kernel, where no signal reaches it: as a disk
    that does not answer."""

    ROOT = "/sys/fs/cgroup/freezer"

    def __init__(self):
        self.group = os.path.join(self.ROOT, f"slotmem-test-{os.getpid()}")

    def __enter__(self):
        try:
            os.mkdir(self.group)
        except OSError:
            pytest.skip("no cgroup freezer that we may use")
        return self

    def _write(self, file, text):
        with open(os.path.join(self.group, file), "w") as control:
            control.write(text)

    def freeze(self, pid):
        self._write("cgroup.procs", str(pid))
        self._write("freezer.state", "FROZEN")

    def thaw(self):
        self._write("freezer.state", "THAWED")

    def __exit__(self, *exception):
        self.thaw()

        def removed():
            try:
                os.rmdir(self.group)
            except OSError:
                return False
            return True

        harness.wait_for(removed, "the frozen process to end")


@pytest.mark.parametrize("ends", ["while it runs", "after the stop"])
def test_helper_that_the_kernel_holds(fast, ends):
    """SIGKILL waits for it until the disk answers.  The server goes on
    without it, no other helper begins, and its end is no riddle to the MPM."""
    server = fast(faults=True)
    with Freezer() as freezer:
        server.faults.arm(1, "wait", "helper", "rename")
        put(server, b"frozen")
        pid = wait_helper(server)
        harness.wait_for(server.faults.counted, "the helper at its rename")
        freezer.freeze(pid)
        server.faults.disarm()
        put(server, b"final")
        with server.announced("was killed but does not end"):
            server.graceful()
        assert harness.is_alive(pid)
        # It was waited for, so it was not to be behind everybody else.
        assert os.getpriority(os.PRIO_PROCESS, pid) \
            == os.getpriority(os.PRIO_PROCESS, server.pid)
        assert in_file(server) == b"final" and text_of(server) == b"final"
        if ends == "while it runs":
            put(server, b"later")
            let_it_happen(fast)
            assert in_file(server) == b"final"
            server.faults.go()
            freezer.thaw()
            server.wait_gone([pid])
            wait_stored(server, b"later")
            no_lost_child(server)
            server.stop()
        else:
            server.allow_log("was killed but does not end")
            put(server, b"stopped")
            os.kill(server.pid, signal.SIGTERM)
            harness.wait_for(lambda: server.process.poll() is not None,
                             "the parent to stop in spite of its helper")
            assert in_file(server) == b"stopped"
            server.faults.go()
            freezer.thaw()
            server._wait_exit("the helper to end")
            assert in_file(server) == b"stopped"
        check_clean(server)


def test_helper_that_ends_just_before_a_restart(fast, mpm):
    """APR, not the MPM, then finds it gone."""
    server = fast(mpm=mpm)
    server.expect_log(ENDED_UNASKED)
    pid = wait_helper(server)
    os.kill(server.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    harness.wait_for(lambda: pid in zombies(server), "the helper to end")
    os.kill(server.pid, signal.SIGHUP)
    os.kill(server.pid, signal.SIGCONT)
    harness.wait_for(lambda: server.log_lines("SIGHUP received"), "SIGHUP")
    harness.wait_for(lambda: len(server.log_lines("resuming normal")) == 2
                     and server.children(), "the restart")
    server.generation = server._newest_generation()
    put(server, b"after")
    wait_stored(server, b"after")
    no_lost_child(server)
    assert len(server.log_lines(ENDED_UNASKED)) == 1


def test_no_process_for_a_helper(fast):
    """A machine at its limit of processes: it is logged, and tried again."""
    server = fast(faults=True)
    server.expect_log("no process for checkpoints")
    server.expect_log(ENDED_UNASKED)
    pid = wait_helper(server)
    server.faults.arm(1, "EAGAIN", "leader", "fork")
    os.kill(pid, signal.SIGKILL)
    harness.wait_for(server.faults.counted, "the fork that fails")
    server.faults.disarm()
    put(server, b"text")
    wait_stored(server, b"text")


def test_checkpoint_on_a_disk_that_fails(fast):
    """Logged; the old file stays; and then it heals."""
    server = fast(faults=True)
    put(server, b"old")
    wait_stored(server, b"old")
    # All of them: the first may still be of the directory, for what is old.
    server.faults.arm("1+", "EIO", "helper", "fsync")
    with server.announced("AH02334.*cannot store .*: flushing"):
        put(server, b"new")
        harness.wait_for(lambda: server.log_lines("AH02334.*cannot store"),
                         "the failure to be logged")
        assert in_file(server) == b"old"
        server.faults.disarm()
        wait_stored(server, b"new")


MANY = "Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n" + "".join(
    f"SlotmemTestCreate seg{i} 64 4 persist\n" for i in range(30))


def test_file_system_that_cannot_be_flushed(fast):
    """Of a batch, no file takes its place; after a restart, each is flushed by
    itself."""
    server = fast(MANY, faults=True)
    put(server, b"old", "seg0")
    harness.wait_for(lambda: in_file(server, "seg0") == b"old", "a store")
    server.faults.arm("1+", "EIO", "helper", "syncfs")
    for i in range(30):
        put(server, b"new", f"seg{i}")
    with server.announced("AH02334.*cannot store .*: flushing"):
        harness.wait_for(lambda: server.log_lines("AH02334.*cannot store"),
                         "the failure to be logged")
        assert in_file(server, "seg29") != b"new"
        server.faults.disarm()
        harness.wait_for(lambda: in_file(server, "seg29") == b"new", "a store")
    server.faults.arm("1", "EIO", "helper", "syncfs")
    put(server, b"late", "seg0")
    server.graceful()
    harness.wait_for(server.faults.counted, "the next helper's flush")
    harness.wait_for(lambda: not os.path.exists(server.persist_path("seg0")
                                                + ".before"),
                     "the file to be flushed by itself")
    assert in_file(server, "seg0") == b"late"


@pytest.mark.parametrize("nth", [1, 2])
def test_helper_that_has_no_memory(fast, nth):
    """For its buffer, or for the end of an image: it tries again."""
    server = fast("Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n"
                  "SlotmemTestCreate seg 8 70000 persist+clearinuse", faults=True)
    put(server, b"old")
    wait_stored(server, b"old")
    server.allow_log("AH02334.*cannot store .*: reading memory for")
    server.faults.arm(f"{nth}+", "ENOMEM", "helper", "malloc")
    seen = looks(server)
    put(server, b"new")
    harness.wait_for(lambda: len(server.faults.counted()) >= 2 * nth,
                     "two looks without memory")
    assert in_file(server) == b"old"
    server.faults.disarm()
    wait_stored(server, b"new")
    assert looks(server) > seen


def test_parent_that_has_no_memory_to_store_with(fast):
    """The files keep what they held, and so does memory, over a restart."""
    server = fast(faults=True)
    put(server, b"old")
    wait_stored(server, b"old")
    os.kill(wait_helper(server), signal.SIGSTOP)
    server.faults.arm("1+", "ENOMEM", "leader", "malloc")
    put(server, b"new")
    with server.announced("AH02334: .*no memory to store segments with"):
        server.graceful()
    server.faults.disarm()
    assert text_of(server) == b"new"
    wait_stored(server, b"new")


def test_what_a_restart_stored_is_flushed_after_it(fast):
    """No restart waits for a disk; but a power cut an hour later must find
    what it stored, though nothing has changed since."""
    server = fast(faults=True)
    put(server, b"text")
    wait_stored(server, b"text")
    wait_looks(server, 1)
    for step, text in (server.graceful, b"one"), (server.restart, b"other"):
        server.faults.arm(0, "none", "any", "fsync,fdatasync,syncfs")
        put(server, text)
        step()
        wait_looks(server, 1)
        flushed = {os.path.realpath(path)
                   for _, path in server.faults.disarm()}
        assert os.path.realpath(server.run_dir) in flushed
        assert not os.path.exists(server.persist_path("seg") + ".before")


def test_checkpoints_go_on_after_restarts(fast, mpm):
    """Each generation has its helper."""
    server = fast(mpm=mpm)
    for step in server.graceful, server.restart, server.graceful:
        step()
        put(server, b"x")
        wait_stored(server, b"x")
        put(server, b"y")
        wait_stored(server, b"y")
    server.stop()
    check_clean(server)


# ---------------------------------------------------------------------------
# What a stop leaves on the disk
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("count", [3, 40])
def test_every_file_is_flushed_before_it_takes_its_place(fast, count):
    """Else a power cut leaves files of zeros under the names of good ones.

    Few files are flushed one by one, many with their file systems, of which
    there are two here; then each directory, for the names."""
    conf = "Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n" + "".join(
        f"SlotmemTestCreate in{i} 64 4 persist\n"
        f"SlotmemTestCreate ${{ROOT}}/shm/out{i} 64 4 persist out{i}\n"
        for i in range(count))
    server = fast(conf, faults=True, start=False)
    folders = [os.path.realpath(path) for path
               in (server.run_dir, server.shm_dir)]
    server.env["FAULTS_PREFIX"] += ":" + ":".join(folders)
    server.start()
    wait_looks(server, 1)
    os.kill(wait_helper(server), signal.SIGSTOP)    # the stop has it all
    for i in range(count):
        put(server, b"text", f"in{i}")
        put(server, b"text", f"out{i}")
    server.faults.arm(0, "none", "leader",
                      "rename,fsync,fdatasync,syncfs")
    server.stop()
    flushed, systems, renamed = set(), set(), []
    for call, path in server.faults.disarm():
        if call == "rename":
            assert (path + ".new" in flushed
                    or os.path.dirname(path) in systems), path
            renamed.append(path)
        else:
            (systems if call == "syncfs" else flushed).add(path)
            # Of the directory: for the names that it has by now.
            renamed = [one for one in renamed if os.path.dirname(one) != path]
    assert renamed == [] and bool(systems) == (count == 40)
