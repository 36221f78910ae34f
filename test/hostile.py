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
"""A child of httpd that an attacker holds, and an hour of it.

As a module it gives the tests Attacker, the Python side of
attacker/mod_slotmem_hostile.c.  As a program it runs a server whose segments
are overwritten without pause, while it works, restarts, stops, is killed and
started again; HOSTILE_SECONDS (3600) says for how long, HOSTILE_SEED makes it
the same run again.  Each siege is in the next MPM and with the other build;
HOSTILE_ONLY ("event", "sanitized", both, or others of them) keeps to those.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import httpd as harness     # noqa: E402  (the path above finds it)
import layout               # noqa: E402

KINDS = ("zero", "ones", "random", "flip", "more", "less", "one", "bits",
         "held", "dead")
PAGE = 4096


# ---------------------------------------------------------------------------
# What the tests load into httpd
# ---------------------------------------------------------------------------

def attacker_conf():
    """The directive that puts an attacker into every child."""
    source = os.path.join(harness.TOP, "test", "attacker",
                          "mod_slotmem_hostile.c")
    return ("LoadModule slotmem_hostile_module "
            f"{harness.build_module(source)}\n")


def address_sanitizer():
    """(module, environment): a server that AddressSanitizer watches.

    Of a module that was built elsewhere (SLOTMEM_MODULE) there is no source to
    build so: guard pages alone watch it then.
    """
    if "SLOTMEM_MODULE" in os.environ:
        return harness.our_module(), {"LD_PRELOAD": guard_pages()}
    # Under a name of its own, since others build that source with other flags.
    source = os.path.join(harness.BUILD, "slotmem_shm_asan.c")
    os.makedirs(os.path.dirname(source), exist_ok=True)
    shutil.copy(os.path.join(harness.TOP, "mod_slotmem_shm.c"),
                f"{source}.{os.getpid()}")
    os.replace(f"{source}.{os.getpid()}", source)
    module = harness.build_module(
        source, f"-I{harness.TOP}/include", "-Wc,-std=gnu11", "-Wc,-g",
        "-Wc,-fsanitize=address", "-Wl,-fsanitize=address")
    return module, {
        "LD_PRELOAD": f"{_library_of_compiler('libasan.so')}:{guard_pages()}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:"
                        "abort_on_error=1:use_sigaltstack=0"}


def _library_of_compiler(name):
    return subprocess.run([os.environ.get("CC", "cc"),
                           f"-print-file-name={name}"], check=True, text=True,
                          stdout=subprocess.PIPE).stdout.strip()


def guard_pages():
    """A library for LD_PRELOAD that puts guards around shared mappings."""
    source = os.path.join(harness.TOP, "test", "attacker", "guard_pages.c")
    built = os.path.join(harness.BUILD, "guard_pages.so")
    with harness.build_lock():
        os.makedirs(harness.BUILD, exist_ok=True)
        if (not os.path.exists(built)
                or os.path.getmtime(built) < os.path.getmtime(source)):
            subprocess.run([*harness.compiler(), "-shared", "-fPIC", "-O2",
                            "-Wall", "-Wextra", "-o", built, source],
                           check=True)
    return built


# ---------------------------------------------------------------------------
# The attacker
# ---------------------------------------------------------------------------

class Range:
    """A segment as a process has it mapped."""

    def __init__(self, start, end, slots):
        self.start, self.end, self.slots = start, end, slots

    @property
    def length(self):
        return self.end - self.start

    @property
    def control(self):
        """Bytes before slot 0: APR's size, header, tables, locks."""
        return self.slots - self.start


class Attacker:
    """What runs in the child pid with the child's rights."""

    def __init__(self, server, pid):
        self.server, self.pid = server, pid
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(harness.LIMIT)
        path = os.path.join(server.ctl_dir, f"hostile-{pid}.sock")
        harness.wait_for(lambda: self._socket.connect_ex(path) == 0,
                         f"the attacker in child {pid}")

    def close(self):
        self._socket.close()

    def range(self, handle):
        """Where the segment of a handle lies in this child."""
        found = self.server.slotmem(self.pid).mapping(handle)
        return Range(found.start, found.end, found.address)

    def order(self, text):
        self._socket.sendall(text.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self._socket.recv(1 << 17)
            if not piece:
                raise harness.HttpdError(f"the attacker in {self.pid} ended "
                                         f"during {text[:80]}")
            answer += piece
        done, _, rest = answer.decode().rstrip("\n").partition(" ")
        if done != "ok":
            raise harness.HttpdError(f"{text[:80]}: {rest}")
        return rest

    def put(self, address, data):
        for at in range(0, len(data), 16384):
            piece = data[at:at + 16384]
            self.order(f"put {address + at:x} {piece.hex()}")

    def get(self, address, length):
        return b"".join(
            bytes.fromhex(self.order(
                f"get {address + at:x} {min(16384, length - at):x}"))
            for at in range(0, length, 16384))

    def word(self, address, value):
        self.put(address, (value & (1 << 64) - 1).to_bytes(8, sys.byteorder))

    def fill(self, kind, address, length, seed=1):
        self.order(f"fill {kind} {address:x} {length:x} {seed:x}")

    def copy(self, to, origin, length):
        self.order(f"copy {to:x} {origin:x} {length:x}")

    def storm(self, kind, address, length, seed=1):
        self.order(f"storm {kind} {address:x} {length:x} {seed:x}")

    def calm(self):
        return int(self.order("calm"), 16)

    def punch(self, where):
        """Gives the segment's pages back to the system."""
        self.order(f"punch {where.start:x} {where.length:x}")

    def hoard(self, path="/dev/shm/hoard"):
        """Takes what is left of /dev/shm."""
        return int(self.order(f"hoard {path}"), 16)

    def drop(self):
        self.order("drop")

    def stubborn(self):
        self.order("stubborn")

    def plant(self, path, address, length):
        self.order(f"plant {path} {address:x} {length:x}")

    def shorten(self, path, size):
        self.order(f"shorten {path} {size:x}")

    def claim(self, pid):
        """The scoreboard says from now on that this child is pid."""
        self.order(f"claim {pid:x}")

    def make(self, folder):
        """Makes directories in a thread, over and over."""
        self.order(f"make {folder}")

    def made(self):
        """(how many, how many of another mode than the first)"""
        return tuple(int(n, 16) for n in self.order("made").split())


# ---------------------------------------------------------------------------
# What every attack is followed by
# ---------------------------------------------------------------------------

# A put or get waits at most so long for a lock that never comes to rest
# (WAIT_MAX in the module), and once for the mutex between processes.
PATIENCE = 15

CANARY = bytes(range(1, 65))


def canary_conf():
    """A segment that nobody attacks, and that must stay as it is."""
    return "SlotmemTestCreate canary 64 100 persist+pregrab\n"


def canary_set(server):
    sm = server.slotmem(server.children()[-1])
    for i in range(100):
        assert sm.grab("canary").ok
        assert sm.put("canary", i, CANARY).ok


def canary_check(server):
    """The slots, and what lies around them up to the mapping's end."""
    sm = server.slotmem(server.children(server.generation)[-1])
    info = sm.info("canary")
    assert (info.num_slots, info.num_free, info.slot_size) == (100, 0, 64)
    assert sm.read("canary", 0, 6400) == CANARY * 100
    where = sm.mapping("canary")
    rest = where.end - where.address - 6400
    assert sm.read("canary", 0, rest, off=6400) == bytes(rest)


def all_calls(handle, num, slot=0):
    """Every call of the provider on a segment, as operations."""
    op = harness.op_line
    return [op("info", h=handle), op("grab", h=handle),
            op("fgrab", h=handle, i=slot), op("put", h=handle, i=slot,
                                              data=b"12345678"),
            op("get", h=handle, i=slot, len=8),
            op("get", h=handle, i=num - 1, len=8),
            op("dptr", h=handle, i=num - 1), op("release", h=handle, i=slot),
            op("grab", h=handle), op("doall", h=handle, stop=num),
            op("attach", name=handle, h="again"),
            op("create", name=handle, size=1, num=1, h="again"),
            op("get", h=handle, i=num, len=8)]


class TookTooLong(harness.HttpdError):
    pass


def call_all(server, pid, handle, num, slot=0, lines=None):
    """Makes the calls in a child; none may hang, none may end it."""
    sm = server.slotmem(pid)
    answers = []
    for line in lines or all_calls(handle, num, slot):
        began = time.monotonic()
        answers += sm.run(line, limit=4 * PATIENCE)
        if time.monotonic() - began > PATIENCE:
            raise TookTooLong(f"{line}: {time.monotonic() - began:.1f} s")
    sm.close()
    # What a segment is does not depend on what is in it.
    info = answers[0]
    if info["op"] == "info":
        assert info.num_slots == num and info.num_free <= num
    return answers


# Lines that an attack may call forth: a lock that names a process which is
# gone was never held by one, but nobody can tell; and a segment that is full
# or empty by an attacker's word cannot be grabbed from or released in.
# A note in the header says which file holds the segment.  Without it the
# parent takes what its helper has stored for somebody's, at a stop or restart.
PUT_THERE = r"AH02551: .*put there while the server ran"
EXPECTED_LOG = (PUT_THERE + r"|died while it wrote to|"
                r"AH02293: .*every slot is in use|"
                r"AH02294: .*is not in use|AH02397: ")


def lifecycle(server, how):
    """Restarts the server in one of the ways there are."""
    if how == "stop":
        server.stop()
        server.start()
    elif how == "kill":
        server.kill_all()
        server.allow_log("AH00098: pid file .* overwritten")
        server.start()
    else:
        getattr(server, how)()


LIFECYCLES = ("graceful", "restart", "stop", "kill")


# ---------------------------------------------------------------------------
# The long run
# ---------------------------------------------------------------------------

SEGMENTS = {"seg": ("64 5000 persist+pregrab", 5000),
            "plain": ("24 70 persist", 70),
            "wide": ("70000 3 persist+pregrab", 3),
            "loose": ("200 1000 persist+notmpsafe", 1000),
            "one": ("8 1 persist+pregrab+clearinuse", 1)}

# What httpd says of a child that has to be told twice to go.
HTTPD_LOG = r"AH0004[567]: |AH00098: pid file .* overwritten"


class Siege:
    """One server, attacked until its time is over."""

    def __init__(self, seed, mpm, module, env):
        self.random = random.Random(seed)
        self.counts = {}
        self.server = harness.Httpd(
            attacker_conf() + canary_conf()
            + "".join(f"SlotmemTestCreate {name} {what[0]}\n"
                      for name, what in SEGMENTS.items()),
            mpm=mpm, slotmem_module=module, env=env, loglevel="info")
        self.server.allow_log(EXPECTED_LOG)
        self.server.allow_log(HTTPD_LOG)

    def run(self, end):
        with self.server as server:
            try:
                canary_set(server)
                while time.monotonic() < end:
                    self.step()
                self.last_check()
            except BaseException:
                with open(server.stderr_path, errors="replace") as file:
                    sys.stderr.write(file.read()[-4000:])
                raise
        return self.counts

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def step(self):
        """An attack, calls meanwhile, and something for the parent."""
        server = self.server
        how = self.random.choice(("", "", "") + LIFECYCLES)
        pids = server.children(server.generation)
        if how == "graceful":
            with server.held_request() as pid:
                attacker = self.attack(pid)
                self.call([other for other in pids if other != pid])
                old = server.graceful(wait_old=False)
                canary_check(server)
                attacker.calm()
            server.wait_gone(old)
        else:
            attacker = self.attack(pids[0])
            self.call(pids[1:])
            if how:
                if self.random.random() < 0.05:
                    attacker.stubborn()
                lifecycle(server, how)
            else:
                attacker.calm()
        attacker.close()
        self.count(how or "calls")
        canary_check(server)
        server.check_log()

    def attack(self, pid):
        attacker = Attacker(self.server, pid)
        for name in self.random.sample(sorted(SEGMENTS),
                                       self.random.randint(1, 3)):
            where = attacker.range(name)
            kind = self.random.choice(KINDS)
            seed = self.random.getrandbits(60) | 1
            length = self.random.choice((where.control, where.length,
                                         layout.header_end()))
            deed = self.random.choice(("storm", "fill", "word", "copy",
                                       "punch"))
            self.count(deed)
            if deed in ("storm", "fill"):
                getattr(attacker, deed)(kind, where.start, length, seed)
            elif deed == "word":
                at = self.random.randrange(0, where.control, 8)
                attacker.word(where.start + at, self.random.choice(
                    (0, -1, 1, 4, 7, 8, 1 << 32, 1 << 63 | 1, seed)))
            elif deed == "copy":
                other = attacker.range(self.random.choice(sorted(SEGMENTS)))
                attacker.copy(where.start, other.start,
                              min(where.length, other.length))
            else:
                attacker.punch(where)
        return attacker

    def call(self, pids):
        name = self.random.choice(sorted(SEGMENTS))
        num = SEGMENTS[name][1]
        for pid in pids[:1]:
            call_all(self.server, pid, name, num,
                     self.random.randrange(num))

    def last_check(self):
        """A clean stop, and files that restore what was stored."""
        server = self.server
        server.stop()
        server.start()
        canary_check(server)
        for name, what in SEGMENTS.items():
            assert server.slotmem().info(name).num_slots == what[1]
        restored = server.log_lines(r"slotmem_shm: \d+ segments, ")[-1]
        assert re.search(rf"\b{len(SEGMENTS) + 1}( were)? restored from file",
                         restored), restored


def main():
    seconds = float(os.environ.get("HOSTILE_SECONDS", 3600))
    seed = int(os.environ.get("HOSTILE_SEED", time.time_ns() & 0xffffffff))
    harness.become_subreaper()
    print(f"HOSTILE_SECONDS={seconds:g} HOSTILE_SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="slotmem-hostile-") as folder:
        os.chmod(folder, 0o755)
        sieges(seconds, seed, builds(folder))
    print("ended with clean stops, and files that restored")


def builds(folder):
    """[(what, module, environment)], out of reach of whoever builds anew."""
    plain = (harness.our_module(), {"LD_PRELOAD": guard_pages()})
    found = []
    for what, (module, env) in (("sanitized", address_sanitizer()),
                                ("as it ships", plain)):
        copy = os.path.join(folder, f"{len(found)}.so")
        shutil.copy(module, copy)
        found.append((what, copy, env))
    return found


def sieges(seconds, seed, built):
    end = time.monotonic() + seconds
    only = os.environ.get("HOSTILE_ONLY", "").split()
    mpms = [mpm for mpm in harness.MPMS if mpm in only] or harness.MPMS
    built = [one for one in built if one[0] in only] or built
    turn = 0
    while end - time.monotonic() > 2:
        mpm = mpms[turn % len(mpms)]
        what, module, env = built[turn % len(built)]
        siege = Siege(seed + turn, mpm, module, env)
        share = max(10, min(120, seconds / 4))
        counts = siege.run(min(end, time.monotonic() + share))
        done = " ".join(f"{deed}={n}" for deed, n in sorted(counts.items()))
        print(f"{mpm}, {what}: {done}", flush=True)
        turn += 1


if __name__ == "__main__":
    main()
