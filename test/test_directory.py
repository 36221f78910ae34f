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
"""The runtime directory under a running server: cleaned, without locks, with
another mode, moved; and the stored file that somebody deletes."""

import contextlib
import os
import stat

import pytest

import httpd as harness
import sharedmem
import shim
import storedfile
from rundir import (FROM_MEMORY, halt_helper, in_file, left_over, marker,
                    put, relation, text_of, wait_relation, wait_stored)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CONF = """
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate plain 64 10 pregrab
PidFile ${ROOT}/logs/httpd.pid
"""


@pytest.fixture
def quick(httpd):
    """quick(conf, ...) starts a server that looks at its directory often."""
    def make(conf=CONF, **more):
        start = more.pop("start", True)
        more.setdefault("modules", ["status"])
        server = httpd(conf, start=False, **more)
        server.allow_log("AH00098")
        shim.preload(server, "hurry")
        return server.start() if start else server
    return make


def clean_up(server):
    """What tmpreaper, or a person, does; it may take the helper's new file from
    under its rename."""
    server.allow_log("AH02334.*renaming its new file failed")
    for name in os.listdir(server.run_dir):
        path = os.path.join(server.run_dir, name)
        if os.path.isfile(path):
            os.unlink(path)


def test_positive_control_directory_left_alone(quick, mpm):
    server = quick(mpm=mpm)
    assert relation(server) == "owner"
    put(server, b"one")
    server.graceful()
    put(server, b"two")
    server.kill_all()
    server.start()
    assert text_of(server) == b"two"
    assert left_over(server) == set()


# ---------------------------------------------------------------------------
# A cleaner
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("between", ["a reload", "a round", "a round of each"])
def test_directory_emptied_while_it_runs(quick, mpm, between):
    """The change after it was lost by a kill, objects leaked, and nothing was
    said: the lock was on a file that had no name any more."""
    server = quick(mpm=mpm)
    put(server, b"before")
    # Then there is nothing new to be stored, but for the lost file.
    wait_stored(server, b"before")
    late = server.children()[0]
    assert server.slotmem(late).create("late", 64, 4, "0").ok
    clean_up(server)
    if between != "a reload":
        harness.wait_for(lambda: os.path.exists(marker(server)),
                         "the marker to be written anew")
        # The helper is woken next; a kill in between finds a deleted file,
        # which means to begin anew.
        harness.wait_for(lambda: os.path.exists(server.persist_path("seg")),
                         "the file to be stored anew")
    if between != "a round":
        server.graceful()
    assert relation(server) == "owner"
    put(server, b"after")
    if between == "a round" and sharedmem.kind() != "posix":
        # The way to the memory went with the key file; a restart makes a new
        # one, and until then the stored file has to do.
        wait_stored(server, b"after")
    server.kill_all()
    assert left_over(server)
    server.start()
    assert text_of(server) == b"after"
    assert left_over(server) == set()


@sharedmem.only_posix("the way to the memory went with the directory's files")
def test_killed_before_the_emptied_directory_has_its_files_again(quick):
    """A stored file that is gone means to begin anew; not so when everything
    went with it while the server ran, and it has seen that."""
    server = quick()
    put(server, b"before")
    wait_stored(server, b"before")
    halt_helper(server)
    clean_up(server)

    def listed():
        with contextlib.suppress(FileNotFoundError):
            with open(marker(server)) as file:
                return file.read().count("segment ") == 2

    harness.wait_for(listed, "the marker to be written anew")
    put(server, b"after")
    server.kill_all()
    server.start()
    assert text_of(server) == b"after"


def test_emptied_directory_is_not_left_to_a_second_server(quick, httpd):
    """Else both are owners."""
    first = quick()
    clean_up(first)
    harness.wait_for(lambda: os.path.exists(marker(first)),
                     "the marker to be written anew")
    second = quick(start=False)
    second.run_dir = first.run_dir
    second.expect_log("slotmem_shm: .*another httpd")
    second.start()
    assert (relation(first), relation(second)) == ("owner", "heir")


def test_stored_file_deleted_while_it_runs_is_stored_again(quick):
    """Only after a stop, or a kill, does it mean to begin anew."""
    server = quick()
    put(server, b"state")
    server.graceful()
    wait_stored(server, b"state")
    os.unlink(server.persist_path("seg"))
    server.stop()
    assert in_file(server) == b"state"


def test_directory_removed_while_it_runs(quick):
    """httpd refuses to restart then; what was in memory is stored as soon as
    somebody makes the directory again."""
    server = quick()
    server.allow_log(r"AH02334|slotmem_shm: cannot")
    put(server, b"before")
    clean_up(server)
    os.rmdir(server.run_dir)
    put(server, b"state")
    harness.wait_for(lambda: server.log_lines("AH02334.*cannot store"),
                     "a store to fail")
    os.mkdir(server.run_dir)
    wait_stored(server, b"state")
    harness.wait_for(lambda: os.path.exists(marker(server)), "the marker")
    put(server, b"later")
    if sharedmem.kind() == "posix":     # else the names went with their files
        server.kill_all()
        server.start()
        assert text_of(server) == b"later"
    server.stop()
    assert left_over(server) == set()
    assert in_file(server) == b"later"


# ---------------------------------------------------------------------------
# The marker's mode
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("mode", [0o660, 0o640, 0o666])
def test_marker_with_another_mode(quick, mode):
    """A volume's fsGroup does it: warnings at every start for good, and
    objects of killed runs that stay."""
    server = quick()
    put(server, b"before")
    os.chmod(marker(server), mode)
    server.graceful()
    put(server, b"after")
    wait_stored(server, b"after")   # such a list need not be believed
    os.chmod(marker(server), mode)
    server.kill_all()
    server.start()
    assert text_of(server) == b"after"
    assert left_over(server) == set()
    assert stat.S_IMODE(os.stat(marker(server)).st_mode) == 0o600
    assert relation(server) == "owner"
    server.kill_all()
    os.chmod(marker(server), mode)
    server.start()
    assert text_of(server) == b"after"
    server.stop()
    assert left_over(server) == set()
    assert not os.path.exists(marker(server))


# ---------------------------------------------------------------------------
# No locks
# ---------------------------------------------------------------------------

@needs_root
def test_file_system_without_locks(quick, mpm):
    """NFS without its lock service: warnings at every start for good, and
    objects of killed runs that stayed."""
    server = quick("Mutex sem\n" + CONF, mpm=mpm, start=False,
                   shm_size="8m")
    faults = shim.Faults(server)
    faults.arm("1+", "ENOLCK", who="any", calls="lock")
    server.allow_log(r"slotmem_shm: .*(lock|marker|slotmem-shm.run)")
    server.start()
    assert faults.counted(), "no lock was asked for: the test shows nothing"
    assert relation(server) == "unlisted"
    put(server, b"one")
    server.graceful()
    put(server, b"two")
    server.restart()
    assert text_of(server) == b"two"
    wait_stored(server, b"two")
    put(server, b"three")
    server.stop()
    assert in_file(server) == b"three"
    assert os.listdir(server.shm_dir) == []
    server.start()
    assert text_of(server) == b"three"
    server.kill_all()
    left = set(os.listdir(server.shm_dir))
    assert left
    server.start()
    assert text_of(server) == b"three"
    server.stop()
    assert os.listdir(server.shm_dir) == [], "left by the killed run"


@needs_root
def test_locks_that_come_back(quick):
    """The directory is ours from the next round on."""
    server = quick("Mutex sem\n" + CONF, start=False, shm_size="8m")
    faults = shim.Faults(server)
    faults.arm("1+", "ENOLCK", who="any", calls="lock")
    server.allow_log(r"slotmem_shm: .*(lock|marker|slotmem-shm.run)")
    server.start()
    put(server, b"one")
    faults.disarm()
    wait_relation(server, "owner")
    put(server, b"two")
    server.kill_all()
    server.start()
    assert text_of(server) == b"two"
    assert server.log_lines(FROM_MEMORY)


# ---------------------------------------------------------------------------
# Moved
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("step", ["graceful", "restart"])
def test_another_runtime_directory_from_a_restart_on(quick, mpm, step):
    """The state comes along, and nothing of ours claims the old directory."""
    server = quick(mpm=mpm)
    put(server, b"state")
    server.graceful()
    put(server, b"moved")
    old = marker(server)
    server.run_dir = os.path.join(server.root, "elsewhere")
    os.mkdir(server.run_dir)
    server.write_config()
    getattr(server, step)()
    assert text_of(server) == b"moved"
    assert relation(server) == "owner"
    harness.wait_for(lambda: not os.path.exists(old),
                     "the old directory's marker to be removed")
    assert os.path.exists(marker(server))
    put(server, b"later")
    server.kill_all()
    server.start()
    assert text_of(server) == b"later"
    server.stop()
    assert in_file(server) == b"later"
    assert left_over(server) == set()


@pytest.mark.parametrize("how", ["kill", "foreign", "foreign and kill"])
def test_another_runtime_directory_where_nothing_is_stored_yet(httpd, mpm,
                                                               how):
    """That the state was stored in the old one says nothing of the new one: it
    is not deleted there, and a good file that lies there is somebody else's."""
    server = httpd(CONF, start=False, mpm=mpm)
    server.allow_log("AH00098")
    faults = shim.Faults(server)
    elsewhere = os.path.join(server.root, "elsewhere")
    server.env["FAULTS_PREFIX"] = elsewhere + "/slotmem-shm-seg"
    server.start()
    put(server, b"state")
    wait_stored(server, b"state")
    foreign = storedfile.read(server.persist_path("seg"))
    put(server, b"moved")
    os.mkdir(elsewhere)
    server.run_dir = elsewhere
    if how != "kill":
        server.expect_log("AH02551: .*was put there")
        storedfile.write(server.persist_path("seg"), foreign)
    server.write_config()
    faults.arm(1, "wait", "helper")
    server.graceful()
    harness.wait_for(faults.counted, "the helper to begin")
    if how != "foreign":
        server.kill_all()
        faults.disarm()
        server.start()
    else:
        faults.go()
        wait_stored(server, b"moved")
    if how != "kill":
        assert storedfile.read(server.persist_path("seg")
                               + ".rejected") == foreign
    assert text_of(server) == b"moved"
    server.stop()
    assert in_file(server) == b"moved"


# ---------------------------------------------------------------------------
# Reset
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["stop", "kill"])
def test_deleted_file_means_to_begin_anew(quick, mpm, how):
    """After a kill the deleted state was back, out of memory."""
    server = quick(mpm=mpm)
    put(server, b"state")
    server.graceful()
    wait_stored(server, b"state")
    put(server, b"newer")
    if how == "stop":
        server.stop()
    else:
        server.kill_all()
    os.unlink(server.persist_path("seg"))
    server.start()
    assert text_of(server) == b""
    assert server.slotmem().in_use("seg") == []
    assert left_over(server) == set()
    put(server, b"anew")
    server.graceful()
    assert text_of(server) == b"anew"


def test_file_that_never_was_is_not_a_deleted_one(quick, mpm):
    """Killed before anything was stored: memory is all there is."""
    server = quick(mpm=mpm, start=False)
    # Nothing is stored while the helper cannot write.
    server.start()
    put(server, b"newest")
    server.kill_all()
    assert left_over(server)
    server.start()
    assert text_of(server) == b"newest"


def test_one_deleted_file_of_two(quick):
    """Only the segment whose file it was begins anew."""
    server = quick(CONF + "SlotmemTestCreate other 64 10 persist+pregrab")
    for name in "seg", "other":
        put(server, b"state", name)
    server.graceful()
    for name in "seg", "other":
        wait_stored(server, b"state", name)
        put(server, b"newer", name)
    server.kill_all()
    os.unlink(server.persist_path("seg"))
    server.start()
    assert text_of(server) == b""
    assert text_of(server, "other") == b"newer"
