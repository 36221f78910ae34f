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
"""Killed processes cost nothing: the next start goes on with their memory.

kill -9, the kernel's out-of-memory killer, a crash of the parent: named
shared memory outlives all of them.  The stock module leaves it lying there,
believes the old file, and leaks every segment of a generation above the
first.
"""

import glob
import os
import random
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

import pytest

import httpd as harness
import layout
import rundir
import sharedmem
import shim
import storedfile

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CONF = """
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate cleared 64 10 persist+clearinuse
SlotmemTestCreate lost 64 10 pregrab
SlotmemTestCreate ${ROOT}/absolute 64 10 persist abs
SlotmemTestCreate none 64 10 persist anonymous
"""
KEPT = ("seg", 0), ("cleared", 3), ("abs", 9)
TAKEN = "goes on with the memory of a run that was killed"
RUN_LEN = 16


def write_all(server, text):
    slotmem = server.slotmem()
    for name, slot in (*KEPT, ("lost", 1), ("anonymous", 2)):
        assert slotmem.fgrab(name, slot).ok
        assert slotmem.put(name, slot, text).ok


def text_of(server, name, slot):
    return server.slotmem().read(name, slot, 64).rstrip(b"\0")


def check_taken(server, text):
    for name, slot in KEPT:
        assert text_of(server, name, slot) == text, name
    slotmem = server.slotmem()
    assert slotmem.in_use("seg") == [0]
    assert slotmem.info("cleared").num_free == 10, "clearinuse"
    assert slotmem.info("abs").num_free == 9
    assert text_of(server, "lost", 1) == b""
    assert slotmem.in_use("lost") == []
    assert text_of(server, "anonymous", 2) == b""


MAGIC = int.from_bytes(b"slotmem1", "little")


def marker(server):
    return os.path.join(server.run_dir, "slotmem-shm.run")


def objects_of(server):
    """What is there of all shared memory that the server ever had mapped."""
    return server.leaked_shm()


def kill_and_start(server):
    """Returns what of the killed run's memory is still there afterwards."""
    server.kill_all()
    left = objects_of(server)
    assert left, "the kill left no memory: this test shows nothing"
    server.allow_log("AH00098")
    server.start()
    return {path for path in left if sharedmem.exists(path)
            and path not in server.shm_objects()}


# ---------------------------------------------------------------------------
# After a kill
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("generations", [0, 3])
def test_killed_server_goes_on_with_its_memory(httpd, mpm, generations):
    """Newer than any file; and nothing of the old run is left in /dev/shm."""
    server = httpd(CONF, mpm=mpm)
    for _ in range(generations):
        server.graceful()
    write_all(server, b"newest")
    assert kill_and_start(server) == set()
    check_taken(server, b"newest")
    assert len(server.log_lines(TAKEN)) == 3

    # And again, and then by an ordinary stop.
    write_all(server, b"again!")
    assert kill_and_start(server) == set()
    check_taken(server, b"again!")
    server.stop()
    assert objects_of(server) == set()
    assert not os.path.exists(marker(server))
    server.start()
    check_taken(server, b"again!")


def test_killed_at_random_instants_under_load(httpd, mpm):
    """Whatever the moment: each slot that was put is whole, and there.

    A writer raises a number in its slot; what is found after the kill is the
    last that it knew to be written, or the one it was about to write.
    """
    server = httpd("SlotmemTestCreate seg 64 10 persist+pregrab", mpm=mpm)
    server.allow_log("AH00098")
    moments = random.Random(7)
    for _ in range(4):
        assert server.slotmem().fgrab("seg", 0).ok
        written, stop = [0], threading.Event()

        def write(written=written, stop=stop, pid=server.children()[0]):
            slotmem, number = server.slotmem(pid), 0
            try:
                while not stop.is_set():
                    number += 1
                    slotmem.put("seg", 0, struct.pack("<Q", number) * 8)
                    written[0] = number
            except (harness.HttpdError, OSError):
                pass

        writer = threading.Thread(target=write)
        writer.start()
        harness.wait_for(lambda: written[0] > 20, "the writer to write")
        if moments.random() < 0.5:
            os.kill(server.pid, signal.SIGUSR1)
        time.sleep(moments.random() * 0.2)
        server.kill_all()
        stop.set()
        writer.join()
        server.start()
        found = struct.unpack("<8Q", server.slotmem().read("seg", 0, 64))
        assert server.slotmem().in_use("seg") == [0]
        assert len(set(found)) == 1, f"torn: {found}"
        # A graceful restart under way gave the writer's child a memory that
        # was stored before its last writes.
        assert 20 <= found[0] <= written[0] + 1
    server.stop()
    assert objects_of(server) == set()


@pytest.mark.parametrize("old, new, kept", [
    (10, 20, True), (70, 10, True), (10, 3, False)])
def test_configuration_that_changed_size(httpd, old, new, kept):
    """By the rule of a stored file: all, or none, and then kept aside."""
    server = httpd(f"SlotmemTestCreate seg 64 {old} persist+pregrab")
    for slot in 0, 1, 8:
        server.slotmem().fgrab("seg", slot)
        server.slotmem().put("seg", slot, b"member %d" % slot)
    server.kill_all()
    server.conf = f"SlotmemTestCreate seg 64 {new} persist+pregrab"
    server.allow_log("AH00098")
    if not kept:
        server.expect_log("AH02551.*does not fit")
    server.start()
    assert server.slotmem().in_use("seg") == ([0, 1, 8] if kept else [])
    if kept:
        assert text_of(server, "seg", 8) == b"member 8"
    else:
        aside = storedfile.Stored(server.persist_path("seg") + ".rejected")
        assert aside.used == [0, 1, 8], "the memory was stored before"
        assert aside.slots[8].startswith(b"member 8")
    server.stop()
    assert objects_of(server) == set()


def test_segment_that_nobody_asks_for_any_more(httpd):
    """Its memory goes to its file, for the day when it is asked for again."""
    server = httpd(CONF)
    write_all(server, b"newest")
    server.kill_all()
    server.allow_log("AH00098")
    server.conf = "SlotmemTestCreate other 64 10 persist"
    server.start()
    assert objects_of(server) == server.shm_objects()
    server.stop()
    server.conf = CONF
    server.start()
    check_taken(server, b"newest")


@pytest.mark.parametrize("parents", [True, False])
def test_segments_that_children_made_do_not_leak(httpd, mpm, parents):
    """They stand in no list of the parent's."""
    server = httpd("SlotmemTestCreate seg 64 10 persist" if parents else "",
                   mpm=mpm)
    slotmem = server.slotmem()
    assert slotmem.create("late", 64, 10, "0").ok
    assert slotmem.create("later", 64, 10, "persist").ok
    made = {server.shm_path(name) for name in ("late", "later")}
    assert all(map(sharedmem.exists, made))
    assert kill_and_start(server) == set()
    assert not any(map(sharedmem.exists, made))


def test_nothing_is_left_by_a_kill_before_any_child_was_there(httpd):
    """Killed between two segments of its first configuration, the second of
    which has a name in the system, and no byte yet."""
    server = httpd(CONF, start=False, shm_size="8m")
    server.conf = ("Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n" + CONF)
    faults = shim.Faults(server)
    # Title and line of the marker, first object, line, second object.
    faults.arm(5, "kill", calls="pwrite")
    with pytest.raises(harness.HttpdError):
        server.start()
    server._gave_up = False
    sizes = [os.path.getsize(os.path.join(server.shm_dir, name))
             for name in os.listdir(server.shm_dir)]
    assert len(sizes) == 2 and sorted(sizes)[0] == 0
    faults.disarm()
    server.allow_log("AH00098")
    server.start()
    server.stop()
    assert os.listdir(server.shm_dir) == []


def test_parent_alone_is_killed(httpd, mpm):
    """Its children are orphans until somebody ends them.  What they wrote to
    the old memory until the next start is there; and what they still do to it
    afterwards harms nobody."""
    server = httpd(CONF, mpm=mpm, children=1)
    write_all(server, b"before")
    pid = server.children()[0]
    slotmem = server.slotmem(pid)
    slotmem.ping()
    server.kill_parent()
    assert slotmem.put("seg", 0, b"orphan's").ok
    assert slotmem.put("cleared", 3, b"orphan's").ok
    assert slotmem.put("abs", 9, b"orphan's").ok
    server.end_orphans()
    server.allow_log("AH00098")
    server.start()
    check_taken(server, b"orphan's")


def test_what_is_taken_over_is_newer_than_the_checkpoint(httpd):
    """A file that is whole, and older, loses against memory."""
    server = httpd(CONF)
    write_all(server, b"older")
    server.graceful()
    assert storedfile.Stored(
        server.persist_path("seg")).slots[0].startswith(b"older")
    write_all(server, b"newer")
    assert kill_and_start(server) == set()
    check_taken(server, b"newer")
    assert storedfile.Stored(
        server.persist_path("seg")).slots[0].startswith(b"newer"), \
        "not stored before the old memory was removed"


def test_file_is_taken_when_memory_is_gone(httpd):
    """A container that died with its /dev/shm."""
    server = httpd(CONF)
    write_all(server, b"stored")
    server.graceful()
    rundir.halt_helper(server)
    write_all(server, b"never seen again")
    server.kill_all()
    for path in objects_of(server):
        sharedmem.remove(path)
    server.allow_log("AH00098")
    server.start()
    check_taken(server, b"stored")
    assert not server.log_lines(TAKEN)


def test_damaged_file_is_no_better_than_memory(httpd, mpm):
    """A file that is another than the run has stored counts before its memory;
    but not one that would be refused."""
    server = httpd(CONF, mpm=mpm)
    write_all(server, b"newest")
    server.kill_all()
    for name in "seg", "cleared", os.path.join(server.root, "absolute"):
        storedfile.write(server.persist_path(name), b"damaged")
    server.allow_log("AH00098")
    server.expect_log("AH02551: .*the memory of the run that was killed is")
    server.start()
    check_taken(server, b"newest")
    assert storedfile.read(server.persist_path("seg")
                           + ".rejected") == b"damaged"
    assert storedfile.Stored(
        server.persist_path("seg")).slots[0].startswith(b"newest")


# ---------------------------------------------------------------------------
# A start that fails after a kill
# ---------------------------------------------------------------------------

def fail_to_start(server, conf):
    good, server.conf = server.conf, server.conf + conf
    server.allow_log("AH00098|AH00072|AH00016|AH00015|could not bind"
                     "|Unable to open logs|AH00014|AH00020|AH00526"
                     r"|Invalid command|no listening sockets")
    said = server.start(expect_failure=True)
    server.conf = good
    return said


@pytest.mark.parametrize("how", ["syntax", "port", "post_config", "last"])
def test_start_that_fails_after_a_kill_loses_nothing(httpd, how):
    """The administrator mends the configuration; the state is there.

    The start that fails last has made every segment out of the old run's
    memory, has removed that, and ends as a stop does: the others have touched
    nothing yet."""
    server = httpd(CONF, consumer="after")
    for _ in range(2):
        server.graceful()
    write_all(server, b"newest")
    server.kill_all()
    busy = socket.socket()
    busy.bind(("127.0.0.1", 0))
    busy.listen()
    text = {
        "syntax": "NoSuchDirective here\n",
        "port": f"Listen 127.0.0.1:{busy.getsockname()[1]}\n",
        "post_config": "SlotmemTestFailStart first\n",
        "last": "SlotmemTestFailStart last\n",
    }[how]
    for _ in range(2):
        said = fail_to_start(server, text)
        made = [answer.ok for answer in server.stage("post_config")]
        assert all(made) and bool(made) == (how == "last"), said
        assert ("AH00020" in said) == (how in ("post_config", "last")), said
    busy.close()
    server.start()
    check_taken(server, b"newest")
    assert objects_of(server) == server.shm_objects()
    server.stop()
    assert objects_of(server) == set()


# ---------------------------------------------------------------------------
# The marker
# ---------------------------------------------------------------------------

def test_marker_is_private_and_removed_by_a_clean_stop(httpd, mpm):
    server = httpd(CONF, mpm=mpm)
    info = os.stat(marker(server))
    assert stat.S_IMODE(info.st_mode) == 0o600 and info.st_uid == os.geteuid()
    text = storedfile.read(marker(server)).decode()
    assert re.search(r"(?m)^run [0-9a-f]{32} %d " % server.pid, text)
    server.graceful()
    server.restart()
    assert os.path.exists(marker(server))
    server.stop()
    assert not os.path.exists(marker(server))
    server.start()
    server.graceful_stop()
    assert not os.path.exists(marker(server))


def test_marker_does_not_grow_with_every_restart(httpd):
    """A server that rotates its logs hourly for years."""
    server = httpd(CONF)
    server.graceful()
    size = os.path.getsize(marker(server))
    for _ in range(3):
        server.graceful()
    assert abs(os.path.getsize(marker(server)) - size) <= 16


def test_no_child_can_write_the_marker(httpd, mpm):
    """It steers the parent, which is root."""
    server = httpd(CONF, mpm=mpm)
    for pid in server.children():
        opened = {os.readlink(path)
                  for path in glob.glob(f"/proc/{pid}/fd/*")}
        assert marker(server) not in opened


def damaged_markers(text):
    lines = text.splitlines(keepends=True)
    title, run, segments = lines[0], lines[1], lines[2:]
    yield "empty", ""
    yield "garbage", "\0\xff\n" * 5000
    yield "no title", run + "".join(segments)
    yield "another version", text.replace("slotmem-shm 1", "slotmem-shm 2")
    yield "long line", title + run + "segment " + "f" * 500000 + "\n"
    yield "numbers", title + run + "".join(
        f"segment {gen} {type} {size} {num} {name}\n"
        for gen in ("-1", "zzz", "f" * 40)
        for type in ("1", "-1", "ffffffffffffffff")
        for size, num in (("-1", "-1"), ("18446744073709551615", "4294967295"),
                          ("64", "99999999999999"), ("", "x"))
        for name in ("736567", "7", "zz", "00", "2f", "2f" * 5000))
    yield "few words", title + run + "segment\nsegment 0\nsegment 0 5 64\n" \
        "run\nrun x\ndrop\n drop x\n\n\n"
    yield "short identity", text.replace(run.split()[1], run.split()[1][:30])


def test_damaged_marker_is_no_obstacle(httpd):
    """The server starts, from the files."""
    server = httpd(CONF)
    write_all(server, b"state")
    server.graceful()
    write_all(server, b"state")     # files and memory agree
    # The absolute name's object, which no marker tells of any more.
    server.allow_log("AH00098|AH02611.*in use and not by this server")
    for _, damaged in damaged_markers(
            storedfile.read(marker(server)).decode()):
        server.kill_all()
        with open(marker(server), "w", encoding="latin-1") as file:
            file.write(damaged)
        server.start()
        check_taken(server, b"state")
        write_all(server, b"state")
        server.stop()
        server.start()
        check_taken(server, b"state")
        write_all(server, b"state")
        # What no marker tells of is left behind; not what these tests are for.
        for path in objects_of(server) - server.shm_objects():
            sharedmem.remove(path)


def test_marker_cut_off_at_any_byte_is_no_obstacle(httpd):
    """The parent was killed while it wrote it: a segment that is not listed
    was not made yet, so what is listed is taken over, the rest is as in its
    file."""
    server = httpd("SlotmemTestCreate one 64 4 persist+pregrab\n"
                   "SlotmemTestCreate two 64 4 persist+pregrab")
    server.allow_log("AH00098")
    names = "one", "two"
    # Enough of them at the edges of lines and words.
    for back in (1, 2, 3, 8, 20, 30, 60, 90, 120):
        server.graceful()
        for name in names:
            server.slotmem().fgrab(name, 0)
            server.slotmem().put(name, 0, b"%d" % back)
        text = storedfile.read(marker(server))
        server.kill_all()
        storedfile.write(marker(server), text[:-back])
        server.start()
        for name in names:
            found = text_of(server, name, 0)
            assert found == b"" or int(found) <= back or back == 1
        for path in objects_of(server) - server.shm_objects():
            sharedmem.remove(path)


def test_line_of_the_marker_without_end_does_not_spoil_the_next(httpd):
    """Killed while it wrote the marker, started, and killed once more."""
    server = httpd("SlotmemTestCreate one 64 4 persist+pregrab\n"
                   "SlotmemTestCreate two 64 4 persist+pregrab")
    server.kill_all()
    text = storedfile.read(marker(server))
    storedfile.write(marker(server), text[:-4])
    server.allow_log("AH00098")
    server.start()
    for name in "one", "two":
        server.slotmem().fgrab(name, 0)
        server.slotmem().put(name, 0, b"newest")
    assert kill_and_start(server) == set()
    for name in "one", "two":
        assert text_of(server, name, 0) == b"newest"


@pytest.mark.parametrize("what", [
    "directory", "pipe", "link", "open to all",
    pytest.param("another's", marks=NEEDS_ROOT)])
def test_marker_that_cannot_be_ours(httpd, what):
    """Whoever may write there could tell root what to remove.

    What is ours, or a link, gives way to a new file; the rest is left alone,
    and nothing is listed."""
    server = httpd(CONF, start=False)
    path, victim = marker(server), os.path.join(server.root, "victim")
    storedfile.write(victim, b"precious")
    if what == "directory":
        os.mkdir(path)
    elif what == "pipe":
        os.mkfifo(path, 0o600)
    elif what == "link":
        os.symlink(victim, path)
    else:
        storedfile.write(path, b"slotmem-shm 1\n")
        os.chmod(path, 0o666 if what == "open to all" else 0o600)
        if what == "another's":
            os.chown(path, 12345, 12345)
    if what in ("link", "open to all"):
        server.start()
        info = os.lstat(path)
        assert stat.S_ISREG(info.st_mode)
        assert stat.S_IMODE(info.st_mode) == 0o600
    else:
        server.expect_log("slotmem_shm: cannot use .*slotmem-shm.run")
        server.start()
    write_all(server, b"state")
    server.graceful()
    check_taken(server, b"state")
    server.stop()
    assert storedfile.read(victim) == b"precious"
    assert objects_of(server) == set()


# ---------------------------------------------------------------------------
# What is not to be believed
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("what", ["identity", "magic", "size", "number",
                                  "type", "total", "version", "empty", "zero"])
def test_memory_that_does_not_fit_is_not_believed(httpd, what):
    """Anyone may create objects in /dev/shm, and children write theirs."""
    if what == "empty":
        sharedmem.need_posix("nobody can shorten a System V segment")
    server = httpd("SlotmemTestCreate seg 64 10 persist+pregrab")
    server.slotmem().fgrab("seg", 0)
    server.slotmem().put("seg", 0, b"stored")
    server.graceful()
    server.kill_all()
    path = server.shm_path("seg")
    data = bytearray(sharedmem.read(path))
    at = layout.field("magic")
    assert int.from_bytes(data[at:at + 8], sys.byteorder) == MAGIC
    assert data.count(b"stored") == 1
    data = data.replace(b"stored", b"forged")
    run = layout.field("run")
    name, value = {"identity": ("run", bytes([data[run] ^ 1])),
                   "magic": ("magic", b"x"),
                   "version": ("version", b"\7"), "type": ("type", b"\1"),
                   "size": ("item_size", b"\x41"),
                   "number": ("item_num", b"\xff"),
                   "total": ("total_size", b"\0\0\0\0\0\0\0\1"),
                   }.get(what, (None, None))
    if name:
        at = layout.field(name)
        data[at:at + len(value)] = value
    elif what == "empty":
        del data[:]
    else:
        data[:] = bytes(len(data))
    sharedmem.write(path, data)
    server.allow_log("AH00098")
    server.start()
    assert text_of(server, "seg", 0) == b"stored"
    assert server.slotmem().in_use("seg") == [0]
    assert not server.log_lines(TAKEN)
    server.stop()
    assert objects_of(server) == set()


# Two servers store in one file, each as it has something to store.
ONE_FILE = (r"AH02551: .*name\.persist: it was put there while"
            r"|AH02334: .*name\.persist: renaming its new file failed"
            "|storing works again")


def test_object_of_an_absolute_name_that_is_anothers_is_left_alone(httpd):
    """Two servers may use one absolute name by mistake; the second one has no
    right to take the first one's from the system."""
    conf = "SlotmemTestCreate {} 64 10 persist abs"
    first = httpd(conf.format("${ROOT}/name"))
    name = os.path.join(first.root, "name")
    path = first.shm_path(name)
    second = httpd(conf.format(name), start=False)
    first.allow_log(ONE_FILE)
    second.allow_log(ONE_FILE)
    second.expect_log("AH02611.*in use and not by this server")
    second.start()
    assert sharedmem.exists(path)
    first.slotmem().put("abs", 0, b"first")
    second.slotmem().put("abs", 0, b"second")
    assert text_of(first, "abs", 0) == b"first"
    second.kill_all()
    second.allow_log("AH00098")
    second.start()
    assert sharedmem.exists(path)
    assert text_of(first, "abs", 0) == b"first"
    second.stop()
    assert sharedmem.exists(path)
    first.graceful()
    second.close()


def test_name_that_another_server_has_taken_since_is_left_alone(httpd):
    """The killed run's list has it, but what lies there now is another's."""
    conf = "SlotmemTestCreate {} 64 10 persist abs"
    first = httpd(conf.format("${ROOT}/name"))
    name = os.path.join(first.root, "name")
    path = first.shm_path(name)
    first.kill_all()
    sharedmem.remove(path)
    second = httpd(conf.format(name))
    first.allow_log(ONE_FILE)
    second.allow_log(ONE_FILE)
    path = second.shm_path(name)        # a key file of its own
    assert sharedmem.exists(path)
    second.slotmem().put("abs", 0, b"second")
    first.allow_log("AH00098")
    first.expect_log("AH02611.*in use and not by this server")
    first.start()
    first.stop()
    assert sharedmem.exists(path)
    assert text_of(second, "abs", 0) == b"second"
    second.stop()
    second.close()


def test_killed_server_s_memory_is_left_to_its_own_directory(httpd):
    """Others come and go meanwhile, and are killed, in theirs."""
    first, second = httpd(CONF), httpd(CONF)
    write_all(first, b"newest")
    first.kill_all()
    left = objects_of(first)
    assert left
    kill_and_start(second)
    second.stop()
    assert objects_of(first) == left
    first.allow_log("AH00098")
    first.start()
    check_taken(first, b"newest")
    assert len(first.log_lines(TAKEN)) == 3


def test_state_that_the_stock_module_stored_since_is_newer(
        httpd, our_module, stock_module):
    """Killed with ours, run with stock, then ours again: what stock stored is
    the latest, and must not be undone by what still lies in memory."""
    server = httpd("SlotmemTestCreate seg 64 10 persist+pregrab")
    server.graceful()
    server.slotmem().fgrab("seg", 0)
    server.slotmem().put("seg", 0, b"killed")
    server.graceful()
    server.kill_all()
    server.allow_log("AH00098")
    server.slotmem_module = stock_module
    server.start()
    assert text_of(server, "seg", 0) == b"killed"
    server.slotmem().put("seg", 0, b"stock!")
    server.stop()
    later = time.time() + 60        # nobody stores within a moment of a kill
    os.utime(server.persist_path("seg"), (later, later))
    server.slotmem_module = our_module
    server.start()
    assert text_of(server, "seg", 0) == b"stock!"
    server.stop()
    assert objects_of(server) == set()


# ---------------------------------------------------------------------------
# Another httpd that lives
# ---------------------------------------------------------------------------

def its_files(server):
    """What a server keeps in its directory, but for key files of memory."""
    return [path for path in glob.glob(server.run_dir + "/slotmem*")
            if not path.endswith(".shm")]


def test_directory_of_a_server_that_lives_is_left_alone(httpd):
    """A warning with its pid; memory under names of our own, that begins
    with what the other has; its memory and its files stay its own."""
    first = httpd(CONF)
    write_all(first, b"first")
    first.graceful()
    for name, slot in KEPT:         # from here on it writes no file
        rundir.wait_stored(first, b"first", {
            "abs": os.path.join(first.root, "absolute")}.get(name, name), slot)
    looks = len(first.log_lines("stored 0 segments"))
    harness.wait_for(lambda: len(first.log_lines("stored 0 segments")) > looks,
                     "a look of the helper that finds nothing to store")
    files = {path: storedfile.identity(path) for path in its_files(first)}
    objects = first.shm_objects()

    second = httpd(CONF, start=False)
    second.run_dir = first.run_dir
    second.conf = ("DefaultRuntimeDir " + first.run_dir
                   + "\nPidFile ${ROOT}/logs/httpd.pid\n"
                   + CONF.replace("${ROOT}", first.root))
    second.expect_log(rf"another httpd \(process {first.pid}\)")
    second.start()
    assert second.shm_objects() & objects == set()
    check_taken(second, b"first")
    write_all(second, b"second")
    second.graceful()
    check_taken(second, b"second")
    second.kill_all()
    second.allow_log("AH00098")
    second.start()
    check_taken(second, b"first")
    write_all(second, b"second")
    second.stop()
    for name, slot in KEPT:
        assert text_of(first, name, slot) == b"first"
    assert files == {path: storedfile.identity(path)
                     for path in its_files(first)}
    assert first.shm_objects() == objects
    assert all(map(sharedmem.exists, objects))
    first.graceful()
    check_taken(first, b"first")

    # With the first one gone, the directory is the second's from its next
    # restart on, and what that has is stored.
    second.start()
    write_all(second, b"heir's")
    first.stop()
    assert rundir.in_file(second) == b"first"
    second.graceful()
    check_taken(second, b"heir's")
    second.stop()
    assert rundir.in_file(second) == b"heir's"


def test_directory_whose_owner_is_killed_goes_to_the_one_that_waits(httpd):
    """At the next restart of the other server, without a new start: it goes
    on with what it has, which was what the owner had; what it does not have
    is stored; and what the owner left in memory is removed."""
    first = httpd("SlotmemTestCreate seg 64 10 persist+pregrab\n"
                  "SlotmemTestCreate other 64 10 persist+pregrab\n"
                  "SlotmemTestCreate extra 64 10 0")
    rundir.put(first, b"first's")
    second = httpd("DefaultRuntimeDir " + first.run_dir
                   + "\nPidFile ${ROOT}/logs/httpd.pid\n"
                   "SlotmemTestCreate seg 64 10 persist+pregrab", start=False)
    second.expect_log(r"another httpd \(process")
    second.run_dir = first.run_dir
    second.start()
    assert text_of(second, "seg", 0) == b"first's"
    rundir.put(second, b"heir's")
    rundir.put(first, b"too late")
    rundir.put(first, b"other's", "other")
    first.kill_all()
    left = objects_of(first)
    assert len(left) == 3
    second.graceful()
    assert text_of(second, "seg", 0) == b"heir's"
    assert {path for path in left if sharedmem.exists(path)} \
        <= second.shm_objects()
    assert rundir.in_file(second, "other") == b"other's"
    second.slotmem().put("seg", 0, b"second's")
    second.graceful()
    assert text_of(second, "seg", 0) == b"second's"
    second.stop()
    assert objects_of(first) == set() and not os.path.exists(marker(first))


def test_checking_the_configuration_takes_nothing_over(httpd):
    """httpd -t after a crash, or beside a server that runs."""
    server = httpd(CONF)
    check = [harness.httpd_program(), "-t", "-d", server.root, "-f",
             os.path.join(server.root, "conf", "httpd.conf")]
    environment = dict(os.environ, SLOTMEM_TEST_DIR=server.ctl_dir)
    write_all(server, b"newest")

    def run_check():
        done = subprocess.run(check, env=environment, text=True,
                              stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr

    run_check()
    assert server.shm_objects() == objects_of(server)
    server.kill_all()
    run_check()
    server.allow_log("AH00098")
    server.start()
    check_taken(server, b"newest")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_memory_that_cannot_be_stored_at_the_start_stays(httpd):
    """The object of the killed run bears the name that the new one wants, and
    is all there is of the state until a file holds it: the new one takes
    another name."""
    server = httpd("Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n"
                   "SlotmemTestCreate seg 64 10 persist+pregrab",
                   start=False, shm_size="8m")
    faults = shim.Faults(server)
    server.start()
    rundir.halt_helper(server)
    rundir.put(server, b"newest")
    server.kill_all()
    old = os.listdir(server.shm_dir)
    assert len(old) == 1
    server.expect_log("AH02334.*cannot store")
    faults.arm("1+", "EIO", "any", "rename")
    server.start()
    assert rundir.text_of(server) == b"newest"
    named = [name for name in os.listdir(server.shm_dir) if name not in old]
    assert len(named) == 1, "it has no name of its own"
    # The helper fails, too, again and again: each time with another new file.
    harness.wait_for(lambda: len(faults.counted()) >= 3, "three renames")
    server.kill_all()
    faults.disarm()
    server.start()
    assert rundir.text_of(server) == b"newest"
    server.stop()
    assert os.listdir(server.shm_dir) == []
