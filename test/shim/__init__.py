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
"""The preloaded libraries: faults.c and clock.c, armed by a test; trespass.c,
which watches; hurry.c."""

import contextlib
import hashlib
import os
import subprocess

import httpd as harness

HERE = os.path.dirname(os.path.abspath(__file__))


def library(name):
    """BUILD/shim/NAME-*.so, built when its text has changed."""
    source = os.path.join(HERE, name + ".c")
    with open(source, "rb") as text:
        digest = hashlib.sha256(text.read()).hexdigest()[:16]
    folder = os.path.join(harness.BUILD, "shim")
    path = os.path.join(folder, f"{name}-{digest}.so")
    with harness.build_lock():
        if not os.path.exists(path):
            os.makedirs(folder, exist_ok=True)
            subprocess.run([*harness.compiler(), "-std=gnu11", "-Wall",
                            "-Wextra", "-O1", "-fPIC", "-shared", "-o",
                            path + ".new", source, "-ldl"], check=True)
            os.rename(path + ".new", path)
    return path


def preload(server, name):
    """Adds a library to those that the server is started with."""
    others = server.env.get("LD_PRELOAD", "")
    server.env["LD_PRELOAD"] = f"{others} {library(name)}".strip()


def watch(server):
    """Has trespass.c note what the server, not started yet, must not do."""
    log = os.path.join(server.root, "trespass")
    with open(log, "w"):
        os.chmod(log, 0o666)
    preload(server, "trespass")
    server.env["TRESPASS_LOG"] = log


def trespasses(server, *kinds):
    """What it noted, of those kinds or of all."""
    with open(server.env["TRESPASS_LOG"]) as file:
        lines = file.read().splitlines()
    return sorted({line for line in lines
                   if not kinds or line.split()[0] in kinds})


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
        with open(self.file + ".log", "w"):
            os.chmod(self.file + ".log", 0o666)     # children write it, too
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
    """Other clocks than the system's, and how long helpers have asked to wait.

    The server must not have been started yet.
    """

    def __init__(self, server):
        self.file = os.path.join(server.root, "clock")
        self.waits_file = self.file + ".waits"
        self._wall = self._flush = 0
        preload(server, "clock")
        server.env.update(CLOCK_FILE=self.file, CLOCK_WAITS=self.waits_file)

    def _write(self):
        with open(self.file + ".tmp", "w") as file:
            file.write(f"{self._wall} {self._flush}")
        os.rename(self.file + ".tmp", self.file)

    def step(self, seconds):
        """From now on the wall clock is that much ahead (or behind)."""
        self._wall = seconds
        self._write()

    def slow_flushes(self, seconds):
        """From now on each flush of a helper's takes that long, by its own
        clocks alone."""
        self._flush = seconds
        self._write()

    def waits(self):
        """Milliseconds that helpers have asked poll() to wait, in order."""
        try:
            with open(self.waits_file) as file:
                return [int(line) for line in file.read().splitlines()]
        except FileNotFoundError:
            return []
