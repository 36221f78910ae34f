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
"""A balancer with live backends keeps what was set in balancer-manager.

Its members are changed through the manager's own form; then the server is
restarted, stopped, killed or configured anew, and the manager and the traffic
must show what they showed before.
"""

import contextlib
import glob
import os
import random
import time

import pytest

import balancer
import httpd as harness
import sharedmem
from balancer import (MANAGER, MODULES, Manager, answered, cluster,
                      in_every_child)
from conftest import module_path

# How often what is a matter of luck is repeated.  The stock module fails one
# of ten of these restarts, and all of the kills and deaths.
RESTARTS = int(os.environ.get("SLOTMEM_TEST_RESTARTS", "4"))
KILLS = int(os.environ.get("SLOTMEM_TEST_KILLS", "2"))
DEATHS = int(os.environ.get("SLOTMEM_TEST_DEATHS", "1"))

PERSIST = "BalancerPersist On\n" + MANAGER
UNCLEAN = r"AH00098: pid file .* overwritten"


@pytest.fixture(scope="module")
def backends(shared_httpd):
    return balancer.Backends(shared_httpd, 5)


@pytest.fixture
def urls(backends):
    return backends.urls


def served(manager):
    return sum(member.elected for member in manager.members().values())


def stop_and_start(server):
    server.stop()
    server.start()


RESTART = {"graceful restart": lambda server: server.graceful(),
           "hard restart": lambda server: server.restart(),
           "stop and start": stop_and_start}


def is_stored(server, text, name="*_cluster.shm.persist"):
    for path in glob.glob(os.path.join(server.run_dir, name)):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if text.encode() in file.read():
                return True
    return False


def set_up_by_hand(manager, urls):
    """One of each kind of change; only the first member gets requests then."""
    manager.change(urls[0], w_lf="7", w_wr="main-site")
    manager.change(urls[1], w_status_D="1")
    manager.change(urls[2], w_status_N="1", w_lf="2.5", w_ls="3")
    manager.change_balancer(b_tmo="17", b_ss="SESSION")
    return manager.balancer().settings


def check_set_up(manager, urls):
    now = manager.balancer()
    first, second, third = (now.members[url] for url in urls[:3])
    assert (first.load_factor, first.route) == (7, "main-site")
    assert second.status == {"Dis"}
    assert (third.status, third.load_factor, third.lbset) == ({"Drn", "Ok"},
                                                            2.5, 3)
    assert (now.timeout, now.sticky) == (17, "SESSION")
    assert answered(manager.server, 6, port=manager.port) == {"0"}


def test_positive_control_members_take_turns_and_the_form_works(httpd, target,
                                                                urls):
    """Fails when traffic, manager or form do not work at all.

    What is set in one child must show in every other at once: they share it.
    """
    server = httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES,
                   target=target)
    manager = Manager(server)
    assert answered(server, 9) == {"0", "1", "2"}
    assert {m.status for m in manager.members().values()} == {frozenset({"Ok"})}
    assert sum(m.elected for m in manager.members().values()) == 9

    expected = set_up_by_hand(manager, urls)
    for seen in in_every_child(server, lambda: manager.balancer().settings):
        assert seen == expected
    check_set_up(manager, urls)
    manager.change(urls[1], w_status_D="0")
    manager.change(urls[0], w_status_D="1")
    assert answered(server, 6) == {"1"}


def test_changes_survive_graceful_and_hard_restart_and_stop(httpd, target,
                                                            urls):
    """Fails when any kind of restart brings a disabled member back to life,
    or loses a load factor, a route, a set, or the settings of the balancer.

    Counts of requests served are kept as well: no request is under way here.
    """
    server = httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES,
                   target=target)
    manager = Manager(server)
    set_up_by_hand(manager, urls)
    for what, restart in RESTART.items():
        expected = manager.balancer()
        restart(server)
        assert manager.balancer() == expected, what
        check_set_up(manager, urls)
    # What came from a file is as good as new: it can be changed, and kept.
    manager.change(urls[1], w_status_D="0", w_lf="50")
    assert "1" in answered(server, 30)
    stop_and_start(server)
    assert manager.members()[urls[1]].load_factor == 50
    assert manager.status(urls[1]) == {"Ok"}


def test_without_persist_every_restart_begins_with_the_configuration(
        httpd, target, urls):
    """Fails when state is kept that the administrator asked not to keep, or
    when a file is written that nobody will read."""
    server = httpd(conf=MANAGER + cluster(urls[:3]), modules=MODULES,
                   target=target)
    manager = Manager(server)
    for what, restart in RESTART.items():
        set_up_by_hand(manager, urls)
        restart(server)
        now = manager.balancer()
        assert ({m.status for m in now.members.values()}
                == {frozenset({"Ok"})}), what
        assert {m.load_factor for m in now.members.values()} == {1}, what
        assert (now.timeout, now.sticky) == (0, ""), what
        assert answered(server, 9) == {"0", "1", "2"}, what
    assert glob.glob(os.path.join(server.run_dir, "*.persist")) == []


def test_member_added_at_run_time_survives_every_restart(httpd, target, urls):
    """Fails when a member that stands in no configuration file is forgotten,
    or when there is room for more of them than growth says."""
    server = httpd(conf="BalancerGrowth 3\n" + PERSIST
                   + cluster(urls[:3], options="growth=2"),
                   modules=MODULES, target=target)
    manager = Manager(server)
    manager.add(urls[3])
    assert "3" not in answered(server, 8)
    manager.change(urls[3], w_status_D="0", w_lf="2", w_wr="late")
    for seen in in_every_child(server, lambda: answered(server, 12)):
        assert "3" in seen
    manager.add(urls[4])
    assert "b_nwrkr" not in manager.form().fields

    for what, restart in RESTART.items():
        expected = manager.balancer().settings
        restart(server)
        assert manager.balancer().settings == expected, what
        assert answered(server, 12) == {"0", "1", "2", "3"}, what


def test_balancer_without_members_lives_beside_others(httpd, target, urls):
    """Fails when a segment of 0 slots keeps the server from starting or its
    neighbours from being restored."""
    server = httpd(conf="BalancerGrowth 0\n" + PERSIST
                   + cluster([], name="empty", path="/empty", options="")
                   + cluster(urls[:3], options=""),
                   modules=MODULES, target=target)
    server.expect_log("AH01171: balancer://empty: No workers in balancer")
    manager = Manager(server)
    set_up_by_hand(manager, urls)
    for restart in [lambda server: None, *RESTART.values()]:
        restart(server)
        assert manager.members("empty") == {}
        assert "b_nwrkr" not in manager.form("empty").fields
        assert "b_nwrkr" not in manager.form("cluster").fields
        assert server.get("/empty/who")[0] == 503
        check_set_up(manager, urls)


def test_virtual_hosts_with_a_balancer_of_one_name_keep_apart(httpd, target,
                                                              urls):
    """Fails when two segments are taken for one, in memory or on the disk:
    the name of the balancer is the same, the virtual host is not."""
    vhost = """
        <VirtualHost 127.0.0.1:${{PORT{}}}>
          BalancerPersist On
          {}
        </VirtualHost>"""
    server = httpd(conf=MANAGER + cluster(urls[3:], name="main", path="/main")
                   + vhost.format(1, cluster(urls[:3]))
                   + vhost.format(2, cluster(urls[:3])),
                   modules=MODULES, ports=3, target=target)
    first, second = (Manager(server, port) for port in server.ports[1:])
    set_up_by_hand(first, urls)
    second.change(urls[0], w_status_D="1")
    for what, restart in RESTART.items():
        before = first.balancers(), second.balancers()
        assert before[0]["cluster"].settings != before[1]["cluster"].settings
        restart(server)
        after = first.balancers(), second.balancers()
        for old, new in zip(before, after):
            assert old["cluster"] == new["cluster"], what
        check_set_up(first, urls)
        assert answered(server, 6, port=second.port) == {"1", "2"}, what
        assert answered(server, 4, "/main/who") == {"3", "4"}, what


@pytest.mark.parametrize("growth", ["", "growth=2"])
def test_member_added_to_the_configuration_leaves_others_as_they_were(
        httpd, urls, growth):
    """Fails when one more BalancerMember in the configuration re-enables the
    members that were disabled: the stock module drops all state then.

    mod_proxy_balancer grabs a slot for a new member before it has looked for
    the old ones that stand after it: that slot must be none of theirs.
    """
    server = httpd(conf=PERSIST + cluster(urls[:3], options=growth),
                   modules=MODULES)
    manager = Manager(server)
    set_up_by_hand(manager, urls)
    expected = manager.members()
    server.conf = PERSIST + cluster([urls[3], *urls[:3]], options=growth)
    stop_and_start(server)
    now = manager.members()
    assert set(now) == set(urls[:4])
    assert {url: now[url] for url in urls[:3]} == expected
    assert (now[urls[3]].status, now[urls[3]].load_factor) == ({"Ok"}, 1)
    assert answered(server, 30) == {"0", "3"}

    # And one more by graceful restart, as it is done on a busy server.
    expected = {url: m.settings for url, m in manager.members().items()}
    server.conf = PERSIST + cluster([*urls[:2], urls[4], urls[3], urls[2]],
                                    options=growth)
    server.write_config()
    server.graceful()
    now = {url: m.settings for url, m in manager.members().items()}
    assert set(now) == set(urls)
    assert {url: now[url] for url in urls[:4]} == expected
    assert answered(server, 30) == {"0", "3", "4"}


def test_member_replaced_in_the_configuration_is_gone(httpd, target, urls):
    """Fails when traffic still goes to a member whose place in the
    configuration another one has taken, or when a third loses its state."""
    server = httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES,
                   target=target)
    manager = Manager(server)
    set_up_by_hand(manager, urls)
    wanted = [urls[0], urls[3], urls[2]]
    expected = manager.members()
    server.conf = PERSIST + cluster(wanted)
    stop_and_start(server)
    now = manager.members()
    assert list(now) == wanted
    assert (now[urls[0]], now[urls[2]]) == (expected[urls[0]],
                                            expected[urls[2]])
    assert answered(server, 20) == {"0", "3"}


def test_member_added_while_another_is_replaced(httpd, urls):
    """Fails when the one that was replaced keeps its slot, and comes back from
    there as if it had been added at run time."""
    server = httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES)
    manager = Manager(server)
    manager.change(urls[2], w_status_D="1")
    wanted = [urls[3], urls[0], urls[4], urls[2]]
    server.conf = PERSIST + cluster(wanted)
    stop_and_start(server)
    assert list(manager.members()) == wanted
    assert manager.status(urls[2]) == {"Dis"}
    assert answered(server, 9) == {"0", "3", "4"}


def test_balancer_added_to_the_configuration_leaves_others_as_they_were(
        httpd, urls):
    """Fails when another balancer in the same virtual host loses what was
    set for the first: its settings (timeout, sticky session) or members."""
    server = httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES)
    manager = Manager(server)
    set_up_by_hand(manager, urls)
    expected = manager.balancer()
    server.conf += cluster(urls[3:], name="other", path="/other")
    stop_and_start(server)
    assert manager.balancer() == expected
    assert answered(server, 4, "/other/who") == {"3", "4"}
    check_set_up(manager, urls)


def test_graceful_restarts_under_load_keep_a_disabled_member_disabled(
        httpd, mpm, urls):
    """Fails when children of the old generation, who go on counting requests
    in the memory that is being stored, spoil what the new one restores.

    The stock module fails now and then: it hashes memory that changes before
    it is written, and refuses the file at the next start.  No client may
    notice the restart, and the disabled member must not get one request.
    There is much room for further members, so that storing takes its time.
    """
    server = httpd(conf=PERSIST + cluster(urls[:3], options="growth=100"),
                   modules=MODULES, mpm=mpm)
    manager = Manager(server)

    def set_up():
        manager.change(urls[1], w_status_D="1")
        manager.change(urls[0], w_lf="7", w_wr="main-site")

    def state():
        now = manager.members()
        return ({url: member.settings for url, member in now.items()},
                now[urls[1]].elected)

    set_up()
    expected = state()
    lost = []
    with balancer.Load(server) as load:
        for i in range(RESTARTS):
            before = served(manager)
            harness.wait_for(lambda: served(manager) > before + 50,
                             "the clients to get on")
            server.graceful(wait_old=False)
            if state() != expected:
                lost.append(i)
                set_up()
                expected = state()
    print(f"{mpm}: {len(lost)} of {RESTARTS} graceful restarts under load "
          f"lost state; {load.failed} of {load.complete} requests failed")
    assert lost == []
    assert load.complete > 50 * RESTARTS
    assert load.failed == 0, load.report


def kill_all(server):
    """As a power cut does it, but for the machine."""
    server.kill_all()
    server.allow_log(UNCLEAN)


def test_killed_server_goes_on_with_what_its_memory_held(httpd, mpm, urls):
    """Fails when kill -9 of every process loses what was set an instant
    before: no file can hold it yet, but shared memory outlives processes.

    The stock module loses it always.
    """
    server = httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES, mpm=mpm)
    # A request that had chosen a member when that was disabled.
    server.allow_log("AH01114: HTTP: failed to make connection to backend")
    manager = Manager(server)
    instant = random.Random(mpm)
    lost = []
    for i in range(KILLS):
        # In every other round it is not the first generation.
        if i % 2:
            server.graceful()
        with balancer.Load(server):
            before = served(manager)
            harness.wait_for(lambda: served(manager) > before,
                             "the clients to get going")
            manager.change(urls[i % 3], w_status_D="1", w_lf=str(i % 90 + 2))
            manager.change(urls[(i + 2) % 3], w_status_D="0", w_wr=f"r{i}")
            expected = manager.balancer()
            time.sleep(instant.uniform(0, 0.05))    # any instant will do
            kill_all(server)
        server.start()
        now = manager.balancer()
        if (now.settings != expected.settings
                or any(now.members[url].elected < member.elected
                       for url, member in expected.members.items())):
            lost.append(i)
        else:
            assert str(i % 3) not in answered(server, 6)
    print(f"{mpm}: {len(lost)} of {KILLS} kills lost state")
    assert lost == []
    server.stop()       # the helper of one that runs has a file in the making
    left = [name for name in os.listdir(server.run_dir)
            if name.endswith((".new", ".checkpoint"))]
    assert left == []


def test_container_that_died_goes_on_from_its_last_checkpoint(httpd, request,
                                                              urls):
    """Fails when a server that is killed together with its shared memory goes
    back to the configuration: a checkpoint is taken some 10 s after a start.

    The three MPMs wait for it at the same time.
    """
    mpms = request.config.getoption("--mpm") or harness.MPMS
    servers = [httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES,
                     mpm=mpm) for mpm in mpms]
    lost = []
    for i in range(DEATHS):
        expected = {}
        for server in servers:
            manager = Manager(server)
            set_up_by_hand(manager, urls)
            manager.change(urls[0], w_wr=f"death-{i}")
            expected[server] = manager.balancer()
        with contextlib.ExitStack() as stack:
            for server in servers:
                stack.enter_context(balancer.Load(server, clients=1))
            for server in servers:
                harness.wait_for(lambda: is_stored(server, f"death-{i}"),
                                 "a checkpoint", limit=90)
            for server in servers:
                kill_all(server)
        for server in servers:
            for path in server.leaked_shm():
                sharedmem.remove(path)
            server.start()
            manager = Manager(server)
            if manager.balancer().settings != expected[server].settings:
                lost.append((server.mpm, i))
            assert answered(server, 6) == {"0"}
    print(f"{len(lost)} of {DEATHS * len(servers)} deaths lost state")
    assert lost == []


def test_administrator_can_move_to_this_module_and_back(httpd, urls):
    """Fails when state that one module has stored is not what the other one
    goes on with: the files are the same to the byte."""
    server = httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES,
                   slotmem_module=module_path("stock"))
    manager = Manager(server)
    manager.add(urls[3])
    set_up_by_hand(manager, urls)
    for which in "ours", "stock", "ours":
        manager.change(urls[3], w_wr=f"before-{which}")
        expected = manager.balancer()
        server.stop()
        server.slotmem_module = module_path(which)
        server.start()
        assert manager.balancer() == expected, f"moved to {which}"
        assert set(expected.members) == set(urls[:4])
        check_set_up(manager, urls)


def test_move_back_after_a_kill_and_here_again_takes_the_newest_state(httpd,
                                                                      urls):
    """Fails when the memory of a run that was killed, long since, replaces
    what another module has stored in the meantime."""
    server = httpd(conf=PERSIST + cluster(urls[:3]), modules=MODULES)
    manager = Manager(server)
    server.graceful()       # the stock module tidies up generation 0
    set_up_by_hand(manager, urls)
    kill_all(server)

    server.slotmem_module = module_path("stock")
    server.start()
    manager.change(urls[2], w_status_D="1", w_wr="by-stock")
    expected = manager.balancer()
    server.stop()
    for path in glob.glob(server.run_dir + "/*.persist"):
        # That run has lasted an hour, and not the moment that it took here.
        os.utime(path, (time.time() + 3600,) * 2)

    server.slotmem_module = module_path("ours")
    server.start()
    assert manager.balancer() == expected
