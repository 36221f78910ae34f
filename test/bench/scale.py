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
"""Start, graceful restart and stop of an httpd with very many balancers.

Each balancer is one persisted segment.  For each number of them, and for the
stock module and ours in turn: how long the server takes to start with no
stored file and with all of them, to restart gracefully and to stop; and how
much of the parent's time was spent in the module or in what it called.  And
for as many small persisted segments what one costs at the first start: time of
its create, and private memory of the parent.

The share is sampled by perf (on the clock, so no hardware counter is needed):
a sample is the module's if any frame of its stack is.  What the module waits
for without using the processor, as a disk, is in the time but not in the share.

  BENCH_ROUNDS=N      rounds (3)
  BENCH_SCALE=small   200 balancers, one round
  SCALE_BALANCERS     "500 2000 5000"
  SCALE_JOURNAL=1     everything on an ext4 with a journal, made for it in a
                      namespace of its own (root): one without is slow where
                      many files were deleted a moment ago
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

from common import (FIRST, MODULES, SMALL, BenchServer, Figures, httpd, machine,
                    module_path, nanoseconds, print_table)

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1" if SMALL else "3"))
COUNTS = [int(n) for n in os.environ.get(
    "SCALE_BALANCERS", "200" if SMALL else "500 2000 5000").split()]


def configuration(count):
    """So many balancers of two members each; nobody answers at those."""
    lines = ["BalancerPersist On"]
    for n in range(count):
        lines += [f'<Proxy "balancer://b{n}">',
                  '    BalancerMember "http://127.0.0.1:9"',
                  '    BalancerMember "http://127.0.0.2:9"',
                  "</Proxy>",
                  f'ProxyPass "/b{n}/" "balancer://b{n}/"']
    return "\n".join(lines)


class Sampler:
    """perf on one process, for the length of a with block."""

    HERTZ = 199

    def __init__(self, folder, pid):
        self.data = os.path.join(folder, "perf.data")
        self.pid, self.process = pid, None

    def __enter__(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.data)
        if shutil.which("perf"):
            # Not its children: those serve.
            self.process = subprocess.Popen(
                ["perf", "record", "-q", "--no-inherit", "-e", "cpu-clock",
                 "-F", str(self.HERTZ), "--call-graph", "dwarf,8192",
                 "-p", str(self.pid), "-o", self.data],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.5)     # it gives no sign when it has begun
        return self

    def __exit__(self, *_):
        if self.process:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def times(self, module):
        """Seconds on the processor: all, the module's.  None: no perf."""
        if not self.process or not os.path.exists(self.data):
            return None
        text = subprocess.run(
            ["perf", "script", "--no-inline", "-i", self.data,
             "-F", "pid,ip,sym,dso"], text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        samples = [s for s in re.split(r"\n\s*\n", text) if s.strip()]
        of_module = sum(1 for s in samples if f"({module})" in s)
        return len(samples) / self.HERTZ, of_module / self.HERTZ


class Held:
    """Starts a server whose process waits, before it becomes httpd, for go()."""

    def __init__(self, server):
        self.gate = os.path.join(server.root, "gate")
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self.gate)
        server.wrapper = [*FIRST, "sh", "-c", f'read _ <{self.gate}; exec "$@"',
                          "sh"]
        self.errors = []
        self.thread = threading.Thread(target=self._start, args=(server,))
        self.thread.start()
        httpd.wait_for(lambda: server.pid or self.errors, "the server's process")

    def _start(self, server):
        try:
            server.start()
        except Exception as error:      # told in go()
            self.errors.append(error)

    def go(self):
        with open(self.gate, "w") as gate:
            gate.write("\n")
        self.thread.join()
        if self.errors:
            raise self.errors[0]


def measure(which, count, figures):
    module = os.path.realpath(module_path(which))
    server = httpd.Httpd(
        configuration(count), mpm="event", slotmem_module=module,
        consumer=None, children=1, loglevel="error",
        modules=["proxy", "proxy_http", "proxy_balancer",
                 "lbmethod_byrequests"])

    def step(name, action):
        with Sampler(server.root, server.pid) as sampler:
            start = time.monotonic()
            action()
            took = time.monotonic() - start
        row = f"{count:,} balancers: {name}"
        figures.add(row, which, took * 1e9)
        times = sampler.times(module)
        if times:
            figures.add(row, which + " parent", times[0] * 1e9)
            figures.add(row, which + " module", times[1] * 1e9)

    try:
        step("first start", Held(server).go)
        step("graceful restart", server.graceful)
        step("stop", server.stop)
        step("start on stored files", Held(server).go)
        step("stop, without a request", server.stop)
    finally:
        server.close(check=False)


def measure_small(which, count, figures):
    with BenchServer(which, f"BenchSegment many {count} 64 16 p") as server:
        made = server.take_results()
    for what, title in (("create", "create of a small segment, each of"),
                        ("private", "private memory for each of")):
        figures.add(f"{title} {count:,}", which,
                    made[what, "many"][0][0] / count)


def on_a_journal():
    """Goes on where /tmp, and the servers with it, is such a file system."""
    image = os.path.join(httpd.TOP, "build", "bench", "journal")
    os.makedirs(os.path.dirname(image), exist_ok=True)
    with open(image, "w") as file:
        file.truncate(4 << 30)
    del os.environ["SCALE_JOURNAL"]
    os.execvp("unshare", [
        "unshare", "--mount", "--", "sh", "-ec",
        'mkfs.ext4 -q "$0"; mount -o loop "$0" /mnt; chmod 1777 /mnt; '
        'rm "$0"; mount --bind /mnt /tmp; exec "$@"',
        image, sys.executable, "-B", *sys.argv])


def main():
    if os.environ.get("SCALE_JOURNAL"):
        on_a_journal()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    figures = Figures()
    for number in range(ROUNDS):
        order = MODULES if number % 2 == 0 else tuple(reversed(MODULES))
        for count in COUNTS:
            for which in order:
                print(f"round {number + 1} of {ROUNDS}: {count} balancers, "
                      f"{which}      ", end="\r", file=sys.stderr, flush=True)
                measure(which, count, figures)
                measure_small(which, count, figures)
    print(" " * 60, end="\r", file=sys.stderr)
    print(f"{machine()}; {ROUNDS} rounds; medians\n")
    lines = []
    for row in figures.rows():
        line = [row]
        for which in MODULES:
            for column in ("", " parent", " module"):
                value = figures.median(row, which + column)
                line.append("-" if value is None else f"{value:,.0f} bytes"
                            if "memory" in row else nanoseconds(value))
        lines.append(line)
    print_table(["", "stock: time", "parent's processor", "in the module",
                 "ours: time", "parent's processor", "in the module"],
                lines, options.markdown)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
