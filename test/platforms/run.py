#!/usr/bin/python3
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
"""The tests on other systems: other releases, processors, C libraries.

    test/platforms/run.py [SYSTEM ...]        all of them without any
    test/platforms/run.py --list

Each system is a root directory under build/platforms, made once by mmdebstrap
from Debian's mirror and kept; the tree under version control is put into it
anew each time.  Nothing is installed on this machine, and nothing of it is
changed: the tests run in namespaces of their own (mounts, processes, network,
System V memory), those for a foreign processor in an emulated machine with the
kernel that Debian has for it (places.py).  For musl, of which Debian has no
httpd, one is built there once (musl.sh) from the archives of Debian's sources
(test/intree/source.sh).  Needs root and mmdebstrap; foreign processors cpio,
e2fsprogs, and qemu-system-arm, -misc (s390x) or -ppc.

    PLATFORM_TESTS    words for pytest instead of each system's own
    PLATFORM_SECONDS  after which a system's tests are ended       (3600)
    PLATFORM_ARGS     further words for pytest
    DEBIAN_MIRROR     http://deb.debian.org/debian
    JOBS              test processes at once, where not emulated   (2)

Ends with a table, one row for a system and user, ready for README.md; it is
kept in build/platforms/table.md together with the rows of former runs.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys

from places import Failed, Machine, Namespace

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
WORK = os.path.join(TOP, "build", "platforms")
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
SECONDS = int(os.environ.get("PLATFORM_SECONDS", "3600"))

PACKAGES = ("apache2-bin apache2-dev apache2-utils python3 python3-pytest "
            "python3-pytest-xdist gcc libc6-dev make curl procps util-linux "
            "libcmocka-dev tidy perl").split()

# What is essential to Debian, for roots that are only unpacked.
ESSENTIAL = ("base-files base-passwd bash coreutils dash findutils grep gzip "
             "hostname libc-bin login mawk mount ncurses-base perl-base sed "
             "tar").split()

# On musl: an httpd that is built in the root directory, with its APR, since
# Debian has none; the rest of the root has the GNU C library.
MUSL = "/opt/musl"
MUSL_PACKAGES = ["musl-tools", "bzip2"]
MUSL_SOURCES = ["expat", "pcre2", "apr", "apr-util", "apache2", "cmocka"]
MUSL_ENVIRONMENT = {
    "APXS": f"{MUSL}/bin/apxs", "APR_CONFIG": f"{MUSL}/bin/apr-1-config",
    "CFLAGS": f"-I{MUSL}/include -L{MUSL}/lib -Wl,-rpath,{MUSL}/lib"}

# What is tried everywhere: the contract, what is stored, what comes back, and
# what a killed run leaves.
CORE = ["test/test_contract.py", "test/test_takeover.py", "test/test_store.py",
        "test/test_restore.py", "test/test_sysv.py"]
# Of everything, what needs no tool that PACKAGES has not.
WHOLE = ["test", "--ignore=test/test_readme.py", "--ignore=test/portability"]


class System:
    """release, arch: as Debian names them; place: where it runs (places.py);
    as_user: an ordinary user runs pytest and httpd; musl: httpd is on it;
    tests, mpm: for pytest."""

    def __init__(self, name, release, arch="amd64", place=Namespace,
                 as_user=False, tests=WHOLE, mpm="event", root=None,
                 musl=False):
        self.name, self.release, self.arch = name, release, arch
        self.as_user, self.musl = as_user, musl
        self.tests, self.mpm = tests, mpm
        self.root = os.path.join(WORK, root or f"{release}-{arch}")
        self.place = place(self.root, arch, MUSL_ENVIRONMENT if musl else {})


# ppc64el has base pages of 64 KiB, s390x is big-endian, armhf has 32 bits.
SYSTEMS = {system.name: system for system in (
    System("bullseye", "bullseye"),
    System("bullseye-user", "bullseye", as_user=True),
    System("trixie", "trixie", tests=CORE),
    System("i386", "bookworm", "i386", tests=CORE),
    System("ppc64el", "bookworm", "ppc64el", Machine, tests=CORE),
    System("s390x", "bookworm", "s390x", Machine, tests=CORE),
    System("arm64", "bookworm", "arm64", Machine, tests=CORE),
    System("armhf", "bookworm", "armhf", Machine, tests=CORE),
    System("musl", "bookworm", root="bookworm-musl", musl=True),
)}


def say(text):
    print(f"platforms: {text}", flush=True)


# ---------------------------------------------------------------------------
# The root directories
# ---------------------------------------------------------------------------

def make_root(system):
    done = os.path.join(system.root, "src")
    if os.path.isdir(done):
        return
    if not shutil.which("mmdebstrap"):
        raise Failed("no mmdebstrap (Debian: mmdebstrap)")
    say(f"{system.name}: making {system.root}")
    shutil.rmtree(system.root, ignore_errors=True)
    # For a foreign processor the packages are unpacked and not configured:
    # emulated, that takes longer than all the tests, and httpd needs none of
    # it but the users.
    foreign = system.place.foreign
    more = ESSENTIAL if foreign else MUSL_PACKAGES if system.musl else []
    command = ["nice", "mmdebstrap", f"--architectures={system.arch}",
               "--variant=" + ("extract" if foreign else "minbase"),
               "--include=" + ",".join(
                   PACKAGES + system.place.packages + more),
               '--aptopt=APT::Install-Recommends "false"',
               "--dpkgopt=path-exclude=/usr/share/doc/*",
               "--dpkgopt=path-exclude=/usr/share/man/*"]
    if foreign:
        command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    command += [system.release, system.root,
                f"deb [check-valid-until=no signed-by={KEYS}] {MIRROR} "
                f"{system.release} main"]
    log = system.root + ".log"
    with open(log, "w") as output:
        if subprocess.run(command, stdout=output,
                          stderr=subprocess.STDOUT).returncode:
            raise Failed(f"mmdebstrap failed; see {log}")
    if foreign:
        finish_unpacked(system.root)
    # What an installer writes: httpd asks for the name of each address that a
    # virtual host has, and here nobody else would answer.
    with open(os.path.join(system.root, "etc/hosts"), "w") as file:
        file.write("127.0.0.1 localhost\n::1 localhost\n")
    if system.musl:
        make_musl(system)
    os.mkdir(done)


def make_musl(system):
    """An httpd on musl in the root directory, from Debian's sources."""
    archives = os.path.join(system.root, "opt", "archives")
    os.makedirs(archives)
    for package in MUSL_SOURCES:
        shutil.copy(subprocess.run(
            ["sh", os.path.join(TOP, "test/intree/source.sh"), package,
             os.path.join(TOP, "build/source")], check=True, text=True,
            stdout=subprocess.PIPE).stdout.strip(), archives)
    shutil.copy(os.path.join(TOP, "test/platforms/musl.sh"), archives)
    log = system.root + ".httpd.log"
    status, _ = system.place.run(
        "env", f"JOBS={system.place.jobs}", "bash", "/opt/archives/musl.sh",
        "/opt/archives", MUSL, log=log)
    if status:
        raise Failed(f"httpd does not build; see {log}")


def finish_unpacked(root):
    """What the packages' scripts would have done, as far as it is needed."""
    for name in "passwd", "group":
        path = os.path.join(root, "etc", name)
        if not os.path.exists(path):
            shutil.copy(os.path.join(root, "usr/share/base-passwd",
                                     name + ".master"), path)
    for link, target in (("usr/bin/cc", "gcc"), ("usr/bin/awk", "mawk"),
                         ("bin/sh", "dash")):
        path = os.path.join(root, link)
        if not os.path.lexists(path):
            os.symlink(target, path)
    for folder in "proc", "dev", "sys":
        os.makedirs(os.path.join(root, folder), exist_ok=True)
    for folder in "tmp", "var/tmp":
        os.makedirs(os.path.join(root, folder), exist_ok=True)
        os.chmod(os.path.join(root, folder), 0o1777)


def put_tree(system):
    """What is under version control, as it is now."""
    listing = subprocess.run(
        ["git", "-C", TOP, "ls-files", "-z", "--cached", "--others",
         "--exclude-standard"], check=True, stdout=subprocess.PIPE).stdout
    system.place.put_tree(TOP, [
        name for name in map(os.fsdecode, listing.split(b"\0"))
        if os.path.isfile(os.path.join(TOP, name))])


# ---------------------------------------------------------------------------
# Running in one
# ---------------------------------------------------------------------------

PREPARE = r"""
cd /src
grep -q ^tester: /etc/passwd || {
    echo tester:x:4321:4321::/tmp:/bin/sh >> /etc/passwd
    echo tester:x:4321: >> /etc/group
}
apxs=${APXS:-apxs}
make -s CC="$($apxs -q CC)" all > make.log 2>&1 || { tail -n 20 make.log; exit 1; }
if grep -E 'mod_slotmem_shm.c.*(warning|error)' make.log; then exit 1; fi
mkdir -p build/root build/user
chown tester build/user
"""

PROBE = r"""
cd /src/test
apxs=${APXS:-apxs}
httpd=$($apxs -q SBINDIR)/$($apxs -q PROGNAME)
$httpd -V -f /dev/null 2> /dev/null | sed -n 's/^Server version: *//p
s/^Server loaded: *APR \([0-9.]*\).*/APR \1/p'
python3 -B -c 'import os, sharedmem
print(sharedmem.kind())
print(os.uname().machine)'
"""

KINDS = {"posix": "POSIX", "sysv": "System V", "file": "mapped files"}


def probe(system):
    """What this system is, for the table."""
    _, output = system.place.run("sh", "-c", PROBE)
    found = {"httpd": "?", "apr": "?", "shm": "?", "machine": system.arch}
    for line in output.splitlines():
        match = re.search(r"Apache/([\d.]+)", line)
        if match:
            found["httpd"] = match[1]
        elif line.startswith("APR "):
            found["apr"] = line[4:]
        elif line in KINDS:
            found["shm"] = KINDS[line]
        elif re.fullmatch(r"[a-z]\w+", line):
            found["machine"] = line
    if system.arch == "i386":
        found["machine"] = "i386"
    if system.place.foreign:
        found["machine"] += " by QEMU"
    return found


def unit(system, prefix):
    """The platform's own unit tests: (passed, failed, skipped)."""
    status, output = system.place.run(
        "sh", "-c", "cd /src && bash test/unit/run-platform.sh "
        "own > /dev/null 2>&1; exec \"$@\" build/unit/platform-own", "sh",
        *prefix,
        log=system.root + f".{system.name}.unit.log", seconds=600)
    passed = len(re.findall(r"\[ +OK \]", output))
    skipped = len(re.findall(r"\[  SKIPPED \] test_\w+$", output, re.M)) // 2
    failed = len(re.findall(r"\[  FAILED  \] test_\w+$", output, re.M)) // 2
    if not passed or (status and not failed):
        failed += 1
    return passed, failed, skipped


def tests(system, prefix):
    """pytest's (passed, failed, skipped)."""
    words = os.environ.get("PLATFORM_TESTS", "").split() or system.tests
    words = words + os.environ.get("PLATFORM_ARGS", "").split()
    user = "user" if system.as_user else "root"
    log = system.root + f".{system.name}.log"
    status, output = system.place.run(
        "sh", "-c", "cd /src && exec \"$@\"", "sh", *prefix,
        "env", f"SLOTMEM_TEST_BUILD=/src/build/{user}", "python3", "-B", "-m",
        "pytest", "-p", "no:cacheprovider", "-q", "-rs", "--tb=short",
        "--module", "ours", "--mpm", system.mpm, "-n", system.place.jobs,
        "--dist", "loadfile", *words, log=log, seconds=SECONDS)
    last = output.strip().splitlines()[-1] if output.strip() else ""
    count = {what: int(number) for number, what in re.findall(
        r"(\d+) (passed|failed|skipped|error)", last)}
    failed = count.get("failed", 0) + count.get("error", 0)
    if not count or (status and not failed):
        failed += 1
        say(f"{system.name}: {last}")
    if failed:
        say(f"{system.name}: see {log}")
    return count.get("passed", 0), failed, count.get("skipped", 0)


def commit():
    """Which tree this is; a + says that it was changed since."""
    git = ["git", "-C", TOP]
    head = subprocess.run(git + ["rev-parse", "--short", "HEAD"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout.strip()
    changed = subprocess.run(git + ["status", "--porcelain"], check=True,
                             stdout=subprocess.PIPE).stdout
    return head + ("+" if changed else "")


def run(system):
    """The row of a system."""
    make_root(system)
    tree = commit()
    prefix = ["setpriv", "--reuid=tester", "--regid=tester",
              "--clear-groups"] if system.as_user else []
    with system.place:
        put_tree(system)
        status, output = system.place.run("sh", "-c", PREPARE, seconds=1200)
        if status:
            raise Failed("the module does not build: " + output[-2000:])
        found = probe(system)
        counts = [sum(both) for both in zip(unit(system, prefix),
                                            tests(system, prefix))]
    words = os.environ.get("PLATFORM_TESTS") or (
        "all" if system.tests is WHOLE else
        "contract, store, restore, take-over")
    return {
        "system": ("httpd on musl, " if system.musl else "")
                  + f"Debian {system.release} {system.arch}, "
                  + ("ordinary user" if system.as_user else "root"),
        **found, "ran": f"{words} ({system.mpm})", "passed": counts[0],
        "failed": counts[1], "skipped": counts[2],
        "commit": tree, "date": datetime.date.today().isoformat()}


# ---------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------

COLUMNS = ("system", "httpd", "apr", "shm", "machine", "ran", "passed",
           "failed", "skipped", "date", "commit")
HEADS = ("system", "httpd", "APR", "shared memory", "processor", "what ran",
         "passed", "failed", "skipped", "when", "commit")


def kept_rows():
    try:
        with open(os.path.join(WORK, "rows.json")) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def table(rows):
    lines = ["| " + " | ".join(HEADS) + " |",
             "| " + " | ".join("---" for _ in HEADS) + " |"]
    for name in SYSTEMS:
        if name in rows:
            lines.append("| " + " | ".join(str(rows[name].get(column, ""))
                                           for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("systems", nargs="*", metavar="SYSTEM")
    chosen = parser.parse_args()
    if chosen.list:
        print("\n".join(SYSTEMS))
        return 0
    unknown = set(chosen.systems) - set(SYSTEMS)
    if unknown:
        parser.error(f"no system {', '.join(sorted(unknown))}; there are "
                     + ", ".join(SYSTEMS))
    if os.geteuid() != 0:
        parser.error("root is needed, to make and to enter other systems")
    os.makedirs(WORK, exist_ok=True)
    rows, bad = kept_rows(), False
    for name in chosen.systems or SYSTEMS:
        try:
            rows[name] = run(SYSTEMS[name])
            say(f"{name}: {rows[name]['passed']} passed, "
                f"{rows[name]['failed']} failed, "
                f"{rows[name]['skipped']} skipped")
            bad = bad or rows[name]["failed"] > 0
        except Failed as error:
            say(f"{name}: not tried: {error}")
            bad = True
        with open(os.path.join(WORK, "rows.json"), "w") as file:
            json.dump(rows, file, indent=1)
    with open(os.path.join(WORK, "table.md"), "w") as file:
        file.write(table(rows))
    print("\n" + table(rows))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
