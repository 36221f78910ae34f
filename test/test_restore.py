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
"""Restoring: only what is whole is believed, and nothing keeps httpd down.

Files are damaged in every way that a crash, a full disk, a bad disk or a bad
hand can, many at a time: each segment of one server has a damaged file of its
own.
"""

import hashlib
import os
import random
import re
import socket

import pytest

import httpd as harness
import sharedmem
import rundir
import shim
import storedfile
from httpd import op_line
from storedfile import image

REJECTED = "AH02551"
SIZE, NUM, TYPE = 4, 3, "persist+pregrab"
GOOD = image(SIZE, NUM, TYPE, b"abcdEFGHijkl", used={0, 2})


class Segments:
    """A server with a segment for each file given: {name: bytes}."""

    def __init__(self, httpd, files, size=SIZE, num=NUM, type=TYPE, conf=""):
        self.names = list(files)
        self.size, self.num = size, num
        conf += "\n".join(f"SlotmemTestCreate {name} {size} {num} {type}"
                          for name in self.names)
        self.server = httpd(conf, start=False, loglevel="info")
        self.files = files
        for name, data in files.items():
            if data is not None:
                storedfile.write(self.path(name), data)

    def path(self, name):
        return self.server.persist_path(name)

    def aside(self, name):
        return self.path(name) + ".rejected"

    def start(self):
        self.server.start()
        lines = []
        for name in self.names:
            lines += [op_line("read", h=name, i=0, len=self.size * self.num),
                      op_line("doall", h=name), op_line("info", h=name)]
        answers = []
        for at in range(0, len(lines), 300):
            answers += self.server.slotmem().run(*lines[at:at + 300])
        self.state = {}
        for name, read, doall, info in zip(self.names, answers[::3],
                                           answers[1::3], answers[2::3]):
            assert info.num_slots == self.num
            assert info.num_free == self.num - len(doall.ids)
            self.state[name] = read.bytes, doall.ids
        return self

    def check_rejected(self, names=None):
        """Empty, the file kept aside as it was, a line in the log for each.

        In its place there may already be what the running server stores."""
        names = self.names if names is None else names
        empty = bytes(self.size * self.num), []
        believed = [n for n in names if self.state[n] != empty]
        assert believed == [], "damaged, but believed"
        for name in names:
            assert storedfile.read(self.aside(name)) == self.files[name]
            try:
                stored = storedfile.Stored(self.path(name))
            except FileNotFoundError:
                continue
            assert stored.num == self.num and stored.used == []
            assert not any(map(any, stored.slots))
        told = self.server.log_lines(REJECTED)
        assert sorted(set(re.findall(r"slotmem-shm-(\S+)\.shm\.persist:",
                                     "\n".join(told)))) == sorted(names)
        assert len(told) == len(names), "one line for each file"


@pytest.fixture
def segments(httpd):
    def make(files, rejects=True, **more):
        made = Segments(httpd, files, **more)
        if rejects:
            made.server.expect_log(REJECTED)
        return made.start()
    return make


def check_rejected(segments, files, **more):
    """All but the control are refused."""
    good = more.pop("good", GOOD)
    made = segments(dict(files, control=good), **more)
    assert made.state["control"][0] == good[8:8 + made.size * made.num], \
        "the file that is whole was refused too: this test shows nothing"
    made.check_rejected(list(files))
    made.server.stop()
    return made


def test_positive_control_a_whole_file_is_believed(segments):
    made = segments({"whole": GOOD, "absent": None}, rejects=False)
    assert made.state == {"whole": (b"abcdEFGHijkl", [0, 2]),
                          "absent": (bytes(12), [])}
    assert not made.server.log_lines(REJECTED)
    assert made.server.log_lines("absent") == [], "no file is no event"


# ---------------------------------------------------------------------------
# What is damaged
# ---------------------------------------------------------------------------

def test_oldest_form_has_nothing_but_its_table_to_be_known_by(segments):
    """Before 2.4.7 httpd stored neither digest nor descriptor: a file of that
    length is believed only if its last bytes are a table."""
    bare = GOOD[:-32]
    check_rejected(segments, {
        f"byte-{at}": bare[:at] + b"\7" + bare[at + 1:]
        for at in range(len(bare) - NUM, len(bare))}, good=bare)


def test_file_cut_off_at_any_length_is_refused(segments):
    """A crash without flush.  The stock module believes an empty file, too.

    Two lengths are those of whole files of older httpds: everything but the
    descriptor, and everything but that and the digest."""
    older = len(GOOD) - 32, len(GOOD) - 16
    check_rejected(segments, {f"cut-{length}": GOOD[:length]
                              for length in range(len(GOOD))
                              if length not in older})


def test_file_of_an_older_httpd_is_believed_if_its_digest_is_right(segments):
    files = {"no-descriptor": GOOD[:-16], "no-digest": GOOD[:-32]}
    made = segments(files, rejects=False)
    assert made.state == dict.fromkeys(files, (b"abcdEFGHijkl", [0, 2]))
    made.server.stop()
    for name in files:
        assert storedfile.read(made.path(name)) == GOOD


def test_file_of_an_older_httpd_with_a_flipped_bit_is_refused(segments):
    files = {}
    for bit in range(8 * (len(GOOD) - 16)):
        bad = bytearray(GOOD[:-16])
        bad[bit // 8] ^= 1 << bit % 8
        files[f"bit-{bit}"] = bytes(bad)
    check_rejected(segments, files)


def test_any_flipped_bit_is_refused(segments):
    """A bad disk; and no field, padding included, is without a guard."""
    files = {}
    for bit in range(8 * len(GOOD)):
        bad = bytearray(GOOD)
        bad[bit // 8] ^= 1 << bit % 8
        files[f"bit-{bit}"] = bytes(bad)
    check_rejected(segments, files)


def with_descriptor(size, num, type, length=None):
    data = GOOD[:-16] + harness.file_descriptor().pack(size, num, type)
    return data if length is None else data[:-16].ljust(length - 16,
                                                        b"\0") + data[-16:]


@sharedmem.needs_64_bits
def test_descriptor_that_lies_is_refused(segments):
    """Whatever it says, its length is not believed before the MD5 agrees."""
    files = {f"d{i}": with_descriptor(*d) for i, d in enumerate([
        (0, 0, 5), (4, 0, 5), (0, 3, 5), (3, 4, 5), (5, 3, 5), (4, 4, 5),
        (4, 2, 5), (2**64 - 1, 3, 5), (2**63, 2, 5), (2**32, 2**32 - 1, 5),
        (4, 2**32 - 1, 5), (2**64 - 41, 1, 5), (2**64 - 4, 2**32 - 1, 5),
        ((2**64 - 40 + 54) // 3 - 1, 3, 5), (4, 3, 0), (4, 3, 1), (4, 3, 13),
        (4, 3, 2**32 - 1)])}
    # Lengths that fit, and an MD5 that does not.
    for num in 1, 2, 4, 70:
        files[f"fits{num}"] = with_descriptor(4, num, 5, 40 + num * 5)
    check_rejected(segments, files)


def test_garbage_is_refused(segments):
    generator = random.Random(1)
    files = {f"random-{n}": generator.randbytes(n)
             for n in (1, 16, 54, 55, 70, 4096, 70000, 200000)}
    files.update({"zero-54": bytes(54), "zero-70000": bytes(70000),
                  "ones": b"\xff" * 55, "text": b"member disabled\n" * 20,
                  "before": b"\0" + GOOD, "half twice": GOOD[:27] * 2})
    check_rejected(segments, {k.replace(" ", "-"): v
                              for k, v in files.items()})


def test_wrong_type_is_refused(segments):
    """PREGRAB or not decides what a slot in use means."""
    check_rejected(segments, {
        type.replace("+", "-"): image(SIZE, NUM, type, b"abcdEFGHijkl", {1})
        for type in ("0", "persist", "persist+clearinuse", "persist+notmpsafe",
                     "persist+pregrab+clearinuse", "pregrab")})


def test_large_file_that_fails_at_its_end_leaves_nothing_half_restored(
        segments):
    """It was copied to the segment in chunks by the time the MD5 was read."""
    size, num = 1000, 700
    good = image(size, num, TYPE, b"\x55" * (size * num), used=range(num))
    bad = good[:-17] + bytes([good[-17] ^ 1]) + good[-16:]
    check_rejected(segments, {"bad": bad, "cut": good[:-20]}, size=size,
                   num=num, good=good)


# ---------------------------------------------------------------------------
# What is whole, though it does not look like it
# ---------------------------------------------------------------------------

def test_older_bytes_behind_the_image_do_no_harm(segments):
    """The stock module never shortens a file."""
    longer = image(SIZE, 50, TYPE, {i: b"old!" for i in range(50)}, range(50))
    files = {"byte": GOOD + b"\0", "page": GOOD + b"x" * 4096,
             "older": GOOD + longer[len(GOOD):],
             "itself": GOOD + GOOD,
             "cut": GOOD + longer[len(GOOD):-7]}
    made = segments(files, rejects=False)
    assert set(map(str, made.state.values())) == {str((b"abcdEFGHijkl",
                                                       [0, 2]))}
    made.server.stop()
    for name in files:
        assert storedfile.read(made.path(name)) == GOOD, "and is then shed"


def test_file_that_the_stock_module_did_not_shorten(httpd, our_module,
                                                     stock_module):
    """A stock server whose configuration shrank, then ours."""
    server = httpd("SlotmemTestCreate seg 64 50 persist+pregrab",
                   slotmem_module=stock_module)
    slotmem = server.slotmem()
    slotmem.grab("seg", n=50)
    for slot in range(50):
        slotmem.put("seg", slot, b"old" * 20)
    server.stop()
    server.conf = "SlotmemTestCreate seg 64 10 persist+pregrab"
    server.allow_log(REJECTED)
    server.start()
    assert server.slotmem().info("seg").num_free == 10, "stock starts fresh"
    server.slotmem().grab("seg", n=2)
    server.slotmem().put("seg", 1, b"new")
    server.stop()
    assert os.path.getsize(server.persist_path("seg")) == 40 + 50 * 65
    server.slotmem_module = our_module
    with server.announced(REJECTED, required=False):
        server.start()
    assert server.slotmem().in_use("seg") == [0, 1]
    assert server.slotmem().read("seg", 1, 64).rstrip(b"\0") == b"new"
    server.stop()
    assert os.path.getsize(server.persist_path("seg")) == 40 + 10 * 65


def test_count_of_free_slots_in_the_file_is_not_believed(segments):
    made = segments({f"free-{n}": image(SIZE, NUM, TYPE, b"abcdEFGHijkl",
                                        {1}, free=n)
                     for n in (0, 1, 2, 3, 4, 2**32 - 1)}, rejects=False)
    for state in made.state.values():
        assert state == (b"abcdEFGHijkl", [1])      # start() checks num_free


def test_any_number_but_zero_in_the_table_means_in_use(segments):
    data = image(SIZE, NUM, TYPE, b"abcdEFGHijkl", set())
    body = data[:20] + b"\0\xff\2"
    whole = body + hashlib.md5(body).digest() + data[-16:]
    made = segments({"odd": whole}, rejects=False)
    assert made.state["odd"] == (b"abcdEFGHijkl", [1, 2])


# ---------------------------------------------------------------------------
# A configuration that changed
# ---------------------------------------------------------------------------

def members(num, used, size=SIZE, type=TYPE):
    return image(size, num, type,
                 {i: b"m%03d" % i for i in used}, used)


def test_segment_that_grew_keeps_what_it_had(segments):
    """One more balancer member: the stock module forgets all the others."""
    made = segments({f"from-{num}": members(num, range(num))
                     for num in (0, 1, 2, 64, 69)}, rejects=False, num=70)
    for name, (data, used) in made.state.items():
        num = int(name[5:])
        assert used == list(range(num))
        assert data == b"".join(b"m%03d" % i
                                for i in range(num)).ljust(280, b"\0")
    server = made.server
    assert server.slotmem().grab("from-64").id == 64
    server.stop()
    assert storedfile.Stored(made.path("from-2")).num == 70


def test_segment_that_shrank_keeps_what_it_had_unless_something_is_cut_off(
        segments):
    """Nothing that was in use, or that anybody wrote, is dropped unseen."""
    written = image(SIZE, 9, TYPE, {0: b"m000", 5: b"x"}, used={0})
    files = {"fits": members(9, [0, 1, 2]), "empty": members(9, []),
             "much-larger": members(30000, [1]),
             "in-use-beyond": members(9, [0, 3]),
             "used-and-empty-beyond": image(SIZE, 9, TYPE, {}, used={8}),
             "written-beyond": written,
             "last-byte-beyond": image(SIZE, 9, TYPE, {8: b"\0\0\0\1"}),
             "beyond-in-a-later-chunk": members(30000, [1, 29999])}
    made = segments(files)
    assert made.state["fits"] == (b"m000m001m002", [0, 1, 2])
    assert made.state["empty"] == (bytes(12), [])
    assert made.state["much-larger"] == (b"\0\0\0\0m001\0\0\0\0", [1])
    made.check_rejected([n for n in files if "beyond" in n])


def test_another_slot_size_is_kept_aside(segments):
    files = {f"size-{size}": members(NUM, [1], size=size)
             for size in (3, 5, 8, 400)}
    files["size-1-as-long"] = image(1, 3 * 5 // 2, TYPE, {0: b"x"}, {0})
    made = segments(files)
    made.check_rejected()


def test_member_added_and_removed_again(httpd):
    """Restarts with another configuration, by the server's own hand."""
    server = httpd("SlotmemTestCreate seg 64 4 persist+pregrab")
    server.slotmem().grab("seg", n=3)
    for slot in range(3):
        server.slotmem().put("seg", slot, b"member %d" % slot)

    def check(num):
        slotmem = server.slotmem()
        assert slotmem.info("seg").num_slots == num
        assert slotmem.in_use("seg") == [0, 1, 2]
        for slot in range(3):
            assert (slotmem.read("seg", slot, 64).rstrip(b"\0")
                    == b"member %d" % slot)

    for num in 5, 70, 3:
        server.conf = f"SlotmemTestCreate seg 64 {num} persist+pregrab"
        server.write_config()
        server.graceful()
        check(num)
    server.conf = "SlotmemTestCreate seg 64 2 persist+pregrab"
    server.write_config()
    with server.announced(REJECTED + ".*does not fit"):
        server.graceful()
    assert server.slotmem().in_use("seg") == []
    kept = server.persist_path("seg") + ".rejected"
    assert storedfile.Stored(kept).used == [0, 1, 2]

    # The administrator undoes the change.
    server.stop()
    os.rename(kept, server.persist_path("seg"))
    server.conf = "SlotmemTestCreate seg 64 3 persist+pregrab"
    server.start()
    check(3)


# ---------------------------------------------------------------------------
# Kept aside: one, for a person to look at
# ---------------------------------------------------------------------------

def test_one_file_is_kept_aside_and_not_a_growing_pile(segments):
    made = segments({"seg": b"first"})
    server = made.server
    made.check_rejected()
    for text in b"second", b"third":
        server.stop()
        storedfile.write(made.path("seg"), text)
        server.start()
    assert storedfile.read(made.aside("seg")) == b"third"
    server.stop()
    assert sorted(os.listdir(server.run_dir)) == [
        "slotmem-shm-seg.shm.persist", "slotmem-shm-seg.shm.persist.rejected"]


def test_file_that_cannot_be_kept_aside_does_not_keep_the_server_down(httpd):
    """A directory of that name, with something in it."""
    made = Segments(httpd, {"seg": GOOD[:-1]})
    os.mkdir(made.aside("seg"))
    storedfile.write(made.aside("seg") + "/file", b"")
    made.server.expect_log("AH02554.*could not be kept")
    made.start()
    assert made.state["seg"] == (bytes(12), [])
    made.server.stop()
    assert storedfile.Stored(made.path("seg")).used == []


# ---------------------------------------------------------------------------
# What is no file, or cannot be read
# ---------------------------------------------------------------------------

def test_what_is_no_regular_file_is_put_aside(httpd):
    """To open a pipe for reading would hold up the start for ever."""
    names = "pipe", "socket", "directory", "dangling", "loop"
    made = Segments(httpd, {name: None for name in names})
    os.mkfifo(made.path("pipe"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(made.path("socket"))
    os.mkdir(made.path("directory"))
    os.symlink("nowhere", made.path("dangling"))
    os.symlink(made.path("loop"), made.path("loop"))
    made.server.expect_log(REJECTED)
    made.start()
    assert set(map(str, made.state.values())) == {str((bytes(12), []))}
    made.server.stop()
    listener.close()
    for name in names:
        assert storedfile.Stored(made.path(name)).used == []


def test_symbolic_link_to_a_whole_file_is_put_aside(httpd):
    """Whoever may write to the directory could lead root to any file.  What
    the link leads to is neither read nor written to."""
    made = Segments(httpd, {"seg": None})
    elsewhere = os.path.join(made.server.root, "elsewhere")
    storedfile.write(elsewhere, GOOD)
    os.symlink(elsewhere, made.path("seg"))
    made.server.expect_log(REJECTED)
    made.start()
    assert made.state["seg"] == (bytes(12), [])
    assert os.readlink(made.aside("seg")) == elsewhere
    made.server.slotmem().fgrab("seg", 0)
    made.server.slotmem().put("seg", 0, b"new!")
    made.server.stop()
    assert storedfile.read(elsewhere) == GOOD
    assert storedfile.Stored(made.path("seg")).slots[0] == b"new!"
    assert not os.path.islink(made.path("seg"))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's powers")
def test_unreadable_permissions(httpd):
    """A parent without the powers of root, and a file that it may not read:
    it may be good, so nothing replaces it, and it is used when it can be."""
    made = Segments(httpd, {"seg": GOOD, "control": GOOD})
    server = made.server
    server.wrapper = ["setpriv",
                      "--bounding-set=-dac_override,-dac_read_search", "--"]
    os.chmod(made.path("seg"), 0)
    server.expect_log("Permission denied.*AH02553.*cannot be read")
    made.start()
    assert made.state["seg"] == (bytes(12), [])
    assert made.state["control"] == (b"abcdEFGHijkl", [0, 2])
    server.slotmem().put("control", 0, b"new!")
    server.stop()
    assert storedfile.Stored(made.path("control")).slots[0] == b"new!", \
        "nothing was stored: this test shows nothing"
    assert storedfile.read(made.path("seg")) == GOOD
    assert not os.path.exists(made.aside("seg"))
    os.chmod(made.path("seg"), 0o600)
    made.start()
    assert made.state["seg"] == (b"abcdEFGHijkl", [0, 2])


def sparse(path, data, length, tail=b""):
    with open(path, "wb") as file:
        file.write(data)
        file.truncate(length)
        file.seek(length - len(tail))
        file.write(tail)


@sharedmem.needs_64_bits
def test_file_of_more_than_4_gib(httpd):
    """No offset is 32 bits wide.  Sparse, so the disk need not have them."""
    files = {name: None for name in ("behind", "zero", "claims", "wraps")}
    made = Segments(httpd, files)
    four = 1 << 32
    sparse(made.path("behind"), GOOD, four + 100)
    sparse(made.path("zero"), b"", four + 55)
    # Of the right size and type, the right length, and without an MD5.
    sparse(made.path("claims"), GOOD[:-16], 40 + 5 * 2**20,
           harness.file_descriptor().pack(4, 2**20, 5))
    # Just as long as GOOD, in 32 bits.
    sparse(made.path("wraps"), GOOD[:-16], four + len(GOOD))
    made.server.expect_log(REJECTED)
    made.start()
    assert made.state["behind"] == (b"abcdEFGHijkl", [0, 2])
    for name in "zero", "claims", "wraps":
        assert made.state[name] == (bytes(12), [])
        assert os.path.exists(made.aside(name))
    made.server.stop()
    assert storedfile.read(made.path("behind")) == GOOD


# ---------------------------------------------------------------------------
# What is read from memory, or in pieces
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["graceful", "kill"])
def test_memory_with_another_slot_size_is_not_copied(httpd, how):
    """A new version of a module asks for larger slots: the old ones would be
    copied across their borders."""
    server = httpd("SlotmemTestCreate seg 64 10 persist+pregrab")
    for slot in 0, 9:
        rundir.put(server, b"text", slot=slot)
    server.conf = "SlotmemTestCreate seg 72 10 persist+pregrab"
    server.expect_log(REJECTED)
    if how == "graceful":
        server.write_config()
        server.graceful()
    else:
        server.kill_all()
        server.start()
    assert server.slotmem().in_use("seg") == []
    assert server.slotmem().read("seg", 0, 720) == bytes(720)


def test_file_is_read_in_pieces(httpd):
    """The system may give less than it is asked for, at any read."""
    server = httpd("Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n"
                   "SlotmemTestCreate seg 64 10 persist+pregrab",
                   start=False, shm_size="8m")
    faults = shim.Faults(server)
    server.start()
    rundir.put(server, b"text", slot=3)
    server.stop()
    for number in range(1, 20):
        faults.arm(number, "short", "leader", "read,pread")
        server.start()
        counted = len(faults.disarm())
        assert rundir.text_of(server, slot=3) == b"text", number
        server.stop()
        if counted < number:
            break
    assert 4 < number < 19
