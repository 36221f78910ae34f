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
"""Times the slotmem provider in a real httpd, the stock module's and ours.

Both are measured in turn in each round (stock, ours, ours, stock, ...), so
that whatever the machine does meanwhile falls on both.  A figure is the median
of the rounds; in brackets are the smallest and the largest.  Beside the work
stands its limit, measured in turn with it in the same process.

  BENCH_ROUNDS=N      rounds (5)
  BENCH_SCALE=small   fewer and smaller rows, one round: a minute altogether
  SLOTMEM_MODULE      the module to measure (.libs/mod_slotmem_shm.so)
  SLOTMEM_STOCK       the one to compare with (httpd's own)
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading

from common import (MODULES, ROUNDS, SMALL, BenchServer, Figures, httpd,
                    machine, module_path, nanoseconds, pinned, print_table,
                    processors, three)

MS = 20 if SMALL else 60            # how long one timing lasts
MIB = 1024 * 1024
SIZES = [16, 64, 4096, 65536] + ([] if SMALL else [1048576])
HUGE = 0 if SMALL else 16 * MIB     # ours only
LARGE = SIZES[-1]
ATTACH = [500] if SMALL else [500, 4000]
CREATE = (32 if SMALL else 256) * MIB
STORE = (8 if SMALL else 64) * MIB
MANY_STORED = 100 if SMALL else 500
PROCESSES = [1, 2, 4] if SMALL else [1, 2, 3, 4, 5, 6, 7, 8]
RACE_SLOTS = [64, 5000]
RACE_MS = 100 if SMALL else 300
WRK_SECONDS = 1 if SMALL else 4

FILLS = {"empty": "empty", "half": "half full", "brim": "full but one"}


# ---------------------------------------------------------------------------
# One round of one module: each function adds samples
# ---------------------------------------------------------------------------

def time_rows(server, which, figures, rows):
    """rows: (title, operation, its arguments)."""
    for title, op, args in rows:
        answer = server.ask(op, ms=MS, **args)
        figures.add(title, which, answer["ns"])
        if which == "ours" and answer["limit"]:
            figures.add(title, "limit", answer["limit"])
            figures.add(title, "ratio", answer["ratio"])


def hot_path(which, figures):
    """grab, release, num_free_slots, doall, dptr, get and put in one child."""
    sizes = SIZES + ([HUGE] if HUGE and which == "ours" else [])
    conf = [f"BenchSegment slots{n} 1 8 {n} -" for n in sizes]
    conf += [f"BenchSegment gated 1 8 {LARGE} g",
             "BenchSegment small 1 64 1024 -",
             "BenchSegment big 1 16384 64 -"]
    with BenchServer(which, "\n".join(conf),
                     wrapper=pinned(processors()[-1])) as server:
        for n in sizes:
            seg = f"slots{n}"
            for how, words in FILLS.items():
                server.ask("fill", seg=seg, how=how)
                time_rows(server, which, figures, [
                    (f"grab + release, {n:,} slots, {words}", "pair",
                     {"seg": seg, "limit": "rmw"})])
        figures_free(server, which, figures)
        time_rows(server, which, figures, [
            ("put 64 bytes", "put", {"seg": "small", "limit": "rmw"}),
            ("get 64 bytes", "get", {"seg": "small", "limit": "rmw"}),
            ("put 16 KiB", "put",
             {"seg": "big", "len": 16384, "limit": "memcpy:16384"}),
            ("get 16 KiB", "get",
             {"seg": "big", "len": 16384, "limit": "memcpy:16384"}),
            ("dptr", "dptr", {"seg": "small", "limit": "nothing"})])
        made = server.take_results()
        mapped = made["mapped", f"slots{LARGE}"][0][0]
        figures.add("memory beside each slot", which, mapped / LARGE - 8)


def figures_free(server, which, figures):
    n = f"{LARGE:,}"
    server.ask("fill", seg=f"slots{LARGE}", how="half")
    time_rows(server, which, figures, [
        (f"num_free_slots, {n} slots", "free", {"seg": f"slots{LARGE}"})])
    server.ask("fill", seg="gated", how="sparse")
    time_rows(server, which, figures, [
        (f"doall, {n} slots, 1 % in use", "doall", {"seg": "gated"})])
    server.ask("fill", seg="gated", how="full")
    time_rows(server, which, figures, [
        (f"doall, {n} slots, all in use", "doall", {"seg": "gated"})])


def attach(which, figures):
    for count in ATTACH:
        with BenchServer(which, f"BenchSegment many {count} 64 16 -",
                         wrapper=pinned(processors()[-1])) as server:
            time_rows(server, which, figures, [
                (f"attach, {count:,} segments in the process", "attach",
                 {"prefix": "many", "count": count})])
            made = server.take_results()
            for what, title in (
                    ("create", f"create, each of {count:,} of 16 x 64 bytes"),
                    ("private", f"private memory for each of {count:,} segments"),
                    ("mapped", f"mapped for each of {count:,} segments")):
                figures.add(title, which, made[what, "many"][0][0] / count)


def create(which, figures):
    limit = f"BenchLimit populate 1 {CREATE}\n" * 2
    with BenchServer(which, f"BenchSegment vast 1 {CREATE // 1024} 1024 -\n"
                     + limit, wrapper=pinned(processors()[-1])) as server:
        made = server.take_results()
        title = f"create, {CREATE // MIB} MiB"
        ns = made["create", "vast"][0][0]
        figures.add(title, which, ns)
        if which == "ours":
            # The first one also pays for what the machine has to fetch.
            limit = min(ns for ns, _ in made["limit", "populate"])
            figures.add(title, "limit", limit)
            figures.add(title, "ratio", ns / limit)


def store(which, figures):
    for count, size in ((1, STORE), (MANY_STORED, 16 * 1024)):
        store_segments(which, figures, count, size)


def store_segments(which, figures, count, size):
    """Stored at a restart and restored; then once more, nothing changed."""
    label = (f"{size // MIB} MiB" if count == 1
             else f"{count} segments of {size // 1024} KiB")
    conf = (f"BenchSegment kept {count} {size // 64} 64 p\n"
            f"BenchLimit store {count} {size}")
    with BenchServer(which, conf,
                     wrapper=pinned(processors()[-1])) as server:
        os.close(os.open(server.touch, os.O_CREAT | os.O_WRONLY))
        server.take_results()
        server.restart()        # stores what was fresh
        server.take_results()
        server.restart()        # stores over what is there
        changed = server.take_results()
        os.unlink(server.touch)
        server.restart()        # stores the last change
        server.take_results()
        server.restart()        # nothing has changed
        unchanged = server.take_results()
        server.stop()
    md5, write, flush, restore = (
        changed["limit", what][0][0] for what in
        ("md5", "write", "write+flush", "restore"))
    stored = changed["clear", "-"][0][0]
    restored = changed["create", "kept"][0][0]
    for title, value, limit in (
            (f"store, {label}", stored, md5 + flush),
            (f"restore, {label}", restored, restore),
            (f"store, {label}, nothing changed",
             unchanged["clear", "-"][0][0], md5)):
        figures.add(title, which, value)
        if which == "ours":
            figures.add(title, "limit", limit)
            figures.add(title, "ratio", value / limit)
    if which == "ours":
        figures.add(f"store, {label}", "limit without flush", md5 + write)


def race_once(server, number, procs, check, **seg):
    """N children grab and release on one segment; what they counted."""
    answers = []

    def one():
        answers.append(server.ask("race", race=number, procs=procs, ms=RACE_MS,
                                  check=check, **seg))

    threads = [threading.Thread(target=one) for _ in range(procs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) != procs or any(a["status"] for a in answers):
        raise httpd.HttpdError(f"{procs} processes did not come together")
    if len({a["pid"] for a in answers}) != procs:
        raise httpd.HttpdError("one process took part twice")
    return answers


def race(which, figures):
    conf = "\n".join(f"BenchSegment race{n} 1 8 {n} g\n"
                     f"BenchSegment check{n} 1 8 {n} g" for n in RACE_SLOTS)
    number = 0
    with BenchServer(which, conf, children=max(PROCESSES) + 1) as server:
        for slots in RACE_SLOTS:
            for procs in PROCESSES:
                title = race_row(procs, slots)
                number += 1
                answers = race_once(server, number, procs, 0,
                                    seg=f"race{slots}")
                figures.add(title, which + " bare", rate(answers))
                number += 1
                answers = race_once(server, number, procs, 1,
                                    seg=f"check{slots}")
                figures.add(title, which, rate(answers))
                if which == "ours":
                    number += 1
                    figures.add(title, "limit",
                                rate(race_once(server, number, procs, 1)))
                count = server.ask("count", seg=f"check{slots}")
                figures.add(title, which + " doubles",
                            sum(a["doubles"] for a in answers))
                figures.add(title, which + " grabs",
                            sum(a["grabs"] for a in answers))
                figures.add(title, which + " count error",
                            wrapped(count["said_free"] - count["slots"]))


def race_row(procs, slots):
    return f"{procs} process{'es' if procs > 1 else ''}, {slots:,} slots"


def rate(answers):
    """Operations a second: a grab and a release are two."""
    return (sum(2 * a["grabs"] for a in answers)
            / max(a["ns"] for a in answers) * 1e9)


def wrapped(difference):
    """How far a 32-bit counter is off, whichever way it went."""
    difference = int(difference) % 2**32
    return min(difference, 2**32 - difference)


# With threads to spare, so that no connection is closed to serve another.
KEPT_ALIVE = """
ThreadLimit 64
ThreadsPerChild 64
MaxRequestWorkers 128
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 30
"""

BALANCER = """
BalancerPersist On
ProxyPass "/" "balancer://cluster/"
<Proxy "balancer://cluster">
    BalancerMember "http://127.0.0.1:{}"
    BalancerMember "http://127.0.0.1:{}"
    ProxySet growth=5
</Proxy>
"""


def wrk(url, server):
    """Requests a second; a run with errors says nothing and is done again.

    (httpd answers 502 if a backend closes a kept-alive connection just when it
    is to be used again; it happens once in some hundred thousand requests.)
    """
    for _ in range(5):
        done = subprocess.run(["wrk", "-t1", "-c8", f"-d{WRK_SECONDS}s", url],
                              text=True, stdout=subprocess.PIPE,
                              check=True).stdout
        if "Non-2xx" not in done and "Socket errors" not in done:
            return float(re.search(r"Requests/sec:\s*([\d.]+)", done)[1])
    raise httpd.HttpdError("wrk got errors:\n" + done + server.last_words())


def proxied(which, figures):
    """Requests a second through a persisted balancer, under wrk."""
    if not shutil.which("wrk"):
        return
    with contextlib.ExitStack() as stack:
        backend = httpd.Httpd(KEPT_ALIVE, mpm="event", consumer=None, ports=2,
                              loglevel="error")
        stack.callback(backend.close, check=False)
        with open(os.path.join(backend.root, "htdocs", "page"), "w") as page:
            page.write("x" * 1000)
        backend.start()
        front = httpd.Httpd(
            KEPT_ALIVE + BALANCER.format(*backend.ports), mpm="event",
            slotmem_module=module_path(which), consumer=None, loglevel="error",
            modules=["proxy", "proxy_http", "proxy_balancer",
                     "lbmethod_byrequests"])
        stack.callback(front.close, check=False)
        front.start()
        rate = wrk(f"http://127.0.0.1:{front.port}/page", front)
    figures.add("requests through a balancer, a second", which, rate)


PARTS = {"hot": hot_path, "attach": attach, "create": create, "store": store,
         "race": race, "wrk": proxied}


# ---------------------------------------------------------------------------
# What design and README promise of each row
# ---------------------------------------------------------------------------

def at_most(times, of, allowance=1.0):
    """Ours is at most so many times the limit's or stock's figure."""
    def judge(figures, row):
        if of == "limit":
            value, base = figures.median(row, "ratio"), 1
        else:
            value, base = figures.median(row, "ours"), figures.median(row, of)
        return value is not None and base and value <= times * base * allowance
    return judge


def below(ns):
    return lambda figures, row: figures.median(row, "ours") < ns


def fast_and_right(figures, row):
    """Stock's rate, or what a bare loop on one word reaches; and right.

    Rates of processes that fight for one cache line scatter by a fifth.
    """
    least = min(figures.median(row, "stock"), figures.median(row, "limit"))
    return (figures.median(row, "ours") >= 0.8 * least
            and not any(figures.samples(row, "ours doubles"))
            and not any(figures.samples(row, "ours count error")))


def same_at_500_and_4000(figures, row):
    """But for a few cache misses, which 4,000 of anything cost."""
    least = figures.median("attach, 500 segments in the process", "ours")
    return figures.median(row, "ours") <= least + 200


def both(*judges):
    return lambda figures, row: all(judge(figures, row) for judge in judges)


# (pattern of the title, the limit's name, the promise in words, the judge).
# Where ours must be stock's, clocks differ by a few per cent from run to run.
PROMISES = [
    (r"grab \+ release", "atomic read-modify-write", "3 x limit",
     at_most(3, "limit")),
    (r"num_free_slots", None, "stock / 5", at_most(1 / 5, "stock")),
    (r"doall.*1 %", None, "stock / 10", at_most(1 / 10, "stock")),
    (r"doall.*all in use", None, "stock", at_most(1, "stock", 1.05)),
    (r"(put|get) 64", "atomic read-modify-write", "3 x limit",
     at_most(3, "limit")),
    (r"(put|get) 16 KiB", "memcpy of 16 KiB", "1.3 x limit",
     at_most(1.3, "limit")),
    (r"dptr", "a call that does nothing", "stock", at_most(1, "stock", 1.05)),
    (r"attach, 500", None, "3 µs", below(3000)),
    (r"attach, 4", None, "3 µs, as with 500",
     both(below(3000), same_at_500_and_4000)),
    (r"create, \d+ MiB", "the kernel's populating", "1.3 x limit, stock / 10",
     both(at_most(1.3, "limit"), at_most(1 / 10, "stock"))),
    (r"store.*nothing changed", "MD5", "no write", None),
    (r"^store", "MD5, write, flush, rename", "1.2 x limit",
     at_most(1.2, "limit")),
    (r"^restore", "the memory, read, MD5", "1.2 x limit", at_most(1.2, "limit")),
    (r"^[2-9] processes, ", "one word, compare-and-swap",
     "stock's rate or the limit, and right", fast_and_right),
    (r"requests through", None, "stock",
     lambda figures, row: figures.median(row, "ours")
     >= 0.95 * figures.median(row, "stock")),
]


def is_race(row):
    return re.match(r"\d+ process", row)


def promise(row):
    for pattern, limit, words, judge in PROMISES:
        if re.search(pattern, row):
            return limit, words, judge
    return None, None, None


# ---------------------------------------------------------------------------
# Printing
# ---------------------------------------------------------------------------

def unit_of(row):
    if is_race(row):
        return lambda value: three(value / 1e6) + " M op/s"
    if row.startswith("requests"):
        return lambda value: three(value) + "/s"
    if row.startswith(("memory", "private", "mapped")):
        return lambda value: three(value) + " B"
    return nanoseconds


def cell(figures, row, column, show, spread=True):
    median = figures.median(row, column)
    if median is None:
        return ""
    text = show(median)
    if spread and len(figures.samples(row, column)) > 1:
        low, high = figures.spread(row, column)
        text += f" ({show(low).split()[0]}–{show(high).split()[0]})"
    return text


def verdict(figures, row):
    _, _, judge = promise(row)
    if judge is None or figures.median(row, "ours") is None:
        return ""
    if figures.median(row, "stock") is None and "grab" not in row:
        return ""
    return "yes" if judge(figures, row) else "NO"


def table(figures):
    """Rows that are times, or rates of requests."""
    lines = []
    for row in figures.rows():
        if is_race(row) or row.startswith(("memory", "private", "mapped")):
            continue
        show = unit_of(row)
        limit, words, _ = promise(row)
        limit_text = cell(figures, row, "limit", show, spread=False)
        ratio = figures.median(row, "ratio")
        lines.append([row, cell(figures, row, "stock", show),
                      cell(figures, row, "ours", show),
                      f"{limit_text} {limit}" if limit_text else "",
                      f"{ratio:.2f}" if ratio and limit_text else "",
                      words or "", verdict(figures, row)])
    return (["work", "stock", "ours", "limit", "ours / limit",
             "ours must be at most", "met"], lines)


def race_table(figures):
    """Rates of processes that mark each slot as theirs while they have it."""
    lines = []
    for row in figures.rows():
        if not is_race(row):
            continue
        show = unit_of(row)
        line = [row]
        for which in MODULES:
            doubles, grabs = (sum(figures.samples(row, which + column))
                              for column in (" doubles", " grabs"))
            errors = figures.samples(row, which + " count error")
            line += [cell(figures, row, which, show),
                     cell(figures, row, which + " bare", show, spread=False),
                     f"{doubles:,.0f} of {grabs:,.0f}",
                     f"{max(errors, default=0):,.0f}"]
        lines.append(line + [cell(figures, row, "limit", show),
                             verdict(figures, row)])
    return (["on one segment", "stock, slots marked", "not marked",
             "owned twice", "count off by", "ours, slots marked", "not marked",
             "owned twice", "count off by", "compare-and-swap on one word",
             "met"], lines)


def memory_table(figures):
    lines = [[row, cell(figures, row, "stock", unit_of(row), False),
              cell(figures, row, "ours", unit_of(row), False)]
             for row in figures.rows()
             if row.startswith(("memory", "private", "mapped"))]
    return ["memory", "stock", "ours"], lines


def print_all(figures, markdown):
    print(f"{machine()}; {ROUNDS} rounds; median (smallest–largest)\n")
    for head, lines in (table(figures), race_table(figures),
                        memory_table(figures)):
        if lines:
            print_table(head, lines, markdown)
            print()


def missed(figures):
    return [row for row in figures.rows() if verdict(figures, row) == "NO"]


def plot(figures, path):
    """Rate by number of processes, one panel for each size of segment."""
    import matplotlib
    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "mod_slotmem_shm"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(RACE_SLOTS), figsize=(9, 3.6),
                                     sharey=True, squeeze=False)
    for panel, slots in zip(panels[0], RACE_SLOTS):
        for which, style in (("stock", "s--"), ("limit", "x:"),
                             ("ours", "o-")):
            rows = [race_row(procs, slots) for procs in PROCESSES]
            rate = [figures.median(row, which) / 1e6 for row in rows]
            low, high = zip(*(figures.spread(row, which) for row in rows))
            line, = panel.plot(PROCESSES, rate, style, label={
                "stock": "stock (slots owned twice)",
                "limit": "bare compare-and-swap on one word",
                "ours": "this module"}[which])
            panel.fill_between(PROCESSES, [v / 1e6 for v in low],
                               [v / 1e6 for v in high], alpha=0.15,
                               color=line.get_color(), linewidth=0)
        panel.set_title(f"one segment of {slots:,} slots")
        panel.set_xlabel(f"processes, on {len(processors())} processors")
        panel.set_xticks(PROCESSES)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("million grabs and releases a second,\neach owner marking its slot")
    panels[0][0].legend(loc="upper right")
    figure.tight_layout()
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--markdown", action="store_true",
                        help="tables as Markdown")
    parser.add_argument("--only", metavar="PART", action="append",
                        choices=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--plot", metavar="FILE.svg",
                        help="also draw rate by number of processes")
    parser.add_argument("--json", metavar="FILE", help="also keep all samples")
    parser.add_argument("--strict", action="store_true",
                        help="exit 1 if a row is not as promised")
    options = parser.parse_args()
    parts = options.only or list(PARTS)
    if options.plot and "race" not in parts:
        parts.append("race")

    figures = Figures()
    for number in range(ROUNDS):
        order = MODULES if number % 2 == 0 else tuple(reversed(MODULES))
        for part in parts:
            for which in order:
                print(f"round {number + 1} of {ROUNDS}: {part}, {which}   ",
                      end="\r", file=sys.stderr, flush=True)
                PARTS[part](which, figures)
    print(" " * 60, end="\r", file=sys.stderr)

    print_all(figures, options.markdown)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([[row, column, samples] for (row, column), samples
                       in figures._samples.items()], file, indent=1)
    if options.plot:
        plot(figures, options.plot)
        print(f"drawn: {options.plot}")
    late = missed(figures)
    if late:
        print("Not as promised: " + "; ".join(late))
    return 1 if late and options.strict else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
