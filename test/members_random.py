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
"""Random edits of a balancer's members, between random restarts and kills.

A seed is one balancer.  Ten of them share a server, and so its restarts: in
each round every configuration is edited, the server is restarted or killed in
one of several ways, balancer-manager and the traffic are compared with what
members_model.Model expects, and then members are changed and added.  The same
is done with the stock module, for which it is only counted how often it does
something else than an administrator expects.

    members_random.py [--seed N]      as a program

MEMBERS_SEEDS says how many (1000), MEMBERS_FIRST from which on (0).  --seed
replays one alone, with the restarts that its group had, and tells each step; a
failing seed tells them anyway.
"""

import argparse
import collections
import functools
import os
import random
import signal
import sys
import time

import balancer
import httpd as harness
from members_model import (LETTERS, NONE, RESTARTS, Configuration, Model,
                           Site, State)

GROUP = 10          # seeds that share a server
ROUNDS = 6
FACTORS = [1, 1, 2, 3]
KINDS = [*RESTARTS] * 2 + ["half", "twice"]
BACKENDS = {"conf": "\nHttpProtocolOptions Unsafe\n"}


def group_of(seed):
    return seed // GROUP


def mpm_of(group):
    return harness.MPMS[group % len(harness.MPMS)]


# ---------------------------------------------------------------------------
# What an administrator may do
# ---------------------------------------------------------------------------

def new_letter(chance, *taken):
    spare = [letter for letter in LETTERS if letter not in "".join(taken)]
    return chance.choice(spare) if spare else ""


def edited(chance, model, before):
    """Another Configuration, or None; before is the last there was."""
    if chance.random() < 0.1 and model.configuration is not None:
        return None
    members, growth = list(before.members), before.growth
    added = "".join(letter for letter, entry in model.members.items()
                    if entry.runtime)
    for _ in range(chance.choice([0, 0, 1, 1, 2, 3])):
        edit = chance.choice(["remove", "add", "replace", "sort", "growth",
                              "write down"])
        place = chance.randrange(len(members) + 1)
        if edit == "remove" and len(members) > 1:
            del members[place - 1]
        elif edit == "add" and len(members) < 5:
            members.insert(place, new_letter(chance, *members, added))
        elif edit == "replace":
            members[place - 1] = new_letter(chance, *members, added)
        elif edit == "sort":
            chance.shuffle(members)
        elif edit == "growth":
            growth = chance.randrange(5)
        elif edit == "write down" and added:
            letter = chance.choice(added)
            if letter not in members:
                members.insert(place, letter)
    return Configuration("".join(members), growth)


def wishes(chance, model):
    """Changes in the manager: (letter, State, whether it is added)."""
    wanted, room, known = [], model.room, dict(model.members)
    for _ in range(chance.choice([0, 1, 2, 3])):
        state = State(chance.random() < 0.3, chance.choice(FACTORS),
                      chance.choice([0, 0, 0, 1]))
        letter = new_letter(chance, *known)
        if room and letter and chance.random() < 0.4:
            wanted.append((letter, state, True))
            known[letter] = None
            room -= 1
        elif known:
            wanted.append((chance.choice(sorted(known)), state, False))
    return wanted


# ---------------------------------------------------------------------------
# Restarts
# ---------------------------------------------------------------------------

def half_way(chance, server):
    """Killed at some instant of a graceful restart."""
    os.kill(server.pid, signal.SIGUSR1)
    time.sleep(chance.uniform(0, 0.08))
    RESTARTS["kill"](server)


def twice(_, server):
    """The second begins when the first has hardly ended."""
    server.graceful(wait_old=False)
    server.graceful()


def restart(kind, chance, server):
    if kind == "half":
        half_way(chance, server)
    elif kind == "twice":
        twice(chance, server)
    else:
        RESTARTS[kind](server)


def kill_one_child(chance, server):
    """httpd replaces it; what it shared is still there."""
    chosen = chance.choice(server.wait_children())
    server.kill_child(chosen)
    server.wait_children(without=[chosen])


# ---------------------------------------------------------------------------
# A group of seeds
# ---------------------------------------------------------------------------

class Group:
    """Seeds that share a server; strict: the first fault of one ends it."""

    def __init__(self, httpd, backends, seeds, strict, **options):
        group = group_of(seeds[0])
        assert {group_of(seed) for seed in seeds} == {group}
        self.restarts = random.Random(f"restarts of group {group}")
        self.names = {seed: f"s{seed}" for seed in seeds}
        self.chance = {seed: random.Random(f"edits of seed {seed}")
                       for seed in seeds}
        self.models = {seed: Model() for seed in seeds}
        self.last = {seed: Configuration("abc", seed % 4) for seed in seeds}
        self.told = {seed: [] for seed in seeds}        # steps, for a person
        self.faults = {seed: [] for seed in seeds}
        self.looks = 0
        self.strict = strict
        self.site = Site(httpd, backends, self.names.values(),
                         [name for seed, name in self.names.items()
                          if seed % GROUP >= GROUP - 2],
                         mpm=mpm_of(group), may_leak=not strict, **options)
        self.site.server.allow_log(r"slotmem_shm: .*_s\d+\b" if strict
                                   else ".")

    def sound(self):
        return [seed for seed in self.names
                if not (self.strict and self.faults[seed])]

    def run(self):
        for number in range(ROUNDS):
            self.round(number)
        self.site.server.close()
        return self

    def round(self, number):
        kind = self.restarts.choice(KINDS)
        logged = len(self.site.server.log())
        wanted = {}
        for seed in self.sound():
            wanted[self.names[seed]] = self.configure(seed, number, kind)
        self.site.configure(wanted, functools.partial(
            restart, kind, self.restarts))
        if self.restarts.random() < 0.3:
            kill_one_child(self.restarts, self.site.server)
        self.look("after the restart", logged)
        for seed in self.sound():
            if self.models[seed].configuration is not None:
                self.guarded(seed, self.change)
        self.look("after the changes", None)

    def configure(self, seed, number, kind):
        model, chance = self.models[seed], self.chance[seed]
        configuration = (edited(chance, model, self.last[seed]) if number
                         else self.last[seed])
        if configuration is not None:
            self.last[seed] = configuration
        model.configure(configuration)
        self.told[seed].append(
            f"round {number}, {'start' if not number else kind}: "
            f"{configuration or NONE}; expected: {model}")
        return configuration

    def guarded(self, seed, act):
        try:
            act(seed)
        except AssertionError as error:
            self.fault(seed, str(error))

    def fault(self, seed, what):
        self.faults[seed].append(what)
        self.told[seed].append(f"    WRONG: {what}")

    def look(self, when, logged):
        seeds = [seed for seed in self.sound()
                 if self.models[seed].configuration is not None]
        found = self.site.look({self.names[seed]: self.models[seed]
                                for seed in seeds})
        for seed in seeds:
            self.judge(seed, found[self.names[seed]], when)
            if logged is not None and self.strict:
                self.judge_log(seed, logged)
            self.models[seed].may_lose = 0

    def judge(self, seed, seen, when):
        self.looks += 1
        if isinstance(seen, Exception):
            self.fault(seed, f"{when}: {seen!r}")
            return
        complaints = self.models[seed].complaints(seen)
        if complaints:
            self.fault(seed, f"{when}: {'; '.join(complaints)}; it shows "
                       f"{seen}")
        lost = self.models[seed].may_lose
        self.models[seed].adopt(seen)
        self.models[seed].may_lose = lost

    def judge_log(self, seed, logged):
        lines = self.site.warnings(self.names[seed], logged)
        if len(lines) != int(self.models[seed].may_lose > 0):
            self.fault(seed, f"{self.models[seed].may_lose} had to go, and "
                       f"the log says {lines}")

    def change(self, seed):
        model, name = self.models[seed], self.names[seed]
        if model.sticky in (None, ""):
            self.site.set_sticky(name, f"S{seed}")
            model.sticky = f"S{seed}"
        for letter, state, is_added in wishes(self.chance[seed], model):
            self.told[seed].append(f"    set {'+' if is_added else ''}"
                                   f"{letter}{state}")
            if is_added:
                self.site.add(name, letter, state)
                model.add(letter, state)
            else:
                self.site.change(name, letter, state)
                model.change(letter, state)

    def report(self):
        """The steps of what failed, to be done again by hand."""
        return "\n".join(
            "\n".join([f"seed {seed} (members_random.py --seed {seed}, "
                       f"{self.site.server.mpm}):", *self.told[seed]])
            for seed in self.names if self.faults[seed])


# ---------------------------------------------------------------------------
# As a program
# ---------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stock", action="store_true",
                        help="the stock module alone, and its deviations")
    chosen = parser.parse_args()
    first = int(os.environ.get("MEMBERS_FIRST", "0"))
    count = int(os.environ.get("MEMBERS_SEEDS", "1000"))
    seeds = ([chosen.seed] if chosen.seed is not None
             else range(first, first + count))
    groups = collections.defaultdict(list)
    for seed in seeds:
        groups[group_of(seed)].append(seed)
    module = (harness.stock_module() if chosen.stock
              else harness.our_module())
    return play(groups.values(), module, not chosen.stock,
                chosen.seed is not None)


def play(groups, module, strict, tell):
    harness.become_subreaper()
    wrong = looks = faults = number = 0
    with BackendsAlone() as backends:
        for seeds in groups:
            print(f"seeds {seeds[0]} to {seeds[-1]}, "
                  f"{mpm_of(group_of(seeds[0]))}", flush=True)
            group = Group(BackendsAlone.make, backends, seeds, strict,
                          slotmem_module=module)
            try:
                group.run()
            except harness.HttpdError as error:
                print(f"the server: {error}")
                wrong += strict
            finally:
                group.site.server.close(check=False)
            number += len(seeds)
            looks += group.looks
            faults += sum(map(len, group.faults.values()))
            wrong += strict and any(group.faults.values())
            if strict and any(group.faults.values()):
                print(group.report(), flush=True)
            elif tell:
                print("\n".join(group.told[seeds[0]]))
    print(f"members: {number} seeds, {looks} looks, {faults} deviations from "
          "what an administrator expects")
    return int(wrong > 0)


class BackendsAlone:
    """The backends, and servers, where there is no pytest to close them."""

    @staticmethod
    def make(conf="", start=True, **options):
        server = harness.Httpd(conf, **options)
        return server.start() if start else server

    def __enter__(self):
        self.backends = balancer.Backends(self.make, len(LETTERS), **BACKENDS)
        return self.backends

    def __exit__(self, *_):
        self.backends.server.close()


if __name__ == "__main__":
    sys.exit(main())
