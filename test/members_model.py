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
"""What an administrator expects of a balancer's members, and a site to try.

Members are single letters, each a backend of its own; a capital letter is the
same backend by another name.  b- is disabled, b*3 has load factor 3, b@1 is in
set 1, +d was added in balancer-manager; +c|+d is exactly one of the two.  A
configuration is its members in their order and growth, as "a b c growth=2", or
NONE where the balancer is not configured at all.

Model says what must be seen after a restart.  Site is one server with any
number of balancers that do not touch each other, so that many cases share
the restarts, which is what takes time.
"""

import re
import typing

import balancer

LETTERS = "abcdefghij"
NONE = "none"
UNCLEAN = r"AH00098: pid file .* overwritten"
NOBODY = r"AH01170: balancer://\w+: All workers are in error state"
EMPTY = r"AH01171: balancer://\w+: No workers in balancer"


class State(typing.NamedTuple):
    """What balancer-manager may change of a member, and a restart must keep."""
    disabled: bool = False
    factor: float = 1
    lbset: int = 0

    def __str__(self):
        return (("-" if self.disabled else "")
                + (f"*{self.factor:g}" if self.factor != 1 else "")
                + (f"@{self.lbset}" if self.lbset else ""))


def parse_member(word):
    """("d", State, added at run time) of a word such as "+d-*3"."""
    match = re.fullmatch(r"(\+?)([a-zA-Z])(-?)(?:\*(\d+))?(?:@(\d+))?", word)
    assert match, f"no member: {word!r}"
    plus, name, minus, factor, lbset = match.groups()
    return name, State(bool(minus), float(factor or 1), int(lbset or 0)), \
        bool(plus)


class Configuration(typing.NamedTuple):
    members: str        # one letter each
    growth: int

    @classmethod
    def parse(cls, text):
        if text == NONE:
            return None
        *members, growth = text.split()
        match = re.fullmatch(r"growth=(\d+)", growth)
        assert match, f"no growth in {text!r}"
        return cls("".join(members), int(match[1]))

    def __str__(self):
        return " ".join([*self.members, f"growth={self.growth}"])


class Seen(typing.NamedTuple):
    """What one balancer shows of itself."""
    members: typing.Dict[str, State]
    strange: typing.Tuple[str, ...]     # names that nobody gave
    sticky: str
    offers: bool                        # the manager has room for a member
    served: typing.FrozenSet[str]       # small letters

    def __str__(self):
        return " ".join([name + str(state)
                         for name, state in sorted(self.members.items())]
                        + [repr(name) for name in self.strange])


class Entry(typing.NamedTuple):
    state: State
    runtime: bool


class Model:
    """One balancer, as its administrator thinks of it."""

    def __init__(self):
        self.configuration = None
        self.members = {}           # letter: Entry
        self.sticky = ""
        self.may_lose = 0           # so many of those added at run time

    @property
    def room(self):
        added = sum(entry.runtime for entry in self.members.values())
        return max(0, self.configuration.growth - added)

    def configure(self, configuration):
        """Before a restart with that configuration.

        What it names is there, with the state that it had; what it names no
        more is gone; what was added in the manager stays as long as there is
        room for it.  A balancer that is not configured keeps its members'
        state for the day it is, but not its own settings.
        """
        before, self.configuration = self.configuration, configuration
        if configuration is None:
            self.sticky = None         # promised neither way
            return
        members = {name: self.members.get(name, Entry(State(), False))
                   ._replace(runtime=False) for name in configuration.members}
        for name, entry in self.members.items():
            if entry.runtime and name not in members:
                members[name] = entry
        self.members = members
        added = sum(entry.runtime for entry in members.values())
        self.may_lose = max(0, added - configuration.growth)

    def change(self, name, state):
        if len(self.members) == 1:
            state = state._replace(factor=1)    # so does mod_proxy_balancer
        self.members[name] = self.members[name]._replace(state=state)

    def name(self, name, state):
        self.members[name] = Entry(state, False)

    def add(self, name, state):
        self.members[name] = Entry(state, True)

    def adopt(self, seen):
        """Goes on from what was seen: after a choice, or a deviation."""
        kept = {name: Entry(state, getattr(self.members.get(name), "runtime",
                                           name not in
                                           self.configuration.members))
                for name, state in seen.members.items()}
        self.members = kept
        self.sticky = seen.sticky
        self.may_lose = 0

    def __str__(self):
        if self.configuration is None:
            return NONE
        return " ".join(("+" if entry.runtime else "") + name
                        + str(entry.state)
                        for name, entry in self.members.items())

    def complaints(self, seen):
        """What is wrong with what is seen; [] if all is as expected."""
        wrong = [f"a member that nobody named: {name!r}"
                 for name in seen.strange]
        for name, state in seen.members.items():
            if name not in self.members:
                wrong.append(f"{name} is there, and nothing names it any more")
            elif state != self.members[name].state:
                wrong.append(f"{name} should be {name}"
                             f"{self.members[name].state}, and is "
                             f"{name}{state}")
        missing = [name for name in self.members if name not in seen.members]
        added = [name for name in missing if self.members[name].runtime]
        wrong += [f"{name} is gone, and the configuration names it"
                  for name in missing if name not in added]
        if len(added) > self.may_lose:
            wrong.append(f"{', '.join(added)} of those added in the manager "
                         f"gone, {self.may_lose} had no room")
        elif len(added) < self.may_lose:
            wrong.append(f"more members than there is room for: {seen}")
        if self.sticky not in (None, seen.sticky):
            wrong.append(f"the sticky session should be {self.sticky}, "
                         f"and is {seen.sticky}")
        room = self.room > 0
        if seen.offers != room:
            wrong.append("the manager offers to add a member, and there is no "
                         "room" if seen.offers else
                         "the manager offers no room for a member")
        expected = self.serving(seen)
        if seen.served != expected:
            wrong.append(f"requests should go to {''.join(sorted(expected))},"
                         f" and went to {''.join(sorted(seen.served))}")
        return wrong

    def serving(self, seen):
        """Who must be asked: the enabled of the lowest set that has any.

        Of those added in the manager where one had to go, who was seen.
        """
        enabled = {name: entry.state.lbset
                   for name, entry in self.members.items()
                   if not entry.state.disabled
                   and (name in seen.members or not self.may_lose
                        or not entry.runtime)}
        lowest = min(enabled.values(), default=0)
        return frozenset(name.lower() for name, lbset in enabled.items()
                         if lbset == lowest)


# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

def stop_and_start(server):
    server.stop()
    server.start()


def kill_and_start(server):
    server.kill_all()
    server.allow_log(UNCLEAN)
    server.start()


RESTARTS = {"graceful": lambda server: server.graceful(),
            "hard": lambda server: server.restart(),
            "stop": stop_and_start,
            "kill": kill_and_start}


class Site:
    """A server with balancers that are edited, changed, and looked at.

    alone: names of balancers that stand in a virtual host of their own, which
    goes when the balancer goes.
    """

    def __init__(self, httpd, backends, names, alone=(), **options):
        self.names, self.alone = list(names), list(alone)
        self.configurations = {name: None for name in names}
        self.url = {}
        for letter, url in zip(LETTERS, backends.urls):
            self.url[letter] = url
            self.url[letter.upper()] = url.replace("127.0.0.1", "127.1")
        self.letter = {url: letter for letter, url in self.url.items()}
        options.setdefault("modules", balancer.MODULES)
        self.server = httpd(start=False, ports=1 + len(self.alone),
                            **options)
        self.server.allow_log(EMPTY + "|" + NOBODY)

    def port(self, name):
        return self.server.ports[1 + self.alone.index(name)
                                 if name in self.alone else 0]

    def _conf(self):
        """Each balancer in a virtual host, most of them in the first.

        One of the main server would be every virtual host's too: they share
        the very members, and the last one's segment is what counts.
        """
        hosts = {port: [] for port in self.server.ports[:1]}
        for name, configuration in self.configurations.items():
            if configuration is not None:
                hosts.setdefault(self.port(name), []).append(balancer.cluster(
                    [self.url[letter] for letter in configuration.members],
                    name, "/" + name, f"growth={configuration.growth}"
                    if configuration.growth else ""))
        return balancer.MANAGER + "".join(
            f"<VirtualHost 127.0.0.1:{port}>\nBalancerPersist On\n"
            f"{''.join(texts)}</VirtualHost>\n"
            for port, texts in hosts.items())

    def configure(self, configurations, restart):
        """{name: Configuration or None}, and restart(server) to read it."""
        self.configurations.update(configurations)
        self.server.conf = self._conf()
        if self.server.process is None:
            self.server.start()
        else:
            self.server.write_config()
            restart(self.server)

    def manager_of(self, name):
        return balancer.Manager(self.server, self.port(name))

    def change(self, name, letter, state):
        self.manager_of(name).change(
            self.url[letter], name, w_status_D=str(int(state.disabled)),
            w_lf=f"{state.factor:g}", w_ls=str(state.lbset))

    def add(self, name, letter, state):
        self.manager_of(name).add(self.url[letter], name)
        self.change(name, letter, state)

    def set_sticky(self, name, word):
        self.manager_of(name).change_balancer(name, b_ss=word)

    def look(self, models):
        """Seen or an error, of each balancer in models; {name: that}.

        Requests go on until all that the model expects have answered, or have
        had many chances; and until anybody else has had some.
        """
        shown = {}
        for port in {self.port(name) for name in models}:
            shown.update(balancer.Manager(self.server, port).balancers())
        found = {}
        for name, model in models.items():
            try:
                found[name] = self._look_at(name, shown[name], model)
            except (AssertionError, KeyError) as error:
                found[name] = error
        return found

    def _look_at(self, name, shown, model):
        members, strange = {}, []
        for url, member in shown.members.items():
            if url in self.letter:
                members[self.letter[url]] = State(
                    "Dis" in member.status, member.load_factor, member.lbset)
            else:
                strange.append(url)
        form = self.manager_of(name).form(name, nonce=shown.nonce)
        seen = Seen(members, tuple(strange), shown.sticky,
                    "b_nwrkr" in form.fields, frozenset())
        return seen._replace(served=self._served(name, seen, model))

    def _served(self, name, seen, model):
        expected, served = model.serving(seen), set()
        if not any(not state.disabled for state in seen.members.values()):
            status, _ = self.server.get(f"/{name}/who", port=self.port(name))
            assert status == 503, f"{name} was answered by nobody: {status}"
            return frozenset()
        # By its load factor each has its turn in so many requests.
        turns = 2 + int(sum(state.factor for state in seen.members.values()))
        for i in range(200):
            if i >= turns and served >= expected:
                break
            status, body = self.server.get(f"/{name}/who",
                                           port=self.port(name))
            assert status == 200, f"{name} was answered with status {status}"
            served.add(LETTERS[int(body)])
        return frozenset(served)

    def warnings(self, name, since=0):
        """What the module warned of that balancer's segment of members."""
        return [line for line in self.server.log()[since:].splitlines()
                if re.search(r"\[[^]]*slotmem_shm:(warn|error|crit|emerg)\]",
                             line) and re.search(rf"_{name}\b", line)]
