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
"""What the benchmarks share: servers to measure in, medians, tables."""

import contextlib
import os
import platform
import statistics
import subprocess
import sys
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import httpd  # noqa: E402  (test/httpd.py)

SMALL = os.environ.get("BENCH_SCALE") == "small"
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1" if SMALL else "5"))
MODULES = ("stock", "ours")

# Of a wait for a server with thousands of segments.
httpd.LIMIT = max(httpd.LIMIT, 180)


def module_path(which):
    return httpd.stock_module() if which == "stock" else httpd.our_module()


def bench_module():
    return httpd.build_module(os.path.join(HERE, "mod_slotmem_bench.c"))


def pinned(cpu):
    """A command prefix that keeps a server on one processor."""
    return ["taskset", "-c", str(cpu)]


def processors():
    return sorted(os.sched_getaffinity(0))


# Before everything else that the machine may be doing; a session of processes
# is scheduled as a group, whose priority is another than theirs.
FIRST = ["sh", "-c", "echo -20 2>/dev/null >/proc/self/autogroup;"
         ' exec nice -n -20 "$@"', "sh"]


class BenchServer(httpd.Httpd):
    """A server with the bench module; see mod_slotmem_bench.c."""

    def __init__(self, which, conf, **more):
        more.setdefault("mpm", "prefork")
        more.setdefault("children", 1)
        if os.geteuid() == 0:
            more["wrapper"] = [*FIRST, *more.get("wrapper", ())]
        super().__init__(conf="", slotmem_module=module_path(which),
                         consumer=None, loglevel="warn", **more)
        self.results = os.path.join(self.root, "results")
        self.touch = os.path.join(self.root, "touch")
        self.conf = "\n".join([
            f"LoadModule slotmem_bench_module {bench_module()}",
            f"BenchLog {self.results} {self.touch}",
            conf,
            '<Location "/bench">',
            "    SetHandler slotmem-bench",
            "</Location>"])

    def ask(self, op, **args):
        """The numbers that one operation of the bench module answers."""
        query = urllib.parse.urlencode({"op": op, **args}, safe=":/")
        status, body = self.get("/bench?" + query, limit=300)
        if status != 200:
            raise httpd.HttpdError(f"/bench?{query} answered {status}:\n"
                                   + self.last_words())
        answer = {key: float(value) for key, value in
                  (line.split() for line in body.splitlines())}
        if answer["failed"]:
            raise httpd.HttpdError(f"/bench?{query}: {answer['failed']:.0f} "
                                   "calls failed")
        return answer

    def take_results(self):
        """{(what, name): [(ns, extra), ...]} since the last call."""
        found = {}
        with contextlib.suppress(FileNotFoundError), open(self.results) as log:
            for line in log:
                what, name, ns, extra = line.split()
                found.setdefault((what, name), []).append((int(ns), int(extra)))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.results)
        return found

    def close(self, check=False):
        # The stock module leaves segments behind and logs what it must: that
        # is the tests' subject, not the clock's.
        super().close(check=check)


class Figures:
    """Samples of one row, by module; rounds add to them."""

    def __init__(self):
        self._samples = {}

    def add(self, row, column, value):
        self._samples.setdefault((row, column), []).append(value)

    def rows(self):
        return list(dict.fromkeys(row for row, _ in self._samples))

    def samples(self, row, column):
        return self._samples.get((row, column), [])

    def median(self, row, column):
        samples = self.samples(row, column)
        return statistics.median(samples) if samples else None

    def spread(self, row, column):
        samples = self.samples(row, column)
        return (min(samples), max(samples)) if samples else None


def nanoseconds(value):
    """A duration as people read it: three figures and a unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if value >= size:
            return three(value / size) + " " + unit
    return three(value) + " ns"


def three(value):
    """Three significant figures, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def print_table(head, lines, markdown=False, file=sys.stdout):
    """Columns aligned for a terminal, or as Markdown."""
    if markdown:
        print("| " + " | ".join(head) + " |", file=file)
        print("|" + "|".join(" --- " for _ in head) + "|", file=file)
        for line in lines:
            print("| " + " | ".join(line) + " |", file=file)
        return
    widths = [max(len(line[i]) for line in [head, *lines])
              for i in range(len(head))]
    for line in [head, ["-" * width for width in widths], *lines]:
        print("  ".join(cell.ljust(width) for cell, width
                        in zip(line, widths)).rstrip(), file=file)


def machine():
    """One line on what was measured on."""
    model = "unknown processor"
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    version = subprocess.run([httpd.httpd_program(), "-v"], text=True,
                             stdout=subprocess.PIPE, check=True).stdout
    server = version.splitlines()[0].partition(":")[2].strip()
    return (f"{server}; {len(processors())} x {model}; "
            f"Linux {platform.release()}")
