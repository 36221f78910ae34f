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
"""Storing: at a stop and at every restart, whatever stands in the way.

What an administrator would see otherwise: members that were disabled by hand
serve again after a restart, because the file that should have told was cut
short, refused, or never there.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import stat
import subprocess

import pytest

import httpd as harness
import sharedmem
import storedfile
from httpd import op_line
from rundir import halt_helper
from storedfile import Stored

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

ONE = "SlotmemTestCreate seg 64 10 persist+pregrab"
CANNOT_STORE = "AH02334.*cannot store"


def write_seg(server, text, name="seg", slot=0):
    slotmem = server.slotmem()
    assert slotmem.fgrab(name, slot).ok
    assert slotmem.put(name, slot, text).ok


def seg_text(server, name="seg", slot=0):
    return server.slotmem().read(name, slot, 64).rstrip(b"\0")


def files(server):
    return sorted(os.listdir(server.run_dir))


@pytest.mark.parametrize("slotmem_first", [False, True])
def test_server_that_has_detached_stores_at_a_stop(httpd, mpm, slotmem_first):
    """As administrators start it.  The parent gets another number while it
    configures, before or after the module has first noted it, and a module
    that minds the old number takes the parent for a child: nothing would be
    stored, at a stop or a restart, and its objects would stay."""
    server = httpd(ONE, mpm=mpm, detached=True, slotmem_first=slotmem_first)
    for restart in server.graceful, server.restart:
        text = restart.__name__.encode().ljust(16, b".")
        write_seg(server, text, slot=1)
        restart()
        assert seg_text(server, slot=1) == text
        assert server.slotmem().release("seg", 1).ok
    write_seg(server, b"at the stop", slot=2)
    server.stop()
    assert storedfile.read(server.persist_path("seg"))[8 + 128:].startswith(
        b"at the stop")
    assert not server.leaked_shm()
    server.start()
    assert seg_text(server, slot=2) == b"at the stop"


# ---------------------------------------------------------------------------
# The same bytes as the stock module's
# ---------------------------------------------------------------------------

SHAPES = [(name.replace("+", "-") + f"-{size}-{num}", size, num, name)
          for name in ("persist", "persist+pregrab", "persist+clearinuse",
                       "persist+clearinuse+pregrab", "persist+notmpsafe")
          for size, num in ((200, 50), (1, 3), (7, 65), (70000, 3), (64, 0))]
SHAPES_CONF = "\n".join(f"SlotmemTestCreate {name} {size} {num} {type}"
                        for name, size, num, type in SHAPES)


def use_shapes(server, turn):
    """Some slots taken, some given back, some written; the same each time."""
    lines = []
    for name, size, num, _ in SHAPES:
        lines += [op_line("grab", h=name, n=min(num, 2))] if num else []
        for slot in range(turn, num, 3):
            data = bytes([1 + (slot * 7 + turn) % 255]) * size
            lines += [op_line("fgrab", h=name, i=slot),
                      op_line("put", h=name, i=slot, data=data)]
        if num:
            lines.append(op_line("release", h=name, i=turn % num))
    for start in range(0, len(lines), 100):
        server.slotmem().run(*lines[start:start + 100])


def stored_shapes(server):
    return {name: storedfile.read(server.persist_path(name))
            for name, *_ in SHAPES}


def test_positive_control_the_file_is_what_the_header_file_says(httpd):
    """Else none of the files that these tests make would mean anything."""
    server = httpd(ONE)
    write_seg(server, b"here", slot=3)
    server.stop()
    assert storedfile.read(server.persist_path("seg")) == storedfile.image(
        64, 10, "persist+pregrab", {3: b"here"}, used={3})


def test_same_content_makes_the_same_bytes_as_the_stock_module(
        httpd, our_module, stock_module):
    """At restarts and stops, fresh and restored; each type of segment.

    So an administrator, or a backup that compares, sees no difference.
    """
    ours = httpd(SHAPES_CONF, slotmem_module=our_module)
    stock = httpd(SHAPES_CONF, slotmem_module=stock_module)
    for turn, step in enumerate(["graceful", "restart", "stop", "stop"]):
        for server in ours, stock:
            if server.process is None:
                server.start()
            use_shapes(server, turn)
            getattr(server, step)()
        mine, theirs = stored_shapes(ours), stored_shapes(stock)
        # Behind an image that CLEARINUSE clears, ours notes whose the slots
        # were; the stock module reads no further than its own.
        assert [n for n in mine
                if mine[n][:len(theirs[n])] != theirs[n]
                or len(mine[n]) > len(theirs[n]) and "clear" not in n] == [], step
        for name, *_ in SHAPES:
            Stored(ours.persist_path(name))


# ---------------------------------------------------------------------------
# Under load
# ---------------------------------------------------------------------------

def test_graceful_restarts_under_load_always_leave_a_file_that_verifies(
        httpd, mpm):
    """Old children write on while the parent stores.

    The stock module hashes memory, and then writes what memory holds by then:
    the next start refuses the file and everything is lost.
    """
    server = httpd("SlotmemTestCreate seg 300 400 persist", mpm=mpm)
    path = server.persist_path("seg")
    with concurrent.futures.ThreadPoolExecutor(16) as pool, \
            contextlib.ExitStack() as held:
        for generation in range(6):
            pid = held.enter_context(server.held_request())
            hammer = pool.submit(server.slotmem(pid).hammer, "seg", "write",
                                 threads=2, ops=0)
            harness.wait_for(
                lambda: len(set(server.slotmem().read("seg", 0, 300))) and
                server.slotmem().info("seg").num_free < 200,
                "the writers to write")
            server.graceful(wait_old=False)
            stored = Stored(path)
            assert len(stored.used) > 200
            assert all(len(set(slot)) == 1 for slot in stored.slots), \
                "a slot holds parts of two puts"
            assert server.slotmem().info("seg").num_free < 200
            assert server.slotmem(pid).stop().pid == pid
            assert hammer.result().failed == 0
    assert not server.log_lines("AH02551")


# ---------------------------------------------------------------------------
# Nothing is written that is there already
# ---------------------------------------------------------------------------

def test_content_that_did_not_change_is_not_written(httpd, mpm):
    """A thousand segments at each log rotation are a thousand flushes."""
    server = httpd("SlotmemTestCreate seg 64 10 persist+pregrab\n"
                   "SlotmemTestCreate cleared 64 10 persist+clearinuse\n"
                   "SlotmemTestCreate none 64 0 persist h", mpm=mpm)
    names = "seg", "cleared"
    for name in names:
        write_seg(server, b"once", name)
    server.graceful()
    # Whose the slots are has changed by that, for one store more.
    looks = len(server.log_lines("stored 0 segments"))
    harness.wait_for(lambda: len(server.log_lines("stored 0 segments")) > looks,
                     "a look that finds nothing to store")
    before = {n: storedfile.identity(server.persist_path(n)) for n in names}
    server.graceful()
    server.restart()
    server.stop()
    server.start()
    server.stop()
    assert before == {n: storedfile.identity(server.persist_path(n))
                      for n in names}
    server.start()
    write_seg(server, b"twice")
    server.stop()
    assert storedfile.identity(server.persist_path("seg")) != before["seg"]
    assert (storedfile.identity(server.persist_path("cleared"))
            == before["cleared"])
    assert Stored(server.persist_path("seg")).slots[0][:5] == b"twice"


def test_same_content_under_a_wrong_digest_is_written(httpd):
    """A file whose content is right but whose MD5 is not would be refused."""
    server = httpd(ONE)
    write_seg(server, b"text")
    server.graceful()
    path = server.persist_path("seg")
    good = storedfile.read(path)
    # With another descriptor it is a whole image, of something else.
    server.allow_log("AH02551.*it was put there while the server ran")
    for spot in -20, -1:                      # in the digest, the descriptor
        bad = bytearray(good)
        bad[spot] ^= 1
        storedfile.write(path, bytes(bad))
        server.graceful() if spot == -1 else server.stop()
        assert storedfile.read(path) == good
        if spot != -1:
            server.start()


def test_file_that_others_may_read_is_replaced(httpd):
    """The stock module leaves the mode to the umask; slots hold secrets."""
    server = httpd(ONE)
    write_seg(server, b"secret")
    server.stop()
    path = server.persist_path("seg")
    for mode in 0o644, 0o660, 0o604:
        os.chmod(path, mode)
        server.start()
        assert seg_text(server) == b"secret"
        server.stop()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert os.stat(path).st_nlink == 1


# ---------------------------------------------------------------------------
# What stands in the way
# ---------------------------------------------------------------------------

def link(target, path):
    try:
        os.symlink(target, path)
    except FileExistsError:
        return False
    return True


@pytest.mark.parametrize("suffix", ["", ".new", ".checkpoint"])
def test_symbolic_link_is_replaced_and_not_followed(httpd, suffix):
    """Else whoever may write the directory chooses what root overwrites."""
    server = httpd(ONE)
    victim = os.path.join(server.root, "victim")
    storedfile.write(victim, b"precious")
    path = server.persist_path("seg")
    if not suffix:
        harness.wait_for(lambda: os.path.exists(path), "the first store")
        os.unlink(path)
    harness.wait_for(lambda: link(victim, path + suffix),
                     "the helper to have its new file out of the way")
    write_seg(server, b"state")
    server.graceful()
    assert seg_text(server) == b"state"
    server.stop()
    assert storedfile.read(victim) == b"precious"
    assert os.path.isfile(path) and not os.path.islink(path)
    assert Stored(path).slots[0].startswith(b"state")


def test_leftover_of_a_store_that_was_killed_is_no_obstacle(httpd):
    server = httpd(ONE)
    path = server.persist_path("seg")
    storedfile.write(path + ".new", b"x" * 100000)
    write_seg(server, b"state")
    server.stop()
    assert Stored(path).slots[0].startswith(b"state")
    assert files(server) == [os.path.basename(path)]


@pytest.mark.parametrize("suffix", [".new", ".checkpoint"])
@pytest.mark.parametrize("kind", ["relative", "absolute", "long"])
def test_start_removes_what_a_killed_process_left_half_written(httpd, kind,
                                                               suffix):
    """Nobody else does, where the segment does not change any more."""
    name = {"relative": "seg", "absolute": "${ROOT}/seg",
            "long": "s" * (255 - len("slotmem-shm-.shm.persist"))}[kind]
    server = httpd(f"SlotmemTestCreate {name} 64 10 persist+pregrab seg")
    write_seg(server, b"state")
    server.stop()
    path = server.persist_path(name.replace("${ROOT}", server.root))
    file = os.path.basename(path)
    if kind == "long":
        file = "slotmem-shm-" + hashlib.md5(file.encode()).hexdigest()
    half = os.path.join(os.path.dirname(path), file + suffix)
    storedfile.write(half, b"half")
    server.start()
    assert seg_text(server) == b"state"
    assert not os.path.exists(half)


@pytest.mark.parametrize("suffix", ["", ".new"])
def test_directory_in_the_way_is_logged_and_stops_nothing(httpd, suffix):
    server = httpd(ONE)
    path = server.persist_path("seg")
    harness.wait_for(lambda: os.path.exists(path), "the first store")
    halt_helper(server)
    os.unlink(path)
    os.mkdir(path + suffix)
    storedfile.write(os.path.join(path + suffix, "file"), b"kept")
    server.expect_log(CANNOT_STORE)
    write_seg(server, b"state")
    server.stop()
    assert storedfile.read(os.path.join(path + suffix, "file")) == b"kept"
    assert [name for name in files(server)
            if name not in (os.path.basename(path),
                            os.path.basename(path + suffix),
                            "slotmem-shm.run")
            and not name.endswith("_0.shm")] == [], "but a key file"
    server.allow_log("AH02551")
    server.start()
    # By the helper, whose new file is another.
    harness.wait_for(lambda: os.path.isfile(path), "a store")
    server.stop()


def test_no_directory_is_logged_and_stops_nothing(httpd):
    """And when it is there, all is well from the next store on."""
    server = httpd("SlotmemTestCreate ${ROOT}/away/seg 64 10 persist+pregrab"
                   " seg", start=False)
    server.allow_nameless()
    server.expect_log("No such file or directory: " + CANNOT_STORE)
    server.start()
    write_seg(server, b"state")
    server.graceful()
    assert seg_text(server) == b"state", "in memory"
    os.mkdir(os.path.join(server.root, "away"))
    server.graceful()
    assert seg_text(server) == b"state"
    server.stop()
    assert os.listdir(os.path.join(server.root, "away")) == ["seg.persist"]


def test_runtime_directory_that_is_gone_does_not_hold_up_the_stop(httpd):
    server = httpd("PidFile ${ROOT}/logs/httpd.pid\n" + ONE)
    write_seg(server, b"state")
    os.rename(server.run_dir, server.run_dir + ".gone")
    server.expect_log("No such file or directory: " + CANNOT_STORE)
    server.allow_log("slotmem_shm: cannot use")
    server.stop()


READ_ONLY = ["unshare", "-m", "sh", "-c",
             'test -e $RO_DIR/writable || mount --bind -o ro $RO_DIR $RO_DIR; '
             'exec "$@"', "sh"]


@needs_root
def test_read_only_directory_is_logged_and_the_old_file_stays(httpd):
    server = httpd("PidFile ${ROOT}/logs/httpd.pid\nMutex sem\n" + ONE,
                   start=False)
    server.wrapper = READ_ONLY
    server.env["RO_DIR"] = server.run_dir
    flag = os.path.join(server.run_dir, "writable")
    storedfile.write(flag, b"")
    server.start()
    write_seg(server, b"old")
    server.stop()
    os.unlink(flag)
    good = storedfile.read(server.persist_path("seg"))
    server.expect_log(CANNOT_STORE + ".*seg")
    server.expect_log("slotmem_shm: cannot use")
    server.allow_nameless()
    server.start()
    assert seg_text(server) == b"old"
    write_seg(server, b"new")
    server.graceful()
    assert seg_text(server) == b"new", "in memory"
    server.stop()
    assert storedfile.read(server.persist_path("seg")) == good
    assert files(server) == ["slotmem-shm-seg.shm.persist"]


@contextlib.contextmanager
def small_disk(server, size):
    path = os.path.join(server.root, "disk")
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755",
                    "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_disk(path):
    with open(os.path.join(path, "filler"), "wb", buffering=0) as filler:
        with contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 4096)


@needs_root
def test_full_disk_is_logged_and_the_old_files_stay(httpd):
    """The stock module truncates nothing and checks nothing: what it wrote
    over the old file before the disk was full is neither old nor new."""
    names = [f"seg{i}" for i in range(4)]
    server = httpd("\n".join(
        f"SlotmemTestCreate ${{ROOT}}/disk/{n} 4096 8 persist+pregrab {n}"
        for n in names), start=False)
    with small_disk(server, "512k") as disk:
        server.start()
        for name in names:
            write_seg(server, b"old", name)
        server.graceful()
        old = {n: storedfile.read(f"{disk}/{n}.persist") for n in names}
        fill_disk(disk)
        for name in names:
            write_seg(server, b"new", name)
        server.expect_log("No space left on device: " + CANNOT_STORE)
        server.graceful()
        assert old == {n: storedfile.read(f"{disk}/{n}.persist")
                       for n in names}
        assert all(seg_text(server, n) == b"new" for n in names)
        key_files = [] if sharedmem.kind() == "posix" else names
        # The helper tries at once, and takes back what it could not finish.
        kept = {f"{n}.persist" for n in names} | {"filler"}
        harness.wait_for(lambda: set(os.listdir(disk)) - set(key_files) == kept,
                         lambda: f"only {kept} to be left, not "
                         f"{os.listdir(disk)}")

        # Room for one file more: each is written beside its old one in turn,
        # so what has room is stored, and the rest says that it has none.
        os.truncate(os.path.join(disk, "filler"), 300 * 1024)
        for name in names:
            write_seg(server, b"new", name)
        with server.announced(CANNOT_STORE, required=False):
            server.graceful()
        for name in names:
            assert seg_text(server, name) in (b"old", b"new")
            Stored(f"{disk}/{name}.persist")

        os.unlink(os.path.join(disk, "filler"))
        for name in names:
            write_seg(server, b"newest", name)
        server.graceful()
        assert all(seg_text(server, n) == b"newest" for n in names)
        server.stop()


def test_name_as_long_as_the_file_system_allows_is_stored(httpd):
    """The new file beside it then needs another name that fits."""
    name = "n" * (255 - len("slotmem-shm-.shm.persist"))
    server = httpd(f"SlotmemTestCreate {name} 64 10 persist+pregrab seg")
    write_seg(server, b"state")
    server.graceful()
    assert seg_text(server) == b"state"
    server.stop()
    assert files(server) == [f"slotmem-shm-{name}.shm.persist"]


@pytest.mark.skipif(not os.environ.get("SLOTMEM_BIG"),
                    reason="4 GiB of memory and disk: SLOTMEM_BIG=1")
def test_segment_of_more_than_4_gib(httpd, monkeypatch):
    """No length in the way of a slot is 32 bits wide."""
    server = httpd("SlotmemTestCreate seg 65536 65600 persist",
                   start=False)
    monkeypatch.setattr(harness, "LIMIT", 600.0)
    server.start()
    write_seg(server, b"last", slot=65599)
    server.stop()
    path = server.persist_path("seg")
    assert os.path.getsize(path) == 40 + 65600 * 65537
    server.start()
    assert seg_text(server, slot=65599) == b"last"
    assert server.slotmem().info("seg").num_free == 65599
    server.stop()
