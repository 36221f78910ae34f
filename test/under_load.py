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
"""`make test` on a machine that has other things to do: what fails, how often?

LOAD_ROUNDS rounds (10).  In each, two runs of `make test` go on side by side
beside two busy loops, and both must pass.  PYTEST_ARGS goes to both.  Prints
after each round, and in the end, which tests failed how often, and why; the
whole output of each run is under build/under-load.  The exit status says
whether all runs passed.
"""

import collections
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(TOP, "build", "under-load")
ROUNDS = int(os.environ.get("LOAD_ROUNDS", "10"))
LOOPS = 2
SIDES = ("one", "other")


def spin():
    while True:
        pass


@contextlib.contextmanager
def busy_loops():
    loops = [multiprocessing.Process(target=spin, daemon=True)
             for _ in range(LOOPS)]
    for loop in loops:
        loop.start()
    try:
        yield
        dead = [loop for loop in loops if not loop.is_alive()]
        if dead:
            sys.exit("a busy loop has ended: the machine was not busy")
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def output_of(turn, side):
    return os.path.join(FOLDER, f"{turn}-{side}.txt")


def start(turn, side):
    with open(output_of(turn, side), "w") as output:
        return subprocess.Popen(["make", "-C", TOP, "test"],
                                stdin=subprocess.DEVNULL, stdout=output,
                                stderr=subprocess.STDOUT,
                                start_new_session=True)


def failures(path):
    """{test: the first line of why}, as pytest's summary has them."""
    with open(path, errors="replace") as file:
        text = file.read()
    return {found[1]: found[2] or "" for found in re.finditer(
        r"(?m)^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", text)}


def last_line(path):
    with open(path, errors="replace") as file:
        lines = file.read().splitlines()
    return next((line for line in reversed(lines)
                 if re.search(r"\d+ (passed|failed|error)", line)),
                lines[-1] if lines else "no output")


def play(turn, failed):
    """One round; whether both runs passed."""
    began = time.monotonic()
    runs = {side: start(turn, side) for side in SIDES}
    try:
        good = all([run.wait() == 0 for run in runs.values()])
    except BaseException:
        for run in runs.values():
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGINT)
                run.wait()
        raise
    for side in SIDES:
        path = output_of(turn, side)
        print(f"round {turn}, {side}: {last_line(path)}", flush=True)
        found = failures(path)
        if runs[side].returncode and not found:
            found = {"(the run itself)": last_line(path)}
        for test, why in found.items():
            failed[test].append((f"{turn}-{side}", why))
            print(f"    {test}: {why}", flush=True)
    print(f"    {time.monotonic() - began:.0f} s", flush=True)
    return good


def main():
    os.makedirs(FOLDER, exist_ok=True)
    failed = collections.defaultdict(list)
    good = 0
    # Once before, else the two would build the same files at the same time.
    subprocess.run(["make", "-C", TOP, "all"], check=True,
                   stdout=subprocess.DEVNULL)
    with busy_loops():
        for turn in range(1, ROUNDS + 1):
            good += play(turn, failed)
    print(f"\n{good} of {ROUNDS} rounds passed ({2 * ROUNDS} runs, "
          f"{LOOPS} busy loops beside them)")
    for test, times in sorted(failed.items(), key=lambda item: -len(item[1])):
        print(f"{len(times):3} times  {test}  ({times[0][0]}: {times[0][1]})")
    return 0 if good == ROUNDS else 1


if __name__ == "__main__":
    sys.exit(main())
