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
"""Every file operation of a store, a restore and a take-over goes wrong once.

A preloaded library (shim/faults.c) lets the n-th operation fail, be cut short,
or be the last one of the process, for every n.  Whatever it was, the server
starts afterwards, and finds the state of before or the new one, whole; and
after a kill the new one, since memory outlives processes.

SLOTMEM_FAULTS=all walks through every n with every kind of fault; else each
kind takes every STRIDE-th, beginning at another one.
"""

import os
import signal

import pytest

import httpd as harness
import shim
import storedfile
from httpd import op_line
from rundir import halt_helper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CONF = """
Mutex sem
PidFile ${ROOT}/logs/httpd.pid
SlotmemTestCreate one 64 10 persist+pregrab
SlotmemTestCreate two 700 200 persist
"""
SHAPES = {"one": (64, 10), "two": (700, 200)}   # "two": more than one chunk
EMPTY = -1
STRIDE = 1 if os.environ.get("SLOTMEM_FAULTS") == "all" else 5
# Each kind of fault, and the calls that it can strike.
ACTIONS = {
    "EIO": "*",
    "EINTR": "open,openat,read,pread,write,pwrite,close,fsync,ftruncate",
    "ENOSPC": "open,write,pwrite,fsync,ftruncate,rename,link,close",
    "EACCES": "open,openat,rename,link,unlink,unlinkat",
    "EMFILE": "open,openat",
    "short": "read,pread,write,pwrite",
    "kill": "*",
    "torn": "write,pwrite",
    "power": "*",
}
# What may be logged, at any level, about an operation that failed.
COMPLAINTS = (r"AH02334|AH02551|AH02554|AH02611|slotmem_shm: cannot use|"
              r"slotmem_shm: cannot write|AH00098|AH03092")


class Scene:
    """A server whose segments hold the number of the state they are in."""

    def __init__(self, httpd):
        # A child of event that ends right after a request may fault in the
        # MPM's own code, which happens once in two hundred stops.
        self.server = httpd(CONF, start=False, shm_size="8m", mpm="prefork",
                            loglevel="info", children=1)
        self.faults = shim.Faults(self.server)
        self.server.allow_log(COMPLAINTS)
        self.number = 0
        self.last = dict.fromkeys(SHAPES, EMPTY)
        self.server.start()
        self.settle()

    def next_state(self):
        self.number += 1
        text = b"state %d" % self.number
        lines = []
        for name, (_, num) in SHAPES.items():
            for slot in 0, num - 1:
                lines += [op_line("fgrab", h=name, i=slot),
                          op_line("put", h=name, i=slot, data=text)]
        assert all(a.ok for a in self.server.slotmem().run(*lines))
        return self.number

    def in_memory(self):
        """{name: number of its state}; fails on one that is not whole."""
        lines = []
        for name, (size, num) in SHAPES.items():
            lines += [op_line("read", h=name, i=0, len=size * num),
                      op_line("info", h=name)]
        answers = self.server.slotmem().run(*lines)
        return {name: self._judge(name, answers[2 * i].bytes,
                                  num - answers[2 * i + 1].num_free)
                for i, (name, (_, num)) in enumerate(SHAPES.items())}

    def in_files(self):
        found = {}
        for name in SHAPES:
            found[name] = self._in_file(self.server.persist_path(name), name)
        return found

    def _in_file(self, path, name):
        try:
            stored = storedfile.Stored(path)
        except FileNotFoundError:
            return EMPTY
        assert (stored.size, stored.num) == SHAPES[name]
        return self._judge(name, b"".join(stored.slots), len(stored.used))

    def _judge(self, name, content, used):
        size, num = SHAPES[name]
        first, last = content[:size], content[-size:]
        assert first == last and used in (0, 2), f"{name} is half restored"
        assert content[size:-size] == bytes(size * (num - 2))
        text = first.rstrip(b"\0")
        assert (used == 0) == (text == b"")
        return int(text.split()[1]) if text else EMPTY

    def arm(self, n, action):
        self.faults.arm(n, action, calls=ACTIONS[action])

    def check_files(self):
        """Each holds its old state or the new one."""
        for name, found in self.in_files().items():
            assert found in (self.last[name], self.number), \
                f"{name} holds a state of old, or none"

    def check(self, strict=False):
        """So does memory; strict: the new one.

        Else a file that could not be read is kept aside, the segment empty.
        """
        for name, found in self.in_memory().items():
            whole = self.number, *([] if strict else [self.last[name]])
            aside = self.server.persist_path(name) + ".rejected"
            if found == EMPTY and not strict and os.path.exists(aside):
                assert self._in_file(aside, name) in whole
                os.unlink(aside)
            else:
                assert found in whole, \
                    f"{name} is in state {found} instead of {whole}, after " \
                    f"{self.faults.counted()[-1:]}"
            self.last[name] = found

    def settle(self):
        """A new state, over a restart, and it is in the files: flushed, for
        the helper does that before it renames."""
        self.next_state()
        self.server.graceful()
        self.check(strict=True)
        self.next_state()
        now = dict.fromkeys(SHAPES, self.number)
        harness.wait_for(lambda: self.in_files() == now, "a checkpoint")
        self.last = now

    def try_start(self):
        """False when the fault killed it."""
        try:
            self.server.start()
            return True
        except harness.HttpdError:
            assert self.server.exit_status == -signal.SIGKILL, \
                "the server did not start:\n" + self.server.last_words()
            self.server._gave_up = False
            return False

    def stop_somehow(self):
        """Stops, by order or by the fault."""
        os.kill(self.server.pid, signal.SIGTERM)
        status = self.server._wait_exit("the server to stop or die")
        assert status in (0, -signal.SIGKILL), self.server.last_words()
        return status == 0

    def graceful_somehow(self):
        server = self.server
        try:
            server.graceful()
            return True
        except harness.HttpdError:
            assert server.exit_status == -signal.SIGKILL, server.last_words()
            server._gave_up = False
            server.end_orphans()
            return False

    def cut_power(self):
        for name in os.listdir(self.server.shm_dir):
            os.unlink(os.path.join(self.server.shm_dir, name))

    def check_nothing_is_left(self):
        """After a clean stop: no half-written file, no object, no marker."""
        if self.server.process is None:
            self.server.start()
        self.next_state()
        self.server.stop()
        assert os.listdir(self.server.shm_dir) == []
        assert sorted(os.listdir(self.server.run_dir)) == sorted(
            os.path.basename(self.server.persist_path(name))
            for name in SHAPES)
        assert self.in_files() == dict.fromkeys(SHAPES, self.number)


@pytest.fixture
def scene(httpd):
    return Scene(httpd)


def each_operation(scene, action):
    """1, 2, 3 ... until one more is armed than there are operations."""
    n = 1 + list(ACTIONS).index(action) % STRIDE
    if action in ("short", "torn", "EMFILE"):
        n = 1                                   # there are but a few
    while True:
        scene.arm(n, action)
        yield n
        if len(scene.faults.disarm()) < n:
            assert n > 1, "not one operation was seen: no shim?"
            return
        n += STRIDE
        assert n < 300, "each turn has more operations: something piles up"


def was_only_short(scene, n, action):
    """A read or write that did less than asked, or was interrupted, is no
    failure: whoever reads or writes goes on."""
    counted = scene.faults.counted()
    return (action in ("short", "EINTR") and len(counted) >= n
            and counted[n - 1][0] in ("read", "pread", "write", "pwrite"))


def test_positive_control_operations_are_seen(scene):
    """What is counted is what the module does, in its order."""
    halt_helper(scene.server)
    scene.next_state()
    scene.faults.arm(0, "none")
    scene.server.stop()
    calls = [(call, os.path.basename(path))
             for call, path in scene.faults.disarm()]
    new = "slotmem-shm-one.shm.persist.new"
    mine = [call for call, name in calls if name == new]
    assert mine[:2] == ["open", "write"]
    assert mine.index("fsync") > max(i for i, call in enumerate(mine)
                                     if call == "write")
    renamed = calls.index(("rename", "slotmem-shm-one.shm.persist"))
    assert calls.index(("fsync", new)) < renamed, "flushed, then renamed"
    assert ("fsync", "run") in calls[renamed:], "the directory, afterwards"
    assert [name for call, name in calls[renamed:]
            if call == "unlink" and name.startswith("ShM.")]
    assert not [name for call, name in calls[:renamed]
                if call == "unlink" and name.startswith("ShM.")]


@pytest.mark.parametrize("action", ["EIO", "EINTR", "ENOSPC", "EACCES",
                                    "EMFILE", "short"])
def test_operation_of_a_graceful_restart_fails(scene, action):
    """A full or failing disk, no descriptor left: a log line, no loss."""
    for n in each_operation(scene, action):
        scene.next_state()
        scene.server.graceful()
        scene.check(strict=was_only_short(scene, n, action))
    scene.check_nothing_is_left()


@pytest.mark.parametrize("action", ["kill", "torn", "power"])
def test_death_at_an_operation_of_the_stop(scene, action):
    """After a kill nothing is lost; after a power cut nothing is damaged."""
    for _ in each_operation(scene, action):
        halt_helper(scene.server)       # the stop has it all
        scene.next_state()
        died = not scene.stop_somehow()
        scene.check_files()
        if action == "power" and died:
            scene.cut_power()
        scene.faults.pass_on()
        scene.server.start()
        scene.check(strict=action != "power")
        scene.settle()
    scene.check_nothing_is_left()


@pytest.mark.parametrize("action", ["kill", "power"])
def test_death_at_an_operation_of_a_graceful_restart(scene, action):
    """The parent alone dies, in the middle; its children are orphans.  With the
    power goes what was not flushed, and no restart waits for that."""
    for _ in each_operation(scene, action):
        scene.next_state()
        if not scene.graceful_somehow():
            if action == "power":
                scene.cut_power()
            else:
                scene.check_files()
            scene.faults.pass_on()
            scene.server.start()
            scene.check(strict=action != "power")
            scene.settle()
    scene.check_nothing_is_left()


def test_two_restarts_before_a_flush_keep_the_file_that_was_flushed(scene):
    """The file between them is not on the disk, so it is nothing to go back
    to."""
    flushed = scene.number
    scene.faults.arm("1+", "EIO", "any", "fsync,fdatasync,syncfs")
    for _ in range(2):
        scene.next_state()
        scene.server.graceful()
        scene.check(strict=True)
    for name in SHAPES:
        before = scene.server.persist_path(name) + ".before"
        assert scene._in_file(before, name) == flushed
    scene.faults.pass_on()
    scene.settle()
    scene.check_nothing_is_left()


@pytest.mark.parametrize("action", ["EIO", "EINTR", "EMFILE", "short", "kill"])
def test_operation_of_a_start_that_restores_fails(scene, action):
    """It starts all the same, or after the kill; what it had is there."""
    scene.server.stop()
    for n in each_operation(scene, action):
        started = scene.try_start()
        scene.faults.pass_on()
        if not started:
            assert action == "kill"
            scene.server.start()
        scene.check(strict=not started or was_only_short(scene, n, action))
        scene.settle()
        scene.server.stop()
    scene.check_nothing_is_left()


@pytest.mark.parametrize("action", ["EIO", "EMFILE", "kill", "torn"])
def test_operation_of_a_start_that_takes_over_fails(scene, action):
    """Killed, and killed again while it takes over: memory is the newest
    there is until a file holds it, and after any kill it is found."""
    for n in each_operation(scene, action):
        scene.faults.pass_on()
        scene.next_state()
        scene.server.kill_all()
        scene.arm(n, action)
        started = scene.try_start()
        scene.faults.pass_on()
        if not started:
            scene.server.start()
        scene.check(strict=not started)
        scene.settle()
    scene.check_nothing_is_left()
