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
"""What stored files say of whose slot is whose, and what is not believed.

Each test is one balancer with live members, stopped, its file looked at or
changed, and started again.  Members are written as in members_model.py.
"""

import glob
import hashlib
import os
import re

import pytest

import balancer
import members_random
import storedfile
from conftest import module_path
from members_model import (LETTERS, RESTARTS, Configuration, Entry, Model,
                           Site, parse_member)

HEAD, MD5, DESCRIPTOR = 8, 16, 16       # bytes around the slots of a file


@pytest.fixture(scope="module")
def backends(shared_httpd):
    return balancer.Backends(shared_httpd, len(LETTERS),
                             **members_random.BACKENDS)


class One:
    """A balancer by the name of "one", and what should be seen of it."""

    def __init__(self, httpd, backends, **options):
        self.site = Site(httpd, backends, ["one"], **options)
        self.server = self.site.server
        self.wanted = ""

    def start(self, configuration, which=None):
        if which:
            self.server.slotmem_module = module_path(which)
        self.configuration = Configuration.parse(configuration)
        self.site.configure({"one": self.configuration}, None)
        return self

    def stop(self):
        self.server.stop()
        return self

    def again(self, kind):
        self.site.configure({}, RESTARTS[kind])

    def set(self, text):
        for word in text.split():
            letter, state, is_added = parse_member(word)
            (self.site.add if is_added else self.site.change)("one", letter,
                                                              state)
        return self

    def model(self, text):
        model = Model()
        model.configuration, model.sticky = self.configuration, None
        model.members = {letter: Entry(state, is_added) for letter, state,
                         is_added in map(parse_member, text.split())}
        return model

    def shows(self, text, but=()):
        """Fails if something else than text is there, and not in but."""
        model = self.model(text)
        seen = self.site.look({"one": model})["one"]
        assert not isinstance(seen, Exception), seen
        complaints = [one for one in model.complaints(seen)
                      if not any(word in one for word in but)]
        assert complaints == [], f"{complaints}; it shows {seen}"

    @property
    def path(self):
        found, = glob.glob(os.path.join(self.server.run_dir,
                                        "*_one.shm.persist"))
        return found

    def name(self):
        """The segment's name, as the provider knows it."""
        return re.sub(r"^slotmem-shm-|\.shm\.persist$", "",
                      os.path.basename(self.path))

    def whole(self):
        """(the image that the stock module knows, what follows it)."""
        made = self.size_and_number()
        length = HEAD + made[1] * (made[0] + 1) + MD5 + DESCRIPTOR
        raw = storedfile.read(self.path)
        assert len(raw) >= length
        return raw[:length], raw[length:]

    def size_and_number(self):
        line = self.server.log_lines(rf"AH02300: create {self.name()}: ")[-1]
        return tuple(map(int, re.search(r": (\d+)/(\d+)", line.partition(
            "AH02300")[2]).groups()))


@pytest.fixture
def one(httpd, backends, mpm):
    return One(httpd, backends, mpm=mpm)


# ---------------------------------------------------------------------------
# The stock module's files
# ---------------------------------------------------------------------------

def test_file_of_the_stock_module_is_served_as_by_it(one):
    """Fails when one who moves here loses members or state, since the file
    does not say whose they are; or when it is not known from then on."""
    one.start("a b c growth=2", "stock").set("b- c*3 +d").stop()
    one.start("a b c growth=2", "ours").shows("a b- c*3 +d")
    one.set("+e").shows("a b- c*3 +d +e")
    one.stop().start("a c growth=2").shows("a c*3 +d +e")


@pytest.mark.parametrize("after", ["a e c growth=2", "e a c growth=2"])
def test_configuration_wins_over_a_file_of_the_stock_module(one, after):
    """Fails when a member of the configuration finds no slot, or takes that
    of another, or when one that was taken out is served: the file does not
    say which were added at run time, and the configuration is another."""
    one.start("a b c growth=2", "stock").set("a- c*3 +d").stop()
    one.server.expect_log(r"slotmem_shm: .*_one\b")
    one.start(after, "ours").shows("a- e c*3")
    one.set("+d").again("graceful")
    one.shows("a- e c*3 +d")


def test_more_configured_than_a_file_of_the_stock_module_has_room_for(one):
    """Fails when the server does not start, or does not ask a member."""
    one.start("a b growth=2", "stock").set("b- +c +d").stop()
    one.server.allow_log(r"slotmem_shm: .*_one\b")
    one.start("a b e f growth=0", "ours").shows("a b- e f")
    one.again("kill")
    one.shows("a b- e f")


def test_file_is_one_that_the_stock_module_reads(one):
    """Fails when what is added for us spoils the file for the stock module,
    or when what it makes of it is not what we go on with."""
    one.start("a b c growth=2", "ours").set("b- c*3 +d*2").stop()
    one.start("a b c growth=2", "stock").shows("a b- c*3 +d*2",
                                               but=("offers",))
    one.set("d- b").stop()
    one.start("a b c growth=2", "ours").shows("a b c*3 +d-")
    one.stop().start("a c growth=2", "ours").shows("a c*3 +d-")


# ---------------------------------------------------------------------------
# Older stock modules
# ---------------------------------------------------------------------------

OLDER = {"no descriptor": DESCRIPTOR, "no MD5 either": DESCRIPTOR + MD5}


@pytest.mark.parametrize("missing", OLDER)
def test_file_of_an_older_stock_module_is_restored(one, missing):
    """Fails when one who upgrades from an old httpd loses what was set."""
    one.start("a b c growth=2", "ours").set("b- c*3 +d").stop()
    image, _ = one.whole()
    storedfile.write(one.path, image[:-OLDER[missing]])
    one.start("a b c growth=2").shows("a b- c*3 +d")
    one.again("graceful")
    one.shows("a b- c*3 +d")
    # It is stored as a file of today.
    one.stop()
    image, _ = one.whole()
    assert hashlib.md5(image[:-32]).digest() == image[-32:-16]


@pytest.mark.parametrize("cut", [DESCRIPTOR - 1, DESCRIPTOR + 1,
                                 DESCRIPTOR + MD5 - 1, DESCRIPTOR + MD5 + 1])
def test_file_that_is_as_long_as_no_module_stored_it_is_refused(
        one, cut):
    """Fails when a file that was cut off is taken for one of an older module:
    what it holds would be shifted, or end in the middle."""
    one.start("a b c growth=2").set("b- c*3").stop()
    image, _ = one.whole()
    storedfile.write(one.path, image[:-cut])
    one.server.expect_log(r"slotmem_shm: .*_one\b")
    one.start("a b c growth=2").shows("a b c")


def test_damaged_file_without_descriptor_is_refused(one):
    """Fails when the MD5 of an older file is not asked."""
    one.start("a b c growth=2").set("b- c*3").stop()
    image, _ = one.whole()
    image = bytearray(image[:-DESCRIPTOR])
    image[HEAD + 3] ^= 1
    storedfile.write(one.path, bytes(image))
    one.server.expect_log(r"slotmem_shm: .*_one\b")
    one.start("a b c growth=2").shows("a b c")


# ---------------------------------------------------------------------------
# What is added
# ---------------------------------------------------------------------------

def test_claims_that_belong_to_another_image_are_not_believed(one):
    """Fails when members added at run time go, because what the file says of
    whose they are was stored with other contents: a stock module in between,
    or a copy from elsewhere, and the same number of slots."""
    one.start("a b c d growth=1").stop()
    _, all_configured = one.whole()
    assert all_configured, "the file does not say whose slots are whose"
    os.unlink(one.path)
    one.start("a b c growth=2").set("b- +d*3").stop()
    image, claims = one.whole()
    assert claims != all_configured
    storedfile.write(one.path, image + all_configured)
    one.server.allow_log(r"slotmem_shm: .*_one\b")
    one.start("a b c growth=2").shows("a b- c +d*3")


@pytest.mark.parametrize("where", [0, -1])
def test_damaged_claims_are_not_believed_and_the_image_is(one, where):
    """Fails when one bit behind the image costs what the image holds."""
    one.start("a b c growth=2").set("b- +d*3").stop()
    image, claims = one.whole()
    assert claims, "the file does not say whose slots are whose"
    claims = bytearray(claims)
    claims[where] ^= 1
    storedfile.write(one.path, image + bytes(claims))
    one.server.allow_log(r"slotmem_shm: .*_one\b")
    one.start("a b c growth=2").shows("a b- c +d*3")


def test_claims_that_were_changed_are_not_believed(one):
    """Fails when what was added at run time is taken for a member that the
    configuration had and has no more, because a disk says so."""
    one.start("a b c growth=2").set("b- +d*3").stop()
    image, claims = one.whole()
    kinds, end = claims[:-48], claims[-48:]
    assert kinds.count(2) == 1, "nothing was added at run time"
    storedfile.write(one.path, image + kinds.replace(b"\2", b"\1") + end)
    one.server.allow_log(r"slotmem_shm: .*_one\b")
    one.start("a b c growth=2").shows("a b- c +d*3")


def test_claims_cut_off_at_any_length_are_not_believed(one):
    """Fails when half of what is added is taken for the whole, or for a
    damaged image."""
    one.start("a b c growth=2").set("b- +d*3").stop()
    image, claims = one.whole()
    assert claims, "the file does not say whose slots are whose"
    one.server.allow_log(r"slotmem_shm: .*_one\b")
    for length in sorted({0, 1, len(claims) // 2, len(claims) - 1}):
        storedfile.write(one.path, image + claims[:length])
        one.start("a b c growth=2").shows("a b- c +d*3")
        one.stop()
    one.start("a b c growth=2")


def test_pregrab_segments_are_stored_as_ever(httpd, mpm):
    """Fails when consumers that find their slots by number (mod_heartmonitor,
    mod_proxy_cluster) see a change: whoever grabbed a slot, parent or child,
    it is as it was after each restart, and the file is the image alone."""
    server = httpd("SlotmemTestCreate seg 64 8 persist+pregrab", mpm=mpm,
                   start=False)
    server.at_stage("post_config", "grab h=seg", "put h=seg i=0 data=aa")
    server.start()
    slotmem = server.slotmem()
    assert slotmem.grab("seg").id == 1
    assert slotmem.put("seg", 1, b"child").ok
    # Content that no grab belongs to.
    assert slotmem.fgrab("seg", 5).ok and slotmem.put("seg", 5, b"five").ok
    for kind in RESTARTS.values():
        kind(server)
        slotmem = server.slotmem()
        assert slotmem.get("seg", 0, 1).bytes == b"\xaa"
        assert slotmem.get("seg", 1, 5).bytes == b"child"
        assert slotmem.get("seg", 5, 4).bytes == b"five"
        assert slotmem.in_use("seg") == [0, 1, 5]
    server.stop()
    assert len(storedfile.read(server.persist_path("seg"))) == \
        HEAD + 8 * (64 + 1) + MD5 + DESCRIPTOR
    server.start()


CLEARED = "SlotmemTestCreate seg 64 {} persist+clearinuse"


def test_slots_that_a_consumer_put_or_got_while_it_configured_are_its_own(
        httpd, mpm):
    """Fails when a consumer that neither grabs nor searches, but uses slots by
    number, finds them free after a restart."""
    server = httpd(CLEARED.format(4), mpm=mpm, start=False)
    server.at_stage("post_config", "fgrab h=seg i=1", "put h=seg i=1 data=61",
                    "put h=seg i=2 data=62")
    server.start()
    for kind in RESTARTS.values():
        server.at_stage("post_config", "get h=seg i=1 len=1",
                        "put h=seg i=2 data=63")
        kind(server)
        assert server.stage("post_config")[-2].bytes == b"a"
        slotmem = server.slotmem()
        assert slotmem.get("seg", 2, 1).bytes == b"c"
        assert sorted(slotmem.grab("seg").id for _ in range(2)) == [0, 3]
        assert slotmem.release("seg", 0).ok and slotmem.release("seg", 3).ok


def test_claims_of_a_kind_that_is_none_are_not_believed(httpd, mpm):
    """Fails when a later version's note is taken for one of this version's:
    the image counts, as if nobody had noted whose its slots are."""
    server = httpd(CLEARED.format(4), mpm=mpm, start=False)
    claim = "info h=seg", "dptr h=seg i=1", "fgrab h=seg i=1"
    server.at_stage("post_config", *claim, "put h=seg i=1 data=61")
    server.start()
    assert server.slotmem().put("seg", 3, b"added").ok
    server.stop()
    path = server.persist_path("seg")
    image, kinds = storedfile.split_trailer(storedfile.read(path))
    assert kinds == bytes([0, 1, 0, 2])
    trailer = storedfile.read(path)[len(image):]
    kinds = bytes([0, 1, 0, 3])
    digest = hashlib.md5(kinds + trailer[4:20]).digest()
    storedfile.write(path, image + kinds + trailer[4:20] + digest
                     + trailer[36:])
    assert storedfile.split_trailer(storedfile.read(path))[1] == kinds
    server.at_stage("post_config", *claim)
    server.start()
    slotmem = server.slotmem()
    assert slotmem.get("seg", 1, 1).bytes == b"a"
    assert slotmem.read("seg", 3, 5) == b"added"
    assert sorted(slotmem.grab("seg").id for _ in range(2)) == [0, 2]


def test_file_with_more_than_a_consumer_asks_for_is_kept(httpd, mpm):
    """Fails when what a smaller configuration does not look at is lost for
    good."""
    server = httpd(CLEARED.format(6), mpm=mpm, start=False)
    server.at_stage("post_config",
                    *(f"fgrab h=seg i={i}" for i in range(6)),
                    *(f"put h=seg i={i} data={0x61 + i:x}" for i in range(6)))
    server.start()
    server.stop()
    whole = storedfile.read(server.persist_path("seg"))
    server.conf = CLEARED.format(4)
    server.at_stage("post_config", "fgrab h=seg i=0")
    server.expect_log("AH02551: .*holds more slots than the configuration")
    server.start()
    assert storedfile.read(server.persist_path("seg") + ".rejected") == whole
    assert server.slotmem().get("seg", 0, 1).bytes == b"a"


def test_larger_file_of_which_nobody_noted_whose_the_slots_are(httpd):
    """Fails when the stock module's file is cut to what fits."""
    server = httpd(CLEARED.format(4), start=False)
    path = server.persist_path("seg")
    whole = storedfile.image(64, 6, "persist+clearinuse",
                             {i: b"%d" % i for i in range(6)})
    storedfile.write(path, whole)
    server.expect_log("AH02551: .*does not fit the configuration of today")
    server.start()
    assert storedfile.read(path + ".rejected") == whole
    assert server.slotmem().read("seg", 0, 256) == bytes(256)


# ---------------------------------------------------------------------------
# Names, and virtual hosts
# ---------------------------------------------------------------------------

def who(server, path, count=8):
    return {LETTERS[int(body)] for body in balancer.answered(server, count,
                                                            path)}


def test_balancers_whose_names_differ_in_a_dash_alone(httpd, backends, mpm):
    """Fails when the server does not start, since mod_proxy_balancer makes one
    segment's name of both, or when nothing names the cause.

    They share the segment, and so in time their members: that is what the
    warning is for.  httpd says AH00965 with both modules when the first has
    the fewer slots.  Without growth the second finds no slot, here as with the
    stock module, and httpd refuses the configuration.
    """
    urls = backends.urls
    server = httpd("BalancerPersist On\n" + balancer.MANAGER
                   + balancer.cluster(urls[:1], "app-1", "/dash")
                   + balancer.cluster(urls[1:3], "app.1", "/dot"),
                   modules=balancer.MODULES, mpm=mpm, start=False)
    server.expect_log(r"slotmem_shm: .*app_1\b")
    server.allow_log("AH00965: worker slotmem_dptr failed")
    for kind in (lambda server: server.start(), *RESTARTS.values()):
        logged = len(server.log())
        kind(server)
        warned = [line for line in server.log()[logged:].splitlines()
                  if re.search(r"\[slotmem_shm:(warn|error)\]", line)]
        assert len(warned) == 1, warned
        assert "app-1" in warned[0] and "app.1" in warned[0]
        assert who(server, "/dash/who", 12) >= {"a"}
        assert who(server, "/dot/who", 12) >= {"b", "c"}


def test_balancer_of_the_main_server_that_virtual_hosts_inherit(httpd,
                                                                backends, mpm):
    """Fails when it is not one balancer for the administrator.

    mod_proxy gives each virtual host a segment of its own for it, and the
    members are shared: what the main server restores at run time is one of
    the configuration for the virtual hosts.
    """
    urls = backends.urls
    conf = ("BalancerPersist On\n" + balancer.MANAGER + """
        <VirtualHost 127.0.0.1:${PORT1}>
        </VirtualHost>
        <VirtualHost 127.0.0.1:${PORT2}>
        </VirtualHost>""")
    server = httpd(conf + balancer.cluster(urls[:3], "main", "/main"),
                   modules=balancer.MODULES, mpm=mpm, ports=3)
    manager = balancer.Manager(server)
    manager.change(urls[1], "main", w_status_D="1", w_lf="3")
    manager.add(urls[3], "main")
    manager.change(urls[3], "main", w_status_D="0")
    for title, kind in [*RESTARTS.items(), *RESTARTS.items()]:
        kind(server)
        for port in server.ports:
            members = balancer.Manager(server, port).members("main")
            assert set(members) == set(urls[:4]), title
            assert members[urls[1]].status == {"Dis"}, title
            assert members[urls[1]].load_factor == 3, title
        assert who(server, "/main/who") == {"a", "c", "d"}, title
    server.conf = conf + balancer.cluster(urls[1:3], "main", "/main")
    server.write_config()
    server.graceful()
    for port in server.ports:
        members = balancer.Manager(server, port).members("main")
        assert set(members) == set(urls[1:4])
        assert members[urls[1]].status == {"Dis"}
    assert who(server, "/main/who") == {"c", "d"}
