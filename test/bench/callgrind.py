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
"""Instructions that each hot call takes, counted by valgrind in a real httpd.

A clock on a busy machine does not show that a build became 10 % slower; a count
of instructions does, and is the same each time.  The counts that are accepted
stand in instructions.txt beside this program.

  callgrind.py            prints the counts of the stock module and ours
  callgrind.py --check    fails if a call takes over 10 % more than it says there
  callgrind.py --write    writes ours there

get and put copy with the C library's memcpy, whose version depends on the
processor: their counts may differ by a few instructions between machines.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys

from common import HERE, MODULES, BenchServer, httpd, print_table

TABLE = os.path.join(HERE, "instructions.txt")
ALLOWED = 1.10

SEGMENTS = """\
BenchSegment s64 1 8 64 -
BenchSegment s4096 1 8 4096 -
BenchSegment s65536 1 8 65536 -
BenchSegment gated 1 8 4096 g
BenchSegment small 1 64 1024 -
BenchSegment many 100 64 16 -
"""

# name, operation, repetitions, what is in use, further arguments
CALLS = [
    ("grab + release, 64 slots, empty", "pair", 1000, "empty", {"seg": "s64"}),
    ("grab + release, 4,096 slots, full but one", "pair", 100, "brim",
     {"seg": "s4096"}),
    ("grab + release, 65,536 slots, half full", "pair", 20, "half",
     {"seg": "s65536"}),
    ("grab, 64 of 64 slots", "grab", 64, "empty", {"seg": "s64"}),
    ("release, 64 of 64 slots", "release", 64, "full", {"seg": "s64"}),
    ("grab refused, 4,096 slots, full", "full", 100, "full",
     {"seg": "s4096"}),
    ("put 64 bytes", "put", 1000, None, {"seg": "small"}),
    ("get 64 bytes", "get", 1000, None, {"seg": "small"}),
    ("dptr", "dptr", 1000, None, {"seg": "small"}),
    ("num_free_slots, 65,536 slots", "free", 10, "half", {"seg": "s65536"}),
    ("doall, 4,096 slots, 1 % in use", "doall", 10, "sparse",
     {"seg": "gated"}),
    ("doall, 4,096 slots, all in use", "doall", 10, "full", {"seg": "gated"}),
    ("attach, 100 segments", "attach", 1000, None,
     {"prefix": "many", "count": 100}),
]


def instructions(folder, mark):
    """The total of the dump that bears this mark."""
    for name in os.listdir(folder):
        if not re.fullmatch(r"callgrind\.out\.\d+\.\d+", name):
            continue
        with open(os.path.join(folder, name)) as dump:
            text = dump.read()
        if re.search(rf"^desc: Trigger: .*\b{mark}$", text, re.M):
            return int(re.search(r"^(?:totals|summary): (\d+)", text, re.M)[1])
    raise httpd.HttpdError(f"callgrind dumped nothing for {mark}")


def count(which):
    """{call: instructions} of one module."""
    counts = {}
    server = BenchServer(which, SEGMENTS)
    # The one folder of the server that its children may write to.
    server.wrapper = ["valgrind", "-q", "--tool=callgrind",
                      "--callgrind-out-file=" + os.path.join(
                          server.ctl_dir, "callgrind.out.%p")]
    with server:
        def total(of, n, **args):
            mark = f"mark{len(counts)}x{of}"
            server.ask("instructions", of=of, n=n, mark=mark, **args)
            # The child that served it has written the dump by now.
            return instructions(server.ctl_dir, mark)

        for name, op, n, how, args in CALLS:
            if how:
                server.ask("fill", seg=args["seg"], how=how)
            spent = total(op, n, **args) - total("nothing", n)
            counts[name] = spent / n
    return counts


def accepted():
    """{call: instructions} of ours as instructions.txt has it."""
    counts = {}
    with open(TABLE) as table:
        for line in table:
            found = re.match(r"(\S.*?)\s{2,}(\S+)\s{2,}(\S+)$", line.rstrip())
            if found and found[1] != "call" and not line.startswith(("#", "-")):
                counts[found[1]] = float(found[3].replace(",", ""))
    return counts


def compiler():
    return subprocess.run([httpd.apxs_query("CC") or "cc", "--version"],
                          text=True, stdout=subprocess.PIPE,
                          check=True).stdout.splitlines()[0]


def show(counts, file):
    lines = [[name] + [f"{counts[which][name]:,.1f}" for which in MODULES]
             for name, *_ in CALLS]
    print_table(["call", *MODULES], lines, file=file)


def check(ours):
    """The calls that take more than they are allowed."""
    table = accepted()
    grown = []
    for name, now in ours.items():
        if name not in table:
            grown.append(f"{name}: not in {TABLE}; run callgrind.py --write")
        elif now > table[name] * ALLOWED:
            grown.append(f"{name}: {now:,.1f} instructions, "
                         f"{table[name]:,.1f} are accepted")
    return grown


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        print("callgrind.py: valgrind is not installed", file=sys.stderr)
        return 2
    if options.check:
        grown = check(count("ours"))
        print("\n".join(grown) or "No call takes more instructions than it may.")
        return 1 if grown else 0
    counts = {which: count(which) for which in MODULES}
    show(counts, sys.stdout)
    if options.write:
        with open(TABLE, "w") as table:
            print("# Instructions a call, counted by test/bench/callgrind.py,"
                  f"\n# which checks the last column.  Built by {compiler()}."
                  "\n", file=table)
            show(counts, table)
        print(f"written: {TABLE}")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
