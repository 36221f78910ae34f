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
"""Weakens each memory order of the core headers by one step, one at a time,
and asks the scenarios of core.cc whether they notice.

    weak.py [--iterations N] [--jobs N] [TEXT]

Prints a row for each atomic operation and fence: where it is, its order,
what it was weakened to, and which scenario caught that.  Ends with 1 when one
was not caught: then it is stronger than its reason, or a scenario is missing.
TEXT: only the places whose row has it.
"""
import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
INCLUDE = os.path.join(TOP, "include")
BUILD = os.path.join(TOP, "build", "relacy", "weak")
HEADERS = {"slotmem_table.h": "-DONLY_TABLE", "slotmem_locks.h": "-DONLY_LOCKS"}

LOAD = {"seq_cst": ["acquire"], "acquire": ["relaxed"]}
STORE = {"seq_cst": ["release"], "release": ["relaxed"]}
CHANGE = {"seq_cst": ["acq_rel"], "acq_rel": ["acquire", "release"],
          "acquire": ["relaxed"], "release": ["relaxed"]}
STEPS = {"load": LOAD, "store": STORE, "fetch_or": CHANGE, "fetch_and": CHANGE,
         "compare_exchange_weak": CHANGE, "compare_exchange_strong": CHANGE,
         "failed": LOAD, "fence": CHANGE}

OPERATION = re.compile(r"\batomic_(?:(\w+)_explicit|thread_(fence))\(")
FUNCTION = re.compile(r"^static inline [^;{]*?\b(slotmem_\w+)\([^;{]*\)\n\{",
                      re.M)
ORDER = re.compile(r"\bmemory_order_(\w+)|\bSLOTMEM_COPY_(?:STORE|LOAD)\b")


def blank_comments(text):
    """The code alone, with every character where it was."""
    return re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text,
                  flags=re.S)


def arguments_end(code, at):
    depth = 1
    while depth:
        depth += {"(": 1, ")": -1}.get(code[at], 0)
        at += 1
    return at


class Place:
    """One order of one operation, by its place in a header."""

    def __init__(self, header, function, operation, number, match):
        self.header, self.function = header, function
        self.operation, self.number = operation, number
        self.order = match[1] or "relaxed"
        self.span = match.span()

    @property
    def weaker(self):
        return STEPS[self.operation].get(self.order, [])

    def name(self):
        nth = f" {self.number}" if self.number > 1 else ""
        return f"{self.function}: {self.operation}{nth}"


def places(header):
    text = open(os.path.join(INCLUDE, header)).read()
    code = blank_comments(text)
    functions = list(FUNCTION.finditer(code))
    seen = {}
    for found in OPERATION.finditer(code):
        function = [f[1] for f in functions if f.start() < found.start()][-1]
        operation = found[1] or found[2]
        end = arguments_end(code, found.end())
        orders = list(ORDER.finditer(code, found.end(), end))
        assert orders, f"{header}: no order at {code[found.start():end]}"
        key = function, operation
        seen[key] = seen.get(key, 0) + 1
        for match, kind in zip(orders, [operation, "failed"]):
            yield Place(header, function.replace("slotmem_", ""), kind,
                        seen[key], match)


def build(folder, header, place=None, to=None):
    """The scenarios of a header, with one order of it changed."""
    os.makedirs(folder)
    for name in os.listdir(INCLUDE):
        shutil.copy(os.path.join(INCLUDE, name), folder)
    if place:
        path = os.path.join(folder, header)
        text = open(path).read()
        begin, end = place.span
        open(path, "w").write(text[:begin] + "memory_order_" + to + text[end:])
    program = os.path.join(folder, "core")
    subprocess.run(
        [os.environ.get("CXX", "g++"), "-std=gnu++17", "-O1", "-w", "-DONLY_RANDOM",
         HEADERS[header], "-I", folder, "-I", HERE, "-o", program,
         os.path.join(HERE, "core.cc")], check=True)
    return program


def catch(header, iterations, place=None, to=None):
    """What the first scenario that failed said; None if none did."""
    name = f"{place.span[0]}-{to}" if place else "as-it-is"
    folder = os.path.join(BUILD, header + "-" + name)
    program = build(folder, header, place, to)
    run = subprocess.run([program, "-q", "-n", str(iterations)], text=True,
                         stdout=subprocess.PIPE)
    shutil.rmtree(folder)
    last = run.stdout.strip().split("\n")[-1]
    if run.returncode not in (0, 1) or (run.returncode == 1
                                        and " FAILED after " not in last):
        sys.exit(f"weak: {name} of {header} ended with {run.returncode}: {last}")
    if run.returncode == 0:
        return None
    scenario, after = last.split(" FAILED after ")
    return f"{scenario.strip()} (schedule {after.split(':')[0]})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--iterations", type=int, default=100000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("text", nargs="?", default="")
    args = parser.parse_args()

    shutil.rmtree(BUILD, ignore_errors=True)
    uncaught = total = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        whole = {header: pool.submit(catch, header, args.iterations)
                 for header in HEADERS}
        rows = []
        for header in HEADERS:
            for place in places(header):
                if args.text not in place.name():
                    continue
                for to in place.weaker or [None]:
                    rows.append((place, to, to and pool.submit(
                        catch, header, args.iterations, place, to)))
        for header, result in whole.items():
            if result.result():
                sys.exit(f"weak: {header} as it is fails: {result.result()}")
        for place, to, result in rows:
            said = "relaxed"
            if to:
                total += 1
                said = result.result() or "NOT CAUGHT"
                uncaught += said == "NOT CAUGHT"
            change = f"{place.order} -> {to}" if to else place.order
            print(f"{place.name():46} {change:20} {said}", flush=True)
    print(f"{len(rows)} rows, {total} weakened, {total - uncaught} caught")
    return uncaught != 0


if __name__ == "__main__":
    sys.exit(main())
