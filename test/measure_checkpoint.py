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
"""What the checkpoint costs; figures, no verdict.

    measure_checkpoint.py [hook] [pace]

hook  the longest that the parent's monitor hook took, with a checkpoint begun
      in it, for 1 GiB of segments and for 2,000 small ones
pace  CPU, flushes and bytes that an hour of checkpoints comes to, when every
      segment changes all the time, for 10, 500 and 5,000 segments of a
      balancer's size: measured for a few checkpoints without pause, and
      stretched by the pause that the module makes after such a one

MEASURE_FACTOR scales the number and size of segments (1).
"""

import os
import re
import signal
import statistics
import sys
import time

import httpd as harness
import shim
from httpd import op_line

FACTOR = float(os.environ.get("MEASURE_FACTOR", "1"))
BEGAN = r"checkpoint process (\d+) began"
ENDED = r"checkpoint process (\d+) ended with status (\d+)"
# A balancer's segment of members: ten, and what mod_proxy keeps of each.
SIZE, NUM = 1000, 12


def server_of(conf, module, **more):
    server = harness.Httpd("Mutex sem\nPidFile ${ROOT}/logs/httpd.pid\n"
                           + conf, slotmem_module=module, children=1,
                           loglevel="warn slotmem_shm:trace1", may_leak=True,
                           **more)
    shim.preload(server, "hurry")
    return server


def ended(server):
    return len(server.log_lines(ENDED))


def wait_ended(server, count):
    harness.wait_for(lambda: ended(server) >= count, f"checkpoint {count}",
                     limit=600, interval=0.02)


# -- how long the parent is held up

def hook(module):
    clock = harness.build_module(
        os.path.join(harness.TOP, "test", "shim", "mod_monitor_clock.c"))
    scenes = [("1 GiB in 16 segments", 16, 65536, int(1024 * FACTOR)),
              ("2,000 segments of 12 KB", int(2000 * FACTOR), SIZE, NUM)]
    print("the longest that the monitor hook took, in ms")
    for what, count, size, num in scenes:
        conf = f"LoadModule monitor_clock_module {clock}\n"
        conf += "\n".join(f"SlotmemTestCreate seg{i} {size} {num} persist"
                          for i in range(count))
        server = server_of(conf, module)
        times = os.path.join(server.root, "times")
        server.env["MONITOR_CLOCK"] = times
        harness.LIMIT = 300.0
        with server:
            wait_ended(server, 5)
            with open(times) as file:
                took = sorted(int(line) / 1000 for line in file)
            begun = len(server.log_lines(BEGAN))
            with_fork = took[-begun:]
            print(f"  {what:26} longest {took[-1]:.2f}, of {begun} that began "
                  f"a checkpoint median {statistics.median(with_fork):.2f}, "
                  f"of all {len(took)} median {statistics.median(took):.3f}")
            server.close(check=False)


# -- what an hour costs

def pause_after(took, written):
    """As the module says: the longest of these, rounded up in steps."""
    wanted = max(50 * took, written / 65536)
    pause = 10.0
    while pause < wanted:
        pause *= 1.25
    return pause


def change_all(server, count, turn):
    """Every segment changes while no checkpoint can begin."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for start in range(0, count, 500):
            server.slotmem().run(*[
                op_line("put", h=f"seg{i}", i=turn % NUM, data=b"%d" % turn)
                for i in range(start, min(start + 500, count))], limit=120)
    finally:
        os.kill(server.pid, signal.SIGCONT)


def cpu_of_children(server):
    with open(f"/proc/{server.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def measure(module, count, turns=5):
    conf = "\n".join(f"SlotmemTestCreate seg{i} {SIZE} {NUM} persist"
                     for i in range(count))
    server = server_of(conf, module)
    faults = shim.Faults(server)
    harness.LIMIT = 300.0
    with server:
        wait_ended(server, 1)
        calls, took, cpu = [], [], 0
        for turn in range(turns):
            # One may be under way; the one after it has seen every change.
            change_all(server, count, turn)
            harness.wait_for(lambda: len(server.log_lines(BEGAN))
                             == ended(server), "a moment without checkpoint")
            change_all(server, count, turn + 100)
            before, cpu_before = ended(server), cpu_of_children(server)
            faults.arm(0, "none", "helper", "fsync,fdatasync")
            harness.wait_for(lambda: len(server.log_lines(BEGAN)) > before,
                             "a checkpoint", interval=0.002)
            began = time.monotonic()
            pid = int(re.findall(BEGAN, server.log())[-1])
            harness.wait_for(
                lambda: (harness.process_stat(pid) or "Z")[0] == "Z",
                "its end", limit=600, interval=0.002)
            took.append(time.monotonic() - began)
            wait_ended(server, before + 1)
            cpu += cpu_of_children(server) - cpu_before
            calls.append(len(faults.disarm()))
        server.close(check=False)
    size = 40 + NUM * (SIZE + 1)
    written = count * size
    seconds = statistics.median(took)
    period = max(pause_after(seconds, written), 10)
    hourly = 3600 / period
    print(f"  {count:5} segments: one takes {seconds * 1000:6.0f} ms, "
          f"{cpu / turns * 1000:5.0f} ms of CPU, {written / 1e6:6.2f} MB, "
          f"{statistics.median(calls):.0f} flushes; then {period:.0f} s of "
          f"pause. An hour: {hourly * cpu / turns:.1f} s of CPU, "
          f"{hourly * statistics.median(calls):.0f} flushes, "
          f"{hourly * written / 1e6:.0f} MB")


def pace(module):
    print(f"segments of {NUM} slots of {SIZE} bytes, all of them changed "
          "before each checkpoint")
    for count in 10, 500, 5000:
        measure(module, max(1, int(count * FACTOR)))


def main():
    harness.become_subreaper()
    module = shim.hurried_module()
    for which in sys.argv[1:] or ("hook", "pace"):
        {"hook": hook, "pace": pace}[which](module)


if __name__ == "__main__":
    main()
