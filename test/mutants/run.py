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
"""Faults put into the module one at a time: does a test catch each?

    run.py [PATTERN ...]            (MUTANTS="PATTERN ..." does the same)

Each NAME.patch of this folder is a small fault, as a unified diff below lines
of the form "Key: value":

    Harm: what somebody would suffer from it, in one line
    Test: what must catch it: words for pytest (a node, or a file and -k), or
          "unit PATTERN" (unit tests, by cmocka's patterns), or "make TARGET"
    Then: the same, several lines if need be: tried if Test did not catch it

For each, a copy of the tree gets the fault, is built, and the tests run.  It
is an error if a fault does not apply (without fuzz), does not build, if its
test is not there, or if the test that caught it fails without the fault, too.

    MUTANT_JOBS   faults that are tried at the same time (2)
    MUTANT_LIMIT  seconds that one command may take; more is a hang, which
                  counts as caught (900)

A fault may remove what others have in shared memory: as root, each command
has namespaces, and with them a /dev/shm, of its own.

Ends with status 1 if one survived, or on an error.
"""

import concurrent.futures
import fnmatch
import glob
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
JOBS = int(os.environ.get("MUTANT_JOBS", "2"))
LIMIT = float(os.environ.get("MUTANT_LIMIT", "900"))
# Of the tree, what a copy does without.
LEFT_OUT = shutil.ignore_patterns(".git", "build", ".libs", "__pycache__",
                                  "mutants", "*.lo", "*.la", "*.slo", "*.o")
PRIVATE = ["unshare", "--mount", "--ipc", "--", "sh", "-c",
           "mount -t tmpfs -o mode=1777 slotmem-mutants /dev/shm && exec "
           '"$@"', "sh"]
if subprocess.run([*PRIVATE, "true"], check=False,
                  stderr=subprocess.DEVNULL).returncode != 0:
    PRIVATE = []
    print("mutants: no namespaces here; run nothing beside this that needs"
          " its shared memory, and MUTANT_JOBS=1")


class Broken(Exception):
    """A mutant or its test is not what it should be."""


class Mutant:
    def __init__(self, path):
        self.name = os.path.basename(path)[:-len(".patch")]
        with open(path) as file:
            head, _, diff = file.read().partition("--- a/")
        self.diff = "--- a/" + diff
        found = re.findall(r"(?m)^(Harm|Test|Then): +(\S.*)$", head)
        self.harm, self.test = (
            next((text for key, text in found if key == name), None)
            for name in ("Harm", "Test"))
        self.then = [text for key, text in found if key == "Then"]
        self.files = re.findall(r"(?m)^\+\+\+ b/(\S+)", self.diff)
        if not (self.harm and self.test and self.files):
            sys.exit(f"{path}: Harm:, Test: or the diff is missing")

    @property
    def tests(self):
        return [self.test] + self.then


# ---------------------------------------------------------------------------
# A copy of the tree, which goes from one mutant to the next
# ---------------------------------------------------------------------------

class Tree:
    """A copy of the tree at `origin`, which others may change meanwhile."""

    def __init__(self, folder, origin=TOP):
        self.folder, self.origin = folder, origin
        shutil.copytree(origin, folder, ignore=LEFT_OUT)
        self.run(["make", "clean"])
        self.build()

    def run(self, command):
        """(exit status, None for a hang; output)"""
        environment = {key: value for key, value in os.environ.items()
                       if key not in ("SLOTMEM_MODULE", "SLOTMEM_TEST_BUILD",
                                      "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        with subprocess.Popen(PRIVATE + command, cwd=self.folder, text=True,
                              errors="replace", env=environment,
                              stdin=subprocess.DEVNULL, start_new_session=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as process:
            try:
                output, _ = process.communicate(timeout=LIMIT)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return None, process.communicate()[0]

    def build(self):
        status, output = self.run(["make", "all"])
        if status != 0:
            errors = re.findall(r"error: .*", output) or [output[-500:]]
            raise Broken("does not build: " + errors[0])

    def apply(self, mutant):
        with subprocess.Popen(["patch", "-p1", "-F0", "--no-backup-if-mismatch",
                               "-r", "-"], cwd=self.folder, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as patch:
            output, _ = patch.communicate(mutant.diff)
        if patch.returncode != 0:
            raise Broken("does not apply: " + output.replace("\n", "; "))

    def restore(self, mutant):
        for name in mutant.files:
            # A new time, so that make builds it again.
            shutil.copyfile(os.path.join(self.origin, name),
                            os.path.join(self.folder, name))


def command_of(test):
    words = shlex.split(test)
    if words[0] == "make":
        return words
    if words[0] == "unit":
        return ["bash", "test/unit/run.sh", "plain", "--", *words[1:]]
    return [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider",
            "-q", "-x", *words]


def passes(tree, test, tell=False):
    """Whether a test passes, and told why not; Broken if it is none."""
    status, output = tree.run(command_of(test))
    kind = test.split()[0]
    if kind == "unit" and "Running 0 test(s)" in output \
            or kind not in ("unit", "make") and status not in (0, 1, None):
        raise Broken(f"no test: {test}\n{output[-1000:]}")
    if kind not in ("unit", "make") and status == 0 \
            and not re.search(r"\b\d+ passed", output):
        raise Broken(f"nothing passed, nothing failed: {test}\n"
                     + output[-1000:])
    if tell and status != 0:
        print(output[-4000:], file=sys.stderr)
    return status == 0


# ---------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------

def chosen():
    patterns = sys.argv[1:] or os.environ.get("MUTANTS", "*").split()
    found = [Mutant(path) for path
             in sorted(glob.glob(os.path.join(HERE, "*.patch")))]
    found = [mutant for mutant in found
             if any(fnmatch.fnmatch(mutant.name, pattern + "*")
                    for pattern in patterns)]
    if not found:
        sys.exit(f"mutants: none of that name: {' '.join(patterns)}")
    return found


class Plain:
    """A tree without a fault; each test runs there once, if at all."""

    def __init__(self, folder):
        self.folder = folder
        self._tree = Tree(folder)
        self._lock = threading.Lock()
        self._known = {}

    def passes(self, test):
        with self._lock:
            if test not in self._known:
                self._known[test] = passes(self._tree, test, tell=True)
            return self._known[test]


def try_mutant(tree, plain, mutant):
    """(what became of it, by what)"""
    try:
        tree.apply(mutant)
        tree.build()
        for test in mutant.tests:
            if not passes(tree, test):
                if not plain.passes(test):
                    return "ERROR", f"fails without the fault, too: {test}"
                return "caught", test
        return "SURVIVED", mutant.harm
    except Broken as why:
        return "ERROR", str(why)
    finally:
        tree.restore(mutant)


def try_all(folder, mutants, say):
    """{mutant: what became of it}; as many at a time as there are jobs."""
    plain = Plain(os.path.join(folder, "plain"))
    free = queue.Queue()
    for number in range(JOBS):
        free.put(Tree(os.path.join(folder, str(number)), plain.folder))

    def work(mutant):
        tree = free.get()
        try:
            result = try_mutant(tree, plain, mutant)
        finally:
            free.put(tree)
        say(mutant, result)
        return result

    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        return dict(zip(mutants, pool.map(work, mutants)))


def main():
    mutants = chosen()
    with tempfile.TemporaryDirectory(prefix="slotmem-mutants-",
                                     dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        results = try_all(folder, mutants, lambda mutant, result: print(
            f"{mutant.name:44} {result[0]:9} {result[1]}", flush=True))
    counts = {kind: [mutant.name for mutant in mutants
                     if results[mutant][0] == kind]
              for kind in ("caught", "SURVIVED", "ERROR")}
    print(f"\nmutants: {len(counts['caught'])} of {len(mutants)} caught, "
          f"{len(counts['SURVIVED'])} survived, {len(counts['ERROR'])} errors")
    for kind in "SURVIVED", "ERROR":
        for name in counts[kind]:
            print(f"  {kind:9} {name}")
    return 0 if len(counts["caught"]) == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
