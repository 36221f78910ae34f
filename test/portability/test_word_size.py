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
"""A stored file holds a size_t, so it belongs to machines of one word size.

    size_t of 8 bytes    item_size (8)  item_num (4)  type (4)
    size_t of 4 bytes    item_size (4)  item_num (4)  type (4)  padding (4)

Both are as long.  A file that comes from the other kind must be refused, kept
aside, and never be taken for one of some other size.  Run against an httpd of
either kind: which it is, the module's ELF header says.
"""

import hashlib
import os
import re
import struct

import pytest

import httpd as harness
import storedfile

MPM = "prefork"
SIZE, NUM, TYPE = 200, 5, "persist+pregrab"
DESCRIPTORS = {8: lambda: struct.pack("=QII", SIZE, NUM,
                                      storedfile.flags(TYPE)),
               4: lambda: struct.pack("=IIII", SIZE, NUM,
                                      storedfile.flags(TYPE), 0)}
CONF = f"SlotmemTestCreate seg {SIZE} {NUM} {TYPE}"
WORD = b"kept over the restart"


@pytest.fixture
def word():
    """Bytes in a size_t of the httpd under test."""
    with open(harness.our_module(), "rb") as file:
        head = file.read(5)
    assert head[:4] == b"\x7fELF"
    return {1: 4, 2: 8}[head[4]]


def image(word):
    """One slot in use, as an httpd with such a size_t stores it."""
    slots = bytearray(SIZE * NUM)
    slots[SIZE:SIZE + len(WORD)] = WORD
    body = (struct.pack("=II", NUM - 1, 0) + bytes(slots)
            + bytes([0, 1, 0, 0, 0]))
    return body + hashlib.md5(body).digest() + DESCRIPTORS[word]()


def test_file_of_this_word_size_is_restored(httpd, word):
    """Positive control."""
    server = httpd(CONF, mpm=MPM, start=False)
    storedfile.write(server.persist_path("seg"), image(word))
    server.start()
    assert server.slotmem().get("seg", 1, len(WORD)).bytes == WORD
    assert server.slotmem().in_use("seg") == [1]


def test_file_is_stored_with_this_word_size(httpd, word):
    """Byte for byte what the server's own module would write here."""
    server = httpd(CONF, mpm=MPM)
    assert server.slotmem().fgrab("seg", 1).ok
    assert server.slotmem().put("seg", 1, WORD).ok
    server.stop()
    assert storedfile.read(server.persist_path("seg")) == image(word)


def test_file_of_the_other_word_size_is_kept_aside(httpd, word):
    """A runtime directory that moved to another kind of machine."""
    foreign = image(12 - word)
    server = httpd(CONF, mpm=MPM, start=False)
    server.expect_log("AH02551")
    path = server.persist_path("seg")
    storedfile.write(path, foreign)
    server.start()
    assert server.slotmem().info("seg").num_free == NUM
    assert server.slotmem().read("seg", 0, SIZE * NUM) == bytes(SIZE * NUM)
    assert storedfile.read(path + ".rejected") == foreign
    assert len(server.log_lines("AH02551")) == 1


def test_size_at_the_edge_of_the_word_is_refused(httpd, word):
    """The product is 2 to the 32 or 64: 0 to whoever does not look."""
    server = httpd("", mpm=MPM)
    server.expect_log("AH02300: create anonymous")
    child = server.slotmem()
    half = 1 << (8 * word - 1)
    for size, num in ((half, 2), (half // 2, 4), (half - 1, 2),
                      (half >> 30, 1 << 31)):
        answer = child.create(None, size, num)
        assert answer.rv == "APR_EINVAL", (size, num)
        assert answer.instance == 0


def test_map_of_the_process_is_of_this_word_size(httpd, word):
    """What the fixture made of the ELF header is what runs.

    An emulator maps its guest low in its own 64 bits.
    """
    mapped = httpd(CONF, mpm=MPM).slotmem().mapping("seg")
    address = int(re.match("[0-9a-f]+", mapped.line)[0], 16)
    if word == 8 and os.uname().machine == "x86_64":
        assert address > 1 << 32
    if word == 4:
        assert address < 1 << 32
