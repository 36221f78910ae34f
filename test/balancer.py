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
"""Live backends, and a client for balancer-manager's own form.

Nothing here knows of shared memory: a balancer is changed and looked at the
way an administrator does it, in a browser.
"""

import contextlib
import html.parser
import os
import re
import signal
import subprocess
import tempfile
import typing
import urllib.parse
import xml.etree.ElementTree

import httpd as harness

# What a server that balances loads besides; slotmem_shm comes after them in
# the configuration, so that they must find it by the order of hooks.
MODULES = ["status", "proxy", "proxy_http", "proxy_balancer",
           "lbmethod_byrequests"]
MANAGER = """
<Location /balancer-manager>
  SetHandler balancer-manager
</Location>
"""
XMLNS = "{http://httpd.apache.org}"


class Backends:
    """One httpd that is several backends; each says its number at /who.

    It has no slotmem module, and stays up while the server before it is
    restarted.
    """

    def __init__(self, httpd, count, conf="", **options):
        vhosts = "".join(f"""
            <VirtualHost *:${{PORT{i}}}>
              DocumentRoot ${{ROOT}}/htdocs/{i}
            </VirtualHost>""" for i in range(count))
        self.server = httpd(conf=vhosts + conf, ports=count, consumer=None,
                            slotmem_module=None, loglevel="info", start=False,
                            **options)
        for i in range(count):
            self.serve(i, "who", str(i))
        self.server.start()
        self.urls = [f"http://127.0.0.1:{port}" for port in self.server.ports]

    def _path(self, i, name):
        return os.path.join(self.server.root, "htdocs", str(i), name)

    def serve(self, i, name, text):
        os.makedirs(os.path.dirname(self._path(i, name)), exist_ok=True)
        with open(self._path(i, name), "w") as file:
            file.write(text)

    def serve_no_more(self, i, name):
        os.unlink(self._path(i, name))


def cluster(urls, name="cluster", path="/app", options="growth=2", member=""):
    """Directives of a balancer."""
    members = "\n".join(f"  BalancerMember {url} {member}" for url in urls)
    settings = f"  ProxySet {options}" if options else ""
    return f"""
ProxyPass "{path}" "balancer://{name}"
<Proxy "balancer://{name}">
{members}
{settings}
</Proxy>
"""


def answered(server, count, path="/app/who", port=None):
    """Which backends answered so many requests; each must be answered."""
    bodies = []
    for _ in range(count):
        status, body = server.get(path, port=port)
        assert status == 200, f"{path} was answered with status {status}"
        bodies.append(body)
    return set(bodies)


class Load:
    """ab in the background, for as long as the block lasts.

    Afterwards failed is how many requests came to nothing or were answered
    with something else than they should, of complete ones.
    """

    def __init__(self, server, path="/app/who", clients=4):
        self.command = ["ab", "-q", "-r", "-t", "3600", "-n", "100000000",
                        "-c", str(clients),
                        f"http://127.0.0.1:{server.port}{path}"]
        self.complete = self.failed = None

    def __enter__(self):
        self._output = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self._output,
            stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_):
        # It reports when it is interrupted, unless its server has gone.
        self._process.send_signal(signal.SIGINT)
        self._process.wait(harness.LIMIT)
        self._output.seek(0)
        self.report = self._output.read()
        self._output.close()
        self.complete = self._number("Complete requests")
        self.failed = (self._number("Failed requests")
                       + self._number("Non-2xx responses"))

    def _number(self, what):
        found = re.search(what + r": +(\d+)", self.report)
        return int(found[1]) if found else 0


class Member(typing.NamedTuple):
    """A member as the manager shows it."""
    url: str
    route: str
    load_factor: float
    lbset: int
    status: frozenset      # of words such as Ok, Dis, Drn, Err, HcFl
    elected: int

    @property
    def settings(self):
        """What must outlive a restart, whatever the traffic was."""
        return self._replace(elected=0)


class Balancer(typing.NamedTuple):
    name: str
    nonce: str
    timeout: int
    sticky: str
    members: typing.Dict[str, Member]

    @property
    def settings(self):
        return self._replace(members={url: member.settings for url, member
                                      in self.members.items()})


class _Form(html.parser.HTMLParser):
    """The form of a page: where it goes, and what a browser would send."""

    def __init__(self, page):
        super().__init__()
        self.action, self.fields, self._select = None, {}, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "form":
            self.action = attrs["action"]
        elif tag == "select":
            self._select = attrs["name"]
        elif tag == "option":
            if "selected" in attrs or self._select not in self.fields:
                self.fields[self._select] = attrs["value"]
        elif tag == "input" and attrs.get("name"):
            kind = attrs.get("type", "text")
            chosen = kind not in ("radio", "checkbox") or "checked" in attrs
            if chosen:
                self.fields[attrs["name"]] = attrs.get("value", "")
            else:
                self.fields.setdefault(attrs["name"], None)


class Manager:
    """balancer-manager of a server, or of the virtual host at a port."""

    def __init__(self, server, port=None):
        self.server, self.port = server, port
        self.path = "/balancer-manager"

    def _ask(self, method, path, body=None):
        # It heeds no parameter that comes without a Referer of its own.
        headers = {"Referer": f"http://127.0.0.1{self.path}"}
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        status, answer = self.server.request(method, path, body, headers,
                                             port=self.port)
        assert status == 200, f"{path} was answered with status {status}"
        return answer.decode()

    def balancers(self):
        page = self._ask("GET", self.path + "?xml=1")
        if not page.lstrip().startswith("<?xml"):
            # httpd 2.4.37 to 2.4.41 wants to be shown a nonce even for this.
            page = self._ask("GET", self.path + "?xml=1&" + re.search(
                r"\?(b=[^&\"]+)&(?:amp;)?(?:w=[^&\"]*&(?:amp;)?)?"
                r"(nonce=[-\w]+)", page).expand(r"\1&\2"))
        found = {}
        root = xml.etree.ElementTree.fromstring(page)
        for node in root.iter(XMLNS + "balancer"):
            one = self._balancer(node)
            found[one.name] = one
        return found

    @staticmethod
    def _balancer(node):
        def text(of, name):
            return of.findtext(XMLNS + name, "").strip()

        members = {}
        for one in node.iter(XMLNS + "worker"):
            # Init says only that the child which answers has used the member.
            status = frozenset(text(one, "status").split()) - {"Init"}
            name = text(one, "name")
            while name in members:
                name += " again"        # no two rows may look like one
            members[name] = Member(
                text(one, "name"), text(one, "route"),
                float(text(one, "loadfactor")), int(text(one, "lbset")),
                status, int(text(one, "elected")))
        return Balancer(text(node, "name")[len("balancer://"):],
                        text(node, "nonce"), int(text(node, "timeout")),
                        text(node, "stickysession"), members)

    def balancer(self, name="cluster"):
        return self.balancers()[name]

    def members(self, name="cluster"):
        return self.balancer(name).members

    def status(self, url, name="cluster"):
        return self.members(name)[url].status

    def form(self, name="cluster", member=None, nonce=None):
        query = {"b": name, "nonce": nonce or self.balancer(name).nonce}
        if member:
            query["w"] = member
        form = _Form(self._ask("GET", self.path + "?"
                               + urllib.parse.urlencode(query)))
        assert form.action, f"no form is offered for {member or name}"
        return form

    def _submit(self, form, changes):
        unknown = set(changes) - set(form.fields)
        assert not unknown, f"the form does not offer {unknown}"
        fields = {key: value for key, value
                  in dict(form.fields, **changes).items() if value is not None}
        self._ask("POST", urllib.parse.urlsplit(form.action).path,
                  urllib.parse.urlencode(fields))

    def change(self, member, name="cluster", **changes):
        """Sends the form of a member back with some fields changed.

        w_lf load factor, w_wr route, w_ls set, w_status_D disabled,
        w_status_N draining ...
        """
        self._submit(self.form(name, member), changes)

    def change_balancer(self, name="cluster", **changes):
        """b_tmo timeout, b_ss sticky session, b_max attempts ..."""
        self._submit(self.form(name), changes)

    def add(self, url, name="cluster"):
        """A member that no configuration names; it begins disabled."""
        self._submit(self.form(name), {"b_nwrkr": url, "b_wyes": "1"})
        assert url in self.members(name), f"{url} was not added"


def in_every_child(server, ask):
    """What ask() returns when each child in turn is the one that answers.

    For a server of one port: those of several let a child that is halted
    keep the others from accepting.
    """
    answers = []
    for chosen in server.children(server.generation):
        with halted([pid for pid in server.children() if pid != chosen]):
            answers.append(ask())
    return answers


@contextlib.contextmanager
def halted(pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in pids:
            harness.wait_for(lambda pid=pid: (harness.process_stat(pid)
                                              or "T")[0] == "T",
                             f"process {pid} to halt")
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
