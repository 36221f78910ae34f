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
"""The marker: the list by which the root parent finds what a killed run left.

What it says steers root, so what is believed of it, and when it is written,
matters; test_takeover.py has what it is for.
"""

import os
import re

import pytest

import rundir
import sharedmem
import shim

CONF = """
SlotmemTestCreate seg 64 10 persist+pregrab
SlotmemTestCreate cleared 64 10 persist+clearinuse
"""


def marker(server):
    return os.path.join(server.run_dir, "slotmem-shm.run")


def killed(httpd):
    """A server that was killed, with something in its memory."""
    server = httpd(CONF)
    rundir.put(server, b"newest")
    server.kill_all()
    return server


def edit(server, pattern, replacement):
    with open(marker(server)) as file:
        text = file.read()
    edited, count = re.subn(pattern, replacement, text, flags=re.M)
    assert count, text
    with open(marker(server), "w") as file:
        file.write(edited)


def test_positive_control_what_it_lists_is_taken_over(httpd):
    """An edit that changes nothing does no harm."""
    server = killed(httpd)
    edit(server, r"^(run .*)$", r"\1")
    server.start()
    assert rundir.text_of(server) == b"newest"
    assert server.log_lines(rundir.FROM_MEMORY)


@pytest.mark.parametrize("claims", ["0-4294967294", "10", "5-3", "7,900000000",
                                    "1,", "x", "18446744073709551617"])
def test_claims_that_no_segment_can_have(httpd, claims):
    """They count bits in the parent's memory: past its end was a crash."""
    server = killed(httpd)
    edit(server, r"^(segment .*) \S+$", rf"\1 {claims}")
    server.start()
    assert rundir.text_of(server) == b"newest"
    assert server.slotmem().info("cleared").num_slots == 10


def test_list_of_another_version_is_not_read(httpd):
    """Its lines may mean something else."""
    server = killed(httpd)
    edit(server, r"\Aslotmem-shm \d+$", "slotmem-shm 99")
    server.start()
    assert not server.log_lines(rundir.FROM_MEMORY)


def test_file_that_has_another_name_is_not_written_to(httpd):
    """A hard link needs no right on the file: whoever may write the directory
    could have root write to any file of root's."""
    server = httpd(CONF, start=False)
    victim = os.path.join(server.root, "victim")
    with open(victim, "w") as file:
        file.write("precious")
    os.chmod(victim, 0o600)
    os.link(victim, marker(server))
    server.start()
    with open(victim) as file:
        assert file.read() == "precious"
    assert not os.path.samefile(victim, marker(server))


def test_segment_is_listed_before_it_is_made(httpd):
    """After a kill in between nobody would find it, where shared memory cannot
    be searched for what a dead process left."""
    server = httpd("Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n" + CONF,
                   start=False, shm_size="8m")
    faults = shim.Faults(server)
    faults.arm(0, "none", "leader", "lseek,open")
    server.start()
    calls = faults.disarm()
    made = [calls.index(("open", sharedmem.of_key(server.key_file(name))))
            for name in ("seg", "cleared")]
    listed = [at for at, call in enumerate(calls)
              if call == ("lseek", marker(server))]
    assert len(listed) >= 2
    for number, at in enumerate(sorted(made)):
        assert sum(one < at for one in listed) > number, calls


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_list_that_cannot_be_begun_is_told(httpd):
    """A disk that fails; the server starts, and says what that costs."""
    server = httpd("Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n" + CONF,
                   start=False, shm_size="8m")
    faults = shim.Faults(server)
    server.env["FAULTS_PREFIX"] = marker(server)
    faults.arm(1, "EIO", "leader", "ftruncate")
    server.expect_log("cannot write .*slotmem-shm.run: after a kill, state is")
    server.start()
    assert faults.disarm()
