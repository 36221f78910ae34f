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
"""The preloaded libraries: faults.c and clock.c, armed by a test; hurry.c."""

import contextlib
import hashlib
import os
import re
import subprocess
import tempfile

import httpd as harness

HERE = os.path.dirname(os.path.abspath(__file__))


def library(name):
    """build/test/shim/NAME-*.so, built when its text has changed."""
    source = os.path.join(HERE, name + ".c")
    with open(source, "rb") as text:
        digest = hashlib.sha256(text.read()).hexdigest()[:16]
    folder = os.path.join(harness.TOP, "build", "test", "shim")
    path = os.path.join(folder, f"{name}-{digest}.so")
    with harness.build_lock():
        if not os.path.exists(path):
            os.makedirs(folder, exist_ok=True)
            subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Wextra", "-O1",
                            "-fPIC", "-shared", "-o", path + ".new", source,
                            "-ldl"], check=True)
            os.rename(path + ".new", path)
    return path


def preload(server, name):
    """Adds a library to those that the server is started with."""
    others = server.env.get("LD_PRELOAD", "")
    server.env["LD_PRELOAD"] = f"{others} {library(name)}".strip()


# What the module waits for between two checkpoints, and what share of the
# machine it is content with: its own names, and what they are in tests.
HURRIED = {"CHECKPOINT_PAUSE": "300000", "CHECKPOINT_EARLY": "0",
           "CHECKPOINT_SHARE": "0", "CHECKPOINT_BYTES_SEC": "1000000000"}


def hurried_module():
    """The module with 0.3 s between two checkpoints, whatever they cost.

    Its server needs hurry.c, too.  A module that was built elsewhere
    (SLOTMEM_MODULE) is what it is, and slower.
    """
    if "SLOTMEM_MODULE" in os.environ:
        return harness.our_module()
    with open(os.path.join(harness.TOP, "mod_slotmem_shm.c")) as file:
        text = file.read()
    end = "#define CHECKPOINT_CODE "        # which stands behind all of them
    assert text.count(end) == 1
    for name, value in HURRIED.items():
        assert re.search(rf"(?m)^#define {name}\b", text), name
        text = text.replace(end, f"#undef {name}\n#define {name} {value}\n"
                                 + end)
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "mod_slotmem_shm_hurried.c")
        with open(source, "w") as file:
            file.write(text)
        return harness.build_module(source, f"-I{harness.TOP}/include",
                                    "-Wc,-std=gnu11")


class Faults:
    """Faults for one server, which must not have been started yet.

    Counted is what happens in the runtime directory, and to POSIX shared
    memory.  So that these are the module's doings only, the server needs a
    /dev/shm of its own (shm_size), its PidFile elsewhere, and "Mutex sem".
    """

    def __init__(self, server):
        self.server = server
        self.file = os.path.join(server.root, "faults")
        self.go_file = self.file + ".go"
        preload(server, "faults")
        server.env.update(
            FAULTS_FILE=self.file,
            FAULTS_PREFIX=server.run_dir + ":/dev/shm/ShM.")

    def arm(self, at, action, who="leader", calls="*"):
        """at: a number, or such as "1+" for that operation and all after."""
        self.disarm()
        with open(self.file + ".tmp", "w") as file:
            file.write(f"{at} {action} {who} {calls} {os.urandom(4).hex()}")
        os.rename(self.file + ".tmp", self.file)

    def pass_on(self):
        """Nothing is counted any more; what was, is kept."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file)

    def disarm(self):
        """Returns what was counted: [(call, path)]."""
        self.pass_on()
        counted = self.counted()
        for path in self.file + ".log", self.go_file:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return counted

    def counted(self):
        try:
            with open(self.file + ".log") as file:
                return [tuple(line.split(" ", 2)[1:])
                        for line in file.read().splitlines()]
        except FileNotFoundError:
            return []

    def go(self):
        with open(self.go_file, "w"):
            pass


class Clock:
    """Another wall clock, and time that passes faster for root's processes.

    The server must not have been started yet.
    """

    def __init__(self, server, speed=1):
        self.file = os.path.join(server.root, "clock")
        self.speed = speed
        preload(server, "clock")
        server.env.update(CLOCK_FILE=self.file, CLOCK_SPEED=str(speed))

    def step(self, seconds):
        """From now on the wall clock is that much ahead (or behind)."""
        with open(self.file + ".tmp", "w") as file:
            file.write(str(seconds))
        os.rename(self.file + ".tmp", self.file)
