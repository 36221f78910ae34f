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
"""What the machine does not give, or gives to somebody else.

Each case either works or ends in a message that says what to do.  Never a
signal, never a server that does not start for want of a name.
"""

import mmap
import os
import re
import shutil
import stat
import subprocess
import tempfile
import threading
import time

import pytest

import httpd as harness
import sharedmem
import shim
from rundir import read_only_dev_shm

# One MPM will do: what is tried here happens before children are forked, or
# in a child of any kind.
MPM = "event"
NO_NAME = r"AH02611: .*The segment is made without a name"
SEG = "SlotmemTestCreate seg 1024 100 persist+pregrab\n"


def use(server, handle="seg"):
    """Grabs, puts and gets in one child, and sees it in another."""
    first, second = server.children()[:2]
    answer = server.slotmem(first).grab(handle)
    assert answer.ok
    data = os.urandom(16)
    assert server.slotmem(first).put(handle, answer.id, data).ok
    assert server.slotmem(second).get(handle, answer.id, 16).bytes == data
    return answer.id, data


def holds(server, slot, data, handle="seg"):
    return server.slotmem().get(handle, slot, len(data)).bytes == data


# ---------------------------------------------------------------------------
# /dev/shm
# ---------------------------------------------------------------------------

def without_dev_shm(server):
    """A wrapper: a /dev in which there is no shm."""
    dev = os.path.join(server.root, "dev")
    os.makedirs(dev)
    script = (f"mount -t tmpfs tmpfs {dev} && "
              "for d in null zero random urandom; do "
              f": > {dev}/$d && mount --bind /dev/$d {dev}/$d || exit 1; done;"
              f' mount --rbind {dev} /dev && exec "$@"')
    return ["unshare", "-m", "sh", "-c", script, "sh"]


@sharedmem.only_posix("shared memory is not in /dev/shm here")
@pytest.mark.parametrize("wrapper", [without_dev_shm,
                                     lambda server: read_only_dev_shm()],
                         ids=["none", "read-only"])
def test_server_starts_and_keeps_state_without_dev_shm(httpd, wrapper):
    """A container may have no /dev/shm, or none that can be written to."""
    server = httpd(SEG, mpm=MPM, start=False)
    server.wrapper = wrapper(server)
    server.expect_log(NO_NAME + ".*Is /dev/shm mounted, writable and large")
    server.start()
    slot, data = use(server)
    server.graceful()
    assert holds(server, slot, data)
    server.stop()
    server.start()
    assert holds(server, slot, data)


def test_dev_shm_of_64_kib_is_too_small_for_a_segment(httpd):
    """The stock module dies of SIGBUS when it first touches the segment."""
    server = httpd(SEG, mpm=MPM, shm_size="64k", start=False)
    server.expect_log(NO_NAME)
    server.start()
    slot, data = use(server)
    server.restart()
    assert holds(server, slot, data)
    assert os.listdir(server.shm_dir) == []


def test_dev_shm_that_fills_up_halfway_costs_only_the_name(httpd):
    """Of eight segments some have a name, the others none; all work, all are
    kept over a restart, and what a killed run left is cleaned up."""
    names = [f"seg{i}" for i in range(8)]
    server = httpd("".join(f"SlotmemTestCreate {name} 1000 100 persist\n"
                           for name in names),
                   mpm=MPM, shm_size="512k", start=False)
    server.expect_log(NO_NAME)
    server.start()
    sm = server.slotmem()
    for i, name in enumerate(names):
        assert sm.put(name, i, name.encode()).ok
    named = os.listdir(server.shm_dir)
    assert 0 < len(named) < len(names)
    server.graceful()
    for i, name in enumerate(names):
        assert holds(server, i, name.encode(), name)
    server.kill_all()
    server.start()
    assert len(os.listdir(server.shm_dir)) == len(named)
    for i, name in enumerate(names):
        assert server.slotmem().info(name).num_slots == 100
    server.stop()
    assert os.listdir(server.shm_dir) == []


def test_child_is_told_when_dev_shm_is_full(httpd):
    """A child cannot do without a name, so it gets an error, not a signal."""
    server = httpd(SEG, mpm=MPM, shm_size="256k")
    sm = server.slotmem(server.children()[0])
    server.expect_log("AH02611: .*A child process cannot share memory that "
                      "has no name. Is /dev/shm mounted, writable and large")
    server.expect_log("AH02300: create big: 4096/100 failed")
    assert not sm.create("big", 4096, 100).ok
    assert sm.create("small", 64, 10).ok
    assert sm.put("small", 1, b"x").ok


# ---------------------------------------------------------------------------
# Names that are taken
# ---------------------------------------------------------------------------

def plant(path, uid):
    with open(path, "wb") as file:
        file.write(b"\xff" * 8192)
    os.chown(path, uid, uid)


@sharedmem.only_posix("test_sysv.py has the System V kind of it")
@pytest.mark.parametrize("uid", [0, 65534])
def test_relative_name_that_is_taken_is_taken_back(httpd, uid):
    """Its key lies in the runtime directory, which is ours by the marker."""
    server = httpd(SEG, mpm=MPM, start=False)
    path = server.shm_path("seg", 0)
    plant(path, uid)
    server.start()
    assert os.stat(path).st_uid == 0
    use(server)
    server.stop()
    assert not os.path.exists(path)


@sharedmem.only_posix("test_sysv.py has the System V kind of it")
@pytest.mark.parametrize("uid", [0, 65534])
def test_absolute_name_that_is_taken_is_left_alone(httpd, uid):
    """Another user has made the object, or a process that lives has it
    mapped."""
    server = httpd("", mpm=MPM, start=False)
    name = server.root + "/taken"
    server.conf = f"SlotmemTestCreate {name} 1024 10 persist+pregrab seg\n"
    path = sharedmem.of_key(name)
    plant(path, uid)
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if uid:
            mapped.close()
        server.expect_log(NO_NAME)
        server.start()
        slot, data = use(server)
        server.graceful()
        assert holds(server, slot, data)
        server.stop()
        with open(path, "rb") as file:
            assert file.read() == b"\xff" * 8192
        assert os.stat(path).st_uid == uid
    finally:
        mapped.close()
        os.unlink(path)


@sharedmem.only_posix("test_sysv.py has the System V kind of it")
def test_absolute_name_of_something_left_over_is_taken_back(httpd):
    """Ours, and nobody who lives has it mapped: a killed server left it."""
    server = httpd("", mpm=MPM, start=False)
    name = server.root + "/taken"
    server.conf = f"SlotmemTestCreate {name} 1024 10 persist+pregrab seg\n"
    path = sharedmem.of_key(name)
    plant(path, os.geteuid())
    server.start()
    slot, data = use(server)
    server.kill_all()
    server.start()
    assert holds(server, slot, data), "its memory had no name"
    server.stop()
    assert not os.path.exists(path)


@sharedmem.only_posix("test_sysv.py has the System V kind of it")
def test_child_does_not_take_a_planted_object_for_its_sibling_s(httpd):
    """Without the identity of the run in its header it is not believed."""
    server = httpd(SEG, mpm=MPM)
    path = server.shm_path("late")
    plant(path, 65534)
    try:
        server.expect_log(r"AH02611: .*late_0.shm\) of \d+ bytes failed")
        server.expect_log("AH02300: create late: 64/10 failed")
        sm = server.slotmem(server.children()[0])
        assert not sm.attach("late").ok
        assert not sm.create("late", 64, 10).ok
    finally:
        os.unlink(path)


# ---------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------

def test_no_memory_is_an_error_that_says_so(httpd):
    """Named or not, 512 MiB do not fit into an address space of 400."""
    server = httpd("SlotmemTestCreate huge 1048576 512 0\n" + SEG,
                   mpm="prefork", strict=False, start=False,
                   wrapper=["prlimit", f"--as={400 << 20}"])
    server.expect_log(NO_NAME)
    server.expect_log("AH02611: .*has not that much memory to give")
    server.expect_log("AH02300: create huge: 1048576/512 failed")
    server.start()
    huge, small = server.stage("post_config")
    assert huge.rv == "APR_ENOMEM" and small.ok
    use(server)
    assert not sharedmem.exists(server.shm_path("huge"))


def resident(pid, name, least):
    """Bytes that are there of the mappings of that name and size."""
    found = 0
    with open(f"/proc/{pid}/smaps") as file:
        for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", file.read()):
            head = part.partition("\n")[0]
            if name in head and int(re.search(r"(?m)^Size: +(\d+)",
                                              part)[1]) * 1024 >= least:
                found += int(re.search(r"(?m)^Rss: +(\d+)", part)[1]) * 1024
    return found


@sharedmem.only_posix("shared memory is not in /dev/shm here")
def test_pages_of_memory_without_a_name_are_there_from_the_start(httpd):
    """Else a machine that is short of memory kills a child at a write, long
    after the start."""
    server = httpd("SlotmemTestCreate seg 65536 256 0\n", mpm=MPM, start=False)
    server.wrapper = without_dev_shm(server)
    server.expect_log(NO_NAME)
    server.start()
    assert resident(server.pid, "/dev/zero", 16 << 20) >= 16 << 20


@sharedmem.needs_root
@sharedmem.only_posix("shared memory is not in /dev/shm here")
@pytest.mark.parametrize("error, answer", [("ENOMEM", "APR_ENOMEM"),
                                           ("EFAULT", "APR_ENOMEM"),
                                           ("EINVAL", "APR_SUCCESS")])
def test_pages_that_cannot_be_had(httpd, error, answer):
    """Told at the start; but a kernel that does not know the call gives pages
    when they are touched."""
    server = httpd(SEG, mpm=MPM, strict=False, start=False, shm_size="64k")
    faults = shim.Faults(server)
    faults.arm("1", error, "leader", "populate")
    server.expect_log(NO_NAME)
    if answer != "APR_SUCCESS":
        server.expect_log("AH02611: .*has not that much memory to give")
        server.expect_log("AH02300: create seg: 1024/100 failed")
    server.start()
    assert faults.counted()
    assert server.stage("post_config")[0].rv == answer
    faults.disarm()


@sharedmem.needs_root
@sharedmem.only_posix("shared memory is not in /dev/shm here")
def test_no_memory_to_begin_with(httpd):
    server = httpd(SEG, mpm="prefork", start=False, shm_size="1m")
    faults = shim.Faults(server)
    faults.arm("1", "ENOMEM", "leader", "mmap")
    server.expect_log("no memory to begin with")
    server.allow_log("AH00013: Pre-configuration failed")
    assert "no memory to begin with" in server.start(expect_failure=True)
    faults.disarm()
    server.start()
    use(server)


HUGE = [(1 << 62, 4), ((1 << 64) - 1, 1), ((1 << 64) - 1, (1 << 32) - 1),
        (1 << 32, (1 << 32) - 1), (1 << 40, 1 << 10), (1, (1 << 32) - 1),
        (0x7fffffffffffffff, 1), (0x7fffffffffffff00, 1)]


@pytest.mark.parametrize("where", ["parent", "child"])
def test_sizes_beyond_the_machine_are_refused_at_once(httpd, where):
    server = httpd(SEG, mpm=MPM, start=False, strict=False)
    # 4 GiB of slots of one byte may be had, on a large machine.
    beyond = [(size, num) for size, num in HUGE if size > 1]
    lines = [harness.op_line("create", name=f"huge{i}", size=size, num=num,
                             type="persist")
             for i, (size, num) in enumerate(beyond)]
    server.expect_log("AH02300: create huge.* failed")
    if where == "parent":
        server.at_stage("post_config", *lines)
        server.start()
        answers = server.stage("post_config")[-len(lines):]
    else:
        server.start()
        answers = server.slotmem(server.children()[0]).run(*lines)
    assert {answer.rv for answer in answers} <= {"APR_EINVAL", "APR_ENOMEM"}
    use(server)


# ---------------------------------------------------------------------------
# How many
# ---------------------------------------------------------------------------

def test_server_without_segments_leaves_nothing(httpd):
    server = httpd("", mpm=MPM)
    server.graceful()
    server.restart()
    server.stop()
    assert not [name for name in os.listdir(server.run_dir)
                if "slotmem" in name]


def test_thousands_of_segments_start_die_and_come_back(httpd, request):
    # Of System V segments Linux has 4096, on the whole machine.
    count = 5000 if sharedmem.kind() == "posix" else 1500
    # In memory, for it is not the disk that is tried here.
    root = tempfile.mkdtemp(prefix="slotmem-", dir="/dev/shm")
    request.addfinalizer(lambda: shutil.rmtree(root))
    # One in ten is stored.
    server = httpd("".join(f"SlotmemTestCreate s{i} 64 4 "
                           f"{'pregrab' if i % 10 else 'persist+pregrab'}\n"
                           for i in range(count)), mpm="prefork",
                   loglevel="info", root=root)
    sm = server.slotmem(server.children()[0])
    picked = range(0, count, 500)
    for i in picked:
        assert sm.grab(f"s{i}").ok
        assert sm.put(f"s{i}", 0, b"segment %d" % i).ok
    server.kill_all()
    server.start()
    sm = server.slotmem()
    for i in picked:
        text = b"segment %d" % i
        assert sm.get(f"s{i}", 0, len(text)).bytes == text
    server.stop()
    assert not server.leaked_shm()
    assert len([name for name in os.listdir(server.run_dir)
                if name.endswith(".persist")]) == count // 10


# ---------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------

ODD_NAMES = ["%s%n%x", "a b", "it's", 'say "so"', "<script>alert(1)",
             "line\nbreak", "tab\there", "a\\b", "-rf", "..", "a..b",
             "\x01\x7f", "h\xe9", "&amp;", "$HOME", "`id`", "*", "none.",
             "*?[]", "#"]


def odd_conf(names):
    return "".join(f'SlotmemTestCreate {harness.quote_name(name)} 64 4 '
                   f'persist+pregrab odd{i}\n'
                   for i, name in enumerate(names))


def test_odd_names_are_only_names(httpd):
    """In the log, on the status page, in the marker and as files."""
    server = httpd(odd_conf(ODD_NAMES), mpm=MPM, modules=["status"])
    sm = server.slotmem(server.children()[0])
    for i, name in enumerate(ODD_NAMES):
        assert sm.grab(f"odd{i}").ok
        assert sm.put(f"odd{i}", 0, name.encode()).ok
    for path in ("/server-status", "/server-status?auto"):
        status, page = server.get(path)
        assert status == 200
        assert "<script>alert" not in page or path.endswith("auto")
        assert "line\nbreak" not in page and "\x01" not in page
    server.kill_all()
    server.start()
    for i, name in enumerate(ODD_NAMES):
        assert holds(server, 0, name.encode(), f"odd{i}"), name
    server.stop()
    server.start()
    for i, name in enumerate(ODD_NAMES):
        assert holds(server, 0, name.encode(), f"odd{i}"), name


def test_names_with_slashes_stay_segments_of_their_own(httpd):
    """A relative name with a slash is a path below the runtime directory,
    which need not be there: the segment works, and a store that cannot be
    made says why."""
    names = ["there/seg", "nowhere/seg", "a//b", "x/../y",
             "<script>alert(1)</script>"]
    server = httpd(odd_conf(names), mpm=MPM, start=False)
    os.makedirs(os.path.join(server.run_dir, "slotmem-shm-there"))
    server.expect_log(r"AH02334: .*cannot store \S*-nowhere/seg\S*: creating "
                      ".* failed .*Check that the directory exists")
    server.allow_log(r"AH02334: .*cannot store \S+: creating .* failed")
    server.allow_nameless()
    server.start()
    sm = server.slotmem(server.children()[0])
    for i, name in enumerate(names):
        assert sm.grab(f"odd{i}").ok
        assert sm.put(f"odd{i}", 0, name.encode()).ok
    server.graceful()
    for i, name in enumerate(names):
        assert holds(server, 0, name.encode(), f"odd{i}"), name

    # What is not stored stays in memory, over a stop too, until it can be;
    # where memory has a key file, though, what lacks the one lacks the other.
    if sharedmem.kind() != "posix":
        for name in names:
            os.makedirs(os.path.dirname(server.persist_path(name)),
                        exist_ok=True)
    server.stop()
    server.start()
    for i, name in enumerate(names):
        assert holds(server, 0, name.encode(), f"odd{i}"), name
        os.makedirs(os.path.dirname(server.persist_path(name)), exist_ok=True)
    server.stop()
    server.start()
    for i, name in enumerate(names):
        assert holds(server, 0, name.encode(), f"odd{i}"), name
        assert os.path.exists(server.persist_path(name)), name


LENGTHS = [1, 100, 200, 214, 223, 224, 230, 243, 244, 250, 255, 256, 300, 1000,
           3900, 4000, 4040, 4050, 4060, 4070, 4080, 4090, 4095, 4096, 4097,
           5000, 9000]


def test_names_of_any_length_start(httpd):
    """A name that makes no path on this system costs what needs a path: the
    stored file, or to outlive a kill.  It does not cost the start, nor what
    it holds over a restart, and the log says it once, not with every store."""
    names = ["n" * length for length in LENGTHS]
    server = httpd(odd_conf(names), mpm=MPM, start=False, loglevel="info")
    server.expect_log("name of 244 characters, .n{60}.*, makes a path longer "
                      ".*it is not stored: .* A shorter name helps")
    server.expect_log("name of 9000 characters.* will not outlive a kill")
    server.allow_log("characters, .n{60}.*, makes a path longer")
    server.allow_nameless()
    server.start()
    sm = server.slotmem(server.children()[0])
    for i in range(len(names)):
        assert sm.grab(f"odd{i}").ok
        assert sm.put(f"odd{i}", 0, b"%d" % LENGTHS[i]).ok

    def kept():
        return [length for i, length in enumerate(LENGTHS)
                if holds(server, 0, b"%d" % length, f"odd{i}")]

    server.graceful()
    assert kept() == LENGTHS
    # "slotmem-shm-" and ".shm.persist" leave this much of 255 bytes.
    stored = [length for length in LENGTHS if length <= 255 - 24]
    for end in server.kill_all, server.stop:
        end()
        server.start()
        assert kept() == stored


def test_child_may_ask_for_a_name_of_any_length(httpd):
    server = httpd(SEG, mpm=MPM)
    sm = server.slotmem(server.children()[0])
    server.allow_log("AH02300: create nnn")
    server.allow_log("AH02611: ")
    for length in LENGTHS:
        name = "n" * length
        answer = sm.create(name, 64, 4, h="long")
        if answer.ok:
            assert server.slotmem(server.children()[1]).attach(name).ok
        # A key file has a name of 255 bytes, with "slotmem-shm-" and ".shm".
        assert answer.ok or length > (3900 if sharedmem.kind() == "posix"
                                      else 255 - 16)
        assert sm.ping()


# ---------------------------------------------------------------------------
# Who else is there, and who we are
# ---------------------------------------------------------------------------

def test_two_servers_in_one_runtime_directory(httpd):
    """The second says so, begins with what the first has, and keeps its hands
    off; both work."""
    first = httpd(SEG, mpm=MPM)
    slot, data = use(first)
    first.graceful()
    stored = open(first.persist_path("seg"), "rb").read()

    second = httpd(SEG, mpm=MPM, start=False)
    second.run_dir = first.run_dir
    second.expect_log("another httpd .process "
                      rf"{first.pid}. uses this runtime directory .*give each "
                      "server a DefaultRuntimeDir of its own")
    second.start()
    assert holds(second, slot, data)
    other, more = use(second)
    assert other == slot + 1                # and does not share its memory
    assert first.slotmem().in_use("seg") == [slot]
    second.graceful()
    assert holds(second, other, more)
    second.stop()
    assert open(first.persist_path("seg"), "rb").read() == stored
    assert holds(first, slot, data)
    assert sharedmem.exists(first.shm_path("seg"))
    first.kill_all()
    first.start()
    assert holds(first, slot, data)


def test_parent_keeps_no_memory_of_former_generations(httpd):
    """Nobody would see it for weeks of log rotations."""
    server = httpd(SEG + "SlotmemTestCreate none 64 10 0 anonymous\n", mpm=MPM)

    def mapped():
        with open(f"/proc/{server.pid}/maps") as file:
            return len(re.findall(r" (?:/dev/shm/|/dev/zero|/SYSV)",
                                  file.read()))

    server.graceful()
    before = mapped()
    assert before
    for _ in range(3):
        server.graceful()
    assert mapped() == before


def test_child_that_attaches_in_vain_does_not_grow(httpd):
    """A module may ask at each request whether another one's segment is there
    by now."""
    server = httpd(SEG, mpm="prefork", children=1)
    server.allow_log("AH02301|AH02611")
    child = server.slotmem(server.children()[0])

    def ask(count):
        answers = child.run(*[harness.op_line("attach", name="not there")]
                            * count)
        assert not any(answer.ok for answer in answers)
        with open(f"/proc/{child.pid}/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    for _ in range(3):
        before = ask(500)
    for _ in range(8):
        after = ask(500)
    # Of what one call needs, 4,000 make 30 MB.
    assert after - before < 8 << 20


@sharedmem.needs_root
def test_server_that_is_not_started_as_root(httpd):
    """As on a developer's machine, or in a container without root."""
    user = harness.unprivileged_user()
    server = httpd(SEG, mpm=MPM, user="", start=False,
                   wrapper=["setpriv", f"--reuid={user}", f"--regid={user}",
                            "--clear-groups"])
    subprocess.run(["chown", "-R", f"{user}:", server.root], check=True)
    server.start()
    slot, data = use(server)
    server.graceful()
    assert holds(server, slot, data)
    path = server.shm_path("seg")
    assert sharedmem.modes(path) == {0o600}
    server.kill_all()
    server.start()
    assert holds(server, slot, data)
    server.stop()
    assert not sharedmem.exists(path)


@sharedmem.needs_root
def test_runtime_directory_that_cannot_be_written(httpd):
    """Not root, and the directory is root's: it runs, and says what that
    costs."""
    user = harness.unprivileged_user()
    server = httpd(SEG, mpm=MPM, user="", start=False,
                   wrapper=["setpriv", f"--reuid={user}", f"--regid={user}",
                            "--clear-groups"])
    subprocess.run(["chown", "-R", f"{user}:", server.root], check=True)
    os.chown(server.run_dir, 0, 0)
    server.pid_file = os.path.join(server.root, "logs", "httpd.pid")
    server.conf = "Mutex posixsem\n" + server.conf
    server.expect_log(r"cannot use \S+/slotmem-shm.run; .*Check owner and "
                      "permissions of the runtime directory")
    server.expect_log(r"AH02334: .*cannot store \S+-seg.shm.persist: creating "
                      ".* failed")
    server.allow_nameless()
    server.start()
    use(server)
    server.graceful()
    use(server)


# ---------------------------------------------------------------------------
# Modes, and what stays open
# ---------------------------------------------------------------------------

class Watch(threading.Thread):
    """Notes the modes of files that come and go in a directory."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.seen, self.ended = folder, {}, False

    def run(self):
        while not self.ended:
            for entry in os.scandir(self.folder):
                try:
                    mode = stat.S_IMODE(entry.stat(follow_symlinks=False)
                                        .st_mode)
                except FileNotFoundError:
                    continue
                self.seen.setdefault(entry.name, set()).add(mode)
            time.sleep(0.0005)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended = True
        self.join()


def modes_of(server, pattern):
    found = {}
    for folder in (server.run_dir, server.shm_dir):
        for name in os.listdir(folder):
            if re.search(pattern, name):
                path = os.path.join(folder, name)
                found[path] = stat.S_IMODE(os.stat(path).st_mode)
    return found


def test_everything_made_is_0600_whatever_the_umask(httpd):
    """Secrets of AJP members lie in it.  With a umask of 0, the stored file
    and its temporary, the marker, a file put aside, and the objects in
    /dev/shm, those of a child included, have no bit for group and others."""
    server = httpd("SlotmemTestCreate seg 65536 1000 persist\n", mpm=MPM,
                   shm_size="256m", start=False,
                   wrapper=["sh", "-c", 'umask 0; exec "$@"', "sh"])
    with open(server.persist_path("seg"), "w") as file:
        file.write("not an image")
    server.expect_log("AH02551: .*cut short or damaged")
    server.start()
    sm = server.slotmem(server.children()[0])
    assert sm.put("seg", 0, b"secret").ok
    assert sm.create("late", 64, 10).ok
    with Watch(server.shm_dir) as shm, Watch(server.run_dir) as run:
        server.graceful()
        server.stop()
    made = {name: modes for name, modes in {**shm.seen, **run.seen}.items()
            if "slotmem" in name or name.startswith("ShM.")}
    assert all(modes == {0o600} for name, modes in made.items()
               if not name.endswith("rejected")), made
    for kind in (r"\.new$", r"\.persist$", r"slotmem-shm\.run$", "^ShM"):
        assert [name for name in made if re.search(kind, name)], (kind, made)


def test_file_put_aside_and_objects_of_a_child_are_0600(httpd):
    server = httpd(SEG, mpm=MPM, shm_size="1m", start=False)
    server.start()
    assert server.slotmem(server.children()[0]).create("late", 64, 10).ok
    objects = modes_of(server, "^ShM")
    assert len(objects) == 2 and set(objects.values()) == {0o600}
    server.stop()
    with open(server.persist_path("seg"), "r+b") as file:
        file.seek(100)
        file.write(b"damaged")
    server.expect_log("AH02551: .*cut short or damaged")
    server.start()
    assert set(modes_of(server, "rejected$").values()) == {0o600}


def descriptors(pid):
    """{path: may write} of what a process has open."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            path = os.readlink(f"/proc/{pid}/fd/{name}")
            with open(f"/proc/{pid}/fdinfo/{name}") as file:
                flags = int(re.search(r"flags:\s*(\d+)", file.read())[1], 8)
        except OSError:
            continue
        found[path] = found.get(path, False) or flags & os.O_ACCMODE != 0
    return found


@pytest.mark.parametrize("mpm_name", ["event", "prefork"])
def test_no_process_but_the_parent_can_write_the_marker(httpd, mpm_name):
    """The marker steers the parent of the next start, who is root.  Children
    must not keep it open, nor must a process that is forked and has no
    child_init, like mod_cgid's daemon; nor an object in /dev/shm."""
    server = httpd("ScriptSock ${RUN}/cgid.sock\n" + SEG, mpm=mpm_name,
                   modules=["cgid"])
    marker = os.path.join(server.run_dir, "slotmem-shm.run")
    for _ in range(2):
        assert descriptors(server.pid)[marker]
        others = [pid for pid in server.processes() if pid != server.pid]
        assert len(others) > len(server.children())      # the daemon
        for pid in others:
            kept = descriptors(pid)
            assert marker not in kept
            assert not [path for path in kept if "/dev/shm/" in path]
        server.graceful()
