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
"""One module takes the other's place: the stock one, and another version of
ours, by a stop, by a graceful restart and after a kill, both ways."""

import os
import re
import tempfile

import pytest

import httpd as harness
import sharedmem
from rundir import (left_over, marker, put, relation, text_of, wait_stored)

CONF = """
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate ${ROOT}/absolute 64 10 persist abs
SlotmemTestCreate ${ROOT}/other 64 10 pregrab other
"""


def put_all(server, text):
    put(server, text)
    put(server, text, "abs", 9)


def texts(server):
    return text_of(server), text_of(server, "abs", 9)


def swap(server, module, step="graceful"):
    """The administrator replaces the module, and restarts."""
    server.slotmem_module = module
    server.write_config()
    getattr(server, step)()


@pytest.fixture(scope="session")
def other_version():
    """Ours, but for the version that what it leaves in the process bears."""
    with open(os.path.join(harness.TOP, "mod_slotmem_shm.c")) as file:
        text = file.read()
    other, count = re.subn(
        r'(?m)^(#define RETAINED_KEY +"mod_slotmem_shm \d+)(")',
        r"\g<1>99\g<2>", text)
    assert count == 1, "what is left in the process bears no version"
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "mod_slotmem_shm_other.c")
        with open(source, "w") as file:
            file.write(other)
        return harness.build_module(source, f"-I{harness.TOP}/include",
                                    "-Wc,-std=gnu11")


# ---------------------------------------------------------------------------
# Another version of ours
# ---------------------------------------------------------------------------

@pytest.mark.parametrize("way", ["to", "from"])
@pytest.mark.parametrize("step", ["graceful", "restart"])
def test_another_version_by_a_restart(httpd, mpm, our_module, other_version,
                                      way, step):
    """Either trusted what the other had left in the process, whatever its
    layout.  The state goes over, if not through memory then by the file."""
    first, second = our_module, other_version
    if way == "from":
        first, second = second, first
    server = httpd(CONF, mpm=mpm, slotmem_module=first, modules=["status"])
    put_all(server, b"one")
    server.graceful()
    put_all(server, b"two")
    swap(server, second, step)
    assert texts(server) == (b"two", b"two")
    assert relation(server) == "owner", "it locked itself out"
    put_all(server, b"three")
    server.graceful()
    assert texts(server) == (b"three", b"three")
    swap(server, first, step)
    assert texts(server) == (b"three", b"three")
    put_all(server, b"four")
    server.kill_all()
    server.start()
    assert texts(server) == (b"four", b"four")
    server.stop()
    assert left_over(server) == set()
    assert not os.path.exists(marker(server))


def test_versions_that_alternate_leak_nothing(httpd, our_module,
                                              other_version):
    """Neither descriptors nor processes of the one that is gone."""
    server = httpd(CONF, slotmem_module=our_module)
    put_all(server, b"state")

    def both():
        swap(server, other_version)
        swap(server, our_module)

    def kept():
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    both()
    before = kept()
    for _ in range(4):
        both()
    assert kept() <= before + 1
    harness.wait_for(lambda: len(server.processes()) <= 4,
                     lambda: f"processes to end: {server.processes()}")
    assert texts(server) == (b"state", b"state")


# ---------------------------------------------------------------------------
# The stock module
# ---------------------------------------------------------------------------

def test_stock_module_killed_then_ours(httpd, mpm, our_module, stock_module):
    """mod_proxy_cluster's absolute names: an AH02611 for each at every start,
    and no protection against kills, until the stock module ran once more."""
    server = httpd(CONF, mpm=mpm, slotmem_module=stock_module)
    put_all(server, b"stored")
    server.stop()
    server.start()
    put_all(server, b"newer")
    server.kill_all()
    left = left_over(server)
    assert left
    server.slotmem_module = our_module
    server.start()
    for text in texts(server):
        assert text in (b"stored", b"newer")
    assert left_over(server) == set()
    put_all(server, b"protected")
    server.kill_all()
    server.start()
    assert texts(server) == (b"protected", b"protected")
    server.stop()
    assert left_over(server) == set()


def test_stock_module_that_lives_is_not_robbed(httpd, our_module,
                                               stock_module):
    """Its absolute names are somebody's who has them mapped."""
    conf = "SlotmemTestCreate {} 64 10 0 abs"
    first = httpd(conf.format("${ROOT}/name"), slotmem_module=stock_module)
    name = os.path.join(first.root, "name")
    second = httpd(conf.format(name), start=False)
    second.expect_log("AH02611")
    second.start()
    assert sharedmem.exists(first.shm_path(name))
    put(first, b"first", "abs")
    put(second, b"second", "abs")
    assert text_of(first, "abs") == b"first"
    second.stop()
    assert sharedmem.exists(first.shm_path(name))


@pytest.mark.parametrize("how", ["graceful", "stop", "kill"])
def test_to_the_stock_module_and_back(httpd, mpm, our_module, stock_module,
                                      how):
    """What it stored is the latest, and no marker of ours that is left over
    brings back what was before."""
    server = httpd(CONF, mpm=mpm, slotmem_module=our_module)
    put_all(server, b"one")
    server.graceful()
    put_all(server, b"two")
    if how == "graceful":
        swap(server, stock_module)
        assert texts(server) == (b"two", b"two")
    else:
        for name, slot in ("seg", 0), ("abs", 9):
            wait_stored(server, b"two",
                        name if name == "seg"
                        else os.path.join(server.root, "absolute"), slot,
                        limit=60)
        server.stop() if how == "stop" else server.kill_all()
        server.slotmem_module = stock_module
        server.start()
        assert texts(server) == (b"two", b"two")
    put_all(server, b"stock")
    server.stop()
    server.slotmem_module = our_module
    server.start()
    assert texts(server) == (b"stock", b"stock"), "older memory came back"
    server.stop()
    assert not os.path.exists(marker(server))
    assert left_over(server) == set()


def test_back_from_the_stock_module_by_a_graceful_restart(
        httpd, mpm, our_module, stock_module):
    """The stock module stores, and ours begins, in the same process; then
    it is protected again."""
    server = httpd(CONF, mpm=mpm, slotmem_module=our_module,
                   modules=["status"])
    put_all(server, b"one")
    swap(server, stock_module)
    put_all(server, b"two")
    swap(server, our_module)
    assert texts(server) == (b"two", b"two")
    assert relation(server) == "owner"
    put_all(server, b"three")
    server.kill_all()
    server.start()
    assert texts(server) == (b"three", b"three")
    server.stop()
    assert left_over(server) == set()


def test_killed_while_the_stock_module_ran_by_a_graceful_restart(
        httpd, our_module, stock_module):
    """The marker of ours, if it was left, tells of a run whose pid is the
    same: what it lists must not be believed."""
    server = httpd(CONF, slotmem_module=our_module)
    put_all(server, b"one")
    swap(server, stock_module)
    put_all(server, b"two")
    swap(server, stock_module)          # stores "two"
    put_all(server, b"three")
    server.kill_all()
    server.slotmem_module = our_module
    server.start()
    for text in texts(server):
        assert text in (b"two", b"three"), "a run before it came back"
    server.stop()
    assert left_over(server) == set()
