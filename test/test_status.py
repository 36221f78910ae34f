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
"""What server-status says about the segments.

An administrator must be able to tell at once what is stored, how full each
segment is and what the last restart brought back; programs read ?auto.  The
stock module shows nothing, so only ours is asked.
"""

import html.parser
import os
import re
import shutil
import socket
import subprocess
import threading
import time

import pytest

import httpd as harness
import layout
import sharedmem
import shim
from rundir import halt_helper

BALANCER = """
<Proxy balancer://app>
    BalancerMember http://127.0.0.1:${PORT1} route=a
    BalancerMember http://127.0.0.1:${PORT2} route=b
    ProxySet growth=6
</Proxy>
ProxyPass /app balancer://app
BalancerPersist On
"""
PROXY = ["status", "proxy", "proxy_http", "proxy_balancer",
         "lbmethod_byrequests"]
CHECKPOINT_LIMIT = 40       # seconds in which one must have been made


class Page(html.parser.HTMLParser):
    """The section as a person sees it: lines, rows, and titles of cells."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.section = text[text.index('<h2 id="slotmem">'):]
        self.lines, self.rows, self.titles, self.tags = [], [], {}, set()
        self._cell = self._line = None
        self.feed(self.section)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag == "dt":
            self._line = []
        title = dict(attrs).get("title")
        if title is not None:
            where = (len(self.rows) - 1, len(self.rows[-1])) \
                if self._cell is not None else len(self.lines)
            self.titles[where] = title

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append("".join(self._cell))
            self._cell = None
        elif tag == "dt":
            self.lines.append("".join(self._line))
            self._line = None

    def handle_data(self, data):
        for sink in self._cell, self._line:
            if sink is not None:
                sink.append(data)

    def row(self, name):
        """The cells of a segment's row, by the heading above them."""
        heads = ["Segment", "In use", "bar", "Stored", "Began with",
                 "Slot size", "Memory", "Flags", "Stored file"]
        found = [row for row in self.rows if row and row[0] == name]
        assert len(found) == 1, f"{len(found)} rows of {name!r}: {self.rows}"
        return dict(zip(heads, found[0]))

    @property
    def segments(self):
        """The rows between the head and the sum."""
        assert self.rows[-1][0].startswith("Sum of ")
        return self.rows[1:-1]


def page(server, query=""):
    status, text = server.get("/server-status" + query)
    assert status == 200
    return Page(text)


def auto(server):
    """?auto, as apache_exporter reads it: split once at the first colon."""
    status, text = server.get("/server-status?auto")
    assert status == 200
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    keys = [key for key, _ in pairs if key.startswith("Slotmem")]
    assert len(keys) == len(set(keys)), "a key came twice"
    return {key.strip(): value.strip() for key, value in pairs}


def segment(keys, name):
    """One segment's keys without their prefix."""
    for number in range(int(keys["SlotmemSegments"])):
        prefix = f"SlotmemSegment{number}"
        if keys[prefix + "Name"] == name:
            return {key[len(prefix):]: value for key, value in keys.items()
                    if re.match(prefix + r"\D", key)}
    raise AssertionError(f"no segment {name} in {keys}")


def tidy_complaints(text):
    """What tidy says about our section, not about what mod_status wrote."""
    first = text[:text.index('<h2 id="slotmem">')].count("\n") + 1
    done = subprocess.run(["tidy", "-q", "-e", "-utf8"], input=text, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return [line for line in done.stdout.splitlines()
            if (lambda at: at is None or int(at[1]) >= first)(
                re.match(r"line (\d+) ", line))]


@pytest.mark.parametrize("extended", ["On", "Off"])
def test_positive_control_a_balancer_is_on_the_page(httpd, mpm, extended):
    """The plumbing, in each MPM: page, list and text say the same."""
    server = httpd(mpm=mpm, modules=PROXY, ports=3, consumer=None, conf=BALANCER
                   + f"ExtendedStatus {extended}")
    shown = page(server)
    name = next(row[0] for row in shown.segments if row[0].endswith("_app"))
    row = shown.row(name)
    assert row["In use"] == "2 of 8"
    assert row["Flags"] == "persist clearinuse"
    assert row["Began with"] == "nothing"
    assert row["Stored"] in ("not yet", "now") or "ago" in row["Stored"]
    assert row["Stored file"].startswith("slotmem-shm-")

    told = segment(auto(server), name)
    assert (told["Slots"], told["Used"]) == ("8", "2")
    assert told["Flags"] == row["Flags"]
    assert told["File"] == server.persist_path(name)
    assert told["Stored"].isdigit()
    assert told["Origin"] == row["Began with"]
    assert f"{told['SlotSize']} B" == row["Slot size"]

    listed = page(server, "?notable")
    assert "table" not in listed.tags
    assert any(line.startswith(f"{name}: 2 of 8 slots of")
               for line in listed.lines)


STORY = """
SlotmemTestCreate kept 64 10 persist+pregrab
SlotmemTestCreate fleeting 64 10 pregrab
SlotmemTestAttach kept
"""


def test_says_what_each_kind_of_restart_brought_back(httpd):
    """The question of whoever was called at night: is the state still there?"""
    server = httpd(STORY, modules=["status"])
    server.slotmem().grab("kept", n=3)
    assert "At the last start or restart 0 went on with the memory of the " \
           "generation before, 0 with that of a killed run, 0 were restored " \
           "from file, 1 began empty" in page(server).lines

    server.graceful()
    shown = page(server)
    assert "1 went on with the memory of the generation before, 0 with" \
           in " ".join(shown.lines)
    assert shown.row("kept")["Began with"] == "memory of the former generation"
    assert auto(server)["SlotmemBeganWithGeneration"] == "1"
    assert shown.row("kept")["In use"] == "3 of 10"
    assert shown.row("kept")["Stored"].endswith(" ago")
    assert shown.row("fleeting")["Began with"] == "nothing"
    assert shown.row("fleeting")["Stored"] == "no"

    server.slotmem().grab("kept")
    server.kill_all()
    server.start()
    shown = page(server)
    assert "1 with that of a killed run, 0 were restored from file, 0 began " \
           "empty" in " ".join(shown.lines)
    assert shown.row("kept")["Began with"] == "memory of a killed run"
    assert shown.row("kept")["In use"] == "4 of 10"
    keys = auto(server)
    assert keys["SlotmemBeganWithMemory"] == "1"
    assert segment(keys, "kept")["Origin"] == "memory of a killed run"


def test_says_that_a_stored_file_was_lost(httpd):
    """Beginning empty must not look like a first start."""
    server = httpd(STORY, modules=["status"])
    server.slotmem().grab("kept")
    server.stop()
    with open(server.persist_path("kept"), "r+b") as file:
        file.truncate(100)
    server.expect_log("AH02551.*slotmem-shm-kept")
    server.start()
    shown = page(server)
    assert "Lost: 1 stored file could not be used; the error log says why" \
           in shown.lines
    assert shown.row("kept")["Began with"] == "nothing (file put aside)"
    keys = auto(server)
    assert keys["SlotmemBeganWithBadFile"] == "1"
    assert segment(keys, "kept")["Origin"] == "nothing (file put aside)"


def test_says_that_another_httpd_has_the_directory(httpd):
    """Both would look alike, though only the first one stores anything."""
    first = httpd(STORY, modules=["status"])
    second = httpd(STORY, modules=["status"], start=False)
    second.conf += f"\nDefaultRuntimeDir {first.run_dir}\n"
    second.expect_log("another httpd")
    second.start()
    assert "Another httpd uses this runtime directory: nothing is stored here " \
           "before that one has ended" in page(second).lines
    assert auto(second)["SlotmemRuntimeDir"] == "heir"
    assert auto(first)["SlotmemRuntimeDir"] == "owner"
    second.stop()


@sharedmem.only_posix("shared memory is not in /dev/shm here")
def test_says_that_memory_has_no_name(httpd):
    """With a full /dev/shm the server runs, but a kill would cost more."""
    server = httpd(STORY, modules=["status"], start=False, env={
        "LD_PRELOAD": ""}, wrapper=[
            "unshare", "-m", "sh", "-c", "mount -t tmpfs -o ro tmpfs /dev/shm "
            '&& exec "$@"', "sh"])
    server.expect_log("AH02611")
    server.start()
    assert "The memory of 1 would not outlive a kill of the server; the " \
           "error log says why" in page(server).lines


def test_store_time_is_told_and_believed_only_if_possible(httpd):
    """It lies where children write: 2^63 microseconds must make no date."""
    server = httpd(STORY, modules=["status"], start=False)
    before = time.time()
    server.start()
    server.slotmem().grab("kept")
    harness.wait_for(lambda: page(server).row("kept")["Stored"] != "not yet",
                     "a checkpoint on the page", limit=CHECKPOINT_LIMIT)
    shown = page(server)
    assert re.fullmatch(r"\d+ s ago", shown.row("kept")["Stored"])
    assert re.search(r"Kept in files: 1, stored \d+ s ago",
                     "\n".join(shown.lines))
    keys = auto(server)
    assert before - 1 < int(segment(keys, "kept")["Stored"]) <= time.time()
    assert keys["SlotmemStoredOldest"] == segment(keys, "kept")["Stored"]

    halt_helper(server)     # it would tell again, of the grab
    at = layout.field("stored")
    for byte in 0xff, 0x7f, 0x10:
        server.slotmem().call("scribble", h="kept", byte=byte,
                              **{"from": at, "to": at + 8})
        assert page(server).row("kept")["Stored"] == "not yet"
        assert segment(auto(server), "kept")["Stored"] == "0"


@pytest.mark.parametrize("hours, said", [(3, "3 h ago"), (72, "3 days ago")])
def test_long_ago_is_told_in_hours_or_days(httpd, hours, said):
    """As where a disk has failed since Friday."""
    server = httpd(STORY, modules=["status"], start=False)
    clock = shim.Clock(server)
    server.start()
    harness.wait_for(lambda: page(server).row("kept")["Stored"] != "not yet",
                     "a checkpoint on the page", limit=CHECKPOINT_LIMIT)
    halt_helper(server)
    clock.step(hours * 3600)
    assert page(server).row("kept")["Stored"] == said
    clock.step(0)


def test_says_that_storing_fails(httpd):
    server = httpd(STORY, modules=["status"])
    line = "Storing fails: state is in memory alone; the error log says why"
    assert line not in page(server).lines
    server.allow_log("AH02334.*cannot store")
    path = server.persist_path("kept")
    harness.wait_for(lambda: os.path.exists(path), "the first store")
    os.mkdir(path + ".checkpoint")
    server.slotmem().grab("kept")
    harness.wait_for(lambda: line in page(server).lines, "the page to say so")
    os.rmdir(path + ".checkpoint")
    harness.wait_for(lambda: line not in page(server).lines,
                     "the page to say so no more")


def test_memory_is_told_in_units_that_fit(httpd):
    server = httpd("SlotmemTestCreate small 8 1 0\n"
                   "SlotmemTestCreate middle 1024 64 0\n"
                   "SlotmemTestCreate large 1048576 3 0", modules=["status"])
    told = [page(server).row(name)["Memory"]
            for name in ("small", "middle", "large")]
    assert re.fullmatch(r"\d+ B", told[0])
    assert told[1].endswith(" kB") and told[2] == "3.0 MB"


NASTY = ['<script>alert(1)<script>', "\"quotes'&amp;", "two\nSlotmemUsed: 7",
         "tab\tand\x01control", "caf\xe9", "%s%n%d", "a:b: c"]


def test_names_are_escaped_on_the_page_and_in_the_text(httpd):
    """A module may name a segment after what a client sent it."""
    server = httpd(modules=["status"], conf="\n".join(
        f"SlotmemTestCreate {harness.quote_name(name)} 8 4 0"
        for name in NASTY))
    text = server.get("/server-status")[1]
    assert "<script" not in text
    assert tidy_complaints(text) == []
    shown = page(server)
    assert len(shown.segments) == len(NASTY)
    assert shown.row(NASTY[0])
    assert any(row[0] == r"two\nSlotmemUsed: 7" for row in shown.segments)

    raw = server.get("/server-status?auto")[1]
    assert raw.count("\nSlotmemUsed: ") == 1
    keys = auto(server)
    assert keys["SlotmemUsed"] == "0"
    names = [keys[f"SlotmemSegment{i}Name"] for i in range(len(NASTY))]
    assert names[2] == r"two\nSlotmemUsed: 7"
    assert names[3] == r"tab\tand\x01control"
    assert all(name.isascii() and name.isprintable() for name in names)


def test_tidy_finds_nothing(httpd):
    """In every form of the page, with all that the section can hold."""
    assert shutil.which("tidy"), "test/install-deps.sh check installs it"
    server = httpd(BALANCER + STORY + f"SlotmemTestCreate {'n' * 100} 8 4 0",
                   modules=PROXY, ports=3)
    server.graceful()
    control = "<h2 id=\"slotmem\"><td>\n" + server.get("/server-status")[1]
    assert tidy_complaints(control), "tidy sees no fault where there is one"
    for query in "", "?notable", "?refresh=5":
        assert tidy_complaints(server.get("/server-status" + query)[1]) == []
    server.conf = "ExtendedStatus Off"      # and no segment at all
    server.write_config()
    server.graceful()
    text = server.get("/server-status")[1]
    assert "0 segments, 0 of 0 slots in use" in text
    assert tidy_complaints(text) == []


def test_page_brings_no_colours_and_scrolls_by_itself(httpd):
    """In a dark theme black on dark is nothing, and a background, even one in
    the colour of the text, stays dark; on a phone a wide table that does not
    scroll makes the whole page scroll."""
    server = httpd(STORY, modules=["status"])
    section = page(server).section
    for style in re.findall(r'style="([^"]*)"', section):
        assert "color" not in style and "background" not in style
    assert "bgcolor" not in section and "<font" not in section
    assert re.search(r'<div style="[^"]*overflow-x:auto[^"]*"><table', section)


def test_hundreds_of_segments_leave_the_page_light(httpd):
    """300 of them: the page lists 200, sums up all, and says where the rest
    is told; ?auto has each."""
    count, long = 300, "segment-" + "x" * 150
    server = httpd(modules=["status"], conf="\n".join(
        f"SlotmemTestCreate {long}{i} 16 4 0" for i in range(count)))
    server.slotmem().grab(f"{long}299")
    shown = page(server)
    assert len(shown.segments) == 200
    assert len(shown.section) < 150000
    assert shown.rows[-1][:2] == ["Sum of 300", "1 of 1200"]
    assert "100 more are not shown here" in shown.lines
    assert shown.rows[1][0] == (long + "0")[:25] + "..."
    assert shown.titles[1, 0] == long + "0"
    keys = auto(server)
    assert keys["SlotmemSegments"] == "300"
    assert keys["SlotmemSegment299Name"] == long + "299"
    assert keys["SlotmemSegment299Used"] == "1"


def test_rows_and_sum_agree_while_children_change_the_table(httpd):
    """Read twice, the sum would contradict the rows above it."""
    server = httpd(modules=["status"], children=2, conf="""
        SlotmemTestCreate one 64 2000 pregrab
        SlotmemTestCreate two 64 70 pregrab
    """)
    callers = [server.slotmem(pid) for pid in server.children()]
    threads = [threading.Thread(target=caller.hammer, args=(name, "owner"),
                                kwargs={"threads": 2, "ops": 0})
               for caller, name in zip(callers, ("one", "two"))]
    for thread in threads:
        thread.start()
    seen = set()
    try:
        harness.wait_for(lambda: auto(server)["SlotmemUsed"] != "0",
                         "the hammers to begin")
        for _ in range(40):
            server.slotmem().grab("one", n=7)
            shown = page(server)
            pairs = [tuple(map(int, row[1].split(" of ")))
                     for row in shown.segments]
            assert all(used <= slots for used, slots in pairs)
            total = tuple(map(sum, zip(*pairs)))
            assert shown.rows[-1][1] == f"{total[0]} of {total[1]}"
            keys = auto(server)
            assert int(keys["SlotmemUsed"]) == sum(
                int(keys[f"SlotmemSegment{i}Used"]) for i in range(2))
            seen.add(keys["SlotmemUsed"])
    finally:
        for pid in server.children():
            server.slotmem(pid).stop()
        for thread in threads:
            thread.join()
    assert len(seen) == 40, "nothing changed: the test proved nothing"


def test_slow_reader_holds_up_nobody(httpd):
    """Who wrote to the client under the registry's lock would let a stalled
    client stop every create and attach of that child."""
    server = httpd(modules=["status"], children=1, conf="\n".join(
        ["SendBufferSize 4096"] + [f"SlotmemTestCreate {'n' * 200}{i} 8 4 0"
                                   for i in range(1500)]))
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow.connect(("127.0.0.1", server.port))
    with slow:
        slow.sendall(b"GET /server-status?auto HTTP/1.0\r\n\r\n")
        assert slow.recv(10).startswith(b"HTTP/1.1 2")
        child = server.slotmem(server.children()[0])
        assert child.create("made meanwhile", 8, 4).ok
        assert child.attach("n" * 200 + "7").ok
        # It still has most of the answer to write.
        harness.wait_for(lambda: re.search(
            r"^Scoreboard: .*W.*W", server.get("/server-status?auto")[1],
            re.M), "the slow request to be in progress")


def collectd_reads(text):
    """The fields that collectd 5's apache plugin takes out of ?auto."""
    found = {}
    for line in re.split(r"[\n\r]+", text):
        fields = line.split()
        if len(fields) == 3 and fields[0] == "Total":
            found[" ".join(fields[:2])] = fields[2]
        elif len(fields) == 2 and fields[0] in ("Scoreboard:", "BusyWorkers:",
                                                "IdleWorkers:"):
            found[fields[0]] = fields[1]
    return found


def test_readers_of_today_read_the_same(httpd):
    """apache_exporter (first colon; lines below 64 KiB), Munin (regular
    expressions) and collectd (three words) find what they find without us."""
    fakes = ["Total Accesses: 666", "\nTotal Accesses: 666", "\rBusyWorkers: 9",
             "ServerVersion: Apache/x", "ProxyBalancer[0]Worker[0]Busy"]
    server = httpd(modules=["status"], conf="ExtendedStatus On\n" + "\n".join(
        f"SlotmemTestCreate {harness.quote_name(name)} 8 4 0"
        for name in fakes + ["n" * 3000]), start=False)
    server.allow_nameless()
    server.start()
    text = server.get("/server-status?auto")[1]
    ours = text.index("\nSlotmem")
    without = text[:ours] + "\n"
    assert collectd_reads(text) == collectd_reads(without) != {}
    for key in "Total Accesses", "Total kBytes", "BusyWorkers", "IdleWorkers":
        pattern = rf"(?im)^{key}:\s+(.+)$"
        assert re.findall(pattern, text) == re.findall(pattern, without) != []
    for line in text[ours + 1:].splitlines():
        assert len(line) < 65536
        assert re.fullmatch(r"Slotmem[A-Za-z0-9]+: \S.*", line)
