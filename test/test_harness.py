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
"""The harness fails the tests that it must fail.

All other tests rely on it to see what a server leaves behind or complains of.
The stock module is what is loaded: nothing here depends on ours.
"""

import os
import re
import signal

import pytest

import httpd as harness

SEGMENT = "SlotmemTestCreate seg 64 10 0"


@pytest.fixture
def server(stock_module):
    running = harness.Httpd(SEGMENT, slotmem_module=stock_module)
    yield running.start()
    running.close(check=False)


@pytest.fixture
def mpm_server(mpm, stock_module):
    running = harness.Httpd(SEGMENT, mpm=mpm, slotmem_module=stock_module)
    yield running.start()
    running.close(check=False)


def close_fails(server, *words):
    with pytest.raises(harness.HttpdError) as failure:
        server.close()
    for word in words:
        assert re.search(word, str(failure.value))
    assert not os.path.exists(server.root)
    assert not server.processes()


def test_positive_control_clean_life_passes(mpm_server):
    """Every way to restart, and a server that is then found clean."""
    assert mpm_server.slotmem().info("seg").num_slots == 10
    for restart in mpm_server.graceful, mpm_server.restart:
        old = mpm_server.children()
        assert set(restart()) == set(old)
        assert not set(mpm_server.children()) & set(old)
    for stop in mpm_server.stop, mpm_server.graceful_stop:
        stop()
        assert mpm_server.processes() == []
        mpm_server.start()
    root = mpm_server.root
    mpm_server.close()
    assert not os.path.exists(root)


def test_object_left_in_shm_fails(mpm_server):
    mpm_server.kill_all()
    leaked = mpm_server.leaked_shm()
    assert leaked == {mpm_server.shm_path("seg", 0)}
    close_fails(mpm_server, "left in shared memory")
    assert not mpm_server.leaked_shm()


def test_process_left_fails(server):
    children = server.children()
    server.kill_parent()
    assert set(children) <= set(server.processes())
    close_fails(server, "processes left")


def test_warning_not_announced_fails(server):
    with open(server.error_log, "a") as log:
        log.write("[Mon Jan 01 00:00:00 2024] [core:warn] [pid 1] beware\n")
    close_fails(server, "not announced.*\n.*beware")


def test_warning_announced_passes(server):
    server.expect_log("beware")
    with open(server.error_log, "a") as log:
        log.write("[Mon Jan 01 00:00:00 2024] [core:warn] [pid 1] beware\n")
    server.close()


def test_warning_announced_but_not_logged_fails(server):
    server.expect_log("never comes")
    close_fails(server, "announced, but never logged: never comes")


def test_line_that_is_no_log_line_fails(server):
    """A sanitizer's report, or an abort message of the C library."""
    with open(server.stderr_path, "a") as log:
        log.write("==1==ERROR: AddressSanitizer: heap-use-after-free\n")
    close_fails(server, "AddressSanitizer")


def test_child_that_crashes_fails(server):
    """httpd replaces it and logs but a notice."""
    child = server.children()[0]
    os.kill(child, signal.SIGSEGV)
    server.wait_gone([child])
    harness.wait_for(lambda: server.log_lines("AH0005[12]"),
                     "the parent to notice")
    close_fails(server, f"crash of {child} by signal 11: ")


MPM_CALLS = ("libapr-1.so.0:apr_os_sock_get < mod_mpm_event.so:? < "
             "mod_mpm_event.so:? < apache2:ap_run_mpm < apache2:main")


@pytest.mark.parametrize("calls, may", [
    (MPM_CALLS, True),
    ("mod_slotmem_shm.so:? < " + MPM_CALLS, False),
    ("libapr-1.so.0:apr_os_sock_get < mod_slotmem_shm.so:? < " + MPM_CALLS,
     False),
    (MPM_CALLS.replace("mod_mpm_event.so:? < apache2", "x.so:? < apache2"),
     False)])
def test_crash_is_the_mpm_s_only_where_its_calls_say_so(server, calls, may):
    """The one that event is known for, when connections end as it does."""
    with open(server.stderr_path, "a") as log:
        log.write(f"crash of 77 by signal 11: {calls}\n"
                  "[Mon Jan 05 00:00:00 2026] [core:notice] [pid 1:tid 1] "
                  "AH00052: child pid 77 exit signal Segmentation fault (11)\n")
    if may:
        server.close()
    else:
        close_fails(server, re.escape(calls))


def test_parent_that_crashes_fails(server):
    os.kill(server.pid, signal.SIGSEGV)
    server.wait_gone([server.pid])
    close_fails(server, "ended with status")


def test_killed_child_is_replaced_and_passes(mpm_server):
    child = mpm_server.children()[0]
    mpm_server.kill_child(child)
    assert child not in mpm_server.wait_children(without=[child])
    mpm_server.close()


def test_wrong_directive_fails_the_start(stock_module):
    with pytest.raises(harness.HttpdError, match="Invalid command 'NoSuch'"):
        with harness.Httpd("NoSuch thing", slotmem_module=stock_module):
            pass


def test_directive_that_fails_fails_the_start(stock_module):
    with pytest.raises(harness.HttpdError, match="in child_init.*attach"):
        with harness.Httpd("SlotmemTestAttach none",
                           slotmem_module=stock_module):
            pass


def test_held_request_keeps_the_old_generation(mpm_server):
    with mpm_server.held_request() as pid:
        old = mpm_server.graceful(wait_old=False)
        assert pid in old and harness.is_alive(pid)
        assert pid in mpm_server.children(generation=0)
        assert mpm_server.slotmem(pid).ping().generation == 0
        assert mpm_server.slotmem().ping().generation == 1
    mpm_server.wait_gone([pid])


def test_several_servers_do_not_meet(httpd, stock_module):
    """Same configuration, same segment name, at the same time."""
    servers = [httpd(SEGMENT, slotmem_module=stock_module) for _ in range(3)]
    for number, server in enumerate(servers):
        server.slotmem().put("seg", 0, b"%d" % number)
    for number, server in enumerate(servers):
        assert server.slotmem().read("seg", 0, 1) == b"%d" % number
    servers[1].kill_all()
    assert servers[0].slotmem().ping() and servers[2].slotmem().ping()
    assert servers[1].leaked_shm()
    servers[1].close(check=False)
    assert not servers[0].leaked_shm() ^ servers[0].shm_objects()


def test_stale_socket_is_not_taken_for_a_child(server):
    """A killed child leaves its socket; its number goes to somebody else."""
    stranger = os.getpid()
    born = harness.birth(stranger)
    for wrong in born - 1, born + 1:
        path = os.path.join(server.ctl_dir, f"child-{stranger}-0-{wrong}.sock")
        with open(path, "w"):
            pass
    assert stranger not in server.children()
    with pytest.raises(harness.HttpdError, match="ended before it was killed"):
        server.kill_child(stranger)


def test_child_that_ends_unasked_fails(stock_module):
    """httpd says nothing of one that ends with status 0."""
    running = harness.Httpd(SEGMENT + "\nMaxConnectionsPerChild 1",
                            slotmem_module=stock_module, mpm="prefork")
    running.start()
    children = running.children()
    running.get("/")
    harness.wait_for(lambda: set(children) - set(running.children()),
                     "a child to end after its connection")
    with pytest.raises(harness.HttpdError, match="ended unasked"):
        running.close()
    assert not running.processes()


def test_ports_are_nobody_else_s(httpd, stock_module):
    """Neither another server's nor what the kernel gives to a client, also
    while the server is down."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first = int(file.read().split()[0])
    server = httpd(SEGMENT, slotmem_module=stock_module, ports=3)
    server.stop()
    taken = [harness.Port() for _ in range(50)]
    numbers = [port.number for port in taken]
    for port in taken:
        port.close()
    assert not set(server.ports) & set(numbers)
    assert len(set(numbers)) == 50 and max(numbers + server.ports) < first
    server.start()


@pytest.mark.parametrize("slotmem_first", [False, True])
def test_server_that_detaches(mpm, stock_module, slotmem_first):
    """As administrators start it: the process that was started ends, and the
    server goes on in a child of it."""
    running = harness.Httpd(SEGMENT, mpm=mpm, slotmem_module=stock_module,
                            detached=True, slotmem_first=slotmem_first)
    running.start()
    with open(running.pid_file) as file:
        assert int(file.read()) == running.pid
    old = running.children()
    assert set(running.graceful()) == set(old)
    running.stop()
    assert running.processes() == []
    running.start()
    running.kill_all()
    running.start()
    running.close()
