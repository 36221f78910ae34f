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
"""Which lines and branches of the module do the tests run through?

    coverage.py [--write] [TEST ...]

The module is built by clang with its counters in a file that every process
maps: parents, children and helpers count into it, those too that are killed
in the middle of a line, which gcov would lose.  The tests in a live httpd (or
the TESTs given) and the unit tests run on it.  Prints lines and branches by
section of the source, then each line that no test ran.

Ends with status 1 if a test fails, if less than 95 % of the lines ran, or if
a line that did not run does not stand in uncovered.txt, with the reason.
--write adds such lines there, with "?" for the reason, which is none.
COVERAGE_KEEP=1 uses what an earlier run has counted, without running again.
"""

import argparse
import collections
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "test"))

import httpd as harness     # noqa: E402  (the path above finds it)

FOLDER = os.path.join(TOP, "build", "coverage")
LIST = os.path.join(HERE, "uncovered.txt")
MODULE = os.path.join(FOLDER, "mod_slotmem_shm.so")
UNIT = os.path.join(TOP, "build", "unit", "coverage")
PLATFORM = [os.path.join(TOP, "build", "unit", "platform-" + kind)
            for kind in ("own", "sysv", "file")]
COUNTERS = ("-fcoverage-mapping -fprofile-update=atomic -mllvm "
            "-runtime-counter-relocation").split()
WANTED = 95.0
JOBS = os.environ.get("JOBS", "4")


def tool(name):
    """clang's tools; Debian's packages of one version have it in the name."""
    for one in (name, name + "-14"):
        if shutil.which(one):
            return one
    sys.exit(f"coverage: {name} is needed and was not found")


# ---------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------

def build(counters):
    os.makedirs(FOLDER, exist_ok=True)
    query = harness.apxs_query
    flags = [query("CFLAGS"), query("EXTRA_CPPFLAGS"),
             "-I" + query("INCLUDEDIR")]
    for config in query("APR_CONFIG"), query("APU_CONFIG"):
        flags.append(subprocess.run([config, "--includes"], check=True,
                                    text=True, stdout=subprocess.PIPE).stdout)
    command = [os.environ.get("CLANG", "clang"), "-w", "-shared", "-fPIC",
               *shlex.split(" ".join(flags)), "-std=gnu11", "-g", "-O1",
               f"-I{TOP}/include", *COUNTERS,
               f"-fprofile-instr-generate={counters}/%m%c.profraw",
               "-o", MODULE,
               os.path.join(TOP, "mod_slotmem_shm.c")]
    subprocess.run(command, check=True)


def open_to_everybody(counters):
    """Tests start servers as other users: the first process makes the file."""
    with harness.Httpd(slotmem_module=MODULE):
        pass
    made = glob.glob(os.path.join(counters, "*.profraw"))
    assert made, "the module counts nothing"
    for path in made:
        os.chmod(path, 0o666)


def survives_a_kill(counters):
    """What is counted must not need an end in good order."""
    with harness.Httpd("SlotmemTestCreate seg 64 10 persist",
                       slotmem_module=MODULE) as server:
        before = len(ran(counts(counters)))
        server.slotmem().get("seg", 0, 8)
        server.kill_all()
        assert len(ran(counts(counters))) > before, "a kill loses the counts"
        server.start()


def run_tests(tests):
    environment = dict(os.environ, SLOTMEM_MODULE=MODULE)
    status = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "-q",
         "-n", JOBS, "--dist", "loadfile", *tests],
        cwd=TOP, env=environment).returncode
    return status == 0


def run_unit_tests(counters):
    environment = dict(os.environ,
                       LLVM_PROFILE_FILE=f"{counters}/unit%m%c.profraw")
    good = subprocess.run(["bash", "test/unit/run.sh", "coverage"], cwd=TOP,
                          env=environment).returncode == 0
    environment["CC"] = os.environ.get("CLANG", "clang")
    environment["CFLAGS"] = " ".join(["-w", "-fprofile-instr-generate",
                                      *COUNTERS])
    return subprocess.run(["bash", "test/unit/run-platform.sh"], cwd=TOP,
                          env=environment).returncode == 0 and good


# ---------------------------------------------------------------------------
# What was counted
# ---------------------------------------------------------------------------

class File:
    """Of one source file: how often each line ran, and each branch of it."""

    def __init__(self):
        self.lines = {}
        self.branches = collections.Counter()
        self.taken = collections.Counter()


def counts(counters):
    """{path from the top: File} of the module's own sources."""
    merged = os.path.join(FOLDER, "merged.profdata")
    subprocess.run([tool("llvm-profdata"), "merge", "-sparse", "-o", merged,
                    *glob.glob(os.path.join(counters, "*.profraw"))],
                   check=True)
    binaries = [MODULE]
    if glob.glob(os.path.join(counters, "unit*.profraw")):
        for path in [UNIT, *PLATFORM]:
            binaries += ["-object", path]
    text = subprocess.run(
        [tool("llvm-cov"), "export", "-format=lcov", *binaries,
         f"-instr-profile={merged}"], check=True, text=True,
        stdout=subprocess.PIPE).stdout
    files = {}
    for record in text.split("end_of_record\n"):
        name = re.search(r"(?m)^SF:(.*)$", record)
        path = name and os.path.relpath(name[1], TOP)
        if path and re.fullmatch(r"mod_slotmem_shm\.c|include/[^/]*\.h", path):
            files[path] = parse(record)
    return files


def parse(record):
    one = File()
    for number, count in re.findall(r"(?m)^DA:(\d+),(\d+)", record):
        one.lines[int(number)] = int(count)
    for number, count in re.findall(r"(?m)^BRDA:(\d+),\d+,\d+,(\d+|-)",
                                    record):
        one.branches[int(number)] += 1
        one.taken[int(number)] += count not in ("0", "-")
    return one


def ran(files):
    return {(path, number) for path, one in files.items()
            for number, count in one.lines.items() if count}


# ---------------------------------------------------------------------------
# Told by section
# ---------------------------------------------------------------------------

def source(path):
    with open(os.path.join(TOP, path)) as file:
        return file.read().splitlines()


def places(path):
    """[(section, function)] of each line; a header is a section."""
    found = []
    section, function = os.path.basename(path), ""
    for line in source(path):
        banner = re.match(r"/\* =+ (.*?) =+ \*/", line)
        if banner and path.endswith(".c"):
            section = banner[1]
        # The name that stands before the first parenthesis of a line which
        # begins in the first column, or of the next where it was too long.
        head = re.match(r"(?=[A-Za-z])(?:.*?\W)?(\w+)\(", line)
        if head and not line.startswith(("#", "typedef")):
            function = head[1]
        found.append((section, function))
    return found


def table(files):
    rows = collections.OrderedDict()
    for path in sorted(files, key=lambda path: path.startswith("include")):
        where = places(path)
        one = files[path]
        for number, count in one.lines.items():
            row = rows.setdefault(where[number - 1][0], [0, 0, 0, 0])
            row[0] += count > 0
            row[1] += 1
            row[2] += one.taken[number]
            row[3] += one.branches[number]
    return rows


def share(part, whole):
    return f"{part:5} of {whole:5} {100 * part / whole if whole else 100:6.1f} %"


def tell(rows):
    total = [sum(column) for column in zip(*rows.values())]
    print(f"\n{'section':38} {'lines':>24} {'branches':>24}")
    for name, row in [*rows.items(), ("all", total)]:
        print(f"{name:38} {share(*row[:2]):>24} {share(*row[2:]):>24}")
    return 100 * total[0] / total[1]


# ---------------------------------------------------------------------------
# The kept list
# ---------------------------------------------------------------------------

def uncovered(files):
    """[(path, number, key)]: key is how the list names the line."""
    found = []
    for path, one in sorted(files.items()):
        text, where = source(path), places(path)
        for number, count in sorted(one.lines.items()):
            stripped = text[number - 1].strip()
            # What only closes a block or a call says nothing by itself, and
            # the preprocessor's lines are none.
            if count == 0 and re.match(r"[^#]*\w", stripped):
                found.append((path, number,
                              f"{where[number - 1][1]}: {stripped}"))
    return found


def kept_list():
    """{key: reason}"""
    kept, reason, after_key = {}, "", False
    with open(LIST) as file:
        for line in file.read().splitlines():
            if line.startswith("# "):
                reason = line[2:] if after_key or not reason \
                    else f"{reason} {line[2:]}"
            elif line.strip():
                kept[line.strip()] = reason
            after_key = not line.startswith("# ")
    return kept


def judge(files, write):
    kept = kept_list()
    missing = uncovered(files)
    bad = []
    print(f"\n{len(missing)} lines that no test ran:")
    for path, number, key in missing:
        reason = kept.get(key, "")
        if reason in ("", "?"):
            bad.append(key)
        print(f"  {path}:{number}: {key}\n      {reason or 'NOT LISTED'}")
    stale = set(kept) - {key for _, _, key in missing}
    for key in sorted(stale):
        print(f"  listed, but it ran this time, or is gone: {key}")
    if write and bad:
        with open(LIST, "a") as file:
            file.write("\n# ?\n" + "".join(
                f"{key}\n" for key in dict.fromkeys(bad) if key not in kept))
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("tests", nargs="*")
    chosen = parser.parse_args()
    good = True
    if os.environ.get("COVERAGE_KEEP") != "1":
        harness.become_subreaper()
        shutil.rmtree(FOLDER, ignore_errors=True)
        # Not below TOP: who starts a server need not be able to reach that.
        with tempfile.TemporaryDirectory(prefix="slotmem-coverage-",
                                         dir="/tmp") as counters:
            os.chmod(counters, 0o777)
            build(counters)
            open_to_everybody(counters)
            survives_a_kill(counters)
            good = run_tests(chosen.tests or ["test"])
            good = run_unit_tests(counters) and good
            shutil.copytree(counters, os.path.join(FOLDER, "counters"))
    files = counts(os.path.join(FOLDER, "counters"))
    percent = tell(table(files))
    bad = judge(files, chosen.write)
    print()
    if not good:
        print("coverage: a test failed")
    if percent < WANTED:
        print(f"coverage: {percent:.1f} % of the lines ran, "
              f"{WANTED:g} % are wanted")
    if bad:
        print(f"coverage: {len(bad)} lines that did not run have no reason in "
              "test/coverage/uncovered.txt")
    return 0 if good and percent >= WANTED and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
