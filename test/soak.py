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
"""Processes that share slots and are killed while they do.

In each round every child of a server hammers a segment: owners grab a slot,
stamp it with an atomic exchange and release it; writers and readers share
slots that must never be seen half written.  Most children get a SIGKILL at a
random instant.  Then the slots that the dead still held are released, and all
must be there again.  As a program, it goes on for SOAK_SECONDS (600) and tells
what it did; test_concurrency.py runs a part of it.
"""

import collections
import os
import random
import sys
import threading
import time

import httpd as harness

SIZES = [1, 63, 64, 65, 4095, 4096, 4097, 262145]
CHILDREN = 16
SPARED = 3          # children that are not killed, and tell what they saw
LIMIT = 60          # seconds after which a call counts as hanging
CONF = "".join(f"SlotmemTestCreate own{n} 8 {n} pregrab\n" for n in SIZES) \
    + "SlotmemTestCreate copied 512 4 0\n" + f"""
<IfModule !mpm_prefork_module>
    # As many as are killed are started again; there is room for more, else
    # httpd complains that it has come near its limit.
    MinSpareThreads {8 * CHILDREN}
    ServerLimit {4 * CHILDREN}
    MaxRequestWorkers {32 * CHILDREN}
</IfModule>
"""


class Trouble(AssertionError):
    """Something that must never happen."""


def jobs_of(number):
    """What child number `number` does: an owner's segment, and a copier."""
    return [(f"own{SIZES[number % len(SIZES)]}", "owner"),
            ("copied", "read" if number % 2 else "write")]


class Round:
    """One round on a running server; adds what happened to `sum`."""

    def __init__(self, server, counts):
        self.server, self.counts = server, counts
        self.killed = set()
        self.wrong = []

    def hammer(self, pid, name, kind):
        try:
            answer = self.server.slotmem(pid).hammer(name, kind, ops=0,
                                                     limit=LIMIT)
        except Exception as why:            # pylint: disable=broad-except
            # Its connection ends with a child that is killed, only then.
            if pid not in self.killed:
                self.wrong.append(f"{kind} on {name} in {pid}: {why!r}")
            return
        for key in ("done", "full", "double_owner", "torn", "timeup"):
            self.counts[key] += answer[key]
        if answer["failed"] and (kind, answer["failed_rv"]) \
                != ("read", "APR_EINCOMPLETE"):
            self.wrong.append(f"{kind} on {name}: {answer['failed_call']} "
                              f"gave {answer['failed_rv']}")

    def run(self):
        pids = self.server.wait_children(CHILDREN)[:CHILDREN]
        threads = [threading.Thread(target=self.hammer, args=(pid, name, kind))
                   for number, pid in enumerate(pids)
                   for name, kind in jobs_of(number)]
        for thread in threads:
            thread.start()
        order = random.sample(pids, len(pids))
        for pid in order[SPARED:]:
            time.sleep(random.uniform(0, 0.03))
            self.killed.add(pid)
            self.server.kill_child(pid)
        for pid in order[:SPARED]:
            self.server.slotmem(pid).stop()
        for thread in threads:
            thread.join(LIMIT)
            if thread.is_alive():
                raise Trouble(f"a call has not ended after {LIMIT} s")
        self.counts["kills"] += len(self.killed)
        self.counts["rounds"] += 1
        if self.wrong:
            raise Trouble("; ".join(self.wrong))
        for name in (f"own{n}" for n in SIZES):
            self.settle(order[0], name)

    def settle(self, pid, name):
        """The dead hold slots: with these released, every slot is free."""
        slotmem = self.server.slotmem(pid)
        held = slotmem.in_use(name)
        if len(held) > len(self.killed):
            raise Trouble(f"{name}: {len(held)} slots held by "
                          f"{len(self.killed)} dead")
        for slot in held:
            slotmem.write(name, slot, bytes(8))
            if not slotmem.release(name, slot).ok:
                raise Trouble(f"{name}: slot {slot} is in use and is not")
        info = slotmem.info(name)
        if info.num_free != info.num_slots:
            raise Trouble(f"{name}: {info.num_free} of {info.num_slots} free")


def every_slot_can_be_grabbed(server):
    slotmem = server.slotmem()
    for n in SIZES:
        ids = slotmem.grab(f"own{n}", n=n).ids
        if ids != list(range(n)):
            raise Trouble(f"own{n}: {len(set(ids))} of {n} slots grabbed")
        if slotmem.grab(f"own{n}").rv != "APR_EINVAL":
            raise Trouble(f"own{n}: one slot more than there are")
        slotmem.release(f"own{n}", 0, n=n)


def run(server, goes_on):
    """Rounds until goes_on(counts) says no; what happened, all together."""
    counts = collections.Counter()
    while goes_on(counts):
        Round(server, counts).run()
        if counts["double_owner"] or counts["torn"]:
            raise Trouble(f"double owners or torn reads: {dict(counts)}")
    every_slot_can_be_grabbed(server)
    return counts


def main():
    end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600"))
    total = collections.Counter()
    mpms = ["prefork", "event", "worker"]
    for turn, mpm in enumerate(mpms):
        until = end - (end - time.monotonic()) * (len(mpms) - 1 - turn) \
            / (len(mpms) - turn)
        with harness.Httpd(conf=CONF, mpm=mpm, children=CHILDREN,
                           slotmem_module=harness.our_module(),
                           loglevel="notice") as server:
            server.allow_log("died while it wrote|AH1039[23]: children are killed")
            try:
                counts = run(server, lambda _: time.monotonic() < until)
            except Trouble as why:
                print(f"{mpm}: {why}")
                return 1
        print(f"{mpm}: " + ", ".join(f"{n:,} {key}" for key, n
                                     in sorted(counts.items())))
        total += counts
    print(f"soak: {total['done']:,} operations by the survivors alone, "
          f"{total['kills']:,} kills, no double owner, no torn read, no slot "
          "lost, no call that hangs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
