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
"""What a module author may rely on: every line of the provider's contract.

Each test runs against our module in every MPM and, unless it is marked
only_ours with the reason, against the stock module: a test that the stock
module fails where it promises the same would be a wrong test.
"""

import concurrent.futures
import hashlib
import itertools
import os
import re
import stat
import struct
import subprocess

import pytest

import httpd as harness
import sharedmem
import storedfile
from httpd import NULL, op_line

PREGRAB = "pregrab"
ANONYMOUS = (None, "", "none", "None", "NONE")
SLOTMEM_LINE = r"\[slotmem_shm:"

CONF = """
SlotmemTestCreate fixed 64 10 pregrab
SlotmemTestAttach fixed
SlotmemTestCreate shared%20by%20all 200 50 0
SlotmemTestAttach shared%20by%20all
"""


@pytest.fixture(scope="module")
def server(shared_httpd, target):
    """One server for all tests that change nothing but their own segment."""
    # What a child creates at run time the stock module never removes.
    running = shared_httpd(target=target, conf=CONF,
                           may_leak=target[0] == "stock")
    yield running
    running.close()


@pytest.fixture
def child(server):
    """The provider in one child of that server."""
    slotmem = server.slotmem(server.children()[0])
    yield slotmem
    slotmem.close()


_numbers = itertools.count()


@pytest.fixture
def segment(child):
    """segment(size, num, type): a fresh segment of that child; its handle."""
    def make(size=64, num=10, type=PREGRAB):
        name = f"own-{next(_numbers)}"
        assert child.create(name, size, num, type).ok
        return name
    return make


class Stored:
    """A stored file, read by the layout that the stock module writes."""

    def __init__(self, path, size, num):
        with open(path, "rb") as file:
            self.raw = file.read()
        self.free, self.padding = struct.unpack_from("=II", self.raw, 0)
        end = 8 + size * num
        self.slots = [self.raw[8 + i * size:8 + (i + 1) * size]
                      for i in range(num)]
        self.in_use = list(self.raw[end:end + num])
        self.digest = self.raw[end + num:end + num + 16]
        self.digest_of_content = hashlib.md5(self.raw[:end + num]).digest()
        self.descriptor = harness.file_descriptor().unpack_from(
            self.raw, end + num + 16)
        self.length_expected = end + num + 16 + 16


# ---------------------------------------------------------------------------
# The module and its provider
# ---------------------------------------------------------------------------

def test_positive_control(server):
    """The consumer reaches the provider in every child.

    If this fails, every other failure of this file says nothing.
    """
    pids = server.children()
    assert len(pids) == 2
    for pid in pids:
        slotmem = server.slotmem(pid)
        assert slotmem.ping().pid == pid
        assert slotmem.info("fixed").num_slots == 10
    assert server.slotmem().ping().pid in pids
    assert server.slotmem().ping().mpm == server.mpm


def test_provider_is_complete(child):
    shm = child.provider("shm")
    assert shm.found
    assert shm.member == "sharedmem"
    assert shm.complete, "a member of the provider is NULL"


@pytest.mark.only_ours("the stock module's older name is not found")
def test_provider_is_registered_under_its_older_name_too(child):
    """A consumer that asks for "shared" finds the same segments."""
    shared = child.provider("shared")
    assert shared.found and shared.complete
    assert shared.member == "sharedmem"
    assert child.call("create", provider="shared", name="by-shared", size=8,
                      num=3).ok
    again = child.call("attach", provider="shm", name="by-shared")
    assert again.ok and (again.size, again.num) == (8, 3)


def test_module_has_its_name_and_no_directive(server):
    """A swapped file must answer to the old LoadModule line and to <IfModule>.

    A directive would make a configuration fail when moved back.
    """
    config = os.path.join(server.root, "conf", "httpd.conf")
    command = [harness.httpd_program(), "-d", server.root, "-f", config]
    modules = subprocess.run(command + ["-M"], stdout=subprocess.PIPE,
                             text=True, check=True).stdout
    assert re.search(r"^ slotmem_shm_module \((shared|static)\)$", modules, re.M)
    directives = subprocess.run(command + ["-L"], stdout=subprocess.PIPE,
                                text=True, check=True).stdout
    assert "(mod_slotmem_test.c)" in directives, "-L shows no module at all"
    assert "slotmem_shm" not in directives


def test_consumer_loaded_first_can_create_and_attach(httpd, target):
    """Debian loads modules by alphabet: mod_proxy_balancer before this one.

    Hooks that rely on load order rather than on names fail here only.
    """
    server = httpd(target=target, conf=CONF, consumer="before")
    assert all(answer.ok for answer in server.stage("post_config"))
    assert [answer.rv for answer in server.stage("child_init")] \
        == ["APR_SUCCESS"] * 4
    assert server.slotmem().grab("attach:fixed").id == 0


def test_create_works_in_post_config_whatever_its_place(httpd, target):
    """A consumer may run its post_config before all others' (REALLY_FIRST).

    Nothing that create needs may be set up in the module's own post_config.
    """
    server = httpd(target=target, start=False)
    server.at_stage("post_config_check",
                    op_line("create", name="early", size=8, num=4,
                            type="persist", pool="conf"),
                    op_line("grab", h="early"))
    server.start()
    created, grabbed = server.stage("post_config_check")
    assert created.ok and grabbed.id == 0


@sharedmem.needs_64_bits
def test_before_configuration_there_is_no_shared_memory(httpd, target):
    """A call while httpd is still loading modules must fail, not crash."""
    server = httpd(target=target, start=False)
    server.at_stage("register",
                    op_line("create", name="x", size=8, num=1),
                    op_line("create", name=None, size=8, num=1),
                    op_line("attach", name="x"))
    server.start()
    named, anonymous, attached = server.stage("register")
    for created in named, anonymous:
        assert created.rv == "APR_ENOSHMAVAIL"
        assert created.instance == 0
    assert attached.rv == "APR_ENOSHMAVAIL"
    assert (attached.size, attached.num) == (0xdeadbeefcafef00d, 0xfeedface)


@pytest.mark.parametrize("call", ["grab", "fgrab", "release", "dptr", "get",
                                  "put", "doall"])
def test_null_instance_is_refused(child, call):
    """Consumers call on after a create that failed and left them NULL."""
    answer = child.call(call, h=NULL, i=0, len=8)
    assert answer.rv == "APR_ENOSHMAVAIL"
    assert answer.get("untouched", True)


@pytest.mark.only_ours("the stock module dies of it")
def test_null_instance_has_no_slots(child):
    assert child.info(NULL).items() >= {"num_slots": 0, "slot_size": 0,
                                        "num_free": 0}.items()


# ---------------------------------------------------------------------------
# create
# ---------------------------------------------------------------------------

def test_create_again_returns_the_same_segment(child, segment):
    """mod_proxy_balancer's vhosts may ask twice; nothing may be lost."""
    name = segment(64, 10, PREGRAB)
    child.fgrab(name, 3)
    child.put(name, 3, b"kept")
    assert child.create(name, 64, 10, PREGRAB, h="again").ok
    assert child.dptr("again", 0).address == child.dptr(name, 0).address
    assert child.get("again", 3, 4).bytes == b"kept"
    assert child.info("again").num_free == 9


def test_create_in_a_child_finds_what_the_parent_created(child):
    address = child.dptr("fixed", 0).address
    assert child.create("fixed", 64, 10, PREGRAB, h="refound").ok
    assert child.dptr("refound", 0).address == address


@pytest.mark.parametrize("size, num", [(64, 9), (63, 10), (1, 1), (0, 0)])
def test_create_is_content_with_a_larger_segment(child, segment, size, num):
    name = segment(64, 10)
    assert child.create(name, size, num, PREGRAB, h="smaller").ok
    assert child.info("smaller").items() >= {"num_slots": 10,
                                             "slot_size": 64}.items()


@pytest.mark.only_ours("the stock module looks only at what it restored")
@pytest.mark.parametrize("size, num", [(65, 10), (65, 9), (65, 11)])
def test_create_refuses_smaller_slots(child, server, segment, size, num):
    """A caller that got less than it asked for would write past the end."""
    name = segment(64, 10)
    with server.announced(SLOTMEM_LINE, required=False):
        answer = child.create(name, size, num, PREGRAB, h="larger")
    assert answer.rv == "APR_EINVAL"
    assert answer.instance == 0
    assert child.info(name).num_slots == 10


@pytest.mark.only_ours("the stock module multiplies without looking")
@pytest.mark.parametrize("size, num", [
    (1 << 63, 2), (1 << 62, 4), (1 << 40, 0x80000000), ((1 << 64) - 1, 1),
    ((1 << 64) - 1, 0xffffffff), ((1 << 64) - 100, 1), ((1 << 63) + 8, 2),
    ((1 << 64) // 3, 3)])
@pytest.mark.parametrize("name", ["overflow", None])
@sharedmem.needs_64_bits
def test_create_refuses_a_size_that_overflows(child, server, name, size, num):
    """2^63 bytes twice are 0 bytes to a careless multiplication."""
    with server.announced(SLOTMEM_LINE, required=False):
        answer = child.create(name, size, num)
    assert answer.rv == "APR_EINVAL"
    assert answer.instance == 0


@pytest.mark.only_ours("the stock module has the kernel promise the memory")
@pytest.mark.parametrize("name", ["huge", None])
@sharedmem.needs_64_bits
def test_create_refuses_more_than_the_machine_has(child, server, name):
    """16 TiB can be mapped; using them would be the process's last act."""
    with server.announced(SLOTMEM_LINE, required=False):
        answer = child.create(name, 1 << 40, 16)
    assert not answer.ok
    assert answer.instance == 0
    assert child.ping().pid == child.pid


def test_segment_without_slots(child, server, segment):
    """A balancer without members: everything answers, nothing is found."""
    name = segment(64, 0)
    assert child.info(name).items() >= {"num_slots": 0, "num_free": 0,
                                        "slot_size": 64}.items()
    assert child.grab(name).rv == "APR_EINVAL"
    assert child.dptr(name, 0).rv == "APR_EINVAL"
    assert child.fgrab(name, 0).rv == "APR_EINVAL"
    assert child.release(name, 0).rv == "APR_EINVAL"
    assert child.get(name, 0, 1).rv == "APR_EINVAL"
    assert child.put(name, 0, b"x").rv == "APR_EINVAL"
    assert child.doall(name).visited == 0
    attached = child.attach(name, h="empty")
    assert attached.ok and (attached.size, attached.num) == (64, 0)


def test_segment_of_empty_slots(child, segment):
    """Slots of 0 bytes still can be taken and given back: a set of flags."""
    name = segment(0, 5)
    assert child.grab(name, n=6).ids == [0, 1, 2, 3, 4]
    assert child.info(name).num_free == 0
    assert child.release(name, 2).ok
    assert child.grab(name).id == 2
    assert child.put(name, 1, b"").ok
    assert child.get(name, 1, 0).ok


# ---------------------------------------------------------------------------
# attach, and which process sees what
# ---------------------------------------------------------------------------

def test_attach_in_child_init_tells_the_size(server):
    """What mod_proxy_balancer does: child's pool, sizes not initialised."""
    answers = server.stage("child_init")
    assert {answer.pid for answer in answers} >= set(server.children())
    assert {(answer.rv, answer.size, answer.num) for answer in answers} \
        == {("APR_SUCCESS", 64, 10), ("APR_SUCCESS", 200, 50)}


def test_attached_and_inherited_instance_are_one_segment(server):
    for pid in server.children():
        slotmem = server.slotmem(pid)
        address = slotmem.dptr("fixed", 0).address
        assert slotmem.dptr("attach:fixed", 0).address == address


def test_children_share_memory_without_attaching(server):
    """mod_proxy_cluster never attaches two of its segments."""
    one, other = map(server.slotmem, server.children())
    name = "shared by all"
    for slot in range(0, 50, 7):
        one.put(name, slot, b"%d from one" % slot)
        assert other.get(name, slot, 20).bytes.rstrip(b"\0") \
            == b"%d from one" % slot
        other.write(name, slot, b"OTHER")
        assert one.read("attach:" + name, slot, 5) == b"OTHER"


def test_slot_grabbed_in_one_child_is_taken_in_the_other(server):
    one, other = map(server.slotmem, server.children())
    assert one.fgrab("fixed", 0).ok
    ids = [one.grab("fixed").id, other.grab("attach:fixed").id,
           one.grab("attach:fixed").id, other.grab("fixed").id]
    assert ids == [1, 2, 3, 4]
    assert other.in_use("fixed") == [0, 1, 2, 3, 4]
    assert one.info("fixed").num_free == other.info("fixed").num_free == 5
    for slot in range(5):
        assert (one if slot % 2 else other).release("fixed", slot).ok
    assert one.info("fixed").num_free == 10


@pytest.mark.parametrize("name", ["never created", "/never/created"])
def test_attach_to_nothing_leaves_the_arguments_alone(child, server, name):
    """mod_proxy_balancer goes on with what attach left in its variables."""
    with server.announced(SLOTMEM_LINE, required=False):
        answer = child.attach(name)
    assert not answer.ok
    assert answer.untouched


@pytest.mark.parametrize("name", ANONYMOUS)
def test_attach_refuses_anonymous_names(child, name):
    child.create(name, 8, 8, h="anonymous")
    answer = child.attach(name)
    assert not answer.ok
    assert answer.untouched


@pytest.mark.parametrize("when", ["created", "attached"])
def test_segment_outlives_the_pool_it_was_made_with(child, segment, when):
    """Consumers pass r->pool; the segment stays until the process ends.

    The consumer's operations destroy their pool when they are answered.
    """
    name = segment(64, 4)
    if when == "attached":
        assert child.attach(name, h=name, pool="op").ok
    assert child.fgrab(name, 1).ok
    for _ in range(3):
        assert child.put(name, 1, b"still here").ok
        assert child.get(name, 1, 10).bytes == b"still here"


def test_child_attaches_what_another_child_created_at_run_time(server):
    """A consumer may make a segment long after the fork."""
    one, other = map(server.slotmem, server.children())
    name = f"at run time {next(_numbers)}"
    assert one.create(name, 40, 7, PREGRAB).ok
    assert one.grab(name).id == 0
    assert one.put(name, 0, b"hello").ok
    attached = other.attach(name)
    assert attached.ok and (attached.size, attached.num) == (40, 7)
    assert other.get(name, 0, 5).bytes == b"hello"
    assert other.grab(name).id == 1
    assert one.info(name).num_free == 5


@pytest.mark.only_ours("the stock module's second child removes the first's "
                       "segment and makes its own")
def test_two_children_creating_one_name_get_one_segment(server):
    """Asked at the same moment, so that a check before a create shows."""
    pids = server.children()
    names = [f"race-{next(_numbers)}" for _ in range(40)]

    def create_all(pid):
        slotmem = server.slotmem(pid)
        return slotmem.run(*[op_line("create", name=name, size=64, num=4,
                                     type=PREGRAB, h=name) for name in names])

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for answers in pool.map(create_all, pids):
            assert {answer.rv for answer in answers} == {"APR_SUCCESS"}
    one, other = map(server.slotmem, pids)
    for name in names:
        assert one.grab(name).id == 0
        assert one.put(name, 0, name.encode()).ok
        assert other.get(name, 0, len(name)).bytes == name.encode()
        assert other.grab(name).id == 1


@pytest.mark.only_ours("the stock module says nothing")
@pytest.mark.parametrize("size, num", [(64, 11), (1, 11)])
def test_create_hands_out_fewer_slots_with_one_warning(child, server, segment,
                                                       size, num):
    """Two balancers whose names differ in a dash alone make one segment, and
    a configuration that ran must not stop running; every call is bounded."""
    name = segment(64, 10)
    with server.announced(rf"slotmem_shm: {name} was made with 10 slots of 64 "
                          rf"bytes, and is asked for again with {num} of "):
        answer = child.create(name, size, num, PREGRAB, h="larger")
    assert answer.rv == "APR_SUCCESS"
    assert child.create(name, size, num, PREGRAB, h="again").ok, "and no more"
    assert child.info("larger").num_slots == 10
    assert child.get("larger", 10, 1).rv == "APR_EINVAL"


@pytest.mark.only_ours("as above")
def test_second_child_that_asks_for_more_slots_shares_the_fewer(server):
    one, other = map(server.slotmem, server.children())
    name = f"grown-{next(_numbers)}"
    assert one.create(name, 64, 4, "pregrab").ok
    with server.announced(f"slotmem_shm: {name} was made with 4 slots"):
        answer = other.create(name, 64, 5, "pregrab")
    assert answer.rv == "APR_SUCCESS"
    assert one.grab(name).id == 0
    assert other.grab(name).id == 1


@pytest.mark.only_ours("the stock module unlinks it when its maker ends")
def test_segment_made_at_run_time_outlives_its_maker(httpd, target):
    """Children end all the time; httpd starts others in their place."""
    server = httpd(target=target, conf="MaxConnectionsPerChild 10",
                   may_end=True)
    maker = server.slotmem(server.children()[0])
    assert maker.create("late", 64, 4, PREGRAB).ok
    assert maker.grab("late").ok and maker.put("late", 0, b"kept").ok

    def has_ended():
        server.get("/")
        return not harness.is_alive(maker.pid)

    harness.wait_for(has_ended, "the maker's 10th connection, and its end")
    for number in 1, 2:
        attached, got, grabbed = server.slotmem().run(
            op_line("attach", name="late"),
            op_line("get", h="late", i=0, len=4), op_line("grab", h="late"))
        assert attached.ok and (attached.size, attached.num) == (64, 4)
        assert got.bytes == b"kept"
        assert grabbed.id == number


@pytest.mark.only_ours("the stock module's parent does not know of it")
@pytest.mark.parametrize("how", ["graceful", "hard", "stop and start"])
def test_restart_removes_what_children_made_at_run_time(httpd, target, how):
    server = httpd(target=target)
    assert server.slotmem().create("late", 64, 4, PREGRAB).ok
    path = server.shm_path("late")
    assert sharedmem.exists(path)
    RESTARTS[how](server)
    if server.shm_path("late") != path:
        assert not sharedmem.exists(path)
    slotmem = server.slotmem(server.children()[0])
    assert not slotmem.attach("late").ok
    assert slotmem.create("late", 64, 4, PREGRAB).ok
    assert slotmem.info("late").num_free == 4


@sharedmem.only_posix("a System V segment without a key file is not found")
@pytest.mark.only_ours("the stock module believes what lies in the memory")
@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff" * 4096,
                                     os.urandom(70000)],
                         ids=["empty", "zeros", "ones", "noise"])
def test_attach_believes_no_foreign_object(child, server, content):
    """Anyone may create an object under the name that attach will open."""
    name = f"foreign-{next(_numbers)}"
    path = server.shm_path(name)
    with open(path, "xb") as file:
        file.write(content)
    try:
        if server.user:
            stolen = os.stat(server.ctl_dir)
            os.chown(path, stolen.st_uid, stolen.st_gid)
        os.chmod(path, 0o600)
        with server.announced(SLOTMEM_LINE, required=False):
            answer = child.attach(name)
        assert not answer.ok
        assert answer.untouched
        assert child.ping().pid == child.pid
    finally:
        os.unlink(path)


# ---------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("name", ANONYMOUS)
def test_anonymous_segment_has_no_object(child, name):
    assert child.create(name, 64, 10, PREGRAB, h="a").ok
    assert child.grab("a").id == 0
    assert "ShM." not in child.mapping("a").line


@pytest.mark.parametrize("name", ANONYMOUS)
def test_anonymous_segments_are_never_the_same(child, name):
    """Two modules that pass NULL must not write into each other's slots."""
    assert child.create(name, 64, 10, PREGRAB, h="a").ok
    assert child.create(name, 64, 10, PREGRAB, h="b").ok
    child.fgrab("a", 1)
    child.put("a", 1, b"mine")
    assert child.info("b").num_free == 10
    assert child.read("b", 1, 4) == b"\0\0\0\0"


def test_anonymous_segment_of_the_parent_is_shared_by_children(httpd, target):
    """They get it by inheritance; nothing else could show it to them."""
    server = httpd(target=target, conf="""
        SlotmemTestCreate @NULL 64 10 pregrab null
        SlotmemTestCreate @EMPTY 64 10 pregrab empty
        SlotmemTestCreate none 64 10 persist+pregrab none
    """)
    one, other = map(server.slotmem, server.children())
    for number, handle in enumerate(["null", "empty", "none"]):
        assert [one.grab(handle).id for _ in range(number + 1)] \
            == list(range(number + 1))
        one.put(handle, 0, handle.encode())
        assert other.get(handle, 0, 9).bytes.rstrip(b"\0") == handle.encode()
        assert other.grab(handle).id == number + 1
    server.stop()
    assert os.listdir(server.run_dir) == [], "an anonymous segment was stored"
    assert not server.log_lines(r"\[slotmem_shm:(error|warn)\]")


def test_relative_name_is_keyed_by_the_runtime_directory(server):
    """Other tools and old scripts find the object by this name."""
    path = server.shm_path("fixed")
    assert path in server.shm_objects()
    assert sharedmem.is_in_line(path, server.slotmem().mapping("fixed").line)


def test_generation_in_the_key_is_hexadecimal(httpd, target):
    """From the 11th generation on, decimal and hexadecimal differ."""
    server = httpd(target=target, conf="SlotmemTestCreate seg 64 4 0")
    while server.generation < 11:
        before = server.shm_path("seg")
        server.restart()
        assert (not sharedmem.exists(before)
                or server.shm_path("seg") == before)
    assert server.key_file("seg").endswith("/slotmem-shm-seg_b.shm")
    assert server.shm_path("seg") in server.shm_objects()


@pytest.mark.parametrize("how", ["graceful", "hard"])
def test_httpd_that_raises_the_generation_late(httpd, mpm, our_module, how):
    """httpd's trunk does so when all modules have configured: there the keys
    of a generation were those of the one before, whose memory lives on."""
    server = httpd(mpm=mpm, env={"SLOTMEM_TEST_LATE": "1"}, conf="""
        SlotmemTestCreate seg 64 4 persist
    """)
    server.slotmem().put("seg", 2, b"kept")
    for generation in 1, 2:
        before = server.shm_path("seg")
        RESTARTS[how](server)
        assert server.generation == generation
        assert server.shm_path("seg") in server.shm_objects()
        assert not sharedmem.exists(before)
        assert server.slotmem().read("seg", 2, 4) == b"kept"
    # A child's, which another finds by the key that both make.
    one, other = map(server.slotmem, server.children(server.generation))
    assert one.create("late", 64, 4, 0).ok
    assert server.shm_path("late") in server.shm_objects()
    assert other.attach("late").ok
    server.kill_all()
    server.start()
    assert server.slotmem().read("seg", 2, 4) == b"kept"


def test_absolute_name_is_keyed_by_itself(httpd, target):
    server = httpd(target=target, start=False)
    name = os.path.join(server.root, "logs", "absolute name")
    server.conf = "SlotmemTestCreate ${ROOT}/logs/absolute%20name 64 4 persist"
    server.start()
    slotmem = server.slotmem()
    assert server.shm_path(name) == sharedmem.of_key(name)
    assert server.shm_path(name) in server.shm_objects()
    slotmem.put(name, 2, b"kept")
    server.stop()
    assert os.path.exists(name + ".persist")
    assert os.listdir(server.run_dir) == []
    server.start()
    assert server.slotmem().read(name, 2, 4) == b"kept"


def test_absolute_name_survives_a_graceful_restart(httpd, target):
    """Its key has no generation: old and new memory must not be confused."""
    server = httpd(target=target, conf="""
        SlotmemTestCreate ${ROOT}/absolute 64 4 persist+pregrab seg
    """)
    slotmem = server.slotmem(server.children()[0])
    slotmem.grab("seg")
    slotmem.put("seg", 0, b"kept")
    with server.held_request() as pid:
        server.graceful(wait_old=False)
        old, new = server.slotmem(pid), server.slotmem()
        assert new.get("seg", 0, 4).bytes == b"kept"
        assert old.put("seg", 0, b"old").ok
        assert new.get("seg", 0, 4).bytes == b"kept"
    server.restart()
    assert server.slotmem().get("seg", 0, 4).bytes == b"kept"


UNUSUAL_NAMES = (
    "with space", "per%cent %s%n%d", "quote\"'`$(id)", "back\\slash",
    "gr\u00fcn", "line\nfeed", "<b>&amp;", "balancer:x_y.z", "x" * 180,
    "a..b", ".hidden", "-dash", "none at all", "anonymous", "~", "*", "0")


def test_unusual_names_are_stored_and_restored(httpd, target):
    """Names come from configurations, with host names and URLs in them."""
    server = httpd(target=target, children=1, conf="\n".join(
        f"SlotmemTestCreate {harness.quote_name(name)} 64 4 persist n{number}"
        for number, name in enumerate(UNUSUAL_NAMES)))
    slotmem = server.slotmem()
    for number, name in enumerate(UNUSUAL_NAMES):
        assert slotmem.put(f"n{number}", 1, name.encode()[:64]).ok
        assert server.shm_path(name) in server.shm_objects()
    server.stop()
    assert set(os.listdir(server.run_dir)) == {
        os.path.basename(server.persist_path(name)) for name in UNUSUAL_NAMES}
    server.start()
    slotmem = server.slotmem()
    for number, name in enumerate(UNUSUAL_NAMES):
        assert slotmem.read(f"n{number}", 1, 64) \
            == name.encode()[:64].ljust(64, b"\0")


# ---------------------------------------------------------------------------
# grab, fgrab, release
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("type", ["0", PREGRAB])
@pytest.mark.parametrize("num", [1, 10, 63, 64, 65, 130, 4096, 4097, 5000])
def test_grab_gives_the_lowest_free_slot(child, segment, num, type):
    """At the edges of words and of summary levels, full and not full."""
    name = segment(8, num, type)
    assert child.grab(name, n=num).ids == list(range(num))
    assert child.grab(name).rv == "APR_EINVAL"
    assert child.info(name).num_free == 0
    freed = sorted({0, num // 2, num - 1, min(63, num - 1), min(64, num - 1),
                    min(4095, num - 1), min(4096, num - 1)})
    for slot in reversed(freed):
        assert child.release(name, slot).ok
    assert child.info(name).num_free == len(freed)
    assert child.grab(name, n=len(freed)).ids == freed
    assert child.grab(name).rv == "APR_EINVAL"


def test_grab_skips_slots_taken_by_fgrab(child, segment):
    name = segment(8, 8)
    for slot in 0, 1, 3, 7:
        assert child.fgrab(name, slot).ok
    assert child.grab(name, n=5).ids == [2, 4, 5, 6]


def test_fgrab_twice_changes_nothing(child, segment):
    """mod_proxy_balancer fgrabs what it restored; a count would be off."""
    name = segment()
    assert child.fgrab(name, 5).ok
    assert child.fgrab(name, 5).ok
    assert child.info(name).num_free == 9
    assert child.in_use(name) == [5]
    assert child.release(name, 5).ok
    assert child.info(name).num_free == 10


@pytest.mark.parametrize("call, slot", [
    (call, slot) for call in ("fgrab", "release", "dptr", "get", "put")
    for slot in (10, 11, 64, 0x7fffffff, 0xffffffff)
    if call != "release" or slot < 100])
def test_slot_out_of_range_is_refused(child, segment, call, slot):
    refuse_out_of_range(child, segment(64, 10), call, slot)


@pytest.mark.only_ours("the stock module looks into its table first, and dies")
@pytest.mark.parametrize("slot", [0x7fffffff, 0xffffffff])
def test_release_far_out_of_range_is_refused(child, segment, slot):
    """-1, where somebody did not look at what grab answered."""
    refuse_out_of_range(child, segment(64, 10), "release", slot)


def refuse_out_of_range(child, name, call, slot):
    answer = child.call(call, h=name, i=slot, len=4)
    assert answer.rv == "APR_EINVAL"
    assert answer.get("untouched", True)
    assert child.info(name).num_free == 10


def test_release_of_a_free_slot_is_told(child, segment):
    name = segment()
    assert child.release(name, 4).rv == "APR_NOTFOUND"
    assert child.fgrab(name, 4).ok
    assert child.release(name, 4).ok
    assert child.release(name, 4).rv == "APR_NOTFOUND"
    assert child.info(name).num_free == 10


# ---------------------------------------------------------------------------
# dptr and the slots in memory
# ---------------------------------------------------------------------------

def test_dptr_works_for_slots_in_use_or_not(child, segment):
    name = segment(64, 10, PREGRAB)
    free = child.dptr(name, 7)
    assert free.ok
    child.fgrab(name, 7)
    assert child.dptr(name, 7).address == free.address


@pytest.mark.parametrize("size, num", [(1, 100), (13, 20), (64, 10), (200, 50),
                                       (4096, 3), (100001, 2)])
def test_slots_are_contiguous(child, segment, size, num):
    """Consumers index across slots from the address of slot 0."""
    name = segment(size, num)
    first = child.dptr(name, 0).address
    answers = child.run(*[op_line("dptr", h=name, i=i) for i in range(num)])
    assert [a.address - first for a in answers] \
        == [i * size for i in range(num)]


@pytest.mark.parametrize("type", ["0", "persist+pregrab"])
@pytest.mark.parametrize("size, num", [(1, 1), (24, 7), (64, 64), (8, 65),
                                       (8, 1000), (16, 5000), (3, 100000)])
def test_slot_0_is_aligned(child, segment, size, num, type):
    """Slots hold structs with pointers, counters, long doubles."""
    name = segment(size, num, type)
    assert child.dptr(name, 0).address % 16 == 0


@pytest.mark.parametrize("size, num", [(1, 1), (200, 50), (65536, 16)])
def test_fresh_slots_are_zero(child, segment, size, num):
    name = segment(size, num)
    assert child.read(name, 0, size * num) == bytes(size * num)
    child.grab(name)
    assert child.get(name, 0, size).bytes == bytes(size)


@pytest.mark.only_ours("the stock module's table of slots in use lies there")
@pytest.mark.parametrize("size, num", [
    (64, 10), (1, 1), (3, 5)] + [(size, 1) for size in range(3800, 4097, 16)])
def test_slack_after_the_last_slot_is_nobodys(child, segment, size, num):
    """A published module writes one int past its last slot."""
    name = segment(size, num)
    beyond = size * num
    place = child.mapping(name)
    assert place.end - (place.address + beyond) >= 64
    child.fgrab(name, num - 1)
    neighbour = segment(64, 4)
    child.write(name, 0, b"\xff" * 64, off=beyond)
    assert child.in_use(name) == [num - 1]
    assert child.info(name).num_free == num - 1
    assert child.info(name).items() >= {"num_slots": num,
                                        "slot_size": size}.items()
    assert child.get(name, num - 1, size).bytes == bytes(size)
    assert child.release(name, num - 1).ok
    assert child.grab(name).id == 0
    assert child.info(neighbour).num_free == 4
    assert child.read(neighbour, 0, 256) == bytes(256)


# ---------------------------------------------------------------------------
# get and put
# ---------------------------------------------------------------------------

def test_put_and_get_copy(child, segment):
    name = segment(64, 10)
    data = bytes(range(64))
    child.fgrab(name, 2)
    assert child.put(name, 2, data).ok
    got = child.get(name, 2, 64)
    assert got.ok and got.bytes == data and got.guarded
    part = child.get(name, 2, 10)
    assert part.bytes == data[:10] and part.guarded
    assert child.put(name, 2, b"abc").ok
    assert child.get(name, 2, 64).bytes == b"abc" + data[3:]
    assert child.read(name, 1, 64) == child.read(name, 3, 64) == bytes(64)


def test_length_0_is_served(child, segment):
    name = segment(64, 10)
    child.fgrab(name, 9)
    assert child.put(name, 9, b"").ok
    got = child.get(name, 9, 0)
    assert got.ok and got.guarded


def test_copy_may_span_slots(child, segment):
    """A published module reads num * size bytes from slot 0 at once."""
    name = segment(64, 10)
    child.grab(name, n=10)
    data = os.urandom(640)
    assert child.put(name, 0, data).ok
    assert child.get(name, 0, 640).bytes == data
    assert child.get(name, 3, 7 * 64).bytes == data[3 * 64:]
    assert child.put(name, 8, b"z" * 100).ok
    assert child.get(name, 0, 640).bytes \
        == data[:512] + b"z" * 100 + data[612:]


@pytest.mark.only_ours("the stock module runs on past the segment's end")
@pytest.mark.parametrize("slot, length", [
    (9, 65), (0, 641), (5, 321), (9, 1 << 20), (0, (1 << 64) - 1),
    (1, (1 << 64) - 1), (9, (1 << 64) - 64), (1, (1 << 64) - 640)])
def test_copy_past_the_last_slot_is_refused(child, segment, slot, length):
    """Nothing may be read or written then, not even what would fit."""
    name = segment(64, 10)
    child.grab(name, n=10)
    before = os.urandom(640)
    child.put(name, 0, before)
    got = child.get(name, slot, length, room=min(length, 700))
    assert got.rv == "APR_EINVAL"
    assert got.untouched and got.guarded
    put = child.call("put", h=name, i=slot, len=min(length, 700), byte=1,
                     claim=length)
    assert put.rv == "APR_EINVAL"
    assert child.get(name, 0, 640).bytes == before
    assert child.info(name).num_free == 0


@pytest.mark.only_ours("the stock module copies first")
def test_refused_copy_does_not_mark_the_slot(child, segment):
    name = segment(64, 10, "0")
    assert child.call("put", h=name, i=9, len=65).rv == "APR_EINVAL"
    assert child.get(name, 9, 65).rv == "APR_EINVAL"
    assert child.info(name).num_free == 10


def test_pregrab_refuses_slots_that_are_not_in_use(child, segment):
    """Without it a released slot's next owner would be overwritten."""
    name = segment(64, 10, PREGRAB)
    assert child.put(name, 3, b"x").rv == "APR_NOTFOUND"
    got = child.get(name, 3, 8)
    assert got.rv == "APR_NOTFOUND" and got.untouched
    assert child.read(name, 3, 64) == bytes(64)
    assert child.info(name).num_free == 10
    child.fgrab(name, 3)
    assert child.put(name, 3, b"x").ok
    assert child.get(name, 3, 1).bytes == b"x"


def test_without_pregrab_put_and_get_take_the_slot(child, segment):
    name = segment(64, 10, "0")
    assert child.put(name, 3, b"x").ok
    assert child.info(name).num_free == 9
    assert child.get(name, 5, 4).bytes == bytes(4)
    assert child.info(name).num_free == 8
    assert child.put(name, 3, b"y").ok and child.get(name, 5, 1).ok
    assert child.info(name).num_free == 8
    assert child.grab(name, n=4).ids == [0, 1, 2, 4]
    assert child.release(name, 5).ok


def test_notmpsafe_segment_copies_all_the_same(child, segment):
    name = segment(64, 10, "notmpsafe+pregrab")
    child.fgrab(name, 1)
    assert child.put(name, 1, b"plain").ok
    assert child.get(name, 1, 5).bytes == b"plain"
    assert child.put(name, 2, b"x").rv == "APR_NOTFOUND"
    assert child.put(name, 10, b"x").rv == "APR_EINVAL"


# ---------------------------------------------------------------------------
# doall
# ---------------------------------------------------------------------------

def test_doall_with_pregrab_visits_slots_in_use_ascending(child, segment):
    """mod_heartmonitor takes every visited slot for a live server."""
    name = segment(16, 200, PREGRAB)
    assert child.doall(name).visited == 0
    wanted = [0, 1, 62, 63, 64, 65, 127, 128, 199]
    for slot in reversed(wanted):
        child.fgrab(name, slot)
    visit = child.doall(name)
    assert visit.ok and visit.ids == wanted
    child.release(name, 63)
    assert child.doall(name).ids == [0, 1, 62, 64, 65, 127, 128, 199]


def test_doall_without_pregrab_visits_all_slots(child, segment):
    name = segment(16, 70, "0")
    child.grab(name)
    visit = child.doall(name)
    assert visit.ok and visit.ids == list(range(70))


@pytest.mark.parametrize("type", ["0", PREGRAB])
def test_doall_stops_at_the_first_other_result(child, segment, type):
    name = segment(16, 20, type)
    child.grab(name, n=20)
    visit = child.doall(name, stop=5, status=70023)
    assert visit.ids == [0, 1, 2, 3, 4]
    assert visit.code == 70023
    assert child.doall(name, stop=20, status=22).rv == "APR_EINVAL"


@pytest.mark.parametrize("type", ["0", PREGRAB])
def test_doall_hands_data_and_pool_through(child, segment, type):
    """A published module passes something that is no pool.

    That the data arrives is checked by the callback, which would end the
    walk otherwise.
    """
    name = segment(16, 5, type)
    child.grab(name, n=5)
    for pool in "op", "bogus":
        visit = child.doall(name, pool=pool)
        assert visit.ok and visit.visited == 5 and visit.pool_same


@pytest.mark.parametrize("action", ["get", "put", "fgrab", "free"])
@pytest.mark.parametrize("type", ["0", PREGRAB])
def test_doall_callback_may_call_the_provider(child, segment, type, action):
    """mod_heartmonitor's callback does; a lock held here is a hang."""
    name = segment(16, 100, type)
    child.grab(name, n=100)
    visit = child.doall(name, do=action)
    assert visit.ok and visit.acted == visit.visited == 100


def test_doall_callback_may_release_the_slot_it_visits(child, segment):
    """So mod_heartmonitor drops servers it has not heard from."""
    name = segment(16, 100, PREGRAB)
    child.grab(name, n=100)
    visit = child.doall(name, do="release")
    assert visit.ok and visit.ids == list(range(100))
    assert visit.acted == 100
    assert child.info(name).num_free == 100


def test_doall_callback_may_grab(child, segment):
    name = segment(16, 100, PREGRAB)
    for slot in 0, 50, 99:
        child.fgrab(name, slot)
    visit = child.doall(name, do="grab")
    assert visit.ok and {0, 50, 99} <= set(visit.ids)
    assert visit.ids == sorted(set(visit.ids))
    assert child.info(name).num_free == 97 - visit.acted


def test_doall_sees_what_changes_ahead_of_it(server):
    """mod_heartmonitor's walk beside its grabs: no dead server is called back
    for, and no new one missed, though they lie close together."""
    one, other = map(server.slotmem, server.children())
    name = f"ahead-{next(_numbers)}"
    until = os.path.join(server.ctl_dir, name)
    assert one.create(name, 16, 60, PREGRAB).ok and other.attach(name).ok
    assert one.fgrab(name, 9).ok and one.fgrab(name, 10).ok
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        walk = pool.submit(one.doall, name, do="wait", until=until)
        try:
            harness.wait_for(lambda: os.path.exists(until + ".reached"),
                             "the callback to be called")
            assert other.release(name, 10).ok and other.fgrab(name, 20).ok
        finally:
            with open(until, "w"):
                pass
        assert walk.result().ids == [9, 20]


def test_no_lock_is_held_while_a_callback_runs(server):
    """A slow callback in one child must not stop all the others."""
    one, other = map(server.slotmem, server.children())
    second_thread = server.slotmem(one.pid)
    until = os.path.join(server.ctl_dir, f"callback-{next(_numbers)}")
    assert one.fgrab("fixed", 9).ok
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        walk = pool.submit(one.doall, "fixed", do="wait", until=until)
        try:
            harness.wait_for(lambda: os.path.exists(until + ".reached"),
                             "the callback to be called")
            for slotmem in other, second_thread:
                assert slotmem.put("fixed", 9, b"meanwhile").ok
                assert slotmem.get("fixed", 9, 9).bytes == b"meanwhile"
                assert slotmem.grab("fixed").id == 0
                assert slotmem.doall("fixed").ids == [0, 9]
                assert slotmem.release("fixed", 0).ok
                assert slotmem.release("fixed", 9).ok
                assert slotmem.fgrab("fixed", 9).ok
                assert slotmem.info("fixed").num_free == 9
                assert slotmem.create(f"meanwhile-{next(_numbers)}", 8, 1).ok
        finally:
            with open(until, "w"):
                pass
            walk.exception()
            assert one.release("fixed", 9).ok
        assert walk.result().ids == [9]


# ---------------------------------------------------------------------------
# Concurrency
# ---------------------------------------------------------------------------

def in_both(server, call):
    """call(slotmem) at the same time in two children; both results."""
    slotmems = [server.slotmem(pid) for pid in server.children()[:2]]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, slotmems))


@pytest.mark.only_ours("the stock module gives one slot to two owners")
def test_a_slot_has_one_owner(server, target):
    """Two processes, three threads each, on few slots: always contended."""
    name = "fixed"
    for counts in in_both(server, lambda s: s.hammer(name, "owner", threads=3,
                                                     ops=20000)):
        assert counts.double_owner == 0
        assert counts.failed == 0, counts
        assert counts.done > 0
    info = server.slotmem().info(name)
    assert info.num_free == info.num_slots == 10
    slotmem = server.slotmem()
    assert slotmem.grab(name, n=11).ids == list(range(10))
    assert slotmem.release(name, 0, n=10).ok


@pytest.mark.only_ours("the stock module copies without a lock")
def test_get_never_sees_half_of_a_put(server):
    name = "shared by all"
    assert server.slotmem().read(name, 1, 400) == bytes(400)
    for counts in in_both(server, lambda s: s.hammer(
            name, "tear", threads=2, ops=20000, i=1, count=2)):
        assert counts.torn == 0
        assert counts.failed == counts.timeup == 0, counts
        assert counts.done == 80000


@pytest.mark.only_ours("the stock module's count of free slots drifts")
def test_any_call_at_any_time(server):
    """Every call mixed, on slots that others grab and release meanwhile."""
    name = "fixed"
    for counts in in_both(server, lambda s: s.hammer(name, "mix", threads=3,
                                                     ops=20000)):
        assert counts.failed == counts.timeup == 0, counts
        assert counts.done == 60000
    slotmem = server.slotmem()
    in_use = slotmem.in_use(name)
    assert slotmem.info(name).num_free == 10 - len(in_use)
    for slot in range(10):
        assert slotmem.release(name, slot).ok == (slot in in_use)
    assert slotmem.info(name).num_free == 10


@pytest.mark.only_ours("the stock module has no mutex")
@pytest.mark.parametrize("mechanism", ["default", "fcntl", "flock", "sysvsem",
                                       "posixsem", "pthread"])
def test_mutex_directive_chooses_the_mechanism(httpd, target, mechanism):
    """Two children that create one name exclude each other by it."""
    server = httpd(target=target,
                   conf=f"Mutex {mechanism} slotmem-shm\n" + CONF)
    names = [f"race-{i}" for i in range(10)]
    lines = [op_line("create", name=name, size=64, num=4, type=PREGRAB, h=name)
             for name in names] + [op_line("grab", h=name) for name in names]
    first, second = in_both(server, lambda slotmem: slotmem.run(*lines))
    assert {answer.rv for answer in first + second} == {"APR_SUCCESS"}
    for a, b in zip(first[10:], second[10:]):
        assert {a.id, b.id} == {0, 1}


# ---------------------------------------------------------------------------
# Stop, start and restart
# ---------------------------------------------------------------------------

RESTARTS = {
    "stop and start": lambda server: (server.stop(), server.start()),
    "graceful stop and start": lambda server: (server.graceful_stop(),
                                               server.start()),
    "graceful": lambda server: server.graceful(),
    "hard": lambda server: server.restart(),
}

PERSIST_CONF = """
SlotmemTestCreate plain 200 50 0
SlotmemTestCreate kept 200 50 persist+pregrab
SlotmemTestCreate cleared 200 50 persist+clearinuse
SlotmemTestCreate nothing 64 0 persist
SlotmemTestCreate big 65536 20 persist
SlotmemTestAttach kept
SlotmemTestAttach cleared
"""


def fill(slotmem):
    for name in "plain", "kept", "cleared":
        for slot in 0, 3, 49:
            assert slotmem.fgrab(name, slot).ok
            assert slotmem.put(name, slot, b"%s %d" % (name.encode(), slot)).ok
    slotmem.put("big", 19, b"e" * 65536)


def filled_slot(name, slot):
    """What is in a slot of 200 bytes after fill()."""
    text = f"{name} {slot}" if slot in (0, 3, 49) else ""
    return text.encode().ljust(200, b"\0")


def check_restored(slotmem):
    for name, used in (("kept", [0, 3, 49]), ("cleared", [])):
        assert slotmem.info(name).num_free == 50 - len(used)
        for slot in range(50):
            assert slotmem.read(name, slot, 200) == filled_slot(name, slot)
    assert slotmem.in_use("kept") == [0, 3, 49]
    assert slotmem.info("nothing").num_slots == 0
    assert slotmem.read("big", 19, 65536) == b"e" * 65536
    assert slotmem.info("big").num_free == 19
    assert slotmem.info("plain").num_free == 50
    assert slotmem.read("plain", 0, 200 * 50) == bytes(200 * 50)


@pytest.mark.parametrize("how", RESTARTS)
def test_restart_keeps_persistent_segments_and_no_others(httpd, target, how):
    """A balancer member disabled by hand must stay disabled."""
    server = httpd(target=target, conf=PERSIST_CONF)
    fill(server.slotmem())
    for _ in range(2):
        RESTARTS[how](server)
        slotmem = server.slotmem()
        check_restored(slotmem)
        for slot in 0, 3, 49:                   # as mod_proxy_balancer does
            assert slotmem.fgrab("cleared", slot).ok
        assert slotmem.info("attach:cleared").num_free == 47
        assert slotmem.grab("attach:kept").id == 1
        assert slotmem.release("kept", 1).ok
        slotmem.put("plain", 0, b"again")


@pytest.mark.parametrize("how", ["graceful", "hard"])
def test_restart_removes_the_old_generations_objects(httpd, target, how):
    """They would pile up in /dev/shm, one set a log rotation."""
    server = httpd(target=target, conf=PERSIST_CONF)
    before = server.shm_objects()
    assert server.shm_path("plain") in before
    RESTARTS[how](server)
    assert not [path for path in before - server.shm_objects()
                if sharedmem.exists(path)]
    assert server.shm_path("plain") in server.shm_objects()


def test_clean_stop_leaves_the_stored_files_and_nothing_else(httpd, target):
    server = httpd(target=target, conf=PERSIST_CONF)
    objects = server.shm_objects()
    server.stop()
    assert sorted(os.listdir(server.run_dir)) == sorted(
        f"slotmem-shm-{name}.shm.persist"
        for name in ("kept", "cleared", "nothing", "big"))
    assert objects and not [path for path in objects
                            if sharedmem.exists(path)]


@pytest.mark.parametrize("name, type, in_use", [
    ("kept", 5, [0, 3, 49]), ("cleared", 9, [])])
def test_stored_file_byte_for_byte(httpd, target, name, type, in_use):
    """An administrator may move to this module and back."""
    server = httpd(target=target, conf=PERSIST_CONF)
    fill(server.slotmem())
    server.stop()
    stored = Stored(server.persist_path(name), 200, 50)
    assert stored.length_expected == 10090
    # Behind what httpd's own module writes stands whose the slots were.
    trailer = 50 + 48 if name == "cleared" and target[0] == "ours" else 0
    assert len(stored.raw) == stored.length_expected + trailer
    assert stored.free == 50 - len(in_use)
    assert [i for i, used in enumerate(stored.in_use) if used == 1] == in_use
    assert set(stored.in_use) <= {0, 1}
    for slot in range(50):
        assert stored.slots[slot] == filled_slot(name, slot)
    assert stored.digest == stored.digest_of_content
    assert stored.descriptor == (200, 50, type)


@pytest.mark.parametrize("first, second", [("ours", "stock"),
                                           ("stock", "ours")])
def test_moving_between_stock_and_ours_keeps_everything(
        httpd, mpm, our_module, stock_module, first, second):
    """Swap the .so, start: the state is there.  Both ways."""
    paths = {"ours": our_module, "stock": stock_module}
    server = httpd(mpm=mpm, slotmem_module=paths[first], conf=PERSIST_CONF)
    fill(server.slotmem())
    for module in first, second, first:
        server.stop()
        server.slotmem_module = paths[module]
        server.start()
        slotmem = server.slotmem()
        check_restored(slotmem)
        for slot in 0, 3, 49:
            assert slotmem.fgrab("cleared", slot).ok


@pytest.mark.only_ours("the stock module leaves modes to the umask")
def test_files_and_objects_are_for_their_owner_only(httpd, target):
    """Slots hold whatever consumers put there: session ids, secrets."""
    server = httpd(target=target, conf=PERSIST_CONF)
    objects = server.shm_objects()
    assert objects
    for path in objects:
        assert sharedmem.modes(path) == {0o600}, path
    assert server.slotmem().create("at run time", 8, 8).ok
    late = server.shm_path("at run time")
    assert sharedmem.modes(late) == {0o600}
    server.stop()
    for name in os.listdir(server.run_dir):
        mode = os.stat(os.path.join(server.run_dir, name)).st_mode
        assert stat.S_IMODE(mode) == 0o600, name


def test_old_generation_keeps_its_memory(httpd, target):
    """A child that finishes a download keeps raw pointers into its slots."""
    server = httpd(target=target, conf=PERSIST_CONF)
    fill(server.slotmem())
    with server.held_request() as pid:
        old = server.slotmem(pid)
        names = "plain", "kept", "cleared", "big"
        before = {name: old.dptr(name, 0).address for name in names}
        for generation in 1, 2:
            server.graceful(wait_old=False)
            assert server.generation == generation
            new = server.slotmem()
            check_restored(new)
            for name in names:
                assert old.dptr(name, 0).address == before[name]
                assert old.put(name, 0, b"old child").ok
                assert old.get(name, 0, 9).bytes == b"old child"
                grabbed = old.grab(name)
                assert grabbed.ok and old.release(name, grabbed.id).ok
                assert old.doall(name).ok
            attached = old.attach("kept", h="again")
            assert attached.ok and attached.num == 50
            assert old.read("again", 0, 9) == b"old child"
            check_restored(new)
            for slot in 0, 3, 49:
                new.fgrab("cleared", slot)


@pytest.mark.only_ours("the stock module clears the table in live memory")
def test_clearinuse_is_for_the_file_only(httpd, target):
    """Old children's slots are still theirs while they finish requests."""
    server = httpd(target=target, conf="""
        SlotmemTestCreate seg 64 10 persist+clearinuse+pregrab
    """)
    server.slotmem().grab("seg", n=4)
    with server.held_request() as pid:
        server.graceful(wait_old=False)
        old = server.slotmem(pid)
        assert old.in_use("seg") == [0, 1, 2, 3]
        assert old.info("seg").num_free == 6
        assert server.slotmem().in_use("seg") == []


def test_parent_may_use_its_segments_in_post_config(httpd, target):
    """mod_proxy_balancer looks through restored slots before any child is."""
    server = httpd(target=target, conf="""
        SlotmemTestCreate seg 64 4 persist+pregrab
        SlotmemTestPostConfig grab h=seg
        SlotmemTestPostConfig put h=seg i=0 data=0102
        SlotmemTestPostConfig get h=seg i=0 len=2
        SlotmemTestPostConfig info h=seg
        SlotmemTestPostConfig attach name=seg h=attached
    """)
    create, grab, put, get, info, attach = server.stage("post_config")
    assert create.pid == server.pid
    assert grab.id == 0 and put.ok and get.bytes == b"\1\2"
    assert info.num_free == 3
    assert attach.ok and (attach.size, attach.num) == (64, 4)
    server.graceful()
    create, grab, put, get, info, attach = server.stage("post_config")
    assert create.ok and grab.id == 1, "the slot taken before is free again"
    assert info.num_free == 2


# ---------------------------------------------------------------------------
# Where named shared memory cannot be had
# ---------------------------------------------------------------------------

READ_ONLY_SHM = ["unshare", "-m", "sh", "-c",
                 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "sh"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def check_anonymous_fallback(server):
    one, other = map(server.slotmem, server.children())
    assert not sharedmem.is_named(one.mapping("seg").line)
    size = 256 * 1024
    for slot in range(16):                  # every page can be written
        assert one.grab("seg").id == slot
        assert one.put("seg", slot, bytes([slot + 1]) * size).ok
    for slot in range(16):
        assert other.get("seg", slot, size).bytes == bytes([slot + 1]) * size
    assert other.grab("seg").rv == "APR_EINVAL"
    attached = other.attach("seg", h="attached")
    assert attached.ok and (attached.size, attached.num) == (size, 16)


FALLBACK_CONF = "SlotmemTestCreate seg 262144 16 persist+pregrab"


@needs_root
@pytest.mark.only_ours("the stock module dies of SIGBUS, or does not start")
def test_shm_too_small_is_no_reason_not_to_start(httpd, target):
    """A container has 64 MiB; the segment must be backed, or elsewhere."""
    server = httpd(target=target, conf=FALLBACK_CONF, shm_size="1m",
                   start=False)
    server.expect_log(r"\[slotmem_shm:warn\].*seg")
    server.start()
    check_anonymous_fallback(server)
    server.stop()
    server.start()
    assert server.slotmem().get("seg", 15, 4).bytes == b"\x10" * 4


@needs_root
@sharedmem.only_posix("shared memory is not in /dev/shm here")
@pytest.mark.only_ours("the stock module does not start")
def test_shm_not_writable_is_no_reason_not_to_start(httpd, target):
    server = httpd(target=target, conf=FALLBACK_CONF, wrapper=READ_ONLY_SHM,
                   start=False)
    server.expect_log(r"\[slotmem_shm:warn\].*seg")
    server.start()
    check_anonymous_fallback(server)
    server.graceful()
    assert server.slotmem().get("seg", 15, 4).bytes == b"\x10" * 4


# ---------------------------------------------------------------------------
# Other ways to run httpd
# ---------------------------------------------------------------------------

@needs_root
def test_single_process_for_debugging_keeps_state(httpd, target):
    """httpd -X: the process that serves is the one that must store."""
    server = httpd(target=target, conf=PERSIST_CONF, children=1,
                   define=["DEBUG"], run_as=harness.unprivileged_user())
    server.allow_log("AH00098")         # httpd -X leaves its pid file
    assert server.children() == [server.pid]
    fill(server.slotmem())
    server.stop()
    server.start()
    check_restored(server.slotmem())


@needs_root
@pytest.mark.only_ours("the stock module does not note whose slots are whose")
def test_single_process_for_debugging_adds_at_run_time(httpd, target):
    """Else what it adds counts as the configuration's, and is dropped when the
    next start does not name it."""
    server = httpd("SlotmemTestCreate seg 64 10 persist+clearinuse",
                   target=target, children=1, define=["DEBUG"],
                   run_as=harness.unprivileged_user())
    server.allow_log("AH00098")         # httpd -X leaves its pid file
    assert server.children() == [server.pid]
    assert server.slotmem().grab("seg").id == 0
    server.stop()
    assert storedfile.Stored(server.persist_path("seg")).kinds \
        == b"\2" + bytes(9)


@needs_root
@pytest.mark.parametrize("how", ["stop and start", "graceful"])
def test_httpd_of_an_ordinary_user_keeps_state(httpd, target, how):
    """A developer's own httpd on a high port; nothing needs root."""
    server = httpd(target=target, conf=PERSIST_CONF,
                   run_as=harness.unprivileged_user())
    fill(server.slotmem())
    RESTARTS[how](server)
    check_restored(server.slotmem())


@needs_root
@sharedmem.only_posix("a key's number is not known before there is a file")
@pytest.mark.only_ours("the stock module does not start")
def test_foreign_object_in_the_way_is_no_reason_not_to_start(httpd, target):
    """Left by an httpd that ran as root, found by one that does not."""
    server = httpd(target=target, conf=FALLBACK_CONF, start=False,
                   run_as=harness.unprivileged_user())
    server.expect_log(r"\[slotmem_shm:warn\].*seg")
    obstacle = server.shm_path("seg", 0)
    with open(obstacle, "xb") as file:
        file.write(b"root's")
    os.chmod(obstacle, 0o600)
    try:
        server.start()
        check_anonymous_fallback(server)
        server.stop()
        with open(obstacle, "rb") as file:
            assert file.read() == b"root's"
    finally:
        os.unlink(obstacle)
