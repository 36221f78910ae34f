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
"""Few descriptors and many segments: all of them are stored and restored."""

import os
import resource

import pytest

import httpd as harness
from httpd import op_line
from rundir import left_over, put, text_of
from storedfile import Stored

COUNT = 60
CONF = "Mutex sem\n" + "\n".join(
    f"SlotmemTestCreate seg{n} 64 4 persist+pregrab" for n in range(COUNT))


def limited(httpd, descriptors, conf=CONF, **more):
    server = httpd(conf, start=False, **more)
    server.wrapper += ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    return server.start()


def put_all(server, text, count=COUNT):
    slotmem = server.slotmem()
    for n in range(count):
        put(server, text + b"%d" % n, f"seg{n}")
    return slotmem


def kept_in_files(server, text, count=COUNT):
    found = 0
    for n in range(count):
        path = server.persist_path(f"seg{n}")
        found += (os.path.exists(path) and Stored(path).slots[0].rstrip(b"\0")
                  == text + b"%d" % n)
    return found


def kept(server, text, count=COUNT):
    return sum(text_of(server, f"seg{n}") == text + b"%d" % n
               for n in range(count))


def test_positive_control_the_limit_holds(httpd):
    server = limited(httpd, 64)
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    assert limits == (64, 64)


@pytest.mark.parametrize("descriptors", [40, 64, 1024])
def test_more_segments_than_descriptors(httpd, mpm, descriptors):
    """57 of 60 were kept, at 64: a batch of files held a descriptor each."""
    server = limited(httpd, descriptors, mpm=mpm, children=1)
    put_all(server, b"one")
    server.stop()
    assert kept_in_files(server, b"one") == COUNT
    server.start()
    assert kept(server, b"one") == COUNT
    put_all(server, b"two")
    server.graceful()
    assert kept(server, b"two") == COUNT
    put_all(server, b"three")
    server.restart()
    assert kept(server, b"three") == COUNT
    harness.wait_for(lambda: kept_in_files(server, b"three") == COUNT,
                     "all to be stored", limit=90)
    put_all(server, b"four")
    server.kill_all()
    server.start()
    assert kept(server, b"four") == COUNT
    assert left_over(server) == set()
    server.stop()
    assert kept_in_files(server, b"four") == COUNT


def test_limit_that_sinks_while_it_runs(httpd):
    """prlimit on a server that runs: the stop has but a few left."""
    server = httpd(CONF, children=1)
    put_all(server, b"one")
    opened = max(int(fd) for fd in os.listdir(f"/proc/{server.pid}/fd"))
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE,
                     (opened + 4, opened + 4))
    server.stop()
    assert kept_in_files(server, b"one") == COUNT


def test_hundreds_of_segments(httpd):
    """More than any batch."""
    count = 400
    conf = "Mutex sem\n" + "\n".join(
        f"SlotmemTestCreate seg{n} 64 4 persist" for n in range(count))
    server = limited(httpd, 48, conf, children=1)
    lines = [op_line("put", h=f"seg{n}", i=0, data=b"text%d" % n)
             for n in range(count)]
    assert all(answer.ok for answer in server.slotmem().run(*lines))
    server.stop()
    assert kept_in_files(server, b"text", count) == count
    server.start()
    assert sum(answer.bytes.rstrip(b"\0") == b"text%d" % n
               for n, answer in enumerate(server.slotmem().run(
                   *(op_line("read", h=f"seg{n}", i=0, len=64)
                     for n in range(count))))) == count
