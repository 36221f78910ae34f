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
"""What the error log says, and what it keeps quiet about.

Log watchers know the stock module's AH numbers, so each is provoked here.  A
loss or a fallback must be told at warn or above, with what to do; a life in
which nothing goes wrong must not be told at all, but for one line a start.
"""

import os
import re
import shutil
import struct
import subprocess

import pytest

import httpd as harness
import layout
import sharedmem
from rundir import halt_helper, read_only_dev_shm

LIFE = """
SlotmemTestCreate kept 64 10 persist+pregrab
SlotmemTestCreate fleeting 64 10 pregrab
SlotmemTestAttach kept
"""
ALL = "warn slotmem_shm:trace8"


def ours(server, level=None):
    """(level, message) of the module's lines, without what httpd puts before:
    time, process and, when it is set to debug or trace, the place."""
    lines = re.findall(r"^\[[^\]]*\] \[slotmem_shm:(\w+)\] \[[^\]]*\] "
                       r"(?:\w+\.c\(\d+\): )?(.*)$", server.log(), re.M)
    return [(at, text) for at, text in lines if level in (None, at)]


BEGAN = ("slotmem_shm: {} segments, {} of them kept in files: {} went on with "
         "the memory of the generation before, {} with that of a killed run, "
         "{} were restored from file, {} began empty")


def test_start_says_one_line_and_the_rest_of_a_normal_life_none(httpd, mpm):
    """At info: what there is, and what of it came back.  A second line for
    each start, segment or checkpoint would be read by nobody."""
    server = httpd(LIFE, mpm=mpm, loglevel="info slotmem_shm:info")
    server.slotmem().grab("kept")
    assert ours(server) == [
        ("info", BEGAN.format(2, 1, 0, 0, 0, 1))]
    went_on = ("info", BEGAN.format(2, 1, 1, 0, 0, 0))
    restored = ("info", BEGAN.format(2, 1, 0, 0, 1, 0))
    for number, again in enumerate((server.graceful, server.restart), 1):
        again()
        assert ours(server)[1:] == [went_on] * number
    server.stop()
    server.start()
    server.graceful_stop()
    assert ours(server)[1:] == [went_on] * 2 + [restored]


def test_no_segments_no_line(httpd):
    """Loaded by a distribution's default, used by nobody."""
    server = httpd(loglevel="info slotmem_shm:trace8")
    server.graceful()
    server.stop()
    assert ours(server) == []


def test_segments_of_which_none_is_kept(httpd):
    """Zeros about files would make an administrator look for them."""
    server = httpd("SlotmemTestCreate one 64 10 0")
    assert ("info", "slotmem_shm: 1 segment, none of them kept in a file") \
        in ours(server)


def test_kill_is_told_once_however_many_segments(httpd):
    """At notice, since that is no normal start; but one line, not fifty."""
    server = httpd("\n".join(f"SlotmemTestCreate kept{i} 64 10 persist"
                             for i in range(50)),
                   loglevel="notice slotmem_shm:info")
    server.kill_all()
    server.start()
    assert ours(server)[1:] == [
        ("notice", BEGAN.format(50, 50, 0, 50, 0, 0))]


def test_configuration_check_says_nothing(httpd, our_module):
    """apache2ctl configtest, run by every package upgrade."""
    server = httpd(LIFE, start=False, loglevel="info slotmem_shm:info")
    config = server.write_config()
    done = subprocess.run(
        [harness.httpd_program(), "-d", server.root, "-f", config, "-t"],
        env=dict(os.environ, SLOTMEM_TEST_DIR=server.ctl_dir),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True)
    assert done.stdout == "Syntax OK\n"
    assert ours(server) == []


def numbers(server):
    """AH numbers seen, each with the levels and the texts it came with."""
    seen = {}
    for level, text in ours(server):
        match = re.match(r"(?:\(\d+\)[^:]*: )?(AH\d{5}): (.*)", text)
        if match:
            seen.setdefault(match[1], []).append((level, match[2]))
    return seen


def test_numbers_of_an_ordinary_life(httpd):
    """Each event that the stock module numbers bears its number, at the level
    of what only a developer asks for."""
    server = httpd(LIFE, loglevel=ALL)
    caller = server.slotmem(server.children()[0])
    other = server.slotmem(server.children()[1])
    assert caller.create("kept", 64, 10, "persist+pregrab").ok
    assert caller.create("late", 8, 1).ok
    assert other.attach("late").ok
    assert not other.attach("nobody's").ok
    server.graceful()
    server.stop()
    server.start()
    seen = numbers(server)
    store = server.persist_path("kept")
    for number, level, text in [
            ("AH02602", "debug", "create didn't find kept in global list"),
            ("AH02603", "debug", "create found kept in global list"),
            ("AH02300", "debug", "create kept: 64/10, begins with nothing"),
            ("AH02300", "debug", "create kept: 64/10, begins with stored file"),
            ("AH02301", "trace1", "attach looking for kept"),
            ("AH02301", "trace1", "attach looking for nobody's"),
            ("AH02302", "trace1", "attach found kept: 64/10"),
            ("AH02303", "trace1", "attach found late: 8/1"),
            ("AH02335", "trace1", f"restoring {store}: no such file yet"),
            ("AH02334", "trace1", f"storing {store}"),
            ("AH02335", "debug", f"restoring {store}: 0 of 10 slots in use")]:
        assert (level, text) in seen[number]
    assert any("attach did not find nobody's" in text
               for level, text in ours(server, "debug"))


def test_numbers_of_refused_calls(httpd):
    """The caller is told by the status; the log is for who debugs it."""
    server = httpd("SlotmemTestCreate full 64 1 pregrab", loglevel=ALL)
    caller = server.slotmem()
    assert caller.grab("full").ok
    assert caller.grab("full").rv == "APR_EINVAL"
    assert caller.fgrab("full", 7).rv == "APR_EINVAL"
    assert caller.release("full", 7).rv == "APR_EINVAL"
    assert caller.release("full", 0).ok
    assert caller.release("full", 0).rv == "APR_NOTFOUND"
    seen = numbers(server)
    assert seen["AH02293"] == [
        ("debug", "slotmem(full) grab failed. Num 1/num_free 0")]
    assert [level for level, _ in seen["AH02397"]] == ["debug"]
    assert [text for _, text in seen["AH02294"]] == [
        "slotmem(full) release failed. Num 1: slot 7 does not exist",
        "slotmem(full) release failed. Num 1: slot 0 is not in use"]


# What is lost or done without, how to bring it about, and what must be said:
# the first words that name the event, and the words that say what to do.

def no_dev_shm(server):
    server.wrapper = read_only_dev_shm()


def file_cut_short(server):
    with open(server.persist_path("kept"), "r+b") as file:
        file.truncate(20)


def file_that_does_not_fit(server):
    server.conf = server.conf.replace("kept 64", "kept 72")


def file_that_cannot_be_put_aside(server):
    file_cut_short(server)
    os.makedirs(server.persist_path("kept") + ".rejected/full")


def marker_of_somebody_else(server):
    path = os.path.join(server.run_dir, "slotmem-shm.run")
    with open(path, "w"):
        os.chown(path, 65534, 65534)


TROUBLE = {
    no_dev_shm: ("warn", r"AH02611: create: apr_shm_create\(.* failed",
                 "Is /dev/shm mounted, writable and large enough"),
    file_cut_short: ("warn", r"AH02551: .*shm\.persist: it is cut short",
                     r"the file is kept as \S*\.rejected$"),
    file_that_does_not_fit: ("warn", r"AH02551: .*does not fit the "
                             "configuration",
                             r"the file is kept as \S*\.rejected$"),
    file_that_cannot_be_put_aside: ("error", r"AH02554: .*cut short",
                                    "the next store will replace it"),
    marker_of_somebody_else: ("warn", r"cannot use \S*slotmem-shm\.run",
                              "Check owner and permissions"),
}


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda f: f.__name__)
def test_loss_at_the_start_is_told_with_the_remedy(httpd, trouble):
    """And nothing else at that level: one event, one line a segment."""
    if trouble is no_dev_shm:
        sharedmem.need_posix("shared memory is not in /dev/shm here")
    if trouble is marker_of_somebody_else and os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    level, event, remedy = TROUBLE[trouble]
    server = httpd(LIFE.replace("SlotmemTestCreate fleeting 64 10 pregrab", ""),
                   loglevel="warn")
    server.slotmem().grab("kept")
    server.stop()
    trouble(server)
    server.expect_log(event + ".*" + remedy)
    server.start()
    assert len(ours(server, level)) == 1
    assert len(ours(server)) == 1


def test_store_that_fails_names_the_step_and_the_file(httpd):
    """AH02334 at error, and the file that was there stays."""
    server = httpd(LIFE, loglevel="warn")
    server.slotmem().grab("kept")
    server.graceful()
    halt_helper(server)
    server.slotmem().grab("kept")
    new = server.persist_path("kept") + ".new"
    os.makedirs(new + "/in the way")
    with server.announced(r"AH02334: slotmem_shm: cannot store "
                          rf"{re.escape(server.persist_path('kept'))}: "
                          r"creating its new file failed .*The files keep what "
                          "they held before.*Check that the directory exists"):
        server.graceful()
    assert [level for level, _ in ours(server)][0] == "error"
    assert len(ours(server, "error")) == 1
    assert server.slotmem().info("kept").num_free == 8, "in memory it lives on"
    shutil.rmtree(new)


def test_second_server_in_a_directory_is_told_whose_it_is(httpd):
    """With the pid of the other, or it could not be found."""
    first = httpd(LIFE, loglevel="warn")
    second = httpd(LIFE, loglevel="warn", start=False)
    second.conf += f"\nDefaultRuntimeDir {first.run_dir}\n"
    second.expect_log(rf"another httpd \(process {first.pid}\) uses this "
                      "runtime directory.*give each server a "
                      "DefaultRuntimeDir of its own")
    second.start()
    assert len(ours(second)) == 1
    second.stop()


def test_memory_that_cannot_be_had_is_an_error(httpd):
    """More than the machine has: refused, and the line says which number."""
    server = httpd(loglevel="warn")
    with server.announced(r"AH02300: create vast: 1073741824/4000000000 failed"
                          r".*more than this machine has"):
        assert not server.slotmem().create("vast", 1 << 30, 4000000000).ok


def test_writer_that_died_is_told(httpd):
    """Half of a write cannot be read; who asks why `get` fails must find it.

    What a killed writer leaves is put there by hand: the lock of slot 0, held
    by a process that is dead.
    """
    server = httpd("SlotmemTestCreate seg 64 2 pregrab", loglevel="warn")
    dead = server.children()[0]
    server.kill_child(dead)
    caller = server.slotmem(server.wait_children(without=[dead])[0])
    assert caller.grab("seg").ok
    assert caller.put("seg", 0, bytes(64)).ok
    caller.write("seg", 0, struct.pack("=QQ", dead << 32 | 1, 1),
                 off=layout.lock(2, 0))
    with server.announced(
            rf"\] slotmem_shm: process {dead} died while it wrote to seg; 1 "
            "of its slots hold part of that write, and get refuses them"):
        assert not caller.get("seg", 0, 8).ok
    assert caller.put("seg", 0, bytes(64)).ok
    assert caller.get("seg", 0, 8).ok
    assert len(ours(server)) == 1


def test_names_cannot_forge_lines(httpd):
    """A newline in a segment's name must not begin a line of the log."""
    forged = "x\n[Tue Nov 24 07:00:00 2026] [core:emerg] AH99999: forged"
    server = httpd(f"SlotmemTestCreate {harness.quote_name(forged)} 8 4 0",
                   loglevel=ALL)
    assert server.log_lines("AH99999")
    assert not server.log_lines(r"^\[Tue Nov 24 07:00:00 2026\]")
