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
"""A good file that cannot be read just now, and files that were put aside.

No good file is ever replaced by nothing: not because a descriptor or memory
was short for a moment, not because another file was put aside before it.
"""

import glob
import os

import pytest

import httpd as harness
import shim
import storedfile
from rundir import in_file, put, text_of, wait_stored

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

CONF = """
Mutex sem
PidFile ${ROOT}/logs/httpd.pid
SlotmemTestCreate seg 64 10 persist+pregrab
"""
PIECES = "AH02551|AH02554|AH02334|slotmem_shm: "


def anywhere(server, content):
    """Whether some file beside the segment's holds exactly that."""
    return any(storedfile.read(path) == content
               for path in glob.glob(server.persist_path("seg") + "*"))


@pytest.fixture
def faulty(httpd):
    """A server that has stored a state, and was stopped."""
    def make(text=b"state", **more):
        server = httpd(CONF, start=False, shm_size="8m", **more)
        server.faults = shim.Faults(server)
        server.allow_log("AH00098")
        shim.preload(server, "hurry")
        server.start()
        put(server, text)
        server.stop()
        assert in_file(server) == text
        return server
    return make


def reading_calls(server):
    """What the start does with the stored file, in order: [(n, call)]."""
    server.faults.arm(0, "none")
    server.start()
    counted = server.faults.disarm()
    server.stop()
    return counted


# ---------------------------------------------------------------------------
# Errors that pass
# ---------------------------------------------------------------------------

@needs_root
def test_positive_control_the_file_is_read(faulty):
    server = faulty()
    calls = [call for call, path in reading_calls(server)
             if path == server.persist_path("seg")]
    assert "open" in calls and {"read", "pread"} & set(calls)
    server.start()
    assert text_of(server) == b"state"


@needs_root
@pytest.mark.parametrize("error, calls", [
    ("EMFILE", "open,openat"), ("ENOMEM", "open,openat"),
    ("EIO", "read,pread"), ("EINTR", "read,pread"), ("ENOMEM", "read,pread"),
    ("EIO", "open,openat")])
def test_one_error_while_a_good_file_is_read(faulty, error, calls):
    """It was put aside as damaged, and the server began with nothing."""
    server = faulty()
    good = storedfile.read(server.persist_path("seg"))
    operations = [(call, path) for call, path in reading_calls(server)
                  if call in calls.split(",")]
    mine = [n for n, (_, path) in enumerate(operations, 1)
            if path == server.persist_path("seg")]
    assert mine
    server.allow_log(PIECES)
    for n in mine:
        server.faults.arm(n, error, calls=calls)
        server.start()
        server.faults.disarm()
        assert text_of(server) == b"state", \
            f"not tried again after {error} at operation {n}"
        assert server.slotmem().in_use("seg") == [0]
        server.stop()
        assert storedfile.read(server.persist_path("seg")) == good
        assert not os.path.exists(server.persist_path("seg") + ".rejected")


@needs_root
def test_one_error_while_a_larger_file_with_claims_is_read(httpd):
    """It has more parts than others: whose the slots are, and what has no
    room.  And it may need memory."""
    conf = CONF + "SlotmemTestCreate claimed 8 NUM persist+clearinuse\n"
    server = httpd(conf.replace("NUM", "90000"), start=False, shm_size="16m")
    server.allow_log("AH00098|" + PIECES)
    faults = shim.Faults(server)
    claims = [harness.op_line("fgrab", h="claimed", i=1),
              harness.op_line("put", h="claimed", i=1, data=b"kept")]
    server.at_stage("post_config", *claims)
    server.start()
    server.stop()
    good = storedfile.read(server.persist_path("claimed"))
    server.conf = conf.replace("NUM", "70000")
    server.at_stage("post_config", claims[0])
    for calls, error in ("pread", "EIO"), ("malloc", "ENOMEM"):
        n = 0
        while True:
            n += 1
            faults.arm(n, error, calls=calls)
            server.start()
            done = len(faults.disarm()) < n
            assert server.slotmem().read("claimed", 1, 4) == b"kept", \
                f"{error} at {calls} {n}"
            server.stop()
            storedfile.write(server.persist_path("claimed"), good)
            if done:
                break
        assert n > 3


@needs_root
def test_file_of_another_slot_size_that_cannot_be_read_now(faulty):
    """Whether it is whole is not known then, so it is not put aside."""
    server = faulty()
    path = server.persist_path("seg")
    good = storedfile.read(path)
    server.conf = CONF.replace("seg 64", "seg 72")
    server.env["FAULTS_PREFIX"] = path
    server.faults.arm("3+", "EIO", "leader", "pread")
    server.expect_log("AH02553: .*cannot be read")
    server.start()
    assert len(server.faults.disarm()) > 3
    assert storedfile.read(path) == good
    assert not os.path.exists(path + ".rejected")


@needs_root
@pytest.mark.parametrize("error, calls", [
    ("EMFILE", "open,openat"), ("EIO", "read,pread"),
    ("ENOMEM", "read,pread")])
@pytest.mark.parametrize("ends", ["stop", "graceful", "kill"])
def test_good_file_that_cannot_be_read_at_all(faulty, mpm, error, calls, ends):
    """It begins empty, says so, and the file stays where it is, whatever is
    stored later: once it can be read, it is."""
    server = faulty(mpm=mpm)
    good = storedfile.read(server.persist_path("seg"))
    opens = [n for n, (call, path) in enumerate(
        [c for c in reading_calls(server) if c[0] in calls.split(",")], 1)
        if path == server.persist_path("seg")]
    server.expect_log("AH0255[14]|AH02334|slotmem_shm: .*(read|cannot)")
    server.faults.arm(f"{opens[0]}+", error, calls=calls)
    server.start()
    server.faults.disarm()
    # A module may have had it all the same, by another way.
    began = text_of(server)
    assert began in (b"", b"state")
    if ends == "graceful":
        server.graceful()
        server.stop()
    elif ends == "kill":
        server.kill_all()
    else:
        server.stop()
    assert storedfile.read(server.persist_path("seg")) == good, \
        "a good file was replaced by nothing"
    server.start()
    assert text_of(server) == b"state"


@needs_root
def test_state_that_is_written_beside_a_file_that_could_not_be_read(faulty):
    """Both are wanted then, and neither may be gone."""
    server = faulty()
    good = storedfile.read(server.persist_path("seg"))
    server.expect_log("AH0255[14]|AH02334|slotmem_shm: .*(read|cannot)")
    server.faults.arm("1+", "EIO", calls="read,pread")
    server.start()
    server.faults.disarm()
    assert text_of(server) == b""
    put(server, b"newer", slot=3)
    server.graceful()
    assert text_of(server, slot=3) == b"newer", "in memory"
    server.stop()
    assert anywhere(server, good), "the old state is lost"


# ---------------------------------------------------------------------------
# Files that were put aside
# ---------------------------------------------------------------------------

def image(text, num=10, slot=0):
    return storedfile.image(64, num, "persist+pregrab", {slot: text}, [slot])


DAMAGED = b"no stored file at all" * 10


@pytest.mark.parametrize("first, second", [
    ("good", "damaged"), ("damaged", "good"), ("good", "good")])
def test_second_rejection_replaces_no_good_file(httpd, first, second):
    """The first .rejected was overwritten by the second one: the state of
    months by a file that was damaged anyway."""
    server = httpd(CONF, start=False)
    server.expect_log("AH0255[14]")
    contents = []
    for which, text in (first, b"one"), (second, b"two"):
        data = DAMAGED if which == "damaged" else storedfile.image(
            128, 10, "persist+pregrab", {0: text}, [0])
        contents.append((which, data))
        storedfile.write(server.persist_path("seg"), data)
        server.start()
        assert text_of(server) == b""
        put(server, b"state")
        server.stop()
    for which, data in contents:
        assert which == "damaged" or anywhere(server, data), \
            "a good file was replaced"
    assert in_file(server) == b"state"


def test_rejections_do_not_pile_up(httpd):
    """One name for damaged files, not a growing pile."""
    server = httpd(CONF, start=False)
    server.expect_log("AH0255[14]")
    for turn in range(5):
        storedfile.write(server.persist_path("seg"), DAMAGED + b"%d" % turn)
        server.start()
        put(server, b"state")
        server.stop()
    assert len(glob.glob(server.persist_path("seg") + "*")) <= 3


def reject_by_configuration(server):
    """Another slot size, for once; and what was learnt meanwhile."""
    put(server, b"precious")
    server.stop()
    good = storedfile.read(server.persist_path("seg"))
    right, server.conf = server.conf, server.conf.replace(" 64 ", " 128 ")
    with server.announced("AH02551"):
        server.start()
        assert text_of(server) == b""
    assert anywhere(server, good)
    put(server, b"wide")
    server.conf = right
    return good


@pytest.mark.parametrize("when", ["stopped", "running"])
def test_advice_to_move_it_back_works(httpd, when):
    """README: once the configuration fits, the file that was put aside is
    moved back.  On a running server the next store replaced it."""
    server = httpd(CONF)
    server.allow_log("AH00098")
    good = reject_by_configuration(server)
    aside = server.persist_path("seg") + ".rejected"
    assert storedfile.read(aside) == good
    server.allow_log("AH02551|slotmem_shm: ")
    if when == "running":
        # Follows the README: see its table, AH02551.
        server.write_config()
        os.rename(aside, server.persist_path("seg"))
        server.stop()
        server.start()
        if text_of(server) != b"precious":
            assert anywhere(server, good), "what was moved back is lost"
            server.stop()
            found = [path for path in glob.glob(server.persist_path("seg")
                     + "*") if storedfile.read(path) == good]
            os.rename(found[0], server.persist_path("seg"))
            server.start()
    else:
        server.stop()
        os.rename(aside, server.persist_path("seg"))
        server.start()
    assert text_of(server) == b"precious"
    assert server.slotmem().in_use("seg") == [0]


def test_file_that_appears_while_it_runs_is_not_overwritten(httpd):
    """Somebody moved it there: the module that wrote the last one knows that
    this one is not its own."""
    server = httpd(CONF, start=False)
    shim.preload(server, "hurry")
    server.allow_log("AH02551|slotmem_shm: ")
    server.start()
    put(server, b"one")
    server.graceful()
    wait_stored(server, b"one")
    moved = image(b"moved back")
    storedfile.write(server.persist_path("seg") + ".other", moved)
    os.rename(server.persist_path("seg") + ".other",
              server.persist_path("seg"))
    put(server, b"two")
    harness.wait_for(lambda: not os.path.exists(server.persist_path("seg"))
                     or in_file(server) == b"two"
                     or server.log_lines("not.*ours|put aside|kept as"),
                     "the next store")
    server.stop()
    assert anywhere(server, moved), "the file that was moved back is lost"
