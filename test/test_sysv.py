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
"""What is different where APR makes System V shared memory.

There a name takes two things, a key file in the directory and a segment under
the number that ftok() makes of it, and either may be left without the other:
a boot takes the segments and leaves the files, and a segment's number may be
another program's.  Segments count against limits of the whole machine.  That
is APR before 1.7.1: Debian 11, Ubuntu 20.04 and 22.04, RHEL 7 to 9.
"""

import os
import pwd
import re
import subprocess

import pytest

import httpd as harness
import sharedmem

pytestmark = pytest.mark.skipif(sharedmem.kind() != "sysv",
                                reason="APR makes no System V memory here")

MPM = "event"
CONF = """
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate ${ROOT}/absolute 64 10 persist+pregrab absolute
SlotmemTestCreate plain 64 10 0
"""


def use(server, text):
    for handle in "seg", "absolute":
        server.slotmem().fgrab(handle, 0)
        assert server.slotmem().put(handle, 0, text).ok


def check(server, text):
    for handle in "seg", "absolute":
        assert server.slotmem().get(handle, 0, len(text)).bytes == text


def key_files(server):
    return [path for path in (server.key_file("seg"), server.key_file("plain"),
                              os.path.join(server.root, "absolute"))
            if os.path.exists(path)]


def remove_segment(name):
    row = sharedmem._sysv_row(name)
    subprocess.run(["ipcrm", "-m", row["shmid"]], check=True)


def test_a_name_is_a_key_file_and_a_segment(httpd):
    """Positive control: where the other tests look, there is something."""
    server = httpd(CONF, mpm=MPM)
    objects = server.shm_objects()
    assert len(objects) == 3
    assert objects == {server.shm_path("seg"), server.shm_path("plain"),
                       server.shm_path(os.path.join(server.root, "absolute"))}
    assert len(key_files(server)) == 3
    server.stop()
    assert not any(map(sharedmem.exists, objects))
    assert key_files(server) == []


def test_key_files_that_a_boot_left_take_no_name(httpd):
    """The runtime directory is on a disk: its key files lead nowhere.  The
    next segments have their names all the same, and outlive a kill."""
    server = httpd(CONF, mpm=MPM)
    use(server, b"stored")
    server.graceful()
    use(server, b"memory")
    server.allow_log("AH00098")
    server.kill_all()
    for name in server.leaked_shm():
        remove_segment(name)
    assert len(key_files(server)) == 3
    server.start()
    check(server, b"stored")
    assert len(server.shm_objects()) == 3
    use(server, b"newest")
    server.kill_all()
    server.start()
    check(server, b"newest")
    assert not server.log_lines("AH02611")


def test_key_file_of_a_child_that_a_boot_left_takes_no_name(httpd):
    """Nobody lists what children made."""
    user = harness.unprivileged_user() if os.geteuid() == 0 else None
    server = httpd(CONF, mpm=MPM, run_as=user)
    assert server.slotmem().create("late", 64, 4).ok
    late = server.shm_path("late")
    server.allow_log("AH00098")
    server.kill_all()
    remove_segment(late)
    assert sharedmem.exists(late)
    server.start()
    assert not sharedmem.exists(late)
    assert server.slotmem().create("late", 64, 4).ok


@sharedmem.needs_root
def test_child_of_root_lacks_only_the_right_to_root_s_directory(httpd, target):
    """With root, tests in which a child makes a segment are skipped here.  It
    is the key file, which a child may not make in root's directory, whichever
    module is loaded, and nothing else: the tests would pass but for that."""
    server = httpd("SlotmemTestCreate seg 64 10 persist+pregrab", target=target)
    with pytest.raises(pytest.skip.Exception, match="key file"):
        server.slotmem().create("late", 64, 4)
    account = pwd.getpwnam(server.user)
    os.chown(server.run_dir, account.pw_uid, account.pw_gid)
    assert server.slotmem().create("late", 64, 4).ok
    os.chown(server.run_dir, 0, 0)


@pytest.mark.parametrize("what", ["file", "link", "pipe"])
def test_what_lies_at_a_relative_name_s_key_is_replaced(httpd, what):
    """The runtime directory is ours; what is planted there leads nowhere."""
    server = httpd(CONF, mpm=MPM, start=False)
    victim = os.path.join(server.root, "victim")
    with open(victim, "w") as file:
        file.write("precious")
    path = server.key_file("seg", 0)
    if what == "file":
        with open(path, "w") as file:
            file.write("no key file of APR's")
    elif what == "link":
        os.symlink(victim, path)
    else:
        os.mkfifo(path)
    server.start()
    assert server.shm_path("seg") in server.shm_objects()
    use(server, b"text")
    server.stop()
    assert not os.path.lexists(path)
    with open(victim) as file:
        assert file.read() == "precious"


@pytest.mark.parametrize("what", ["file", "link"])
def test_what_lies_at_an_absolute_name_stays(httpd, what):
    """Any path may be a name: it is no permission to remove what is there."""
    server = httpd(CONF, mpm=MPM, start=False)
    path = os.path.join(server.root, "absolute")
    victim = os.path.join(server.root, "victim")
    for name in (victim, path) if what == "file" else (victim,):
        with open(name, "w") as file:
            file.write("precious")
    if what == "link":
        os.symlink(victim, path)
    server.expect_log("AH02611: .*absolute.*The segment is made without a "
                      "name.*ipcs -m")
    server.start()
    use(server, b"text")
    server.graceful()
    check(server, b"text")
    server.stop()
    assert os.path.islink(path) == (what == "link")
    for name in victim, path:
        with open(name) as file:
            assert file.read() == "precious"


@sharedmem.needs_root
def test_segment_of_another_user_under_a_name_is_neither_used_nor_removed(
        httpd):
    """A key file and a segment that root did not make, at an absolute name."""
    server = httpd(CONF, mpm=MPM, start=False)
    path = os.path.join(server.root, "absolute")
    with open(path, "wb") as file:
        file.write((4096).to_bytes(8, "little"))
    number = int(sharedmem.of_key(path)[4:], 16)
    subprocess.run(
        ["setpriv", "--reuid=54321", "--clear-groups", "python3", "-c",
         f"import ctypes; i = ctypes.CDLL(None).shmget({number}, 4096, "
         "0o1600); assert i >= 0"], check=True)
    name = f"SYSV{number:08x}"
    try:
        assert sharedmem.owner(name) == 54321
        server.allow_log("AH02611: .*absolute")
        server.start()
        use(server, b"text")
        server.stop()
        assert sharedmem.owner(name) == 54321
        assert set(sharedmem.read(name)) == {0}
    finally:
        remove_segment(name)


LIMITED = ["unshare", "--ipc", "sh", "-c",
           'echo $SEGMENTS > /proc/sys/kernel/shmmni && exec "$@"', "sh"]


@sharedmem.needs_root
def test_a_machine_without_segments_to_spare_costs_only_the_name(httpd):
    """Three are asked for, two can be had: the third works without a name,
    the log says what is full, and no key file is left of the attempt."""
    server = httpd(CONF, mpm=MPM, start=False, wrapper=LIMITED,
                   env={"SEGMENTS": "2"})
    server.expect_log("AH02611: .*The segment is made without a name.*"
                      "ipcs -m.*shmmni")
    server.start()
    use(server, b"text")
    plain = server.slotmem().mapping("plain").line
    assert not sharedmem.is_named(plain)
    assert len(key_files(server)) == 2
    # A restart makes the new ones before the old ones are gone.
    server.graceful()
    check(server, b"text")
    server.stop()
    assert key_files(server) == []
    server.start()
    check(server, b"text")


def test_names_of_everything_that_is_made_are_told_by_ipcs(httpd):
    """An administrator who looks for shared memory has ipcs and the key file:
    the segment's number in hexadecimal is in both."""
    server = httpd(CONF, mpm=MPM)
    listing = subprocess.run(["ipcs", "-m"], check=True, text=True,
                             stdout=subprocess.PIPE).stdout
    for name in server.shm_objects():
        assert re.search(rf"^0x{name[4:]}\s", listing, re.M)
