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
"""Heartbeats: mod_heartbeat sends, mod_heartmonitor keeps them in slots, and
mod_lbmethod_heartbeat sends traffic where they come from.

Multicast stays in a network of these tests' own, so that no datagram leaves
the machine and nobody else's comes in.  All monitors hear every beat, as they
would in real life: ours in each MPM, and one with the stock module.
"""

import ctypes
import fcntl
import http.client
import os
import socket
import struct
import threading

import pytest

import balancer
import httpd as harness
from balancer import MODULES, answered, cluster
from conftest import module_path

SEGMENT = "attach:mod_heartmonitor"
GROUP, QUIET_GROUP, PORT = "239.255.7.7", "239.255.7.8", 5700
LIVE, BY_HAND, LATE = "10.99.0.1", "127.0.0.2", "127.0.0.3"
MONITOR = """
SlotmemTestAttach mod_heartmonitor
HeartbeatMaxServers 12
<Location /heartbeat>
  SetHandler heartbeat
</Location>
"""
MONITOR_MODULES = MODULES + ["watchdog", "heartmonitor", "lbmethod_heartbeat"]


# ---------------------------------------------------------------------------
# A network that consists of a loopback interface
# ---------------------------------------------------------------------------

CLONE_NEWNET = 0x40000000
SIOCADDRT, SIOCSIFFLAGS, SIOCSIFADDR = 0x890B, 0x8914, 0x8916
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_MULTICAST = 0x1, 0x8, 0x40, 0x1000


def _address(text):
    return struct.pack("=H2s4s8x", socket.AF_INET, b"", socket.inet_aton(text))


class _Route(ctypes.Structure):
    """struct rtentry of <net/route.h>."""
    _fields_ = [("pad1", ctypes.c_ulong), ("dst", ctypes.c_ubyte * 16),
                ("gateway", ctypes.c_ubyte * 16), ("mask", ctypes.c_ubyte * 16),
                ("flags", ctypes.c_ushort), ("pad2", ctypes.c_short),
                ("pad3", ctypes.c_ulong), ("pad4", ctypes.c_void_p),
                ("metric", ctypes.c_short), ("dev", ctypes.c_char_p),
                ("mtu", ctypes.c_ulong), ("window", ctypes.c_ulong),
                ("irtt", ctypes.c_ushort)]


def _raise_loopback():
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack(
            "16sh22x", b"lo", IFF_UP | IFF_LOOPBACK | IFF_RUNNING
            | IFF_MULTICAST))
        # An address that may be the source of a multicast datagram: those in
        # 127.0.0.0/8 are only taken when a sender binds to them.
        fcntl.ioctl(any_socket, SIOCSIFADDR,
                    struct.pack("16s16s8x", b"lo:1", _address(LIVE)))
        route = _Route(flags=1, dev=b"lo")
        route.dst[:] = _address("224.0.0.0")
        route.mask[:] = _address("240.0.0.0")
        if libc.ioctl(any_socket.fileno(), SIOCADDRT, ctypes.byref(route)):
            raise OSError(ctypes.get_errno(), "no route for multicast")


@pytest.fixture(scope="module")
def own_network():
    """This thread, and all that it starts, in a network of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET) != 0:
        os.close(outside)
        pytest.skip("no network of our own can be had: multicast would leave "
                    f"the machine ({os.strerror(ctypes.get_errno())})")
    try:
        _raise_loopback()
        yield
    finally:
        libc.setns(outside, CLONE_NEWNET)
        os.close(outside)


# ---------------------------------------------------------------------------
# Senders and monitors
# ---------------------------------------------------------------------------

class Beats:
    """A server whose heart beats by hand, from an address of its own."""

    def __init__(self, address):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def _beat(self):
        while not self._stop.wait(0.2):
            self._socket.sendto(b"v=1&ready=15&busy=2", (GROUP, PORT))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._socket.close()


def known(sm):
    """Slot by slot, which servers the monitor knows."""
    size = sm.info(SEGMENT).slot_size
    found = {i: sm.get(SEGMENT, i, size) for i in sm.in_use(SEGMENT)}
    # One may have been released in between.
    return {i: answer.bytes.partition(b"\0")[0].decode()
            for i, answer in found.items() if answer.ok}


def knows(server, *addresses):
    """Every child does, whichever of them listens."""
    wanted = dict(enumerate(addresses))
    return all(known(server.slotmem(pid)) == wanted
               for pid in server.children(server.generation))


def wait_known(servers, *addresses, limit=None):
    for label, server in servers.items():
        harness.wait_for(lambda: knows(server, *addresses),
                         lambda: f"{label} to know {addresses}, not "
                         f"{known(server.slotmem())}", limit)


@pytest.fixture(scope="module")
def monitors(request, own_network, shared_httpd):
    """Servers that balance by heartbeats, with one sender behind them."""
    backends = balancer.Backends(
        shared_httpd, 2, modules=["watchdog", "heartbeat"], conf=f"""
        Listen {LIVE}:${{PORT0}}
        Listen {BY_HAND}:${{PORT1}}
        HeartbeatAddress {GROUP}:{PORT}""")
    ports = backends.server.ports
    conf = MONITOR + f"HeartbeatListen {GROUP}:{PORT}\n" + cluster(
        [f"http://{LIVE}:{ports[0]}", f"http://{BY_HAND}:{ports[1]}"],
        options="lbmethod=heartbeat")

    option = request.config.getoption
    mpms = option("--mpm") or harness.MPMS
    targets = [("ours", mpm) for mpm in mpms] + [("stock", mpms[0])]
    return {"-".join(target): shared_httpd(
                conf=conf, modules=MONITOR_MODULES, mpm=target[1],
                slotmem_module=module_path(target[0]))
            for target in targets if option("--module") in (None, target[0])}


def test_positive_control_traffic_goes_where_the_heart_beats(monitors):
    """Fails when a beat does not come through from the watchdog thread of one
    child, by way of a slot, to a request in another.

    Two members are configured, one of them beats.
    """
    wait_known(monitors, LIVE)
    for label, server in monitors.items():
        assert server.slotmem().info(SEGMENT).num_slots == 12
        for seen in balancer.in_every_child(server,
                                            lambda: answered(server, 4)):
            assert seen == {"0"}, label


def test_server_that_comes_and_goes_takes_and_frees_a_slot(monitors):
    """Fails when the monitor cannot take a slot while requests read them, or
    when a slot that it releases stays in use, or is not the next to be given.

    mod_lbmethod_heartbeat forgets a server 10 s after its last beat, and
    mod_heartmonitor releases its slot after 30 s.
    """
    with Beats(BY_HAND):
        wait_known(monitors, LIVE, BY_HAND)
        for label, server in monitors.items():
            harness.wait_for(lambda: answered(server, 20) == {"0", "1"},
                             f"traffic to both servers by way of {label}")
    for label, server in monitors.items():
        harness.wait_for(lambda: answered(server, 20) == {"0"},
                         f"no traffic to a dead server by way of {label}")
    wait_known(monitors, LIVE, limit=60)
    with Beats(LATE):
        wait_known(monitors, LIVE, LATE)


def test_restart_begins_with_an_empty_table_that_fills_again(monitors):
    """Fails when servers that died during a restart stay known, or when beats
    are no longer heard after it."""
    for restart in harness.Httpd.graceful, harness.Httpd.restart:
        for server in monitors.values():
            restart(server)
        # LATE was known before, and beats no more.
        wait_known(monitors, LIVE)
        for label, server in monitors.items():
            harness.wait_for(lambda: answered(server, 4) == {"0"},
                             f"traffic by way of {label}")


def post_beat(server, address, busy):
    connection = http.client.HTTPConnection("127.0.0.1", server.port,
                                            harness.LIMIT, (address, 0))
    connection.request("POST", "/heartbeat", f"v=1&ready=15&busy={busy}")
    assert connection.getresponse().status == 200
    connection.close()


def test_many_servers_that_post_at_once_get_a_slot_each(own_network, httpd,
                                                        target):
    """Fails when two threads or children are given one slot, or when a slot
    stays empty or a server has two: every child grabs and puts at once."""
    # It heeds posts only if it listens as well: to a group without senders.
    server = httpd(conf=MONITOR + f"HeartbeatListen {QUIET_GROUP}:{PORT}",
                   modules=MONITOR_MODULES, target=target, children=3)
    addresses = [f"127.0.0.{i}" for i in range(11, 23)]
    failures = []

    def post(address):
        try:
            for busy in range(1, 6):
                post_beat(server, address, busy)
        except Exception as error:      # told to the test below
            failures.append(error)

    threads = [threading.Thread(target=post, args=(address,))
               for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for pid in server.children():
        sm = server.slotmem(pid)
        assert sorted(known(sm)) == list(range(12))
        assert sorted(known(sm).values()) == addresses
        assert sm.info(SEGMENT).num_free == 0
        for i in range(12):
            # struct hm_slot_server_t: char ip[46]; int busy, ready; ...
            data = sm.get(SEGMENT, i, 56).bytes
            assert struct.unpack_from("ii", data, 48) == (5, 15)
