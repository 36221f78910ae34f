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
"""mod_proxy_hcheck marks a dead backend in shared memory.

One child of the server before the backends checks them from its watchdog
thread; all children must heed what it finds.
"""

import pytest

import balancer
import httpd as harness
from balancer import (MANAGER, MODULES, Manager, answered, cluster,
                      in_every_child)

HCHECK_MODULES = ["watchdog"] + MODULES + ["proxy_hcheck"]
PERSIST = "BalancerPersist On\n" + MANAGER
EVERY = "hcinterval=100ms hcpasses=1 hcfails=1"
REFUSED = r"AH00957|AH00959|AH01114"     # an attempt to connect failed


@pytest.fixture(scope="module")
def both(shared_httpd):
    """Two backends that stay up; they may be alive or not by their own word."""
    return balancer.Backends(shared_httpd, 2)


@pytest.fixture
def backends(both):
    for i in range(2):
        both.serve(i, "alive", "yes")
    return both


@pytest.fixture
def mortal(httpd):
    """A backend that can be stopped."""
    return balancer.Backends(httpd, 1)


def wait_status(manager, url, status):
    harness.wait_for(lambda: manager.status(url) == {status},
                     lambda: f"{url} to be {status}, not "
                     f"{set(manager.status(url))}")


def test_positive_control_checks_reach_the_backend(httpd, target, backends):
    """Fails when no check is made at all, so that "Ok" would say nothing."""
    server = httpd(conf=MANAGER + cluster(
        backends.urls, member=f"hcmethod=GET hcuri=/alive {EVERY}"),
        modules=HCHECK_MODULES, target=target,
        loglevel="info proxy_hcheck:debug")
    for url in backends.urls:
        harness.wait_for(lambda: server.log_lines("AH03256.*checking "
                                                  + url),
                         f"a check of {url}")
    assert answered(server, 6) == {"0", "1"}
    for url in backends.urls:
        wait_status(Manager(server), url, "Ok")


def test_backend_that_fails_its_check_gets_no_traffic_until_it_passes(
        httpd, target, backends):
    """Fails when a mark that one child's watchdog sets, or takes back, in
    shared memory does not reach the requests of all the others."""
    server = httpd(conf=MANAGER + cluster(
        backends.urls, member=f"hcmethod=GET hcuri=/alive {EVERY}"),
        modules=HCHECK_MODULES, target=target)
    manager = Manager(server)
    backends.serve_no_more(1, "alive")
    wait_status(manager, backends.urls[1], "HcFl")
    for seen in in_every_child(server, lambda: answered(server, 6)):
        assert seen == {"0"}
    backends.serve(1, "alive", "again")
    wait_status(manager, backends.urls[1], "Ok")
    for seen in in_every_child(server, lambda: answered(server, 6)):
        assert seen == {"0", "1"}


def test_dead_backend_stays_marked_over_restarts_until_it_lives_again(
        httpd, target, backends, mortal):
    """Fails when a restart sends clients to a backend that is known to be
    dead, or when a backend that came back is never tried again.

    The interval is made long in the manager before the restarts, so that no
    new check can put the mark back: it must come out of what was stored.
    """
    urls = backends.urls[:1] + mortal.urls
    server = httpd(conf=PERSIST + cluster(urls, member=f"hcmethod=TCP {EVERY}"),
                   modules=HCHECK_MODULES, target=target)
    server.allow_log(REFUSED)
    manager = Manager(server)
    mortal.server.stop()
    wait_status(manager, urls[1], "HcFl")
    manager.change(urls[1], w_hi="3600000")
    for restart in server.graceful, server.restart, server.stop:
        restart()
        if restart == server.stop:
            server.start()
        assert manager.status(urls[1]) == {"HcFl"}, restart.__name__
        assert manager.form(member=urls[1]).fields["w_hi"] == "3600000"
        refused = len(server.log_lines(REFUSED))
        assert answered(server, 6) == {"0"}
        assert len(server.log_lines(REFUSED)) == refused

    mortal.server.start()
    manager.change(urls[1], w_hi="100")
    wait_status(manager, urls[1], "Ok")
    assert answered(server, 6) == {"0"}
