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
"""Shared memory in big pages: what a page is to the kernel, it is not to sysconf().

Linux gives shared memory pages of 2 MiB where the mount or
/sys/kernel/mm/transparent_hugepage/shmem_enabled says so, as databases want
it.  Backing every page beforehand, falling back when there is no room, and
storing what lies there must not depend on the page's size.
"""

import contextlib
import os
import re

import pytest

MPM = "event"
KNOB = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
SIZE, NUM = 1 << 20, 64

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
    pytest.mark.skipif(not os.path.exists(KNOB),
                       reason="this kernel has no big pages for shared memory"),
]


def big_pages(server, child, handle):
    """KiB of the segment that the kernel has mapped in big pages."""
    start = child.mapping(handle).start
    with open(f"/proc/{server.pid}/smaps") as file:
        text = file.read()
    at = re.search(rf"^0*{start:x}-.*?ShmemPmdMapped:\s+(\d+) kB", text,
                   re.M | re.S)
    return int(at[1])


def fill_and_check(server):
    one, other = map(server.slotmem, server.children())
    for slot in range(NUM):
        assert one.grab("seg").id == slot
        assert one.put("seg", slot, bytes([slot + 1]) * 64).ok
        one.write("seg", slot, bytes([slot + 1]), off=SIZE - 1)
    for slot in range(NUM):
        assert other.get("seg", slot, 64).bytes == bytes([slot + 1]) * 64
        assert other.read("seg", slot, 1, off=SIZE - 1) == bytes([slot + 1])


@contextlib.contextmanager
def machine_wide(setting):
    """The machine's own setting; restored whatever happens."""
    with open(KNOB) as file:
        before = re.search(r"\[(\w+)\]", file.read())[1]
    try:
        with open(KNOB, "w") as file:
            file.write(setting)
    except OSError as error:
        pytest.skip(f"{KNOB}: {error.strerror}")
    try:
        yield
    finally:
        with open(KNOB, "w") as file:
            file.write(before)


def test_ordinary_pages_are_told_from_big_ones(httpd):
    """Positive control."""
    server = httpd(f"SlotmemTestCreate seg {SIZE} {NUM} pregrab", mpm=MPM,
                   shm_size="256m,huge=never")
    assert big_pages(server, server.slotmem(), "seg") == 0
    fill_and_check(server)


def test_named_segment_in_big_pages(httpd):
    """A /dev/shm mounted with huge=always."""
    server = httpd(f"SlotmemTestCreate seg {SIZE} {NUM} persist+pregrab",
                   mpm=MPM, shm_size="256m,huge=always")
    if not big_pages(server, server.slotmem(), "seg"):
        pytest.skip("the kernel had no big page to spare")
    fill_and_check(server)
    server.graceful()
    assert server.slotmem().get("seg", NUM - 1, 1).bytes == bytes([NUM])
    server.stop()
    server.start()
    assert server.slotmem().get("seg", NUM - 1, 1).bytes == bytes([NUM])
    assert server.slotmem().info("seg").num_free == 0


def test_small_segments_do_not_fill_a_mount_of_big_pages(httpd):
    """Each takes a page of 2 MiB if the kernel wants it; when the mount is
    full the others are made anonymous, and none of them is a SIGBUS."""
    conf = "\n".join(f"SlotmemTestCreate seg{i} 4096 4 persist+pregrab"
                     for i in range(6))
    server = httpd(conf, mpm=MPM, shm_size="6m,huge=always", start=False)
    server.allow_log(r"\[slotmem_shm:warn\].*seg\d")
    server.start()
    one, other = map(server.slotmem, server.children())
    for i in range(6):
        assert one.grab(f"seg{i}").id == 0
        assert one.put(f"seg{i}", 0, bytes([i + 1]) * 4096).ok
        assert other.get(f"seg{i}", 0, 4096).bytes == bytes([i + 1]) * 4096
    server.stop()
    server.start()
    for i in range(6):
        assert server.slotmem().get(f"seg{i}", 0, 1).bytes == bytes([i + 1])


def test_anonymous_segment_in_big_pages(httpd):
    """These follow the machine's setting, not a mount's."""
    with machine_wide("always"):
        server = httpd(f"SlotmemTestCreate none {SIZE} {NUM} pregrab seg",
                       mpm=MPM)
        if not big_pages(server, server.slotmem(), "seg"):
            pytest.skip("the kernel had no big page to spare")
        fill_and_check(server)
        server.graceful()
        assert server.slotmem().info("seg").num_free == NUM
