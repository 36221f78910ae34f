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
"""slotmem-file: what a stored file holds, for an administrator and scripts."""

import hashlib
import json
import os
import re
import struct
import subprocess

import pytest

import storedfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZE, NUM, TYPE = 24, 4, "persist+clearinuse"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    subprocess.run(["make", "-s", "-C", TOP, "slotmem-file"], check=True)
    return os.path.join(TOP, "slotmem-file")


def run(program, *args):
    return subprocess.run([program, *map(str, args)], capture_output=True,
                          text=True, timeout=60)


def told(program, path):
    done = run(program, "--json", path)
    return done.returncode, json.loads(done.stdout)


def image():
    return storedfile.image(SIZE, NUM, TYPE, {2: b"http://a.example\0ab\1"},
                            used=(0, 2))


def trailer(whole, kinds):
    digest = whole[-32:-16]
    return (kinds + digest + hashlib.md5(kinds + digest).digest()
            + struct.pack("=QQ", len(kinds) + 48,
                          storedfile.TRAILER_MAGIC))


def test_a_whole_file(program, tmp_path):
    path = tmp_path / "a.persist"
    path.write_bytes(image())
    os.utime(path, (86400, 86400))
    status, said = told(program, path)
    assert status == 0
    assert said == {"valid": True, "why": None, "since": "1970-01-02T00:00:00Z",
                    "item_size": SIZE, "item_num": NUM,
                    "type": storedfile.flags(TYPE), "used": 2}
    with open(os.path.join(TOP, "README.md")) as file:
        example = re.search(r'`(\{"valid".*?\})`', file.read())[1]
    assert json.loads(example) == said
    done = run(program, path)
    assert done.returncode == 0
    assert "valid: yes\n" in done.stdout and "in use: 2\n" in done.stdout


def test_the_kinds_of_slots(program, tmp_path):
    path = tmp_path / "a.persist"
    whole = image()
    path.write_bytes(whole + trailer(whole, bytes([1, 0, 2, 2])))
    status, said = told(program, path)
    assert (status, said["configured"], said["runtime"]) == (0, 1, 2)
    other = storedfile.image(SIZE, NUM, TYPE)
    path.write_bytes(whole + trailer(other, bytes([1, 0, 2, 2])))
    status, said = told(program, path)
    assert status == 0 and "configured" not in said


@pytest.mark.parametrize("at", [0, 8, 8 + SIZE * NUM, 8 + SIZE * NUM + NUM])
def test_a_changed_byte_is_damage(program, tmp_path, at):
    path = tmp_path / "a.rejected"
    raw = bytearray(image())
    raw[at] ^= 4
    path.write_bytes(raw)
    status, said = told(program, path)
    assert status == 1 and not said["valid"] and "MD5" in said["why"]
    assert "used" not in said


def test_a_short_file_is_damage(program, tmp_path):
    path = tmp_path / "a.rejected"
    for length in (0, 1, 15, 16, 40, len(image()) - 1):
        path.write_bytes(image()[:length])
        status, said = told(program, path)
        assert status == 1 and not said["valid"] and said["why"]


def test_a_slot(program, tmp_path):
    path = tmp_path / "a.persist"
    path.write_bytes(image())
    done = run(program, "-s", 2, path)
    assert (done.returncode, done.stdout) == (0, "http://a.example\n")
    done = run(program, "-x", 2, path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2
    assert lines[0].startswith("00000000  68 74 74 70 3a")
    assert lines[0].endswith("  http://a.example")
    assert run(program, "-x", NUM, path).returncode == 2


def test_what_cannot_be_read(program, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo, tmp_path / "none"):
        done = run(program, path)
        assert done.returncode == 2 and str(path) in done.stderr
    assert run(program).returncode == 2
    assert run(program, "-x", "two", fifo).returncode == 2
