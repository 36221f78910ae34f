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
"""mod_proxy_balancer under load: restarted and killed, lost how often?

    torture.py [--stock] [--mpm MPM ...]

A balancer of ten members with BalancerPersist, changed in its manager as an
administrator does it (members disabled and draining, load factors, a timeout),
with ab on it all the time.  Something is changed before each harm, so that
what an older file holds does not do.  In each MPM

    TORTURE_RESTARTS  graceful restarts in a row                        (100)
    TORTURE_KILLS     kills of all processes at random instants, half of
                      them while a graceful restart is under way         (20)
    TORTURE_GONE      kills with the server's shared memory removed, as
                      when a container dies, after a checkpoint          (20)
    TORTURE_MEMBERS   restarts with a member more or less configured     (10)

After each, the manager must show what was set.  Prints how many of how many
were lost, and what was left in shared memory; ends with status 1 if anything was.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import time

import balancer
import httpd as harness
import sharedmem

TIMES = {name: int(os.environ.get("TORTURE_" + name.upper(), default))
         for name, default in (("restarts", 100), ("kills", 20), ("gone", 20),
                               ("members", 10))}
MEMBERS = 10


def say(*words):
    print(*words, flush=True)



class Torture:
    """One MPM."""

    def __init__(self, module, mpm, backends, is_stock):
        self.urls, self.is_stock = backends.urls, is_stock
        self.random = random.Random(mpm)
        self.settings = None
        self.left = 0       # shared memory of runs that were killed
        self.server = harness.Httpd(
            self.conf(MEMBERS), mpm=mpm, slotmem_module=module, consumer=None,
            modules=balancer.MODULES, loglevel="warn",
            may_leak=True)
        self.manager = balancer.Manager(self.server)

    def conf(self, members):
        return ("BalancerPersist On\nProxyTimeout 5\n" + balancer.MANAGER
                + balancer.cluster(self.urls[:members]))

    # -- what an administrator sets, and sees

    def set_up(self):
        """Gives each member something of its own."""
        for i, url in enumerate(self.urls[:MEMBERS]):
            changes = {"w_lf": f"{1 + self.random.randrange(1, 90)}"}
            if i % 3 == 1:
                changes["w_status_D"] = "1"
            if i % 3 == 2:
                changes["w_status_N"] = "1"
            self.manager.change(url, **changes)
        self.manager.change_balancer(
            b_tmo=str(self.random.randrange(5, 60)))
        self.settings = self.look()

    def change(self):
        """Sets something that no file has yet."""
        url = self.random.choice(self.urls[:MEMBERS])
        old = self.settings[1][url][0]
        new = self.random.choice([n for n in range(1, 90) if n != old])
        self.manager.change(url, w_lf=str(new))
        self.settings = self.look()
        assert self.settings[1][url][0] == new

    def look(self):
        found = self.manager.balancer()
        return found.timeout, {
            url: (one.load_factor, one.lbset,
                  one.status & {"Dis", "Drn", "Stop", "HcFl", "Stby"})
            for url, one in found.members.items()
            if url in self.urls[:MEMBERS]}

    def lost(self):
        """Whether anything is not as set; then it is set anew."""
        if self.look() == self.settings:
            return False
        self.set_up()
        return True

    # -- harms

    def restarts(self, times):
        lost = 0
        with contextlib.ExitStack() as stack:
            load = stack.enter_context(balancer.Load(self.server, clients=6))
            for _ in range(times):
                if load._process.poll() is not None:
                    load = stack.enter_context(balancer.Load(self.server,
                                                             clients=6))
                self.change()
                self.server.graceful(wait_old=False)
                lost += self.lost()
        return lost

    def kills(self, times):
        lost = 0
        for turn in range(times):
            with balancer.Load(self.server, clients=6):
                self.change()
                time.sleep(self.random.random())
                if turn % 2:
                    os.kill(self.server.pid, signal.SIGUSR1)
                    time.sleep(self.random.random() * 0.3)
                self.server.kill_all()
            self.server.start()
            left = self.server.leaked_shm() - self.server.shm_objects()
            self.left += len(left)
            for path in left:
                sharedmem.remove(path)
            lost += self.lost()
        return lost

    def gone(self, times):
        lost = 0
        for _ in range(times):
            with balancer.Load(self.server, clients=6):
                self.change()
                self.wait_checkpoint()
                self.server.kill_all()
            for path in self.server.leaked_shm():
                sharedmem.remove(path)
            self.server.start()
            lost += self.lost()
        return lost

    def stored(self):
        newest = 0
        for entry in os.scandir(self.server.run_dir):
            if entry.name.endswith(".persist"):
                newest = max(newest, entry.stat().st_mtime)
        return newest

    def wait_checkpoint(self):
        """Two of them: one may be at work already, with the old settings."""
        if self.is_stock:
            return
        for _ in range(2):
            began = time.time()
            harness.wait_for(lambda began=began: self.stored() > began,
                             "a checkpoint", limit=300, interval=0.1)

    def members(self, times):
        lost = 0
        for turn in range(times):
            self.server.conf = self.conf(MEMBERS + 1 - turn % 2)
            self.server.write_config()
            with balancer.Load(self.server, clients=6):
                self.change()
                self.server.graceful(wait_old=False)
                lost += self.lost()
        return lost

    def run(self):
        self.server.start()
        self.set_up()
        result = {}
        for name, times in TIMES.items():
            began = time.monotonic()
            result[name] = getattr(self, name)(times), times
            say(f"  {self.server.mpm:8} {name:9} lost {result[name][0]} of "
                f"{times} ({time.monotonic() - began:.0f} s)")
        self.server.stop()
        self.left += len(self.server.leaked_shm())
        say(f"  {self.server.mpm:8} left in shared memory: {self.left}")
        result["left"] = self.left, 0
        return result


@contextlib.contextmanager
def live_backends():
    made = []

    def make(conf="", start=True, **options):
        server = harness.Httpd(conf, **options)
        made.append(server)
        return server.start() if start else server

    try:
        yield balancer.Backends(make, MEMBERS + 1)
    finally:
        for server in made:
            server.close(check=False)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0])
    parser.add_argument("--stock", action="store_true",
                        help="httpd's own module instead of ours")
    parser.add_argument("--mpm", action="append", choices=harness.MPMS)
    chosen = parser.parse_args()
    harness.become_subreaper()
    module = (harness.stock_module() if chosen.stock
              else harness.our_module())
    say(module)
    bad = 0
    with live_backends() as backends:
        for mpm in chosen.mpm or harness.MPMS:
            torture = Torture(module, mpm, backends, chosen.stock)
            try:
                bad += sum(lost for lost, _ in torture.run().values())
            finally:
                torture.server.close(check=False)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
