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
"""What somebody else put where the module will look.

Anyone with an account may make what he likes in /dev/shm, and the user of
httpd's children may own the directory of a stored file.  The root parent, and
its children, must come to no harm by opening it: they do not hang, they touch
no page of it, they do not believe it, and do not map more than there is.

The library shim/trespass.c notes every open, mapping and signal that could do
such harm, whether or not anybody is there to use it.
"""

import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

import hostile
import httpd as harness
import sharedmem
import shim
from rundir import halt_helper

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0,
                       reason="others' objects need a user to own them"),
    sharedmem.only_posix("others' objects are planted in /dev/shm")]

ROOM = 32 << 20                 # of the /dev/shm that a server has here
NAME_IN_USE = r"AH02611: .*(File exists|name is in use)"
KILLED = r"AH00098: pid file .* overwritten"


def as_user(user, code, *words):
    """Runs Python text as a user without rights; words are its arguments."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", "import os, sys\n" + code, *map(str, words)],
        user=user, group=harness._group_of(user), extra_groups=[], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, cwd="/")
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------------------
# What can be planted
# ---------------------------------------------------------------------------

PLANTS = {
    # To open it, or to read the size that APR keeps there, waits for ever.
    "fifo": "os.mkfifo(sys.argv[1]); os.chmod(sys.argv[1], 0o666)",
    # The size is there, and so it would be made real, page by page.
    "sparse": """
with open(sys.argv[1], "wb") as file:
    file.write((1 << 40).to_bytes(8, sys.byteorder))
    file.truncate(1 << 40)
os.chmod(sys.argv[1], 0o666)
""",
    "symlink": "os.symlink(sys.argv[2], sys.argv[1])",
    "directory": "os.mkdir(sys.argv[1])",
    "socket": """
import socket
socket.socket(socket.AF_UNIX).bind(sys.argv[1])
""",
    "empty": "open(sys.argv[1], 'wb').close()",
    # A whole segment, which bears the run's identity: every child knows it.
    "image": """
import re
import shutil
shutil.copyfile(sys.argv[2], sys.argv[1])
os.chmod(sys.argv[1], 0o666)
""",
    "linked": """
import re
import shutil
shutil.copyfile(sys.argv[2], sys.argv[1])
os.chmod(sys.argv[1], 0o666)
os.link(sys.argv[1], sys.argv[1] + ".link")
""",
}


class Planted:
    """Something of nobody's at a path, and whether it was left alone."""

    def __init__(self, kind, path, image, user="nobody"):
        self.kind, self.path, self.image = kind, path, image
        as_user(user, PLANTS[kind], path, image)
        self.before = self.look()

    def look(self):
        st = os.lstat(self.path)
        return (st.st_ino, st.st_mode, st.st_uid, st.st_size, st.st_blocks,
                st.st_nlink)

    def check(self):
        """It is still there, and no page was added to it or written."""
        now = self.look()
        assert now == self.before, f"{self.kind}: {self.before}, now {now}"
        if self.kind in ("image", "linked"):
            assert self.content() == read(self.image)

    def content(self):
        return read(self.path)

    def remove(self):
        if stat.S_ISDIR(os.lstat(self.path).st_mode):
            os.rmdir(self.path)
            return
        for path in self.path, self.path + ".link":
            if os.path.lexists(path):
                os.unlink(path)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def victim(server):
    """A file of root's that nobody may harm."""
    path = os.path.join(server.root, "victim")
    if not os.path.exists(path):
        with open(path, "w") as file:
            file.write("root's")
    return path


def image_of(server, name, text):
    """A copy, that all may read, of a segment whose first slot holds text."""
    copy = os.path.join(server.root, f"image-{name}")
    assert server.slotmem().put(name, 0, text).ok
    shutil.copyfile(server.shm_path(name), copy)
    os.chmod(copy, 0o644)
    return copy


def text_of(server, name, slot=0):
    return server.slotmem().read(name, slot, 64).rstrip(b"\0")


# ---------------------------------------------------------------------------
# The root parent, at a start after a kill
# ---------------------------------------------------------------------------

CONF = """
SlotmemTestCreate seg 64 5000 persist+pregrab
SlotmemTestCreate ${ROOT}/absolute 64 5000 persist+pregrab abs
SlotmemTestCreate model 64 5000 persist+pregrab
"""


def fill(server, text):
    sm = server.slotmem()
    for name in "seg", "abs", "model":
        assert sm.fgrab(name, 0).ok
        assert sm.put(name, 0, text).ok


def test_without_strangers_the_killed_run_s_memory_is_used(httpd, mpm):
    """A positive control: what the tests below must not see."""
    server = httpd(CONF, mpm=mpm, shm_size=ROOM)
    fill(server, b"kept")
    server.kill_all()
    server.allow_log(KILLED)
    server.start()
    assert text_of(server, "abs") == text_of(server, "seg") == b"kept"


@pytest.mark.parametrize("kind", PLANTS)
def test_parent_starts_after_a_kill_beside_what_nobody_planted(httpd, kind):
    """Under the name of an absolute segment, which /dev/shm keeps for
    whoever comes first.  The marker lists the segment, so the next start looks
    for what the killed run left there: it opened the pipe, and hung; it made
    1 TB real; it believed what nobody had written."""
    server = httpd(CONF, mpm="event", shm_size=ROOM, start=False)
    path = server.shm_path(f"{server.root}/absolute")
    image = victim(server)
    if kind in ("image", "linked"):
        # The run's identity is known to its children, so the image has it.
        server.start()
        halt_helper(server)     # no file has it, if memory is not believed
        fill(server, b"kept")
        image = image_of(server, "model", b"forged")
        os.unlink(path)
    planted = Planted(kind, path, image)
    try:
        if server.pid is None:
            server.expect_log(NAME_IN_USE)
            server.start()
            halt_helper(server)
            fill(server, b"kept")
            planted.check()
        server.kill_all()
        server.allow_log(KILLED)
        server.allow_log("AH02611: ")
        server.start()
        planted.check()
        assert text_of(server, "abs") == b""
        assert text_of(server, "seg") == b"kept"
        server.graceful()
        server.stop()
        planted.check()
        assert read(victim(server)) == b"root's"
    finally:
        planted.remove()


# ---------------------------------------------------------------------------
# A child, which attaches or creates
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("kind", PLANTS)
def test_child_attaches_and_creates_beside_what_nobody_planted(httpd, kind):
    """While it hung in open or read, it held the registry's lock and the
    mutex between processes: of 6 requests for server-status 5 hung, too."""
    server = httpd("SlotmemTestCreate model 64 5000 0\n", mpm="event",
                   modules=["status"], shm_size=ROOM)
    image = image_of(server, "model", b"forged")
    planted = [Planted(kind, server.shm_path(f"late{i}"), image)
               for i in range(2)]
    first, second = (server.slotmem(pid) for pid in server.children())
    server.allow_log("AH02611: |AH02300: ")
    try:
        assert not first.attach("late0", h="late0").ok
        assert not second.create("late1", 64, 5000, h="late1").ok
        for _ in range(6):
            assert server.get("/server-status?auto", limit=10)[0] == 200
        for one in planted:
            one.check()
        # Neither process has kept a lock.
        assert first.create("other", 64, 5).ok
        assert second.attach("other").ok
    finally:
        for one in planted:
            one.remove()


# ---------------------------------------------------------------------------
# Sizes that an object claims
# ---------------------------------------------------------------------------

def watched(factory, conf, **more):
    """A server whose opens, mappings, signals and masks are watched."""
    server = factory(conf, start=False, **more)
    shim.watch(server)
    return server.start()


def claims(size):
    """What a child may write into the word that APR keeps the size in."""
    return (0, 4, 7, 8, 9, size // 2, size - 1, size + 1, size + 4096,
            2 * size, 1 << 30, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63,
            (1 << 64) - 1, (1 << 64) - 4096)


def test_parent_maps_no_more_than_there_is_whatever_an_object_claims(httpd):
    """A child may write any size into the first word of an object.  The root
    parent mapped that much, and 1 start in 14 ended with SIGSEGV."""
    count = len(claims(1 << 20))
    server = watched(
        httpd, hostile.attacker_conf() + hostile.canary_conf()
        + "".join(f"SlotmemTestCreate w{i} 64 500 persist+pregrab\n"
                  for i in range(count))
        + "".join(f"SlotmemTestCreate ${{ROOT}}/a{i} 64 500 0 a{i}\n"
                  for i in range(count)),
        mpm="prefork", shm_size=ROOM)
    server.allow_log("AH02611: ")
    hostile.canary_set(server)
    for _ in range(2):
        attacker = hostile.Attacker(server, server.children()[0])
        for letter in "wa":
            for i in range(count):
                where = attacker.range(f"{letter}{i}")
                size = int.from_bytes(attacker.get(where.start, 8),
                                      sys.byteorder)
                attacker.word(where.start, claims(size)[i])
        server.kill_all()
        server.allow_log(KILLED)
        server.start()
        hostile.canary_check(server)
    assert shim.trespasses(server, "map") == []


GEOMETRY = 16, 48           # from the header on: item_size to total_size


def test_child_maps_no_more_than_there_is_though_size_and_total_agree(httpd):
    """The word before the header and the geometry in it, forged together so
    that each agrees with the other, as in a segment that really is so large:
    only the kernel knows better."""
    server = watched(httpd, hostile.attacker_conf() + hostile.canary_conf(),
                     mpm="prefork", shm_size=256 << 20)
    server.allow_log("AH02611: |AH02300: ")
    hostile.canary_set(server)
    first, second = server.children()
    attacker = hostile.Attacker(server, first)
    sm, other = server.slotmem(first), server.slotmem(second)
    for i, num in enumerate((200, 5000, 1 << 20)):
        assert sm.create(f"large{i}", 64, num).ok
        assert sm.create(f"small{i}", 64, 10).ok
        large, small = (attacker.range(f"{name}{i}").start
                        for name in ("large", "small"))
        at, end = (header_address(large) - large + off for off in GEOMETRY)
        attacker.put(small + at, attacker.get(large + at, end - at))
        attacker.put(small, attacker.get(large, 8))
        assert other.attach(f"large{i}").num == num     # a positive control
        assert not other.attach(f"small{i}").ok
    hostile.canary_check(server)
    assert shim.trespasses(server, "map") == []


def header_address(start):
    """Of a mapping that APR made: 8 bytes of its own, then a multiple of 64."""
    return (start + 8 + 63) // 64 * 64


# ---------------------------------------------------------------------------
# Stored files
# ---------------------------------------------------------------------------

THEIRS = "${ROOT}/theirs/abs"


def in_a_directory_of_the_childrens(factory, name=THEIRS, **more):
    """A server with a stored file where its children may exchange it."""
    server = factory(f"SlotmemTestCreate {name} 64 5000 persist+pregrab abs\n",
                     start=False, mpm="event", **more)
    folder = os.path.join(server.root, "theirs")
    os.makedirs(folder)
    shutil.chown(folder, server.user)
    return server


# What is said of a stored file that is none.
REFUSED = "AH0255[14]: |AH02334: "


@pytest.mark.parametrize("when", ["look", "open"])
@pytest.mark.parametrize("kind", ["fifo", "symlink", "sparse"])
@pytest.mark.parametrize("how", ["graceful", "stop"])
def test_stored_file_that_is_exchanged_meanwhile(httpd, how, kind, when):
    """Between a look and the open that trusts it, by whoever owns the
    directory.  With a pipe in its place, the root parent hung in open."""
    server = in_a_directory_of_the_childrens(httpd)
    path = server.persist_path(f"{server.root}/theirs/abs")
    with_ = os.path.join(server.root, "theirs", "with")
    shim.preload(server, "trespass")
    server.env.update(TRESPASS_WHEN=when, TRESPASS_PATH=path,
                      TRESPASS_WITH=with_)
    server.start()
    assert server.slotmem().fgrab("abs", 0).ok
    assert server.slotmem().put("abs", 0, b"kept").ok
    server.graceful()
    assert stat.S_ISREG(os.lstat(path).st_mode)
    server.allow_log(REFUSED)
    as_user(server.user, PLANTS[kind], with_, victim(server))
    try:
        # What has changed is stored, after a look at what lies there.
        assert server.slotmem().put("abs", 0, b"changed").ok
        if how == "graceful":
            server.graceful()
        else:
            server.stop()
            server.start()
        assert not os.path.lexists(with_), "it was exchanged"
        assert read(victim(server)) == b"root's"
        assert server.slotmem().info("abs").num_slots == 5000
    finally:
        for one in with_, path:
            if os.path.lexists(one):
                os.unlink(one)


def test_directory_of_a_stored_file_that_is_exchanged_meanwhile(httpd):
    """It is flushed after a file was renamed in it, and so opened; whoever
    owns the one above it may put a pipe in its place."""
    server = httpd("SlotmemTestCreate ${ROOT}/theirs/sub/abs 64 5000 "
                   "persist+pregrab abs\n", start=False, mpm="event")
    sub = os.path.join(server.root, "theirs", "sub")
    os.makedirs(sub)
    for folder in os.path.dirname(sub), sub:
        shutil.chown(folder, server.user)
    with_ = sub + ".with"
    shim.preload(server, "trespass")
    server.env.update(TRESPASS_WHEN="open", TRESPASS_PATH=sub,
                      TRESPASS_WITH=with_)
    server.start()
    server.allow_log(REFUSED)
    as_user(server.user, PLANTS["fifo"], with_)
    for i in range(2):
        assert server.slotmem().fgrab("abs", i).ok
        assert server.slotmem().put("abs", i, b"changed").ok
        server.graceful()
    assert not os.path.exists(with_), "it was exchanged"
    assert server.slotmem().info("abs").num_slots == 5000
    os.unlink(sub)
    os.rename(with_ + ".aside", sub)    # else its memory is kept


@pytest.mark.parametrize("kind", ["fifo", "symlink", "sparse", "socket"])
def test_checkpoint_replaces_what_was_put_in_a_stored_file_s_place(httpd, kind):
    """A helper that waited for a pipe would be the last."""
    server = in_a_directory_of_the_childrens(httpd)
    path = server.persist_path(f"{server.root}/theirs/abs")
    server.start()
    server.graceful()
    assert server.slotmem().fgrab("abs", 0).ok
    assert server.slotmem().put("abs", 0, b"before!").ok
    harness.wait_for(lambda: os.path.exists(path)
                     and read(path)[8:15] == b"before!", "a first one")
    os.unlink(path)
    as_user(server.user, PLANTS[kind], path, victim(server))
    assert server.slotmem().put("abs", 0, b"changed").ok

    def stored():
        return (stat.S_ISREG(os.lstat(path).st_mode)
                and os.lstat(path).st_uid == 0
                and read(path)[8:15] == b"changed")

    harness.wait_for(stored, "a checkpoint", limit=60)
    assert read(victim(server)) == b"root's"


FOREIGN_FILES = {"fifo", "symlink", "directory", "socket", "empty"}


@pytest.mark.parametrize("kind", sorted(FOREIGN_FILES))
def test_stored_file_that_is_none(httpd, kind):
    """It is there before the server starts.  It starts empty, and says so."""
    server = in_a_directory_of_the_childrens(httpd)
    path = server.persist_path(f"{server.root}/theirs/abs")
    as_user(server.user, PLANTS[kind], path, victim(server))
    server.expect_log("AH0255[14]: ")
    server.allow_log(REFUSED)
    server.start()
    assert server.slotmem().info("abs").num_free == 5000
    server.graceful()
    assert read(victim(server)) == b"root's"


def damaged_with_one_of_before(httpd, name=THEIRS):
    """A server that was stopped, its stored file cut as a power cut right after
    a restart leaves it; and a good one, as it was before."""
    server = in_a_directory_of_the_childrens(httpd, name)
    path = server.persist_path(name.replace("${ROOT}", server.root))
    server.start()
    assert server.slotmem().fgrab("abs", 0).ok
    assert server.slotmem().put("abs", 0, b"before").ok
    server.stop()
    os.rename(path, path + ".before")
    with open(path, "wb"):
        pass
    return server, path


def test_file_of_before_takes_the_place_of_a_damaged_one(httpd):
    server, path = damaged_with_one_of_before(httpd)
    server.expect_log("AH02551: .* goes on with the file of before")
    server.start()
    assert text_of(server, "abs") == b"before"
    server.stop()
    assert not os.path.lexists(path + ".before")
    assert not os.path.lexists(path + ".rejected")


def test_empty_file_of_before_is_not_gone_back_to(httpd):
    """It says that there was no file before, and is no state."""
    server, path = damaged_with_one_of_before(httpd)
    with open(path + ".before", "wb"):
        pass
    with open(path, "wb") as file:
        file.write(b"damaged")
    server.expect_log("AH02551: .*cut short or damaged")
    server.start()
    assert read(path + ".rejected") == b"damaged"


@pytest.mark.parametrize("kind", sorted(FOREIGN_FILES))
def test_what_lies_under_the_name_of_before_is_looked_at(httpd, kind):
    """It is believed no more than what lies under the file's own name."""
    server, path = damaged_with_one_of_before(httpd)
    os.unlink(path + ".before")
    as_user(server.user, PLANTS[kind], path + ".before", victim(server))
    server.expect_log("AH0255[14]: ")
    server.allow_log(REFUSED)
    server.start()
    assert server.slotmem().info("abs").num_free == 5000
    assert server.slotmem().fgrab("abs", 0).ok
    assert server.slotmem().put("abs", 0, b"after").ok
    server.graceful()
    server.stop()
    assert read(victim(server)) == b"root's"
    server.start()
    assert text_of(server, "abs") == b"after"


@pytest.mark.parametrize("name", [THEIRS, "seg"])
def test_removed_file_is_not_replaced_by_the_one_of_before(httpd, name):
    """Who removes the stored file wants to begin anew."""
    server, path = damaged_with_one_of_before(httpd, name)
    os.unlink(path)
    # Not even before the helper flushes what a restart has left.
    faults = shim.Faults(server)
    server.env["FAULTS_PREFIX"] = path + ".before"
    faults.arm(1, "wait", "helper")
    server.start()
    assert server.slotmem().info("abs").num_free == 5000
    harness.wait_for(faults.counted, "the helper's look for it")
    assert not os.path.lexists(path + ".before")
    faults.go()


def test_stored_file_of_another_owner(httpd):
    """A whole image which somebody wrote who is neither the parent's user nor
    its children's is not believed."""
    server = in_a_directory_of_the_childrens(httpd)
    path = server.persist_path(f"{server.root}/theirs/abs")
    server.start()
    assert server.slotmem().fgrab("abs", 0).ok
    assert server.slotmem().put("abs", 0, b"kept").ok
    server.stop()
    server.start()
    assert text_of(server, "abs") == b"kept"        # a positive control
    server.stop()
    shutil.chown(path, "nobody")
    server.expect_log("AH0255[14]: ")
    server.start()
    assert text_of(server, "abs") == b""


HOLLOW = 1 << 40


def hollow_image(path, item_size, item_num, user, kind):
    """A sparse file as long as an image of that geometry, as which its last
    16 bytes describe it; only the MD5 is wrong."""
    length = 8 + item_num * (item_size + 1) + 32
    as_user(user, """
import struct
with open(sys.argv[1], "wb") as file:
    file.truncate(int(sys.argv[2]))
    file.seek(-16, os.SEEK_END)
    file.write(struct.pack("=QII", *map(int, sys.argv[3:6])))
""", path, length, item_size, item_num, kind)


# As ap_slotmem.h has them; and another slot size, and
# the right one with more slots than any machine has memory for.
PERSIST_PREGRAB = 1 | 4
GEOMETRIES = {"one slot": (HOLLOW - 41, 1), "many slots": (64, 0xffffffff)}


@pytest.mark.parametrize("suffix", ["", ".rejected"])
@pytest.mark.parametrize("what", GEOMETRIES)
def test_hollow_file_that_describes_a_huge_image_is_not_read(httpd, what,
                                                             suffix):
    """A file takes no disk and is 1 TB long: to hash it, only to say what is
    wrong with it, held the root parent up for most of an hour."""
    server = in_a_directory_of_the_childrens(httpd)
    path = server.persist_path(f"{server.root}/theirs/abs")
    hollow_image(path + suffix, *GEOMETRIES[what], server.user,
                 PERSIST_PREGRAB)
    if suffix:
        as_user(server.user, "open(sys.argv[1], 'w').write('damaged')", path)
    server.expect_log("AH0255[14]: ")
    server.start()
    assert server.slotmem().info("abs").num_free == 5000


# ---------------------------------------------------------------------------
# Every open, of every moment
# ---------------------------------------------------------------------------

def live(server):
    """All that a server goes through, with what children make, too."""
    sm = server.slotmem(server.children()[0])
    other = server.slotmem(server.children()[1])
    assert sm.create("late", 64, 100).ok
    assert other.attach("late").ok
    assert sm.create(f"{server.root}/late", 64, 100, h="abslate").ok
    fill(server, b"kept")


def test_every_open_is_careful(httpd, mpm):
    """Whatever the module opens that it did not make in the same breath, it
    opens so that it can neither be led elsewhere nor wait, and that no program
    that is run inherits it; it maps what is there; the parent signals its own
    children only; no other process changes its mask."""
    server = watched(httpd, CONF, mpm=mpm, shm_size=ROOM)
    live(server)
    server.graceful()
    server.restart()
    live(server)
    server.kill_all()
    server.allow_log(KILLED)
    server.start()
    live(server)
    server.stop()
    server.start()
    server.graceful_stop()
    assert shim.trespasses(server) == []


# ---------------------------------------------------------------------------
# The list of them
# ---------------------------------------------------------------------------

# What opens, maps, looks at, removes, signals, or changes the process.
CALLS = r"""
    open openat creat fopen opendir shm_open mmap shmget shmat shmctl ftok
    stat lstat fstat fstatat access readlink
    unlink unlinkat rename renameat link symlink mkdir chmod fchmod chown
    fchown truncate ftruncate shm_unlink
    kill killpg tgkill waitpid wait fork umask
    apr_file_open apr_file_mktemp apr_dir_open apr_dir_make apr_stat apr_lstat
    apr_file_info_get apr_file_remove apr_file_rename apr_file_link
    apr_file_trunc apr_file_perms_set apr_shm_create apr_shm_create_ex
    apr_shm_attach apr_shm_attach_ex apr_shm_remove apr_shm_delete
    apr_shm_destroy apr_proc_fork apr_proc_create apr_proc_wait apr_proc_kill
    apr_proc_detach apr_mmap_create
""".split()

LIST = os.path.join(harness.TOP, "test", "shared-words.md")


def sources():
    folder = os.path.join(harness.TOP, "include")
    return [os.path.join(harness.TOP, "mod_slotmem_shm.c")] + sorted(
        os.path.join(folder, name) for name in os.listdir(folder))


def calls_made():
    """{(function, call)} of the module's source."""
    found = set()
    for path in sources():
        with open(path) as file:
            text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ",
                          file.read(), flags=re.S)
        # clang-format sees to it that a function's braces stand in column 0.
        for head, body in re.findall(r"^(\w[^;{}#]*?\))\s*^\{\n(.*?)^\}", text,
                                     re.S | re.M):
            function = re.search(r"(\w+)\s*\(", head).group(1)
            for call in re.findall(r"(?<![\w.>])(\w+)\s*\(", body):
                if call in CALLS:
                    found.add((function, call))
    return found


def calls_listed():
    """{(function, call): [tests]}, from the table in shared-words.md."""
    listed = {}
    with open(LIST) as file:
        section = file.read().split("## Every open")[1].split("\n## ")[0]
    for row in re.findall(r"^\| (.*) \|$", section, re.M)[2:]:
        cells = row.split(" | ")
        for function in re.findall(r"`(\w+)`", cells[0]):
            for call in re.findall(r"`(\w+)`", cells[1]):
                listed[function, call] = re.findall(r"`(\w+)`", cells[-1])
    return listed


def test_every_open_is_listed_with_its_test():
    """test/shared-words.md says of each open, attach, mapping, look, removal
    and signal what it may meet and which test shows it; a new one belongs
    there before anybody trusts it."""
    made, listed = calls_made(), calls_listed()
    assert ("platform_file_open", "open") in made       # a positive control
    assert made - set(listed) == set(), "not listed"
    assert set(listed) - made == set(), "listed, but gone"
    tests = set()
    for folder, _, names in os.walk(os.path.dirname(LIST)):
        for name in names:
            if name.endswith((".py", ".c")):
                with open(os.path.join(folder, name)) as file:
                    tests.update(re.findall(r"\b(test_\w+)\(", file.read()))
    for call, by in listed.items():
        assert by, f"{call} has no test"
        assert set(by) <= tests, f"{call}: no such test"
